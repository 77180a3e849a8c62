//! The index in sled 0.34.
//!
//! ```text
//! index/version    the number of the records' form
//! index/db/        sled's own files
//! index.corrupt/   the last index that could not be used, for whoever wants to know why
//! ```
//!
//! sled is fast and small, and known to fail at its start after a kill. Two things are done about it. A killed process can
//! leave `snap.*.generating`, which the next start takes for the newest snapshot and fails on: such files are removed
//! first (older snapshots are removed only after the rename, so nothing is lost). And any other failure, panic or standstill
//! while opening sets the index aside and begins a new one, to be filled again from the disk.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{ImageRecord, Index, IndexError, LayerRecord, StoredImage, StoredLayer};
use crate::digest::Digest;
use crate::store::durable;

/// The number of the records' form: JSON values, digests of 32 bytes as keys.
const VERSION: &str = "1";

/// sled's default is a gigabyte; our records are some thousands of small ones.
const CACHE_BYTES: u64 = 16 << 20;

/// A log of this length is mostly garbage: the index is made anew, which compacts it.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// Opening reads the log; a start that takes longer than this is a standstill.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);

/// In what state an index was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// There was none.
    New,
    /// It was whole.
    Whole,
    /// It could not be used, or had grown too long, and was set aside.
    Damaged,
}

/// An index in sled.
#[derive(Debug)]
pub struct SledIndex {
    database: sled::Db,
    layers: sled::Tree,
    images: sled::Tree,
    /// Apart from the layers: these are written far more often.
    last_use: sled::Tree,
}

impl SledIndex {
    /// Opens the index in this directory. One that cannot be used is set aside, and a new one begun.
    ///
    /// # Errors
    /// When a new one cannot be begun either.
    pub fn open(directory: &Path) -> Result<(Self, Found), io::Error> {
        let existed = directory.join("db").exists();
        match Self::open_existing(directory) {
            Ok(index) => Ok((index, if existed { Found::Whole } else { Found::New })),
            Err(reason) => {
                tracing::warn!(path = %directory.display(), reason, "store index cannot be used, beginning a new one");
                set_aside(directory)?;
                let index = Self::open_existing(directory).map_err(io::Error::other)?;
                Ok((index, if existed { Found::Damaged } else { Found::New }))
            }
        }
    }

    /// Opens the index, or says why not.
    fn open_existing(directory: &Path) -> Result<Self, String> {
        let words = |error: io::Error| error.to_string();
        let (database, version) = (directory.join("db"), directory.join("version"));
        fs::create_dir_all(directory).map_err(words)?;
        if !database.exists() {
            fs::write(&version, VERSION).map_err(words)?;
        }
        if fs::read_to_string(&version).map_err(words)? != VERSION {
            return Err(String::from("its version is another one"));
        }
        remove_unfinished_snapshots(&database).map_err(words)?;
        let index = open_guarded(&database)?;
        let length = index.database.size_on_disk().map_err(|error| error.to_string())?;
        if length > LOG_BYTES_MAX {
            return Err(format!("its log has grown to {length} bytes"));
        }
        Ok(index)
    }

    fn open_database(path: &Path) -> Result<Self, sled::Error> {
        wait_until_free(path)?;
        let database = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).open()?;
        let index = Self {
            layers: database.open_tree("layers")?,
            images: database.open_tree("images")?,
            last_use: database.open_tree("last_use")?,
            database,
        };
        // A record that cannot be read shows now and not in the middle of a pull.
        for record in index.layers.iter().chain(index.images.iter()).chain(index.last_use.iter()) {
            record?;
        }
        Ok(index)
    }
}

