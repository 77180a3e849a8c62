//! Downloads in progress: what has come of a blob, compressed as it came, in `ingest/<digest>.partial`.
//!
//! A transfer goes on from such a file after the agent was killed, or when the pod is tried again. Nothing in it is
//! trusted: it is hashed again from the start, so it may be torn by a power cut. It is written by one transfer at a time,
//! and a file that cannot be written is no reason to stop: then nothing is kept. Everything here blocks.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::pull_plan::Content;
use crate::{
    digest::Digest,
    store::{Store, durable},
};

/// Less than this is fetched again sooner than it is kept.
const WORTH_KEEPING: u64 = 1 << 20;
/// A file that nobody has added to for so long is not gone on with: tags have moved on.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// The partial downloads of a store.
#[derive(Debug, Clone)]
pub(super) struct Partials {
    store: Arc<Store>,
    leased: Arc<Mutex<HashSet<Digest>>>,
}

/// The right to write one blob's file. It ends with its last clone.
#[derive(Debug, Clone)]
pub(super) struct Lease(#[expect(dead_code, reason = "held for its drop")] Arc<Leased>);

#[derive(Debug)]
struct Leased {
    digest: Digest,
    leased: Arc<Mutex<HashSet<Digest>>>,
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}

/// One blob's file, open for more. One that did not become worth keeping goes away with this value.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    _lease: Lease,
}

impl Partials {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, leased: Arc::default() }
    }

    /// The right to keep what comes of a blob; none when it is too small for that, or another transfer keeps it.
    pub(super) fn lease(&self, content: &Content) -> Option<Lease> {
        if content.size < WORTH_KEEPING {
            return None;
        }
        let digest = content.digest;
        let new = self.leased.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        new.then(|| Lease(Arc::new(Leased { digest, leased: Arc::clone(&self.leased) })))
    }

    /// Opens a blob's file, and removes those that have grown old. None when it cannot be had.
    pub(super) fn open(&self, content: &Content, lease: Lease) -> Option<Partial> {
        self.sweep(|age| age > OLD);
        let path = self.store.layout().partial(&content.digest);
        let opened = open(&path, content.size);
        let (file, bytes) =
            opened.inspect_err(|err| tracing::debug!(path = %path.display(), %err, "keep nothing")).ok()?;
        Some(Partial { path, file: Some(file), bytes, _lease: lease })
    }

    /// Removes a blob's file, of which nothing is of use.
    pub(super) fn remove(&self, digest: &Digest) {
        remove(&self.store.layout().partial(digest));
    }

    /// Removes all files that no transfer under way writes; says how many bytes they had.
    pub(super) fn remove_idle(&self) -> u64 {
        self.sweep(|_| true)
    }

    fn sweep(&self, unwanted: impl Fn(Duration) -> bool) -> u64 {
        let Ok(entries) = fs::read_dir(self.store.layout().ingest()) else { return 0 };
        let mut freed = 0;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let Some(digest) = digest_of(&path) else { continue };
            // Held, so that no transfer takes it up in this moment.
            let leased = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let age = meta.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
            if !leased.contains(&digest) && unwanted(age) {
                remove(&path);
                freed += meta.len();
            }
        }
        freed
    }
}

/// The digest that a file in `ingest/` is named by, when it is a partial download.
fn digest_of(path: &Path) -> Option<Digest> {
    Digest::from_hex(path.file_name()?.to_str()?.strip_suffix(".partial")?)
}

fn open(path: &Path, size: u64) -> io::Result<(File, u64)> {
    let file = File::options().create(true).append(true).open(path)?;
    let bytes = file.metadata()?.len();
    if bytes <= size {
        return Ok((file, bytes));
    }
    // More than there is of it: that cannot be it.
    file.set_len(0)?;
    Ok((file, 0))
}

fn remove(path: &Path) {
    if let Err(err) = durable::remove(path) {
        tracing::warn!(path = %path.display(), %err, "partial download stays");
    }
}

impl Partial {
    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How much of the blob it has.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends what has come. From the first failure on, nothing is kept.
    pub(super) fn append(&mut self, data: &[u8]) {
        let Some(file) = &mut self.file else { return };
        match file.write_all(data) {
            Ok(()) => self.bytes += u64::try_from(data.len()).unwrap_or(u64::MAX),
            Err(err) => {
                tracing::debug!(path = %self.path.display(), %err, "keep no more of a download");
                self.remove();
            }
        }
    }

    /// Takes it away: the layer is whole, or the room is needed.
    pub(super) fn remove(&mut self) {
        self.file = None;
        remove(&self.path);
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.file.is_some() && self.bytes < WORTH_KEEPING {
            self.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn partials() -> (tempfile::TempDir, Partials, Content) {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::new(Arc::new(Store::open(dir.path()).unwrap()));
        (dir, partials, Content { digest: Digest::of(b"blob"), size: 3 << 20 })
    }

    fn open(partials: &Partials, content: &Content) -> Partial {
        partials.open(content, partials.lease(content).unwrap()).unwrap()
    }

    #[test]
    fn goes_on_where_it_ended_when_that_is_worth_it() {
        let (_dir, partials, content) = partials();
        let mut first = open(&partials, &content);
        let path = first.path().to_owned();
        first.append(&[1; 1000]);
        drop(first);
        assert!(!path.exists(), "a thousand bytes are not worth it");
        let mut second = open(&partials, &content);
        second.append(&vec![1; 1 << 20]);
        drop(second);
        let mut third = open(&partials, &content);
        assert_eq!(third.bytes(), 1 << 20);
        third.append(b"more");
        assert_eq!(fs::metadata(&path).unwrap().len(), (1 << 20) + 4);
        third.remove();
        assert!(!path.exists());
    }

    #[test]
    fn is_written_by_one_transfer_and_not_swept_from_under_it() {
        let (_dir, partials, content) = partials();
        let mut one = open(&partials, &content);
        one.append(&vec![1; 2 << 20]);
        assert!(partials.lease(&content).is_none());
        assert_eq!(partials.remove_idle(), 0);
        drop(one);
        assert_eq!(partials.remove_idle(), 2 << 20);
        assert!(partials.lease(&content).is_some());
        assert!(partials.lease(&Content { size: 1000, ..content }).is_none(), "a small blob");
    }

    #[test]
    fn what_is_old_or_too_long_is_not_gone_on_with() {
        let (_dir, partials, content) = partials();
        let path = partials.store.layout().partial(&content.digest);
        fs::write(&path, vec![0; 4 << 20]).unwrap();
        assert_eq!(open(&partials, &content).bytes(), 0);
        let other = partials.store.layout().partial(&Digest::of(b"other"));
        for (age, stays) in [(OLD / 2, true), (OLD + Duration::from_secs(9), false)] {
            let file = File::create(&other).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + SystemTime::UNIX_EPOCH.elapsed().unwrap() - age).unwrap();
            drop(open(&partials, &content));
            assert_eq!(other.exists(), stays, "{age:?}");
        }
    }
}
