//! The pulls under way, for whoever wants to see how far they are. When the last one has ended, the memory that they took
//! goes back to the kernel.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::{host::memory, meters::Meters, registry::Reference};

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullState {
    /// When it began.
    pub started: Timestamp,
    /// How many pods and caches wait for it.
    pub waiting: u32,
    /// How much has come.
    pub moved: Moved,
}

/// How much of an image has come. Layers that were here before are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Bytes that have come, as transferred.
    pub done_bytes: u64,
    /// Bytes to come in all; 0 while the registry is asked what there is.
    pub total_bytes: u64,
    /// Layers that are whole.
    pub done_layers: u32,
    /// Layers to come in all.
    pub total_layers: u32,
}

/// The pulls under way, by reference.
pub type PullList = Arc<BTreeMap<String, PullState>>;

/// Owns the list.
#[derive(Debug, Clone)]
pub(super) struct Pulls {
    list: watch::Sender<PullList>,
    meters: Meters,
    tasks: TaskTracker,
}

/// One who waits for a pull; it ends with this value.
#[derive(Debug)]
pub(super) struct Pull {
    reference: String,
    pulls: Pulls,
}

impl Pulls {
    pub(super) fn new(meters: Meters, tasks: TaskTracker) -> Self {
        Self { list: watch::Sender::new(PullList::default()), meters, tasks }
    }

    /// The list, as it is now and whenever it changes.
    pub(super) fn watch(&self) -> watch::Receiver<PullList> {
        self.list.subscribe()
    }

    /// Somebody begins to wait for an image.
    pub(super) fn begin(&self, reference: &Reference, now: Timestamp) -> Pull {
        let reference = reference.to_string();
        let new = PullState { started: now, waiting: 0, moved: Moved::default() };
        self.change(|list| list.entry(reference.clone()).or_insert(new).waiting += 1);
        Pull { reference, pulls: self.clone() }
    }

    fn change(&self, how: impl FnOnce(&mut BTreeMap<String, PullState>)) {
        self.list.send_modify(|list| {
            how(Arc::make_mut(list));
            self.meters.pulls.set(i64::try_from(list.len()).unwrap_or(i64::MAX));
        });
    }
}

impl Pull {
    /// It has come this far.
    pub(super) fn moved(&self, moved: Moved) {
        self.pulls.change(|list| {
            if let Some(state) = list.get_mut(&self.reference) {
                state.moved = moved;
            }
        });
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        let mut last = false;
        self.pulls.change(|list| {
            let waiting = list.get_mut(&self.reference).map_or(0, |state| {
                state.waiting = state.waiting.saturating_sub(1);
                state.waiting
            });
            if waiting == 0 {
                list.remove(&self.reference);
            }
            last = list.is_empty();
        });
        // Without a runtime the process is about to end.
        if last && tokio::runtime::Handle::try_current().is_ok() {
            self.pulls.tasks.spawn_blocking(memory::give_back);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn is_there_while_somebody_waits() {
        let pulls = Pulls::new(Meters::default(), TaskTracker::new());
        let mut watched = pulls.watch();
        let reference: Reference = "a.io/b:1".parse().unwrap();
        let start = Timestamp::from_second(7).unwrap();
        let first = pulls.begin(&reference, start);
        let second = pulls.begin(&reference, Timestamp::from_second(9).unwrap());
        let moved = Moved { done_bytes: 3, total_bytes: 10, done_layers: 1, total_layers: 2 };
        first.moved(moved);
        assert!(watched.has_changed().unwrap());
        let list = watched.borrow_and_update().clone();
        let expected = PullState { started: start, waiting: 2, moved };
        assert_eq!(list.iter().collect::<Vec<_>>(), [(&"a.io/b:1".to_owned(), &expected)]);
        assert_eq!(pulls.meters.pulls.get(), 1);
        drop(first);
        assert_eq!(watched.borrow_and_update()["a.io/b:1"].waiting, 1);
        drop(second);
        assert!(watched.borrow_and_update().is_empty());
        assert_eq!(pulls.meters.pulls.get(), 0);
    }
}
