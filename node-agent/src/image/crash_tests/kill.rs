//! The process is killed after every step, and a life after it finds the store whole.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus, Stdio},
};

use super::*;
use crate::store::steps::observers::CRASH_AFTER;

/// Folder and registry of a life that is to be killed.
pub(super) const FOLDER: &str = "LARDER_CRASH_FOLDER";
pub(super) const REGISTRY: &str = "LARDER_CRASH_REGISTRY";

/// This test program again, for one of its tests.
pub(super) fn start(test: &str, folder: &Path, registry: &str, variables: &[(&str, String)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(FOLDER, folder).env(REGISTRY, registry).envs(variables.iter().map(|(name, value)| (*name, value)));
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits for the end of a life; what it promised until then.
fn outlive(mut child: Child) -> (ExitStatus, Vec<&'static str>) {
    let output = BufReader::new(child.stdout.take().unwrap());
    let promises = ["cached", "pulled", "pruned"];
    let lines: Vec<String> = output.lines().map_while(Result::ok).collect();
    // The test program itself begins the first line.
    let promised = |one: &&str| lines.iter().any(|line| line.ends_with(&format!("promise {one}")));
    let promised = promises.into_iter().filter(promised).collect();
    (child.wait().unwrap(), promised)
}

/// The life that is killed. Where nobody asks for that it is a test of its own: a life that nothing happens to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn life() {
    match (std::env::var_os(FOLDER), std::env::var(REGISTRY)) {
        (Some(folder), Ok(registry)) => {
            let place = std::mem::ManuallyDrop::new(Place::below(Path::new(&folder)));
            let life = Life::begin(&place).await;
            work(&life, &registry, |promise| say(&format!("promise {promise}"))).await;
            life.end().await;
        }
        _ => {
            let (registry, folder) = (two_images().await, tempfile::tempdir().unwrap());
            let place = Place::below(folder.path());
            let life = Life::begin(&place).await;
            work(&life, &registry.host(), |_| ()).await;
            life.end().await;
            find_again(&place, &["cached", "pulled", "pruned"]).await.end().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_after_any_step_leaves_a_store_that_goes_on() {
    let images = two_images().await;
    let registry = images.host();
    for step in 1.. {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::below(folder.path());
        let child =
            start("image::crash_tests::kill::life", folder.path(), &registry, &[(CRASH_AFTER, step.to_string())]);
        let (status, promised) = tokio::task::spawn_blocking(|| outlive(child)).await.unwrap();
        say(&format!("killed after step {step}: {status}, promised {promised:?}"));
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
            return;
        }
        assert_eq!(status.signal(), Some(9), "step {step}");
    }
}
