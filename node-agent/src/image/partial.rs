//! Downloads in progress: what has come of a blob, compressed as it came, in `ingest/<digest>.partial`.
//!
//! A transfer goes on from such a file after the agent was killed, or when the pod is tried again. Nothing in it is
//! trusted: it is hashed again from the start, so it may be torn by a power cut. It is written by one transfer at a time,
//! and a file that cannot be written is no reason to stop: then nothing is kept. Everything here blocks.
//!
//! What comes so fast that it is sooner fetched again is not kept: to write it down as well would slow down the pull that
//! it is meant to save. The first megabytes wait in memory until that can be told.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::pull_plan::Content;
use crate::{
    digest::Digest,
    store::{
        Store, durable,
        layout::{PARTIAL, named_by},
        steps::{Step, passed},
    },
};

/// Less than this is fetched again sooner than it is kept.
const WORTH_KEEPING: u64 = 1 << 20;
/// After so many bytes it is told how long the whole will take. They wait in memory until then, for each layer under way.
const JUDGED_AFTER: u64 = 4 << 20;
/// A file that nobody has added to for so long is not gone on with: tags have moved on.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// The partial downloads of a store.
#[derive(Debug, Clone)]
pub(super) struct Partials {
    store: Arc<Store>,
    leased: Arc<Mutex<HashSet<Digest>>>,
    /// Downloads that take longer are kept.
    over: Duration,
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

/// One blob's file, to be added to. One that did not become worth keeping goes away with this value.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    keeping: Keeping,
    /// In the file.
    bytes: u64,
    pace: Pace,
    _lease: Lease,
}

/// Whether a download is kept.
#[derive(Debug)]
enum Keeping {
    /// That cannot be told yet. What has come waits here, shared with who inflates it.
    Undecided(Vec<Bytes>),
    /// It is, in this file.
    Kept(File),
    /// It is not.
    NotKept,
}

/// How fast a download is.
#[derive(Debug, Clone, Copy)]
struct Pace {
    begun: Instant,
    size: u64,
    over: Duration,
}

impl Pace {
    /// Whether a download of which so many bytes have come takes longer than what is fetched again; none as long as that
    /// cannot be told.
    fn is_slow(&self, bytes: u64, now: Instant) -> Option<bool> {
        let elapsed = now.saturating_duration_since(self.begun);
        if elapsed >= self.over {
            return Some(true);
        }
        // The whole takes as many times longer as it has more bytes.
        let slow = elapsed.as_nanos() * u128::from(self.size) >= self.over.as_nanos() * u128::from(bytes);
        (bytes >= JUDGED_AFTER).then_some(slow)
    }
}

