//! The only place that asks for the time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use larder_monitor::UnixNanos;

/// The time of day. A clock before 1970 reads as 1970.
#[expect(clippy::disallowed_methods, reason = "this is the place where the time comes in")]
pub(crate) fn now() -> UnixNanos {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixNanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A clock that never goes back, for deadlines.
#[expect(clippy::disallowed_methods, reason = "this is the place where the time comes in")]
pub(crate) fn instant() -> Instant {
    Instant::now()
}
