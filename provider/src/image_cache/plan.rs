//! Pure: no I/O, no clock, no randomness.
//!
//! What the hosts are to be told: which caches to build, and which to forget because their object is gone. It looks at
//! what is, not at what happened, so a restart of either side needs no memory of the other.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::hosts::{Host, serves};
use super::status::{has_failed, holds, image_set, is_observed, refresh, settings};
use crate::agent::CachePhase;
use crate::custom_resource::ImageCache;
use crate::identity;

/// Until a host that failed what another host managed is told again, the first time. It doubles from then on.
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(30);
/// Between the host's word that a build is on record and the build's first sign in what the host reports.
const FIRST_SIGN: SignedDuration = SignedDuration::from_secs(2);
/// The longest that it waits.
const LONGEST_RETRY: SignedDuration = SignedDuration::from_mins(30);

/// How long a deleted object waits for a host that is away.
const GONE: SignedDuration = SignedDuration::from_secs(10);
/// How long it waits for one that answers, and does not manage to forget the cache.
const SLOW: SignedDuration = SignedDuration::from_secs(60);

/// Which state of an object was meant: another one may build what this one could not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its generation.
    pub generation: Option<i64>,
    /// The key of the annotations that a build depends on.
    pub settings: Option<String>,
}

impl Version {
    /// The object's state as it is.
    pub fn of(cache: &ImageCache) -> Self {
        Self { generation: cache.metadata.generation, settings: settings(cache) }
    }
}

/// What a host has been told about a cache since this process started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The object at that time.
    pub of: Version,
    /// When.
    pub at: Timestamp,
    /// How often in a row it came to nothing.
    pub failures: u32,
    /// Whether the call itself failed, and may be repeated at once after the wait.
    pub unheard: bool,
    /// Why the host refused, when it did.
    pub refusal: Option<String>,
    /// Which Secrets brought no login, and why.
    pub unusable: Vec<String>,
}

/// When a deleted object may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Now.
    Now,
    /// When the hosts have forgotten the cache, and then at the latest.
    At(Timestamp),
}

/// What to do about one cache on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Tell it to build the cache.
    Build,
    /// Nothing before this time.
    Wait(Timestamp),
    /// Nothing.
    Nothing,
}

/// The id of an object's cache.
pub fn id_of(cache: &ImageCache) -> String {
    let given = cache.status.as_ref().and_then(|status| status.image_cache_id.clone());
    given.unwrap_or_else(|| identity::image_cache_id(cache.metadata.uid.as_deref().unwrap_or_default()))
}

/// What to tell a host about a cache.
pub fn step(cache: &ImageCache, host: &Host, told: Option<&Told>, is_held_elsewhere: bool, now: Timestamp) -> Step {
    if !host.is_known || !host.is_connected {
        return Step::Nothing;
    }
    let version = Version::of(cache);
    let is_told = told.is_some_and(|told| told.of == version);
    if let Some(told) = told.filter(|told| told.of == version && told.unheard) {
        return at(told.at + retry_after(told.failures), now);
    }
    let is_refused = is_told && told.is_some_and(|told| told.refusal.is_some());
    let Some(state) = host.caches.get(&id_of(cache)) else {
        if has_failed(cache) || is_refused {
            return Step::Nothing;
        }
        let since = told.filter(|_| is_told).map_or(Timestamp::MIN, |told| told.at + FIRST_SIGN);
        return at(since, now);
    };
    let wanted = image_set(cache.spec.images.iter().map(String::as_str));
    match state.phase {
        // The host takes the same images a second time as no change, so that a restart of ours may say it again.
        CachePhase::Creating | CachePhase::Updating => build_unless(is_told),
        CachePhase::Ready if holds(state, &wanted) && state.refresh == refresh(cache) => Step::Nothing,
        CachePhase::Ready => build_unless(is_told),
        CachePhase::UpdateFailed => build_unless(is_told || is_observed(cache)),
        CachePhase::Failed if is_held_elsewhere => {
            let failures = told.map_or(0, |told| told.failures);
            let since = told.map(|told| told.at).or(state.last_updated).unwrap_or(now);
            at(since + retry_after(failures), now)
        }
        CachePhase::Failed => build_unless(is_told || is_observed(cache)),
        CachePhase::Interrupted | CachePhase::UpdateInterrupted if is_refused => Step::Nothing,
        // Whatever was said before: the host has not been able to do it, and may be now.
        CachePhase::Interrupted | CachePhase::UpdateInterrupted => {
            let heard = told.filter(|_| is_told);
            at(heard.map_or(Timestamp::MIN, |told| told.at + ask_again_after(told.failures)), now)
        }
    }
}

