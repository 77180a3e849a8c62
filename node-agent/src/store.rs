//! The store: what the host keeps of images, and the index over it.
//!
//! The files are the truth, named by digests; the index is derived from them and may be lost at any moment. One process
//! uses a store at a time. What a killed process left half done lies in `ingest/` and is removed at the next start, but for
//! partial downloads, which go on, and layers that were being repaired, which go back.

pub mod aside;
pub mod caches;
pub mod durable;
pub mod eviction;
pub mod index;
pub mod layout;
pub mod pins;
pub mod pulled;
mod recovery;
pub mod shortage;
pub mod sources;
pub(crate) mod steps;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use tokio::sync::Notify;

use self::eviction::Disk;
use self::index::sled::Found;
use self::index::{ImageRecord, Index, IndexError, LayerRecord, MemoryIndex, SledIndex};
use self::layout::{Layout, VERSION};
use self::pins::Pins;
pub(crate) use self::recovery::entries;
pub use self::recovery::{FoundLayer, Recovered};
use self::shortage::Shortage;
use crate::digest::Digest;

/// A store that this process uses.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    index: Arc<dyn Index>,
    pins: Pins,
    found: Vec<FoundLayer>,
    recovered: Recovered,
    grown: Notify,
    /// Locked as long as it is open.
    _lock: Lock,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process uses it.
    #[error("store {path} is used by another process: end it, or give this one another --root")]
    InUse {
        /// The store's root.
        path: PathBuf,
    },
    /// It was written by a version of this program that keeps it differently.
    #[error("store {path} has layout {found:?}, this program knows {VERSION}: {remedy}")]
    Version {
        /// The store's root.
        path: PathBuf,
        /// What its `version` says.
        found: String,
        /// What to do about it.
        remedy: &'static str,
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
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
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
        let create = |path: &Path| durable::create_directories(path).map_err(StoreError::io("create", path));
        create(layout.root())?;
        let lock = lock(&layout)?;
        // Before anything else is made or removed: it may be somebody else's folder.
        check_version(&layout)?;
        for directory in layout.directories() {
            create(&directory)?;
        }
        // A weak password could be guessed by what is in there.
        let pulled = layout.pulled();
        fs::set_permissions(&pulled, fs::Permissions::from_mode(0o700)).map_err(StoreError::io("restrict", &pulled))?;
        let (index, found) = open_index(&layout);
        let (whole, mut recovered) = recovery::clean(&layout)?;
        recovery::reconcile(&whole, &*index);
        let rebuilt = match found {
            Found::Whole => false,
            Found::Damaged => true,
            // There is none before the first layer; later it has been lost.
            Found::New => recovered.layers > 0,
        };
        recovered.index_rebuilds = u64::from(rebuilt);
        tracing::info!(
            path = %layout.root().display(),
            layers = recovered.layers,
            partial_downloads = recovered.partial_downloads,
            removed = recovered.removed,
            index_rebuilds = recovered.index_rebuilds,
            "opened the store"
        );
        let (found, pins) = (whole.layers, Pins::default());
        Ok(Self { layout, index, pins, found, recovered, grown: Notify::new(), _lock: lock })
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

    /// The layers that were there when the store was opened.
    pub fn found(&self) -> &[FoundLayer] {
        &self.found
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

    /// A layer, as its files say; none when it is not there or not whole.
    pub fn layer_on_disk(&self, diff_id: &Digest) -> Option<LayerRecord> {
        recovery::layer_at(self.layout.layer(diff_id).directory()).ok().flatten().map(|layer| layer.record)
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
        self.grown.notify_one();
    }

    /// Layers are used at this time (seconds since 1970). Their files say so too, in case that the index is lost.
    pub fn touch(&self, diff_ids: &[Digest], at: u64) {
        note(self.index.touch(diff_ids, at));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
        for diff_id in diff_ids {
            let path = self.layout.layer(diff_id).meta();
            let touched = File::open(&path).and_then(|file| file.set_modified(time));
            if let Err(error) = touched {
                tracing::debug!(path = %path.display(), %error, "layer keeps its old time of use on disk");
            }
        }
    }

    /// Returns when a layer has come since the last call.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }

    /// Puts a composed image on record, its layers used at this time (seconds since 1970).
    pub fn record_image(&self, manifest: &Digest, diff_ids: &[Digest], used_at: u64) {
        note(self.index.put_image(&ImageRecord { manifest: *manifest, diff_ids: diff_ids.to_vec() }));
        self.touch(diff_ids, used_at);
    }

    /// Bytes that could still be written.
    pub fn free_bytes(&self) -> u64 {
        durable::free_bytes(self.layout.root())
    }

    /// The file system that the store lies on.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn disk(&self) -> Result<Disk, StoreError> {
        let root = self.layout.root();
        let found = rustix::fs::statvfs(root).map_err(|error| StoreError::io("stat", root)(error.into()))?;
        Ok(Disk {
            size_bytes: found.f_blocks.saturating_mul(found.f_frsize),
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }

    /// Whose the disk is, for whoever it was too small for.
    ///
    /// # Errors
    /// When it cannot be asked, or the layers cannot be listed.
    pub fn shortage(&self) -> Result<Shortage, StoreError> {
        Ok(Shortage::of(self.disk()?, &self.layers()?, &self.pins.holders()))
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

/// The right to use the store, held for its drop.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // By name: a copy of the descriptor, in a process that was forked and has not executed its program yet, would keep
        // the lock beyond the closing of this one.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn lock(layout: &Layout) -> Result<Lock, StoreError> {
    let path = layout.lock();
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(StoreError::io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse { path: layout.root().to_owned() }),
        Err(error) => Err(StoreError::io("lock", &path)(error.into())),
    }
}

/// Opens the index; where not even a new one can be begun, it is one in memory.
fn open_index(layout: &Layout) -> (Arc<dyn Index>, Found) {
    match SledIndex::open(&layout.index()) {
        Ok((index, found)) => (Arc::new(index), found),
        Err(error) => {
            tracing::warn!(%error, path = %layout.index().display(), "store index stays in memory");
            (Arc::new(MemoryIndex::default()), Found::Damaged)
        }
    }
}

fn check_version(layout: &Layout) -> Result<(), StoreError> {
    let path = layout.version();
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == VERSION.to_string() => Ok(()),
        Ok(found) => {
            let found: String = found.trim().chars().take(40).collect();
            let remedy = match found.parse::<u32>() {
                Ok(newer) if newer > VERSION => "run the newer program that wrote it, or give another --root",
                // There has been no older one yet: whoever makes one brings its content over here.
                Ok(_) => "run the program that wrote it, or remove the folder and let the images be pulled again",
                Err(_) => "this is no store of Larder; give another --root",
            };
            Err(StoreError::Version { path: layout.root().to_owned(), found, remedy })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => begin_version(layout, &path),
        Err(error) => Err(StoreError::io("read", &path)(error)),
    }
}

/// Makes a folder a store, unless it has content of something else: what is found in a store and is not whole is removed.
fn begin_version(layout: &Layout, path: &Path) -> Result<(), StoreError> {
    for directory in layout.directories().iter().skip(1) {
        // What a store begins with is in `ingest`, where it goes by its name.
        if *directory != layout.ingest() && has_content(directory)? {
            let remedy = "there are files and no version: this is no store of Larder; give another --root";
            return Err(StoreError::Version { path: layout.root().to_owned(), found: String::new(), remedy });
        }
    }
    durable::write_file(path, &path.with_extension("unfinished"), |file| {
        io::Write::write_all(file, VERSION.to_string().as_bytes())
    })
    .map_err(StoreError::io("write", path))
}

fn has_content(directory: &Path) -> Result<bool, StoreError> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("read", directory)(error)),
    }
}

#[cfg(test)]
mod tests;
