//! Caches from end to end: a registry in this process, a store on disk, layers in memory.

use std::time::Duration;

use super::*;
use crate::{
    image::{
        ChosenCache, EnsureImage, ImageProgress, PullPolicy,
        tests::{Bench, noise, push, push_layers, wish},
    },
    registry::{
        Credential, Login,
        test_registry::{Door, Fault, TestRegistry},
    },
};

fn cache(images: &[&str]) -> BuildCache {
    BuildCache {
        id: "imc-1".to_owned(),
        name: "one".to_owned(),
        images: images.iter().map(|&image| image.to_owned()).collect(),
        access: RegistryAccess::default(),
        size_limit_bytes: 0,
        refresh: String::new(),
    }
}

async fn settled(bench: &Bench, phase: CachePhase) -> Arc<CacheState> {
    let mut list = bench.service.watch_caches();
    let waiting = list.wait_for(|list| list.get("imc-1").is_some_and(|state| state.phase == phase));
    let found = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    let Ok(list) = found else {
        panic!("not {phase:?} but {:?}", bench.service.watch_caches().borrow());
    };
    Arc::clone(&list.unwrap()["imc-1"])
}

fn from_cache(reference: &str, policy: PullPolicy) -> EnsureImage {
    EnsureImage { policy, cache: Some(ChosenCache::by_hand("imc-1")), ..wish(reference) }
}

#[tokio::test]
async fn a_hit_asks_no_registry_at_all() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    let state = settled(&bench, CachePhase::Ready).await;
    assert_eq!((state.progress_percent, state.reason.as_str()), (100, ""));
    let expected = CachedImage {
        reference: reference.clone(),
        manifest: pushed.manifest,
        index: None,
        size_bytes: pushed.plain_bytes,
    };
    assert_eq!(state.images, [expected]);
    assert!(bench.snapshotter.is_mounted(&pushed.manifest));
    registry.forget_seen();
    let by_digest = format!("{}/a@{}", registry.host(), pushed.manifest);
    for policy in [PullPolicy::IfNotPresent, PullPolicy::Never] {
        for wanted in [&reference, &by_digest] {
            let (image, progress) = bench.ensure(from_cache(wanted, policy)).await;
            let image = image.unwrap();
            assert_eq!((image.manifest, &image.reference), (pushed.manifest, wanted));
            assert_eq!((image.image_id, image.size_bytes), (by_digest.clone(), pushed.plain_bytes));
            assert_eq!(progress, [ImageProgress::AlreadyPresent]);
        }
    }
    assert_eq!(registry.seen(), []);
    // Not its images: another tag, another repository with the same content, another cache.
    push(&registry, "b", "v1");
    for (wanted, cache) in [("a:v2", "imc-1"), ("b:v1", "imc-1"), ("a:v1", "imc-2")] {
        let reference = format!("{}/{wanted}", registry.host());
        let wish =
            EnsureImage { policy: PullPolicy::Never, cache: Some(ChosenCache::by_hand(cache)), ..wish(&reference) };
        assert_eq!(bench.ensure(wish).await.0.unwrap_err().reason(), "ErrImageNeverPull", "{wanted} from {cache}");
    }
    assert_eq!(registry.seen(), []);
}

#[tokio::test]
async fn always_asks_for_the_manifest_and_moves_nothing() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    settled(&bench, CachePhase::Ready).await;
    registry.forget_seen();
    let (image, progress) = bench.ensure(from_cache(&reference, PullPolicy::Always)).await;
    image.unwrap();
    assert_eq!(progress.first(), Some(&ImageProgress::Pulling));
    assert!(matches!(progress.last(), Some(ImageProgress::Pulled { .. })));
    assert_eq!((registry.seen().len(), registry.count("HEAD", "/manifests/v1")), (1, 1));
    // The tag has moved: what is new is fetched, although the cache has the old.
    let plain = noise(99, 1000);
    let new = push_layers(&registry, "a", "v1", &[(plain.clone(), plain)]);
    let (image, _) = bench.ensure(from_cache(&reference, PullPolicy::Always)).await;
    assert_eq!(image.unwrap().manifest, new.manifest);
}

