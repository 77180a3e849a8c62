//! What every driver must do, checked against other unpackers: GNU `tar` with the whiteouts applied beside it, and `umoci`.
//!
//! Runs as root, with real mounts; needs `tar`, `umoci` and `erofs-utils`. Where one is missing the tests fail.

mod bad_tars;
mod checked_by;
mod compare;
mod fixture;
mod generated;
mod reference;
mod rot;
mod sizes;
mod tarball;

use std::path::{Path, PathBuf};

use compare::Leeway;
use fixture::{Bench, Item, Layers};

use super::{Driver, SnapshotError, make_room, prune};
use crate::store::Store;
use crate::store::index::ImageRecord;
use crate::store::pins::Holder;

/// How often two writers meet, and how often each looks for what it has finished: where they are in each other's way, one
/// of the first few rounds shows it.
const ROUNDS: usize = 30;
const LOOKS: usize = 50;

/// Both drivers take the same layers and show the same files as both references.
fn agree(layers: &Layers) {
    let bench = Bench::new();
    let tar = reference::tar(layers, &bench.directory("tar"));
    let umoci = reference::umoci(layers, &bench.directory("umoci"));
    for driver in [Driver::Erofs, Driver::Directory] {
        let shown = bench.mount(driver, layers);
        compare::same(&tar, shown.root(), driver, Leeway::None);
        compare::same(&umoci, shown.root(), driver, Leeway::EmptyAttributes);
        bench.assert_sound(driver, layers);
    }
    checked_by::erofs_utils(&bench.layout(Driver::Erofs), &layers.image());
}

/// The same where one of the references cannot be asked.
fn agree_with(reference: fn(&Layers, &Path) -> PathBuf, layers: &Layers) {
    let bench = Bench::new();
    let expected = reference(layers, &bench.directory("reference"));
    for driver in [Driver::Erofs, Driver::Directory] {
        let shown = bench.mount(driver, layers);
        compare::same(&expected, shown.root(), driver, Leeway::None);
        bench.assert_sound(driver, layers);
    }
    checked_by::erofs_utils(&bench.layout(Driver::Erofs), &layers.image());
}

#[test]
fn every_kind_of_file_in_every_dialect() {
    for dialect in ["pax", "gnu", "ustar", "v7"] {
        agree(&Layers::from(vec![fixture::packed(dialect, fixture::every_kind)]));
    }
}

#[test]
fn sparse_files_in_every_dialect() {
    for arguments in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let arguments = [arguments, &["--sparse", "--hole-detection=seek"]].concat();
        // umoci does not know old GNU sparse entries.
        agree_with(reference::tar, &Layers::from(vec![fixture::packed_with(&arguments, fixture::sparse_files)]));
    }
}

#[test]
fn a_directory_of_thousands_of_entries() {
    let mut items = vec![Item::directory("d")];
    for index in 0..500 {
        items.push(Item::file(&format!("d/{index}-{}", "n".repeat(index % 200)), b"x"));
        items.push(Item::file(&format!("d/.-{index}"), b""));
        items.push(Item::file(&format!("d/!{index}"), b"y"));
    }
    agree(&Layers::new([items]));
}

#[test]
fn whiteouts_concern_the_layers_below_only() {
    agree(&Layers::new([
        vec![
            Item::directory("a"),
            Item::file("a/gone", b"1"),
            Item::file("a/kept", b"2"),
            Item::directory("a/dir"),
            Item::file("a/dir/below", b"3"),
            Item::file("b", b"4"),
            Item::symlink("link", "a"),
            Item::directory("again"),
            Item::file("again/old", b"old"),
        ],
        vec![
            Item::file("a/.wh.gone", b""),
            Item::file("a/.wh.dir", b""),
            Item::file(".wh.link", b""),
            Item::file(".wh.never-was", b""),
            Item::directory("again"),
            Item::file("again/new", b"new"),
            Item::file(".wh.again", b""),
            Item::file(".wh.b", b""),
            Item::file("b", b"this layer's own"),
        ],
    ]));
}

/// overlayfs lists what hides nothing, where a directory is in one layer only.
#[test]
fn whiteouts_of_what_never_was_are_not_seen() {
    agree(&Layers::new([
        vec![Item::directory("d"), Item::file("d/low", b"1"), Item::directory("again"), Item::file("again/low", b"2")],
        vec![
            Item::file("d/.wh..wh..opq", b""),
            Item::file("d/.wh.low", b""),
            Item::file("d/high", b"3"),
            Item::directory("new"),
            Item::file("new/.wh.never-was", b""),
            Item::file(".wh.again", b""),
            Item::directory("again"),
            Item::file("again/.wh.low", b""),
        ],
    ]));
    agree(&Layers::new([vec![
        Item::directory("d"),
        Item::file("d/.wh.never-was", b""),
        Item::file(".wh.nor-was", b""),
    ]]));
}

