//! The store after the worst: the process killed after every step, the power cut after every step, and a soak of kills at
//! random. What was told to be there is there and whole, nothing is left over, and the work can go on.
//!
//! Everything is real but the registry: the pull, the files, the mounts (so these tests run as root). Lives that are to be
//! killed are processes of their own: this test program once more, told what to do by its environment. Both drivers go
//! through all of it.

mod kill;
mod power_cut;
mod repair;
mod soak;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    tests::{gzip, image_config, noise, push_layers, wish},
    *,
};
use crate::{
    registry::{RegistryClient, RegistryConfig, test_registry::TestRegistry},
    snapshot::{self, DirectorySnapshotter, Driver, ErofsSnapshotter, Limits, Mend, Snapshotter},
    store::{
        Store,
        eviction::Rules,
        layout::{PARTIAL, UNFINISHED},
    },
};

/// A store, and where its images are mounted.
#[derive(Debug, Clone)]
struct Place {
    store: PathBuf,
    mounts: PathBuf,
    driver: Driver,
}

impl Place {
    fn below(folder: &Path, driver: Driver) -> Self {
        let place = Self { store: folder.join("store"), mounts: folder.join("mounts"), driver };
        std::fs::create_dir_all(&place.store).unwrap();
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.mounts).into_iter().flatten().flatten() {
            let _ = crate::host::mount::unmount_if_mounted(&entry.path());
        }
    }
}

/// One life of the part of the agent that has to do with images.
struct Life {
    service: Arc<ImageService>,
    store: Arc<Store>,
}

impl Life {
    async fn begin(place: &Place) -> Self {
        let store = Arc::new(Store::open(&place.store).unwrap());
        let (layout, limits) = (store.layout().clone(), Limits::default());
        let snapshotter: Arc<dyn Snapshotter> = match place.driver {
            Driver::Erofs => Arc::new(ErofsSnapshotter::new(layout, place.mounts.clone(), limits)),
            Driver::Directory => Arc::new(DirectorySnapshotter::new(layout, limits)),
        };
        let registries = RegistryClient::new(RegistryConfig {
            hosts: None,
            stall: Duration::from_secs(5),
            ..RegistryConfig::default()
        });
        let config = image_config(None);
        let service = ImageService::open(config, Arc::clone(&store), Arc::new(registries), snapshotter).await.unwrap();
        Self { service, store }
    }

    async fn end(self) {
        self.service.shutdown().await;
    }

    /// How many layers and images there are.
    fn holds(&self) -> (usize, usize) {
        (self.store.layers().unwrap().len(), self.store.images().unwrap().len())
    }

    /// Builds a cache of one image and waits until it is Ready.
    async fn cache(&self, id: &str, reference: &str) {
        let wish = BuildCache {
            id: id.to_owned(),
            name: id.to_owned(),
            images: vec![reference.to_owned()],
            access: RegistryAccess::default(),
            size_limit_bytes: 0,
            refresh: String::new(),
        };
        self.service.build_cache(wish).await.unwrap();
        let mut list = self.service.watch_caches();
        let over = |list: &CacheList| list.get(id).is_some_and(|cache| cache.phase != CachePhase::Creating);
        let list = list.wait_for(over).await.unwrap().clone();
        assert_eq!(list[id].phase, CachePhase::Ready, "{}", list[id].reason);
    }

    /// Pulls an image as a pod does that ends at once.
    async fn pull(&self, reference: &str) {
        let (progress, _steps) = mpsc::channel(100);
        drop(self.service.ensure(wish(reference), progress).await.unwrap());
    }

    /// Removes everything that nobody uses.
    async fn prune(&self, used_layers: usize) {
        self.until_unused(used_layers).await;
        self.service.prune(inventory::Prune::Remove).await.unwrap();
    }

    /// Removes what nobody uses as on a disk that is nearly full.
    async fn collect(&self, used_layers: usize) {
        self.until_unused(used_layers).await;
        let rules = Rules { high_percent: 0, low_percent: 0, min_age_seconds: 0, max_age_seconds: None };
        let (store, snapshotter) = (Arc::clone(&self.store), Arc::clone(&self.service.snapshotter));
        let collect = move || snapshot::collect(&store, snapshotter.as_ref(), &rules, pull::unix_seconds());
        let collected = tokio::task::spawn_blocking(collect).await.unwrap().unwrap();
        assert!(collected.wanted_bytes > 0, "the disk of a test is not empty");
    }

