//! Pure: no I/O, no clock, no randomness.
//!
//! What the hosts say of their image caches.

use std::collections::BTreeMap;

use crate::agent::{CacheChange, CachePhase, CacheState};

/// The image caches of one host, as last heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Whether the full list has been heard, ever. Before that nothing can be said of the host.
    pub is_known: bool,
    /// Whether the host answers at this moment.
    pub is_connected: bool,
    /// By id.
    pub caches: BTreeMap<String, CacheState>,
}

impl Host {
    /// Takes in what the host says. What is not newer than what is known is dropped.
    pub fn take(&mut self, change: CacheChange) {
        match change {
            CacheChange::List(caches) => {
                self.is_known = true;
                self.is_connected = true;
                self.caches = caches.into_iter().map(|state| (state.id.clone(), state)).collect();
            }
            CacheChange::Changed(state) => {
                let known = self.caches.get(&state.id).map(|known| known.generation);
                if known.is_none_or(|known| state.generation > known) {
                    self.caches.insert(state.id.clone(), state);
                }
            }
            CacheChange::Deleted(id) => {
                self.caches.remove(&id);
            }
        }
    }
}

/// Whether pods start from a cache in this phase.
pub fn serves(phase: CachePhase) -> bool {
    match phase {
        CachePhase::Ready | CachePhase::Updating | CachePhase::UpdateFailed | CachePhase::UpdateInterrupted => true,
        CachePhase::Creating | CachePhase::Failed | CachePhase::Interrupted => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(id: &str, generation: u64, phase: CachePhase) -> CacheState {
        CacheState { id: id.to_owned(), generation, phase, ..CacheState::default() }
    }

    #[test]
    fn only_what_is_newer_counts() {
        let mut host = Host::default();
        host.take(CacheChange::List(vec![state("a", 2, CachePhase::Creating)]));
        host.take(CacheChange::Changed(state("a", 3, CachePhase::Ready)));
        host.take(CacheChange::Changed(state("a", 2, CachePhase::Creating)));
        assert_eq!(host.caches["a"].phase, CachePhase::Ready);
        host.take(CacheChange::Changed(state("b", 1, CachePhase::Creating)));
        host.take(CacheChange::Deleted("a".to_owned()));
        assert_eq!(host.caches.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_list_replaces_everything() {
        let mut host = Host::default();
        host.take(CacheChange::Changed(state("a", 9, CachePhase::Ready)));
        assert!(!host.is_known);
        host.take(CacheChange::List(vec![state("b", 1, CachePhase::Ready)]));
        assert!(host.is_known);
        assert_eq!(host.caches.keys().collect::<Vec<_>>(), ["b"]);
    }
}
