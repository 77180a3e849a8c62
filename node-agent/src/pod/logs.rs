//! Which file a request for a container's log means, and when nothing will be added to it any more.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

use super::{container_spec, publisher::Publisher};
use crate::runtime::{Container, ContainerState, Runtime, RuntimeError};

/// Which run of a container is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// The newest that has a log.
    Current,
    /// The one before.
    Previous,
}

/// There is no such log.
#[derive(Debug, thiserror::Error)]
pub enum FindLogError {
    /// No such pod.
    #[error("pod {uid} is not known")]
    NoPod {
        /// The pod.
        uid: String,
    },
    /// No such container.
    #[error("container {container:?} is not in pod {pod:?}")]
    NoContainer {
        /// The container.
        container: String,
        /// The pod's name.
        pod: String,
    },
    /// The container never ran.
    #[error("container {container:?} in pod {pod:?} is waiting to start")]
    NotStarted {
        /// The container.
        container: String,
        /// The pod's name.
        pod: String,
    },
    /// The container ran only once.
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious {
        /// The container.
        container: String,
        /// The pod's name.
        pod: String,
    },
    /// The folder cannot be read.
    #[error("list logs in {}", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The containers cannot be listed.
    #[error("list containers")]
    Runtime(#[from] RuntimeError),
}

/// A log.
#[derive(Debug)]
pub struct FoundLog {
    /// The file that is written, or was until the container ended.
    pub path: PathBuf,
    /// Its container, if it is still there.
    container: Option<Container>,
}

impl FoundLog {
    /// Resolves when nothing will be added to the log any more.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let state = self.container.as_ref().map(|container| container.state.clone());
        async move {
            let Some(mut state) = state else { return };
            // An error means that the container was removed, which it is only after it has ended.
            drop(state.wait_for(|state| matches!(state, ContainerState::Exited(_))).await);
        }
    }
}

/// Finds logs.
#[derive(Debug, Clone)]
pub struct LogSource {
    publisher: Publisher,
    runtime: Arc<dyn Runtime>,
    log_root: PathBuf,
}

impl LogSource {
    /// For the pods of `publisher`, whose containers run in `runtime` and log below `log_root`.
    pub fn new(publisher: Publisher, runtime: Arc<dyn Runtime>, log_root: PathBuf) -> Self {
        Self { publisher, runtime, log_root }
    }

    /// Finds a log.
    ///
    /// # Errors
    /// When there is none.
    pub async fn find(&self, uid: &str, container: &str, run: Run) -> Result<FoundLog, FindLogError> {
        let snapshot = self.publisher.get(uid).ok_or_else(|| FindLogError::NoPod { uid: uid.to_owned() })?;
        let (name, pod) = (container.to_owned(), snapshot.identity.name.clone());
        let Some(status) = status_of(&snapshot.status, container) else {
            return Err(FindLogError::NoContainer { container: name, pod });
        };
        let folder = container_spec::log_folder(&self.log_root, &snapshot.identity).join(container);
        let runs = runs_in(&folder).map_err(|source| FindLogError::List { path: folder.clone(), source })?;
        let attempt = match run {
            Run::Current => runs.last().copied().ok_or(FindLogError::NotStarted { container: name, pod })?,
            Run::Previous => previous(status, &runs).ok_or(FindLogError::NoPrevious { container: name, pod })?,
        };
        let is_meant = |other: &Container| other.pod.uid == uid && other.name == container && other.attempt == attempt;
        let container = self.runtime.list().await?.into_iter().find(is_meant);
        Ok(FoundLog { path: folder.join(format!("{attempt}.log")), container })
    }
}

fn status_of<'a>(status: &'a PodStatus, container: &str) -> Option<&'a ContainerStatus> {
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == container)
}

/// The run before the current one. A container that waits to be started again has no current one: its newest log is that of
/// the run before.
fn previous(status: &ContainerStatus, runs: &[u32]) -> Option<u32> {
    let waits = status.state.as_ref().is_some_and(|state| state.waiting.is_some());
    let has_run = status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
    let mut newest_first = runs.iter().rev().copied();
    if waits && has_run { newest_first.next() } else { newest_first.nth(1) }
}

/// The runs that have a log in `folder`, in order.
fn runs_in(folder: &Path) -> io::Result<Vec<u32>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut runs = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        runs.extend(name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u32>().ok()));
    }
    runs.sort_unstable();
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerState as State, ContainerStateTerminated, ContainerStateWaiting};
    use rstest::rstest;

    use super::*;

    fn status(waits: bool, has_run: bool) -> ContainerStatus {
        let waiting = waits.then(ContainerStateWaiting::default);
        let terminated = has_run.then(ContainerStateTerminated::default);
        ContainerStatus {
            state: Some(State { waiting, ..State::default() }),
            last_state: Some(State { terminated, ..State::default() }),
            ..ContainerStatus::default()
        }
    }

    #[rstest]
    #[case::first_run(status(false, false), &[0], None)]
    #[case::never_ran(status(true, false), &[], None)]
    #[case::second_run(status(false, true), &[0, 1], Some(0))]
    #[case::waiting_to_run_again(status(true, true), &[0, 1], Some(1))]
    #[case::an_old_log_was_removed(status(false, true), &[4], None)]
    fn the_run_before(#[case] status: ContainerStatus, #[case] runs: &[u32], #[case] expected: Option<u32>) {
        assert_eq!(previous(&status, runs), expected);
    }

    #[test]
    fn runs_are_found_by_their_logs() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["10.log", "9.log", "9.log.20240101-000000.0", "x.log", "note"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(runs_in(dir.path()).unwrap(), [9, 10]);
        assert_eq!(runs_in(&dir.path().join("missing")).unwrap(), Vec::<u32>::new());
    }
}
