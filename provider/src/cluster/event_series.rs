//! Which events are written anew, which are counted onto an earlier one, and which are too many.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;

/// An event that says the same of the same thing within this time is counted onto the earlier one, in seconds.
const SERIES_SECONDS: i64 = 600;
/// How many different events are remembered, and the budgets of how many objects: the figure of client-go's spam filter.
const REMEMBERED: usize = 4096;
/// How many events of one object are written at once; after that, one each [`REFILL_SECONDS`].
const BURST: f64 = 25.0;
/// Seconds until one more event of an object may be written.
const REFILL_SECONDS: f64 = 300.0;

/// What tells one event from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    pub(super) object_uid: String,
    pub(super) field_path: String,
    pub(super) component: String,
    pub(super) reason: String,
    pub(super) message: String,
}

/// What to do about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Write it.
    Write,
    /// Count it onto the event of this name.
    Count { name: String, count: i32 },
    /// There are too many of this object.
    Drop,
}

#[derive(Debug)]
struct Written {
    name: String,
    count: i32,
    last: Timestamp,
}

#[derive(Debug)]
struct Budget {
    left: f64,
    at: Timestamp,
}

/// The memory of one writer.
#[derive(Debug, Default)]
pub(super) struct EventSeries {
    written: BTreeMap<Identity, Written>,
    order: VecDeque<Identity>,
    budgets: Budgets,
}

/// What each object may still write.
#[derive(Debug, Default)]
struct Budgets {
    of: BTreeMap<String, Budget>,
    /// The same objects, with the one first that has been silent for longest.
    by_age: BTreeSet<(Timestamp, String)>,
}

impl EventSeries {
    /// Decides about an event that happened at `now`.
    pub(super) fn decide(&mut self, identity: &Identity, now: Timestamp) -> Decision {
        if !self.budgets.spend(&identity.object_uid, now) {
            return Decision::Drop;
        }
        let Some(earlier) = self.written.get_mut(identity) else { return Decision::Write };
        if now.as_second().saturating_sub(earlier.last.as_second()) > SERIES_SECONDS {
            return Decision::Write;
        }
        earlier.count = earlier.count.saturating_add(1);
        earlier.last = now;
        Decision::Count { name: earlier.name.clone(), count: earlier.count }
    }

    /// Remembers that an event has been written under a name.
    pub(super) fn written(&mut self, identity: Identity, name: String, now: Timestamp) {
        if self.written.insert(identity.clone(), Written { name, count: 1, last: now }).is_none() {
            self.order.push_back(identity);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.written.remove(&oldest);
            }
        }
    }
}

impl Budgets {
    /// Takes one event from the object's budget; false when there is none left.
    fn spend(&mut self, object: &str, now: Timestamp) -> bool {
        let mut budget = self.take(object).unwrap_or(Budget { left: BURST, at: now });
        let passed = now.duration_since(budget.at).as_secs_f64().max(0.0);
        budget.left = (budget.left + passed / REFILL_SECONDS).min(BURST);
        budget.at = budget.at.max(now);
        let is_granted = budget.left >= 1.0;
        if is_granted {
            budget.left -= 1.0;
        }
        self.by_age.insert((budget.at, object.to_owned()));
        self.of.insert(object.to_owned(), budget);
        self.forget(now);
        is_granted
    }

    fn take(&mut self, object: &str) -> Option<Budget> {
        let (object, budget) = self.of.remove_entry(object)?;
        self.by_age.remove(&(budget.at, object));
        Some(budget)
    }

