//! The process is killed after every step of a repair of what is in use.

use std::os::unix::{fs::FileExt as _, process::ExitStatusExt as _};

use super::{
    kill::{outlive, start, told},
    *,
};
use crate::store::steps::observers::CRASH_AFTER;

/// A cache with a layer that the disk gives back wrong.
async fn damaged(place: &Place, registry: &str) {
    let life = Life::begin(place).await;
    life.cache("imc-1", &format!("{registry}/kept:v1")).await;
    let tar = life.store.layout().layer(&Digest::of(&layer(1).0)).tar();
    life.end().await;
    std::fs::File::options().write(true).open(tar).unwrap().write_all_at(b"rotten", 10_000).unwrap();
}

/// The life that is killed. Where nobody asks for that it is a test of its own: a repair that nothing happens to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn life() {
    if let Some((place, _)) = told() {
        let life = Life::begin(&place).await;
        let (steps, _nobody) = mpsc::channel(1000);
        let verified = life.service.verify(Mend::Yes, steps).await.unwrap();
        assert_eq!((verified.wrong, verified.righted), (1, 1));
        say("promise repaired");
        return life.end().await;
    }
    let (registry, folder) = (images().await, tempfile::tempdir().unwrap());
    let place = Place::below(folder.path(), Driver::Erofs);
    damaged(&place, &registry.host()).await;
    repaired_by_the_next(&place).await;
}

/// The next life has all layers, ends the repair, and whoever has the image mounted reads what is right.
async fn repaired_by_the_next(place: &Place) {
    let life = Life::begin(place).await;
    assert_eq!(life.store.recovered().layers, 2, "a layer that is in use was lost");
    let (steps, _nobody) = mpsc::channel(1000);
    let verified = life.service.verify(Mend::Yes, steps).await.unwrap();
    assert_eq!(verified.wrong, verified.righted);
    life.check(&["imc-1"]).await;
    let image = std::fs::read_dir(&place.mounts).unwrap().next().expect("a cache is mounted").unwrap();
    assert!(std::fs::read(image.path().join("file-1")).unwrap() == noise(1, 20_000), "the mount reads something else");
    life.end().await;
    assert_eq!(leftovers(place), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_is_killed_after_any_step_loses_nothing_that_is_in_use() {
    let registry = images().await;
    for step in 1.. {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::below(folder.path(), Driver::Erofs);
        damaged(&place, &registry.host()).await;
        let crash = [(CRASH_AFTER, step.to_string())];
        let child = start("image::crash_tests::repair::life", folder.path(), Driver::Erofs, &registry.host(), &crash);
        let (status, promised) = tokio::task::spawn_blocking(|| outlive(child)).await.unwrap();
        say(&format!("killed after step {step}: {status}, promised {promised:?}"));
        repaired_by_the_next(&place).await;
        if status.success() {
            assert!(step > 20 && promised == ["repaired"], "{step} steps are not all of them");
            return;
        }
        assert_eq!(status.signal(), Some(9), "step {step}");
    }
}
