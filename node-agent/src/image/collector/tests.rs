//! What goes by itself, and what does not.

use super::*;
use crate::{
    image::{
        BuildCache, CacheList, CachePhase, Images as _, RegistryAccess,
        inventory::Prune,
        tests::{Bench, gzip, noise, push_layers},
    },
    registry::test_registry::TestRegistry,
};

/// Pushes an image of layers that no other has.
fn push(registry: &TestRegistry, name: &str, seed: u64) -> String {
    let layers: Vec<_> = (0..2).map(|n| noise(seed + n, 50_000)).map(|plain| (plain.clone(), gzip(&plain))).collect();
    push_layers(registry, name, "v1", &layers);
    format!("{}/{name}:v1", registry.host())
}

/// Any disk is fuller than that.
const ALWAYS: Rules = Rules { high_percent: 0, low_percent: 0, min_age_seconds: 0, max_age_seconds: None };

#[tokio::test]
async fn unused_layers_go_when_one_comes_to_a_full_disk_and_used_ones_stay() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let [used, unused, new] = [("a", 10), ("b", 20), ("c", 30)].map(|(name, seed)| push(&registry, name, seed));
    let _used = bench.pull(&used).await.unwrap();
    drop(bench.pull(&unused).await.unwrap());
    Bench::until(|| bench.pinned() == 2).await;
    assert_eq!(bench.snapshotter.layer_count(), 4);
    let meters = Meters::default();
    bench.service.collect_garbage(ALWAYS, meters.clone());
    let _new = bench.pull(&new).await.unwrap();
    Bench::until(|| bench.snapshotter.layer_count() == 4).await;
    let text = meters.text();
    assert!(text.contains("larder_agent_store_evicted_layers_total 2\n"), "{text}");
    assert_eq!(bench.store.layers().unwrap().len(), 4);
    bench.service.shutdown().await;
}

#[tokio::test]
async fn a_full_disk_says_what_could_go_and_who_keeps_the_rest() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let [cached, used, wanted] = [("a", 10), ("b", 20), ("c", 30)].map(|(name, seed)| push(&registry, name, seed));
    let wish = |image: &str| BuildCache {
        id: "imc-1".to_owned(),
        name: "imc-1".to_owned(),
        images: vec![image.to_owned()],
        access: RegistryAccess::default(),
        size_limit_bytes: 0,
        refresh: String::new(),
    };
    bench.service.build_cache(wish(&cached)).await.unwrap();
    let mut caches = bench.service.watch_caches();
    caches.wait_for(|list| list["imc-1"].phase == CachePhase::Ready).await.unwrap();
    let _used = bench.pull(&used).await.unwrap();
    bench.snapshotter.set_full(true);
    // 50,000 bytes a layer, two layers an image.
    let expected = "layers of image caches 97.7 KiB, layers of running pods and pulls 97.7 KiB, everything else ";
    let text = bench.pull(&wanted).await.unwrap_err().to_string();
    assert!(text.contains("at least 2 B needed, 1 B free; without it ") && text.contains(expected), "{text}");
    assert!(text.contains("unused layers, which can be removed, take 0 B"), "{text}");
    // The same is said of a cache.
    bench.service.build_cache(wish(&wanted)).await.unwrap();
    let over = |list: &CacheList| list["imc-1"].phase == CachePhase::UpdateFailed;
    let reason = caches.wait_for(over).await.unwrap()["imc-1"].reason.clone();
    assert!(reason.contains(expected), "{reason}");
}

#[tokio::test]
async fn nothing_goes_while_it_is_not_known_what_is_used() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let unused = push(&registry, "a", 10);
    drop(bench.pull(&unused).await.unwrap());
    Bench::until(|| bench.pinned() == 0).await;
    let adopting = bench.store.pins().hold();
    assert_eq!(bench.service.prune(Prune::Remove).await.unwrap().layers, []);
    assert_eq!(bench.snapshotter.layer_count(), 2);
    drop(adopting);
    assert_eq!(bench.service.prune(Prune::OnlySay).await.unwrap().layers.len(), 2);
    assert_eq!(bench.snapshotter.layer_count(), 2, "it was only to be said");
    assert_eq!(bench.service.prune(Prune::Remove).await.unwrap().layers.len(), 2);
    assert_eq!((bench.snapshotter.layer_count(), bench.store.layers().unwrap().len()), (0, 0));
}

/// Pushes an image of one small layer.
fn push_small(registry: &TestRegistry) -> String {
    let plain = noise(20, 10_000);
    push_layers(registry, "small", "v1", &[(plain.clone(), plain)]);
    format!("{}/small:v1", registry.host())
}

/// A store with an image that nobody uses, on a disk that is full.
async fn full_of_what_is_unused(registry: &TestRegistry) -> Bench {
    let bench = Bench::new().await;
    drop(bench.pull(&push(registry, "unused", 10)).await.unwrap());
    Bench::until(|| bench.pinned() == 0).await;
    bench.snapshotter.set_full(true);
    bench
}

#[tokio::test]
async fn who_needs_room_waits_until_it_is_known_what_is_used() {
    let registry = TestRegistry::start().await;
    let bench = full_of_what_is_unused(&registry).await;
    let wanted = push_small(&registry);
    let adopting = bench.store.pins().hold();
    let wish = BuildCache {
        id: "imc-1".to_owned(),
        name: "imc-1".to_owned(),
        images: vec![wanted.clone()],
        access: RegistryAccess::default(),
        size_limit_bytes: 0,
        refresh: String::new(),
    };
    bench.service.build_cache(wish).await.unwrap();
    let adopted = async {
        Bench::until(|| bench.store.pins().are_awaited()).await;
        assert_eq!(bench.snapshotter.layer_count(), 2, "nothing goes yet");
        drop(adopting);
    };
    // A pod that wants it as well waits with the cache.
    let (image, ()) = tokio::join!(bench.pull(&wanted), adopted);
    image.unwrap();
    let mut caches = bench.service.watch_caches();
    let over = |list: &CacheList| list["imc-1"].phase != CachePhase::Creating;
    let cache = caches.wait_for(over).await.unwrap()["imc-1"].clone();
    assert_eq!(cache.phase, CachePhase::Ready, "{}", cache.reason);
    assert_eq!(bench.snapshotter.layer_count(), 2, "one that nobody uses has made room");
}

#[tokio::test]
async fn who_has_its_layers_and_needs_room_to_mount_them_waits_too_but_adoption_does_not() {
    let registry = TestRegistry::start().await;
    let bench = full_of_what_is_unused(&registry).await;
    bench.snapshotter.set_full(false);
    let wanted = push_small(&registry);
    let manifest = bench.pull(&wanted).await.unwrap().manifest;
    Bench::until(|| bench.pinned() == 0).await;
    // Its layers are here, and what was made of them is not.
    bench.snapshotter.remove_image(&manifest).unwrap();
    bench.snapshotter.set_full(true);
    let adopting = bench.store.pins().hold();
    let text = bench.service.adopt(&wanted, &manifest).await.unwrap_err().to_string();
    assert!(text.contains("no space left"), "{text}");
    let adopted = async {
        Bench::until(|| bench.store.pins().are_awaited()).await;
        drop(adopting);
    };
    let (image, ()) = tokio::join!(bench.pull(&wanted), adopted);
    assert_eq!(image.unwrap().manifest, manifest);
    assert_eq!(bench.snapshotter.layer_count(), 2, "one that nobody uses has made room");
}
