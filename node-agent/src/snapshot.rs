//! Snapshots: what a container's root file system is made from.
//!
//! A layer is written once, from its stream of plain tar bytes, and is from then on read-only. An image's layers are
//! composed once and then mounted; all containers of the image share the mount. Neither knows registries or pods.

mod change;
mod check;
#[cfg(test)]
mod conformance;
mod directory;
mod erofs_driver;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod layer_index;
mod layer_stream;
mod layer_tree;
mod limits;
mod merge;
mod probe;
mod publication;
mod room;
mod route;
mod tar;
mod tar_file;

use std::io;
use std::path::{Path, PathBuf};

pub use change::{Running, open_over};
pub use check::{Condition, Mend};
pub use directory::DirectorySnapshotter;
pub use erofs_driver::ErofsSnapshotter;

pub use limits::Limits;
pub use probe::{DriverChoice, open};
pub use room::{Collected, collect, make_room, plan_prune, prune};

use crate::digest::Digest;
use crate::erofs;
use crate::sizes::Bytes;
use crate::store::{StoreError, durable};

/// How layers are kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The tar as it came, with a metadata-only EROFS index over it.
    Erofs,
    /// Unpacked directories.
    Directory,
}

impl Driver {
    /// What `--snapshotter` and a layer's `meta.json` call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => erofs_driver::NAME,
            Self::Directory => directory::NAME,
        }
    }
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A finished layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// sha256 of the plain tar.
    pub diff_id: Digest,
    /// Bytes of the plain tar.
    pub size_bytes: u64,
    /// Bytes that the layer takes on disk.
    pub disk_bytes: u64,
}

/// An image as its layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayers {
    /// Digest of the platform's manifest: the name of what is composed.
    pub manifest: Digest,
    /// Diff ids, lowest layer first.
    pub diff_ids: Vec<Digest>,
}

/// Read-only directories that a container's overlay is put upon, highest first (the order of `lowerdir`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedImage {
    /// The directories.
    pub lower_dirs: Vec<PathBuf>,
}

/// Keeps layers and mounts images. All calls block: callers are on a blocking thread.
pub trait Snapshotter: Send + Sync + std::fmt::Debug {
    /// Which driver this is.
    fn driver(&self) -> Driver;

    /// Bytes of the largest plain tar that it takes.
    fn largest_layer_bytes(&self) -> u64;

    /// Starts to write a layer. Nothing of it is visible until [`LayerWriter::finish`] has returned.
    ///
    /// # Errors
    /// When no file can be made.
    fn begin_layer(&self, size_hint: Option<u64>) -> Result<Box<dyn LayerWriter>, SnapshotError>;

    /// The layer with this diff id, if it is whole on disk.
    fn layer(&self, diff_id: &Digest) -> Option<Layer>;

    /// Makes what [`Snapshotter::mount`] needs from finished layers. Doing it again is free.
    ///
    /// # Errors
    /// When a layer is missing or unreadable, or the disk is full.
    fn compose(&self, image: &ImageLayers) -> Result<(), SnapshotError>;

    /// Mounts a composed image, or finds it mounted already.
    ///
    /// # Errors
    /// When it is not composed and cannot be, or the kernel refuses.
    fn mount(&self, image: &ImageLayers) -> Result<MountedImage, SnapshotError>;

    /// Takes the image's mount away. An image that is not mounted is not an error.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn unmount(&self, manifest: &Digest) -> Result<(), SnapshotError>;

    /// Images that are mounted, by this process or an earlier life of it.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn mounted(&self) -> Result<Vec<Digest>, SnapshotError>;

    /// Takes back what [`Snapshotter::compose`] and [`Snapshotter::mount`] made of an image; its layers stay. An image that
    /// is not there is not an error.
    ///
    /// # Errors
    /// When a file cannot be removed, or the kernel refuses to unmount.
    fn remove_image(&self, manifest: &Digest) -> Result<(), SnapshotError>;

    /// Takes a layer that nothing pins out of sight, which is quick, and gives the path that is left to remove, which may
    /// not be: an unpacked layer has tens of thousands of files. A layer that is not there is not an error.
    ///
    /// # Errors
    /// When it cannot be renamed.
    fn hide_layer(&self, diff_id: &Digest) -> Result<Option<PathBuf>, SnapshotError>;

    /// Reads a whole layer again and compares it with what it was made from, telling `read` how many more bytes it has read.
    ///
    /// # Errors
    /// When the disk does not give it back, or what was to be mended cannot be written.
    fn check_layer(&self, diff_id: &Digest, mend: Mend, read: &mut dyn FnMut(u64)) -> Result<Condition, SnapshotError>;

    /// Compares what [`Snapshotter::compose`] has made with the layers.
    ///
    /// # Errors
    /// When a layer is missing or unreadable, or what was to be mended cannot be written.
    fn check_image(&self, image: &ImageLayers, mend: Mend) -> Result<Condition, SnapshotError>;

    /// Removes a layer that nothing pins. A layer that is not there is not an error.
    ///
    /// # Errors
    /// When a file cannot be removed; what is left is no layer, and goes at the next start.
    fn remove_layer(&self, diff_id: &Digest) -> Result<(), SnapshotError> {
        let Some(path) = self.hide_layer(diff_id)? else { return Ok(()) };
        durable::remove(&path).map_err(|error| SnapshotError::io("remove", &path, 0, error))
    }
}

