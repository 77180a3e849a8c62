//! Pure: no I/O, no clock, no randomness.
//!
//! What the next look is to go over: what was touched since the look before, and what is due. A look at everything after
//! each message would make a thousand objects that come at once a million looks.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::image_cache::jobs::Subject;

/// A thing that is looked at by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Spot {
    /// The object of this name.
    Object(String),
    /// What hosts hold under this id, and the objects of it.
    Cache(String),
}

/// What is to be looked at.
#[derive(Debug)]
pub(super) struct Agenda {
    /// Something that all depend on has changed.
    everything: bool,
    touched: BTreeSet<Spot>,
    /// When a thing is to be looked at again though nobody touches it.
    due: BTreeMap<Spot, Timestamp>,
}

/// What one look goes over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everything.
    All,
    /// These alone.
    Some(BTreeSet<Spot>),
}

impl Default for Agenda {
    /// Nothing has been looked at yet.
    fn default() -> Self {
        Self { everything: true, touched: BTreeSet::new(), due: BTreeMap::new() }
    }
}

impl Agenda {
    /// Something has changed that any object may depend on.
    pub(super) fn touch_all(&mut self) {
        self.everything = true;
    }

    /// Something of this one has changed.
    pub(super) fn touch(&mut self, spot: Spot) {
        self.touched.insert(spot);
    }

    /// What a job was about may have changed, and another may be begun.
    pub(super) fn touch_subject(&mut self, subject: &Subject) {
        if let Some(spot) = spot_of(subject) {
            self.touch(spot);
        }
    }

    /// What is to be looked at now. It is off the list with that.
    pub(super) fn take(&mut self, now: Timestamp) -> Scope {
        let mut spots = std::mem::take(&mut self.touched);
        if std::mem::take(&mut self.everything) {
            self.due.clear();
            return Scope::All;
        }
        spots.extend(self.due.extract_if(.., |_, time| *time <= now).map(|(spot, _)| spot));
        Scope::Some(spots)
    }

    /// Whatever was due of it is found anew by the look that begins.
    pub(super) fn forget(&mut self, spot: &Spot) {
        self.due.remove(spot);
    }

    /// Has it looked at at that time, unless it is due before.
    pub(super) fn wake_at(&mut self, spot: Spot, time: Timestamp) {
        self.due.entry(spot).and_modify(|known| *known = time.min(*known)).or_insert(time);
    }

    /// When the first thing is due.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.due.values().min().copied()
    }
}

/// What is looked at when a job about `subject` has ended or may begin. The job that makes an object touches it by itself.
pub(super) fn spot_of(subject: &Subject) -> Option<Spot> {
    match subject {
        Subject::Build { id, .. } | Subject::Forget { id, .. } => Some(Spot::Cache(id.clone())),
        Subject::Status { name } | Subject::Remove { name } | Subject::Finalizers { name } => {
            Some(Spot::Object(name.clone()))
        }
        Subject::Create { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn object(name: &str) -> Spot {
        Spot::Object(name.to_owned())
    }

    fn some(names: &[&str]) -> Scope {
        Scope::Some(names.iter().copied().map(object).collect())
    }

    #[test]
    fn the_first_look_is_at_everything_and_the_next_at_nothing() {
        let mut agenda = Agenda::default();
        assert_eq!(agenda.take(at(0)), Scope::All);
        assert_eq!(agenda.take(at(0)), some(&[]));
    }

    #[test]
    fn what_was_touched_or_is_due_is_looked_at_once() {
        let mut agenda = Agenda::default();
        agenda.take(at(0));
        agenda.wake_at(object("a"), at(10));
        agenda.wake_at(object("a"), at(20));
        agenda.wake_at(object("b"), at(30));
        agenda.touch(object("c"));
        assert_eq!(agenda.next(), Some(at(10)));
        assert_eq!(agenda.take(at(9)), some(&["c"]));
        assert_eq!(agenda.take(at(10)), some(&["a"]));
        assert_eq!(agenda.next(), Some(at(30)));
        agenda.forget(&object("b"));
        assert_eq!((agenda.next(), agenda.take(at(30))), (None, some(&[])));
    }

    #[test]
    fn a_look_at_everything_finds_anew_what_is_due() {
        let mut agenda = Agenda::default();
        agenda.wake_at(object("a"), at(10));
        agenda.touch(object("a"));
        assert_eq!(agenda.take(at(0)), Scope::All);
        assert_eq!((agenda.next(), agenda.take(at(10))), (None, some(&[])));
    }
}
