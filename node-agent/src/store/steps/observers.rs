//! Who looks at the steps, in tests.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Step;

/// A step, owned: paths in full, a synced file with what it held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    File(PathBuf),
    Directory(PathBuf),
    SyncFile(PathBuf, Vec<u8>),
    SyncDirectory(PathBuf),
    SyncTree(PathBuf, Copied),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Mark(&'static str),
}

/// A directory as it was, with all in it.
#[derive(Debug, Clone)]
pub(crate) struct Copied(Arc<tempfile::TempDir>);

impl Copied {
    fn of(path: &Path) -> Self {
        let copied = Self(Arc::new(tempfile::tempdir().expect("temporary directory")));
        copy(path, &copied.path());
        copied
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("copy")
    }

    /// Makes the directory again at this path.
    pub(crate) fn put(&self, path: &Path) {
        copy(&self.path(), path);
    }
}

/// A moment has one copy.
impl PartialEq for Copied {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Copied {}

/// With all metadata.
fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp is installed");
    assert!(copied.success(), "{}: {copied}", from.display());
}

type Steps = Arc<Mutex<Vec<Seen>>>;

/// Writes down every step below a folder while it lives.
#[derive(Debug)]
pub(crate) struct Recorder {
    folder: PathBuf,
    steps: Steps,
}

/// All recorders of this process: its tests run side by side, each in a folder of its own.
static RECORDERS: Mutex<Vec<(PathBuf, Steps)>> = Mutex::new(Vec::new());

impl Recorder {
    pub(crate) fn below(folder: &Path) -> Self {
        let (folder, steps) = (folder.to_owned(), Steps::default());
        RECORDERS.lock().unwrap_or_else(PoisonError::into_inner).push((folder.clone(), Arc::clone(&steps)));
        Self { folder, steps }
    }

    /// Adds a step of the test's own: what is durable from here on.
    pub(crate) fn mark(&self, what: &'static str) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(Seen::Mark(what));
    }

    pub(crate) fn steps(&self) -> Vec<Seen> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        RECORDERS.lock().unwrap_or_else(PoisonError::into_inner).retain(|(folder, _)| *folder != self.folder);
    }
}

pub(super) fn tell(step: Step<'_>) {
    crash(step);
    let recorders = RECORDERS.lock().unwrap_or_else(PoisonError::into_inner);
    if recorders.is_empty() {
        return;
    }
    if let Step::SyncTree(path) = step
        && !recorders.iter().any(|(folder, _)| path.starts_with(folder))
    {
        // A copy is made of what is looked at only.
        return;
    }
    let seen = own(step);
    for (folder, steps) in recorders.iter() {
        if seen.path().is_some_and(|path| path.starts_with(folder)) {
            steps.lock().unwrap_or_else(PoisonError::into_inner).push(seen.clone());
        }
    }
}

fn own(step: Step<'_>) -> Seen {
    match step {
        Step::File(path) => Seen::File(path.to_owned()),
        Step::Directory(path) => Seen::Directory(path.to_owned()),
        Step::SyncFile(file) => {
            use std::os::fd::AsRawFd as _;
            let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
            let path = std::fs::read_link(&descriptor).expect("path of an open file");
            Seen::SyncFile(path, std::fs::read(&descriptor).expect("read what was synced"))
        }
        Step::SyncDirectory(path) => Seen::SyncDirectory(path.to_owned()),
        Step::SyncTree(path) => Seen::SyncTree(path.to_owned(), Copied::of(path)),
        Step::Rename(from, to) => Seen::Rename(from.to_owned(), to.to_owned()),
        Step::Remove(path) => Seen::Remove(path.to_owned()),
        Step::Mark(what) => Seen::Mark(what),
    }
}

impl Seen {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path)
            | Self::Directory(path)
            | Self::SyncFile(path, _)
            | Self::SyncDirectory(path)
            | Self::SyncTree(path, _)
            | Self::Rename(path, _)
            | Self::Remove(path) => Some(path),
            Self::Mark(_) => None,
        }
    }
}

/// Names the step after which this process ends itself, counted from 1.
pub(crate) const CRASH_AFTER: &str = "LARDER_CRASH_AFTER";

/// Ends the process, by SIGKILL and so without a last word, after the step that [`CRASH_AFTER`] names.
fn crash(step: Step<'_>) {
    static WANTED: OnceLock<Option<u64>> = OnceLock::new();
    static PASSED: Mutex<u64> = Mutex::new(0);
    let wanted = WANTED.get_or_init(|| std::env::var(CRASH_AFTER).ok()?.parse().ok());
    let Some(wanted) = wanted else { return };
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    *passed += 1;
    if *passed == *wanted {
        let _ = writeln!(std::io::stderr(), "ending after step {wanted}: {step:?}");
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL).expect("end this process");
    }
}
