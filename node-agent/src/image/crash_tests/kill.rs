//! The process is killed after every step, and a life after it finds the store whole.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus, Stdio},
};

use super::*;
use crate::store::steps::observers::CRASH_AFTER;

/// Folder, driver and registry of a life that is to be killed.
const FOLDER: &str = "LARDER_CRASH_FOLDER";
const DRIVER: &str = "LARDER_CRASH_DRIVER";
const REGISTRY: &str = "LARDER_CRASH_REGISTRY";

/// Where this process is to live, and its registry; none where nobody has told it.
pub(super) fn told() -> Option<(std::mem::ManuallyDrop<Place>, String)> {
    let (folder, driver) = (std::env::var_os(FOLDER)?, std::env::var(DRIVER).ok()?);
    let driver = if driver == Driver::Erofs.name() { Driver::Erofs } else { Driver::Directory };
    // Its mounts stay, as an agent's do.
    let place = std::mem::ManuallyDrop::new(Place::below(Path::new(&folder), driver));
    Some((place, std::env::var(REGISTRY).ok()?))
}

/// This test program again, for one of its tests.
pub(super) fn start(test: &str, folder: &Path, driver: Driver, registry: &str, variables: &[(&str, String)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(FOLDER, folder).env(DRIVER, driver.name()).env(REGISTRY, registry);
    command.envs(variables.iter().map(|(name, value)| (*name, value)));
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits for the end of a life; what it promised until then.
pub(super) fn outlive(mut child: Child) -> (ExitStatus, Vec<&'static str>) {
    let output = BufReader::new(child.stdout.take().unwrap());
    let promises = ["cached", "pulled", "collected", "pruned", "repaired"];
    let lines: Vec<String> = output.lines().map_while(Result::ok).collect();
    // The test program itself begins the first line.
    let promised = |one: &&str| lines.iter().any(|line| line.ends_with(&format!("promise {one}")));
    let promised = promises.into_iter().filter(promised).collect();
    (child.wait().unwrap(), promised)
}

/// The life that is killed. Where nobody asks for that it is a test of its own: a life that nothing happens to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn life() {
    if let Some((place, registry)) = told() {
        let life = Life::begin(&place).await;
        work(&life, &registry, |promise| say(&format!("promise {promise}"))).await;
        return life.end().await;
    }
    for driver in [Driver::Erofs, Driver::Directory] {
        let (registry, folder) = (images().await, tempfile::tempdir().unwrap());
        let place = Place::below(folder.path(), driver);
        let life = Life::begin(&place).await;
        work(&life, &registry.host(), |_| ()).await;
        life.end().await;
        find_again(&place, &["cached", "pulled", "collected", "pruned"]).await.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_after_any_step_leaves_a_store_that_goes_on() {
    killed_after_any_step(Driver::Erofs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_after_any_step_leaves_a_store_of_directories_that_goes_on() {
    killed_after_any_step(Driver::Directory).await;
}

async fn killed_after_any_step(driver: Driver) {
    let images = images().await;
    let registry = images.host();
    let mut met_a_partial_download = false;
    for step in 1.. {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::below(folder.path(), driver);
        let crash = [(CRASH_AFTER, step.to_string())];
        let child = start("image::crash_tests::kill::life", folder.path(), driver, &registry, &crash);
        let (status, promised) = tokio::task::spawn_blocking(|| outlive(child)).await.unwrap();
        say(&format!("killed after step {step}: {status}, promised {promised:?}"));
        met_a_partial_download |= partial_bytes(&place) >= 1 << 20;
        let life = find_again(&place, &promised).await;
        // All of it can be done again.
        work(&life, &registry, |_| ()).await;
        life.check(&["imc-1"]).await;
        assert_eq!(life.holds(), (2, 1), "layers and images");
        life.end().await;
        assert_eq!(leftovers(&place), [""; 0]);
        if status.success() {
            // It came to its end: there is no such step.
            assert!(step > 100, "{step} steps are not all of them");
            assert!(met_a_partial_download, "a kill in the middle of a download");
            return;
        }
        assert_eq!(status.signal(), Some(9), "step {step}");
    }
}

/// How much is kept of a download that can go on.
fn partial_bytes(place: &Place) -> u64 {
    let entries = std::fs::read_dir(place.store.join("ingest")).into_iter().flatten().flatten();
    let partials = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(PARTIAL));
    partials.map(|entry| entry.metadata().unwrap().len()).sum()
}
