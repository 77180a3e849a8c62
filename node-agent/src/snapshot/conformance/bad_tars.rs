//! Tars that mean harm, or are broken: refused by name, within the bounds that are set, with nothing left and nothing
//! written outside; or taken for what they are inside the root.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rstest::rstest;

use super::fixture::{Bench, Layers};
use super::tarball::{self, Dialect, Entry, Sparse};
use crate::digest::Digest;
use crate::snapshot::{Driver, Limits, SnapshotError};

const DRIVERS: [Driver; 2] = [Driver::Erofs, Driver::Directory];

/// A directory that a layer would like to reach, with what is in it.
struct Outside(tempfile::TempDir);

impl Outside {
    fn new() -> Self {
        let outside = Self(tempfile::tempdir().expect("temporary directory"));
        fs::write(outside.0.path().join("secret"), "untouched").expect("write");
        outside
    }

    /// Its path as a layer would name it.
    fn path(&self) -> &str {
        self.0.path().to_str().expect("ASCII")
    }

    fn assert_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.0.path()).expect("read").map(|entry| entry.expect("entry")).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(fs::read_to_string(names[0].path()).expect("read"), "untouched");
    }
}

/// Both drivers refuse the tar with a text that has `named` in it, and leave nothing.
fn refused(tar: &[u8], limits: Limits, named: &str) {
    let bench = Bench::new();
    for driver in DRIVERS {
        let error = bench.ingest_within(driver, tar, limits).expect_err("refused");
        assert!(
            matches!(error, SnapshotError::MalformedTar(_) | SnapshotError::LimitExceeded(_)),
            "{driver:?}: {error:?}"
        );
        assert!(error.to_string().contains(named), "{driver:?}: {error}");
        bench.assert_nothing_left(driver);
    }
}

/// Every path below a directory.
fn paths(root: &Path) -> BTreeSet<PathBuf> {
    let (mut open, mut found) = (vec![root.to_owned()], BTreeSet::new());
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("read") {
            let entry = entry.expect("entry");
            if entry.file_type().expect("type").is_dir() {
                open.push(entry.path());
            }
            found.insert(entry.path().strip_prefix(root).expect("below").to_owned());
        }
    }
    found
}

#[rstest]
#[case::parent("../out", "component ..")]
#[case::parent_inside("a/../../out", "component ..")]
#[case::parent_at_the_end("a/..", "component ..")]
#[case::whiteout_of_the_parent(".wh...", "must name what it hides")]
#[case::whiteout_of_itself("a/.wh..", "must name what it hides")]
#[case::the_root_as_a_file("./", "the root must be a directory")]
fn paths_that_lead_out(#[case] path: &str, #[case] named: &str) {
    refused(&tarball::of(&[Entry::file(path, b"x")]), Limits::default(), named);
}

#[test]
fn a_name_with_a_zero_byte_or_too_long() {
    for (path, named) in [(&b"a\0b"[..], "zero byte"), (&[b'x'; 256], "more than 255 bytes")] {
        let mut entry = Entry::file("short", b"");
        entry.records.push((String::from("path"), path.to_vec()));
        refused(&tarball::of(&[entry]), Limits::default(), named);
    }
    let deep = format!("{}x", "d/".repeat(3000));
    refused(&tarball::of(&[Entry::file(&deep, b"")]), Limits::default(), "path has 6001 bytes");
}

#[test]
fn entries_below_what_is_no_directory() {
    for kind in [Entry::file("a", b"x"), Entry::new("a", b'6')] {
        refused(&tarball::of(&[kind, Entry::file("a/b", b"y")]), Limits::default(), "a is not a directory");
    }
}

