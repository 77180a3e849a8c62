//! What the agent has to find again about a container after a restart, and where the files of a container are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::users::ProcessUser;
use super::{ContainerId, PodIdentity};

/// Name of the file with the [`Record`] in a container's run directory. A directory without it is of no container.
pub(super) const RECORD_FILE: &str = "container.json";

/// What is written down about a container before its runtime can start it. Fields are only ever added, with a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) pod_uid: String,
    pub(super) pod_namespace: String,
    pub(super) pod_name: String,
    pub(super) name: String,
    pub(super) attempt: u32,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    /// Who its first process runs as.
    #[serde(default)]
    pub(super) user: Option<UserRecord>,
    /// The number of the signal that asks it to end.
    pub(super) stop_signal: i32,
    /// Its cgroup, below the root of every hierarchy.
    pub(super) cgroup: String,
    pub(super) log_path: PathBuf,
}

/// The numbers of a [`ProcessUser`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UserRecord {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
}

impl From<ProcessUser> for UserRecord {
    fn from(user: ProcessUser) -> Self {
        Self { uid: user.uid, gid: user.gid, additional_gids: user.additional_gids }
    }
}

impl Record {
    pub(super) fn process_user(&self) -> Option<ProcessUser> {
        let UserRecord { uid, gid, additional_gids } = self.user.clone()?;
        Some(ProcessUser { uid, gid, additional_gids })
    }

    pub(super) fn container_id(&self) -> ContainerId {
        ContainerId(self.id.clone())
    }

    pub(super) fn pod(&self) -> PodIdentity {
        PodIdentity { uid: self.pod_uid.clone(), namespace: self.pod_namespace.clone(), name: self.pod_name.clone() }
    }
}

/// The directories of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerDirs {
    /// On a tmpfs: the record, the bundle, the monitor's files, and where the root file system is mounted.
    pub(super) run: PathBuf,
    /// On disk: what the container writes into its root file system.
    pub(super) writable: PathBuf,
}

impl ContainerDirs {
    pub(super) fn new(run_dir: &Path, writable_dir: &Path, id: &str) -> Self {
        Self { run: run_dir.join(id), writable: writable_dir.join(id) }
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.run.join("rootfs")
    }

    pub(super) fn upper(&self) -> PathBuf {
        self.writable.join("upper")
    }

    pub(super) fn work(&self) -> PathBuf {
        self.writable.join("work")
    }
}

/// Whether `id` can name a directory, and nothing outside of the one it is put into.
pub(super) fn is_usable_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=128).contains(&id.len()) && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_ids_are_used() {
        for id in ["a", "0f3b", "pod-1_x"] {
            assert!(is_usable_id(id), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a\0", "ä", &"x".repeat(129)] {
            assert!(!is_usable_id(id), "{id}");
        }
    }
}
