//! The EROFS on-disk format, as far as a metadata-only image needs it.
//!
//! Source of the figures: the format definition `fs/erofs/erofs_fs.h` of the Linux kernel (offered under Apache-2.0 among
//! others). All fields are little-endian. An image of ours looks like this:
//!
//! ```text
//! 0      nothing (room for a boot sector)
//! 1024   superblock, 128 bytes
//! 1152   one slot of 128 bytes a device: its tag and length
//! ...    inodes in 32-byte slots: inode, extended attributes, then chunk indexes or the tail of a directory or link
//! ...    extended attributes that several inodes have
//! ...    whole blocks of directories and long link targets
//! ```
//!
//! Pure: no I/O, no clock, no randomness.

/// Where the superblock begins.
pub(crate) const SUPERBLOCK_AT: u64 = 1024;
/// Its length.
pub(crate) const SUPERBLOCK_BYTES: u64 = 128;
/// First field of the superblock.
pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;
/// log2 of our block size: 512 bytes, so that every file in a tar begins at a block.
pub(crate) const BLOCK_BITS: u8 = 9;
/// Block size as bytes.
pub(crate) const BLOCK: u64 = 1 << BLOCK_BITS;

/// The same for slices.
pub(crate) const BLOCK_LEN: usize = 512;

/// A crc32c of the superblock's block is in its checksum field.
pub(crate) const COMPAT_CHECKSUM: u32 = 0x1;
/// Inodes carry the time of the last change.
pub(crate) const COMPAT_MTIME: u32 = 0x2;
/// There are chunk-based files.
pub(crate) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
/// There are further devices.
pub(crate) const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

/// The superblock's length for slices.
pub(crate) const SUPERBLOCK_LEN: usize = 128;
/// A device slot's length for slices.
pub(crate) const DEVICE_SLOT_LEN: usize = 128;
/// Where the first device slot is, in units of slots: right behind the superblock.
pub(crate) const FIRST_DEVICE_SLOT: u16 = 9;

/// One device slot; also the unit in which the superblock tells where the first one is.
pub(crate) const DEVICE_SLOT_BYTES: u64 = 128;
/// The tag at the start of a device slot.
pub(crate) const DEVICE_TAG_BYTES: usize = 64;
/// The most devices that the 16-bit device id can name, zero being the image itself.
pub(crate) const DEVICES_MAX: usize = 65_535;

/// An inode's number is its place in units of this many bytes.
pub(crate) const SLOT_BYTES: u64 = 32;
/// The same, for slices.
pub(crate) const SLOT_LEN: usize = 32;
/// An extended inode, for slices.
pub(crate) const INODE_LEN: usize = 64;
/// An extended inode.
pub(crate) const INODE_BYTES: u64 = 64;
/// Bit 0 of an inode's format: 64 bytes rather than 32.
pub(crate) const FORMAT_EXTENDED: u16 = 1;
/// Data in whole blocks.
pub(crate) const LAYOUT_PLAIN: u16 = 0;
/// Data in whole blocks but for the last part, which follows the inode.
pub(crate) const LAYOUT_INLINE: u16 = 2;
/// Data in chunks, which may lie on other devices.
pub(crate) const LAYOUT_CHUNKS: u16 = 4;

/// In a chunk format: 8-byte indexes follow, which name a device.
pub(crate) const CHUNK_INDEXES: u16 = 0x20;
/// In a chunk format: the mask of log2(chunk size / block size).
pub(crate) const CHUNK_BITS_MASK: u16 = 0x1f;
/// One chunk index, for slices.
pub(crate) const CHUNK_INDEX_LEN: usize = 8;
/// One chunk index.
pub(crate) const CHUNK_INDEX_BYTES: u64 = 8;
/// The block number that stands for a hole; also the first block that 32 bits cannot name.
pub(crate) const HOLE: u32 = u32::MAX;

/// One directory entry, without its name, for slices.
pub(crate) const DIRENT_LEN: usize = 12;
/// One directory entry, without its name.
pub(crate) const DIRENT_BYTES: u64 = 12;

/// What precedes the extended attributes of an inode, for slices.
pub(crate) const XATTR_HEADER_LEN: usize = 12;
/// What precedes the extended attributes of an inode.
pub(crate) const XATTR_HEADER_BYTES: u64 = 12;
/// What precedes one name and value, for slices.
pub(crate) const XATTR_ENTRY_LEN: usize = 4;
/// What precedes one name and value.
pub(crate) const XATTR_ENTRY_BYTES: u64 = 4;

/// Attributes are padded to this, and the places of shared ones are counted in it.
pub(crate) const XATTR_UNIT_BYTES: u64 = 4;
/// The same for slices; also one place of a shared attribute.
pub(crate) const XATTR_UNIT_LEN: usize = 4;
/// As many attributes can an inode share: the header counts them in one byte.
pub(crate) const SHARED_XATTRS_MAX: usize = 255;

/// File types of directory entries.
pub(crate) mod file_type {
    /// Regular file.
    pub(crate) const REGULAR: u8 = 1;
    /// Directory.
    pub(crate) const DIRECTORY: u8 = 2;
    /// Character device.
    pub(crate) const CHAR: u8 = 3;
    /// Block device.
    pub(crate) const BLOCK: u8 = 4;
    /// Named pipe.
    pub(crate) const FIFO: u8 = 5;
    /// Socket.
    pub(crate) const SOCKET: u8 = 6;
    /// Symbolic link.
    pub(crate) const SYMLINK: u8 = 7;
}

/// File type bits of an inode's mode, as in `stat(2)`.
pub(crate) mod mode {
    /// The mask of the type.
    pub(crate) const TYPE: u16 = 0o170_000;
    /// Regular file.
    pub(crate) const REGULAR: u16 = 0o100_000;
    /// Directory.
    pub(crate) const DIRECTORY: u16 = 0o040_000;
    /// Character device.
    pub(crate) const CHAR: u16 = 0o020_000;
    /// Block device.
    pub(crate) const BLOCK: u16 = 0o060_000;
    /// Named pipe.
    pub(crate) const FIFO: u16 = 0o010_000;
    /// Socket.
    pub(crate) const SOCKET: u16 = 0o140_000;
    /// Symbolic link.
    pub(crate) const SYMLINK: u16 = 0o120_000;
}

/// The namespaces of extended attributes that EROFS knows, each with the number that stands for it.
pub(crate) const XATTR_PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// What overlayfs reads on a directory that hides the entries below it.
pub(crate) const XATTR_OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Ours, in a layer: the layer only passes through this directory.
pub(crate) const XATTR_IMPLIED: &[u8] = b"trusted.larder.implied";
/// Ours, in a layer: this directory takes the place of the one below, whose owner and mode are gone too.
pub(crate) const XATTR_REPLACED: &[u8] = b"trusted.larder.replaced";
/// Ours, in a layer: this symbolic link stands for a hard link to a file below, by its path from the root.
pub(crate) const XATTR_LINK_BELOW: &[u8] = b"trusted.larder.link_below";

/// `value` rounded up to a multiple of `unit`, a power of two.
pub(crate) const fn round_up(value: u64, unit: u64) -> u64 {
    value.next_multiple_of(unit)
}

/// The checksum that belongs into a superblock's field: crc32c over the block that starts with the superblock, the field
/// itself being zero, without the final inversion that crc32c usually has.
pub(crate) fn superblock_checksum(block: &[u8]) -> u32 {
    !crc32c::crc32c(block)
}
