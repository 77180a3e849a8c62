//! PAX extended headers: records of the form `length key=value\n` that override fields of the header that follows.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;

use super::number;
use super::sparse::{Piece, SparseMap};
use crate::erofs::tree::Timestamp;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What extended headers say of the next entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<Timestamp>,
    /// By name.
    pub(crate) xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pub(crate) sparse: SparseKeys,
}

/// The `GNU.sparse.` records: three generations of one idea.
#[derive(Debug, Clone, Default)]
pub(crate) struct SparseKeys {
    version: (Option<u64>, Option<u64>),
    name: Option<Vec<u8>>,
    size: Option<u64>,
    pieces: Option<Vec<Piece>>,
    /// A piece's offset whose length has not come yet (version 0.0 states them one by one).
    open: Option<u64>,
}

/// What the records say of a sparse entry.
#[derive(Debug)]
pub(crate) enum SparseKind {
    /// The pieces are in the records.
    Known(SparseMap),
    /// The pieces are at the start of the data (version 1.0); this is the size with holes.
    InData(u64),
}

/// The beginning of a record that makes no sense, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MalformedRecord(pub(crate) String);

impl MalformedRecord {
    fn starting(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned())
    }
}

/// The first record's key and value, and what follows it.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(number::decimal(&bytes[..space])?).ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

impl Overrides {
    /// Reads the records of one extended header into these overrides. More than `extents_max` sparse pieces are malformed.
    pub(crate) fn read(&mut self, mut bytes: &[u8], extents_max: usize) -> Result<(), MalformedRecord> {
        while !bytes.is_empty() {
            let (key, value, rest) = split_record(bytes).ok_or_else(|| MalformedRecord::starting(bytes))?;
            self.record(key, value, extents_max).ok_or_else(|| MalformedRecord::starting(key))?;
            bytes = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8], extents_max: usize) -> Option<()> {
        if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
            // An empty value is a value here: images really contain attributes of no bytes.
            self.xattrs.insert(name.into(), value.into());
            return Some(());
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.record(key, value, extents_max);
        }
        // Anywhere else POSIX says that an empty value takes an override back.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.link = given.then(|| value.to_vec()),
            b"size" => self.size = if given { Some(number::decimal(value)?) } else { None },
            b"uid" => self.uid = if given { Some(number::decimal(value)?) } else { None },
            b"gid" => self.gid = if given { Some(number::decimal(value)?) } else { None },
            b"mtime" => self.mtime = if given { Some(number::time(value)?) } else { None },
            _ => {}
        }
        Some(())
    }

    /// What of a global header goes on to hold for the entries that follow; names and sizes make no sense there.
    pub(crate) fn inherited(&self) -> Self {
        Self { uid: self.uid, gid: self.gid, mtime: self.mtime, xattrs: self.xattrs.clone(), ..Self::default() }
    }
}

impl SparseKeys {
    fn record(&mut self, key: &[u8], value: &[u8], extents_max: usize) -> Option<()> {
        match key {
            b"major" => self.version.0 = Some(number::decimal(value)?),
            b"minor" => self.version.1 = Some(number::decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number::decimal(value)?),
            b"offset" => {
                self.open = Some(number::decimal(value)?);
                self.pieces.get_or_insert_default();
            }
            b"numbytes" => {
                let piece = Piece { offset: self.open.take()?, length: number::decimal(value)? };
                self.push(piece, extents_max)?;
            }
            b"map" => {
                self.pieces = Some(Vec::new());
                let numbers: Vec<&[u8]> = value.split(|byte| *byte == b',').collect();
                for pair in numbers.chunks(2) {
                    let [offset, length] = pair else { return None };
                    let piece = Piece { offset: number::decimal(offset)?, length: number::decimal(length)? };
                    self.push(piece, extents_max)?;
                }
            }
            _ => {}
        }
        Some(())
    }

    fn push(&mut self, piece: Piece, extents_max: usize) -> Option<()> {
        let pieces = self.pieces.get_or_insert_default();
        pieces.push(piece);
        (pieces.len() <= extents_max).then_some(())
    }

    /// The name that the records give instead of the header's, which then is a stand-in.
    pub(crate) fn name(&self) -> Option<&Vec<u8>> {
        self.name.as_ref()
    }