/// Waits until whoever had the database before has let go of its lock: sled's own threads shortly after it was closed, and a
/// process that was forked meanwhile until it executes its program. sled itself does not wait, and a database that is only
/// busy would be taken for damaged. Nobody else can have it: the store as a whole is locked.
fn wait_until_free(path: &Path) -> io::Result<()> {
    match fs::File::open(path.join("db")) {
        // Unlocked by name: a copy of the descriptor in a process that is being forked would keep the lock.
        Ok(file) => file.lock().and_then(|()| file.unlock()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Opens on a thread of its own, which may panic or stand still without taking the agent along.
fn open_guarded(path: &Path) -> Result<SledIndex, String> {
    let (answer, opened) = mpsc::sync_channel(1);
    let path = path.to_owned();
    let open = move || {
        let result = catch_unwind(AssertUnwindSafe(|| SledIndex::open_database(&path)));
        // Nobody waits any more where the deadline has passed.
        let _ = answer.send(result);
    };
    thread::Builder::new().name("index-open".to_owned()).spawn(open).map_err(|error| error.to_string())?;
    match opened.recv_timeout(OPEN_DEADLINE) {
        Ok(Ok(Ok(index))) => Ok(index),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(panic)) => Err(format!("the database panicked: {}", panic_words(&*panic))),
        Err(_) => Err(format!("the database did not open within {OPEN_DEADLINE:?}")),
    }
}

fn remove_unfinished_snapshots(database: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(database) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "generating") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Keeps one unusable index beside the new one.
fn set_aside(directory: &Path) -> io::Result<()> {
    let mut aside = directory.as_os_str().to_owned();
    aside.push(".corrupt");
    let aside = PathBuf::from(aside);
    durable::remove(&aside)?;
    match durable::rename(directory, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Runs an operation of the database, which may panic.
fn guarded<T>(operation: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(operation)) {
        Ok(result) => result,
        Err(panic) => Err(IndexError::Panicked(panic_words(&*panic))),
    }
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| String::from("no message"))
}

fn key(digest: &Digest) -> [u8; 32] {
    *digest.as_bytes()
}

fn digest_of(key: &[u8]) -> Result<Digest, IndexError> {
    let bytes = <[u8; 32]>::try_from(key).map_err(|_| IndexError::Record { key: hex::encode(key) })?;
    Ok(Digest::from_bytes(bytes))
}

fn encode<T: serde::Serialize>(digest: &Digest, record: &T) -> Result<Vec<u8>, IndexError> {
    serde_json::to_vec(record).map_err(|_| IndexError::Record { key: digest.hex() })
}

fn decode<T: serde::de::DeserializeOwned>(digest: &Digest, bytes: &[u8]) -> Result<T, IndexError> {
    serde_json::from_slice(bytes).map_err(|_| IndexError::Record { key: digest.hex() })
}

impl Index for SledIndex {
    fn layers(&self) -> Result<Vec<LayerRecord>, IndexError> {
        guarded(|| {
            let mut layers = Vec::new();
            for record in &self.layers {
                let (key, value) = record.map_err(IndexError::Database)?;
                let diff_id = digest_of(&key)?;
                let stored: StoredLayer = decode(&diff_id, &value)?;
                let last_use = self.last_use.get(&key).map_err(IndexError::Database)?;
                layers.push(LayerRecord {
                    diff_id,
                    size_bytes: stored.size_bytes,
                    disk_bytes: stored.disk_bytes,
                    last_use: last_use.map_or(0, |bytes| seconds(&bytes)),
                });
            }
            Ok(layers)
        })
    }

    fn put_layer(&self, layer: &LayerRecord) -> Result<(), IndexError> {
        guarded(|| {
            let stored = StoredLayer { size_bytes: layer.size_bytes, disk_bytes: layer.disk_bytes };
            let key = key(&layer.diff_id);
            self.layers.insert(key, encode(&layer.diff_id, &stored)?).map_err(IndexError::Database)?;
            self.last_use.insert(key, &layer.last_use.to_be_bytes()).map_err(IndexError::Database)?;
            Ok(())
        })
    }

    fn remove_layer(&self, diff_id: &Digest) -> Result<(), IndexError> {
        guarded(|| {
            self.layers.remove(key(diff_id)).map_err(IndexError::Database)?;
            self.last_use.remove(key(diff_id)).map_err(IndexError::Database)?;
            self.database.flush().map_err(IndexError::Database)?;
            Ok(())
        })
    }

    fn touch(&self, diff_ids: &[Digest], at: u64) -> Result<(), IndexError> {
        guarded(|| {
            let mut batch = sled::Batch::default();
            for diff_id in diff_ids {
                let key = key(diff_id);
                let before = self.last_use.get(key).map_err(IndexError::Database)?;
                if before.is_some_and(|before| seconds(&before) < at) {
                    batch.insert(&key, &at.to_be_bytes());
                }
            }
            self.last_use.apply_batch(batch).map_err(IndexError::Database)
        })
    }

    fn images(&self) -> Result<Vec<ImageRecord>, IndexError> {
        guarded(|| {
            let mut images = Vec::new();
            for record in &self.images {
                let (key, value) = record.map_err(IndexError::Database)?;
                let manifest = digest_of(&key)?;
                let stored: StoredImage = decode(&manifest, &value)?;
                let mut diff_ids = Vec::with_capacity(stored.diff_ids.len());
                for diff_id in stored.diff_ids {
                    diff_ids.push(diff_id.parse().map_err(|_| IndexError::Record { key: manifest.hex() })?);
                }
                images.push(ImageRecord { manifest, diff_ids });
            }
            Ok(images)
        })
    }

    fn put_image(&self, image: &ImageRecord) -> Result<(), IndexError> {
        guarded(|| {
            let stored = StoredImage { diff_ids: image.diff_ids.iter().map(ToString::to_string).collect() };
            let value = encode(&image.manifest, &stored)?;
            self.images.insert(key(&image.manifest), value).map_err(IndexError::Database)?;
            Ok(())
        })
    }

    fn remove_image(&self, manifest: &Digest) -> Result<(), IndexError> {
        guarded(|| {
            self.images.remove(key(manifest)).map_err(IndexError::Database)?;
            self.database.flush().map_err(IndexError::Database)?;
            Ok(())
        })
    }

    fn flush(&self) -> Result<(), IndexError> {
        guarded(|| self.database.flush().map(drop).map_err(IndexError::Database))
    }
}

fn seconds(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}
