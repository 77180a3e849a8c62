//! Images from end to end: a registry in this process, a store in memory.

mod claims;
mod formats;
mod limits;
mod transfer;

use std::{io::Write as _, num::NonZeroU64, path::PathBuf, time::Duration};

use serde_json::json;

use super::{test_snapshotter::TestSnapshotter, verification::Rules, *};
use crate::{
    meters::Meters,
    registry::{
        RegistryClient, RegistryConfig,
        test_registry::{Door, Fault, TestRegistry},
    },
    store::Store,
};

pub(super) const PLATFORM: pull_plan::Platform =
    pull_plan::Platform { os: "linux", architecture: "amd64", variants: &["", "v1"] };

/// How the images of tests are pulled.
pub(super) fn image_config(registry_bandwidth: Option<NonZeroU64>) -> ImageConfig {
    ImageConfig {
        max_parallel_layers: 3,
        max_parallel_layers_in_all: 5,
        registry_bandwidth,
        resume_over: Duration::ZERO,
        platform: PLATFORM,
        rules: Rules::default(),
        meters: Meters::default(),
    }
}

/// A service, its store and its folder.
pub(super) struct Bench {
    pub(super) service: Arc<ImageService>,
    pub(super) store: Arc<Store>,
    pub(super) snapshotter: TestSnapshotter,
    folder: Arc<tempfile::TempDir>,
    hosts: Option<PathBuf>,
    rules: Rules,
}

impl Bench {
    pub(super) async fn new() -> Self {
        Self::with_hosts(None).await
    }

    /// With a folder of `hosts.toml` files.
    async fn with_hosts(hosts: Option<PathBuf>) -> Self {
        Self::over(Self::folder(), TestSnapshotter::default(), hosts, image_config(None)).await
    }

    /// Where images are given to pods by these rules.
    pub(super) async fn with_rules(rules: Rules) -> Self {
        let config = ImageConfig { rules, ..image_config(None) };
        Self::over(Self::folder(), TestSnapshotter::default(), None, config).await
    }

    fn folder() -> Arc<tempfile::TempDir> {
        Arc::new(tempfile::tempdir().unwrap())
    }

    async fn over(
        folder: Arc<tempfile::TempDir>,
        snapshotter: TestSnapshotter,
        hosts: Option<PathBuf>,
        config: ImageConfig,
    ) -> Self {
        let registry =
            RegistryConfig { hosts: hosts.clone(), stall: Duration::from_millis(400), ..RegistryConfig::default() };
        let registries = RegistryClient::new(registry);
        let rules = config.rules.clone();
        let store = Arc::new(Store::open(folder.path()).unwrap());
        let service =
            ImageService::open(config, Arc::clone(&store), Arc::new(registries), Arc::new(snapshotter.clone()));
        Self { service: service.await.unwrap(), store, snapshotter, folder, hosts, rules }
    }

    /// The agent ends and starts again.
    pub(super) async fn restart(self) -> Self {
        self.service.shutdown().await;
        let Self { service, store, snapshotter, folder, hosts, rules } = self;
        drop((service, store));
        Self::over(folder, snapshotter, hosts, ImageConfig { rules, ..image_config(None) }).await
    }

    /// Sizes of the downloads that can go on.
    fn partials(&self) -> Vec<u64> {
        let paths = std::fs::read_dir(self.store.layout().ingest()).unwrap().map(|entry| entry.unwrap().path());
        let partial = paths.filter(|path| path.extension().is_some_and(|extension| extension == "partial"));
        // Others come and go.
        partial.filter_map(|path| Some(std::fs::metadata(path).ok()?.len())).collect()
    }

    /// Pulls until so much of a layer is kept, and gives up then.
    async fn pull_until_kept(&self, reference: &str, bytes: u64) {
        let kept = Self::until(|| self.partials().iter().any(|&kept| kept >= bytes));
        tokio::select! {
            ended = self.pull(reference) => panic!("it cannot end: {ended:?}"),
            () = kept => {}
        }
    }

    /// How many layers are pinned.
    pub(super) fn pinned(&self) -> usize {
        self.store.pins().pinned().len()
    }

    /// Waits until something holds.
    pub(super) async fn until(what: impl Fn() -> bool) {
        let holds = async {
            while !what() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), holds).await.unwrap();
    }

    pub(super) async fn ensure(
        &self,
        wish: EnsureImage,
    ) -> (Result<PresentImage, EnsureImageError>, Vec<ImageProgress>) {
        let (sender, mut receiver) = mpsc::channel(100);
        let result = self.service.ensure(wish, sender).await;
        let mut progress = Vec::new();
        while let Some(step) = receiver.recv().await {
            progress.push(step);
        }
        (result, progress)
    }

    pub(super) async fn pull(&self, reference: &str) -> Result<PresentImage, EnsureImageError> {
        self.ensure(wish(reference)).await.0
    }
}

