//! Start, output, signals, end, removal.

use std::collections::BTreeMap;

use rstest::rstest;

use super::bench::{Bench, eventually, exited, is_alive, running};
use crate::runtime::{BindMount, ContainerId, ContainerSpec, Runtime, RuntimeError, Signal};

#[rstest]
#[case::done("exit 0", 0, "Completed")]
#[case::failed("exit 3", 3, "Error")]
#[tokio::test]
async fn an_exit_code_is_kept(
    #[values("builtin", "crun", "runc")] runtime: &'static str,
    #[case] script: &str,
    #[case] code: i32,
    #[case] reason: &str,
) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let exit = bench.run(&runtime, bench.shell("c1", script)).await;
    assert_eq!((exit.exit_code, exit.reason.as_str(), exit.signal), (code, reason, None));
    assert!(exit.started_at.unwrap() <= exit.finished_at);
}

#[rstest]
#[tokio::test]
async fn output_is_logged_in_the_cri_format(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let script = "echo out; echo err >&2; echo; printf 'no newline'";
    bench.run(&runtime, bench.shell("c1", script)).await;
    let mut log = bench.log("c1");
    log.sort();
    let expected = [("stderr", "err"), ("stdout", ""), ("stdout", "no newline"), ("stdout", "out")];
    assert_eq!(log, expected.map(|(stream, content)| (stream.to_owned(), content.to_owned())));
}

#[rstest]
#[tokio::test]
async fn a_log_is_turned_over_and_nothing_of_the_newest_is_lost(
    #[values("builtin", "crun", "runc")] runtime: &'static str,
) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    bench.run(&runtime, bench.shell("c1", "seq 1 20000")).await;
    let mut files: Vec<_> =
        std::fs::read_dir(bench.path("logs/c1")).unwrap().map(|entry| entry.unwrap().path()).collect();
    // The current one has the shortest name, and comes last in time.
    files.sort_by_key(|path| (path.ends_with("0.log"), path.clone()));
    assert_eq!(files.len(), 3, "{files:?}");
    let text: String = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let numbers: Vec<u32> = text.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(*numbers.last().unwrap(), 20_000);
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no gap and no repetition");
}

#[rstest]
#[case::asked(Signal::Stop, 7, None)]
#[case::killed(Signal::Kill, 137, Some(9))]
#[tokio::test]
async fn a_signal_ends_a_container(
    #[values("builtin", "crun", "runc")] runtime: &'static str,
    #[case] signal: Signal,
    #[case] code: i32,
    #[case] by: Option<i32>,
) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let spec = bench.shell("c1", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done");
    let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
    eventually("it says that it is ready", || bench.lines("c1") == ["ready"]).await;
    runtime.signal(&container.id, signal).await.unwrap();
    let exit = exited(&container).await;
    assert_eq!((exit.exit_code, exit.signal, exit.reason.as_str()), (code, by, "Error"));
    runtime.signal(&container.id, Signal::Kill).await.unwrap();
    runtime.remove(&container.id).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn the_images_stop_signal_is_used(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let mut spec = bench.shell("c1", "trap 'exit 4' QUIT; echo ready; while :; do sleep 0.1; done");
    let mut image = (*spec.image).clone();
    let mut config = image.config().clone().unwrap();
    config.set_stop_signal(Some("SIGQUIT".into()));
    image.set_config(Some(config));
    spec.image = image.into();
    let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
    eventually("it says that it is ready", || bench.lines("c1") == ["ready"]).await;
    runtime.signal(&container.id, Signal::Stop).await.unwrap();
    assert_eq!(exited(&container).await.exit_code, 4);
    runtime.remove(&container.id).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_program_that_is_not_there_is_a_start_error(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let spec = ContainerSpec { command: vec!["/bin/missing".into()], ..bench.shell("c1", "") };
    let exit = bench.run(&runtime, spec).await;
    assert_eq!((exit.exit_code, exit.reason.as_str(), exit.started_at), (128, "StartError", None));
    assert!(exit.message.contains("/bin/missing"), "{}", exit.message);
    assert!(exit.message.to_lowercase().contains("no such file"), "{}", exit.message);
    assert_eq!(bench.lines("c1"), Vec::<String>::new(), "the runtime's words are not the container's");
}

#[rstest]
#[tokio::test]
async fn what_cannot_be_described_is_refused_and_leaves_nothing(
    #[values("builtin", "crun", "runc")] runtime: &'static str,
) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let spec = ContainerSpec { command: Vec::new(), ..bench.shell("c1", "") };
    let error = runtime.start(spec, BTreeMap::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "CreateContainerError: no command specified");
    let mut spec = bench.shell("c1", "true");
    spec.security.run_as_non_root = true;
    let error = runtime.start(spec, BTreeMap::new()).await.unwrap_err();
    assert!(matches!(error, RuntimeError::InvalidSpec { reason: "CreateContainerConfigError", .. }));
    assert!(!bench.run_dir("c1").exists());
    assert_eq!(bench.run(&runtime, bench.shell("c1", "exit 5")).await.exit_code, 5, "the id can be used again");
}

#[rstest]
#[tokio::test]
async fn removal_leaves_nothing_but_the_log(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let container =
        runtime.start(bench.shell("c1", "touch /new; echo ready; sleep 1000"), BTreeMap::new()).await.unwrap();
    let pid = running(&container).await;
    eventually("it says that it is ready", || bench.lines("c1") == ["ready"]).await;
    assert!(bench.path("root/containers/c1/upper/new").exists());
    runtime.remove(&container.id).await.unwrap();
    runtime.remove(&container.id).await.unwrap();
    assert!(!is_alive(i32::try_from(pid).unwrap()));
    assert!(!bench.run_dir("c1").exists() && !bench.path("root/containers/c1").exists());
    assert!(!bench.path("image/new").exists());
    assert_eq!(bench.lines("c1"), ["ready"]);
    assert!(runtime.list().await.unwrap().is_empty());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(bench.run_dir("c1").to_str().unwrap()));
    let pod = crate::host::cgroup::pod_path(&bench.cgroup_parent(), "uid-1");
    for controller in ["memory", "cpu", "pids"] {
        assert!(!bench.cgroups.dir(controller, &pod).is_some_and(|dir| dir.exists()), "{controller}");
    }
    let error = runtime.signal(&container.id, Signal::Kill).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotFound(_)));
}

