//! Whether files hold the data that they were unpacked with. Read from the disk, not from memory that an earlier read has
//! left.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use sha2::{Digest as _, Sha256};

use super::sums::Sums;
use crate::digest::Digest;
use crate::erofs::tree::{Data, Regular};

/// How much is read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// The first block of a file's data in its layer's tar, and the layer. A file without data has none.
pub(super) fn first_block(file: &Regular) -> Option<(u16, u64)> {
    match &file.data {
        Data::Contiguous { device, block } => Some((*device, *block)),
        Data::Sparse(extents) => extents.first().map(|extent| (extent.device, extent.block)),
    }
}

/// Compares a file with its digest, telling how much it reads. What is no data has no blocks on the disk, which could rot.
pub(super) fn has_digest(file: &Regular, path: &Path, sums: &Sums, read: &mut dyn FnMut(u64)) -> io::Result<bool> {
    let Some((_, block)) = first_block(file) else { return Ok(true) };
    let from = File::open(path)?;
    let _ = fadvise(&from, 0, None, Advice::DontNeed);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; PIECE_BYTES.min(usize::try_from(file.size).unwrap_or(PIECE_BYTES))];
    for (offset, length) in pieces(file) {
        let mut at = 0;
        while at < length {
            let wanted = usize::try_from(length - at).unwrap_or(usize::MAX).min(buffer.len());
            let got = from.read_at(&mut buffer[..wanted], offset + at)?;
            if got == 0 {
                return Ok(false);
            }
            hash.update(&buffer[..got]);
            at += got as u64;
            read(got as u64);
        }
    }
    let _ = fadvise(&from, 0, None, Advice::DontNeed);
    Ok(sums.data.get(&block) == Some(&Digest::from_bytes(hash.finalize().into())))
}

/// Offsets and lengths.
fn pieces(file: &Regular) -> Vec<(u64, u64)> {
    match &file.data {
        Data::Contiguous { .. } => vec![(0, file.size)],
        Data::Sparse(extents) => extents.iter().map(|extent| (extent.offset, extent.length)).collect(),
    }
}
