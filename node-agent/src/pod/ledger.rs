//! What a restarted agent needs to find its pods again.
//!
//! Layout: `<run dir>/pods/<uid>/pod.json` is the wish as it came, `state.json` what has become of it. Both are written
//! whole to a file beside and then renamed, so a reader sees the old or the new. They hold secrets: the folder is on
//! tmpfs, mode 0700, the files 0600. After a reboot nothing is left, and nothing is claimed to be running.
//!
//! All calls block, for as long as memory takes: a few ten microseconds.

mod form;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::{
    lifecycle::{Node, Stage},
    wish::PodWish,
};
use crate::host::removal;

const WISH_FILE: &str = "pod.json";
const STATE_FILE: &str = "state.json";

/// What has become of a pod, as far as it must survive the agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The generation told last.
    pub generation: u64,
    /// When the agent took the pod on.
    pub started_at: Timestamp,
    /// The status told last.
    pub status: PodStatus,
    /// Where the pod stands as a whole.
    pub stage: Stage,
    /// Its containers, as in the plan.
    pub nodes: Vec<Node>,
}

/// A pod on record.
#[derive(Debug)]
pub struct Entry {
    /// The wish.
    pub wish: PodWish,
    /// What has become of it; absent when the agent was killed before it could say.
    pub record: Option<Record>,
}

/// The pods on record.
#[derive(Debug, Clone)]
pub struct Ledger {
    folder: PathBuf,
}

/// What can go wrong with the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The host refused.
    #[error("{action} {path}")]
    Io {
        /// `write` ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that this agent did not write, or not in this version.
    #[error("read {path}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl Ledger {
    /// The ledger below `<run dir>/pods`.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Puts a wish on record.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn write_wish(&self, uid: &str, wish: &PodWish) -> Result<(), LedgerError> {
        let folder = self.folder.join(uid);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&folder).map_err(io_error("create", &folder))?;
        write(&folder, WISH_FILE, |path| form::wish_to_json(wish).map_err(malformed(path)))
    }

    /// Writes what has become of a pod.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn write_record(&self, uid: &str, record: &Record) -> Result<(), LedgerError> {
        let folder = self.folder.join(uid);
        write(&folder, STATE_FILE, |path| form::record_to_json(record).map_err(malformed(path)))
    }

    /// UIDs of the pods that have left something here, whether it can be read or not.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn uids(&self) -> Result<Vec<String>, LedgerError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error("list", &self.folder))?,
        };
        let mut uids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("list", &self.folder))?;
            uids.extend(entry.file_name().into_string());
        }
        uids.sort();
        Ok(uids)
    }

    /// Reads one pod; none when no wish was put on record.
    ///
    /// # Errors
    /// When the wish cannot be read. A record that cannot be read counts as absent: containers and sandbox say enough.
    pub fn read(&self, uid: &str) -> Result<Option<Entry>, LedgerError> {
        let folder = self.folder.join(uid);
        let path = folder.join(WISH_FILE);
        let bytes = match fs::read(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(io_error("read", &path))?,
        };
        let wish = form::wish_from_json(&bytes).map_err(malformed(&path))?;
        let record = fs::read(folder.join(STATE_FILE)).ok();
        let record = record.and_then(|bytes| form::record_from_json(&bytes).ok());
        Ok(Some(Entry { wish, record }))
    }

    /// Forgets a pod. One that is not there is not an error.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn remove(&self, uid: &str) -> Result<(), LedgerError> {
        let folder = self.folder.join(uid);
        removal::remove_folder(&folder).map_err(io_error("remove", &folder))
    }
}

fn write(
    folder: &Path,
    name: &str,
    content: impl FnOnce(&Path) -> Result<Vec<u8>, LedgerError>,
) -> Result<(), LedgerError> {
    let path = folder.join(name);
    let content = content(&path)?;
    let unfinished = folder.join(format!("{name}.unfinished"));
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
    let mut file = file.map_err(io_error("create", &unfinished))?;
    file.write_all(&content).map_err(io_error("write", &unfinished))?;
    fs::rename(&unfinished, &path).map_err(io_error("write", &path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io { action, path, source }
}

fn malformed(path: &Path) -> impl FnOnce(serde_json::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Malformed { path, source }
}
