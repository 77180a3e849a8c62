//! The walker over whole tars, and over anything at all.

use proptest::prelude::*;

use super::{Entry, EntryKind, TarError, Visitor, Walker};
use crate::snapshot::Limits;

/// All that a walker says, data put together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    entries: Vec<Entry>,
    data: Vec<Vec<(u64, Vec<u8>)>>,
}

impl Visitor for Heard {
    type Error = TarError;

    fn entry(&mut self, entry: Entry) -> Result<(), TarError> {
        self.entries.push(entry);
        self.data.push(Vec::new());
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), TarError> {
        let pieces = self.data.last_mut().expect("an entry came first");
        match pieces.last_mut() {
            Some((start, piece)) if *start + piece.len() as u64 == offset => piece.extend_from_slice(bytes),
            _ => pieces.push((offset, bytes.to_vec())),
        }
        Ok(())
    }
}

fn hear<'a>(pieces: impl Iterator<Item = &'a [u8]>, limits: Limits) -> Result<Heard, TarError> {
    let (mut heard, mut walker) = (Heard::default(), Walker::new(limits));
    for piece in pieces {
        walker.feed(piece, &mut heard)?;
    }
    walker.finish()?;
    Ok(heard)
}

fn all(bytes: &[u8]) -> Result<Heard, TarError> {
    hear(std::iter::once(bytes), Limits::default())
}

fn header(name: &str, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("short");
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

/// A tar with one of each of the things that have a state of their own.
fn sample() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header("empty", tar::EntryType::Regular, 0), &[][..]).expect("in memory");
    tar.append(&header("odd", tar::EntryType::Regular, 700), &[5; 700][..]).expect("in memory");
    tar.append(&header("whole", tar::EntryType::Regular, 1024), &[6; 1024][..]).expect("in memory");
    let pax = b"28 mtime=1700000000.5000000\n32 SCHILY.xattr.user.x=abc defg\n";
    tar.append(&header("pax", tar::EntryType::XHeader, pax.len() as u64), &pax[..]).expect("in memory");
    tar.append(&header("with-pax", tar::EntryType::Directory, 0), &[][..]).expect("in memory");
    let mut long = "l/".repeat(300);
    long.push('\0');
    tar.append(&header("long", tar::EntryType::GNULongName, long.len() as u64), long.as_bytes()).expect("in memory");
    tar.append(&header("cut", tar::EntryType::Fifo, 0), &[][..]).expect("in memory");
    tar.into_inner().expect("in memory")
}

#[test]
fn the_sample_is_heard() {
    let heard = all(&sample()).expect("a tar");
    let paths: Vec<usize> = heard.entries.iter().map(|entry| entry.path.len()).collect();
    assert_eq!(paths, [5, 3, 5, 8, 600]);
    assert_eq!(heard.data[1], [(0, vec![5; 700])]);
    let EntryKind::Regular(data) = &heard.entries[2].kind else { panic!("a file") };
    assert_eq!((data.size, data.block), (1024, 5));
    assert_eq!(heard.entries[3].mtime.nanoseconds, 500_000_000);
    assert_eq!(*heard.entries[3].xattrs[0].value, *b"abc defg");
    assert_eq!(heard.entries[4].xattrs, [], "an extended header is for one entry");
}

#[test]
fn a_tar_without_its_end_marker_is_complete_and_one_cut_short_is_not() {
    let bytes = sample();
    let end = bytes.len() - 1024;
    assert!(all(&bytes[..end]).is_ok());
    for cut in [1, 511, 512 + 512 + 100, end - 1] {
        assert!(matches!(all(&bytes[..cut]), Err(TarError::Truncated { .. })), "cut at {cut}");
    }
}

#[test]
fn what_follows_the_end_is_ignored_but_a_lone_zero_block_is_not() {
    let mut bytes = sample();
    bytes.extend_from_slice(b"anything");
    assert_eq!(all(&bytes), all(&sample()));
    let hidden = [&[0; 512][..], &sample()].concat();
    assert_eq!(all(&hidden), Err(TarError::LoneZeroBlock { at: 0 }));
}

