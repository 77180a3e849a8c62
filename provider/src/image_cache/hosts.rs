//! Pure: no I/O, no clock, no randomness.
//!
//! What the hosts say of their image caches.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::agent::{CacheChange, CachePhase, CacheState};

/// How long a host may be out of reach before nobody counts on it any more. A restart of its agent takes a few seconds.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);

/// The labels of a virtual node.
pub type Labels = BTreeMap<String, String>;

/// The image caches of one host, as last heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Whether the full list has been heard, ever. Before that nothing can be said of the host.
    pub is_known: bool,
    /// Whether the host answers at this moment.
    pub is_connected: bool,
    /// Since when it does not answer; nothing while it does, and before it has been asked.
    pub lost_since: Option<Timestamp>,
    /// The labels of its virtual node; nothing while they are not known.
    pub labels: Option<Labels>,
    /// By id.
    pub caches: BTreeMap<String, CacheState>,
}

impl Host {
    /// Notes that it does not answer.
    pub fn lose(&mut self, now: Timestamp) {
        self.is_connected = false;
        self.lost_since.get_or_insert(now);
    }

    /// From when on nobody counts on it, unless it answers before.
    pub fn away_from(&self) -> Option<Timestamp> {
        self.lost_since.map(|since| since + PATIENCE)
    }

    /// Takes in what the host says. What is not newer than what is known is dropped.
    pub fn take(&mut self, change: CacheChange) {
        match change {
            CacheChange::List(caches) => {
                self.is_known = true;
                self.is_connected = true;
                self.lost_since = None;
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
    fn a_host_is_away_a_while_after_it_was_lost_first() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut host = Host::default();
        assert_eq!(host.away_from(), None);
        host.lose(at(100));
        host.lose(at(130));
        assert_eq!(host.away_from(), Some(at(160)));
        host.take(CacheChange::List(Vec::new()));
        assert_eq!((host.away_from(), host.is_connected), (None, true));
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
