//! When to ask a registry again.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use jiff::Timestamp;

/// Failures in a row, without progress between them, after which an attempt is given up.
const MAX_FAILURES: u32 = 4;
/// The wait after the first failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait of our own choice.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// The longest wait that a registry may ask for within one attempt. A longer one ends the attempt: the pod's own back-off
/// shows it to the user, which a silent wait would not. It is kept to all the same, see [`super::pauses`].
const LONGEST_ASKED: Duration = Duration::from_secs(15);

/// The wait before the next try, after `failures` failures in a row (at least 1); none to give up. `jitter` is from 0 to 1.
pub fn wait(failures: u32, retry_after: Option<Duration>, jitter: f64) -> Option<Duration> {
    if failures >= MAX_FAILURES {
        return None;
    }
    if let Some(asked) = retry_after {
        return (asked <= LONGEST_ASKED).then(|| asked + FIRST_WAIT.mul_f64(jitter.clamp(0.0, 1.0)));
    }
    let doubled = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_WAIT);
    Some(doubled.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0)))
}

/// Reads a `Retry-After` header: seconds, or the date until which to wait. One that has passed is no time at all.
pub fn retry_after(header: &str, now: Timestamp) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(header).ok()?;
    Some(Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_and_gives_up() {
        let ms = |failures| wait(failures, None, 1.0).map(|d| d.as_millis());
        assert_eq!([ms(1), ms(2), ms(3), ms(4)], [Some(250), Some(500), Some(1000), None]);
    }

    #[test]
    fn waits_as_long_as_it_is_asked_to_but_not_for_ever() {
        assert_eq!(wait(1, Some(Duration::from_secs(3)), 0.0), Some(Duration::from_secs(3)));
        assert_eq!(wait(1, Some(Duration::from_secs(60)), 0.0), None);
    }

    #[test]
    fn reads_seconds_and_dates() {
        let now: Timestamp = "2015-10-21T07:27:50Z".parse().unwrap();
        let seconds = |header| retry_after(header, now).map(|wait| wait.as_secs());
        for (header, expected) in [
            (" 7 ", Some(7)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(10)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(seconds(header), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn a_wait_is_short_and_never_below_what_was_asked(
            failures in 1u32..100, asked in proptest::option::of(0u64..100), jitter in -1.0f64..2.0
        ) {
            let asked = asked.map(Duration::from_secs);
            if let Some(wait) = wait(failures, asked, jitter) {
                prop_assert!(wait <= LONGEST_ASKED + FIRST_WAIT);
                prop_assert!(asked.is_none_or(|asked| wait >= asked));
                prop_assert!(failures < MAX_FAILURES);
            }
        }
    }
}