pub(super) fn wish(reference: &str) -> EnsureImage {
    EnsureImage {
        reference: reference.to_owned(),
        policy: PullPolicy::IfNotPresent,
        access: RegistryAccess::default(),
        cache: None,
        waiter: Waiter::Command,
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress away, different for each seed.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

/// An image in a registry.
pub(super) struct Pushed {
    pub(super) manifest: Digest,
    pub(super) blobs: Vec<Digest>,
    config: Digest,
    pub(super) plain_bytes: u64,
}

/// Pushes an image of these layers, as `(plain, packed)`.
pub(super) fn push_layers(
    registry: &TestRegistry,
    repository: &str,
    tag: &str,
    layers: &[(Vec<u8>, Vec<u8>)],
) -> Pushed {
    let diff_ids: Vec<String> = layers.iter().map(|(plain, _)| Digest::of(plain).to_string()).collect();
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {"Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let config_size = config.len();
    let config = registry.put_blob(config);
    let blobs: Vec<Digest> = layers.iter().map(|(_, packed)| registry.put_blob(packed.clone())).collect();
    let descriptors: Vec<_> = blobs
        .iter()
        .zip(layers)
        .map(|(digest, (_, packed))| {
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            json!({"mediaType": media_type, "digest": digest.to_string(), "size": packed.len()})
        })
        .collect();
    let manifest = registry.put_manifest(
        repository,
        tag,
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.to_string(), "size": config_size,
            },
            "layers": descriptors,
        }),
    );
    let plain_bytes = layers.iter().map(|(plain, _)| u64::try_from(plain.len()).unwrap()).sum();
    Pushed { manifest, blobs, config, plain_bytes }
}

/// Pushes an image of three gzip layers.
pub(super) fn push(registry: &TestRegistry, repository: &str, tag: &str) -> Pushed {
    let layers: Vec<_> = (0..3).map(|n| noise(n + 1, 300_000)).map(|plain| (plain.clone(), gzip(&plain))).collect();
    push_layers(registry, repository, tag, &layers)
}

#[tokio::test]
async fn brings_an_image_and_says_so() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a/b", "v1");
    let reference = format!("{}/a/b:v1", registry.host());
    let (image, progress) = bench.ensure(wish(&reference)).await;
    let image = image.unwrap();
    assert_eq!(image.reference, reference);
    assert_eq!(image.image_id, format!("{}/a/b@{}", registry.host(), pushed.manifest));
    assert_eq!((image.manifest, image.size_bytes), (pushed.manifest, pushed.plain_bytes));
    assert_eq!(image.config.config().as_ref().unwrap().env().as_ref().unwrap(), &["A=b"]);
    assert_eq!(progress.first(), Some(&ImageProgress::Pulling));
    assert!(matches!(progress.last(), Some(ImageProgress::Pulled { size_bytes, .. }) if *size_bytes > 900_000));
    assert!(bench.snapshotter.is_mounted(&pushed.manifest));
}

#[tokio::test]
async fn a_second_pod_asks_for_the_manifest_and_moves_no_layer() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    bench.pull(&reference).await.unwrap();
    registry.forget_seen();
    let (image, progress) = bench.ensure(wish(&reference)).await;
    image.unwrap();
    assert!(matches!(progress.last(), Some(ImageProgress::Pulled { .. })), "{progress:?}");
    let seen = registry.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("HEAD", "/v2/a/manifests/v1"));
}

#[tokio::test]
async fn twenty_at_once_fetch_each_blob_once() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    let all = futures::future::join_all((0..20).map(|_| bench.pull(&reference))).await;
    for image in all {
        assert_eq!(image.unwrap().manifest, pushed.manifest);
    }
    for blob in pushed.blobs.iter().chain([&pushed.config]) {
        assert_eq!(registry.count("GET", &blob.to_string()), 1, "{blob}");
    }
}

#[tokio::test]
async fn images_that_share_layers_fetch_them_once() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let layer = |seed| {
        let plain = noise(seed, 200_000);
        (plain.clone(), gzip(&plain))
    };
    let first = push_layers(&registry, "a", "v1", &[layer(1), layer(2)]);
    let second = push_layers(&registry, "b", "v1", &[layer(1), layer(3)]);
    let (a, b) = (format!("{}/a:v1", registry.host()), format!("{}/b:v1", registry.host()));
    let (a, b) = tokio::join!(bench.pull(&a), bench.pull(&b));
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(registry.count("GET", &first.blobs[0].to_string()), 1);
    assert_eq!(first.blobs[0], second.blobs[0]);
    assert_eq!(bench.snapshotter.layer_count(), 3);
}