#[test]
fn limits_are_kept_by_name() {
    let limits = Limits { path_bytes: 100, extension_bytes: 700, ..Limits::default() };
    let too_long = hear(std::iter::once(&sample()[..]), limits).expect_err("a long path");
    assert!(matches!(too_long, TarError::TooLong { what: "path", .. }), "{too_long}");
    let link = with(header("link", tar::EntryType::Symlink, 0), 157, b"target");
    let limits = Limits { path_bytes: 5, ..Limits::default() };
    let too_long = hear(std::iter::once(&link.as_bytes()[..]), limits).expect_err("a long target");
    assert!(matches!(too_long, TarError::TooLong { what: "link target", .. }), "{too_long}");
    let limits = Limits { extension_bytes: 100, ..Limits::default() };
    let too_long = hear(std::iter::once(&sample()[..]), limits).expect_err("a long header");
    assert!(matches!(too_long, TarError::TooLong { what: "extended header", .. }), "{too_long}");
    let limits = Limits { xattr_bytes: 10, ..Limits::default() };
    let too_long = hear(std::iter::once(&sample()[..]), limits).expect_err("a long attribute");
    assert!(matches!(too_long, TarError::TooLong { what: "extended attributes", .. }), "{too_long}");
}

#[test]
fn kinds_that_images_do_not_have_are_named() {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header("label", tar::EntryType::new(b'V'), 0), &[][..]).expect("in memory");
    let error = all(&tar.into_inner().expect("in memory")).expect_err("refused");
    assert_eq!(error, TarError::Kind { at: 0, path: "label".into(), kind: 'V' });
}

#[test]
fn a_size_near_the_end_of_64_bits_is_refused() {
    let pax = b"28 size=9223372036854775808\n";
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header("pax", tar::EntryType::XHeader, pax.len() as u64), &pax[..]).expect("in memory");
    tar.append(&header("huge", tar::EntryType::Regular, 0), &[][..]).expect("in memory");
    let error = all(&tar.into_inner().expect("in memory")).expect_err("refused");
    assert!(matches!(error, TarError::Field { field: "size", .. }), "{error}");
}

/// A header with other bytes at a place, and the checksum that this takes.
fn with(mut header: tar::Header, at: usize, bytes: &[u8]) -> tar::Header {
    header.as_mut_bytes()[at..at + bytes.len()].copy_from_slice(bytes);
    header.set_cksum();
    header
}

/// An extended header of these records.
fn extended(kind: tar::EntryType, records: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        // Two digits for the length, a space, `=`, and the end of the line.
        bytes.extend(format!("{} {key}={value}\n", key.len() + value.len() + 5).bytes());
    }
    let size = bytes.len() as u64;
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    [&header("pax", kind, size).as_bytes()[..], &bytes].concat()
}

