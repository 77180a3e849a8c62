//! What a disk can do to unpacked files is found, whatever it is.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use rstest::rstest;
use rustix::fs::{XattrFlags, lsetxattr};

use super::fixture::{self, Bench, Item, Layers};
use crate::snapshot::{Condition, Driver, Mend};

fn flip(path: &Path, offset: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 1], offset).expect("write");
}

/// Takes a file's name and gives it to a new one.
fn replace(path: &Path, make: impl FnOnce(&Path)) {
    fs::remove_file(path).expect("remove");
    make(path);
}

#[rstest]
#[case("content of /odd", |root: &Path| flip(&root.join("odd"), 15_000))]
#[case("content of /small", |root: &Path| flip(&root.join("small"), 0))]
#[case("content of /sticky/deep/hard", |root: &Path| replace(&root.join("sticky/deep/hard"), |path| {
    fs::copy(root.join("small"), path).expect("copy");
    for (name, value) in [("user.empty", &b""[..]), ("user.text", b"value")] {
        lsetxattr(path, name, value, XattrFlags::empty()).expect("setxattr");
    }
}))]
#[case("size of /block", |root: &Path| fs::write(root.join("block"), b"less").expect("write"))]
#[case("kind of /fifo", |root: &Path| replace(&root.join("fifo"), |path| fs::write(path, b"").expect("write")))]
#[case("kind of /empty", |root: &Path| replace(&root.join("empty"), |path| symlink("x", path).expect("symlink")))]
#[case("target of /sticky/relative", |root: &Path| replace(&root.join("sticky/relative"), |path| {
    symlink("../smell", path).expect("symlink");
}))]
#[case("mode of /small", |root: &Path| {
    fs::set_permissions(root.join("small"), fs::Permissions::from_mode(0o600)).expect("chmod");
})]
#[case("owner of /sticky", |root: &Path| chown(root.join("sticky"), Some(7), None).expect("chown"))]
#[case("extended attributes of /small", |root: &Path| {
    lsetxattr(root.join("small"), "user.text", b"valve", XattrFlags::empty()).expect("setxattr");
})]
#[case("list of entries of /sticky", |root: &Path| fs::write(root.join("sticky/more"), b"").expect("write"))]
#[case("/block is gone", |root: &Path| fs::remove_file(root.join("block")).expect("remove"))]
fn rot_is_found(#[case] expected: &str, #[case] damage: fn(&Path)) {
    let layers = Layers::from(vec![fixture::packed("pax", fixture::every_kind)]);
    let bench = Bench::new();
    bench.ingest(Driver::Directory, &layers).expect("valid layers");
    bench.driver(Driver::Directory).compose(&layers.image()).expect("composed");
    bench.assert_sound(Driver::Directory, &layers);
    let files = bench.layout(Driver::Directory).layer(&layers.image().diff_ids[0]).files();
    damage(&files);
    // Times would give all of it away.
    fixture::age(&files);
    found(&bench, &layers, expected);
}

/// A check finds this.
fn found(bench: &Bench, layers: &Layers, expected: &str) {
    let diff_id = layers.image().diff_ids[0];
    let condition = bench.driver(Driver::Directory).check_layer(&diff_id, Mend::No, &mut |_| ()).expect("readable");
    let Condition::Damaged(why) = &condition else { panic!("{expected}: {condition:?}") };
    assert!(why.contains(expected), "{expected}: {why}");
}

#[test]
fn times_and_holes_and_digests_are_compared() {
    let layers = Layers::from(vec![fixture::packed_with(
        &["--format=pax", "--sparse", "--hole-detection=seek"],
        fixture::sparse_files,
    )]);
    let bench = Bench::new();
    let diff_id = layers.image().diff_ids[0];
    let paths = bench.layout(Driver::Directory).layer(&diff_id);
    let again = || {
        bench.driver(Driver::Directory).remove_layer(&diff_id).expect("removed");
        bench.ingest(Driver::Directory, &layers).expect("valid layers");
    };
    again();
    flip(&paths.files().join("many"), 65_536 * 7);
    fixture::age(&paths.files());
    found(&bench, &layers, "content of /many");
    again();
    fs::write(paths.files().join("dense"), [1; 9000]).expect("write");
    found(&bench, &layers, "time of /dense");
    again();
    flip(&paths.index(), 1500);
    found(&bench, &layers, "index of the layer");
    again();
    fs::write(paths.sums(), b"index 1\n").expect("write");
    found(&bench, &layers, "digests");
    // A layer of an earlier version.
    fs::remove_file(paths.sums()).expect("remove");
    let condition = bench.driver(Driver::Directory).check_layer(&diff_id, Mend::No, &mut |_| ());
    assert_eq!(condition.expect("readable"), Condition::Unhashed);
}

/// What goes on top of an image's layers is derived from these.
#[test]
fn a_patch_that_has_rotted_is_made_anew() {
    let layers = Layers::new([
        vec![Item::file("old", b"below"), Item::directory("d").owner(3, 4)],
        vec![Item::hard_link("d/new", "old"), Item::file("d/more", b"more")],
    ]);
    let (bench, image) = (Bench::new(), layers.image());
    bench.ingest(Driver::Directory, &layers).expect("valid layers");
    let snapshotter = bench.driver(Driver::Directory);
    snapshotter.compose(&image).expect("composed");
    bench.assert_sound(Driver::Directory, &layers);
    let place = bench.layout(Driver::Directory).image_directories(&image.manifest);
    let (copy, time) = (place.join("fs/d/new"), fs::metadata(place.join("fs/d/new")).expect("there").modified());
    flip(&copy, 2);
    fs::File::options().write(true).open(&copy).expect("open").set_modified(time.expect("a time")).expect("set");
    let why = "directory of the image: the content of /d/new is not what it was".to_owned();
    let check = |mend| snapshotter.check_image(&image, mend).expect("readable");
    assert_eq!(check(Mend::No), Condition::Derived { why: why.clone(), mended: false });
    assert_eq!(check(Mend::Yes), Condition::Derived { why, mended: true });
    bench.assert_sound(Driver::Directory, &layers);
    fs::remove_dir_all(place.join("fs")).expect("remove");
    assert!(matches!(check(Mend::Yes), Condition::Derived { mended: true, .. }));
    bench.assert_sound(Driver::Directory, &layers);
}
