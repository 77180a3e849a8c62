//! EROFS images that hold metadata only: the files' bytes stay where they are, on further devices.
//!
//! This part knows file trees and bytes. It knows nothing of images, registries, pods or the store, and it makes no system
//! call: [`write_image`] writes to any writer, [`read_image`] reads from memory.

mod chunks;
mod dirents;
mod format;
mod layout;
mod marks;
mod reader;
#[cfg(test)]
mod tests;
pub mod tree;
mod writer;
mod xattrs;

pub use reader::{ReadError, read_image};
pub use writer::{Device, WriteError, write_image};

/// Whether EROFS can hold an extended attribute of this name.
pub fn can_hold_xattr(name: &[u8]) -> bool {
    xattrs::split_name(name).is_some_and(|(_, rest)| rest.len() <= usize::from(u8::MAX))
}

/// How many chunks the index of a regular file has, 8 bytes each.
pub fn chunk_count(file: &tree::Regular) -> u64 {
    chunks::count(file.size, chunks::bits(file))
}
