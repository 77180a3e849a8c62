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
    Report { node: "n", is_known: true, state, is_told: true, refusal: None }
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
    assert_eq!(brief(&status(&cache(), ID, &[known(state.as_ref())], None)), expected);
}

#[test]
fn the_first_host_that_holds_it_makes_it_ready() {
    let (ready, failed) = (state(CachePhase::Ready, 100, "nginx:1"), state(CachePhase::Failed, 0, "nginx:1"));
    let reports = [known(Some(&failed)), known(Some(&ready)), known(None)];
    assert_eq!(brief(&status(&cache(), ID, &reports, None)), (Phase::Ready, "100%", ""));
}

#[test]
fn it_has_failed_when_every_host_has() {
    let failed = state(CachePhase::Failed, 0, "nginx:1");
    let reports = [known(Some(&failed)), known(None)];
    assert_eq!(status(&cache(), ID, &reports, None).phase, Phase::Pending);
    let refused = Report { refusal: Some("no"), ..known(None) };
    let status = status(&cache(), ID, &[known(Some(&failed)), refused], None);
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
        assert_eq!(brief(&status(&cache(), ID, &[refused], None)), (expected, "0%", "no"));
    }
}

#[test]
fn a_host_that_is_away_does_not_unmake_a_cache() {
    let mut cache = cache();
    cache.status = Some(ImageCacheStatus { phase: Phase::Ready, progress: "100%".to_owned(), ..Default::default() });
    let away = Report { is_known: false, ..known(None) };
    assert_eq!(brief(&status(&cache, ID, &[away], None)), (Phase::Ready, "100%", ""));
    assert_eq!(brief(&status(&cache, ID, &[known(None)], None)), (Phase::Pending, "0%", ""));
}

#[test]
fn a_failed_cache_stays_failed_when_its_host_forgets_it() {
    let mut cache = cache();
    let failed = state(CachePhase::Failed, 0, "nginx:1");
    cache.status = Some(status(&cache, ID, &[known(Some(&failed))], None));
    assert!(has_failed(&cache));
    assert_eq!(brief(&status(&cache, ID, &[known(None)], None)), (Phase::Failed, "0%", "no room"));
    cache.metadata.generation = Some(4);
    assert!(!has_failed(&cache));
    let untold = Report { is_told: false, ..known(Some(&failed)) };
    assert_eq!(status(&cache, ID, &[untold], None).observed_generation, Some(3));
    assert_eq!(status(&cache, ID, &[known(None)], None).phase, Phase::Pending);
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
    let written = status(&cache(), ID, &[known(Some(&building))], matched);
    let mut read = cache();
    read.status = Some(serde_json::from_value(serde_json::to_value(&written).unwrap()).unwrap());
    assert_eq!(read.status.as_ref(), Some(&written));
    assert_eq!(status(&read, ID, &[known(Some(&building))], matched), written);
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
    let events = status(&cache(), ID, &[known(Some(&one)), known(Some(&two))], None).events;
    let names: Vec<i64> = events.iter().map(|event| event.name.parse().unwrap()).collect();
    assert_eq!(names, (50..100).collect::<Vec<_>>());
}
