//! Which layers are in use: by running pods, pulls in progress and image caches. What is pinned is not removed.
//!
//! Pins live in memory: caches and pods set theirs again when the agent starts. Until they have, [`Pins::hold`] keeps
//! everything: a pull of a cache that goes on must not make room with the layers of a pod that is not found again yet. It
//! waits instead ([`Pins::known`]).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::digest::Digest;

/// The layers in use. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    counts: Arc<Mutex<Counts>>,
    /// How many [`Hold`]s there are; changed with `counts` locked.
    holds: watch::Sender<usize>,
}

/// Who keeps layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// An image cache, or its build.
    Cache,
    /// A pod, or a pull.
    Pod,
}

#[derive(Debug, Default)]
struct Counts {
    layers: HashMap<Digest, Holders>,
}

/// How many pins of each kind keep a layer.
#[derive(Debug, Default)]
struct Holders {
    caches: usize,
    pods: usize,
}

impl Holders {
    fn of(&mut self, holder: Holder) -> &mut usize {
        match holder {
            Holder::Cache => &mut self.caches,
            Holder::Pod => &mut self.pods,
        }
    }
}

/// Keeps all layers while it lives.
#[derive(Debug)]
pub struct Hold(Pins);

impl Drop for Hold {
    fn drop(&mut self) {
        let _unchanged = self.0.counts();
        self.0.holds.send_modify(|holds| *holds -= 1);
    }
}

/// Keeps layers while it lives.
#[derive(Debug)]
pub struct Pin {
    pins: Pins,
    holder: Holder,
    diff_ids: Vec<Digest>,
}

impl Pins {
    /// Keeps these layers, whether they are here yet or not. Waits while layers are being removed, so that what is found
    /// afterwards stays: pin first, then look.
    pub fn pin(&self, holder: Holder, diff_ids: &[Digest]) -> Pin {
        let mut counts = self.counts();
        for diff_id in diff_ids {
            *counts.layers.entry(*diff_id).or_default().of(holder) += 1;
        }
        Pin { pins: self.clone(), holder, diff_ids: diff_ids.to_vec() }
    }

    /// Keeps all layers, for as long as it is not known which ones are in use.
    pub fn hold(&self) -> Hold {
        let _unchanged = self.counts();
        self.holds.send_modify(|holds| *holds += 1);
        Hold(self.clone())
    }

    /// Whether it is known which layers are in use: there is no [`Hold`].
    pub fn are_known(&self) -> bool {
        *self.holds.borrow() == 0
    }

    /// Returns when it is known which layers are in use. Safe to drop. Not for whoever a [`Hold`] waits for.
    pub async fn known(&self) {
        // An error would mean that nobody can hold any more; the sender is here.
        let _ = self.holds.subscribe().wait_for(|holds| *holds == 0).await;
    }

    /// Whether somebody waits in [`Pins::known`].
    #[cfg(test)]
    pub(crate) fn are_awaited(&self) -> bool {
        self.holds.receiver_count() > 0
    }

    /// Runs `remove` with the set of all pinned layers; nobody can pin meanwhile. Nothing is done while there is a
    /// [`Hold`].
    pub fn while_unchanged<T>(&self, remove: impl FnOnce(&HashSet<Digest>) -> T) -> Option<T> {
        let counts = self.counts();
        if !self.are_known() {
            return None;
        }
        let pinned = counts.layers.keys().copied().collect();
        Some(remove(&pinned))
    }

    /// Runs `act` where `own` alone keeps its layers; nobody can pin meanwhile. Nothing is done where somebody else keeps
    /// one of them too, or while there is a [`Hold`].
    pub fn while_alone<T>(&self, own: &Pin, act: impl FnOnce() -> T) -> Option<T> {
        let counts = self.counts();
        let is_alone = |diff_id| counts.layers.get(diff_id).is_some_and(|holders| holders.caches + holders.pods == 1);
        if !self.are_known() || !own.diff_ids.iter().all(is_alone) {
            return None;
        }
        Some(act())
    }

    /// The layers in use at this moment.
    pub fn pinned(&self) -> HashSet<Digest> {
        self.counts().layers.keys().copied().collect()
    }

    /// Who keeps which layer: an image cache, where one does.
    pub fn holders(&self) -> HashMap<Digest, Holder> {
        let holder = |holders: &Holders| if holders.caches > 0 { Holder::Cache } else { Holder::Pod };
        self.counts().layers.iter().map(|(diff_id, holders)| (*diff_id, holder(holders))).collect()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut counts = self.pins.counts();
        for diff_id in &self.diff_ids {
            if let Some(holders) = counts.layers.get_mut(diff_id) {
                *holders.of(self.holder) -= 1;
                if holders.caches + holders.pods == 0 {
                    counts.layers.remove(diff_id);
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
        let first = pins.pin(Holder::Pod, &[a, b]);
        let second = pins.clone().pin(Holder::Cache, &[a, a]);
        assert_eq!(pins.holders(), HashMap::from([(a, Holder::Cache), (b, Holder::Pod)]));
        drop(first);
        assert_eq!(pins.pinned(), HashSet::from([a]));
        drop(second);
        assert_eq!(pins.pinned(), HashSet::new());
    }

    #[test]
    fn nothing_is_removed_while_it_is_not_known_what_is_in_use() {
        let pins = Pins::default();
        let (first, second) = (pins.hold(), pins.clone().hold());
        drop(first);
        assert_eq!(pins.while_unchanged(|_| ()), None);
        drop(second);
        assert_eq!(pins.while_unchanged(|_| ()), Some(()));
    }

    #[test]
    fn one_is_alone_with_a_layer_until_somebody_else_keeps_it_too() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let pins = Pins::default();
        let own = pins.pin(Holder::Pod, &[a, b]);
        assert_eq!(pins.while_alone(&own, || ()), Some(()));
        let other = pins.pin(Holder::Cache, &[b]);
        assert_eq!(pins.while_alone(&own, || ()), None);
        drop(other);
        let hold = pins.hold();
        assert_eq!(pins.while_alone(&own, || ()), None);
        drop(hold);
        assert_eq!(pins.while_alone(&own, || ()), Some(()));
    }

    #[tokio::test]
    async fn who_waits_is_told_when_it_is_known_what_is_in_use() {
        let pins = Pins::default();
        pins.known().await;
        let hold = pins.hold();
        let waiting = pins.clone();
        let told = async {
            assert!(!waiting.are_known());
            waiting.known().await;
            assert!(waiting.are_known());
        };
        tokio::join!(told, async { drop(hold) });
    }
}
