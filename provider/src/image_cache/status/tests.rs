//! Tables of the status.

use rstest::rstest;

use super::*;
use crate::agent::CachedImage;
use crate::custom_resource::ImageCacheSpec;

const ID: &str = "imc-aaaaaaaaaaaaaaaaaaaa";

fn cache() -> ImageCache {
    let mut cache = ImageCache::new("c", ImageCacheSpec { images: vec!["nginx:1".to_owned()], ..Default::default() });
    cache.metadata.generation = Some(3);
    cache.metadata.creation_timestamp = Some(Time(Timestamp::from_second(1_000).unwrap()));
    cache
}

fn state(phase: CachePhase, progress_percent: u32, image: &str) -> CacheState {
    CacheState {
        id: ID.to_owned(),
        phase,
        progress_percent,
        reason: if matches!(phase, CachePhase::Failed | CachePhase::UpdateFailed) { "no room" } else { "" }.to_owned(),
        images: vec![CachedImage { reference: image.to_owned(), ..CachedImage::default() }],
        last_updated: Some(Timestamp::from_millisecond(2_000_700).unwrap()),
        ..CacheState::default()
    }
}

fn known(state: Option<&CacheState>) -> Report<'_> {
    Report { node: "n", is_known: true, is_away: false, state, is_told: true, refusal: None }
}

fn now() -> Timestamp {
    Timestamp::from_second(9_000).unwrap()
}

