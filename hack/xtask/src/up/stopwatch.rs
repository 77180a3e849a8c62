//! How long pods took to start, as somebody who watches the API server sees it: from the pod's appearance to its being
//! Ready. The times that objects carry themselves are whole seconds, too coarse for this.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::conditions::pod_is_ready;

/// The start of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) namespace: String,
    pub(super) name: String,
    seen: Instant,
    ready: Option<Instant>,
}

impl Start {
    /// From its appearance to Ready; none while it is not.
    pub(super) fn took(&self) -> Option<Duration> {
        Some(self.ready?.duration_since(self.seen))
    }
}

/// What was seen so far, by UID.
pub(super) type Starts = BTreeMap<String, Start>;

/// Watches pods from its creation on. Pods that were there before are not timed.
pub(super) struct Stopwatch {
    starts: watch::Receiver<Starts>,
    _task: JoinSet<()>,
}

impl Stopwatch {
    /// Starts to watch the pods with these labels in all namespaces; comes back when the watch is up.
    pub(super) async fn start(client: &Client, labels: &str) -> Self {
        let (sender, mut starts) = watch::channel((false, Starts::new()));
        let (published, receiver) = watch::channel(Starts::new());
        let events = watcher(Api::<Pod>::all(client.clone()), Config::default().labels(labels)).boxed();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut events = events;
            let mut old = std::collections::BTreeSet::new();
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::InitApply(pod)) => {
                        old.extend(pod.uid());
                    }
                    Ok(Event::InitDone) => sender.send_modify(|state| state.0 = true),
                    Ok(Event::Apply(pod)) if !pod.uid().is_some_and(|uid| old.contains(&uid)) => {
                        published.send_modify(|all| note(all, &pod, Instant::now()));
                    }
                    // The watcher connects again by itself.
                    Ok(Event::Init | Event::Apply(_) | Event::Delete(_)) | Err(_) => {}
                }
            }
        });
        // Ends with an error only when the task is gone; then there is nothing to wait for.
        drop(starts.wait_for(|state| state.0).await);
        Self { starts: receiver, _task: task }
    }

    /// The starts that were seen.
    pub(super) fn starts(&self) -> Vec<Start> {
        self.starts.borrow().values().cloned().collect()
    }

    /// Waits until so many pods of a namespace are Ready.
    pub(super) async fn wait_ready(&self, namespace: &str, count: usize) {
        let mut starts = self.starts.clone();
        let ready = |all: &Starts| {
            all.values().filter(|start| start.namespace == namespace && start.ready.is_some()).count() >= count
        };
        drop(starts.wait_for(ready).await);
    }
}

fn note(all: &mut Starts, pod: &Pod, now: Instant) {
    let Some(uid) = pod.uid() else { return };
    let start = all.entry(uid).or_insert_with(|| Start {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        seen: now,
        ready: None,
    });
    if start.ready.is_none() && pod_is_ready(pod) {
        start.ready = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ready: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": { "uid": "1", "name": "a", "namespace": "b" },
            "spec": { "containers": [] },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .expect("a pod")
    }

    #[tokio::test]
    async fn the_first_ready_counts() {
        let (mut all, begin) = (Starts::new(), Instant::now());
        note(&mut all, &pod("False"), begin);
        note(&mut all, &pod("True"), begin + Duration::from_millis(40));
        note(&mut all, &pod("True"), begin + Duration::from_millis(900));
        assert_eq!(all["1"].took(), Some(Duration::from_millis(40)));
    }
}