#[test]
fn opaque_directories_hide_what_is_below() {
    agree(&Layers::new([
        vec![
            Item::directory("d"),
            Item::file("d/low", b"1"),
            Item::directory("d/sub"),
            Item::file("d/sub/low", b"2"),
            Item::directory("e"),
            Item::file("e/low", b"3"),
        ],
        vec![
            Item::directory("d"),
            Item::file("d/.wh..wh..opq", b""),
            Item::file("d/high", b"4"),
            Item::directory("d/sub"),
            Item::file("d/sub/high", b"5"),
            Item::directory("e"),
            Item::file("e/high", b"6"),
            Item::file("e/.wh..wh..opq", b""),
        ],
        vec![Item::file("d/top", b"7")],
    ]));
}

#[test]
fn entries_are_replaced_by_other_kinds() {
    let kinds = |prefix: &str| {
        vec![
            Item::file(&format!("{prefix}file"), b"content"),
            Item::directory(&format!("{prefix}dir")),
            Item::file(&format!("{prefix}dir/child"), b"c"),
            Item::symlink(&format!("{prefix}symlink"), "elsewhere"),
            Item::fifo(&format!("{prefix}fifo")),
            Item::char_device(&format!("{prefix}char"), 1, 3),
        ]
    };
    let names = ["file", "dir", "symlink", "fifo", "char"];
    let (mut below, mut above) = (Vec::new(), Vec::new());
    for name in names {
        below.extend(kinds(&format!("{name}-")));
        for old in names {
            let path = format!("{name}-{old}");
            above.push(match name {
                "file" => Item::file(&path, b"new"),
                "dir" => Item::directory(&path),
                "symlink" => Item::symlink(&path, "new"),
                "fifo" => Item::fifo(&path),
                _ => Item::char_device(&path, 1, 5),
            });
        }
    }
    agree(&Layers::new([below, above]));
}

#[test]
fn hard_links_stay_together_when_one_name_is_replaced() {
    agree(&Layers::new([
        vec![
            Item::file("a", b"shared"),
            Item::hard_link("b", "a"),
            Item::directory("d"),
            Item::hard_link("d/c", "./a"),
            Item::symlink("s", "a"),
            Item::hard_link("s2", "s"),
            Item::fifo("f"),
            Item::hard_link("f2", "f"),
        ],
        vec![Item::file("a", b"replaced"), Item::file("d/.wh.c", b"")],
    ]));
}

#[test]
fn hard_links_reach_into_the_layers_below() {
    agree(&Layers::new([
        vec![Item::file("old", b"below"), Item::directory("d")],
        vec![Item::hard_link("d/new", "old"), Item::hard_link("d/newer", "d/new")],
    ]));
}

#[test]
fn a_directory_that_is_passed_through_keeps_its_owner() {
    agree(&Layers::new([
        vec![Item::directory("a").owner(10, 20).mode(0o2750), Item::directory("a/b").owner(1, 2).mode(0o700)],
        vec![Item::file("a/b/c/file", b"x")],
    ]));
}

#[test]
fn a_path_through_a_symbolic_link_of_the_layer_below_is_followed() {
    let layers = Layers::new([
        vec![
            Item::directory("usr"),
            Item::directory("usr/lib"),
            Item::file("usr/lib/old", b"1"),
            Item::symlink("lib", "usr/lib"),
            Item::directory("x"),
            Item::symlink("x/up", "../usr/lib"),
            Item::symlink("absolute", "/usr/lib"),
        ],
        vec![Item::file("lib/new", b"2"), Item::file("x/up/newer", b"3"), Item::file("absolute/newest", b"4")],
    ]);
    // GNU tar would follow the absolute link to this machine's own directory.
    agree_with(reference::umoci, &layers);
}

#[test]
fn a_layer_may_come_twice_and_may_be_empty() {
    agree(&Layers::new([
        vec![Item::file("a", b"1")],
        vec![],
        vec![Item::file("b", b"2"), Item::file("a", b"3")],
        vec![],
        vec![Item::file("a", b"1")],
    ]));
}

#[test]
fn an_image_may_have_no_layers() {
    let layers = Layers::new([]);
    let bench = Bench::new();
    for driver in [Driver::Erofs, Driver::Directory] {
        let shown = bench.mount(driver, &layers);
        assert_eq!(std::fs::read_dir(shown.root()).expect("mounted").count(), 0);
    }
}

#[test]
fn a_wrong_diff_id_leaves_nothing() {
    let layers = Layers::new([vec![Item::file("a", b"1")]]);
    let bench = Bench::new();
    for driver in [Driver::Erofs, Driver::Directory] {
        let error =
            bench.ingest_as(driver, &layers.tars()[0], &crate::digest::Digest::of(b"other")).expect_err("refused");
        assert!(matches!(error, SnapshotError::DiffIdMismatch { .. }), "{error}");
        bench.assert_nothing_left(driver);
    }
}