fn only(bytes: &[u8]) -> Entry {
    let mut entries = all(bytes).expect("a tar").entries;
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

#[test]
fn a_checksum_may_be_that_of_signed_bytes_and_no_other() {
    let header = header("\u{e9}", tar::EntryType::Fifo, 0);
    let sum = header.cksum().expect("a number");
    let stating = |sum: u32| {
        let mut header = header.clone();
        header.as_mut_bytes()[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        all(header.as_bytes()).map(|heard| heard.entries.len())
    };
    assert_eq!([stating(sum), stating(sum - 2 * 256)], [Ok(1), Ok(1)]);
    assert_eq!(stating(sum - 256), Err(TarError::Checksum { at: 0 }));
}

#[test]
fn what_is_in_front_of_a_name_is_as_the_dialect_has_it() {
    let plain = || with(header("name", tar::EntryType::Fifo, 0), 345, &[b'p'; 131]);
    let path = |header: tar::Header| String::from_utf8(only(header.as_bytes()).path).expect("ASCII");
    let [star, ustar] = ["p".repeat(131), "p".repeat(131) + "00000000000"].map(|prefix| prefix + "/name");
    // Behind the prefix `star` has times.
    let with_times = || with(with(plain(), 257, b"ustar\x0000"), 476, b"00000000000");
    assert_eq!(path(with_times()), ustar);
    assert_eq!(path(with(with_times(), 508, b"tar\0")), star);
    assert_eq!(path(plain()), "name", "GNU has times there");
    assert_eq!(path(with(plain(), 257, &[0; 8])), "name", "nothing was there at first");
}

#[test]
fn device_numbers_that_linux_cannot_pack_are_refused() {
    let device = |major, minor| {
        let mut header = header("device", tar::EntryType::Char, 0);
        header.set_device_major(major).expect("gnu");
        header.set_device_minor(minor).expect("gnu");
        header.set_cksum();
        all(header.as_bytes()).map(|heard| heard.entries.len())
    };
    let refused = || Err(TarError::Field { at: 0, path: "device".into(), field: "device number" });
    assert_eq!(device(0xfff, 0xf_ffff), Ok(1));
    assert_eq!([device(0x1000, 0), device(0, 0x10_0000)], [refused(), refused()]);
}

#[test]
fn old_and_rare_types_are_files_and_directories() {
    let kind = |name, flag| only(with(header(name, tar::EntryType::Regular, 0), 156, &[flag]).as_bytes()).kind;
    assert!(matches!(kind("contiguous", b'7'), EntryKind::Regular(_)));
    assert!(matches!(kind("old", 0), EntryKind::Regular(_)));
    let slash = with(with(header("old", tar::EntryType::Regular, 0), 0, b"old/"), 156, &[0]);
    assert_eq!(only(slash.as_bytes()).kind, EntryKind::Directory);
}

#[test]
fn a_record_is_more_exact_than_a_long_name_wherever_it_comes() {
    let records = extended(tar::EntryType::XHeader, &[("path", "exact-path"), ("linkpath", "exact-link")]);
    let long = |kind| [&header("long", kind, 5).as_bytes()[..], b"long\0", &[0; 507]].concat();
    let long = [long(tar::EntryType::GNULongName), long(tar::EntryType::GNULongLink)].concat();
    let link = with(header("short", tar::EntryType::Symlink, 0), 157, b"short");
    for extensions in [[&records[..], &long[..]], [&long[..], &records[..]]] {
        let entry = only(&[&extensions.concat()[..], link.as_bytes()].concat());
        assert_eq!((&entry.path[..], entry.kind), (&b"exact-path"[..], EntryKind::Symlink(b"exact-link".to_vec())));
    }
    let entry = only(&[&long[..], link.as_bytes()].concat());
    assert_eq!((&entry.path[..], entry.kind), (&b"long"[..], EntryKind::Symlink(b"long".to_vec())));
}

#[test]
fn what_holds_for_all_gives_way_to_what_an_entry_says() {
    let global =
        [("uid", "1001"), ("path", "of-nobody"), ("SCHILY.xattr.user.a", "all"), ("SCHILY.xattr.user.b", "all")];
    let own = [("uid", "2002"), ("SCHILY.xattr.user.b", "own")];
    let fifo = |name| header(name, tar::EntryType::Fifo, 0).as_bytes().to_vec();
    let tar = [
        extended(tar::EntryType::XGlobalHeader, &global),
        extended(tar::EntryType::XHeader, &own),
        fifo("first"),
        fifo("second"),
    ];
    let seen = |entry: &Entry| {
        let values: Vec<_> = entry.xattrs.iter().map(|xattr| xattr.value.to_vec()).collect();
        (entry.path.clone(), entry.uid, values)
    };
    let heard = all(&tar.concat()).expect("a tar");
    let expected = [("first", 2002, ["all", "own"]), ("second", 1001, ["all", "all"])];
    let expected = expected.map(|(path, uid, values)| (path.into(), uid, values.map(Vec::from).to_vec()));
    assert_eq!(heard.entries.iter().map(seen).collect::<Vec<_>>(), expected);
}

/// The last block of a sparse file may be read to its end.
#[test]
fn what_fills_a_sparse_file_up_must_be_zeros() {
    let records = [("GNU.sparse.size", "9000"), ("GNU.sparse.map", "0,700")];
    let file = |filling: u8| {
        let records = extended(tar::EntryType::XHeader, &records);
        let file = header("holes", tar::EntryType::Regular, 700);
        all(&[&records, &file.as_bytes()[..], &[5; 700], &[filling; 324]].concat()).map(|heard| heard.entries.len())
    };
    assert_eq!(file(0), Ok(1));
    assert!(matches!(file(1), Err(TarError::Sparse { .. })));
}

#[test]
fn a_sparse_map_that_is_longer_than_the_data_is_refused() {
    let records = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "0")];
    let file = |size| {
        let records = extended(tar::EntryType::XHeader, &records);
        let file = header("holes", tar::EntryType::Regular, size);
        all(&[&records, &file.as_bytes()[..], b"0\n", &[0; 510]].concat()).map(|heard| heard.entries.len())
    };
    assert_eq!(file(512), Ok(1));
    assert!(matches!(file(511), Err(TarError::Sparse { .. })));
}

