//! Pure: no I/O, no clock, no randomness.
//!
//! When an image cache ends by itself:
//! - one made by hand: `retentionDays` after its creation; never, when none are given;
//! - one made automatically: 7 days after its creation when no pod has started from it, else 30 days after the last did;
//! - any whose first build failed: 24 hours after the failure, at the latest. One that only waits, for a host that is away
//!   or for room under the limit, has not failed in this sense.

use jiff::{SignedDuration, Timestamp};

use crate::custom_resource::{AUTOMATIC_LABEL, ImageCache};

const DAY: SignedDuration = SignedDuration::from_hours(24);
/// How long an automatic cache is kept that nobody uses.
const UNUSED_DAYS: i32 = 7;
/// How long an automatic cache is kept after its last use.
const USED_DAYS: i32 = 30;

/// Whether the cache was made for a pod that matched none.
pub fn is_automatic(cache: &ImageCache) -> bool {
    cache.metadata.labels.as_ref().and_then(|labels| labels.get(AUTOMATIC_LABEL)).is_some_and(|value| value == "true")
}

/// When the cache ends. `has_failed` and `last_updated` are of its first build, `last_matched` is when a pod last used it.
pub fn expires(
    cache: &ImageCache,
    has_failed: bool,
    last_updated: Option<Timestamp>,
    last_matched: Option<Timestamp>,
) -> Option<Timestamp> {
    let created = cache.metadata.creation_timestamp.as_ref().map(|time| time.0)?;
    let annotations = cache.metadata.annotations.clone().unwrap_or_default();
    let by_age = if is_automatic(cache) {
        match last_matched {
            Some(used) => after(used, USED_DAYS),
            None => after(created, UNUSED_DAYS),
        }
    } else {
        let days = cache.spec.retention(&annotations).and_then(|days| i32::try_from(days).ok());
        days.and_then(|days| after(created, days))
    };
    let by_failure = if has_failed { after(last_updated.unwrap_or(created), 1) } else { None };
    match (by_age, by_failure) {
        (Some(age), Some(failure)) => Some(age.min(failure)),
        (age, failure) => age.or(failure),
    }
}

fn after(time: Timestamp, days: i32) -> Option<Timestamp> {
    time.checked_add(DAY.checked_mul(days)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use rstest::rstest;

    fn at(days: i64) -> Timestamp {
        Timestamp::from_second(days * 86_400).unwrap()
    }

    fn cache(days: Option<i64>, automatic: bool) -> ImageCache {
        let mut cache =
            ImageCache::new("c", crate::custom_resource::ImageCacheSpec { retention_days: days, ..Default::default() });
        cache.metadata.creation_timestamp = Some(Time(at(100)));
        if automatic {
            cache.metadata.labels = Some([(AUTOMATIC_LABEL.to_owned(), "true".to_owned())].into());
        }
        cache
    }

    #[rstest]
    #[case::kept_for_ever(cache(None, false), false, None, None)]
    #[case::by_days(cache(Some(7), false), false, None, Some(107))]
    #[case::use_does_not_prolong(cache(Some(7), false), false, Some(106), Some(107))]
    #[case::failed(cache(None, false), true, None, Some(103))]
    #[case::failed_and_short_lived(cache(Some(1), false), true, None, Some(101))]
    #[case::automatic_unused(cache(None, true), false, None, Some(107))]
    #[case::automatic_used(cache(None, true), false, Some(105), Some(135))]
    #[case::automatic_failed(cache(None, true), true, None, Some(103))]
    fn ends(
        #[case] cache: ImageCache,
        #[case] has_failed: bool,
        #[case] matched: Option<i64>,
        #[case] expected: Option<i64>,
    ) {
        assert_eq!(expires(&cache, has_failed, Some(at(102)), matched.map(at)), expected.map(at));
    }

    #[test]
    fn the_longest_retention_does_not_overflow() {
        let mut cache = cache(Some(65_536), false);
        cache.metadata.creation_timestamp = Some(Time(Timestamp::MAX));
        assert_eq!(expires(&cache, false, None, None), None);
    }
}
