//! Starts that are kept ready: containers get them, and none is left when it is not wanted any more.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use larder_monitor::files::FED_FILE;
use rstest::rstest;

use super::bench::{Bench, eventually, exited, is_alive, kill, running};
use crate::runtime::oci::OciRuntime;
use crate::runtime::record::RECORD_FILE;
use crate::runtime::{BindMount, ContainerSpec, Runtime, RuntimeError, Signal};

/// A spare of the host: its container's name, and the processes of its monitor and its runtime, which may be the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Spare {
    id: String,
    monitor: i32,
    runtime: i32,
}

/// The spares that wait: those whose runtime has come to the fifo, or whose monitor to its events.
fn waiting(bench: &Bench) -> Vec<Spare> {
    let mut found: Vec<Spare> = folders(bench)
        .into_iter()
        .filter_map(|id| {
            let folder = bench.run_dir(&id);
            let monitor = process_of(&["larder-monitor", "spare", folder.to_str()?])?;
            let place = |process| fs::read_to_string(format!("/proc/{process}/wchan")).unwrap_or_default();
            if bench.runtime_name() == "builtin" {
                return place(monitor).contains("poll").then_some(Spare { id, monitor, runtime: monitor });
            }
            let runtime = process_of(&["crun", "--bundle", folder.to_str()?])?;
            // The kernel's function in which whoever opens a fifo waits for the other end.
            (place(runtime) == "wait_for_partner").then_some(Spare { id, monitor, runtime })
        })
        .collect();
    found.sort();
    found
}

/// The directories of what has no record.
fn folders(bench: &Bench) -> Vec<String> {
    let all = fs::read_dir(bench.path("run/containers")).into_iter().flatten().flatten();
    let names = all.filter(|entry| !entry.path().join(RECORD_FILE).exists());
    names.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// The process whose command line has all of these words, the first at the end of its first.
fn process_of(words: &[&str]) -> Option<i32> {
    let (program, others) = words.split_first()?;
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let all: Vec<&str> = line.split('\0').collect();
        (all.first()?.ends_with(program) && others.iter().all(|word| all.contains(word))).then_some(pid)
    })
}

async fn until_ready(bench: &Bench, runtime: &OciRuntime, count: usize) -> Vec<Spare> {
    eventually("the spares are ready", || runtime.spare_count() == count && waiting(bench).len() == count).await;
    waiting(bench)
}

/// Nothing of these is left.
async fn until_gone(bench: &Bench, spares: &[Spare]) {
    let is_left =
        |spare: &Spare| is_alive(spare.monitor) || is_alive(spare.runtime) || bench.run_dir(&spare.id).exists();
    eventually("the spares are gone", || !spares.iter().any(is_left)).await;
}