#[test]
fn the_last_file_may_be_without_what_fills_it_up() {
    let file = header("odd", tar::EntryType::Regular, 700);
    let bytes = [&file.as_bytes()[..], &[5; 700]].concat();
    assert_eq!(all(&bytes).map(|heard| heard.data), Ok(vec![vec![(0, vec![5; 700])]]));
    assert!(all(&bytes[..bytes.len() - 1]).is_err());
}

/// Only where data begin and how many there are.
#[derive(Debug, Default)]
struct Places(Vec<(u64, u64)>);

impl Visitor for Places {
    type Error = TarError;

    fn entry(&mut self, entry: Entry) -> Result<(), TarError> {
        if let EntryKind::Regular(data) = entry.kind {
            self.0.push((data.block, 0));
        }
        Ok(())
    }

    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<(), TarError> {
        self.0.last_mut().expect("an entry came first").1 += bytes.len() as u64;
        Ok(())
    }
}

#[test]
fn a_file_may_be_larger_than_the_octal_digits_of_a_header_can_say() {
    const LARGE: u64 = 9 << 30;
    let mut large = header("large", tar::EntryType::Regular, LARGE);
    large.set_cksum();
    assert_eq!(large.as_old().size[0], 0x80, "binary");
    let (mut places, mut walker) = (Places::default(), Walker::new(Limits::default()));
    walker.feed(large.as_bytes(), &mut places).expect("a header");
    let piece = vec![0; 8 << 20];
    for _ in 0..LARGE / piece.len() as u64 {
        walker.feed(&piece, &mut places).expect("data");
    }
    walker.feed(&sample(), &mut places).expect("more entries");
    walker.finish().expect("whole");
    assert_eq!(places.0[..3], [(1, LARGE), (LARGE / 512 + 2, 0), (LARGE / 512 + 3, 700)]);
}

proptest! {
    #[test]
    fn it_does_not_matter_where_the_stream_is_cut(cuts in prop::collection::vec(1usize..1500, 1..40)) {
        let bytes = sample();
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        prop_assert_eq!(hear(pieces.into_iter(), Limits::default()), all(&bytes));
    }

    #[test]
    fn damage_is_an_error_or_another_tar_but_no_panic(
        flips in prop::collection::vec((0usize..9000, any::<u8>()), 1..20),
        repair in any::<bool>(),
    ) {
        let mut bytes = sample();
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if repair {
            // With checksums that match the damage gets further.
            for block in bytes.chunks_exact_mut(512) {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let _ = all(&bytes);
    }
}