#[test]
fn links_in_circles_and_to_names_that_no_file_system_has() {
    let circle = [Entry::link("a", b'2', "b"), Entry::link("b", b'2', "a"), Entry::file("a/x", b"")];
    refused(&tarball::of(&circle), Limits::default(), "too many symbolic links");
    let nested = [Entry::link("a", b'2', "a/a"), Entry::file("a/x", b"")];
    refused(&tarball::of(&nested), Limits::default(), "too many symbolic links");
    let long = [Entry::link("a", b'2', &"n".repeat(600)), Entry::file("a/x", b"")];
    refused(&tarball::of(&long), Limits::default(), "more than 255 bytes");
    let step = "d/".repeat(1500);
    let deep =
        [Entry::link("a", b'2', &step), Entry::link(&format!("{step}b"), b'2', &step), Entry::file("a/b/x", b"")];
    refused(&tarball::of(&deep), Limits::default(), "is too long");
    refused(&tarball::of(&[Entry::link("a", b'2', "")]), Limits::default(), "1 to 4095 bytes");
    refused(&tarball::of(&[Entry::link("a", b'2', &"t/".repeat(2048))]), Limits::default(), "1 to 4095 bytes");
}

#[test]
fn hard_links_that_lead_out_or_to_what_has_none() {
    let refused = |entries: &[Entry], named| refused(&tarball::of(entries), Limits::default(), named);
    refused(&[Entry::link("a", b'1', "../../etc/passwd")], "component ..");
    refused(&[Entry::new("d", b'5'), Entry::link("a", b'1', "d")], "is a directory");
    refused(&[Entry::link("a", b'1', "/")], "is the root");
    refused(&[Entry::file(".wh.b", b""), Entry::link("a", b'1', "b")], "hidden by a whiteout");
}

#[test]
fn a_hard_link_to_a_file_of_the_machine_is_looked_for_in_the_image() {
    let outside = Outside::new();
    let secret = format!("{}/secret", outside.path());
    let layers = Layers::from(vec![tarball::of(&[Entry::link("a", b'1', &secret)])]);
    let bench = Bench::new();
    for driver in DRIVERS {
        bench.ingest(driver, &layers).expect("a layer that may lie on another");
        let error = bench.driver(driver).compose(&layers.image()).expect_err("refused");
        assert!(matches!(error, SnapshotError::Unmergeable(_)), "{driver:?}: {error:?}");
        assert!(error.to_string().contains(&secret[1..]), "{driver:?}: {error}");
    }
    outside.assert_untouched();
}

#[test]
fn what_goes_through_links_to_the_outside_stays_inside() {
    let outside = Outside::new();
    let up = format!("{}{}", "../".repeat(30), &outside.path()[1..]);
    let layers = Layers::from(vec![
        tarball::of(&[
            Entry::link("absolute", b'2', outside.path()),
            Entry::link("up", b'2', &up),
            Entry::link("secret", b'2', &format!("{}/secret", outside.path())),
            Entry::file("absolute/one", b"1"),
            Entry::file("up/two", b"2"),
            Entry::new("up/.wh.secret", b'0'),
            Entry::new("up/.wh..wh..opq", b'0'),
            Entry::link("absolute/three", b'1', "up/two"),
            // Takes the place of the link, and is not written through it.
            Entry::file("secret", b"3"),
        ]),
        tarball::of(&[
            Entry::file("up/four", b"4"),
            Entry { mode: 0, owner: (7, 7), ..Entry::new(&format!("{}/", outside.path()), b'5') },
            Entry::new(".wh.absolute", b'0'),
        ]),
    ]);
    let bench = Bench::new();
    for driver in DRIVERS {
        let shown = bench.mount(driver, &layers);
        let inside = shown.root().join(&outside.path()[1..]);
        for (name, content) in [("one", "1"), ("two", "2"), ("three", "2"), ("four", "4")] {
            assert_eq!(fs::read_to_string(inside.join(name)).expect("inside"), content, "{driver:?}");
        }
        assert_eq!(fs::read_to_string(shown.root().join("secret")).expect("inside"), "3", "{driver:?}");
        outside.assert_untouched();
        drop(shown);
        let names: BTreeSet<_> =
            fs::read_dir(bench.root()).expect("read").map(|entry| entry.expect("entry").file_name()).collect();
        let known = ["Erofs", "Directory", "mounts", "overlay-Erofs", "overlay-Directory"];
        assert!(names.iter().all(|name| known.iter().any(|known| name == known)), "{names:?}");
    }
}

