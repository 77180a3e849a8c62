//! When a container runs again, and when an image or a part of a pod is tried again.
//!
//! The rules are the kubelet's: the first restart comes at once, the next after 10 s, then twice as long each time up to
//! 300 s; a container that ran for longer than 10 minutes after its last restart starts from the beginning.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The first delay (`kubelet`, `backOffPeriod` and `imageBackOffPeriod`).
pub const FIRST_DELAY: Duration = Duration::from_secs(10);
/// The longest delay (`MaxContainerBackOff`, `MaxImageBackOff`).
pub const LONGEST_DELAY: Duration = Duration::from_secs(300);
/// A container that ends later than this after its last restart is forgiven what was before.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// `restartPolicy` of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// Only after an exit code other than 0.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    /// Reads the field; absent and unknown values are `Always`, the API's default.
    pub fn of(field: Option<&str>) -> Self {
        match field {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }
}

/// What is remembered of a container's restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// What the next restart has to wait, counted from the end of the run.
    pub delay: Duration,
    /// When the last restart was due.
    pub since: Timestamp,
}

/// What becomes of a container that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has ended for good.
    GiveUp,
    /// It runs again.
    RestartAt {
        /// When.
        at: Timestamp,
        /// The delay that this is, zero for "at once".
        delay: Duration,
        /// What to remember from then on.
        then: BackOff,
    },
}

/// Decides on a container that ended at `finished_at`.
pub fn verdict(
    policy: RestartPolicy,
    succeeded: bool,
    history: Option<BackOff>,
    finished_at: Timestamp,
    now: Timestamp,
) -> Verdict {
    let again = match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => !succeeded,
        RestartPolicy::Never => false,
    };
    if !again {
        return Verdict::GiveUp;
    }
    let remembered = history.filter(|history| between(history.since, finished_at) <= FORGIVEN_AFTER);
    let Some(history) = remembered else {
        return Verdict::RestartAt { at: now, delay: Duration::ZERO, then: BackOff { delay: FIRST_DELAY, since: now } };
    };
    // A clock that was set back must not make the wait longer than the delay itself.
    let at = later(finished_at, history.delay).clamp(now, later(now, history.delay));
    let then = BackOff { delay: next_delay(Some(history.delay)), since: at };
    Verdict::RestartAt { at, delay: history.delay, then }
}

/// The delay after `previous`: 10 s, then twice as long each time, 300 s at most.
pub fn next_delay(previous: Option<Duration>) -> Duration {
    previous.map_or(FIRST_DELAY, |previous| (previous * 2).clamp(FIRST_DELAY, LONGEST_DELAY))
}

/// `time` plus `duration`, or the end of time.
pub fn later(time: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration).ok().and_then(|d| time.checked_add(d).ok()).unwrap_or(Timestamp::MAX)
}

/// Time from `from` to `to`; zero when `to` is earlier.
pub fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

/// A delay in Go's notation for whole seconds, as the kubelet's messages have it: `10s`, `1m20s`, `5m0s`.
pub fn go_seconds(delay: Duration) -> String {
    let seconds = delay.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn delays(ran_for: i64, runs: usize) -> Vec<u64> {
        let (mut now, mut history, mut delays) = (at(1_000), None, Vec::new());
        for _ in 0..runs {
            let finished = later(now, Duration::from_secs(ran_for.unsigned_abs()));
            let Verdict::RestartAt { at, delay, then } =
                verdict(RestartPolicy::Always, false, history, finished, finished)
            else {
                panic!("Always restarts");
            };
            delays.push(delay.as_secs());
            (now, history) = (at, Some(then));
        }
        delays
    }

    #[test]
    fn a_crash_loop_waits_as_the_kubelet_does() {
        assert_eq!(delays(1, 8), [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_is_forgiven() {
        assert_eq!(delays(601, 3), [0, 0, 0]);
        assert_eq!(delays(599, 3), [0, 10, 20]);
    }

    #[test]
    fn delays_read_as_go_prints_them() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s")] {
            assert_eq!(go_seconds(Duration::from_secs(seconds)), text);
        }
    }

    fn timestamps() -> impl Strategy<Value = Timestamp> {
        (Timestamp::MIN.as_second()..=Timestamp::MAX.as_second()).prop_map(at)
    }

    fn histories() -> impl Strategy<Value = Option<BackOff>> {
        proptest::option::of(
            (0_u64..10_000, timestamps())
                .prop_map(|(delay, since)| BackOff { delay: Duration::from_secs(delay), since }),
        )
    }

    proptest! {
        #[test]
        fn never_never_restarts(history in histories(), finished in timestamps(), now in timestamps(), ok: bool) {
            prop_assert_eq!(verdict(RestartPolicy::Never, ok, history, finished, now), Verdict::GiveUp);
        }

        #[test]
        fn success_ends_it_on_failure(history in histories(), finished in timestamps(), now in timestamps()) {
            prop_assert_eq!(verdict(RestartPolicy::OnFailure, true, history, finished, now), Verdict::GiveUp);
        }

        /// Whatever the clock does: never earlier than now, never later than the delay, and the delay to come is in range.
        #[test]
        fn waits_are_bounded(history in histories(), finished in timestamps(), now in timestamps()) {
            let verdict = verdict(RestartPolicy::Always, false, history, finished, now);
            let Verdict::RestartAt { at, delay, then } = verdict else { panic!("Always restarts") };
            prop_assert!(at >= now);
            prop_assert!(between(now, at) <= delay);
            prop_assert!((FIRST_DELAY..=LONGEST_DELAY).contains(&then.delay));
            prop_assert!(then.since == at);
        }

        #[test]
        fn the_next_delay_grows_to_the_cap(previous in 0_u64..100_000) {
            let next = next_delay(Some(Duration::from_secs(previous)));
            prop_assert!((FIRST_DELAY..=LONGEST_DELAY).contains(&next));
            prop_assert!(next >= Duration::from_secs(previous).min(LONGEST_DELAY));
        }
    }
}
