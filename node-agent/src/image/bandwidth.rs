//! How fast everything together may come from registries.

use std::{
    num::NonZeroU64,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A bound on bytes a second, shared by all transfers; they get their turns in the order in which they ask.
#[derive(Debug, Default)]
pub(super) struct Bandwidth {
    bytes_per_second: Option<NonZeroU64>,
    /// When the bytes that have been let through so far will have had their time.
    free_at: Mutex<Option<Instant>>,
}

impl Bandwidth {
    /// No bound where none is given.
    pub(super) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { bytes_per_second, free_at: Mutex::default() }
    }

    /// Waits until the time of what was let through before is over, and lets these bytes through.
    pub(super) async fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        let begins = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begins = free_at.map_or(now, |free_at| free_at.max(now));
            *free_at = Some(begins + time_for(bytes, rate));
            begins
        };
        if begins > now {
            tokio::time::sleep_until(begins).await;
        }
    }
}

fn time_for(bytes: usize, rate: NonZeroU64) -> Duration {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4).min(u64::MAX / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn transfers_share_what_there_is() {
        let bandwidth = Bandwidth::new(NonZeroU64::new(1 << 20));
        let begun = Instant::now();
        let transfer = async || {
            for _ in 0..32 {
                bandwidth.take(64 << 10).await;
            }
        };
        tokio::join!(transfer(), transfer());
        // Four mebibytes; the last piece need not be waited for.
        let took = begun.elapsed();
        assert!((Duration::from_millis(3900)..Duration::from_millis(4001)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_not_saved_up() {
        let bandwidth = Bandwidth::new(NonZeroU64::new(1000));
        bandwidth.take(1000).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        let begun = Instant::now();
        bandwidth.take(1000).await;
        bandwidth.take(1).await;
        assert_eq!(begun.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_bound_nobody_waits() {
        let begun = Instant::now();
        Bandwidth::default().take(usize::MAX).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(time_for(usize::MAX, NonZeroU64::MIN) > Duration::from_secs(1 << 20));
    }
}
