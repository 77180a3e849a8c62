//! `layer.sums`: digests of what a layer was unpacked to, taken while its tar was read and verified.
//!
//! ```text
//! index <hex>       sha256 of layer.erofs, which has all names and metadata
//! <block> <hex>     sha256 of the data of the file whose data begin at this block of the tar
//! ```
//!
//! Files are told apart by where their data began, as in the index: a file has one such place however many names, and no
//! two files share it. Of a sparse file the data are what the tar had of it, without the holes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use crate::digest::Digest;
use crate::store::durable;

/// The digests of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sums {
    /// Of `layer.erofs`.
    pub(super) index: Digest,
    /// Of files' data, by the first block of them.
    pub(super) data: HashMap<u64, Digest>,
}

/// Writes the file; says how long it is.
pub(super) fn write(path: &Path, index: &Digest, data: &[(u64, Digest)]) -> io::Result<u64> {
    let mut text = format!("index {}\n", index.hex());
    for (block, digest) in data {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{block} {}", digest.hex());
    }
    let mut file = durable::create_file(path)?;
    file.write_all(text.as_bytes())?;
    durable::sync_file(&file)?;
    Ok(text.len() as u64)
}

/// Reads the file; none when there is none, as in layers of earlier versions. What is not as it was written is
/// [`io::ErrorKind::InvalidData`].
pub(super) fn read(path: &Path) -> io::Result<Option<Sums>> {
    match fs::read(path) {
        Ok(bytes) => parse(&bytes).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(bytes: &[u8]) -> Option<Sums> {
    let mut lines = std::str::from_utf8(bytes).ok()?.lines();
    let index = Digest::from_hex(lines.next()?.strip_prefix("index ")?)?;
    let mut data = HashMap::new();
    for line in lines {
        let (block, hex) = line.split_once(' ')?;
        data.insert(block.parse().ok()?, Digest::from_hex(hex)?);
    }
    Some(Sums { index, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join("layer.sums");
        assert_eq!(read(&path).expect("not there"), None);
        let data = [(1, Digest::of(b"a")), (u64::MAX, Digest::of(b"b"))];
        let length = write(&path, &Digest::of(b"index"), &data).expect("written");
        assert_eq!(fs::metadata(&path).expect("there").len(), length);
        let sums = Sums { index: Digest::of(b"index"), data: data.into() };
        assert_eq!(read(&path).expect("readable"), Some(sums));
        for rubbish in [&b""[..], b"index", b"index abc\n", b"\xff\n", b"1 2\n"] {
            fs::write(&path, rubbish).expect("write");
            let error = read(&path).expect_err("rubbish");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{rubbish:?}");
        }
    }
}
