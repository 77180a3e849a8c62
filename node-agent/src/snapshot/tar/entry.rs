//! What a tar says of one file.
//!
//! Pure: no I/O, no clock, no randomness.

use super::sparse::Piece;
use crate::erofs::tree::{DeviceNumber, Timestamp, Xattr};

/// One entry, all headers that concern it taken together. Paths are as the tar has them, unchecked but for their length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The name.
    pub(crate) path: Vec<u8>,
    /// Twelve permission bits.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Time of the last change.
    pub(crate) mtime: Timestamp,
    /// Extended attributes, sorted by name, each name once.
    pub(crate) xattrs: Vec<Xattr>,
    /// The kind.
    pub(crate) kind: EntryKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file.
    Regular(RegularData),
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A further name for the file at this path.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

/// A regular file's data in the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RegularData {
    /// Bytes of the file, holes included.
    pub(crate) size: u64,
    /// Where the data begin in the tar, in blocks of 512 bytes.
    pub(crate) block: u64,
    /// For a sparse file, which pieces of it the data are.
    pub(crate) pieces: Option<Vec<Piece>>,
}
