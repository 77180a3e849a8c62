//! How long things are waited for and kept.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_build_that_failed_more_than_a_day_ago_is_removed() {
    let bench = Bench::new(&["a"]);
    let cache = bench.put("c", &["nginx:1"]);
    let id = id_of(&cache);
    let failed = |hours: i64| CacheState {
        id: id.clone(),
        phase: CachePhase::Failed,
        generation: u64::try_from(hours).unwrap(),
        last_updated: Some(Timestamp::now() - jiff::SignedDuration::from_hours(hours)),
        ..CacheState::default()
    };
    bench.agent("a").report_cache(failed(23));
    let end = bench.phase("c", Phase::Failed).await.status.unwrap().expire_date_time.unwrap().0;
    let left = end.duration_since(Timestamp::now());
    assert!(left > jiff::SignedDuration::from_mins(59) && left <= jiff::SignedDuration::from_hours(1), "{left}");
    bench.agent("a").report_cache(failed(25));
    bench.cluster.wait("removal", |record| record.image_caches.is_empty()).await;
}

#[tokio::test]
async fn a_host_lost_in_mid_build_is_not_waited_for_and_goes_on_when_it_is_back() {
    let (mut controller, cache, _others) = by_hand();
    let id = id_of(&cache);
    controller.take_object(Watched::All(vec![cache]));
    let creating = CacheState { id, phase: CachePhase::Creating, ..CacheState::default() };
    let start = Timestamp::now();
    let seconds = jiff::SignedDuration::from_secs;
    let phase_at = async |controller: &mut ImageCacheController, now: Timestamp| {
        let wake = controller.look(now);
        // The only job that can run is the write of the status.
        while let Some(done) = controller.jobs.join_next_with_id().await {
            controller.take_done(done);
        }
        let status = controller.caches.as_ref().unwrap().get("c").unwrap().status.clone().unwrap_or_default();
        (status.phase, status.reason, wake)
    };
    controller.take_heard("a", Heard::Change(CacheChange::List(vec![creating.clone()])), start);
    assert_eq!(phase_at(&mut controller, start).await.0, Phase::Creating);
    controller.take_heard("a", Heard::Lost, start);
    let (phase, _, wake) = phase_at(&mut controller, start + seconds(59)).await;
    assert_eq!((phase, wake), (Phase::Creating, Some(start + seconds(60))));
    let (phase, reason, _) = phase_at(&mut controller, start + seconds(60)).await;
    assert_eq!((phase, reason.as_str()), (Phase::Failed, "host a is away"));
    controller.take_heard("a", Heard::Change(CacheChange::List(vec![creating])), start + seconds(90));
    let (phase, reason, _) = phase_at(&mut controller, start + seconds(90)).await;
    assert_eq!((phase, reason.as_str()), (Phase::Creating, ""));
}