/// Whether any host but this one can start pods from the cache.
pub fn is_held_elsewhere(cache: &ImageCache, node: &str, hosts: &BTreeMap<String, Host>) -> bool {
    let id = id_of(cache);
    hosts
        .iter()
        .filter(|(other, _)| *other != node)
        .any(|(_, host)| host.caches.get(&id).is_some_and(|state| serves(state.phase)))
}

/// Whether the object is on its way out.
pub fn is_leaving(cache: &ImageCache) -> bool {
    cache.metadata.deletion_timestamp.is_some()
}

/// The caches of a host, of those with the ids `among`, that it is not to hold. `wanted` are the ids of those that it is.
pub fn strays(among: &BTreeSet<String>, wanted: &BTreeSet<String>, host: &Host) -> Vec<String> {
    if !host.is_known || !host.is_connected {
        return Vec::new();
    }
    among.difference(wanted).filter(|id| host.caches.contains_key(*id)).cloned().collect()
}

/// When an object that is deleted may go: once every host that can be reached has forgotten the cache. A host that is away
/// forgets it when it comes back, as a stray, and none is waited for without end, so that no deletion ever hangs.
pub fn release(deleted: Timestamp, id: &str, hosts: &BTreeMap<String, Host>, now: Timestamp) -> Release {
    let may_hold = |host: &&Host| !host.is_known || host.caches.contains_key(id);
    let until = hosts.values().filter(may_hold).map(|host| if host.is_connected { SLOW } else { GONE }).max();
    match until.map(|wait| deleted + wait) {
        Some(until) if until > now => Release::At(until),
        Some(_) | None => Release::Now,
    }
}

/// How long to wait after so many failures in a row.
pub fn retry_after(failures: u32) -> SignedDuration {
    let doubled = FIRST_RETRY.checked_mul(1_i32.checked_shl(failures.min(16)).unwrap_or(i32::MAX));
    doubled.unwrap_or(LONGEST_RETRY).min(LONGEST_RETRY)
}

/// How long to wait before an interrupted build is asked for again. One restart of an agent costs no wait to speak of.
fn ask_again_after(failures: u32) -> SignedDuration {
    failures.checked_sub(1).map_or(FIRST_SIGN, retry_after)
}

fn build_unless(is_done: bool) -> Step {
    if is_done { Step::Nothing } else { Step::Build }
}

