//! How much a layer may ask of us before it is refused.
//!
//! A layer comes from a registry, and whoever made it may mean harm: every count and length that costs memory has a bound.
//!
//! Pure: no I/O, no clock, no randomness.

/// Bounds on one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries in the tar.
    pub entries: usize,
    /// Bytes of memory that the layer's index takes while it is built, estimated: a million entries take about 330 MB.
    pub metadata_bytes: u64,
    /// Bytes in one path, and in the target of a link.
    pub path_bytes: usize,
    /// Bytes in one extension header (PAX, or GNU long name).
    pub extension_bytes: u64,
    /// Bytes in the names and values of one file's extended attributes. Linux allows 64 KiB for a value.
    pub xattr_bytes: usize,
    /// Extents of one sparse file.
    pub sparse_extents: usize,
    /// Chunks in the index of one sparse file, 8 bytes each: a small chunk in a huge file would need billions.
    pub sparse_chunks: u64,
    /// Bytes of the plain tar.
    pub layer_bytes: u64,
}

/// As many times what one layer's index may take may those of an image take together.
const LAYERS_PER_IMAGE: u64 = 4;

impl Limits {
    /// Bytes of memory that the indexes of all layers of an image take while they are merged, estimated.
    pub fn image_metadata_bytes(&self) -> u64 {
        self.metadata_bytes.saturating_mul(LAYERS_PER_IMAGE)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            metadata_bytes: 512 << 20,
            path_bytes: 4096,
            extension_bytes: 1 << 20,
            xattr_bytes: 64 << 10,
            sparse_extents: 1 << 16,
            sparse_chunks: 1 << 20,
            layer_bytes: 256 << 30,
        }
    }
}
