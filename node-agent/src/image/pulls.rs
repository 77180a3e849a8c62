//! The pulls under way, for whoever wants to see how far they are. When the last one has ended, the memory that they took
//! goes back to the kernel.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::{host::memory, meters::Meters, registry::Reference};

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullState {
    /// When it began.
    pub started: Timestamp,
    /// Who waits for it, in order; whoever waits twice is there twice.
    pub waiters: Vec<Waiter>,
    /// How much has come.
    pub moved: Moved,
}

/// Who waits for a pull.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiter {
    /// An image cache that is being built.
    Cache(String),
    /// A person or a program on this host.
    Command,
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache(name) => write!(f, "cache {name}"),
            Self::Command => f.write_str("larderctl"),
            Self::Pod { namespace, name } => write!(f, "pod {namespace}/{name}"),
        }
    }
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
    waiter: Waiter,
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
    pub(super) fn begin(&self, reference: &Reference, waiter: Waiter, now: Timestamp) -> Pull {
        let reference = reference.to_string();
        let new = PullState { started: now, waiters: Vec::new(), moved: Moved::default() };
        self.change(|list| {
            let waiters = &mut list.entry(reference.clone()).or_insert(new).waiters;
            let place = waiters.partition_point(|other| *other <= waiter);
            waiters.insert(place, waiter.clone());
        });
        Pull { reference, waiter, pulls: self.clone() }
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
            if let Some(state) = list.get_mut(&self.reference) {
                if let Some(place) = state.waiters.iter().position(|waiter| *waiter == self.waiter) {
                    state.waiters.remove(place);
                }
                if state.waiters.is_empty() {
                    list.remove(&self.reference);
                }
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
        let pod = Waiter::Pod { namespace: "ns".into(), name: "p".into() };
        let first = pulls.begin(&reference, pod.clone(), start);
        let second = pulls.begin(&reference, Waiter::Cache("c".into()), Timestamp::from_second(9).unwrap());
        let third = pulls.begin(&reference, pod.clone(), Timestamp::from_second(9).unwrap());
        let moved = Moved { done_bytes: 3, total_bytes: 10, done_layers: 1, total_layers: 2 };
        first.moved(moved);
        assert!(watched.has_changed().unwrap());
        let list = watched.borrow_and_update().clone();
        let waiters = vec![Waiter::Cache("c".into()), pod.clone(), pod];
        let words: Vec<String> = waiters.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["cache c", "pod ns/p", "pod ns/p"]);
        let expected = PullState { started: start, waiters: waiters.clone(), moved };
        assert_eq!(list.iter().collect::<Vec<_>>(), [(&"a.io/b:1".to_owned(), &expected)]);
        assert_eq!(pulls.meters.pulls.get(), 1);
        drop(first);
        assert_eq!(watched.borrow_and_update()["a.io/b:1"].waiters, waiters[..2]);
        drop(second);
        assert_eq!(watched.borrow_and_update()["a.io/b:1"].waiters, waiters[1..2]);
        drop(third);
        assert!(watched.borrow_and_update().is_empty());
        assert_eq!(pulls.meters.pulls.get(), 0);
    }
}