    /// Forgets budgets that are full again, which is what an unknown object has, and the oldest of too many.
    fn forget(&mut self, now: Timestamp) {
        let is_full = |at: Timestamp| now.duration_since(at).as_secs_f64() >= BURST * REFILL_SECONDS;
        while self.by_age.first().is_some_and(|(at, _)| self.of.len() > REMEMBERED || is_full(*at)) {
            if let Some((_, object)) = self.by_age.pop_first() {
                self.of.remove(&object);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(uid: &str, message: &str) -> Identity {
        Identity {
            object_uid: uid.into(),
            field_path: String::new(),
            component: "kubelet".into(),
            reason: "Pulled".into(),
            message: message.into(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_same_again_is_counted_and_after_a_while_written() {
        let mut series = EventSeries::default();
        let event = identity("u", "m");
        assert_eq!(series.decide(&event, at(0)), Decision::Write);
        series.written(event.clone(), "e1".into(), at(0));
        assert_eq!(series.decide(&event, at(1)), Decision::Count { name: "e1".into(), count: 2 });
        assert_eq!(series.decide(&event, at(600)), Decision::Count { name: "e1".into(), count: 3 });
        assert_eq!(series.decide(&event, at(1201)), Decision::Write);
        assert_eq!(series.decide(&identity("u", "other"), at(1201)), Decision::Write);
    }

    #[test]
    fn among_many_an_object_that_has_spent_all_gets_no_more_than_its_refill() {
        let mut series = EventSeries::default();
        let granted = |series: &mut EventSeries, uid: &str, count: usize, second: i64| {
            let decide = |_: &usize| series.decide(&identity(uid, "m"), at(second)) != Decision::Drop;
            (0..count).filter(decide).count()
        };
        for old in 0..10 {
            granted(&mut series, &format!("old {old}"), 1, 0);
        }
        assert_eq!(granted(&mut series, "busy", 30, 1), 25);
        for other in 0..REMEMBERED - 6 {
            granted(&mut series, &other.to_string(), 1, 3601);
        }
        assert_eq!(granted(&mut series, "busy", 30, 3601), 12);
        // The oldest made room.
        assert_eq!(series.budgets.of.len(), REMEMBERED);
        assert!(!series.budgets.of.contains_key("old 0"));
    }

    proptest! {
        #[test]
        fn one_object_never_writes_more_than_its_budget(gaps in proptest::collection::vec(0i64..20, 1..300)) {
            let mut series = EventSeries::default();
            let (mut now, mut passed) = (0, 0.0);
            for gap in gaps {
                now += gap;
                if series.decide(&identity("u", &now.to_string()), at(now)) != Decision::Drop {
                    passed += 1.0;
                }
            }
            prop_assert!(passed <= BURST + now as f64 / REFILL_SECONDS);
        }

        /// Forgetting shows nowhere: each object gets what it would get alone, in a memory that forgets nothing.
        #[test]
        fn what_is_forgotten_was_full(events in proptest::collection::vec((0usize..4, 0i64..4000, 1usize..30), 1..60)) {
            let mut series = EventSeries::default();
            let mut model: BTreeMap<usize, (f64, i64)> = BTreeMap::new();
            let mut now = 0;
            for (object, gap, burst) in events {
                now += gap;
                for _ in 0..burst {
                    let (left, since) = model.get(&object).copied().unwrap_or((BURST, now));
                    let left = (left + (now - since) as f64 / REFILL_SECONDS).min(BURST);
                    let is_granted = left >= 1.0;
                    model.insert(object, (if is_granted { left - 1.0 } else { left }, now));
                    let decision = series.decide(&identity(&object.to_string(), "m"), at(now));
                    prop_assert_eq!(decision != Decision::Drop, is_granted);
                }
            }
            prop_assert!(series.budgets.of.values().all(|budget| (now - budget.at.as_second()) < 7500));
        }

        #[test]
        fn memory_is_bounded(count in 0usize..10_000) {
            let mut series = EventSeries::default();
            for index in 0..count {
                series.decide(&identity(&index.to_string(), "m"), at(0));
                series.written(identity("u", &index.to_string()), index.to_string(), at(0));
            }
            prop_assert!(series.written.len() <= REMEMBERED && series.order.len() == series.written.len());
            let budgets = &series.budgets;
            prop_assert!(budgets.of.len() <= REMEMBERED && budgets.by_age.len() == budgets.of.len());
        }
    }
}
