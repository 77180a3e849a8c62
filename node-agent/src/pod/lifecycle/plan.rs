//! What a pod is to become, as far as its order of steps goes.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use jiff::Timestamp;

use crate::pod::restart::RestartPolicy;

/// What a pod is to become, as far as its order of steps goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Init containers first, each group in the pod's order.
    pub containers: Vec<ContainerPlan>,
    /// How many distinct images the containers name.
    pub images: usize,
    /// When a container that has ended runs again.
    pub restart_policy: RestartPolicy,
    /// `terminationGracePeriodSeconds`.
    pub grace: Duration,
    /// `activeDeadlineSeconds`, as a point in time.
    pub deadline: Option<Timestamp>,
}

/// One container of a [`Plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerPlan {
    /// Init or app.
    pub kind: ContainerKind,
    /// Which of the plan's images it runs on.
    pub image: usize,
    /// Ask for the image again before each restart (`imagePullPolicy: Always`).
    pub pull_again: bool,
}

/// The two kinds of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerKind {
    /// Runs to its end before the next one starts.
    Init,
    /// Runs beside the others once all init containers are done.
    App,
}