#[rstest]
#[tokio::test]
async fn a_container_is_started_by_a_spare_and_is_like_any_other(#[values("builtin", "crun")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open_with_spares(2).await;
    let spares = until_ready(&bench, &runtime, 2).await;
    let script = "trap 'echo bye; exit 9' TERM; echo out; echo err >&2; while :; do sleep 0.1; done";
    let spec = bench.shell("c1", script);
    let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
    let spare = spares.iter().find(|spare| spare.id == container.id.0).expect("it has the name of a spare");
    running(&container).await;
    assert_eq!(bench.monitor_state(&spare.id).monitor_pid, spare.monitor, "the same monitor");
    eventually("its log", || bench.log("c1").len() == 2).await;
    assert_eq!(bench.lines("c1"), ["out"]);
    // Another takes its place.
    let again = until_ready(&bench, &runtime, 2).await;
    assert!(!again.contains(spare));

    // It lives on without us, and the spares do not.
    runtime.close().await;
    drop(runtime);
    assert!(waiting(&bench).is_empty() && folders(&bench).is_empty(), "closed, and nothing is left");
    until_gone(&bench, &again).await;
    let runtime = bench.open_with_spares(0).await;
    let adopted = runtime.list().await.unwrap().remove(0);
    assert_eq!(adopted.id, container.id);
    runtime.signal(&adopted.id, Signal::Stop).await.unwrap();
    assert_eq!(exited(&adopted).await.exit_code, 9);
    assert_eq!(bench.lines("c1"), ["out", "bye"]);
    runtime.remove(&adopted.id).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_spare_that_was_killed_is_not_missed(#[values("builtin", "crun")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open_with_spares(2).await;
    let spares = until_ready(&bench, &runtime, 2).await;
    // With its monitor goes the runtime; without its runtime goes the monitor.
    kill(spares[0].monitor);
    kill(spares[1].runtime);
    eventually("all of them end", || !spares.iter().any(|spare| is_alive(spare.monitor) || is_alive(spare.runtime)))
        .await;
    let container = runtime.start(bench.shell("c1", "exit 5"), BTreeMap::new()).await.unwrap();
    assert_eq!(container.id.0, "c1", "there is no spare");
    assert_eq!(exited(&container).await.exit_code, 5);
    runtime.remove(&container.id).await.unwrap();
    until_gone(&bench, &spares).await;
    until_ready(&bench, &runtime, 2).await;
    runtime.close().await;
}

/// As when the agent is killed: nobody says good-bye.
#[rstest]
#[tokio::test]
async fn a_spare_ends_with_its_connection(#[values("builtin", "crun")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open_with_spares(2).await;
    let spares = until_ready(&bench, &runtime, 2).await;
    runtime.lose_spares();
    eventually("all of them end", || !spares.iter().any(|spare| is_alive(spare.monitor) || is_alive(spare.runtime)))
        .await;
    runtime.close().await;
    drop(runtime);
    assert_eq!(folders(&bench).len(), 2);
    let runtime = bench.open().await;
    assert!(folders(&bench).is_empty(), "swept at the next start");
    assert!(runtime.list().await.unwrap().is_empty());
}

#[rstest]
#[tokio::test]
async fn what_cannot_be_put_together_leaves_nothing_of_its_spare(#[values("builtin", "crun")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open_with_spares(1).await;
    let spares = until_ready(&bench, &runtime, 1).await;
    let mut spec = bench.shell("c1", "exit 0");
    spec.security.run_as_non_root = true;
    let refused = runtime.start(spec, BTreeMap::new()).await;
    assert!(matches!(refused, Err(RuntimeError::InvalidSpec { .. })), "{refused:?}");
    until_gone(&bench, &spares).await;
    // What the runtime itself refuses is told as ever.
    let spares = until_ready(&bench, &runtime, 1).await;
    let spec = ContainerSpec { command: vec!["/bin/nope".into()], ..bench.shell("c2", "") };
    let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
    assert_eq!(container.id.0, spares[0].id);
    let exit = exited(&container).await;
    assert_eq!((exit.exit_code, exit.reason.as_str()), (128, "StartError"));
    assert!(exit.message.contains("nope"), "{}", exit.message);
    runtime.remove(&container.id).await.unwrap();
    until_gone(&bench, &spares).await;
    runtime.close().await;
}

/// What goes wrong while the runtime is given its specification starts nothing, and the container starts without.
#[tokio::test]
async fn a_spare_that_is_lost_in_the_middle_is_done_without() {
    let bench = Bench::new("crun");
    let runtime = bench.open_with_spares(1).await;
    let spares = until_ready(&bench, &runtime, 1).await;
    // It cannot be put down that it was given all.
    fs::create_dir(bench.run_dir(&spares[0].id).join(FED_FILE)).unwrap();
    let script = "echo x >> /mnt/starts; exit 6";
    let mount = BindMount { source: bench.path("root"), destination: "/mnt".into(), read_only: false };
    let spec = ContainerSpec { mounts: vec![mount], ..bench.shell("c1", script) };
    let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
    assert_eq!(container.id.0, "c1");
    assert_eq!(exited(&container).await.exit_code, 6);
    runtime.remove(&container.id).await.unwrap();
    until_gone(&bench, &spares).await;
    assert_eq!(fs::read_to_string(bench.path("root/starts")).unwrap(), "x\n", "it ran once");
    runtime.close().await;
}

/// The agent is killed when all of a container is there but what the runtime has been given.
#[tokio::test]
async fn a_container_whose_spare_was_not_fed_is_as_if_it_had_not_been() {
    let bench = Bench::new("crun");
    let runtime = bench.open_with_spares(1).await;
    let spares = until_ready(&bench, &runtime, 1).await;
    runtime.break_off(&bench.shell("c1", "exit 5"));
    assert!(bench.run_dir(&spares[0].id).join(RECORD_FILE).exists());
    eventually("the monitor ends", || !is_alive(spares[0].monitor) && !is_alive(spares[0].runtime)).await;
    runtime.close().await;
    drop(runtime);
    let runtime = bench.open().await;
    assert!(runtime.list().await.unwrap().is_empty(), "nothing of it ran, so there is no end to tell");
    assert!(!bench.run_dir(&spares[0].id).exists());
    assert_eq!(bench.run(&runtime, bench.shell("c1", "exit 5")).await.exit_code, 5);
}

/// A spare has no terminal and no open standard input, and, on a host with two kinds of cgroups, mounts of its own.
#[tokio::test]
async fn who_needs_what_a_spare_has_not_starts_without() {
    let bench = Bench::new("crun");
    let runtime = bench.open_with_spares(1).await;
    let spares = until_ready(&bench, &runtime, 1).await;
    let shell = |id: &str| bench.shell(id, "exit 3");
    let elsewhere = tempfile::tempdir().unwrap();
    let mount = |source: &Path| BindMount { source: source.to_owned(), destination: "/mnt".into(), read_only: false };
    let mut all = vec![ContainerSpec { tty: true, ..shell("tty") }, ContainerSpec { stdin: true, ..shell("stdin") }];
    if !bench.cgroups.hidden_mounts().is_empty() {
        all.push(ContainerSpec { mounts: vec![mount(elsewhere.path())], ..shell("mount") });
    }
    for spec in all {
        let id = spec.id.clone();
        let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
        assert_eq!(container.id, id);
        assert_eq!(exited(&container).await.exit_code, 3, "{id:?}");
        runtime.remove(&id).await.unwrap();
    }
    assert_eq!(waiting(&bench), spares);
    let inside = bench.path("root/volume");
    fs::create_dir(&inside).unwrap();
    let script = "[ -d /mnt ] && touch /mnt/file && exit 4";
    let spec = ContainerSpec { mounts: vec![mount(&inside)], ..bench.shell("ours", script) };
    let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
    assert_eq!(container.id.0, spares[0].id);
    assert_eq!(exited(&container).await.exit_code, 4);
    assert!(inside.join("file").exists());
    runtime.remove(&container.id).await.unwrap();
    runtime.close().await;
}

/// Without a runtime nothing is decided before there is a container.
#[tokio::test]
async fn a_spare_without_a_runtime_will_do_for_every_container() {
    let bench = Bench::new("builtin");
    let runtime = bench.open_with_spares(1).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let mount = BindMount { source: elsewhere.path().to_owned(), destination: "/mnt".into(), read_only: false };
    let shell = |id: &str| bench.shell(id, "[ -t 0 ] && echo terminal; [ -d /mnt ] && echo mounted; exit 3");
    let all = [
        (ContainerSpec { tty: true, ..shell("tty") }, vec!["terminal\r"]),
        (ContainerSpec { stdin: true, ..shell("stdin") }, vec![]),
        (ContainerSpec { mounts: vec![mount], ..shell("mount") }, vec!["mounted"]),
    ];
    for (mut spec, lines) in all {
        let spares = until_ready(&bench, &runtime, 1).await;
        spec.log_path = bench.path("logs").join(&spares[0].id).join("0.log");
        let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
        assert_eq!(container.id.0, spares[0].id);
        assert_eq!(exited(&container).await.exit_code, 3);
        assert_eq!(bench.lines(&container.id.0), lines);
        runtime.remove(&container.id).await.unwrap();
    }
    runtime.close().await;
}
