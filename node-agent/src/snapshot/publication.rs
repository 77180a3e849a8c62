//! Puts finished layers in their places.
//!
//! Two pulls may finish the same layer at the same moment: from two registries, or one of them for a repair. Both would find
//! its place empty, and the second would clear away what the first has just put there.
//!
//! Locks: one a layer, held until the layer is durable: whoever finds it in its place may promise it.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{SnapshotError, layer_index};
use crate::digest::Digest;
use crate::store::durable;
use crate::store::layout::{LayerPaths, Layout};

/// The places of layers. Clones share the locks.
#[derive(Debug, Clone)]
pub(crate) struct Publication {
    layout: Layout,
    turns: Arc<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    taken: Mutex<HashSet<Digest>>,
    ended: Condvar,
}

/// The right to change one layer's place.
struct Turn<'a> {
    turns: &'a Turns,
    diff_id: Digest,
}

impl Publication {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, turns: Arc::default() }
    }

    /// Puts a finished layer in its place, unless another pull has put the same one there meanwhile. Blocks.
    pub(crate) fn publish(&self, made: &LayerPaths, diff_id: &Digest) -> Result<(), SnapshotError> {
        let place = self.layout.layer(diff_id);
        let _turn = self.turns.take(*diff_id);
        if layer_index::read_meta(&place).is_some() {
            return durable::remove(made.directory())
                .map_err(|error| SnapshotError::io("remove", made.directory(), 0, error));
        }
        let io = |error| SnapshotError::io("rename", place.directory(), 0, error);
        // What is there without a meta.json is a layer whose removal was cut short.
        durable::remove(place.directory()).map_err(io)?;
        durable::rename(made.directory(), place.directory()).map_err(io)
    }
}

impl Turns {
    fn take(&self, diff_id: Digest) -> Turn<'_> {
        let mut taken = self.taken();
        while !taken.insert(diff_id) {
            taken = self.ended.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { turns: self, diff_id }
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken().remove(&self.diff_id);
        self.turns.ended.notify_all();
    }
}
