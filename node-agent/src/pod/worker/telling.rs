//! What a worker tells of its pod: events, statuses, and what goes on record for a later life of the agent.

use k8s_openapi::api::core::v1::PodStatus;
use tokio::time::Instant;
use tracing::{error, info};

use super::{SETTLE_FOR, Worker};
use crate::{
    chain::Chain,
    pod::{
        events::{self, Notice, PodEvent},
        ledger::Record,
        lifecycle::{ContainerKind, Part, Stage},
        publisher::PodSnapshot,
        status,
    },
    runtime::PodIdentity,
};

impl Worker {
    pub(super) fn announce_pull_back_off(&mut self, image: usize) {
        let Some(reference) = self.image_wishes.get(image).map(|image| image.reference.clone()) else { return };
        for index in self.users_of(image) {
            self.tell_event(Some(index), events::pull_back_off(&reference));
            self.tell_event(Some(index), events::failed("ImagePullBackOff"));
        }
    }

    pub(super) fn announce_crash_loop(&mut self, index: usize) {
        let Some(container) = self.wish.container(index) else { return };
        let notice = events::crash_loop(&container.name, &status::describe(&self.wish.pod));
        self.tell_event(Some(index), notice);
    }

    /// The containers that run on an image of the plan.
    pub(super) fn users_of(&self, image: usize) -> Vec<usize> {
        let containers = self.machine.plan.containers.iter().enumerate();
        containers.filter(|(_, plan)| plan.image == image).map(|(index, _)| index).collect()
    }

    pub(super) fn tell_event(&self, index: Option<usize>, notice: Notice) {
        let container = index.and_then(|index| self.wish.container(index).map(|container| (index, container)));
        let field_path = container.map_or_else(String::new, |(index, container)| {
            let kind = match self.machine.plan.containers[index].kind {
                ContainerKind::Init => "initContainers",
                ContainerKind::App => "containers",
            };
            format!("spec.{kind}{{{}}}", container.name)
        });
        let PodIdentity { uid, namespace, name } = self.identity.clone();
        let time = self.host.parts.clock.now();
        self.host.parts.publisher.event(PodEvent { uid, namespace, name, field_path, notice, time });
    }

    /// A status that is about to change again is held back for a moment.
    pub(super) fn tell_when_due(&mut self) {
        let Some(since) = self.untold_since else { return };
        if self.machine.in_flight() && since.elapsed() < SETTLE_FOR {
            return;
        }
        self.untold_since = None;
        let begun = Instant::now();
        let status = self.compute_status();
        let terminated = self.machine.is_terminated();
        if status != self.status || terminated != self.told_terminated {
            self.told_terminated = terminated;
            self.status = status;
            self.generation += 1;
            self.record_if_changed();
            self.host.parts.publisher.changed(self.snapshot());
        }
        if self.status.phase.as_deref() == Some("Running") {
            self.timing.all_run(&self.identity, &self.host.parts.meters, begun.elapsed());
        }
    }

    fn compute_status(&self) -> PodStatus {
        let facts = status::Facts {
            ips: self.sandbox.as_ref().map_or(&[], |sandbox| &sandbox.ips),
            runtime: &self.host.runtime_name,
            started_at: self.started_at,
            now: self.host.parts.clock.now(),
        };
        status::status(&self.wish.pod, &self.status, &self.machine, &facts)
    }

    fn snapshot(&self) -> PodSnapshot {
        PodSnapshot {
            identity: self.identity.clone(),
            generation: self.generation,
            status: self.status.clone(),
            terminated: self.machine.is_terminated(),
        }
    }

    /// Shows the pod in the list of pods; what there is to tell of it comes when the start has settled.
    pub(crate) fn introduce(&self) {
        self.host.parts.publisher.introduce(self.snapshot());
    }

    /// Tells where a pod stands that was taken up while others are watching, if they do not know of it.
    pub(crate) fn make_known(&self) {
        if self.host.parts.publisher.get(&self.identity.uid).is_none() {
            self.host.parts.publisher.changed(self.snapshot());
        }
    }

    /// Writes what has become of the pod, if it is not on record yet.
    pub(super) fn record_if_changed(&mut self) {
        let record = Record {
            generation: self.generation,
            started_at: self.started_at,
            status: self.status.clone(),
            stage: self.machine.stage,
            nodes: self.machine.nodes.clone(),
        };
        if self.machine.stage == Stage::Gone || self.on_record.as_ref() == Some(&record) {
            return;
        }
        if self.machine.record == Part::Releasing {
            return;
        }
        // On tmpfs: as long as memory takes.
        match self.host.parts.ledger.write_record(&self.identity.uid, &record) {
            Ok(()) => self.on_record = Some(record),
            Err(error) => error!(pod_uid = self.identity.uid, error = %Chain(&error), "write record of pod"),
        }
    }

    pub(super) fn say_farewell(&mut self) {
        self.status = self.compute_status();
        self.generation += 1;
        self.host.parts.publisher.gone(self.snapshot());
        info!(pod_uid = self.identity.uid, "pod is gone");
    }
}