#[tokio::test]
async fn takes_gzip_zstd_and_plain_layers_and_an_index() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain: Vec<_> = (10..13).map(|seed| noise(seed, 700_000)).collect();
    let layers = [
        (plain[0].clone(), gzip(&plain[0])),
        (plain[1].clone(), zstd::encode_all(&plain[1][..], 3).unwrap()),
        (plain[2].clone(), plain[2].clone()),
    ];
    let pushed = push_layers(&registry, "a", "amd64", &layers);
    let entry = |digest: Digest, architecture: &str| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": 1,
               "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(Digest::of(b"other"), "arm64"), entry(pushed.manifest, "amd64")],
    });
    let index = registry.put_manifest("a", "v1", &index);
    let image = bench.pull(&format!("{}/a:v1", registry.host())).await.unwrap();
    assert_eq!(image.manifest, pushed.manifest);
    assert_eq!(image.image_id, format!("{}/a@{index}", registry.host()));
    assert_eq!(bench.snapshotter.layer_count(), 3);
    // The same by digest, of the index or of the manifest.
    for digest in [index, pushed.manifest] {
        let image = bench.pull(&format!("{}/a@{digest}", registry.host())).await.unwrap();
        assert_eq!(image.manifest, pushed.manifest);
    }
}

#[tokio::test]
async fn a_transfer_that_breaks_goes_on_where_it_broke() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    let blob = pushed.blobs[0].to_string();
    registry.fault(&blob, 1, Fault::Cut(100_000));
    registry.fault(&blob, 1, Fault::Stall(50_000));
    registry.fault(&blob, 1, Fault::NoRanges);
    bench.pull(&format!("{}/a:v1", registry.host())).await.unwrap();
    let ranges: Vec<_> =
        registry.seen().into_iter().filter(|seen| seen.path.contains(&blob)).map(|seen| seen.range).collect();
    assert_eq!(
        ranges,
        [Some("bytes=0-".to_owned()), Some("bytes=100000-".to_owned()), Some("bytes=150000-".to_owned())]
    );
}

#[tokio::test]
async fn says_what_went_wrong_leaves_nothing_and_recovers() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain = noise(5, 600_000);
    let pushed = push_layers(&registry, "a", "v1", &[(plain.clone(), gzip(&plain))]);
    let (blob, reference) = (pushed.blobs[0].to_string(), format!("{}/a:v1", registry.host()));
    let status = |code| Fault::Status(code, vec![], "said by the test");
    let actual = Digest::of(b"");
    for (fault, expected) in [
        (Fault::Corrupt, format!("expected {blob}")),
        (Fault::Longer, format!("{blob} from http://")),
        (Fault::Cut(0), format!("http://{}/v2/a/blobs/{blob}: ", registry.host())),
        (Fault::Stall(10), "no data from the registry for 400ms".to_owned()),
        (status(404), "404 Not Found: said by the test".to_owned()),
        (status(403), "403 Forbidden: said by the test; no login fits this registry".to_owned()),
        (status(500), "500 Internal Server Error: said by the test".to_owned()),
        (status(429), "429 Too Many Requests".to_owned()),
    ] {
        registry.fault(&blob, 1000, fault.clone());
        let err = bench.pull(&reference).await.unwrap_err();
        assert_eq!(err.reason(), "ErrImagePull");
        let text = err.to_string();
        assert!(text.starts_with(&format!("failed to pull image {reference:?}: ")), "{fault:?}: {text}");
        assert!(text.contains(&expected), "{fault:?}: {text}");
        assert!(!text.contains(&actual.to_string()), "{fault:?}: {text}");
        assert_eq!((bench.snapshotter.layer_count(), bench.snapshotter.unfinished()), (0, 0), "{fault:?}");
        registry.heal();
    }
    bench.snapshotter.set_full(true);
    let text = bench.pull(&reference).await.unwrap_err().to_string();
    assert!(
        text.contains("no space left for the layer in /store: at least 2 B needed, 1 B free; without it "),
        "{text}"
    );
    bench.snapshotter.set_full(false);
    bench.pull(&reference).await.unwrap();
}

