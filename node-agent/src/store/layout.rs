//! Where things lie below the store's root, and what a finished layer says of itself.
//!
//! ```text
//! version                          the number of this layout
//! lock                             held by the one process that uses the store
//! index/                           derived; may be deleted at any time
//! manifests/sha256/<hex>           manifests and configurations, by digest
//! layers/<hex>/                    a finished layer: layer.erofs, layer.tar or fs/ and layer.sums, meta.json
//! images/<hex>.json                an image's layers, by the digest of its manifest
//! images/<hex>.erofs, <hex>.dirs/  what is derived from them
//! caches/<id>.json                 what an image cache holds
//! sources/<hex>.json               where an image came from, by the digest of its manifest
//! pulled/<hex>.json                who was let in to pull it, by the digest of its manifest
//! ingest/<hex>.partial             a download that goes on after a restart
//! ingest/<hex>.damaged             a layer that is in use and being fetched again
//! ingest/new-*                     a layer, image or removal in progress: rubbish after a restart
//! ```
//!
//! Paths only: nothing here touches a disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The layout's number, in the file `version`.
pub const VERSION: u32 = 1;

/// What the names of unfinished things in `ingest/` begin with.
pub const UNFINISHED: &str = "new-";

/// What the names of partial downloads in `ingest/` end with.
pub const PARTIAL: &str = ".partial";

/// What the names of layers that are being repaired end with.
pub const DAMAGED: &str = ".damaged";

/// The digest that a file or folder is named by, with this behind it.
pub(crate) fn named_by(path: &Path, suffix: &str) -> Option<Digest> {
    Digest::from_hex(path.file_name()?.to_str()?.strip_suffix(suffix)?)
}

/// The store's root and the paths below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below this root.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that holds [`VERSION`].
    pub fn version(&self) -> PathBuf {
        self.root.join("version")
    }

    /// The file that the process using the store has locked.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The index's directory.
    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// The directory of manifests and configurations.
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests/sha256")
    }

    /// One manifest or configuration.
    pub fn manifest(&self, digest: &Digest) -> PathBuf {
        self.manifests().join(digest.hex())
    }

    /// The directory of layers.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// One layer.
    pub fn layer(&self, diff_id: &Digest) -> LayerPaths {
        LayerPaths { directory: self.layers().join(diff_id.hex()) }
    }

    /// A layer that is in use and being fetched again.
    pub fn damaged(&self, diff_id: &Digest) -> PathBuf {
        self.ingest().join(format!("{}{DAMAGED}", diff_id.hex()))
    }

    /// The directory of composed images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// One composed image, for the driver that mounts it.
    pub fn image_index(&self, manifest: &Digest) -> PathBuf {
        self.images().join(format!("{}.erofs", manifest.hex()))
    }

    /// One composed image, for the driver that stacks directories.
    pub fn image_directories(&self, manifest: &Digest) -> PathBuf {
        self.images().join(format!("{}.dirs", manifest.hex()))
    }

    /// Which layers a composed image has; an [`ImageMeta`].
    pub fn image_meta(&self, manifest: &Digest) -> PathBuf {
        self.images().join(format!("{}.json", manifest.hex()))
    }

    /// The directory of caches.
    pub fn caches(&self) -> PathBuf {
        self.root.join("caches")
    }

    /// One cache's file. `None` where the id could not be a file's name.
    pub fn cache(&self, id: &str) -> Option<PathBuf> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' || byte == b'.';
        let named = !id.is_empty() && id.len() <= 200 && !id.starts_with('.') && id.bytes().all(valid);
        named.then(|| self.caches().join(format!("{id}.json")))
    }

    /// The directory of images' sources.
    pub fn sources(&self) -> PathBuf {
        self.root.join("sources")
    }

    /// Where one image came from.
    pub fn source(&self, manifest: &Digest) -> PathBuf {
        self.sources().join(format!("{}.json", manifest.hex()))
    }

    /// The directory of who was let in to pull images.
    pub fn pulled(&self) -> PathBuf {
        self.root.join("pulled")
    }

    /// Who was let in to pull one image.
    pub fn pull_record(&self, manifest: &Digest) -> PathBuf {
        self.pulled().join(format!("{}.json", manifest.hex()))
    }

    /// The directory of things in progress.
    pub fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    /// A download in progress.
    pub fn partial(&self, blob: &Digest) -> PathBuf {
        self.ingest().join(format!("{}{PARTIAL}", blob.hex()))
    }

    /// A name that nothing has had in this process, for something in progress. Only one process uses a store, and it
    /// empties the directory of such names when it starts.
    pub fn unfinished(&self, what: &str) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        self.ingest().join(format!("{UNFINISHED}{what}-{count}"))
    }

    /// The directories that a store has, the root first.
    pub fn directories(&self) -> [PathBuf; 8] {
        [
            self.root.clone(),
            self.manifests(),
            self.layers(),
            self.images(),
            self.caches(),
            self.sources(),
            self.pulled(),
            self.ingest(),
        ]
    }
}

/// The paths within one layer's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPaths {
    directory: PathBuf,
}

impl LayerPaths {
    /// A layer that is being made in this directory.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The plain tar.
    pub fn tar(&self) -> PathBuf {
        self.directory.join("layer.tar")
    }

    /// The layer's tree with its whiteouts, as an EROFS image.
    pub fn index(&self) -> PathBuf {
        self.directory.join("layer.erofs")
    }

    /// The unpacked files, where the layer is kept so.
    pub fn files(&self) -> PathBuf {
        self.directory.join("fs")
    }

    /// Digests of the unpacked files.
    pub fn sums(&self) -> PathBuf {
        self.directory.join("layer.sums")
    }

    /// What the layer says of itself; a layer without it is not one.
    pub fn meta(&self) -> PathBuf {
        self.directory.join("meta.json")
    }
}

/// `meta.json` of a finished layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMeta {
    /// `sha256:` and the digits.
    pub diff_id: String,
    /// Bytes of the plain tar.
    pub size_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// `erofs` or `directory`.
    pub driver: String,
}

/// What is known of a composed image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMeta {
    /// Diff ids as `sha256:` and the digits, lowest layer first.
    pub diff_ids: Vec<String>,
}
