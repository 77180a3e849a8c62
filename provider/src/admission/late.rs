//! Adds a toleration to pods that no node takes and that a Selector lets go to a virtual node then. Pods are watched for that
//! only while a Selector has such a policy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Pod, Taint};

use super::selected::Selected;
use super::selector_review::late_tolerations;
use crate::cluster::pods::PodName;
use crate::cluster::{ClusterError, SelectorApi, Watched};
use crate::selector::{Policy, Rules};

/// Until a write that the API server did not answer is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Works until it is dropped. It remembers nothing that cannot be read again.
pub(super) async fn help(api: Arc<dyn SelectorApi>, mut selected: Selected, taints: Vec<Taint>) {
    loop {
        match selected.look().filter(|rules| is_wanted(rules)) {
            Some(rules) => help_on(&*api, &rules, &mut selected, &taints).await,
            None => selected.changed().await,
        }
    }
}

fn is_wanted(rules: &Rules) -> bool {
    rules.iter().any(|rule| rule.policy == Policy::NormalNodePrefer)
}

/// Works for as long as the same Selectors act.
async fn help_on(api: &dyn SelectorApi, rules: &Rules, selected: &mut Selected, taints: &[Taint]) {
    let mut unbound = api.watch_unbound_pods();
    // Those that could not be helped yet.
    let mut waiting: BTreeMap<PodName, Pod> = BTreeMap::new();
    loop {
        // The stream and the Selectors keep what is not taken, and a sleep can be begun again.
        tokio::select! {
            change = unbound.next() => match change {
                Some(Watched::All(pods)) => waiting = pods.into_iter().map(|pod| (PodName::of(&pod), pod)).collect(),
                Some(Watched::Applied(pod)) => drop(waiting.insert(PodName::of(&pod), pod)),
                Some(Watched::Deleted(pod)) => drop(waiting.remove(&PodName::of(&pod))),
                None => return,
            },
            // Which pods are to be helped is another question then.
            () = selected.changed() => return,
            () = tokio::time::sleep(PAUSE), if !waiting.is_empty() => {}
        }
        let mut again = BTreeMap::new();
        for (name, pod) in std::mem::take(&mut waiting) {
            let Some(tolerations) = late_tolerations(&pod, rules, taints) else { continue };
            match api.write_tolerations(&pod, &tolerations).await {
                Ok(()) => tracing::info!(pod = %name, "no node takes the pod, a virtual node may now"),
                // What it has become is on its way to us.
                Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => {}
                Err(error @ ClusterError::Refused { .. }) => tracing::warn!(%error, "pod is left to ordinary nodes"),
                Err(error @ ClusterError::Unavailable { .. }) => {
                    tracing::warn!(%error, "pod that no node takes is tried again");
                    again.insert(name, pod);
                }
            }
        }
        waiting = again;
    }
}