#[tokio::test]
async fn tells_its_progress_and_its_steps() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    push(&registry, "b", "v1");
    for blob in &pushed.blobs {
        registry.fault(&blob.to_string(), 1, Fault::Slow(Duration::from_millis(300)));
    }
    let (a, b) = (format!("{}/a:v1", registry.host()), format!("{}/b:v1", registry.host()));
    let mut list = bench.service.watch_caches();
    let mut before = list.borrow_and_update().clone();
    bench.service.build_cache(cache(&[&a, &b, &a])).await.unwrap();
    let mut phases = Vec::new();
    let mut last_generation = 0;
    while phases.last() != Some(&CachePhase::Ready) {
        list.changed().await.unwrap();
        let after = list.borrow_and_update().clone();
        for change in changes(&before, &after) {
            let CacheChange::Changed(state) = change else { panic!("{change:?}") };
            assert!(state.generation > last_generation);
            last_generation = state.generation;
            assert_eq!(state.progress_percent == 100, state.phase == CachePhase::Ready);
            phases.push(state.phase);
        }
        before = after;
    }
    let state = settled(&bench, CachePhase::Ready).await;
    let steps: Vec<_> = state.events.iter().map(|event| (event.name.as_str(), event.reason.as_str())).collect();
    assert_eq!(steps[..2], [("one", "Started"), ("one", "Pulling")]);
    let said = |text: &str| state.events.iter().any(|event| event.message == text);
    assert!(said("Successfully check image cache resource.") && said("start to pull images"), "{:?}", state.events);
    assert!(said(&format!("Successfully pulled image {a}")), "{:?}", state.events);
    for step in [(a.as_str(), "Pulling"), (b.as_str(), "Pulling"), (a.as_str(), "Pulled"), (b.as_str(), "Pulled")] {
        assert_eq!(steps.iter().filter(|&&found| found == step).count(), 1, "{steps:?}");
    }
    assert_eq!(steps.last(), Some(&("one", "Ready")));
    // Both are of one content; the node shows it once, with all names.
    let images = bench.service.node_images();
    assert_eq!(images.len(), 1);
    let host = registry.host();
    assert_eq!(
        images[0].names,
        [
            format!("{host}/a:v1"),
            format!("{host}/a@{}", pushed.manifest),
            format!("{host}/b:v1"),
            format!("{host}/b@{}", pushed.manifest)
        ]
    );
}

#[tokio::test]
async fn a_build_that_fails_says_why_and_can_be_asked_for_again() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let reference = format!("{}/a:v1", registry.host());
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    let state = settled(&bench, CachePhase::Failed).await;
    assert!(state.reason.starts_with(&format!("failed to pull image {reference:?}: not found: GET ")), "{state:?}");
    assert!(state.events.iter().any(|event| event.warning && event.name == reference), "{state:?}");
    assert_eq!((bench.snapshotter.layer_count(), bench.service.node_images().len()), (0, 0));
    bench.service.build_cache(cache(&["UPPER"])).await.unwrap();
    let mut list = bench.service.watch_caches();
    let named = list.wait_for(|list| list["imc-1"].reason.contains("couldn't parse image name"));
    tokio::time::timeout(Duration::from_secs(10), named).await.unwrap().unwrap();
    push(&registry, "a", "v1");
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    assert_eq!(settled(&bench, CachePhase::Ready).await.reason, "");
    assert!(matches!(bench.service.build_cache(cache(&[])).await, Err(CacheError::NoImages(_))));
    let bad_id = BuildCache { id: "../x".to_owned(), ..cache(&[&reference]) };
    assert!(matches!(bench.service.build_cache(bad_id).await, Err(CacheError::InvalidId(_))));
}

#[tokio::test]
async fn a_size_that_is_too_small_is_named_with_both_sizes() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    let sized = |size_limit_bytes| BuildCache { size_limit_bytes, ..cache(&[&reference]) };
    // The transfer alone is too much: nothing is moved.
    bench.service.build_cache(sized(1000)).await.unwrap();
    let state = settled(&bench, CachePhase::Failed).await;
    assert!(state.reason.ends_with(" bytes before unpacking, the cache's size is 1000 bytes"), "{}", state.reason);
    assert_eq!(registry.count("GET", &pushed.blobs[0].to_string()), 0);
    // It is not known before it is unpacked.
    let zeros = vec![0; 500_000];
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &zeros).unwrap();
    push_layers(&registry, "a", "v1", &[(zeros, packed.finish().unwrap())]);
    bench.service.build_cache(sized(100_000)).await.unwrap();
    let mut list = bench.service.watch_caches();
    let named = list.wait_for(|list| {
        list["imc-1"].reason == "the images take 500000 bytes unpacked, the cache's size is 100000 bytes"
    });
    tokio::time::timeout(Duration::from_secs(10), named).await.unwrap().unwrap();
    Bench::until(|| bench.pinned() == 0).await;
}

