//! The pods of an agent, as its stream tells them: what is not newer is dropped, and an end is remembered.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agent::{PodGone, PodState};

/// What the agent last said of a pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum AgentPod {
    /// It has it.
    State(Arc<PodState>),
    /// It has ended and forgotten it.
    Gone(Arc<PodGone>),
}

impl AgentPod {
    fn generation(&self) -> u64 {
        match self {
            Self::State(state) => state.generation,
            Self::Gone(gone) => gone.generation,
        }
    }
}

/// All pods of one agent.
#[derive(Debug, Default)]
pub(super) struct AgentPods {
    listed: bool,
    pods: BTreeMap<String, AgentPod>,
}

impl AgentPods {
    /// True while the agent is connected and has listed its pods.
    pub(super) fn listed(&self) -> bool {
        self.listed
    }

    /// The pod, as far as it is known.
    pub(super) fn get(&self, uid: &str) -> Option<&AgentPod> {
        self.pods.get(uid)
    }

    /// The UIDs of all pods that are known.
    pub(super) fn uids(&self) -> impl Iterator<Item = &String> {
        self.pods.keys()
    }

    /// The connection is lost; what was known is kept, but no longer true.
    pub(super) fn lose(&mut self) {
        self.listed = false;
    }

    /// Takes in the full list. What it does not hold is not there, but an end that was seen stays seen: its last status
    /// may still have to be written.
    pub(super) fn list(&mut self, states: Vec<PodState>) {
        self.listed = true;
        self.pods.retain(|_, pod| matches!(pod, AgentPod::Gone(_)));
        self.pods.extend(states.into_iter().map(|state| (state.uid.clone(), AgentPod::State(Arc::new(state)))));
    }

    /// Takes in a change; false when it is not newer than what is known.
    pub(super) fn changed(&mut self, state: PodState) -> bool {
        let uid = state.uid.clone();
        self.take(uid, AgentPod::State(Arc::new(state)))
    }

    /// Takes in an end; false when it is not newer than what is known.
    pub(super) fn gone(&mut self, gone: PodGone) -> bool {
        let uid = gone.uid.clone();
        self.take(uid, AgentPod::Gone(Arc::new(gone)))
    }

    fn take(&mut self, uid: String, pod: AgentPod) -> bool {
        if self.pods.get(&uid).is_some_and(|known| known.generation() >= pod.generation()) {
            return false;
        }
        self.pods.insert(uid, pod);
        true
    }

    /// Forgets an end that has been dealt with.
    pub(super) fn forget(&mut self, uid: &str) {
        if matches!(self.pods.get(uid), Some(AgentPod::Gone(_))) {
            self.pods.remove(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;
    use proptest::prelude::*;

    use super::*;

    fn state(generation: u64) -> PodState {
        PodState {
            uid: "u".into(),
            namespace: "ns".into(),
            name: "p".into(),
            generation,
            status: PodStatus::default(),
            terminated: false,
        }
    }

    fn gone(generation: u64) -> PodGone {
        PodGone { uid: "u".into(), generation, status: PodStatus::default() }
    }

    #[test]
    fn a_list_is_the_truth_whatever_was_known() {
        let mut pods = AgentPods::default();
        assert!(!pods.listed());
        pods.list(vec![state(7)]);
        assert!(pods.listed() && !pods.changed(state(7)) && pods.changed(state(8)));
        pods.list(vec![state(2)]);
        assert_eq!(pods.get("u"), Some(&AgentPod::State(Arc::new(state(2)))));
        pods.list(vec![]);
        assert_eq!(pods.get("u"), None);
    }

    #[test]
    fn an_end_outlives_a_list_until_it_is_forgotten() {
        let mut pods = AgentPods::default();
        pods.list(vec![state(1)]);
        assert!(pods.gone(gone(2)) && !pods.changed(state(1)));
        pods.list(vec![]);
        assert_eq!(pods.get("u"), Some(&AgentPod::Gone(Arc::new(gone(2)))));
        pods.forget("u");
        assert_eq!(pods.get("u"), None);
    }

    proptest! {
        #[test]
        fn the_newest_wins_in_any_order(generations in proptest::collection::vec(1u64..20, 1..20)) {
            let mut pods = AgentPods::default();
            pods.list(vec![]);
            for generation in &generations {
                pods.changed(state(*generation));
            }
            let newest = generations.iter().max().copied().unwrap_or_default();
            prop_assert_eq!(pods.get("u"), Some(&AgentPod::State(Arc::new(state(newest)))));
        }
    }
}
