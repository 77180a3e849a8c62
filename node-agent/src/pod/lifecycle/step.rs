//! What can be done for a pod.
//!
//! Pure: no I/O, no clock, no randomness.

use crate::{pod::storage::Overuse, runtime::Signal};

/// Something to do. Most end with an [`Event`](super::Event).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ends with `SandboxReady` or `SandboxFailed`.
    MakeSandbox,
    /// Ends with `VolumesReady` or `VolumesFailed`.
    SetUpVolumes,
    /// Ends with `ImageReady`, `ImageFailed` or, after [`Step::CancelImages`], `ImageCancelled`.
    EnsureImage(usize),
    /// Take back all wishes for images that are under way.
    CancelImages,
    /// Ends with `Launched`, `StartFailed` or, after [`Step::CancelStarts`], `StartCancelled`.
    StartContainer(usize),
    /// Take back the starts that have not reached the runtime.
    CancelStarts,
    /// Send a signal; the end is seen as `Exited`.
    Signal(usize, Signal),
    /// Ask a container to end because it is to run on another image; the end is seen as `Exited`.
    Replace(usize),
    /// Remove everything of a container's runs that have ended, but their logs. Nothing waits for it.
    RemoveEnded(usize),
    /// Say that an image is not asked for again before its back-off ends.
    AnnouncePullBackOff(usize),
    /// Say that a container is not started again before its back-off ends.
    AnnounceCrashLoop(usize),
    /// Say that the pod has had its time.
    AnnounceDeadline,
    /// Say that the pod has to go because of what it takes of the disk.
    AnnounceEviction(Overuse),
    /// Ends with `SandboxReleased` or `SandboxReleaseFailed`.
    ReleaseSandbox,
    /// Ends with `VolumesReleased` or `VolumesReleaseFailed`.
    ReleaseVolumes,
    /// Ends with `ContainersRemoved` or `ContainersRemoveFailed`.
    RemoveContainers,
    /// Remove the pod's record and logs. Ends with `Forgotten` or `ForgetFailed`.
    Forget,
}
