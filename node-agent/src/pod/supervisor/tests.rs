//! Pods on a host in memory. Here is what the tests share; each topic has a file.

mod adoption;
mod breaking;
mod life;
mod stop;

use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::pod::{
    fakes::{self, FakeHost, Pull},
    ledger::Ledger,
    publisher::{Change, PodSnapshot, Subscription},
};

/// An agent's pods on a host in memory.
struct Bench {
    folder: TempDir,
    host: Arc<FakeHost>,
    pods: Pods,
    told: Subscription,
    /// Reason and message of the events, in order.
    events: Vec<String>,
    ends: CancellationToken,
    running: JoinSet<()>,
}

impl Bench {
    async fn new() -> Self {
        Self::on(FakeHost::new(), tempfile::tempdir().unwrap()).await
    }

    async fn on(host: Arc<FakeHost>, folder: TempDir) -> Self {
        let ends = CancellationToken::new();
        let (parts, settings) = (host.parts(folder.path()), fakes::settings(folder.path()));
        let (mut supervisor, pods) = Supervisor::new(parts, settings, ends.clone());
        supervisor.adopt().await.unwrap();
        let mut running = JoinSet::new();
        running.spawn(supervisor.run());
        let told = pods.publisher.subscribe();
        Self { folder, host, pods, told, events: Vec::new(), ends, running }
    }

    /// The agent ends and another life of it begins.
    async fn restart(mut self) -> Self {
        self.ends.cancel();
        while self.running.join_next().await.is_some() {}
        Self::on(self.host, self.folder).await
    }

    async fn run(&self, spec: serde_json::Value) {
        self.pods.run(fakes::wish("u1", spec)).await.unwrap();
    }

    /// Waits, in time that passes as it is needed, until the pod is as wanted.
    async fn until(&mut self, wanted: impl Fn(&PodSnapshot) -> bool) -> PodSnapshot {
        if let Some(snapshot) = self.pods.publisher.get("u1")
            && wanted(&snapshot)
        {
            return (*snapshot).clone();
        }
        loop {
            match tokio::time::timeout(Duration::from_secs(3600), self.told.next()).await.expect("it is told") {
                Change::Changed(snapshot) if wanted(&snapshot) => return (*snapshot).clone(),
                Change::Gone(snapshot) => panic!("gone: {snapshot:?}"),
                Change::Changed(_) => {}
                Change::Event(event) => self.take(&event),
            }
        }
    }

    async fn until_gone(&mut self) -> PodSnapshot {
        loop {
            match tokio::time::timeout(Duration::from_secs(3600), self.told.next()).await.expect("it is told") {
                Change::Gone(snapshot) => return (*snapshot).clone(),
                Change::Changed(_) => {}
                Change::Event(event) => self.take(&event),
            }
        }
    }

    fn take(&mut self, event: &crate::pod::events::PodEvent) {
        self.events.push(format!("{}: {}", event.notice.reason, event.notice.message));
    }

    /// Takes the events that have been told.
    fn drain_events(&mut self) -> Vec<String> {
        while let Some(change) = futures::FutureExt::now_or_never(self.told.next()) {
            if let Change::Event(event) = change {
                self.take(&event);
            }
        }
        std::mem::take(&mut self.events)
    }
}

fn one(policy: &str) -> serde_json::Value {
    json!({"restartPolicy": policy, "containers": [{"name": "app", "image": "nginx:1"}]})
}

fn phase(snapshot: &PodSnapshot) -> &str {
    snapshot.status.phase.as_deref().unwrap_or_default()
}

fn waiting(snapshot: &PodSnapshot) -> &str {
    let container = snapshot.status.container_statuses.iter().flatten().next();
    let state = container.and_then(|container| container.state.as_ref());
    state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default()
}

fn restarts(snapshot: &PodSnapshot) -> i32 {
    snapshot.status.container_statuses.iter().flatten().map(|container| container.restart_count).sum()
}