impl Partials {
    /// Keeps downloads that take longer than `over`.
    pub(super) fn new(store: Arc<Store>, over: Duration) -> Self {
        Self { store, leased: Arc::default(), over }
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

    /// Finds what is kept of a blob, for more to be added, and removes files that have grown old. None when it cannot be
    /// had.
    pub(super) fn open(&self, content: &Content, lease: Lease) -> Option<Partial> {
        self.sweep(|age| age > OLD);
        let path = self.store.layout().partial(&content.digest);
        let kept = match kept(&path, content.size) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        };
        let kept = kept.inspect_err(|err| tracing::debug!(path = %path.display(), %err, "keep nothing")).ok()?;
        let (keeping, bytes) = match kept {
            Some((file, bytes)) => (Keeping::Kept(file), bytes),
            None => (Keeping::Undecided(Vec::new()), 0),
        };
        let pace = Pace { begun: Instant::now(), size: content.size, over: self.over };
        Some(Partial { path, keeping, bytes, pace, _lease: lease })
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
            let Some(digest) = named_by(&path, PARTIAL) else { continue };
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

/// The file of an earlier transfer, and its length.
fn kept(path: &Path, size: u64) -> io::Result<(File, u64)> {
    let file = File::options().append(true).open(path)?;
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
    pub(super) fn append(&mut self, data: &Bytes) {
        match &mut self.keeping {
            Keeping::NotKept => {}
            Keeping::Kept(_) => self.write(data),
            Keeping::Undecided(held) => {
                held.push(data.clone());
                let bytes: u64 = held.iter().map(|data| data.len() as u64).sum();
                match self.pace.is_slow(bytes, Instant::now()) {
                    None => {}
                    Some(false) => self.keeping = Keeping::NotKept,
                    Some(true) => self.begin(),
                }
            }
        }
    }

    /// Begins the file with what has come so far.
    fn begin(&mut self) {
        let file = match File::options().create(true).append(true).open(&self.path) {
            Ok(file) => file,
            Err(err) => {
                tracing::debug!(path = %self.path.display(), %err, "keep nothing");
                self.keeping = Keeping::NotKept;
                return;
            }
        };
        passed(Step::File(&self.path));
        if let Keeping::Undecided(held) = std::mem::replace(&mut self.keeping, Keeping::Kept(file)) {
            held.iter().for_each(|data| self.write(data));
        }
    }

    fn write(&mut self, data: &Bytes) {
        let Keeping::Kept(file) = &mut self.keeping else { return };
        match file.write_all(data) {
            Ok(()) => {
                let before = self.bytes / WORTH_KEEPING;
                self.bytes += u64::try_from(data.len()).unwrap_or(u64::MAX);
                if self.bytes / WORTH_KEEPING > before {
                    passed(Step::Mark("more of a download is kept"));
                }
            }
            Err(err) => {
                tracing::debug!(path = %self.path.display(), %err, "keep no more of a download");
                self.remove();
            }
        }
    }

    /// Takes it away: the layer is whole, or the room is needed.
    pub(super) fn remove(&mut self) {
        if let Keeping::Kept(_) = std::mem::replace(&mut self.keeping, Keeping::NotKept) {
            remove(&self.path);
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.bytes < WORTH_KEEPING {
            self.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn partials() -> (tempfile::TempDir, Partials, Content) {
        partials_over(Duration::ZERO)
    }

    fn partials_over(over: Duration) -> (tempfile::TempDir, Partials, Content) {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::new(Arc::new(Store::open(dir.path()).unwrap()), over);
        (dir, partials, Content { digest: Digest::of(b"blob"), size: 3 << 20 })
    }

    fn ones(length: usize) -> Bytes {
        vec![1; length].into()
    }

    fn open(partials: &Partials, content: &Content) -> Partial {
        partials.open(content, partials.lease(content).unwrap()).unwrap()
    }

    #[test]
    fn goes_on_where_it_ended_when_that_is_worth_it() {
        let (_dir, partials, content) = partials();
        let mut first = open(&partials, &content);
        let path = first.path().to_owned();
        first.append(&ones(1000));
        drop(first);
        assert!(!path.exists(), "a thousand bytes are not worth it");
        let mut second = open(&partials, &content);
        second.append(&ones(1 << 20));
        drop(second);
        let mut third = open(&partials, &content);
        assert_eq!(third.bytes(), 1 << 20);
        third.append(&Bytes::from_static(b"more"));
        assert_eq!(fs::metadata(&path).unwrap().len(), (1 << 20) + 4);
        third.remove();
        assert!(!path.exists());
    }

    #[test]
    fn is_written_by_one_transfer_and_not_swept_from_under_it() {
        let (_dir, partials, content) = partials();
        let mut one = open(&partials, &content);
        one.append(&ones(2 << 20));
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

    #[test]
    fn what_comes_fast_is_not_kept() {
        let (_dir, partials, content) = partials_over(Duration::from_secs(3600));
        let mut fast = open(&partials, &Content { size: 5 << 20, ..content });
        let path = fast.path().to_owned();
        for _ in 0..5 {
            fast.append(&ones(1 << 20));
            assert!(!path.exists());
        }
        assert_eq!(fast.bytes(), 0);
        drop(fast);
        // What is kept already goes on, however fast.
        fs::write(&path, vec![1; 2 << 20]).unwrap();
        let mut further = open(&partials, &content);
        further.append(&ones(1 << 20));
        assert_eq!((further.bytes(), fs::metadata(&path).unwrap().len()), (3 << 20, 3 << 20));
    }

    #[test]
    fn what_turns_out_to_be_slow_is_kept_from_its_first_byte_on() {
        let (_dir, partials, content) = partials_over(Duration::from_secs(3600));
        let mut slow = open(&partials, &content);
        slow.append(&ones(1000));
        assert!(!slow.path().exists());
        slow.pace.over = Duration::ZERO;
        slow.append(&ones(1 << 20));
        assert_eq!((slow.bytes(), fs::metadata(slow.path()).unwrap().len()), (1000 + (1 << 20), 1000 + (1 << 20)));
    }

    #[test]
    fn a_pace_is_told_after_some_bytes_or_some_time() {
        let begun = Instant::now();
        let pace = Pace { begun, size: 100 << 20, over: Duration::from_secs(5) };
        let is_slow = |bytes: u64, milliseconds| pace.is_slow(bytes, begun + Duration::from_millis(milliseconds));
        // 4 MiB in 100 ms are 2.5 s for the whole, in 250 ms 6.25 s.
        assert_eq!(is_slow(4 << 20, 100), Some(false));
        assert_eq!(is_slow(4 << 20, 250), Some(true));
        assert_eq!(is_slow(1 << 20, 4999), None);
        assert_eq!(is_slow(1, 5000), Some(true));
        assert_eq!(Pace { over: Duration::ZERO, ..pace }.is_slow(0, begun), Some(true));
    }
}
