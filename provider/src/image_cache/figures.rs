//! Pure: no I/O, no clock, no randomness.
//!
//! How builds of image caches go, seen from the phases of their objects: which have ended since the last look and how long
//! they took, and how many caches there are in each phase.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::custom_resource::{ImageCache, Phase};

/// Every phase, as the objects name it.
pub const PHASES: [(Phase, &str); 6] = [
    (Phase::Pending, "Pending"),
    (Phase::Creating, "Creating"),
    (Phase::Ready, "Ready"),
    (Phase::Failed, "Failed"),
    (Phase::Updating, "Updating"),
    (Phase::UpdateFailed, "UpdateFailed"),
];

/// The builds that are under way.
#[derive(Debug, Default)]
pub struct Builds {
    /// By UID of the object: since when it is built. A cache that is not built is not here.
    since: BTreeMap<String, Timestamp>,
}

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Builds that have ended since the look before: whether the cache is Ready, and how long it took.
    pub ended: Vec<(bool, SignedDuration)>,
    /// Caches by phase; every phase is there.
    pub phases: BTreeMap<&'static str, i64>,
}

impl Builds {
    /// Looks at all objects. A build that had begun before the first look counts from there.
    pub fn look<'a>(&mut self, caches: impl IntoIterator<Item = &'a ImageCache>, now: Timestamp) -> Found {
        let mut found = Found { phases: PHASES.iter().map(|(_, name)| (*name, 0)).collect(), ..Found::default() };
        let before = std::mem::take(&mut self.since);
        for cache in caches {
            let phase = cache.status.as_ref().map(|status| status.phase).unwrap_or_default();
            if let Some((_, name)) = PHASES.iter().find(|(known, _)| *known == phase) {
                *found.phases.entry(name).or_default() += 1;
            }
            let uid = cache.metadata.uid.clone().unwrap_or_default();
            let since = before.get(&uid).copied();
            match phase {
                Phase::Pending | Phase::Creating | Phase::Updating => {
                    self.since.insert(uid, since.unwrap_or(now));
                }
                Phase::Ready | Phase::Failed | Phase::UpdateFailed => {
                    found.ended.extend(since.map(|since| (phase == Phase::Ready, now.duration_since(since))));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom_resource::{ImageCacheSpec, ImageCacheStatus};

    fn cache(uid: &str, phase: Phase) -> ImageCache {
        let mut cache = ImageCache::new(uid, ImageCacheSpec::default());
        cache.metadata.uid = Some(uid.to_owned());
        cache.status = Some(ImageCacheStatus { phase, ..ImageCacheStatus::default() });
        cache
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_build_is_counted_once_when_it_ends() {
        let mut builds = Builds::default();
        let seconds = SignedDuration::from_secs;
        assert_eq!(builds.look(&[cache("a", Phase::Pending), cache("b", Phase::Creating)], at(0)).ended, []);
        assert_eq!(
            builds.look(&[cache("a", Phase::Creating), cache("b", Phase::Ready)], at(5)).ended,
            [(true, seconds(5))]
        );
        let found = builds.look(&[cache("a", Phase::Failed), cache("b", Phase::Ready)], at(7));
        assert_eq!(found.ended, [(false, seconds(7))]);
        assert_eq!((found.phases["Ready"], found.phases["Failed"], found.phases["Creating"]), (1, 1, 0));
        assert_eq!(builds.look(&[cache("a", Phase::Failed), cache("b", Phase::Updating)], at(8)).ended, []);
        assert_eq!(builds.look(&[cache("b", Phase::UpdateFailed)], at(9)).ended, [(false, seconds(1))]);
    }

    #[test]
    fn what_was_done_before_we_looked_and_what_was_deleted_is_not_counted() {
        let mut builds = Builds::default();
        assert_eq!(builds.look(&[cache("a", Phase::Ready), cache("b", Phase::Creating)], at(0)).ended, []);
        assert_eq!(builds.look(&[], at(1)).ended, []);
        assert_eq!(builds.look(&[cache("b", Phase::Ready)], at(2)).ended, []);
    }
}