#[tokio::test]
async fn a_rebuild_serves_the_old_content_until_it_is_done_or_has_failed() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let old = push(&registry, "a", "v1");
    let (a, b) = (format!("{}/a:v1", registry.host()), format!("{}/b:v1", registry.host()));
    bench.service.build_cache(cache(&[&a])).await.unwrap();
    let first = settled(&bench, CachePhase::Ready).await;
    // Nothing to do: the same images.
    bench.service.build_cache(cache(&[&a])).await.unwrap();
    assert_eq!(bench.service.watch_caches().borrow()["imc-1"], first);
    bench.service.build_cache(cache(&[&b])).await.unwrap();
    let failed = settled(&bench, CachePhase::UpdateFailed).await;
    assert_eq!(failed.images, first.images);
    assert!(bench.ensure(from_cache(&a, PullPolicy::Never)).await.0.is_ok());
    let plain = noise(50, 100_000);
    let new = push_layers(&registry, "b", "v1", &[(plain.clone(), plain)]);
    registry.fault("blobs", 1, Fault::Slow(Duration::from_millis(200)));
    bench.service.build_cache(cache(&[&b])).await.unwrap();
    assert_eq!(settled(&bench, CachePhase::Updating).await.images, first.images);
    assert!(bench.ensure(from_cache(&a, PullPolicy::Never)).await.0.is_ok());
    assert_eq!(settled(&bench, CachePhase::Ready).await.images[0].manifest, new.manifest);
    assert!(bench.ensure(from_cache(&a, PullPolicy::Never)).await.0.is_err());
    Bench::until(|| !bench.snapshotter.is_mounted(&old.manifest) && bench.pinned() == 1).await;
}

#[tokio::test]
async fn a_refresh_fetches_what_a_tag_has_moved_to() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    let first = settled(&bench, CachePhase::Ready).await;
    assert_eq!(first.refresh, "");
    let plain = noise(50, 100_000);
    let new = push_layers(&registry, "a", "v1", &[(plain.clone(), plain)]);
    let refreshed = BuildCache { refresh: "1".to_owned(), ..cache(&[&reference]) };
    for _ in 0..2 {
        bench.service.build_cache(refreshed.clone()).await.unwrap();
        let mut list = bench.service.watch_caches();
        let is_new = list.wait_for(|list| list["imc-1"].refresh == "1" && list["imc-1"].phase == CachePhase::Ready);
        let state = Arc::clone(&tokio::time::timeout(Duration::from_secs(20), is_new).await.unwrap().unwrap()["imc-1"]);
        assert_eq!(state.images[0].manifest, new.manifest);
    }
    // The second time it was there already.
    assert_eq!(registry.count("GET", &new.blobs[0].to_string()), 1);
}

#[tokio::test]
async fn a_cache_that_is_deleted_leaves_running_pods_alone() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    settled(&bench, CachePhase::Ready).await;
    let pod = bench.ensure(from_cache(&reference, PullPolicy::Never)).await.0.unwrap();
    bench.service.delete_cache("imc-1").await.unwrap();
    bench.service.delete_cache("imc-1").await.unwrap();
    assert!(bench.service.watch_caches().borrow().is_empty());
    assert!(bench.service.node_images().is_empty());
    assert_eq!((bench.snapshotter.is_mounted(&pushed.manifest), bench.pinned()), (true, 3));
    drop(pod);
    Bench::until(|| !bench.snapshotter.is_mounted(&pushed.manifest) && bench.pinned() == 0).await;
    // Also while it is being built.
    registry.fault("manifests", 99, Fault::Slow(Duration::from_millis(300)));
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    settled(&bench, CachePhase::Creating).await;
    bench.service.delete_cache("imc-1").await.unwrap();
    assert!(bench.service.watch_caches().borrow().is_empty());
}

#[tokio::test]
async fn is_found_again_after_a_restart() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    let before = settled(&bench, CachePhase::Ready).await;
    registry.forget_seen();
    let bench = bench.restart().await;
    let after = settled(&bench, CachePhase::Ready).await;
    assert_eq!((&after.images, &after.events), (&before.images, &before.events));
    assert!(after.generation > before.generation);
    // A restart is no step of the build: a day after a failure is not a day after the last restart.
    assert_eq!(after.last_updated, before.last_updated);
    assert_eq!(bench.pinned(), 3);
    assert!(bench.ensure(from_cache(&reference, PullPolicy::Never)).await.0.is_ok());
    assert_eq!(registry.seen(), []);
    // A layer has gone meanwhile.
    let snapshotter: &dyn crate::snapshot::Snapshotter = &bench.snapshotter;
    let gone = crate::digest::Digest::of(&noise(1, 300_000));
    assert!(snapshotter.layer(&gone).is_some());
    snapshotter.remove_layer(&gone).unwrap();
    let bench = bench.restart().await;
    let state = settled(&bench, CachePhase::Failed).await;
    assert_eq!(state.reason, format!("image {reference:?} is no longer complete on this host"));
    assert!(state.images.is_empty() && state.ask_again);
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    assert_eq!(settled(&bench, CachePhase::Ready).await.images[0].manifest, pushed.manifest);
}