#[test]
fn of_entries_with_one_path_the_last_one_counts() {
    let mut again = Entry::file("a", b"second");
    again.mode = 0o600;
    let layers = Layers::from(vec![tarball::of(&[
        Entry::file("a", b"the first, which is longer"),
        Entry::link("linked-before", b'1', "a"),
        again,
        Entry::link("a-link", b'1', "a"),
        Entry::link("a-link", b'1', "a"),
        Entry::link("itself", b'2', "a"),
        Entry::new("itself", b'5'),
        Entry::file("itself/child", b"c"),
        Entry::file("d/child", b"gone"),
        Entry::file("d", b"now a file"),
    ])]);
    let bench = Bench::new();
    for driver in DRIVERS {
        let shown = bench.mount(driver, &layers);
        let read = |name: &str| fs::read_to_string(shown.root().join(name)).expect("read");
        assert_eq!(
            ["a", "linked-before", "a-link", "itself/child", "d"].map(read),
            ["second", "the first, which is longer", "second", "c", "now a file"],
            "{driver:?}"
        );
        assert_eq!(paths(shown.root()).len(), 6, "{driver:?}");
    }
}

#[test]
fn sizes_that_are_negative_or_no_number() {
    let stated = |size: [u8; 12]| Entry { stated_size: Some(size), ..Entry::file("liar", b"x") };
    let minus_one = [0xff; 12];
    for size in [minus_one, *b"-0000000001\0", *b"0000000019z\0"] {
        refused(&tarball::of(&[stated(size)]), Limits::default(), "size of liar is not valid");
    }
    let mut too_large = [0xff; 12];
    too_large[0] = 0x80;
    refused(&tarball::of(&[stated(too_large)]), Limits::default(), "size of liar is not valid");
    let mut pax = Entry::file("liar", b"x");
    pax.records.push((String::from("size"), b"-1".to_vec()));
    refused(&tarball::of(&[pax]), Limits::default(), "record \"size\" of the extended header");
}

#[test]
fn data_that_end_too_early() {
    let whole = tarball::of(&[Entry::file("a", &[7; 3000])]);
    for cut in [100, 512, 1000, 512 + 2999] {
        refused(&whole[..cut], Limits::default(), "in the middle of an entry");
    }
    let huge = Entry { stated_size: Some(*b"77777777777\0"), ..Entry::file("a", b"x") };
    refused(&tarball::of(&[huge]), Limits::default(), "in the middle of an entry");
}

#[test]
fn owners_that_no_file_can_have() {
    for owner in [u64::from(u32::MAX), 1 << 32] {
        let entry = Entry { owner: (owner, 0), ..Entry::file("a", b"") };
        refused(&tarball::of(&[entry]), Limits::default(), "uid of a is not valid");
    }
}

#[test]
fn more_entries_than_allowed() {
    let limits = Limits { entries: 1000, ..Limits::default() };
    let entries: Vec<Entry> = (0..1001).map(|index| Entry::new(&format!("{index}"), b'0')).collect();
    refused(&tarball::of(&entries), limits, "more than 1000 entries, the bound set by --max-layer-entries");
    refused(&tarball::of(vec![&entries[0]; 1001]), limits, "more than 1000 entries");
    let bench = Bench::new();
    for driver in DRIVERS {
        bench.ingest_within(driver, &tarball::of(&entries[..1000]), limits).expect("as many as allowed");
    }
}

