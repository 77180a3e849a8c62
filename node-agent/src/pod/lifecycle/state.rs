//! Where a pod, its images and its containers stand.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    pod::{restart::BackOff, storage::Overuse},
    runtime::{ContainerExit, users::ProcessUser},
};

/// Where the pod stands as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Coming up or running.
    Active,
    /// Its processes are being ended.
    Stopping {
        /// When what still runs is killed (again).
        kill_at: Timestamp,
        /// What follows.
        then: Then,
    },
    /// All containers have ended for good; log and status stay until StopPod.
    Terminal(Cause),
    /// Everything that is left is being taken away.
    Removing,
    /// Nothing is left.
    Gone,
}

/// What follows once the processes are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Keep log and status.
    Keep(Cause),
    /// Take everything away.
    Remove,
}

/// Why a pod is terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its containers ended.
    Finished,
    /// `activeDeadlineSeconds` passed.
    DeadlineExceeded,
    /// It took more of the host's disk than it may.
    Evicted(Overuse),
}

/// A wait before something is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// When.
    pub at: Timestamp,
    /// How long the wait is in all.
    pub delay: Duration,
}

/// An image that containers of the pod run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// Nobody has asked for it yet.
    Absent,
    /// Asked for.
    Ensuring {
        /// The registry is at work, so it may take long.
        pulling: bool,
        /// The delay before this try; none for the first.
        after: Option<Duration>,
    },
    /// Here, and held by the pod.
    Here,
    /// Not to be had; tried again.
    Failed {
        /// Reason and message.
        failure: Failure,
        /// From when on the back-off is what shows; absent once it does.
        error_shows_until: Option<Timestamp>,
        /// When it is asked for again.
        retry: Retry,
    },
}

/// Why something did not work: the reason and message of a waiting container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `CreateContainerConfigError`, `ErrImagePull` ...
    pub reason: String,
    /// For people.
    pub message: String,
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The runtime's name for it; empty for a run of which only the API server remembers.
    pub id: String,
    /// 0 for the first run.
    pub attempt: u32,
    /// The image's reference in full.
    pub image: String,
    /// `repository@sha256:...`.
    pub image_id: String,
    /// Who its first process ran as, as far as that is known.
    pub user: Option<ProcessUser>,
    /// How it ended, once it has.
    pub exit: Option<ContainerExit>,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Its turn has not come, or something that it needs is missing.
    Waiting,
    /// Being started; no process of it exists yet.
    Starting,
    /// The runtime is at work; a process may exist.
    Launched,
    /// Its process runs.
    Running {
        /// Since when.
        since: Timestamp,
        /// It has been asked to end.
        stop_sent: bool,
    },
    /// It could not be created; tried again.
    StartFailed {
        /// Reason and message.
        failure: Failure,
        /// When it is tried again.
        retry: Retry,
    },
    /// It has ended and runs again later.
    BackOff {
        /// When.
        retry: Retry,
        /// Until when the failure to start is what shows; absent when there was none, or once the back-off shows.
        error_shows_until: Option<Timestamp>,
    },
    /// It has ended for good.
    Ended,
}

/// A container and its past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it stands.
    pub phase: Phase,
    /// The newest run.
    pub current: Option<Run>,
    /// The run before.
    pub previous: Option<Run>,
    /// What is remembered of its restarts.
    pub back_off: Option<BackOff>,
    /// Its image has changed: it is ended, and runs again on the new one. When it is killed (again).
    pub replaced: Option<Timestamp>,
}

impl Node {
    /// A container that has never run.
    pub fn new() -> Self {
        Self { phase: Phase::Waiting, current: None, previous: None, back_off: None, replaced: None }
    }

    /// Number of the run that starts next.
    pub fn next_attempt(&self) -> u32 {
        self.current.as_ref().map_or(0, |run| run.attempt.saturating_add(1))
    }

    /// The newest run that there is something to say of, and the one before it. A run of which no process has been seen
    /// yet does not hide how the last one ended.
    pub fn shown_runs(&self) -> (Option<&Run>, Option<&Run>) {
        match self.phase {
            Phase::Launched => (self.previous.as_ref(), None),
            Phase::Waiting
            | Phase::Starting
            | Phase::Running { .. }
            | Phase::StartFailed { .. }
            | Phase::BackOff { .. }
            | Phase::Ended => (self.current.as_ref(), self.previous.as_ref()),
        }
    }

    /// It has ended for good, and well.
    pub(super) fn succeeded(&self) -> bool {
        matches!(self.phase, Phase::Ended)
            && self.current.as_ref().and_then(|run| run.exit.as_ref()).is_some_and(|exit| exit.exit_code == 0)
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}
