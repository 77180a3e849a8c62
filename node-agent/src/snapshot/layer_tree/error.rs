//! What can be wrong with the entries of a layer.

use crate::snapshot::tar::TarError;

/// Why a layer's entries make no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LayerError {
    /// The tar itself is malformed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// More entries than allowed.
    #[error("read layer: more than {limit} entries, the bound set by --max-layer-entries")]
    TooManyEntries {
        /// How many are allowed.
        limit: usize,
    },
    /// More bytes than allowed.
    #[error("read layer: more than {limit} bytes, the bound set by --max-layer-bytes")]
    TooLong {
        /// How many are allowed.
        limit: u64,
    },
    /// More bytes than an index can number.
    #[error("read layer: more than {limit} bytes, beyond what the blocks of its index can number")]
    BeyondIndex {
        /// How many can be.
        limit: u64,
    },
    /// Names, attributes and pieces of sparse files that take more memory than allowed.
    #[error(
        "read layer: its names and attributes take more than {limit} bytes of memory, the bound set by \
         --max-layer-metadata-bytes"
    )]
    TooMuchMetadata {
        /// How many are allowed.
        limit: u64,
    },
    /// A path that no unpacker should accept.
    #[error("read layer: entry {path}: {what}")]
    Path {
        /// The entry.
        path: String,
        /// What is wrong with its path.
        what: &'static str,
    },
    /// A component of the path is a file.
    #[error("read layer: entry {path}: {component} is not a directory")]
    NotADirectory {
        /// The entry.
        path: String,
        /// The component.
        component: String,
    },
    /// A path that leads through too many symbolic links.
    #[error("read layer: entry {path}: too many symbolic links")]
    SymlinkLoop {
        /// The entry.
        path: String,
    },
    /// A hard link to what cannot have one, or is hidden.
    #[error("read layer: hard link {path}: {target} {what}")]
    HardLink {
        /// The entry.
        path: String,
        /// The target.
        target: String,
        /// Why not.
        what: &'static str,
    },
    /// A sparse file whose pieces do not lie on block borders, or are too many for an index.
    #[error("read layer: sparse file {path}: {what}")]
    Sparse {
        /// The entry.
        path: String,
        /// What is the matter.
        what: &'static str,
    },
}
