//! The index over the store: what would take a walk over the disk to know.
//!
//! Every record is derived from files, but for the times of last use, which may be lost. A fact is made durable on disk
//! first and then put here; it is taken from here first and then removed from disk. So a lost record costs a walk, and a
//! record never leads to nothing for long.

mod memory;
pub(crate) mod sled;

use serde::{Deserialize, Serialize};

pub use self::memory::MemoryIndex;
pub use self::sled::SledIndex;
use crate::digest::Digest;

/// A finished layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRecord {
    /// sha256 of the plain tar.
    pub diff_id: Digest,
    /// Bytes of the plain tar.
    pub size_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// When it was used last, in seconds since 1970; 0 when that is not known.
    pub last_use: u64,
}

/// A composed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Its layers, the lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Why the index did not answer. The disk is the truth: whoever gets this goes on without the index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The database refused.
    #[error("use store index")]
    Database(#[source] ::sled::Error),
    /// The database panicked.
    #[error("use store index: the database panicked: {0}")]
    Panicked(String),
    /// A record is not one of ours.
    #[error("use store index: record {key} cannot be read")]
    Record {
        /// Its key.
        key: String,
    },
}

/// An index. Calls block for a moment at most, but for [`Index::flush`], which waits for the disk.
pub trait Index: Send + Sync + std::fmt::Debug {
    /// All layers.
    ///
    /// # Errors
    /// When the database fails.
    fn layers(&self) -> Result<Vec<LayerRecord>, IndexError>;

    /// Adds a layer or replaces what is known of it.
    ///
    /// # Errors
    /// When the database fails.
    fn put_layer(&self, layer: &LayerRecord) -> Result<(), IndexError>;

    /// Forgets a layer, durably. One that is not known is not an error.
    ///
    /// # Errors
    /// When the database fails.
    fn remove_layer(&self, diff_id: &Digest) -> Result<(), IndexError>;

    /// Layers were used at this time, in seconds since 1970. Those that are not known are passed over.
    ///
    /// # Errors
    /// When the database fails.
    fn touch(&self, diff_ids: &[Digest], at: u64) -> Result<(), IndexError>;

    /// All composed images.
    ///
    /// # Errors
    /// When the database fails.
    fn images(&self) -> Result<Vec<ImageRecord>, IndexError>;

    /// Adds an image or replaces what is known of it.
    ///
    /// # Errors
    /// When the database fails.
    fn put_image(&self, image: &ImageRecord) -> Result<(), IndexError>;

    /// Forgets an image, durably. One that is not known is not an error.
    ///
    /// # Errors
    /// When the database fails.
    fn remove_image(&self, manifest: &Digest) -> Result<(), IndexError>;

    /// Makes everything so far durable.
    ///
    /// # Errors
    /// When the database fails.
    fn flush(&self) -> Result<(), IndexError>;
}

/// A layer's record in the database.
#[derive(Debug, Serialize, Deserialize)]
struct StoredLayer {
    size_bytes: u64,
    disk_bytes: u64,
}

/// An image's record in the database.
#[derive(Debug, Serialize, Deserialize)]
struct StoredImage {
    diff_ids: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    /// Both indexes answer the same.
    fn behaves(index: &dyn Index) {
        let layer = |number, last_use| LayerRecord { diff_id: digest(number), size_bytes: 7, disk_bytes: 9, last_use };
        index.put_layer(&layer(1, 5)).expect("put");
        index.put_layer(&layer(2, 0)).expect("put");
        index.touch(&[digest(2), digest(3)], 77).expect("touch");
        let sorted = || {
            let mut layers = index.layers().expect("layers");
            layers.sort_by_key(|layer| layer.diff_id);
            layers
        };
        assert_eq!(sorted(), [layer(1, 5), layer(2, 77)]);
        index.touch(&[digest(2)], 76).expect("touch");
        assert_eq!(sorted(), [layer(1, 5), layer(2, 77)], "time does not go back");
        index.remove_layer(&digest(1)).expect("remove");
        index.remove_layer(&digest(1)).expect("remove again");
        assert_eq!(sorted(), [layer(2, 77)]);
        let image = ImageRecord { manifest: digest(9), diff_ids: vec![digest(2), digest(1)] };
        index.put_image(&image).expect("put");
        assert_eq!(index.images().expect("images"), [image]);
        index.remove_image(&digest(9)).expect("remove");
        index.remove_image(&digest(9)).expect("remove again");
        assert_eq!(index.images().expect("images"), []);
        index.flush().expect("flush");
    }

