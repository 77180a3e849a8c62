//! Damage of every kind, found and put right. Mounts real images, so these tests run as root.

use std::{
    fs::{self, File},
    io::{Seek as _, Write as _},
    path::Path,
};

use super::*;
use crate::{
    image::{
        Images as _,
        tests::{gzip, image_config, push_layers, wish},
    },
    registry::{
        RegistryClient, RegistryConfig,
        test_registry::{Door, TestRegistry},
    },
    snapshot::{DriverChoice, Limits},
    store::Store,
};

/// A service over a store with one image of two layers, and the registry that it came from.
struct Bench {
    registry: TestRegistry,
    service: Arc<ImageService>,
    store: Arc<Store>,
    diff_ids: [Digest; 2],
    manifest: Digest,
    folder: tempfile::TempDir,
}

fn layer(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let content = name.repeat(9000);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

impl Bench {
    async fn new(driver: DriverChoice) -> Self {
        let (registry, folder) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
        let layers = ["one", "two"].map(layer);
        let pushed = push_layers(&registry, "a", "v1", &layers.clone().map(|plain| (plain.clone(), gzip(&plain))));
        let store = Arc::new(Store::open(&folder.path().join("store")).unwrap());
        let mounts = folder.path().join("mounts");
        let snapshotter = crate::snapshot::open(driver, store.layout(), &mounts, Limits::default()).unwrap();
        let registries = RegistryClient::new(RegistryConfig { hosts: None, ..RegistryConfig::default() });
        let config = image_config(None);
        let service = ImageService::open(config, Arc::clone(&store), Arc::new(registries), snapshotter).await.unwrap();
        let diff_ids = layers.map(|plain| Digest::of(&plain));
        Self { registry, service, store, diff_ids, manifest: pushed.manifest, folder }
    }

    async fn pull(&self) -> crate::image::PresentImage {
        let (progress, _steps) = mpsc::channel(100);
        self.service.ensure(wish(&format!("{}/a:v1", self.registry.host())), progress).await.unwrap()
    }

    async fn verify(&self, mend: Mend) -> (Verified, Vec<(Subject, Outcome)>) {
        let (steps, mut told) = mpsc::channel(1000);
        let verified = self.service.verify(mend, steps).await.unwrap();
        let mut found = Vec::new();
        while let Some(step) = told.recv().await {
            if let VerifyStep::Found(finding) = step {
                found.push((finding.subject, finding.outcome));
            }
        }
        (verified, found)
    }

    /// Waits until nobody uses an image, and its mount is gone: the end of a use tells nobody.
    async fn unused(&self) {
        let mount = self.folder.path().join("mounts").join(self.manifest.hex());
        let is_unused = || self.store.pins().pinned().is_empty() && !mount.exists();
        tokio::time::timeout(std::time::Duration::from_secs(10), async {
            while !is_unused() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }

    /// What is damaged is found, put right, and sound afterwards.
    async fn heals(&self, subject: Subject) {
        assert_eq!(self.verify(Mend::No).await.1, [(subject.clone(), Outcome::Told)]);
        assert_eq!(self.verify(Mend::Yes).await.1, [(subject, Outcome::Repaired)]);
        assert_eq!(self.verify(Mend::No).await.1, []);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let mount = self.folder.path().join("mounts").join(self.manifest.hex());
        let _ = crate::host::mount::unmount_if_mounted(&mount);
    }
}

/// Changes one byte in the middle of a file.
fn damage(path: &Path) {
    let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    file.seek(std::io::SeekFrom::Start(middle)).unwrap();
    file.write_all(b"\xff").unwrap();
    file.sync_all().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_store_is_read_in_full() {
    let bench = Bench::new(DriverChoice::Erofs).await;
    let _image = bench.pull().await;
    let bytes = bench.store.layers().unwrap().iter().map(|layer| layer.size_bytes).sum();
    let expected = Verified { layers: 2, bytes, images: 1, documents: 2, ..Verified::default() };
    assert_eq!(bench.verify(Mend::No).await, (expected, Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_layer_is_fetched_again_also_for_whoever_has_it_mounted() {
    let bench = Bench::new(DriverChoice::Erofs).await;
    let image = bench.pull().await;
    damage(&bench.store.layout().layer(&bench.diff_ids[0]).tar());
    bench.heals(Subject::Layer(bench.diff_ids[0])).await;
    assert_eq!(fs::read_to_string(image.lower_dirs[0].join("one")).unwrap(), "one".repeat(9000));
    assert!(bench.store.layers().unwrap().iter().any(|layer| layer.diff_id == bench.diff_ids[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_derived_is_made_anew_without_the_registry() {
    let bench = Bench::new(DriverChoice::Erofs).await;
    let _image = bench.pull().await;
    bench.registry.forget_seen();
    let layout = bench.store.layout();
    fs::remove_file(layout.layer(&bench.diff_ids[1]).index()).unwrap();
    bench.heals(Subject::Layer(bench.diff_ids[1])).await;
    fs::write(layout.image_index(&bench.manifest), b"no image").unwrap();
    bench.heals(Subject::Image(bench.manifest)).await;
    assert_eq!(bench.registry.seen(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_has_lost_its_index_serves_all_the_same() {
    let bench = Bench::new(DriverChoice::Erofs).await;
    drop(bench.pull().await);
    let layout = bench.store.layout();
    bench.unused().await;
    fs::remove_file(layout.layer(&bench.diff_ids[1]).index()).unwrap();
    fs::remove_file(layout.image_index(&bench.manifest)).unwrap();
    let image = bench.pull().await;
    assert_eq!(fs::read_to_string(image.lower_dirs[0].join("two")).unwrap(), "two".repeat(9000));
    assert_eq!(bench.verify(Mend::No).await.1, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_document_is_fetched_again() {
    let bench = Bench::new(DriverChoice::Erofs).await;
    let _image = bench.pull().await;
    damage(&bench.store.layout().manifest(&bench.manifest));
    bench.heals(Subject::Document(bench.manifest)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_fetched_goes_unless_it_is_used() {
    let bench = Bench::new(DriverChoice::Erofs).await;
    let image = bench.pull().await;
    let tar = bench.store.layout().layer(&bench.diff_ids[0]).tar();
    damage(&tar);
    bench.registry.fault("/v2/", usize::MAX, crate::registry::test_registry::Fault::Status(404, Vec::new(), "gone"));
    let (verified, found) = bench.verify(Mend::Yes).await;
    let [(Subject::Layer(layer), Outcome::Left(why))] = &found[..] else { panic!("{found:?}") };
    assert_eq!((*layer, verified.wrong, verified.righted), (bench.diff_ids[0], 1, 0));
    assert!(why.contains(&format!("{}/a:v1", bench.registry.host())), "{why}");
    assert!(tar.exists() && bench.store.layers().unwrap().len() == 2, "a pod uses it");
    drop(image);
    bench.unused().await;
    assert_eq!(bench.verify(Mend::Yes).await.1, [(Subject::Layer(bench.diff_ids[0]), Outcome::Removed)]);
    assert!(!tar.exists() && bench.store.layers().unwrap().len() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_changed_byte_of_an_unpacked_file_is_found_and_put_right() {
    let bench = Bench::new(DriverChoice::Directory).await;
    let image = bench.pull().await;
    // What is read is the two files.
    let expected = Verified { layers: 2, bytes: 2 * 27_000, images: 1, documents: 2, ..Verified::default() };
    assert_eq!(bench.verify(Mend::No).await, (expected, Vec::new()));
    let subject = Subject::Layer(bench.diff_ids[0]);
    let file = bench.store.layout().layer(&bench.diff_ids[0]).files().join("one");
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    damage(&file);
    File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    assert_eq!(bench.verify(Mend::No).await.1, [(subject.clone(), Outcome::Told)]);
    let (_, found) = bench.verify(Mend::Yes).await;
    assert!(matches!(&found[..], [(_, Outcome::Left(why))] if why.contains("use its files")), "{found:?}");
    drop(image);
    bench.unused().await;
    assert_eq!(bench.verify(Mend::Yes).await.1, [(subject, Outcome::Repaired)]);
    assert_eq!(fs::read_to_string(file).unwrap(), "one".repeat(9000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_containers_stand_on_is_not_made_anew_under_them() {
    let bench = Bench::new(DriverChoice::Directory).await;
    let image = bench.pull().await;
    let place = bench.store.layout().image_directories(&bench.manifest);
    fs::create_dir(place.join("fs")).unwrap();
    let (_, found) = bench.verify(Mend::Yes).await;
    assert!(matches!(&found[..], [(_, Outcome::Left(why))] if why.contains("use its files")), "{found:?}");
    assert!(place.join("fs").exists());
    drop(image);
    bench.unused().await;
    assert_eq!(bench.verify(Mend::Yes).await.1, [(Subject::Image(bench.manifest), Outcome::Repaired)]);
    assert_eq!(bench.verify(Mend::No).await.1, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_an_image_is_made_anew_waits_for_it() {
    let bench = Bench::new(DriverChoice::Directory).await;
    drop(bench.pull().await);
    bench.unused().await;
    let mounts = &bench.service.engine.mounts;
    let ((begin, begun), (end, ended)) = (tokio::sync::oneshot::channel(), std::sync::mpsc::channel());
    let act = move || {
        begin.send(()).unwrap();
        ended.recv().unwrap();
        Ok(())
    };
    let comes = async {
        begun.await.unwrap();
        let mut pull = std::pin::pin!(bench.pull());
        let mut looks_after_pin = 0;
        while looks_after_pin < 50 {
            tokio::task::yield_now().await;
            assert!(futures::poll!(&mut pull).is_pending(), "it has not waited");
            looks_after_pin += u32::from(!mounts.manifests().is_empty());
        }
        end.send(()).unwrap();
        pull.await
    };
    let (made, image) = tokio::join!(mounts.while_unused(&bench.manifest, act), comes);
    assert!(matches!(made, Ok(Some(()))), "{made:?}");
    assert!(image.lower_dirs[0].join("two").exists());
    assert!(matches!(mounts.while_unused(&bench.manifest, || Ok(())).await, Ok(None)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_pinned_before_it_is_removed_stays() {
    let bench = Bench::new(DriverChoice::Directory).await;
    drop(bench.pull().await);
    bench.unused().await;
    let layer = bench.diff_ids[0];
    damage(&bench.store.layout().layer(&layer).files().join("one"));
    // Somebody who has come so far, and has mounted nothing yet.
    let pin = bench.store.pins().pin(crate::store::pins::Holder::Pod, &[layer]);
    let (_, found) = bench.verify(Mend::Yes).await;
    assert!(matches!(&found[..], [(_, Outcome::Left(why))] if why.contains("use its files")), "{found:?}");
    drop(pin);
    assert_eq!(bench.verify(Mend::Yes).await.1, [(Subject::Layer(layer), Outcome::Repaired)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_wants_a_login_is_named_with_what_to_do() {
    let bench = Bench::new(DriverChoice::Erofs).await;
    let _image = bench.pull().await;
    damage(&bench.store.layout().layer(&bench.diff_ids[0]).tar());
    bench.registry.set_door(Door::Bearer("me:secret".to_owned(), None));
    let (_, found) = bench.verify(Mend::Yes).await;
    let [(_, Outcome::Left(why))] = &found[..] else { panic!("{found:?}") };
    assert!(why.contains("a repair has the logins of this node alone"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_verification_at_a_time() {
    let bench = Bench::new(DriverChoice::Erofs).await;
    let _first = bench.service.verifying.lock().await;
    let (steps, _told) = mpsc::channel(1);
    assert!(matches!(bench.service.verify(Mend::No, steps).await, Err(VerifyError::Busy)));
}
