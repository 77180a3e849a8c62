//! What holds a pull back: turns, bandwidth, a registry that asks for patience, and pods that no longer want it.

use std::collections::BTreeSet;

use super::*;

/// The blobs that a registry has been asked for.
fn asked_for(registry: &TestRegistry) -> BTreeSet<String> {
    let seen = registry.seen().into_iter();
    seen.filter_map(|seen| Some(seen.path.rsplit_once("/blobs/")?.1.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn so_many_layers_at_once_come_from_a_registry_the_largest_first() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let layers: Vec<_> = (0..6_u8).map(|seed| noise(seed.into(), 1000 * (1 + usize::from(seed)))).collect();
    let layers: Vec<_> = layers.into_iter().map(|plain| (plain.clone(), plain)).collect();
    let pushed = push_layers(&registry, "a", "v1", &layers);
    let reference = format!("{}/a:v1", registry.host());
    for blob in &pushed.blobs {
        registry.fault(&blob.to_string(), 1000, Fault::Stall(10));
    }
    let layers_asked_for = || {
        let mut all = asked_for(&registry);
        all.remove(&pushed.config.to_string());
        all
    };
    let has_been_asked = async {
        Bench::until(|| layers_asked_for().len() >= 3).await;
        // Time enough for a fourth to be asked for, and less than the registry may be silent.
        tokio::time::sleep(Duration::from_millis(200)).await;
        // Before the pull is given up: the turns of its layers end one by one then.
        layers_asked_for()
    };
    let asked = tokio::select! {
        ended = bench.pull(&reference) => panic!("it cannot end: {ended:?}"),
        asked = has_been_asked => asked,
    };
    let largest: BTreeSet<_> = pushed.blobs[3..].iter().map(ToString::to_string).collect();
    assert_eq!(asked, largest);
    registry.heal();
    bench.pull(&reference).await.unwrap();
    assert_eq!(layers_asked_for().len(), 6);
}

#[tokio::test]
async fn so_many_layers_at_once_come_from_all_registries() {
    let (registries, bench) = ([TestRegistry::start().await, TestRegistry::start().await], Bench::new().await);
    let layers: Vec<_> = (0..4).map(|seed| noise(seed, 1000)).map(|plain| (plain.clone(), plain)).collect();
    for registry in &registries {
        for blob in push_layers(registry, "a", "v1", &layers).blobs {
            registry.fault(&blob.to_string(), 1000, Fault::Stall(10));
        }
    }
    // Beside the layers, each was asked for a configuration.
    let asked = || registries.iter().map(|registry| asked_for(registry).len() - 1).collect::<Vec<_>>();
    let [a, b] = registries.each_ref().map(|registry| format!("{}/a:v1", registry.host()));
    let has_been_asked = async {
        Bench::until(|| registries.iter().map(|registry| asked_for(registry).len()).sum::<usize>() >= 7).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        asked()
    };
    let mut asked = tokio::select! {
        ended = bench.pull(&a) => panic!("it cannot end: {ended:?}"),
        ended = bench.pull(&b) => panic!("it cannot end: {ended:?}"),
        asked = has_been_asked => asked,
    };
    asked.sort_unstable();
    assert_eq!(asked, [2, 3], "three of one, and five of both");
}

#[tokio::test]
async fn bandwidth_is_shared_by_all_that_comes() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let bench = Bench::over(folder, TestSnapshotter::default(), None, image_config(NonZeroU64::new(1 << 20))).await;
    let registry = TestRegistry::start().await;
    let layer = |seed| {
        let plain = noise(seed, 512 << 10);
        (plain.clone(), plain)
    };
    push_layers(&registry, "a", "v1", &[layer(1), layer(2)]);
    push_layers(&registry, "b", "v1", &[layer(3)]);
    let (a, b) = (format!("{}/a:v1", registry.host()), format!("{}/b:v1", registry.host()));
    let begun = tokio::time::Instant::now();
    let (a, b) = tokio::join!(bench.pull(&a), bench.pull(&b));
    a.unwrap();
    b.unwrap();
    // One and a half mebibytes at one a second; the last piece need not be waited for.
    assert!(begun.elapsed() >= Duration::from_millis(1200), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_blob_is_asked_for_again_when_the_registry_says() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let blob = push(&registry, "a", "v1").blobs[0].to_string();
    let asked = Fault::Status(429, vec![("retry-after", "1".to_owned())], "slow down");
    // The first error is asked for again, as only our own request is told the time; the next request is that from then on.
    registry.fault(&blob, 3, asked);
    let begun = tokio::time::Instant::now();
    bench.pull(&format!("{}/a:v1", registry.host())).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    let of_blob = registry.seen().into_iter().filter(|seen| seen.path.contains(&blob));
    let through_the_package: Vec<bool> = of_blob.map(|seen| seen.range == Some("bytes=0-".to_owned())).collect();
    assert_eq!(through_the_package, [true, false, false, false]);
}

#[tokio::test]
async fn a_pod_that_is_tried_again_leaves_a_registry_alone_that_asks_for_it() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    // One layer: the requests for others would still be on their way when the first has failed.
    let plain = noise(9, 1000);
    let blob = push_layers(&registry, "a", "v1", &[(plain.clone(), gzip(&plain))]).blobs[0].to_string();
    let asked = Fault::Status(429, vec![("retry-after", "60".to_owned())], "slow down");
    registry.fault(&blob, 1000, asked);
    let reference = format!("{}/a:v1", registry.host());
    bench.pull(&reference).await.unwrap_err();
    let asked = registry.seen().len();
    let text = bench.pull(&reference).await.unwrap_err().to_string();
    assert!(text.contains("not asked") && text.contains("429 Too Many Requests"), "{text}");
    assert_eq!(registry.seen().len(), asked);
}

#[tokio::test]
async fn a_transfer_goes_on_for_the_pod_that_still_waits() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let blob = push(&registry, "a", "v1").blobs[0].to_string();
    // Well below the time that the registry may be silent in these tests.
    registry.fault(&blob, 1, Fault::Slow(Duration::from_millis(200)));
    let reference = format!("{}/a:v1", registry.host());
    let stays = bench.pull(&reference);
    let both_wait = async {
        Bench::until(|| registry.count("GET", &blob) > 0).await;
        // Time enough for the other one to come to the same transfer, and less than it takes.
        tokio::time::sleep(Duration::from_millis(80)).await;
    };
    let goes = async {
        tokio::select! {
            ended = bench.pull(&reference) => panic!("it cannot end: {ended:?}"),
            () = both_wait => {}
        }
    };
    let (image, ()) = tokio::join!(stays, goes);
    image.unwrap();
    assert_eq!(registry.count("GET", &blob), 1);
}
