//! Manifests that claim more than there is.

use super::{super::test_snapshotter::LARGEST_LAYER, *};

/// Pushes an image whose layer claims this size.
fn push_claim(registry: &TestRegistry, size: u64) -> Digest {
    let plain = noise(99, 300_000);
    let pushed = push_layers(registry, "claim", "v1", &[(plain.clone(), gzip(&plain))]);
    let mut manifest = registry.manifest("claim", "v1");
    manifest["layers"][0]["size"] = json!(size);
    registry.put_manifest("claim", "v1", &manifest);
    pushed.blobs[0]
}

/// A store with the layers of an image that nobody uses.
async fn unused_layers(registry: &TestRegistry) -> (Bench, usize) {
    let bench = Bench::new().await;
    push(registry, "unused", "v1");
    drop(bench.pull(&format!("{}/unused:v1", registry.host())).await.unwrap());
    Bench::until(|| bench.pinned() == 0).await;
    let layers = bench.snapshotter.layer_count();
    (bench, layers)
}

#[tokio::test]
async fn a_layer_above_the_bound_is_refused_before_it_is_asked_for() {
    let registry = TestRegistry::start().await;
    let (bench, layers) = unused_layers(&registry).await;
    let blob = push_claim(&registry, LARGEST_LAYER + 1);
    let text = bench.pull(&format!("{}/claim:v1", registry.host())).await.unwrap_err().to_string();
    let expected = format!(
        "the manifest says that {blob} has {} bytes, more than {LARGEST_LAYER}, the bound set by --max-layer-bytes",
        LARGEST_LAYER + 1
    );
    assert!(text.contains(&expected), "{text}");
    assert_eq!((registry.count("GET", &blob.to_string()), bench.snapshotter.layer_count()), (0, layers));
}

#[tokio::test]
async fn what_can_never_fit_makes_no_room() {
    let registry = TestRegistry::start().await;
    let (bench, layers) = unused_layers(&registry).await;
    push_claim(&registry, LARGEST_LAYER);
    bench.snapshotter.set_room(LARGEST_LAYER / 2);
    let text = bench.pull(&format!("{}/claim:v1", registry.host())).await.unwrap_err().to_string();
    assert!(text.contains("no space left") && text.contains("1.0 PiB needed"), "{text}");
    assert_eq!((bench.snapshotter.layer_count(), bench.store.layers().unwrap().len()), (layers, layers));
}