#[test]
fn names_and_attributes_that_take_more_memory_than_allowed() {
    let limits = Limits { metadata_bytes: 1 << 20, ..Limits::default() };
    let named = "the bound set by --max-layer-metadata-bytes";
    let flood = |index: u32| {
        let xattrs = (0..10).map(|name| (format!("user.{index}-{name}"), vec![b'x'; 250])).collect();
        Entry { xattrs, ..Entry::new(&format!("{index}"), b'0') }
    };
    refused(&tarball::of(&(0..400).map(flood).collect::<Vec<_>>()), limits, named);
    // One header of 3 kB that holds for all entries of half a kilobyte.
    let few: Vec<Entry> = (0..400).map(|index| Entry::new(&format!("{index}"), b'0')).collect();
    let global = tarball::global("SCHILY.xattr.user.all", &[b'x'; 3000]);
    refused(&[&global[..], &tarball::of(&few)].concat(), limits, named);
    // The same directory again and again.
    let again = Entry::new("d", b'5');
    refused(&[&global[..], &tarball::of(vec![&again; 400])].concat(), limits, named);
    let implied: Vec<Entry> =
        (0..10).map(|index| Entry::file(&format!("{index}/{}x", "d/".repeat(1000)), b"")).collect();
    refused(&tarball::of(&implied), limits, named);
    let targets: Vec<Entry> = (0..300).map(|index| Entry::link(&format!("{index}"), b'2', &"t".repeat(4000))).collect();
    refused(&tarball::of(&targets), limits, named);
    let deep = format!("{}/", "n".repeat(250)).repeat(15);
    let paths: Vec<Entry> = (0..300).map(|index| Entry::new(&format!("{deep}{index}"), b'0')).collect();
    refused(&tarball::of(&paths), limits, named);
    let pieces = (0..1000).map(|index| (index * 1024, 512)).collect();
    let sparse = Some((Sparse::Pax01, 1000 << 10, pieces));
    let pieces = tarball::of(&[Entry { sparse, ..Entry::file("0", &[1; 1000 << 9]) }]);
    refused(&pieces, Limits { metadata_bytes: 40 << 10, ..limits }, named);
    let mut sparse = Entry::file("0", &[1; 512]);
    sparse.sparse = Some((Sparse::Pax01, 4 << 20, vec![(512, 512)]));
    let holes: Vec<Entry> = (0..20).map(|index| Entry { path: format!("{index}"), ..sparse.clone() }).collect();
    refused(&tarball::of(&holes), limits, named);
}

#[test]
fn one_file_with_more_attributes_than_linux_lists() {
    let xattrs = (0..20).map(|name| (format!("user.{name}"), vec![b'x'; 4000])).collect();
    let flooded = Entry { xattrs, ..Entry::file("a", b"") };
    refused(&tarball::of(&[flooded]), Limits::default(), "extended attributes has 80");
    let mut long = Entry::file("a", b"");
    long.records.push((String::from("comment"), vec![b'x'; 2 << 20]));
    refused(&tarball::of(&[long]), Limits::default(), "extended header has");
}

#[test]
fn the_indexes_of_an_images_layers_together() {
    let limits = Limits { metadata_bytes: 64 << 10, ..Limits::default() };
    let layer = |layer: usize| {
        let entries: Vec<Entry> = (0..200).map(|index| Entry::new(&format!("{layer}-{index}"), b'0')).collect();
        tarball::of(&entries)
    };
    let layers = Layers::from((0..6).map(layer).collect::<Vec<_>>());
    let bench = Bench::new();
    for driver in DRIVERS {
        for tar in layers.tars() {
            bench.ingest_within(driver, tar, limits).expect("each is small");
        }
        let error = bench.driver_within(driver, limits).compose(&layers.image()).expect_err("refused");
        assert!(matches!(error, SnapshotError::LimitExceeded(_)), "{driver:?}: {error:?}");
        bench.driver(driver).compose(&layers.image()).expect("within the usual limits");
    }
}

