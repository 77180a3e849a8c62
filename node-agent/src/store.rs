//! The store: what the host keeps of images, and the index over it.
//!
//! The files are the truth, named by digests; the index is derived from them and may be lost at any moment. One process
//! uses a store at a time. What a killed process left half done lies in `ingest/` and is removed at the next start, but for
//! partial downloads, which go on.

pub mod caches;
pub mod durable;
pub mod eviction;
pub mod index;
pub mod layout;
pub mod pins;
mod recovery;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use self::index::{ImageRecord, Index, IndexError, LayerRecord, MemoryIndex, SledIndex};
use self::layout::{Layout, VERSION};
use self::pins::Pins;
pub use self::recovery::Recovered;
use crate::digest::Digest;

/// A store that this process uses.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    index: Arc<dyn Index>,
    pins: Pins,
    recovered: Recovered,
    /// Locked as long as it is open.
    _lock: File,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process uses it.
    #[error("store {path} is used by another process")]
    InUse {
        /// The store's root.
        path: PathBuf,
    },
    /// It was written by a version of this program that keeps it differently.
    #[error("store {path} has version {found}, this program knows {VERSION}")]
    Version {
        /// The store's root.
        path: PathBuf,
        /// What its `version` says.
        found: String,
    },
    /// The operating system refused.
    #[error("{action} {path}")]
    Io {
        /// `create`, `read` ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StoreError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

impl Store {
    /// Opens the store below this root, made where it is missing; removes what a killed process left half done, and
    /// brings the index in line with the files. Blocks.
    ///
    /// # Errors
    /// When another process uses it, its version is not known, or the file system refuses.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let layout = Layout::new(root);
        for directory in layout.directories() {
            fs::create_dir_all(&directory).map_err(StoreError::io("create", &directory))?;
        }
        let lock = lock(&layout)?;
        check_version(&layout)?;
        let (index, rebuilt): (Arc<dyn Index>, bool) = match SledIndex::open(&layout.index()) {
            Ok((index, found)) => (Arc::new(index), found == index::sled::Found::Damaged),
            Err(error) => {
                tracing::warn!(%error, path = %layout.index().display(), "store index stays in memory");
                (Arc::new(MemoryIndex::default()), true)
            }
        };
        let mut recovered = recovery::clean(&layout)?;
        recovered.index_rebuilds = u64::from(rebuilt);
        recovery::reconcile(&layout, &*index, &mut recovered)?;
        tracing::info!(
            path = %layout.root().display(),
            layers = recovered.layers,
            partial_downloads = recovered.partial_downloads,
            removed = recovered.removed,
            index_rebuilds = recovered.index_rebuilds,
            "opened the store"
        );
        Ok(Self { layout, index, pins: Pins::default(), recovered, _lock: lock })
    }

    /// Where things lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What is in use.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// What was found when the store was opened.
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// The index. An error of it is no reason to stop: see [`Store::layers`].
    pub fn index(&self) -> &dyn Index {
        &*self.index
    }

    /// All layers; from the files where the index does not answer.
    ///
    /// # Errors
    /// When the files cannot be listed either.
    pub fn layers(&self) -> Result<Vec<LayerRecord>, StoreError> {
        or_from_files(self.index.layers(), || recovery::layers_on_disk(&self.layout))
    }

    /// All composed images; from the files where the index does not answer.
    ///
    /// # Errors
    /// When the files cannot be listed either.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        or_from_files(self.index.images(), || recovery::images_on_disk(&self.layout))
    }

    /// Puts a finished layer on record, used at this time (seconds since 1970).
    pub fn record_layer(&self, diff_id: &Digest, size_bytes: u64, disk_bytes: u64, used_at: u64) {
        let layer = LayerRecord { diff_id: *diff_id, size_bytes, disk_bytes, last_use: used_at };
        note(self.index.put_layer(&layer));
    }

    /// Puts a composed image on record, its layers used at this time (seconds since 1970).
    pub fn record_image(&self, manifest: &Digest, diff_ids: &[Digest], used_at: u64) {
        note(self.index.put_image(&ImageRecord { manifest: *manifest, diff_ids: diff_ids.to_vec() }));
        note(self.index.touch(diff_ids, used_at));
    }

    /// Bytes that could still be written.
    pub fn free_bytes(&self) -> u64 {
        durable::free_bytes(self.layout.root())
    }

    /// What was put on record is durable when this returns. Blocks.
    pub fn flush(&self) {
        note(self.index.flush());
    }
}

/// The index is derived: when it fails the record is made again at the next start.
pub(crate) fn note(result: Result<(), IndexError>) {
    if let Err(error) = result {
        tracing::warn!(error = &error as &dyn std::error::Error, "store index did not take a record");
    }
}

fn or_from_files<T>(
    indexed: Result<T, IndexError>,
    files: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    match indexed {
        Ok(found) => Ok(found),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "store index does not answer, reading the disk");
            files()
        }
    }
}

fn lock(layout: &Layout) -> Result<File, StoreError> {
    let path = layout.lock();
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(StoreError::io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse { path: layout.root().to_owned() }),
        Err(error) => Err(StoreError::io("lock", &path)(error.into())),
    }
}

fn check_version(layout: &Layout) -> Result<(), StoreError> {
    let path = layout.version();
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == VERSION.to_string() => Ok(()),
        Ok(found) => {
            Err(StoreError::Version { path: layout.root().to_owned(), found: found.trim().chars().take(40).collect() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            durable::write_file(&path, &layout.unfinished("version"), |file| {
                io::Write::write_all(file, VERSION.to_string().as_bytes())
            })
            .map_err(StoreError::io("write", &path))
        }
        Err(error) => Err(StoreError::io("read", &path)(error)),
    }
}

#[cfg(test)]
mod tests;
