//! Growing waits between tries that never end.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Waits that double up to a cap, with jitter, for ever.
#[derive(Debug)]
pub(super) struct Backoff {
    builder: ExponentialBuilder,
    waits: ExponentialBackoff,
    cap: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, cap: Duration) -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(first)
            .with_max_delay(cap)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        Self { builder, waits: builder.build(), cap }
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        self.waits.next().unwrap_or(self.cap)
    }

    /// Begins again with the shortest.
    pub(super) fn reset(&mut self) {
        self.waits = self.builder.build();
    }
}
