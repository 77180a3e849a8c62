//! What is killed, and what must not be lost by it.

use std::collections::BTreeMap;

use larder_monitor::files::REMOVED_FILE;
use rstest::rstest;

use super::bench::{Bench, eventually, exited, is_alive, kill, running};
use crate::runtime::{Container, ContainerState, Runtime, Signal};

async fn only_container(runtime: &impl Runtime) -> Container {
    let mut containers = runtime.list().await.unwrap();
    assert_eq!(containers.len(), 1);
    containers.remove(0)
}

#[rstest]
#[tokio::test]
async fn a_running_container_is_adopted(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let spec = bench.shell("c1", "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.1; done");
    let annotations = BTreeMap::from([("restart".to_owned(), "1".to_owned())]);
    let container = runtime.start(spec, annotations.clone()).await.unwrap();
    let pid = running(&container).await;
    let before = container.state.borrow().clone();
    eventually("it says that it is ready", || bench.lines("c1") == ["ready"]).await;
    runtime.close().await;
    drop(runtime);

    let runtime = bench.open().await;
    let adopted = only_container(&runtime).await;
    assert_eq!((&adopted.id, &adopted.pod, &adopted.name), (&container.id, &container.pod, &container.name));
    assert_eq!(adopted.annotations, annotations);
    assert!(adopted.user.is_some());
    assert_eq!(adopted.user, container.user);
    assert_eq!(*adopted.state.borrow(), before, "the same process, running since the same time");
    assert!(is_alive(i32::try_from(pid).unwrap()));
    runtime.signal(&adopted.id, Signal::Stop).await.unwrap();
    assert_eq!(exited(&adopted).await.exit_code, 9);
    assert_eq!(bench.lines("c1"), ["ready", "bye"]);
    runtime.remove(&adopted.id).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn an_end_while_nobody_listens_is_not_lost(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let spec = bench.shell("c1", "while [ ! -e /dev/shm/go ]; do sleep 0.05; done; echo last; exit 11");
    running(&runtime.start(spec, BTreeMap::new()).await.unwrap()).await;
    runtime.close().await;
    drop(runtime);
    std::fs::write(bench.path("shm/go"), "").unwrap();
    eventually("the monitor is done", || bench.run_dir("c1").join(REMOVED_FILE).exists()).await;

    let runtime = bench.open().await;
    let container = only_container(&runtime).await;
    let ContainerState::Exited(exit) = container.state.borrow().clone() else { panic!("it has ended") };
    assert_eq!((exit.exit_code, exit.reason.as_str()), (11, "Error"));
    assert_eq!(bench.lines("c1"), ["last"]);
    runtime.remove(&container.id).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_killed_monitor_takes_its_container_with_it(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let container = runtime.start(bench.shell("c1", "sleep 1000"), BTreeMap::new()).await.unwrap();
    let pid = i32::try_from(running(&container).await).unwrap();
    kill(bench.monitor_state("c1").monitor_pid);
    let exit = exited(&container).await;
    assert_eq!((exit.exit_code, exit.reason.as_str()), (137, "ContainerStatusUnknown"));
    assert!(!is_alive(pid));
    runtime.remove(&container.id).await.unwrap();
    assert!(!bench.path("run/runtime/c1").exists(), "the runtime has forgotten it");
}

#[rstest]
#[tokio::test]
async fn a_monitor_killed_while_nobody_listens_is_found(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let container = runtime.start(bench.shell("c1", "sleep 1000"), BTreeMap::new()).await.unwrap();
    let pid = i32::try_from(running(&container).await).unwrap();
    runtime.close().await;
    drop(runtime);
    kill(bench.monitor_state("c1").monitor_pid);

    let runtime = bench.open().await;
    let container = only_container(&runtime).await;
    let exit = exited(&container).await;
    assert_eq!((exit.exit_code, exit.reason.as_str()), (137, "ContainerStatusUnknown"));
    assert!(!is_alive(pid));
    runtime.remove(&container.id).await.unwrap();
}

/// The agent was killed when it had bound the monitor's socket and not yet started the monitor.
#[rstest]
#[tokio::test]
async fn a_container_whose_monitor_never_ran_is_as_if_it_had_not_been(
    #[values("builtin", "crun", "runc")] runtime: &'static str,
) {
    let bench = Bench::new(runtime);
    bench.leave_without_monitor("c1");
    let runtime = bench.open().await;
    assert!(runtime.list().await.unwrap().is_empty(), "nothing of it ran, so there is no end to tell");
    assert!(!bench.run_dir("c1").exists() && !bench.path("root/containers/c1").exists());
    assert_eq!(bench.run(&runtime, bench.shell("c1", "exit 5")).await.exit_code, 5);
}

#[rstest]
#[tokio::test]
async fn what_was_left_half_made_is_removed(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    for path in ["run/containers/no-record/rootfs", "root/containers/after-reboot/upper"] {
        std::fs::create_dir_all(bench.path(path)).unwrap();
    }
    std::fs::create_dir_all(bench.path("run/containers/broken")).unwrap();
    std::fs::write(bench.path("run/containers/broken/container.json"), "{\"id\":").unwrap();
    let runtime = bench.open().await;
    assert!(runtime.list().await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(bench.path("run/containers")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(bench.path("root/containers")).unwrap().count(), 0);
}