#[tokio::test]
async fn refuses_content_that_is_not_what_the_image_says() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    push_layers(&registry, "lies", "v1", &[(b"promised".to_vec(), gzip(b"delivered"))]);
    push_layers(&registry, "broken", "v1", &[(b"abc".to_vec(), [0x1f, 0x8b, 8, 0, 0, 0].to_vec())]);
    for (image, expected) in [("lies", "layer content has diff id"), ("broken", "decompress layer sha256:")] {
        let text = bench.pull(&format!("{}/{image}:v1", registry.host())).await.unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!((bench.snapshotter.layer_count(), bench.snapshotter.unfinished()), (0, 0));
}

#[tokio::test]
async fn a_bad_reference_is_named_and_never_is_never() {
    let bench = Bench::new().await;
    let err = bench.pull("UPPER").await.unwrap_err();
    assert_eq!(err.reason(), "InvalidImageName");
    let never = EnsureImage { policy: PullPolicy::Never, ..wish("nginx") };
    let (result, progress) = bench.ensure(never).await;
    assert_eq!((result.unwrap_err().reason(), progress), ("ErrImageNeverPull", vec![]));
}

#[tokio::test]
async fn each_pod_needs_its_own_login() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    push(&registry, "a", "v1");
    registry.set_door(Door::Bearer("me:secret".to_owned(), None));
    let reference = format!("{}/a:v1", registry.host());
    let login = Login::Basic { username: "me".to_owned(), password: "secret".to_owned() };
    let access = RegistryAccess {
        credentials: vec![Credential { registry: registry.host(), login }],
        ..RegistryAccess::default()
    };
    bench.ensure(EnsureImage { access, ..wish(&reference) }).await.0.unwrap();
    let text = bench.pull(&reference).await.unwrap_err().to_string();
    assert!(text.contains("unauthorized"), "{text}");
}

#[tokio::test]
async fn giving_up_ends_the_transfer() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    for blob in &pushed.blobs {
        registry.fault(&blob.to_string(), 1000, Fault::Slow(Duration::from_millis(50)));
        registry.fault(&blob.to_string(), 1000, Fault::Stall(10));
    }
    let reference = format!("{}/a:v1", registry.host());
    let (sender, mut receiver) = mpsc::channel(10);
    {
        let ensuring = bench.service.ensure(wish(&reference), sender);
        tokio::pin!(ensuring);
        loop {
            tokio::select! {
                _ = &mut ensuring => panic!("it cannot end"),
                step = receiver.recv() => if matches!(step, Some(ImageProgress::Layers(_))) { break },
            }
        }
    }
    // Waits for every task, hence for every writer.
    bench.service.shutdown().await;
    assert_eq!((bench.snapshotter.layer_count(), bench.snapshotter.unfinished()), (0, 0));
}

#[tokio::test]
async fn an_image_is_mounted_while_somebody_has_a_lease() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    let first = bench.pull(&reference).await.unwrap();
    let second = bench.pull(&reference).await.unwrap();
    assert_eq!(bench.pinned(), 3);
    drop(first);
    drop(second.clone());
    assert!(bench.snapshotter.is_mounted(&pushed.manifest));
    drop(second);
    Bench::until(|| !bench.snapshotter.is_mounted(&pushed.manifest) && bench.pinned() == 0).await;
}

#[tokio::test]
async fn a_container_of_an_earlier_life_keeps_its_image_without_a_registry() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pushed = push(&registry, "a", "v1");
    let reference = format!("{}/a:v1", registry.host());
    bench.pull(&reference).await.unwrap();
    let again = bench.restart().await;
    registry.forget_seen();
    let image = again.service.adopt(&reference, &pushed.manifest).await.unwrap();
    assert_eq!((image.manifest, image.size_bytes), (pushed.manifest, pushed.plain_bytes));
    assert_eq!(registry.seen(), []);
    let err = again.service.adopt(&reference, &Digest::of(b"other")).await.unwrap_err();
    assert!(err.to_string().ends_with("is not in the store"), "{err}");
}

#[tokio::test]
async fn what_nobody_adopted_is_unmounted() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let first = push(&registry, "a", "v1");
    let plain = noise(70, 1000);
    let second = push_layers(&registry, "b", "v1", &[(plain.clone(), plain)]);
    let (a, b) = (format!("{}/a:v1", registry.host()), format!("{}/b:v1", registry.host()));
    let running = (bench.pull(&a).await.unwrap(), bench.pull(&b).await.unwrap());
    let bench = bench.restart().await;
    let adopted = bench.service.adopt(&a, &first.manifest).await.unwrap();
    bench.service.unmount_strangers().await;
    assert!(bench.snapshotter.is_mounted(&first.manifest));
    assert!(!bench.snapshotter.is_mounted(&second.manifest));
    drop((running, adopted));
}
