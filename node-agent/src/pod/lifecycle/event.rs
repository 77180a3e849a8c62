//! What can happen to a pod.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use jiff::Timestamp;

use super::{Failure, Run};
use crate::{pod::storage::Overuse, runtime::ContainerExit};

/// Something that has happened. Containers and images are named by their place in the [`Plan`](super::Plan).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The worker has begun, or time has passed.
    Tick,
    /// The sandbox is there.
    SandboxReady,
    /// It is not.
    SandboxFailed,
    /// The volumes are there.
    VolumesReady,
    /// They are not.
    VolumesFailed,
    /// The registry is being asked for an image.
    ImagePulling(usize),
    /// An image is here.
    ImageReady(usize),
    /// It is not.
    ImageFailed(usize, Failure),
    /// The wish for it was taken back.
    ImageCancelled(usize),
    /// A start was taken back before anything was done.
    StartCancelled(usize),
    /// A container could not be created.
    StartFailed(usize, Failure),
    /// The runtime is at work.
    Launched(usize, Run),
    /// The container's process runs.
    Running(usize, Timestamp),
    /// The container has ended.
    Exited(usize, ContainerExit),
    /// What the pod refers to has changed: what failed may work now.
    Updated,
    /// A container's image has changed; its place in the plan is up to date.
    Replaced(usize),
    /// It takes more of the host's disk than it may.
    Overused(Overuse),
    /// The pod is to end, with this much time to do so; none for the pod's own.
    Stop(Option<Duration>),
    /// The sandbox is given back.
    SandboxReleased,
    /// It is not.
    SandboxReleaseFailed,
    /// The volumes are given back.
    VolumesReleased,
    /// They are not.
    VolumesReleaseFailed,
    /// What was left of the containers is gone.
    ContainersRemoved,
    /// It is not.
    ContainersRemoveFailed,
    /// Record and logs are gone.
    Forgotten,
    /// They are not.
    ForgetFailed,
}
