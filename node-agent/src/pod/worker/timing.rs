//! How long the steps of a start took, told in one log line once all containers run.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use tracing::info;

use crate::{
    meters::{Meters, StartStep},
    runtime::PodIdentity,
};

/// Steps of one start; of those that were taken more than once, the longest.
#[derive(Debug)]
pub(super) struct Timing {
    begun: Instant,
    steps: HashMap<StartStep, Duration>,
    told: bool,
}

impl Timing {
    pub(super) fn begin(now: Instant) -> Self {
        Self { begun: now, steps: HashMap::new(), told: false }
    }

    /// A start that this process did not see begin is not told.
    pub(super) fn skip(&mut self) {
        self.told = true;
    }

    pub(super) fn note(&mut self, step: StartStep, took: Duration) {
        let longest = self.steps.entry(step).or_default();
        *longest = (*longest).max(took);
    }

    /// All containers run, and it has been told, which took `telling`.
    pub(super) fn all_run(&mut self, pod: &PodIdentity, meters: &Meters, telling: Duration) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        self.note(StartStep::Total, self.begun.elapsed());
        self.note(StartStep::Status, telling);
        self.steps.iter().for_each(|(step, took)| meters.start_step(*step, *took));
        let step = |step| milliseconds(self.steps.get(&step).copied().unwrap_or_default());
        info!(
            target: "larder::start",
            pod_uid = pod.uid,
            namespace = pod.namespace,
            pod = pod.name,
            event_to_run_ms = step(StartStep::Total),
            queue_ms = step(StartStep::Queue),
            sandbox_ms = step(StartStep::Sandbox),
            volumes_ms = step(StartStep::Volumes),
            image_ms = step(StartStep::Image),
            runtime_ms = step(StartStep::Runtime),
            status_ms = step(StartStep::Status),
            "pod runs"
        );
    }
}

/// Milliseconds to the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}
