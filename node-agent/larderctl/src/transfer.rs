//! How far a transfer is and how fast it goes, in figures and in words.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::figures;

/// A rate is that of the last seconds, so that a transfer that stalls is seen to.
const SPAN: SignedDuration = SignedDuration::from_secs(10);

/// How much of an image has come, of what was not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Transfer {
    pub(crate) done_layers: u32,
    pub(crate) total_layers: u32,
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: u64,
}

impl Transfer {
    /// `1/4`; `-` where it is not known yet.
    pub(crate) fn layers(self) -> String {
        if self.total_layers == 0 { "-".to_owned() } else { format!("{}/{}", self.done_layers, self.total_layers) }
    }

    /// `12.0 MiB/100.0 MiB`; `-` where it is not known yet.
    pub(crate) fn bytes(self) -> String {
        if self.total_bytes == 0 {
            "-".to_owned()
        } else {
            format!("{}/{}", figures::bytes(self.done_bytes), figures::bytes(self.total_bytes))
        }
    }

    /// `1/4 layers, 12.0 MiB/100.0 MiB (12%), 5.0 MiB/s`.
    pub(crate) fn words(self, bytes_per_second: u64) -> String {
        if self.total_bytes == 0 {
            return "asking the registry".to_owned();
        }
        let percent = figures::percent(self.done_bytes, self.total_bytes);
        let bytes = format!("{} ({percent}%), {}", self.bytes(), figures::rate(bytes_per_second));
        // An older agent does not tell of layers.
        if self.total_layers == 0 { bytes } else { format!("{} layers, {bytes}", self.layers()) }
    }
}

/// How fast bytes come.
#[derive(Debug)]
pub(crate) struct Rate {
    /// How many bytes there were when; the oldest is what the newest is compared with.
    seen: VecDeque<(Timestamp, u64)>,
}

impl Rate {
    /// Of a transfer that began at this time with nothing.
    pub(crate) fn since(start: Timestamp) -> Self {
        Self { seen: VecDeque::from([(start, 0)]) }
    }

    /// Takes in how many bytes have come by now; gives how many come in a second.
    pub(crate) fn take(&mut self, bytes: u64, now: Timestamp) -> u64 {
        self.seen.push_back((now, bytes));
        while self.seen.get(1).is_some_and(|(time, _)| now.duration_since(*time) >= SPAN) {
            self.seen.pop_front();
        }
        let Some(&(start, before)) = self.seen.front() else { return 0 };
        let took = u128::try_from(now.duration_since(start).as_millis()).unwrap_or(0);
        let came = u128::from(bytes.saturating_sub(before)) * 1000;
        u64::try_from(came.checked_div(took).unwrap_or(0)).unwrap_or(u64::MAX)
    }
}

/// What of a transfer is worth a line where nobody can see a bar: each layer that is whole, and each tenth of the bytes.
#[derive(Debug, Default)]
pub(crate) struct Milestones {
    last: Option<(u32, u64)>,
}

impl Milestones {
    /// Whether one has been reached since the last call.
    pub(crate) fn reached(&mut self, transfer: Transfer) -> bool {
        if transfer.total_bytes == 0 {
            return false;
        }
        let reached = (transfer.done_layers, figures::percent(transfer.done_bytes, transfer.total_bytes) / 10);
        self.last.replace(reached) != Some(reached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Transfer = Transfer { done_layers: 1, total_layers: 4, done_bytes: 6 << 20, total_bytes: 12 << 20 };

    #[test]
    fn what_is_not_known_is_not_told() {
        assert_eq!(HALF.words(5 << 20), "1/4 layers, 6.0 MiB/12.0 MiB (50%), 5.0 MiB/s");
        let older = Transfer { done_layers: 0, total_layers: 0, ..HALF };
        assert_eq!((older.layers(), older.words(0)), ("-".to_owned(), "6.0 MiB/12.0 MiB (50%), 0 B/s".to_owned()));
        let asking = Transfer::default();
        assert_eq!((asking.bytes(), asking.words(0)), ("-".to_owned(), "asking the registry".to_owned()));
    }

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let mut rate = Rate::since(at(100));
        assert_eq!(rate.take(0, at(100)), 0, "no time has passed");
        assert_eq!(rate.take(4000, at(104)), 1000, "from its beginning");
        for second in 105..114 {
            rate.take(4000, at(second));
        }
        assert_eq!(rate.take(4000, at(114)), 0, "it stalls");
        assert_eq!(rate.take(14_000, at(115)), 1000);
        assert!(rate.seen.len() <= 12, "{rate:?}");
        assert_eq!(rate.take(0, at(116)), 0, "begun anew");
        assert_eq!(rate.take(1, at(90)), 0, "a clock that went back");
    }

    #[test]
    fn a_line_is_worth_a_layer_or_a_tenth() {
        let mut milestones = Milestones::default();
        let step = |done_layers, done_bytes| Transfer { done_layers, total_layers: 2, done_bytes, total_bytes: 100 };
        assert!(!milestones.reached(Transfer::default()), "it is not known what there is");
        let steps = [(0, 0), (0, 9), (0, 10), (0, 19), (1, 19), (1, 60), (1, 60), (2, 100)];
        let told = steps.map(|(layers, bytes)| milestones.reached(step(layers, bytes)));
        assert_eq!(told, [true, false, true, false, true, true, false, true]);
    }
}
