//! What to do next for a pod, given what has happened so far.
//!
//! ```text
//!            every container ended for good                                 StopPod
//!  Active ───────────────────────────────────────────────────> Terminal ──────────┐
//!    │                                                             ^              v
//!    │ StopPod, deadline, overuse               processes gone     │           Removing ──> Gone
//!    └─────────────────────────> Stopping ─────────────────────────┴──────────────^
//! ```
//!
//! In `Active` the sandbox, the volumes and the images are made at the same time; init containers run in order, then all
//! app containers at once. In `Stopping` nothing new is begun, what runs is asked to end and killed at the deadline. In
//! `Terminal` sandbox and volumes are given back, log and status stay. `Removing` takes the rest away.
//!
//! Each event is legal in each state; what no longer matters does nothing. Steps follow from the state alone
//! ([`Machine::advance`]), so a step that failed is simply found due again.
//!
//! Pure: no I/O, no clock, no randomness.

mod advance;
mod event;
mod part;
mod plan;
mod state;
mod step;
mod take_in;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;

pub use self::{
    event::Event,
    part::Part,
    plan::{ContainerKind, ContainerPlan, Plan},
    state::{Cause, Failure, Image, Node, Phase, Retry, Run, Stage, Then},
    step::Step,
};

/// The least time between SIGTERM and SIGKILL (`minimumGracePeriodInSeconds` of the kubelet).
pub const LEAST_GRACE: Duration = Duration::from_secs(2);

/// A pod's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// What it is to become.
    pub plan: Plan,
    /// Where it stands.
    pub stage: Stage,
    /// Its network and namespaces.
    pub sandbox: Part,
    /// Its volumes.
    pub volumes: Part,
    /// What is left of its containers on the host, apart from logs; `Absent` while they are in use.
    pub remains: Part,
    /// Its record and its logs; `Absent` while they are kept.
    pub record: Part,
    /// Its images, as in the plan.
    pub images: Vec<Image>,
    /// Its containers, as in the plan.
    pub nodes: Vec<Node>,
}

impl Machine {
    /// A pod of which nothing is there yet.
    pub fn new(plan: Plan) -> Self {
        let nodes = vec![Node::new(); plan.containers.len()];
        let images = vec![Image::Absent; plan.images];
        let (sandbox, volumes, remains, record) = (Part::Absent, Part::Absent, Part::Absent, Part::Absent);
        Self { plan, stage: Stage::Active, sandbox, volumes, remains, record, images, nodes }
    }

    /// Takes in an event and says what to do now.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Step> {
        let mut steps = self.take_in(event, now);
        steps.extend(self.advance(now));
        steps
    }

    /// True while a start is under way that is expected to end soon: a status told now would be told again in a moment.
    pub fn in_flight(&self) -> bool {
        if self.stage != Stage::Active {
            return false;
        }
        let parts = [&self.sandbox, &self.volumes].into_iter().any(|part| matches!(part, Part::Making { .. }));
        let images = self.images.iter().any(|image| matches!(image, Image::Ensuring { pulling: false, .. }));
        let starts = self.nodes.iter().any(|node| matches!(node.phase, Phase::Starting | Phase::Launched));
        parts || images || starts
    }

    /// True once every container has ended for good and no process is left.
    pub fn is_terminated(&self) -> bool {
        match self.stage {
            Stage::Terminal(_) | Stage::Removing | Stage::Gone => true,
            Stage::Active | Stage::Stopping { .. } => false,
        }
    }

    /// True when all init containers have succeeded.
    pub fn is_initialized(&self) -> bool {
        self.of_kind(ContainerKind::Init).all(|index| self.nodes[index].succeeded())
    }

    /// The containers of one kind, by index.
    pub(crate) fn of_kind(&self, kind: ContainerKind) -> impl Iterator<Item = usize> + '_ {
        (0..self.plan.containers.len()).filter(move |index| self.plan.containers[*index].kind == kind)
    }
}