    /// Waits until what has been pulled is no longer in use.
    async fn until_unused(&self, used_layers: usize) {
        let unused = async {
            // The use of an image ends in the background, which tells nobody.
            while self.store.pins().pinned().len() > used_layers {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), unused).await.unwrap();
    }

    /// Everything is what it says it is, nothing is half there, and these caches are Ready.
    async fn check(&self, caches: &[&str]) {
        let at_rest = |list: &CacheList| !list.values().any(|cache| cache.phase == CachePhase::Creating);
        let mut list = self.service.watch_caches();
        tokio::time::timeout(Duration::from_secs(60), list.wait_for(at_rest)).await.unwrap().unwrap();
        let (steps, mut found) = mpsc::channel(1000);
        let verified = self.service.verify(Mend::No, steps).await.unwrap();
        let mut wrong = Vec::new();
        while let Some(step) = found.recv().await {
            if let verify::VerifyStep::Found(finding) = step {
                wrong.push(finding);
            }
        }
        assert_eq!((verified.wrong, &wrong[..]), (0, &[][..]));
        let list = self.service.watch_caches().borrow().clone();
        for id in caches {
            let cache = list.get(*id).unwrap_or_else(|| panic!("cache {id} is gone"));
            assert_eq!((*id, cache.phase), (*id, CachePhase::Ready), "{}", cache.reason);
        }
        let layers: Vec<Digest> = self.store.layers().unwrap().iter().map(|layer| layer.diff_id).collect();
        for image in self.store.images().unwrap() {
            assert!(image.diff_ids.iter().all(|diff_id| layers.contains(diff_id)), "{image:?}");
        }
        // The index and the disk know the same.
        for folder in [self.store.layout().layers(), self.store.layout().images()] {
            for entry in std::fs::read_dir(folder).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let digest = format!("sha256:{}", name.split('.').next().unwrap()).parse().unwrap();
                let images = self.store.images().unwrap();
                assert!(layers.contains(&digest) || images.iter().any(|image| image.manifest == digest), "{name}");
            }
        }
    }
}

/// What lies in `ingest/` and does not belong there while nothing is under way.
fn leftovers(place: &Place) -> Vec<String> {
    let entries = std::fs::read_dir(place.store.join("ingest")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(UNFINISHED) || !name.ends_with(PARTIAL)).collect()
}

/// A layer of one file, which is different for each seed.
fn layer(seed: u64) -> (Vec<u8>, Vec<u8>) {
    layer_of(seed, 20_000)
}

/// A layer whose download goes on where it broke off.
fn large_layer(seed: u64) -> (Vec<u8>, Vec<u8>) {
    layer_of(seed, 3 << 20)
}

fn layer_of(seed: u64, bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let mut tar = tar::Builder::new(Vec::new());
    let content = noise(seed, bytes);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, format!("file-{seed}"), content.as_slice()).unwrap();
    let plain = tar.into_inner().unwrap();
    let packed = gzip(&plain);
    (plain, packed)
}

/// Images with a layer in common.
async fn images() -> TestRegistry {
    let registry = TestRegistry::start().await;
    push_layers(&registry, "kept", "v1", &[layer(1), large_layer(2)]);
    push_layers(&registry, "passing", "v1", &[layer(1), layer(3), layer(4)]);
    push_layers(&registry, "passing", "v2", &[layer(1), layer(5)]);
    registry
}

/// What a life does: a cache that stays, two pods that pass, and the end of what these have left. `tell` is called when
/// something is promised.
async fn work(life: &Life, registry: &str, tell: impl Fn(&'static str)) {
    life.cache("imc-1", &format!("{registry}/kept:v1")).await;
    tell("cached");
    life.pull(&format!("{registry}/passing:v1")).await;
    tell("pulled");
    life.collect(2).await;
    tell("collected");
    life.pull(&format!("{registry}/passing:v2")).await;
    life.prune(2).await;
    tell("pruned");
}

/// A life after a crash finds what was promised.
async fn find_again(place: &Place, promised: &[&'static str]) -> Life {
    let life = Life::begin(place).await;
    life.service.unmount_strangers().await;
    let caches: &[&str] = if promised.contains(&"cached") { &["imc-1"] } else { &[] };
    life.check(caches).await;
    if promised.contains(&"pruned") {
        assert_eq!(life.holds(), (2, 1), "layers and images");
    }
    life
}

/// Tells whoever started this life, or reads why a test has failed.
#[expect(clippy::print_stdout, reason = "lives talk to each other by it")]
fn say(what: &str) {
    println!("{what}");
}