/// A megabyte of gzip becomes a gigabyte of zeros: what counts is what comes out, and the disk never holds more.
#[test]
fn more_bytes_than_allowed() {
    let limits = Limits { layer_bytes: 3 << 20, ..Limits::default() };
    let bench = Bench::new();
    let mut bomb = Vec::new();
    Entry { stated_size: Some(*b"10000000000\0"), ..Entry::file("bomb", b"") }.append(&mut bomb);
    for (driver, behind_the_end) in [(DRIVERS[0], false), (DRIVERS[0], true), (DRIVERS[1], false), (DRIVERS[1], true)] {
        let snapshotter = bench.driver_within(driver, limits);
        let mut writer = snapshotter.begin_layer(None).expect("begun");
        if !behind_the_end {
            writer.write(&bomb).expect("a header");
        }
        let (zeros, mut written) = (vec![0; 64 << 10], 0);
        let error = loop {
            match writer.write(&zeros) {
                Ok(()) => written += zeros.len(),
                Err(error) => break error,
            }
        };
        assert!(written <= 3 << 20, "{driver:?}: {written} bytes taken");
        assert!(matches!(error, SnapshotError::LimitExceeded(_)), "{driver:?}: {error:?}");
        assert!(error.to_string().contains("more than 3145728 bytes, the bound set by --max-layer-bytes"), "{error}");
        drop(writer);
        bench.assert_nothing_left(driver);
    }
}

#[test]
fn a_sparse_file_whose_index_would_be_too_long() {
    let mut sparse = Entry::file("holes", &[1; 512]);
    sparse.sparse = Some((Sparse::Pax10, 1 << 40, vec![(512, 512)]));
    refused(&tarball::of(&[sparse.clone()]), Limits::default(), "the index would be too long");
    for pieces in [vec![(0, 513)], vec![(512, 256), (512, 256)], vec![(u64::MAX - 511, 512)]] {
        sparse.sparse = Some((Sparse::Pax00, 4096, pieces));
        refused(&tarball::of(&[sparse.clone()]), Limits::default(), "sparse map of holes");
    }
}

#[test]
fn a_sparse_file_whose_pieces_do_not_lie_on_blocks() {
    let mut sparse = Entry::file("holes", &[1; 512]);
    for pieces in [vec![(100, 512)], vec![(0, 100), (512, 412)]] {
        sparse.sparse = Some((Sparse::Pax00, 4096, pieces));
        refused(&tarball::of(&[sparse.clone()]), Limits::default(), "does not lie on blocks");
    }
}

#[test]
fn a_sparse_file_of_more_pieces_than_allowed() {
    let pieces: Vec<(u64, u64)> = (0..6).map(|index| (index * 1024, 512)).collect();
    let allowed = Limits { sparse_extents: 6, ..Limits::default() };
    for (how, dialect, named) in [
        (Sparse::Gnu, Dialect::Gnu, "sparse map of holes"),
        (Sparse::Pax00, Dialect::Pax, "record \"GNU.sparse.numbytes\""),
        (Sparse::Pax01, Dialect::Pax, "record \"GNU.sparse.map\""),
        (Sparse::Pax10, Dialect::Pax, "sparse map of holes"),
    ] {
        let sparse = Some((how, 6144, pieces.clone()));
        let tar = tarball::of(&[Entry { dialect, sparse, ..Entry::file("holes", &[1; 6 * 512]) }]);
        refused(&tar, Limits { sparse_extents: 5, ..allowed }, named);
        Bench::new().ingest_within(Driver::Erofs, &tar, allowed).expect("as many as allowed");
    }
}

#[test]
fn a_layer_that_was_refused_may_come_again_and_be_right() {
    let bench = Bench::new();
    let right = tarball::of(&[Entry::file("a", b"x")]);
    for driver in DRIVERS {
        bench.ingest_as(driver, &right[..700], &Digest::of(&right)).expect_err("cut short");
        bench.ingest_as(driver, &right, &Digest::of(&right)).expect("whole");
    }
}