#[rstest]
#[tokio::test]
async fn what_a_container_has_written_is_measured(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let script = "dd if=/dev/zero of=/tmp/file bs=1024 count=2048 2>/dev/null; echo ready; sleep 1000";
    let container = runtime.start(bench.shell("c1", script), BTreeMap::new()).await.unwrap();
    eventually("it says that it is ready", || bench.lines("c1") == ["ready"]).await;
    let bytes = runtime.disk_use(&container.id).await.unwrap();
    assert!((2 << 20..3 << 20).contains(&bytes), "{bytes}");
    runtime.remove(&container.id).await.unwrap();
    assert!(matches!(runtime.disk_use(&container.id).await, Err(RuntimeError::NotFound(_))));
}

#[rstest]
#[tokio::test]
async fn a_terminal_is_one(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let spec = ContainerSpec { tty: true, ..bench.shell("c1", "tty; echo err >&2; echo $TERM") };
    assert_eq!(bench.run(&runtime, spec).await.exit_code, 0);
    assert_eq!(
        bench.log("c1"),
        ["/dev/pts/0\r", "err\r", "xterm\r"].map(|line| ("stdout".to_owned(), line.to_owned()))
    );
}

#[rstest]
#[tokio::test]
async fn standard_input_is_closed_unless_it_is_asked_for(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    assert_eq!(bench.run(&runtime, bench.shell("c1", "cat; exit 6")).await.exit_code, 6);
    let spec = ContainerSpec { stdin: true, ..bench.shell("c2", "echo ready; cat; exit 6") };
    let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
    eventually("it says that it is ready", || bench.lines("c2") == ["ready"]).await;
    runtime.signal(&container.id, Signal::Kill).await.unwrap();
    assert_eq!(exited(&container).await.exit_code, 137, "cat was still reading");
    runtime.remove(&container.id).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn the_surroundings_are_those_of_the_pod(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    std::fs::write(bench.path("data"), "from the host").unwrap();
    let mut spec = bench.shell(
        "c1",
        "hostname; echo $HOSTNAME; pwd; cat /data; echo; touch /data 2>/dev/null || echo read-only; echo $A; echo x > /dev/shm/f; \
         readlink /proc/self/ns/net",
    );
    spec.env = vec![("A".into(), "value".into())];
    spec.working_dir = Some("/tmp".into());
    spec.mounts = vec![BindMount { source: bench.path("data"), destination: "/data".into(), read_only: true }];
    assert_eq!(bench.run(&runtime, spec).await.exit_code, 0);
    let lines = bench.lines("c1");
    assert_eq!(lines[..6], ["test-host", "test-host", "/tmp", "from the host", "read-only", "value"]);
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(lines[6], host.to_str().unwrap());
    assert_eq!(std::fs::read_to_string(bench.path("shm/f")).unwrap(), "x\n");
}

#[rstest]
#[tokio::test]
async fn an_id_is_given_once(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let container = runtime.start(bench.shell("c1", "sleep 1000"), BTreeMap::new()).await.unwrap();
    assert!(matches!(
        runtime.start(bench.shell("c1", "true"), BTreeMap::new()).await.unwrap_err(),
        RuntimeError::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists
    ));
    running(&container).await;
    for id in ["..", "a/b", ""] {
        let spec = ContainerSpec { id: ContainerId(id.into()), ..bench.shell("c1", "true") };
        assert!(matches!(runtime.start(spec, BTreeMap::new()).await.unwrap_err(), RuntimeError::InvalidSpec { .. }));
    }
    runtime.remove(&container.id).await.unwrap();
}
