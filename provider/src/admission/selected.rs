//! The Selectors that act, for whoever is not called by the API server: the start of a pod on a virtual node, and the helper
//! of pods that no node takes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::selector_review::written;
use crate::profile::Effect;
use crate::selector::{Rules, mark};

/// How long the start of a pod that bears a Selector's name waits for the Selectors to be known, just after our own start.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says which Selectors act now.
#[derive(Debug, Clone)]
pub struct Selected(watch::Receiver<Option<Arc<Rules>>>);

impl Selected {
    /// What somebody shows; nothing until the Selectors have been listed.
    pub fn new(shown: watch::Receiver<Option<Arc<Rules>>>) -> Self {
        Self(shown)
    }

    /// What is still to be written on a pod that starts on a virtual node. Waits for the Selectors where the pod bears the
    /// name of one.
    pub async fn outstanding(&self, pod: &Pod) -> Option<Effect> {
        mark::selector_of(pod)?;
        let mut shown = self.0.clone();
        let known = shown.wait_for(Option::is_some);
        if tokio::time::timeout(PATIENCE, known).await.is_err() {
            tracing::warn!(pod = ?pod.metadata.name, "selectors are not known, a pod starts without an effect");
        }
        self.outstanding_now(pod)
    }

    /// The same as far as it is known now.
    pub fn outstanding_now(&self, pod: &Pod) -> Option<Effect> {
        let rules = self.0.borrow().clone()?;
        rules.outstanding(pod).map(written)
    }

    /// Waits until others act.
    pub(super) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Looks at what acts now, so that only what comes later is a change.
    pub(super) fn look(&mut self) -> Option<Arc<Rules>> {
        self.0.borrow_and_update().clone()
    }
}
