//! One piece of work a key, however many wait for it. It is cancelled when nobody waits any more.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Work under way, by key.
pub(crate) struct Flights<K, V> {
    under_way: Arc<Mutex<HashMap<K, Weak<Flight<V>>>>>,
    tasks: TaskTracker,
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

/// What those who wait share. The last of them to go ends the work.
struct Flight<V> {
    outcome: watch::Receiver<Option<V>>,
    cancel: CancellationToken,
    progress: Arc<Progress>,
}

impl<V> Drop for Flight<V> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// How far the work has come; written by the work, read by all who wait.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    done: AtomicU64,
    begun: Mutex<Option<Instant>>,
}

impl Progress {
    /// Sets how much is done.
    pub(crate) fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    /// How much is done.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Notes that the work no longer waits for its turn.
    pub(crate) fn begin(&self, now: Instant) {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// When the work's turn came.
    pub(crate) fn begun(&self) -> Option<Instant> {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits. Dropping it gives up the wish.
pub(crate) struct Passenger<V> {
    flight: Arc<Flight<V>>,
    first: bool,
}

impl<V> fmt::Debug for Passenger<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passenger").field("first", &self.first).finish_non_exhaustive()
    }
}

impl<V: Clone> Passenger<V> {
    /// Whether the work began with this one, with what this one brought along.
    pub(crate) fn is_first(&self) -> bool {
        self.first
    }

    /// How far the work has come.
    pub(crate) fn progress(&self) -> &Progress {
        &self.flight.progress
    }

    /// What came of it; none when the work ended without a word, by a panic or because the process is ending.
    pub(crate) async fn outcome(&self) -> Option<V> {
        let mut outcome = self.flight.outcome.clone();
        let outcome = outcome.wait_for(Option::is_some).await.ok()?;
        outcome.clone()
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// No work yet; what begins is counted by `tasks`.
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self { under_way: Arc::default(), tasks }
    }

    /// Joins the work for `key`, or begins it.
    pub(crate) fn join<W, F>(&self, key: K, work: W) -> Passenger<V>
    where
        W: FnOnce(Arc<Progress>) -> F,
        F: Future<Output = V> + Send + 'static,
    {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = under_way.get(&key).and_then(Weak::upgrade) {
            return Passenger { flight, first: false };
        }
        let (report, outcome) = watch::channel(None);
        let (cancel, progress) = (CancellationToken::new(), Arc::new(Progress::default()));
        let flight = Arc::new(Flight { outcome, cancel: cancel.clone(), progress: Arc::clone(&progress) });
        let weak = Arc::downgrade(&flight);
        under_way.insert(key.clone(), Weak::clone(&weak));
        drop(under_way);
        let (work, all) = (work(progress), Arc::clone(&self.under_way));
        self.tasks.spawn(async move {
            let value = tokio::select! {
                // Dropping the work is what cancelling means; it takes back what is not whole.
                () = cancel.cancelled() => None,
                value = work => Some(value),
            };
            // Whoever comes from now on begins anew, and finds what this has left.
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            if all.get(&key).is_some_and(|found| found.ptr_eq(&weak)) {
                all.remove(&key);
            }
            drop(all);
            report.send_replace(value);
        });
        Passenger { flight, first: true }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn works_once_for_all_who_wait_and_again_for_who_comes_later() {
        let flights = Flights::new(TaskTracker::new());
        let (runs, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let join = |key: &'static str| {
            let (runs, go) = (Arc::clone(&runs), Arc::clone(&go));
            flights.join(key, |progress| async move {
                runs.fetch_add(1, Ordering::SeqCst);
                progress.set(7);
                go.notified().await;
                1
            })
        };
        let all: Vec<_> = (0..20).map(|_| join("a")).collect();
        assert_eq!(all.iter().filter(|one| one.is_first()).count(), 1);
        go.notify_one();
        for one in &all {
            assert_eq!(one.outcome().await, Some(1));
            assert_eq!(one.progress().done(), 7);
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        go.notify_one();
        assert_eq!(join("a").outcome().await, Some(1));
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn ends_when_the_last_one_goes() {
        struct Held(Arc<Notify>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let tasks = TaskTracker::new();
        let flights: Flights<u8, ()> = Flights::new(tasks.clone());
        let dropped = Arc::new(Notify::new());
        let held = Held(Arc::clone(&dropped));
        let work = |held: Held| {
            move |_| async move {
                let _held = held;
                std::future::pending::<()>().await;
            }
        };
        let first = flights.join(1, work(held));
        let second = flights.join(1, work(Held(Arc::default())));
        drop(first);
        assert!(!second.is_first());
        drop(second);
        tokio::time::timeout(std::time::Duration::from_secs(5), dropped.notified()).await.unwrap();
        tasks.close();
        tasks.wait().await;
        assert!(flights.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_no_outcome() {
        let flights: Flights<u8, u8> = Flights::new(TaskTracker::new());
        let one = flights.join(1, |_| async { panic!("for the test") });
        assert_eq!(one.outcome().await, None);
    }
}
