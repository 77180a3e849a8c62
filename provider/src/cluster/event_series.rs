//! Which events are written anew, which are counted onto an earlier one, and which are too many.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;

/// An event that says the same of the same thing within this time is counted onto the earlier one, in seconds.
const SERIES_SECONDS: i64 = 600;
/// How many different events are remembered.
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
    budgets: BTreeMap<String, Budget>,
}

impl EventSeries {
    /// Decides about an event that happened at `now`.
    pub(super) fn decide(&mut self, identity: &Identity, now: Timestamp) -> Decision {
        if !self.spend(&identity.object_uid, now) {
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

    fn spend(&mut self, object: &str, now: Timestamp) -> bool {
        if self.budgets.len() > REMEMBERED {
            // A full budget is what an unknown object has, so forgetting it changes nothing.
            self.budgets.retain(|_, budget| now.as_second() - budget.at.as_second() < 3600);
        }
        let budget = self.budgets.entry(object.to_owned()).or_insert(Budget { left: BURST, at: now });
        let passed = now.duration_since(budget.at).as_secs_f64().max(0.0);
        budget.left = (budget.left + passed / REFILL_SECONDS).min(BURST);
        budget.at = budget.at.max(now);
        if budget.left < 1.0 {
            return false;
        }
        budget.left -= 1.0;
        true
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

        #[test]
        fn memory_is_bounded(count in 0usize..10_000) {
            let mut series = EventSeries::default();
            for index in 0..count {
                series.written(identity("u", &index.to_string()), index.to_string(), at(0));
            }
            prop_assert!(series.written.len() <= REMEMBERED && series.order.len() == series.written.len());
        }
    }
}