    /// Whether and how the entry is sparse; `Err` for a version that is not known.
    pub(crate) fn kind(&self) -> Result<Option<SparseKind>, ()> {
        match (self.version, &self.pieces, self.size) {
            ((Some(1), Some(0)), None, Some(size)) => Ok(Some(SparseKind::InData(size))),
            ((None, None) | (Some(0), Some(_)), Some(pieces), Some(size)) => {
                Ok(Some(SparseKind::Known(SparseMap { size, pieces: pieces.clone() })))
            }
            ((None, None), None, _) => Ok(None),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: &str, value: &str) -> Vec<u8> {
        let body = format!(" {key}={value}\n");
        let mut length = body.len() + 1;
        while length != body.len() + length.to_string().len() {
            length = body.len() + length.to_string().len();
        }
        format!("{length}{body}").into_bytes()
    }

    #[test]
    fn records_override() {
        let mut overrides = Overrides::default();
        let bytes = [
            record("path", "a=b/c"),
            record("size", "12"),
            record("mtime", "1.25"),
            record("SCHILY.xattr.user.overlay.origin", ""),
            record("SCHILY.xattr.user.x", "line\nbreak"),
            record("comment", "anything"),
        ]
        .concat();
        overrides.read(&bytes, 9).expect("records");
        assert_eq!(overrides.path.as_deref(), Some(&b"a=b/c"[..]));
        assert_eq!(overrides.size, Some(12));
        assert_eq!(overrides.mtime, Some(Timestamp { seconds: 1, nanoseconds: 250_000_000 }));
        assert_eq!(overrides.xattrs.len(), 2);
        assert_eq!(overrides.xattrs.get(&b"user.overlay.origin"[..]).map(|value| value.len()), Some(0));
        overrides.read(&record("path", ""), 9).expect("records");
        assert_eq!(overrides.path, None);
    }

    #[test]
    fn a_record_that_makes_no_sense_is_named() {
        for (bytes, shown) in [
            (record("size", "-1"), "size"),
            (record("uid", "4294967296x"), "uid"),
            (record("mtime", "soon"), "mtime"),
            (b"99 path=cut\n".to_vec(), "99 path=cut\n"),
            (b"8 path=a".to_vec(), "8 path=a"),
            (b"no length".to_vec(), "no length"),
        ] {
            assert_eq!(Overrides::default().read(&bytes, 9), Err(MalformedRecord(shown.to_owned())));
        }
    }

    #[test]
    fn sparse_generations() {
        let expected = vec![Piece { offset: 0, length: 512 }, Piece { offset: 4096, length: 10 }];
        let zero_zero = [
            ("size", "5000"),
            ("numblocks", "2"),
            ("offset", "0"),
            ("numbytes", "512"),
            ("offset", "4096"),
            ("numbytes", "10"),
        ];
        let zero_one = [("size", "5000"), ("numblocks", "2"), ("map", "0,512,4096,10"), ("name", "real")];
        for keys in [&zero_zero[..], &zero_one[..]] {
            let mut overrides = Overrides::default();
            for (key, value) in keys {
                overrides.read(&record(&format!("GNU.sparse.{key}"), value), 9).expect("records");
            }
            match overrides.sparse.kind() {
                Ok(Some(SparseKind::Known(map))) => assert_eq!((map.size, map.pieces), (5000, expected.clone())),
                other => panic!("{other:?}"),
            }
        }
        let mut overrides = Overrides::default();
        for (key, value) in [("major", "1"), ("minor", "0"), ("realsize", "5000"), ("name", "real")] {
            overrides.read(&record(&format!("GNU.sparse.{key}"), value), 9).expect("records");
        }
        assert!(matches!(overrides.sparse.kind(), Ok(Some(SparseKind::InData(5000)))));
        overrides.read(&record("GNU.sparse.major", "2"), 9).expect("records");
        assert!(overrides.sparse.kind().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Overrides::default().read(&bytes, 4);
        }

        #[test]
        fn any_text_is_read_without_panic(text in "([0-9]{1,3} [a-zA-Z.]{1,20}=[0-9,]{0,10}\n){0,5}") {
            let _ = Overrides::default().read(text.as_bytes(), 4);
        }
    }
}