    #[test]
    fn both_behave_alike() {
        behaves(&MemoryIndex::default());
        let directory = tempfile::tempdir().expect("temporary directory");
        behaves(&SledIndex::open(&directory.path().join("index")).expect("opens").0);
    }

    #[test]
    fn what_was_flushed_is_there_after_a_restart() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("index");
        let layer = LayerRecord { diff_id: digest(1), size_bytes: 7, disk_bytes: 9, last_use: 5 };
        let (index, was) = SledIndex::open(&path).expect("opens");
        assert_eq!(was, sled::Found::New);
        index.put_layer(&layer).expect("put");
        index.flush().expect("flush");
        drop(index);
        let (index, was) = SledIndex::open(&path).expect("opens");
        assert_eq!(was, sled::Found::Whole);
        assert_eq!(index.layers().expect("layers"), [layer]);
    }

    #[test]
    fn a_snapshot_that_was_cut_short_does_not_stop_the_index() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("index");
        let layer = LayerRecord { diff_id: digest(1), size_bytes: 7, disk_bytes: 9, last_use: 5 };
        let (index, _) = SledIndex::open(&path).expect("opens");
        index.put_layer(&layer).expect("put");
        index.flush().expect("flush");
        drop(index);
        std::fs::write(path.join("db/snap.FFFFFFFFFFFFFFFF.generating"), b"short").expect("write");
        let (index, was) = SledIndex::open(&path).expect("opens");
        assert_eq!(was, sled::Found::Whole);
        assert_eq!(index.layers().expect("layers"), [layer]);
    }

    #[test]
    fn an_index_that_is_let_go_of_late_is_waited_for() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("index");
        drop(SledIndex::open(&path).expect("opens"));
        let held = std::fs::File::open(path.join("db/db")).expect("open");
        held.lock().expect("lock");
        let (sender, opened) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(SledIndex::open(&path).map(|(_, was)| was)));
        let early = opened.recv_timeout(std::time::Duration::from_millis(200));
        assert!(early.is_err(), "it did not wait: {early:?}");
        held.unlock().expect("unlock");
        assert_eq!(opened.recv().expect("answers").expect("opens"), sled::Found::Whole);
    }

    #[test]
    fn a_damaged_index_is_set_aside() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("index");
        for content in [&b"garbage that is no database at all"[..], &[0xff; 4096]] {
            let (index, _) = SledIndex::open(&path).expect("opens");
            index
                .put_layer(&LayerRecord { diff_id: digest(1), size_bytes: 7, disk_bytes: 9, last_use: 5 })
                .expect("put");
            drop(index);
            for name in ["conf", "db"] {
                std::fs::write(path.join("db").join(name), content).expect("damage");
            }
            let (index, was) = SledIndex::open(&path).expect("opens a new one");
            assert_eq!(was, sled::Found::Damaged);
            assert_eq!(index.layers().expect("layers"), []);
            assert!(directory.path().join("index.corrupt").exists());
        }
    }

    #[test]
    fn an_index_of_another_version_is_set_aside() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("index");
        drop(SledIndex::open(&path).expect("opens"));
        std::fs::write(path.join("version"), b"0").expect("write");
        assert_eq!(SledIndex::open(&path).expect("opens").1, sled::Found::Damaged);
    }
}
