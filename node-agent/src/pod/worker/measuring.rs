//! Measuring what a pod takes of the host's disk, where it has a limit: there is no event for it, so it is looked at again
//! and again, as a kubelet does. Pods without a limit are never measured.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tracing::{Instrument as _, warn};

use super::{Worker, outcome::Outcome};
use crate::{
    chain::Chain,
    host::disk_use,
    pod::{
        container_spec,
        host::Host,
        lifecycle::{Event, Stage},
        storage::{self, DiskUse},
    },
    runtime::{ContainerId, RuntimeError},
};

/// The time between two measurements (the period of the kubelet's eviction manager).
const PERIOD: Duration = Duration::from_secs(10);

impl Worker {
    /// Sees to it that the pod is measured, if that is to be.
    pub(super) fn measure_later(&mut self) {
        if self.machine.stage == Stage::Active && storage::is_limited(&self.wish.pod) {
            self.tasks.spawn(async {
                tokio::time::sleep(PERIOD).await;
                Outcome::MeasureDue
            });
        }
    }

    pub(super) fn measure(&mut self) {
        let name_of = |index: usize| self.wish.container(index).map(|container| container.name.clone());
        let containers = self.containers.iter();
        let measurement = Measurement {
            host: Arc::clone(&self.host),
            uid: self.identity.uid.clone(),
            names: self.wish.containers().map(|container| container.name.clone()).collect(),
            containers: containers.filter_map(|(index, id)| Some((name_of(*index)?, id.clone()))).collect(),
            logs: container_spec::log_folder(&self.host.settings.log_root, &self.identity),
        };
        self.tasks.spawn(measurement.take().in_current_span());
    }

    pub(super) fn take_measure(&mut self, used: Option<DiskUse>) {
        if let Some(overuse) = used.and_then(|used| storage::overuse(&self.wish.pod, &used)) {
            self.take_in(Event::Overused(overuse));
        }
        self.measure_later();
    }
}

/// What has to be looked at.
struct Measurement {
    host: Arc<Host>,
    uid: String,
    /// Names of the containers.
    names: Vec<String>,
    /// The containers on the host, by name.
    containers: Vec<(String, ContainerId)>,
    /// The folder of the pod's logs.
    logs: PathBuf,
}

impl Measurement {
    async fn take(self) -> Outcome {
        // One pod after the other, so that many of them do not keep the disk from others. Nobody closes the semaphore.
        let Ok(_permit) = Arc::clone(&self.host.measurements).acquire_owned().await else {
            return Outcome::Measured(None);
        };
        let (host, containers) = (Arc::clone(&self.host), self.containers.clone());
        let uid = self.uid.clone();
        // Blocks for as long as the folders are large.
        let files = tokio::task::spawn_blocking(move || self.files());
        let Ok(Some(mut used)) = files.await else { return Outcome::Measured(None) };
        for (name, id) in containers {
            match host.parts.runtime.disk_use(&id).await {
                Ok(bytes) => *used.containers.entry(name).or_default() += bytes,
                // Removed meanwhile, as after its end.
                Err(RuntimeError::NotFound(_)) => {}
                Err(error) => {
                    warn!(pod_uid = uid, container = id.0, error = %Chain(&error), "measure container");
                    return Outcome::Measured(None);
                }
            }
        }
        Outcome::Measured(Some(used))
    }

    /// Volumes and logs.
    fn files(&self) -> Option<DiskUse> {
        let told = |error: &(dyn std::error::Error + 'static)| {
            warn!(pod_uid = self.uid, error = %Chain(error), "measure files of pod");
        };
        let mut used = self.host.parts.files.disk_use(&self.uid).inspect_err(|error| told(error)).ok()?;
        for name in &self.names {
            let bytes = disk_use::bytes_below(&self.logs.join(name)).inspect_err(|error| told(error)).ok()?;
            *used.containers.entry(name.clone()).or_default() += bytes;
        }
        Some(used)
    }
}
