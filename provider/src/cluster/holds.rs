//! What waits with its requests while pods start: a start that is under way holds back whatever can wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The starts that are under way. Cheap to clone; every clone sees the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Holds {
    all: Arc<watch::Sender<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    /// Never given twice.
    next_number: u64,
    /// By number, until when each counts at most.
    until: BTreeMap<u64, Instant>,
}

/// A start that is under way, for as long as this lives.
#[derive(Debug)]
pub struct Hold {
    number: u64,
    of: Holds,
}

impl Holds {
    /// Begins a hold, which counts for so long at most.
    pub(super) fn begin(&self, at_most: Duration) -> Hold {
        let (mut number, now) = (0, Instant::now());
        self.all.send_if_modified(|all| {
            number = all.next_number;
            all.next_number = number.wrapping_add(1);
            all.until.retain(|_, until| *until > now);
            all.until.insert(number, now + at_most);
            // Whoever waits need not know: a thousand pods wait while a thousand start.
            false
        });
        Hold { number, of: self.clone() }
    }

    /// How many are held now.
    pub(super) fn count(&self) -> usize {
        let now = Instant::now();
        self.all.borrow().until.values().filter(|until| **until > now).count()
    }

    /// Waits until nothing is held, or until `at_most`.
    pub(super) async fn quiet(&self, at_most: Instant) {
        let mut all = self.all.subscribe();
        loop {
            let now = Instant::now();
            let last = all.borrow_and_update().until.values().copied().max();
            let Some(until) = last.map(|last| last.min(at_most)).filter(|until| *until > now) else { return };
            tokio::select! {
                // The sender is ours, so there is always somebody who could change it.
                _ = all.changed() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.of.all.send_if_modified(|all| {
            all.until.remove(&self.number);
            all.until.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_quiet_once_the_last_has_let_go() {
        let holds = Holds::default();
        let begin = Instant::now();
        let far = begin + Duration::from_secs(60);
        holds.quiet(far).await;
        let (one, other) = (holds.begin(Duration::from_secs(10)), holds.begin(Duration::from_secs(10)));
        assert_eq!(holds.count(), 2);
        drop(one);
        let third = holds.begin(Duration::from_secs(10));
        assert_eq!(holds.count(), 2);
        let let_go = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(third);
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(other);
        };
        tokio::join!(holds.quiet(far), let_go);
        assert_eq!(begin.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_holds_for_longer_than_it_said_and_nobody_waits_for_longer_than_it_wants() {
        let holds = Holds::default();
        let begin = Instant::now();
        let _kept = holds.begin(Duration::from_secs(10));
        holds.quiet(begin + Duration::from_secs(3)).await;
        assert_eq!(begin.elapsed(), Duration::from_secs(3));
        holds.quiet(begin + Duration::from_secs(60)).await;
        assert_eq!(begin.elapsed(), Duration::from_secs(10));
        assert_eq!(holds.count(), 0);
        holds.quiet(begin + Duration::from_secs(60)).await;
        assert_eq!(begin.elapsed(), Duration::from_secs(10));
    }
}
