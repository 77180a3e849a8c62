//! The parts of a pod that are made, then given back: sandbox, volumes, what is left of containers, record.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use jiff::Timestamp;

use super::{Retry, Step};
use crate::pod::restart;

/// The delay before taking something away is tried again.
const RELEASE_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The sandbox, or the volumes, or what is left of containers: made, then given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Not there yet.
    Absent,
    /// Under way for the first time: nothing is there.
    Making {
        /// What it is made of has changed meanwhile.
        again: bool,
    },
    /// There.
    Ready,
    /// There, and being brought up to date.
    Updating {
        /// It has changed once more meanwhile.
        again: bool,
    },
    /// It could not be made; tried again.
    MakeFailed(Retry),
    /// On its way out.
    Releasing,
    /// It could not be taken away; tried again.
    ReleaseFailed(Retry),
    /// Taken away.
    Released,
}

impl Part {
    /// It is there.
    pub(super) fn made(&mut self) {
        if matches!(self, Self::Making { .. }) {
            *self = Self::Ready;
        }
    }

    /// It could not be made.
    pub(super) fn make_failed(&mut self, now: Timestamp) {
        if matches!(self, Self::Making { .. }) {
            *self = Self::MakeFailed(retry(now, restart::FIRST_DELAY));
        }
    }

    /// It is taken away.
    pub(super) fn released(&mut self) {
        if *self == Self::Releasing {
            *self = Self::Released;
        }
    }

    /// It could not be taken away.
    pub(super) fn release_failed(&mut self, now: Timestamp) {
        if *self == Self::Releasing {
            *self = Self::ReleaseFailed(retry(now, RELEASE_AGAIN_AFTER));
        }
    }

    /// Begins to make it with `step`, if that is due.
    pub(super) fn make_when_due(&mut self, now: Timestamp, step: Step, steps: &mut Vec<Step>) {
        let due = match self {
            Self::Absent => true,
            Self::MakeFailed(retry) => retry.at <= now,
            Self::Making { .. }
            | Self::Ready
            | Self::Updating { .. }
            | Self::Releasing
            | Self::ReleaseFailed(_)
            | Self::Released => false,
        };
        if due {
            *self = Self::Making { again: false };
            steps.push(step);
        }
    }

    /// Begins to take it away with `step`, if that is due.
    pub(super) fn release_when_due(&mut self, now: Timestamp, step: Step, steps: &mut Vec<Step>) {
        let due = match self {
            // What was never made here may have been made by an earlier life of this process.
            Self::Absent | Self::Ready | Self::MakeFailed(_) => true,
            Self::ReleaseFailed(retry) => retry.at <= now,
            Self::Making { .. } | Self::Updating { .. } | Self::Releasing | Self::Released => false,
        };
        if due {
            *self = Self::Releasing;
            steps.push(step);
        }
    }

    /// When making it is tried again.
    pub(super) fn make_due(&self) -> Option<Timestamp> {
        match self {
            Self::MakeFailed(retry) => Some(retry.at),
            Self::Absent
            | Self::Making { .. }
            | Self::Ready
            | Self::Updating { .. }
            | Self::Releasing
            | Self::ReleaseFailed(_)
            | Self::Released => None,
        }
    }

    /// When taking it away is tried again.
    pub(super) fn release_due(&self) -> Option<Timestamp> {
        match self {
            Self::ReleaseFailed(retry) => Some(retry.at),
            Self::Absent
            | Self::Making { .. }
            | Self::MakeFailed(_)
            | Self::Ready
            | Self::Updating { .. }
            | Self::Releasing
            | Self::Released => None,
        }
    }
}

fn retry(now: Timestamp, delay: Duration) -> Retry {
    Retry { at: restart::later(now, delay), delay }
}