/// Two registries have it, or a repair meets a pull.
#[test]
fn a_layer_that_is_finished_twice_at_once_is_there_from_the_first_on() {
    let layers = Layers::new([vec![Item::file("a", b"1")]]);
    let diff_id = layers.image().diff_ids[0];
    let bench = Bench::new();
    for driver in [Driver::Erofs, Driver::Directory] {
        let snapshotter = bench.driver(driver);
        for round in 0..ROUNDS {
            let together = std::sync::Barrier::new(2);
            let finish = || {
                let mut writer = snapshotter.begin_layer(None).expect("begun");
                writer.write(&layers.tars()[0]).expect("written");
                together.wait();
                writer.finish(&diff_id).expect("finished");
                // The other one is at work still, or has just ended.
                (0..LOOKS).all(|_| snapshotter.layer(&diff_id).is_some())
            };
            let stayed = std::thread::scope(|scope| {
                let other = scope.spawn(finish);
                [finish(), other.join().expect("both finish")]
            });
            assert_eq!(stayed, [true; 2], "{driver:?}, round {round}");
            snapshotter.remove_layer(&diff_id).expect("removed");
        }
        bench.assert_nothing_left(driver);
    }
}

#[test]
fn mounting_twice_gives_one_mount_that_a_new_driver_finds() {
    let layers = Layers::new([vec![Item::file("a", b"1")]]);
    let bench = Bench::new();
    for driver in [Driver::Erofs, Driver::Directory] {
        bench.ingest(driver, &layers).expect("valid layers");
        let first = bench.driver(driver).mount(&layers.image()).expect("mounted");
        let second = bench.driver(driver).mount(&layers.image()).expect("mounted");
        assert_eq!(first, second);
        let at = |path: &Path| {
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
            mounts.lines().filter(|line| line.contains(&format!(" {} ", path.display()))).count()
        };
        let expected = usize::from(driver == Driver::Erofs);
        assert_eq!(at(&first.lower_dirs[0]), expected);
        bench.driver(driver).remove_image(&layers.image().manifest).expect("removed");
        bench.driver(driver).remove_image(&layers.image().manifest).expect("removed again");
        assert_eq!(at(&first.lower_dirs[0]), 0);
        for diff_id in layers.image().diff_ids {
            bench.driver(driver).remove_layer(&diff_id).expect("removed");
            bench.driver(driver).remove_layer(&diff_id).expect("removed again");
            assert_eq!(bench.driver(driver).layer(&diff_id), None);
        }
        let error = bench.driver(driver).mount(&layers.image()).expect_err("its layers are gone");
        assert!(matches!(error, SnapshotError::MissingLayer(_)), "{error}");
        bench.assert_nothing_left(driver);
    }
}

#[test]
fn a_damaged_index_is_made_anew_from_the_tar() {
    let layers = Layers::new([vec![Item::file("a", b"1")]]);
    let bench = Bench::new();
    bench.ingest(Driver::Erofs, &layers).expect("valid layers");
    let index = bench.layout(Driver::Erofs).layer(&layers.image().diff_ids[0]).index();
    let mut bytes = std::fs::read(&index).expect("index");
    bytes[1100] ^= 1;
    std::fs::write(&index, bytes).expect("damaged");
    bench.driver(Driver::Erofs).compose(&layers.image()).expect("composed from the tar");
    assert!(crate::erofs::read_image(&std::fs::read(&index).expect("index")).is_ok());
}

#[test]
fn room_is_made_from_what_nobody_uses() {
    let bench = Bench::new();
    for driver in [Driver::Erofs, Driver::Directory] {
        let store = Store::open(bench.layout(driver).root()).expect("opens");
        let snapshotter = bench.driver(driver);
        let layers =
            Layers::new([vec![Item::file("a", b"1")], vec![Item::file("b", b"2")], vec![Item::file("c", b"3")]]);
        let image = layers.image();
        for (at, layer) in (100..).zip(bench.ingest(driver, &layers).expect("valid layers")) {
            store.record_layer(&layer.diff_id, layer.size_bytes, layer.disk_bytes, at);
        }
        snapshotter.mount(&image).expect("mounted");
        store.record_image(&image.manifest, &[], 0);
        store
            .index()
            .put_image(&ImageRecord { manifest: image.manifest, diff_ids: image.diff_ids.clone() })
            .expect("put");
        let pin = store.pins().pin(Holder::Pod, &image.diff_ids[..1]);
        let freed = make_room(&store, &*snapshotter, 1).expect("room");
        assert!(freed > 0);
        let here = |index: usize| snapshotter.layer(&image.diff_ids[index]).is_some();
        assert_eq!([here(0), here(1), here(2)], [true, false, true], "{driver:?}");
        assert_eq!(snapshotter.mounted().expect("mounts"), [], "an image goes with its layer");
        assert_eq!(store.images().expect("images"), []);
        assert_eq!(make_room(&store, &*snapshotter, u64::MAX).expect("room"), 0, "nothing goes in vain");
        prune(&store, &*snapshotter).expect("pruned");
        assert_eq!([here(0), here(1), here(2)], [true, false, false], "{driver:?}");
        drop(pin);
        prune(&store, &*snapshotter).expect("pruned");
        drop(store);
        bench.assert_nothing_left(driver);
    }
}