/// One layer on its way to disk. Dropping it takes back everything that was written.
pub trait LayerWriter: Send {
    /// Takes the next piece of the plain tar; pieces may be cut anywhere.
    ///
    /// # Errors
    /// When the tar is not one that we take, or the disk is full.
    fn write(&mut self, plain: &[u8]) -> Result<(), SnapshotError>;

    /// Ends the layer: checks the digest, makes it durable, then visible.
    ///
    /// # Errors
    /// [`SnapshotError::DiffIdMismatch`] when the content is not what was promised; nothing is left then.
    fn finish(self: Box<Self>, expected: &Digest) -> Result<Layer, SnapshotError>;
}

/// What can go wrong with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The layer's content has another digest than its image says.
    #[error("layer content has diff id {actual}, the image says {expected}")]
    DiffIdMismatch {
        /// What the image's configuration says.
        expected: Digest,
        /// What the bytes have.
        actual: Digest,
    },
    /// The tar breaks a rule; the text names the entry and the rule.
    #[error("layer tar is malformed: {0}")]
    MalformedTar(String),
    /// The layer, or an image's layers together, pass a bound that was set for them.
    #[error("layer exceeds a limit: {0}")]
    LimitExceeded(String),
    /// A layer that should be there is not.
    #[error("layer {0} is not in the store")]
    MissingLayer(Digest),
    /// The store's file system is full.
    #[error("no space left for the layer in {path}: {}{} free", at_least(*needed_bytes), Bytes(*free_bytes))]
    DiskFull {
        /// The store's folder.
        path: PathBuf,
        /// What the write needed, as far as it is known; 0 where it is not.
        needed_bytes: u64,
        /// What was free.
        free_bytes: u64,
    },
    /// The layers do not fit together.
    #[error("layers do not make an image: {0}")]
    Unmergeable(String),
    /// The store cannot be listed.
    #[error("list the store")]
    Unreadable {
        /// Why.
        source: Box<StoreError>,
    },
    /// The store has layers of the other driver, and pods may run on them.
    #[error(
        "store {root} has {layers} layers of the driver {found}, and pods may run on them: delete the pods of this node \
         first, or start with --snapshotter {found}"
    )]
    OtherDriver {
        /// The store's root.
        root: PathBuf,
        /// How many.
        layers: usize,
        /// Which driver wrote them.
        found: Driver,
    },
    /// A derived index is damaged and could not be made anew.
    #[error("index {path} is damaged")]
    CorruptIndex {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        source: erofs::ReadError,
    },
    /// The operating system refused.
    #[error("{action} {path}")]
    Io {
        /// `write`, `mount` ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// How much a write needs that did not get to its end.
fn at_least(needed_bytes: u64) -> String {
    if needed_bytes == 0 { String::new() } else { format!("at least {} needed, ", Bytes(needed_bytes)) }
}

impl SnapshotError {
    /// When the store does not say what it has.
    fn unreadable(error: StoreError) -> Self {
        Self::Unreadable { source: Box::new(error) }
    }

    /// What the operating system refused; a full disk is told apart, with what the whole write needed.
    pub(crate) fn io(action: &'static str, path: &Path, needed_bytes: u64, source: io::Error) -> Self {
        if !durable::is_disk_full(&source) {
            return Self::Io { action, path: path.to_owned(), source };
        }
        let existing = path.ancestors().find(|path| path.exists()).unwrap_or(path);
        Self::DiskFull { path: path.to_owned(), needed_bytes, free_bytes: durable::free_bytes(existing) }
    }
}

impl From<layer_tree::LayerError> for SnapshotError {
    fn from(error: layer_tree::LayerError) -> Self {
        use layer_tree::LayerError;
        match error {
            LayerError::Tar(error) => error.into(),
            LayerError::TooManyEntries { .. }
            | LayerError::TooMuchMetadata { .. }
            | LayerError::TooLong { .. }
            | LayerError::BeyondIndex { .. } => Self::LimitExceeded(error.to_string()),
            LayerError::Path { .. }
            | LayerError::NotADirectory { .. }
            | LayerError::SymlinkLoop { .. }
            | LayerError::HardLink { .. }
            | LayerError::Sparse { .. } => Self::MalformedTar(error.to_string()),
        }
    }
}

impl From<tar::TarError> for SnapshotError {
    fn from(error: tar::TarError) -> Self {
        match error {
            tar::TarError::TooLong { .. } => Self::LimitExceeded(error.to_string()),
            tar::TarError::Checksum { .. }
            | tar::TarError::Field { .. }
            | tar::TarError::Kind { .. }
            | tar::TarError::Extended { .. }
            | tar::TarError::Sparse { .. }
            | tar::TarError::LoneZeroBlock { .. }
            | tar::TarError::Truncated { .. } => Self::MalformedTar(error.to_string()),
        }
    }
}

impl From<merge::MergeError> for SnapshotError {
    fn from(error: merge::MergeError) -> Self {
        Self::Unmergeable(error.to_string())
    }
}
