//! The power is cut after every step.

use super::*;
use crate::store::steps::{
    observers::{Recorder, Seen},
    power_cut::{Disk, Unsynced},
};

/// The steps of a whole life, with what it promised among them.
async fn recorded(place: &Place, registry: &str) -> Vec<Seen> {
    let recorder = Recorder::below(&place.store);
    let life = Life::begin(place).await;
    work(&life, registry, |promise| recorder.mark(promise)).await;
    life.end().await;
    recorder.steps()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_after_any_step_loses_nothing_that_was_promised() {
    cut_after_any_step(Driver::Erofs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_after_any_step_loses_no_directory_that_was_promised() {
    cut_after_any_step(Driver::Directory).await;
}

async fn cut_after_any_step(driver: Driver) {
    let (images, folder) = (images().await, tempfile::tempdir().unwrap());
    let place = Place::below(folder.path(), driver);
    let steps = recorded(&place, &images.host()).await;
    assert!(steps.len() > 100, "{} steps are not all of them", steps.len());
    for count in 0..=steps.len() {
        let disk = Disk::after(&place.store, &steps[..count]);
        let other = if count % 4 == 0 { Unsynced::Kept } else { Unsynced::Drawn(count as u64) };
        // What the drivers have in common is cut in both ways for one of them.
        let ways = match driver {
            Driver::Erofs => vec![Unsynced::Lost, other],
            Driver::Directory => vec![if count % 2 == 0 { other } else { Unsynced::Lost }],
        };
        for unsynced in ways {
            let folder = tempfile::tempdir().unwrap();
            let after = Place::below(folder.path(), driver);
            disk.cut(unsynced, &after.store);
            let last = steps[..count].last().map(name);
            say(&format!("cut after step {count}, {last:?}, what was not synced: {unsynced:?}"));
            // A cache that was on record and not promised goes on by itself.
            find_again(&after, &promised(&steps[..count])).await.end().await;
            assert_eq!(leftovers(&after), [""; 0]);
        }
    }
}

/// What a killed process has done and not synced is seen by the next one, which must not take it for durable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_after_a_beginning_that_was_killed_loses_nothing_that_was_promised() {
    let (images, folder) = (images().await, tempfile::tempdir().unwrap());
    let beginning = |place: &Place| {
        let recorder = Recorder::below(&place.store);
        drop(Store::open(&place.store).unwrap());
        recorder.steps()
    };
    let count = beginning(&Place::below(&folder.path().join("whole"), Driver::Erofs)).len();
    assert!(count > 10, "{count} steps are not all of them");
    for killed_after in 0..=count {
        let place = Place::below(&folder.path().join(format!("killed-after-{killed_after}")), Driver::Erofs);
        let mut steps = beginning(&place);
        steps.truncate(killed_after);
        say(&format!("killed after step {killed_after}, {:?}", steps.last().map(name)));
        std::fs::remove_dir_all(&place.store).unwrap();
        Disk::after(&place.store, &steps).cut(Unsynced::Kept, &place.store);
        steps.extend(recorded(&place, &images.host()).await);
        let folder = tempfile::tempdir().unwrap();
        let after = Place::below(folder.path(), Driver::Erofs);
        Disk::after(&place.store, &steps).cut(Unsynced::Lost, &after.store);
        find_again(&after, &promised(&steps)).await.end().await;
        // The cache is Ready without its documents too, which come again.
        let documents = |place: &Place| std::fs::read_dir(place.store.join("manifests/sha256")).unwrap().count();
        assert_eq!(documents(&after), documents(&place));
    }
}

/// Tells some syncs from all other steps.
type Syncs<'a> = &'a dyn Fn(&Seen) -> bool;

/// The test above is worth something: with one kind of sync left out, it would not pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_is_left_out_loses_what_was_promised() {
    let (images, folder) = (images().await, tempfile::tempdir().unwrap());
    let place = Place::below(folder.path(), Driver::Erofs);
    let steps = recorded(&place, &images.host()).await;
    let layout = crate::store::layout::Layout::new(&place.store);
    let is_named = |path: &Path, name: &str| path.file_name().is_some_and(|file| file == name);
    let tars = |seen: &Seen| matches!(seen, Seen::SyncFile(path, _) if is_named(path, "layer.tar"));
    let metas = |seen: &Seen| matches!(seen, Seen::SyncFile(path, _) if is_named(path, "meta.unfinished"));
    let inside = |seen: &Seen| matches!(seen, Seen::SyncDirectory(path) if path.starts_with(layout.ingest()));
    let layers = |seen: &Seen| matches!(seen, Seen::SyncDirectory(path) if *path == layout.layers());
    let caches = |seen: &Seen| matches!(seen, Seen::SyncDirectory(path) if *path == layout.caches());
    let above = |seen: &Seen| matches!(seen, Seen::SyncDirectory(path) if *path == place.store);
    let left_out: [(&str, Syncs<'_>); 6] = [
        ("tars", &tars),
        ("what layers say of themselves", &metas),
        ("names in layers and ingest", &inside),
        ("names of layers", &layers),
        ("names of caches", &caches),
        ("names in the store", &above),
    ];
    for (what, left_out) in left_out {
        let with_a_fault: Vec<Seen> = steps.iter().filter(|seen| !left_out(seen)).cloned().collect();
        assert!(with_a_fault.len() < steps.len(), "{what}: there is such a sync");
        let folder = tempfile::tempdir().unwrap();
        Disk::after(&place.store, &with_a_fault).cut(Unsynced::Lost, folder.path());
        let store = Store::open(folder.path()).unwrap();
        let caches = std::fs::read_dir(store.layout().caches()).unwrap().count();
        assert_ne!((store.layers().unwrap().len(), caches), (2, 1), "{what}: layers and caches");
    }
}

fn promised(steps: &[Seen]) -> Vec<&'static str> {
    let promise = |seen: &Seen| if let Seen::Mark(promise) = seen { Some(*promise) } else { None };
    steps.iter().filter_map(promise).collect()
}

/// A step without what a file held.
fn name(seen: &Seen) -> String {
    if let Seen::SyncFile(path, content) = seen {
        return format!("SyncFile({}, {} bytes)", path.display(), content.len());
    }
    format!("{seen:?}")
}
