//! Which layers are in use: by running pods, pulls in progress and image caches. What is pinned is not removed.
//!
//! Pins live in memory: caches and pods set theirs again when the agent starts, before anything is removed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;

/// The layers in use. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    counts: Arc<Mutex<HashMap<Digest, usize>>>,
}

/// Keeps layers while it lives.
#[derive(Debug)]
pub struct Pin {
    pins: Pins,
    diff_ids: Vec<Digest>,
}

impl Pins {
    /// Keeps these layers, whether they are here yet or not. Waits while layers are being removed, so that what is found
    /// afterwards stays: pin first, then look.
    pub fn pin(&self, diff_ids: &[Digest]) -> Pin {
        let mut counts = self.counts();
        for diff_id in diff_ids {
            *counts.entry(*diff_id).or_default() += 1;
        }
        Pin { pins: self.clone(), diff_ids: diff_ids.to_vec() }
    }

    /// Runs `remove` with the set of all pinned layers; nobody can pin meanwhile.
    pub fn while_unchanged<T>(&self, remove: impl FnOnce(&HashSet<Digest>) -> T) -> T {
        let counts = self.counts();
        let pinned = counts.keys().copied().collect();
        remove(&pinned)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut counts = self.pins.counts();
        for diff_id in &self.diff_ids {
            if let Some(count) = counts.get_mut(diff_id) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(diff_id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_pinned_as_long_as_one_pin_lives() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let pins = Pins::default();
        let pinned = || pins.while_unchanged(Clone::clone);
        let first = pins.pin(&[a, b]);
        let second = pins.clone().pin(&[a, a]);
        drop(first);
        assert_eq!(pinned(), HashSet::from([a]));
        drop(second);
        assert_eq!(pinned(), HashSet::new());
    }
}
