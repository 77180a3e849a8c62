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
