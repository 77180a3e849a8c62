//! Directory blocks: sorted entries that the kernel searches by bisection, first the blocks, then within one.
//!
//! Each block holds 12 bytes an entry, then their names. The last name of a block ends at a zero byte or at its end.
//!
//! Pure: no I/O, no clock, no randomness.

use super::format::{BLOCK, BLOCK_LEN, DIRENT_BYTES, DIRENT_LEN};
use super::tree::Directory;

/// One entry as it will be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dirent<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) number: u64,
    pub(crate) file_type: u8,
}

/// A directory's names in order, `.` and `..` among them.
pub(crate) fn names(directory: &Directory) -> Vec<&[u8]> {
    with_dots(directory.entries.keys().map(AsRef::as_ref).collect(), |name| *name, [b".", b".."])
}

/// Puts `.` and `..` among entries in order of name: names such as `!` and `.-` sort before them.
pub(crate) fn with_dots<T>(mut entries: Vec<T>, name: impl Fn(&T) -> &[u8], dots: [T; 2]) -> Vec<T> {
    entries.reserve(dots.len());
    for dots in dots {
        let at = entries.partition_point(|entry| name(entry) < name(&dots));
        entries.insert(at, dots);
    }
    entries
}

/// How many bytes a directory with these names takes. `names` are sorted and include `.` and `..`.
pub(crate) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut whole = 0;
    let mut used = 0;
    for name in names {
        let entry = DIRENT_BYTES + name.len() as u64;
        if used + entry > BLOCK {
            whole += BLOCK;
            used = 0;
        }
        used += entry;
    }
    whole + used
}

/// The bytes of a directory with these entries: as many as [`size`] says.
pub(crate) fn encode(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let count = fitting(rest);
        let (block, after) = rest.split_at(count);
        encode_block(block, &mut bytes);
        if !after.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN), 0);
        }
        rest = after;
    }
    bytes
}

/// How many of the entries fit into one block; at least one, as a name has at most 255 bytes.
fn fitting(entries: &[Dirent<'_>]) -> usize {
    let mut used = 0;
    for (count, entry) in entries.iter().enumerate() {
        used += DIRENT_BYTES + entry.name.len() as u64;
        if used > BLOCK {
            return count.max(1);
        }
    }
    entries.len()
}

fn encode_block(entries: &[Dirent<'_>], bytes: &mut Vec<u8>) {
    let mut name_at = entries.len() * DIRENT_LEN;
    for entry in entries {
        bytes.extend_from_slice(&entry.number.to_le_bytes());
        // A block has 512 bytes, so every offset in it fits.
        bytes.extend_from_slice(&u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes());
        bytes.push(entry.file_type);
        bytes.push(0);
        name_at += entry.name.len();
    }
    for entry in entries {
        bytes.extend_from_slice(entry.name);
    }
}

/// Reads the entries of one block: name, inode number. `None` where the block is not one.
pub(crate) fn decode_block(block: &[u8]) -> Option<Vec<(&[u8], u64)>> {
    let first = usize::from(name_offset(block, 0)?);
    let dirent = DIRENT_LEN;
    if first < dirent || first % dirent != 0 {
        return None;
    }
    let count = first / dirent;
    let mut entries = Vec::with_capacity(count.min(BLOCK_LEN / dirent));
    for index in 0..count {
        let start = usize::from(name_offset(block, index)?);
        let end = if index + 1 < count { usize::from(name_offset(block, index + 1)?) } else { block.len() };
        let name = block.get(start..end)?;
        let name = name.split(|byte| *byte == 0).next()?;
        let number = block.get(index * dirent..index * dirent + 8)?;
        entries.push((name, u64::from_le_bytes(number.try_into().ok()?)));
    }
    Some(entries)
}

fn name_offset(block: &[u8], index: usize) -> Option<u16> {
    let at = index * DIRENT_LEN + 8;
    Some(u16::from_le_bytes(block.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(names in prop::collection::btree_set("[a-z.]{1,255}", 1..80)) {
            let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
            let entries: Vec<Dirent<'_>> =
                names.iter().enumerate().map(|(i, name)| Dirent { name, number: i as u64, file_type: 1 }).collect();
            let bytes = encode(&entries);
            prop_assert_eq!(bytes.len() as u64, size(names.iter().copied()));
            let mut seen = Vec::new();
            for block in bytes.chunks(BLOCK_LEN) {
                seen.extend(decode_block(block).expect("a block of ours"));
            }
            let expected: Vec<(&[u8], u64)> = names.iter().enumerate().map(|(i, n)| (*n, i as u64)).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode_block(&bytes);
        }
    }
}