fn at(time: Timestamp, now: Timestamp) -> Step {
    if time <= now { Step::Build } else { Step::Wait(time) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{CacheState, CachedImage};
    use crate::custom_resource::{ImageCacheSpec, ImageCacheStatus, Phase};
    use rstest::rstest;

    fn now() -> Timestamp {
        Timestamp::from_second(10_000).unwrap()
    }

    fn cache(generation: i64, status: Option<(Phase, i64)>) -> ImageCache {
        let mut cache =
            ImageCache::new("c", ImageCacheSpec { images: vec!["nginx:1".to_owned()], ..Default::default() });
        cache.metadata.uid = Some("uid".to_owned());
        cache.metadata.generation = Some(generation);
        cache.status = status.map(|(phase, observed)| ImageCacheStatus {
            phase,
            observed_generation: Some(observed),
            ..Default::default()
        });
        cache
    }

    fn host(phase: Option<(CachePhase, &str)>) -> Host {
        let id = identity::image_cache_id("uid");
        let state = phase.map(|(phase, image)| CacheState {
            id: id.clone(),
            phase,
            images: vec![CachedImage { reference: image.to_owned(), ..Default::default() }],
            last_updated: Some(now()),
            ..Default::default()
        });
        Host {
            is_known: true,
            is_connected: true,
            lost_since: None,
            labels: None,
            caches: state.into_iter().map(|state| (id.clone(), state)).collect(),
        }
    }

    fn told(generation: i64) -> Option<Told> {
        let of = Version { generation: Some(generation), settings: None };
        Some(Told { of, at: now(), failures: 0, unheard: false, refusal: None, unusable: Vec::new() })
    }

    #[rstest]
    #[case::never_told(cache(1, None), host(None), None, Step::Build)]
    #[case::lost_by_the_host(cache(1, Some((Phase::Ready, 1))), host(None), told(1), Step::Wait(now() + FIRST_SIGN))]
    #[case::failed_for_good(cache(1, Some((Phase::Failed, 1))), host(None), None, Step::Nothing)]
    #[case::failed_and_edited(cache(2, Some((Phase::Failed, 1))), host(None), None, Step::Build)]
    #[case::after_our_restart(cache(1, None), host(Some((CachePhase::Creating, "nginx:1"))), None, Step::Build)]
    #[case::building(cache(1, None), host(Some((CachePhase::Creating, "nginx:1"))), told(1), Step::Nothing)]
    #[case::edited_while_building(cache(2, None), host(Some((CachePhase::Creating, "nginx:1"))), told(1), Step::Build)]
    #[case::done(cache(1, None), host(Some((CachePhase::Ready, "nginx:1"))), None, Step::Nothing)]
    #[case::edited(cache(2, None), host(Some((CachePhase::Ready, "redis:1"))), told(1), Step::Build)]
    #[case::edit_is_told_once(cache(2, None), host(Some((CachePhase::Ready, "redis:1"))), told(2), Step::Nothing)]
    #[case::update_failed(cache(2, Some((Phase::UpdateFailed, 2))), host(Some((CachePhase::UpdateFailed, "redis:1"))), None, Step::Nothing)]
    #[case::edited_again(cache(3, Some((Phase::UpdateFailed, 2))), host(Some((CachePhase::UpdateFailed, "redis:1"))), told(2), Step::Build)]
    #[case::failed(cache(1, Some((Phase::Failed, 1))), host(Some((CachePhase::Failed, "nginx:1"))), None, Step::Nothing)]
    #[case::interrupted(cache(1, None), host(Some((CachePhase::Interrupted, "nginx:1"))), told(1), Step::Wait(now() + FIRST_SIGN))]
    #[case::interrupted_and_our_restart(cache(1, Some((Phase::Creating, 1))), host(Some((CachePhase::Interrupted, "nginx:1"))), None, Step::Build)]
    #[case::interrupted_and_edited(cache(2, None), host(Some((CachePhase::Interrupted, "nginx:1"))), told(1), Step::Build)]
    #[case::interrupted_update(cache(2, Some((Phase::UpdateFailed, 2))), host(Some((CachePhase::UpdateInterrupted, "redis:1"))), None, Step::Build)]
    #[case::failed_and_edited_since(cache(2, Some((Phase::Failed, 1))), host(Some((CachePhase::Failed, "nginx:1"))), told(1), Step::Build)]
    fn steps(#[case] cache: ImageCache, #[case] host: Host, #[case] told: Option<Told>, #[case] expected: Step) {
        assert_eq!(step(&cache, &host, told.as_ref(), false, now()), expected);
        let away = Host { is_connected: false, ..host.clone() };
        assert_eq!(step(&cache, &away, told.as_ref(), false, now()), Step::Nothing);
        let unknown = Host { is_known: false, ..host };
        assert_eq!(step(&cache, &unknown, told.as_ref(), false, now()), Step::Nothing);
    }

    #[test]
    fn a_host_that_lost_a_cache_is_told_again() {
        let cache = cache(1, Some((Phase::Ready, 1)));
        let later = now() + FIRST_SIGN;
        assert_eq!(step(&cache, &host(None), told(1).as_ref(), false, later), Step::Build);
    }

    #[test]
    fn a_host_that_failed_tries_again_where_another_managed() {
        let (cache, host) = (cache(1, Some((Phase::Ready, 1))), host(Some((CachePhase::Failed, "nginx:1"))));
        assert_eq!(step(&cache, &host, None, true, now()), Step::Wait(now() + FIRST_RETRY));
        assert_eq!(step(&cache, &host, None, true, now() + FIRST_RETRY), Step::Build);
    }

    #[test]
    fn an_interrupted_build_is_asked_for_again_ever_more_slowly_unless_it_is_refused() {
        for phase in [CachePhase::Interrupted, CachePhase::UpdateInterrupted] {
            let (cache, host) = (cache(1, Some((Phase::Failed, 1))), host(Some((phase, "nginx:1"))));
            for (failures, seconds) in [(0, 2), (1, 30), (2, 60), (3, 120), (20, 1800)] {
                let told = Told { failures, ..told(1).unwrap() };
                let due = now() + SignedDuration::from_secs(seconds);
                assert_eq!(step(&cache, &host, Some(&told), false, now()), Step::Wait(due));
                assert_eq!(step(&cache, &host, Some(&told), false, due), Step::Build);
                let refused = Told { refusal: Some("no".to_owned()), ..told };
                assert_eq!(step(&cache, &host, Some(&refused), false, due), Step::Nothing);
            }
        }
    }

    #[test]
    fn a_call_that_was_not_heard_is_repeated_and_a_refusal_is_not() {
        let mut unheard = told(1).unwrap();
        unheard.unheard = true;
        assert_eq!(step(&cache(1, None), &host(None), Some(&unheard), false, now()), Step::Wait(now() + FIRST_RETRY));
        let mut refused = told(1).unwrap();
        refused.refusal = Some("no".to_owned());
        assert_eq!(step(&cache(1, None), &host(None), Some(&refused), false, now()), Step::Nothing);
        assert_eq!(step(&cache(2, None), &host(None), Some(&refused), false, now()), Step::Build);
    }

    #[test]
    fn waits_grow_to_a_limit() {
        let mut last = SignedDuration::ZERO;
        for failures in 0..100 {
            let wait = retry_after(failures);
            assert!(wait >= last && wait <= LONGEST_RETRY);
            last = wait;
        }
        assert_eq!(last, LONGEST_RETRY);
    }

    #[test]
    fn strays_are_what_the_host_is_not_to_hold() {
        let wanted = BTreeSet::from([identity::image_cache_id("uid")]);
        let mut host = host(Some((CachePhase::Ready, "nginx:1")));
        host.caches.insert("imc-stray".to_owned(), CacheState::default());
        let among =
            BTreeSet::from(["imc-stray".to_owned(), "imc-elsewhere".to_owned(), identity::image_cache_id("uid")]);
        assert_eq!(strays(&among, &wanted, &host), ["imc-stray"]);
        assert_eq!(strays(&wanted, &BTreeSet::new(), &host), [identity::image_cache_id("uid")]);
        host.is_known = false;
        assert_eq!(strays(&among, &wanted, &host), Vec::<String>::new());
    }

    #[test]
    fn a_deletion_waits_for_who_can_be_reached_and_never_without_end() {
        let id = identity::image_cache_id("uid");
        let holding = host(Some((CachePhase::Ready, "nginx:1")));
        let away = Host { is_connected: false, ..holding.clone() };
        let (empty, unheard) = (host(None), Host::default());
        let release = |hosts: &[&Host], seconds: i64| {
            let hosts = hosts.iter().enumerate().map(|(n, host)| (n.to_string(), (*host).clone())).collect();
            release(now(), &id, &hosts, now() + SignedDuration::from_secs(seconds))
        };
        assert_eq!(release(&[], 0), Release::Now);
        assert_eq!(release(&[&empty, &empty], 0), Release::Now);
        assert_eq!(release(&[&Host { is_connected: false, ..empty.clone() }], 0), Release::Now);
        for gone in [&away, &unheard] {
            assert_eq!(release(&[&empty, gone], 9), Release::At(now() + GONE));
            assert_eq!(release(&[&empty, gone], 10), Release::Now);
            assert_eq!(release(&[&holding, gone], 59), Release::At(now() + SLOW));
            assert_eq!(release(&[&holding, gone], 60), Release::Now);
        }
    }

    #[test]
    fn another_refresh_or_setting_has_it_built_again() {
        let annotate = |cache: ImageCache, key: &str| cache.annotated(&[(key, "2")]);
        let ready = host(Some((CachePhase::Ready, "nginx:1")));
        let refreshed = annotate(cache(1, Some((Phase::Ready, 1))), crate::custom_resource::REFRESH_ANNOTATION);
        assert_eq!(step(&refreshed, &ready, told(1).as_ref(), false, now()), Step::Build);
        let mut newer = ready.clone();
        newer.caches.values_mut().for_each(|state| state.refresh = "2".to_owned());
        assert_eq!(step(&refreshed, &newer, told(1).as_ref(), false, now()), Step::Nothing);
        let failed = host(Some((CachePhase::Failed, "nginx:1")));
        let changed = annotate(cache(1, Some((Phase::Failed, 1))), crate::custom_resource::PLAIN_HTTP_ANNOTATION);
        assert_eq!(step(&changed, &failed, told(1).as_ref(), false, now()), Step::Build);
        let elsewhere = annotate(cache(1, Some((Phase::Failed, 1))), "team");
        assert_eq!(step(&elsewhere, &failed, told(1).as_ref(), false, now()), Step::Nothing);
    }
}