#[tokio::test]
async fn a_build_that_was_interrupted_goes_on_or_says_so() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    registry.fault("blobs", 99, Fault::Stall(10));
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    let bench = bench.restart().await;
    settled(&bench, CachePhase::Creating).await;
    registry.heal();
    settled(&bench, CachePhase::Ready).await;
    bench.service.delete_cache("imc-1").await.unwrap();
    // With logins, which are not kept.
    registry.set_door(Door::Basic("me:secret".to_owned()));
    registry.fault("manifests", 99, Fault::Slow(Duration::from_millis(300)));
    let login = Login::Basic { username: "me".to_owned(), password: "secret".to_owned() };
    let mut with_login = cache(&[&reference]);
    with_login.access.credentials = vec![Credential { registry: registry.host(), login }];
    bench.service.build_cache(with_login.clone()).await.unwrap();
    let bench = bench.restart().await;
    let state = settled(&bench, CachePhase::Failed).await;
    assert_eq!(state.reason, "the build was interrupted by a restart of the node agent");
    assert!(state.ask_again);
    assert_eq!(state.events.last().map(|event| event.reason.as_str()), Some("Interrupted"));
    // It says so until somebody asks.
    let bench = bench.restart().await;
    assert!(settled(&bench, CachePhase::Failed).await.ask_again);
    registry.heal();
    bench.service.build_cache(with_login).await.unwrap();
    assert!(!settled(&bench, CachePhase::Ready).await.ask_again);
}

#[tokio::test]
async fn an_interrupted_rebuild_goes_on_although_the_old_content_is_lost() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    settled(&bench, CachePhase::Ready).await;
    let plain = noise(77, 100_000);
    let new = push_layers(&registry, "b", "v1", &[(plain.clone(), plain)]);
    registry.fault("blobs", 99, Fault::Stall(10));
    bench.service.build_cache(cache(&[&format!("{}/b:v1", registry.host())])).await.unwrap();
    settled(&bench, CachePhase::Updating).await;
    let snapshotter: &dyn crate::snapshot::Snapshotter = &bench.snapshotter;
    snapshotter.remove_layer(&crate::digest::Digest::of(&noise(1, 300_000))).unwrap();
    let bench = bench.restart().await;
    settled(&bench, CachePhase::Creating).await;
    registry.heal();
    assert_eq!(settled(&bench, CachePhase::Ready).await.images[0].manifest, new.manifest);
}

#[tokio::test]
async fn a_snapshotter_that_panics_fails_the_build() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    bench.snapshotter.panic_at_mount(true);
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    let state = settled(&bench, CachePhase::Failed).await;
    assert!(state.reason.contains("panic"), "{state:?}");
    bench.snapshotter.panic_at_mount(false);
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    settled(&bench, CachePhase::Ready).await;
}

#[tokio::test]
async fn a_pod_and_a_build_fetch_each_blob_once() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    bench.service.build_cache(cache(&[&reference])).await.unwrap();
    bench.pull(&reference).await.unwrap();
    settled(&bench, CachePhase::Ready).await;
    for blob in &pushed.blobs {
        assert_eq!(registry.count("GET", &blob.to_string()), 1);
    }
}

#[test]
fn tells_what_changed_between_two_lists() {
    let state = |id: &str, generation| {
        Arc::new(CacheState {
            id: id.to_owned(),
            name: String::new(),
            generation,
            phase: CachePhase::Ready,
            progress_percent: 100,
            reason: String::new(),
            ask_again: false,
            refresh: String::new(),
            images: Vec::new(),
            events: Vec::new(),
            started: Timestamp::UNIX_EPOCH,
            last_updated: Timestamp::UNIX_EPOCH,
        })
    };
    let list = |states: &[(&str, u64)]| -> CacheList {
        Arc::new(states.iter().map(|&(id, generation)| (id.to_owned(), state(id, generation))).collect())
    };
    let (before, after) = (list(&[("a", 1), ("b", 1), ("c", 1)]), list(&[("b", 1), ("c", 2), ("d", 1)]));
    assert_eq!(
        changes(&before, &after),
        [
            CacheChange::Deleted("a".to_owned()),
            CacheChange::Changed(state("c", 2)),
            CacheChange::Changed(state("d", 1))
        ]
    );
    assert_eq!(changes(&after, &after), []);
}
