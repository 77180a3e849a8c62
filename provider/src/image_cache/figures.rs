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

/// The objects as they were seen last.
#[derive(Debug, Default)]
pub struct Builds {
    /// By name.
    seen: BTreeMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    uid: Option<String>,
    phase: Phase,
    /// Since when it is built; nothing while it is not.
    since: Option<Timestamp>,
}

impl Builds {
    /// Looks at the object of this name, or at its absence. A build that has ended since the look before: whether the cache
    /// is Ready, and how long it took. One that had begun before the first look counts from there.
    pub fn look(&mut self, name: &str, cache: Option<&ImageCache>, now: Timestamp) -> Option<(bool, SignedDuration)> {
        let before = self.seen.remove(name);
        let cache = cache?;
        let uid = cache.metadata.uid.clone();
        let since = before.filter(|before| before.uid == uid).and_then(|before| before.since);
        let phase = cache.status.as_ref().map(|status| status.phase).unwrap_or_default();
        let (since, ended) = match phase {
            Phase::Pending | Phase::Creating | Phase::Updating => (Some(since.unwrap_or(now)), None),
            Phase::Ready | Phase::Failed | Phase::UpdateFailed => {
                (None, since.map(|since| (phase == Phase::Ready, now.duration_since(since))))
            }
        };
        self.seen.insert(name.to_owned(), Seen { uid, phase, since });
        ended
    }

    /// The names of the objects that were there.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.seen.keys()
    }

    /// How many objects are in each phase; every phase is there.
    pub fn phases(&self) -> impl Iterator<Item = (&'static str, i64)> {
        let count = |phase: Phase| self.seen.values().filter(|seen| seen.phase == phase).count();
        PHASES.iter().map(move |(phase, name)| (*name, i64::try_from(count(*phase)).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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

    /// Looks at all objects, and at those that are gone.
    fn look(builds: &mut Builds, caches: &[ImageCache], now: Timestamp) -> Vec<(bool, SignedDuration)> {
        let mut names: BTreeSet<String> = builds.names().cloned().collect();
        names.extend(caches.iter().filter_map(|cache| cache.metadata.name.clone()));
        let find = |name: &str| caches.iter().find(|cache| cache.metadata.name.as_deref() == Some(name));
        names.iter().filter_map(|name| builds.look(name, find(name), now)).collect()
    }

    #[test]
    fn a_build_is_counted_once_when_it_ends() {
        let mut builds = Builds::default();
        let seconds = SignedDuration::from_secs;
        let mut at = |caches: &[ImageCache], second| look(&mut builds, caches, at(second));
        assert_eq!(at(&[cache("a", Phase::Pending), cache("b", Phase::Creating)], 0), []);
        assert_eq!(at(&[cache("a", Phase::Creating), cache("b", Phase::Ready)], 5), [(true, seconds(5))]);
        assert_eq!(at(&[cache("a", Phase::Failed), cache("b", Phase::Ready)], 7), [(false, seconds(7))]);
        assert_eq!(at(&[cache("a", Phase::Failed), cache("b", Phase::Updating)], 8), []);
        assert_eq!(at(&[cache("b", Phase::UpdateFailed)], 9), [(false, seconds(1))]);
    }

    #[test]
    fn every_phase_is_counted() {
        let mut builds = Builds::default();
        let caches = [cache("a", Phase::Failed), cache("b", Phase::Ready), cache("c", Phase::Ready)];
        look(&mut builds, &caches, at(0));
        let phases: BTreeMap<&str, i64> = builds.phases().collect();
        assert_eq!((phases["Ready"], phases["Failed"], phases["Creating"], phases.len()), (2, 1, 0, 6));
        look(&mut builds, &caches[2..], at(1));
        assert_eq!(builds.phases().map(|(_, count)| count).sum::<i64>(), 1);
    }

    #[test]
    fn what_was_done_before_we_looked_and_what_was_deleted_is_not_counted() {
        let mut builds = Builds::default();
        let mut at = |caches: &[ImageCache], second| look(&mut builds, caches, at(second));
        assert_eq!(at(&[cache("a", Phase::Ready), cache("b", Phase::Creating)], 0), []);
        assert_eq!(at(&[], 1), []);
        assert_eq!(at(&[cache("b", Phase::Creating)], 2), []);
        let mut another = cache("b", Phase::Ready);
        another.metadata.uid = Some("another".to_owned());
        assert_eq!(at(&[another], 3), []);
    }
}