fn at(cache: &ImageCache, reports: &[Report<'_>], last_matched: Option<Timestamp>, now: Timestamp) -> ImageCacheStatus {
    status(cache, &Around { id: ID, reports, obstacle: None, unusable: Some(&[]), last_matched, now })
}

fn of(cache: &ImageCache, reports: &[Report<'_>]) -> ImageCacheStatus {
    at(cache, reports, None, now())
}

fn brief(status: &ImageCacheStatus) -> (Phase, &str, &str) {
    (status.phase, &status.progress, &status.reason)
}

#[rstest]
#[case::nobody_began(None, (Phase::Pending, "0%", ""))]
#[case::creating(Some(state(CachePhase::Creating, 40, "nginx:1")), (Phase::Creating, "40%", ""))]
#[case::not_ready_before_it_is(Some(state(CachePhase::Creating, 100, "nginx:1")), (Phase::Creating, "99%", ""))]
#[case::ready(Some(state(CachePhase::Ready, 100, "docker.io/library/nginx:1")), (Phase::Ready, "100%", ""))]
#[case::edited(Some(state(CachePhase::Ready, 100, "redis:1")), (Phase::Updating, "0%", ""))]
#[case::updating(Some(state(CachePhase::Updating, 30, "redis:1")), (Phase::Updating, "30%", ""))]
#[case::update_failed(Some(state(CachePhase::UpdateFailed, 30, "redis:1")), (Phase::UpdateFailed, "0%", "no room"))]
#[case::interrupted(Some(state(CachePhase::Interrupted, 0, "nginx:1")), (Phase::Creating, "0%", ""))]
#[case::interrupted_update(Some(state(CachePhase::UpdateInterrupted, 0, "redis:1")), (Phase::Updating, "0%", ""))]
#[case::failed(Some(state(CachePhase::Failed, 30, "nginx:1")), (Phase::Failed, "0%", "no room"))]
fn one_host(#[case] state: Option<CacheState>, #[case] expected: (Phase, &str, &str)) {
    assert_eq!(brief(&of(&cache(), &[known(state.as_ref())])), expected);
}

#[test]
fn the_first_host_that_holds_it_makes_it_ready() {
    let (ready, failed) = (state(CachePhase::Ready, 100, "nginx:1"), state(CachePhase::Failed, 0, "nginx:1"));
    let reports = [known(Some(&failed)), known(Some(&ready)), known(None)];
    assert_eq!(brief(&of(&cache(), &reports)), (Phase::Ready, "100%", ""));
}

#[test]
fn it_has_failed_when_every_host_has() {
    let failed = state(CachePhase::Failed, 0, "nginx:1");
    let reports = [known(Some(&failed)), known(None)];
    assert_eq!(of(&cache(), &reports).phase, Phase::Pending);
    let refused = Report { refusal: Some("no"), ..known(None) };
    let status = of(&cache(), &[known(Some(&failed)), refused]);
    assert_eq!(brief(&status), (Phase::Failed, "0%", "n: no room"));
    assert_eq!(status.expire_date_time, Some(Time(Timestamp::from_second(2_000 + 86_400).unwrap())));
}

#[test]
fn an_interrupted_build_that_is_refused_has_failed() {
    for (phase, expected) in
        [(CachePhase::Interrupted, Phase::Failed), (CachePhase::UpdateInterrupted, Phase::UpdateFailed)]
    {
        let interrupted = state(phase, 0, "redis:1");
        let refused = Report { refusal: Some("no"), ..known(Some(&interrupted)) };
        assert_eq!(brief(&of(&cache(), &[refused])), (expected, "0%", "no"));
    }
}

#[test]
fn a_host_that_is_away_does_not_unmake_a_cache() {
    let mut cache = cache();
    cache.status = Some(ImageCacheStatus { phase: Phase::Ready, progress: "100%".to_owned(), ..Default::default() });
    let away = Report { is_known: false, ..known(None) };
    assert_eq!(brief(&of(&cache, &[away])), (Phase::Ready, "100%", ""));
    assert_eq!(brief(&of(&cache, &[known(None)])), (Phase::Pending, "0%", ""));
}

fn away(state: Option<&CacheState>) -> Report<'_> {
    Report { node: "x", is_away: true, ..known(state) }
}

#[test]
fn a_host_that_is_away_is_neither_building_nor_awaited() {
    let (creating, failed) = (state(CachePhase::Creating, 40, "nginx:1"), state(CachePhase::Failed, 0, "nginx:1"));
    for lost in [Some(&creating), None] {
        let alone = of(&cache(), &[away(lost)]);
        assert_eq!(brief(&alone), (Phase::Failed, "0%", "host x is away"));
        // It has not failed for good: it is there when the host is back, and goes on by itself then.
        assert_eq!((alone.observed_generation, alone.expire_date_time.clone()), (None, None));
        let mut waiting = cache();
        waiting.status = Some(alone);
        assert!(!has_failed(&waiting));
        assert_eq!(of(&waiting, &[known(None)]).phase, Phase::Pending);
        assert_eq!(of(&waiting, &[known(Some(&creating))]).phase, Phase::Creating);

        let others_fail = of(&cache(), &[known(Some(&failed)), away(lost)]);
        assert_eq!(brief(&others_fail), (Phase::Failed, "0%", "n: no room"));
        assert_eq!(others_fail.observed_generation, Some(3));
        assert_eq!(of(&cache(), &[known(None), away(lost)]).phase, Phase::Pending);
        let other_builds = of(&cache(), &[known(Some(&creating)), away(lost)]);
        assert_eq!(brief(&other_builds), (Phase::Creating, "40%", ""));
    }
    let ready = state(CachePhase::Ready, 100, "nginx:1");
    assert_eq!(of(&cache(), &[away(Some(&ready))]).phase, Phase::Ready);
}

#[test]
fn an_update_whose_host_is_away_has_failed_until_it_is_back() {
    let outdated = state(CachePhase::Ready, 100, "redis:1");
    let updating = state(CachePhase::Updating, 30, "redis:1");
    for lost in [&outdated, &updating] {
        let alone = of(&cache(), &[away(Some(lost))]);
        assert_eq!(brief(&alone), (Phase::UpdateFailed, "0%", "host x is away"));
        assert_eq!(of(&cache(), &[away(Some(lost)), known(None)]).phase, Phase::Updating);
    }
}

#[test]
fn a_failure_without_a_record_happens_when_it_is_seen() {
    let refused = Report { refusal: Some("no"), ..known(None) };
    let first = of(&cache(), &[refused]);
    assert_eq!(first.last_updated_time, Some(Time(now())));
    let mut failed = cache();
    failed.status = Some(first);
    let later = at(&failed, &[refused], None, Timestamp::from_second(90_000).unwrap());
    assert_eq!(later.last_updated_time, Some(Time(now())));
}

#[test]
fn many_hosts_that_are_away_are_not_all_named() {
    let names: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
    let reports: Vec<_> = names.iter().map(|node| Report { node, ..away(None) }).collect();
    assert_eq!(of(&cache(), &reports[..2]).reason, "hosts n0, n1 are away");
    assert_eq!(of(&cache(), &reports).reason, "9 hosts are away, n0 to n8");
}

#[test]
fn a_failed_cache_stays_failed_when_its_host_forgets_it() {
    let mut cache = cache();
    let failed = state(CachePhase::Failed, 0, "nginx:1");
    cache.status = Some(of(&cache, &[known(Some(&failed))]));
    assert!(has_failed(&cache));
    assert_eq!(brief(&of(&cache, &[known(None)])), (Phase::Failed, "0%", "no room"));
    cache.metadata.generation = Some(4);
    assert!(!has_failed(&cache));
    let untold = Report { is_told: false, ..known(Some(&failed)) };
    assert_eq!(of(&cache, &[untold]).observed_generation, Some(3));
    assert_eq!(of(&cache, &[known(None)]).phase, Phase::Pending);
}

#[test]
fn what_is_written_reads_back_the_same() {
    let mut building = state(CachePhase::Creating, 10, "nginx:1");
    building.started = Some(Timestamp::from_millisecond(1_999_999).unwrap());
    building.events = vec![crate::agent::BuildEvent {
        time: Some(Timestamp::from_millisecond(2_000_123).unwrap()),
        name: "nginx:1".to_owned(),
        ..Default::default()
    }];
    let matched = Some(Timestamp::from_millisecond(5_000_001).unwrap());
    let written = at(&cache(), &[known(Some(&building))], matched, now());
    let mut read = cache();
    read.status = Some(serde_json::from_value(serde_json::to_value(&written).unwrap()).unwrap());
    assert_eq!(read.status.as_ref(), Some(&written));
    assert_eq!(at(&read, &[known(Some(&building))], matched, now()), written);
}

#[test]
fn only_the_newest_events_are_kept_in_their_order() {
    let event = |second: i64| crate::agent::BuildEvent {
        name: second.to_string(),
        time: Some(Timestamp::from_second(second).unwrap()),
        ..Default::default()
    };
    let (mut one, mut two) = (state(CachePhase::Creating, 1, "nginx:1"), state(CachePhase::Creating, 1, "nginx:1"));
    one.events = (0..50).map(|n| event(n * 2)).collect();
    two.events = (0..50).map(|n| event(n * 2 + 1)).collect();
    let names = |cache: &ImageCache| -> Vec<String> {
        let events = of(cache, &[known(Some(&one)), known(Some(&two))]).events;
        events.into_iter().map(|event| event.name).collect()
    };
    assert_eq!(names(&cache()), (50..100).map(|n| n.to_string()).collect::<Vec<_>>());
    // What is said of the object itself is not pushed out.
    let newest: Vec<String> = (51..100).map(|n| n.to_string()).chain(["c".to_owned()]).collect();
    assert_eq!(names(&with_vswitches(cache())), newest);
}

fn with_vswitches(cache: ImageCache) -> ImageCache {
    cache.annotated(&[("k8s.aliyun.com/vswitch-ids", "vsw-a")])
}

#[test]
fn what_is_said_of_annotations_is_said_once_and_for_as_long_as_it_is_true() {
    let mut annotated = with_vswitches(cache());
    let first = of(&annotated, &[]);
    assert_eq!((first.events.len(), first.events[0].reason.as_str()), (1, "NotHonoured"));
    annotated.status = Some(first.clone());
    let building = state(CachePhase::Creating, 1, "nginx:1");
    let later = at(&annotated, &[known(Some(&building))], None, Timestamp::from_second(90_000).unwrap());
    assert_eq!(later.events, first.events);
    annotated.metadata.annotations = None;
    assert_eq!(of(&annotated, &[]).events, []);
}

#[test]
fn what_keeps_a_cache_from_being_built_is_its_reason_and_no_outcome() {
    let around = |report: Option<&CacheState>| {
        let reports = [known(report)];
        let obstacle = Some("no room");
        let around = Around { id: ID, reports: &reports, obstacle, unusable: None, last_matched: None, now: now() };
        status(&cache(), &around)
    };
    let kept = around(None);
    assert_eq!(brief(&kept), (Phase::Failed, "0%", "no room"));
    assert_eq!((kept.observed_generation, kept.expire_date_time), (None, None));
    let ready = state(CachePhase::Ready, 100, "nginx:1");
    assert_eq!(around(Some(&ready)).phase, Phase::UpdateFailed);
}

#[test]
fn a_secret_of_no_use_is_named_where_the_build_fails_also_after_a_restart() {
    let failed = state(CachePhase::Failed, 0, "nginx:1");
    let reports = [known(Some(&failed))];
    let said = ["pull secret a:b cannot be used: it does not exist".to_owned()];
    let around =
        |unusable| Around { id: ID, reports: &reports, obstacle: None, unusable, last_matched: None, now: now() };
    let mut cache = cache();
    let first = status(&cache, &around(Some(&said)));
    assert_eq!(first.reason, format!("no room; {}", said[0]));
    assert_eq!((first.events[0].reason.as_str(), &first.events[0].message), ("PullSecretUnusable", &said[0]));
    cache.status = Some(first.clone());
    assert_eq!(status(&cache, &around(None)), first);
    // The host has forgotten it meanwhile.
    let forgotten = Around { reports: &[known(None)], ..around(None) };
    assert_eq!(status(&cache, &forgotten).reason, first.reason);
    let mended = status(&cache, &around(Some(&[])));
    assert_eq!((mended.reason.as_str(), mended.events), ("no room", vec![]));
}

#[test]
fn another_setting_or_refresh_makes_a_failure_or_a_content_old() {
    let failed = state(CachePhase::Failed, 0, "nginx:1");
    let mut cache = cache();
    cache.status = Some(of(&cache, &[known(Some(&failed))]));
    assert!(has_failed(&cache) && is_observed(&cache));
    let cache = cache.annotated(&[(crate::custom_resource::PLAIN_HTTP_ANNOTATION, "r")]);
    assert!(!has_failed(&cache) && !is_observed(&cache));
    let cache = cache.annotated(&[(crate::custom_resource::REFRESH_ANNOTATION, "2")]);
    let mut ready = state(CachePhase::Ready, 100, "nginx:1");
    assert_eq!(of(&cache, &[known(Some(&ready))]).phase, Phase::Updating);
    ready.refresh = "2".to_owned();
    assert_eq!(of(&cache, &[known(Some(&ready))]).phase, Phase::Ready);
}
