//! The Selectors that act, for whoever is not called by the API server: the start of a pod on a virtual node, and the helper
//! of pods that no node takes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::Instant;

use super::selector_review::written;
use crate::profile::Effect;
use crate::selector::{Rules, mark};

/// How long the start of a pod that bears a Selector's name waits for the Selectors to be known, just after our own start.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says which Selectors act now.
#[derive(Debug, Clone)]
pub struct Selected {
    shown: watch::Receiver<Option<Arc<Rules>>>,
    /// Until then a pod waits for them.
    patience: Instant,
}

impl Selected {
    /// What somebody shows; nothing until the Selectors have been listed.
    pub fn new(shown: watch::Receiver<Option<Arc<Rules>>>) -> Self {
        Self { shown, patience: Instant::now() + PATIENCE }
    }

    /// What is still to be written on a pod that starts on a virtual node. Waits for the Selectors where the pod bears the
    /// name of one.
    pub async fn outstanding(&self, pod: &Pod) -> Option<Effect> {
        mark::selector_of(pod)?;
        let mut shown = self.shown.clone();
        let known = shown.wait_for(Option::is_some);
        if tokio::time::timeout_at(self.patience, known).await.is_err() {
            tracing::warn!(pod = ?pod.metadata.name, "selectors are not known, a pod starts without an effect");
        }
        self.outstanding_now(pod)
    }

    /// The same as far as it is known now.
    pub fn outstanding_now(&self, pod: &Pod) -> Option<Effect> {
        let rules = self.shown.borrow().clone()?;
        rules.outstanding(pod).map(written)
    }

    /// Waits until others act.
    pub(super) async fn changed(&mut self) {
        if self.shown.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Looks at what acts now, so that only what comes later is a change.
    pub(super) fn look(&mut self) -> Option<Arc<Rules>> {
        self.shown.borrow_and_update().clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::selector::mark::SELECTOR;

    #[tokio::test(start_paused = true)]
    async fn pods_wait_for_the_selectors_just_after_the_start_and_not_each_anew() {
        let (_shown, seen) = watch::channel(None);
        let selected = Selected::new(seen);
        let pod: Pod = serde_json::from_value(json!({"metadata": {"annotations": {SELECTOR: "ns/s"}}})).unwrap();
        let begun = Instant::now();
        assert_eq!(selected.outstanding(&pod).await, None);
        assert_eq!(begun.elapsed().as_secs(), 5);
        for _ in 0..3 {
            assert_eq!(selected.clone().outstanding(&pod).await, None);
        }
        assert_eq!(begun.elapsed().as_secs(), 5);
    }
}
