//! What a container sees of the host, and where its mounts go.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use rstest::rstest;

use super::bench::{Bench, eventually, exited, is_alive, kill, running};
use crate::runtime::{BindMount, ContainerSpec, Runtime, SecuritySpec};

#[rstest]
#[tokio::test]
async fn parts_of_proc_and_sys_are_hidden(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let script = "cat /proc/interrupts; for d in /sys/firmware/*; do echo $d; done; \
         echo 1 2>&1 >/proc/sys/kernel/ns_last_pid; touch /sys/x 2>&1; echo end";
    bench.run(&runtime, bench.shell("c1", script)).await;
    let lines = bench.lines("c1");
    assert_eq!(lines[0], "/sys/firmware/*", "nothing of interrupts, and nothing in the folder: {lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains("Read-only file system")).count(), 2, "{lines:?}");
    assert_eq!(lines.last().unwrap(), "end");
}

#[rstest]
#[tokio::test]
async fn a_privileged_container_sees_them(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let mut spec =
        bench.shell("c1", "grep -c CPU /proc/interrupts; mknod /tmp/kmsg c 1 11; : < /tmp/kmsg && echo opened");
    spec.security = SecuritySpec { privileged: true, allow_privilege_escalation: true, ..SecuritySpec::default() };
    bench.run(&runtime, spec).await;
    assert_eq!(bench.lines("c1"), ["1", "opened"]);
}

#[rstest]
#[tokio::test]
async fn only_its_own_devices_can_be_used(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let script = "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo no $d; done; \
         dd if=/dev/urandom of=/dev/null bs=1 count=1 2>/dev/null && echo read; mknod /tmp/kmsg c 1 11 && echo made; \
         (: < /tmp/kmsg) 2>&1";
    bench.run(&runtime, bench.shell("c1", script)).await;
    let lines = bench.lines("c1");
    assert_eq!(lines[..2], ["read", "made"]);
    assert!(lines[2].contains("Operation not permitted"), "{lines:?}");
}

/// As an image has them whose `/var/run` is a link, or whose `resolv.conf` is one to what a service would make.
#[rstest]
#[tokio::test]
async fn links_lead_to_places_in_the_container(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let image = bench.path("image");
    fs::create_dir(image.join("var")).unwrap();
    symlink("/run", image.join("var/run")).unwrap();
    symlink("../run/resolved/stub", image.join("etc/resolv.conf")).unwrap();
    let runtime = bench.open().await;
    fs::create_dir(bench.path("volume")).unwrap();
    for (name, content) in [("volume/file", "volume"), ("resolv", "nameserver")] {
        fs::write(bench.path(name), content).unwrap();
    }
    let mount = |source: &str, destination: &str| BindMount {
        source: bench.path(source),
        destination: destination.into(),
        read_only: false,
    };
    let mounts = vec![mount("resolv", "/etc/resolv.conf"), mount("volume", "/var/run/secrets/there")];
    let script = "cat /run/secrets/there/file; echo; cat /etc/resolv.conf; echo; cat /run/resolved/stub; echo";
    bench.run(&runtime, ContainerSpec { mounts, ..bench.shell("c1", script) }).await;
    assert_eq!(bench.lines("c1"), ["volume", "nameserver", "nameserver"]);
    assert!(!image.join("run/secrets").exists() && !std::path::Path::new("/run/resolved/stub").exists());
}

#[rstest]
#[tokio::test]
async fn no_link_has_something_mounted_into_proc(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    symlink("/proc/sys", bench.path("image/data")).unwrap();
    let runtime = bench.open().await;
    let mounts = vec![BindMount { source: bench.path("shm"), destination: "/data".into(), read_only: false }];
    let exit =
        bench.run(&runtime, ContainerSpec { mounts, ..bench.shell("c1", "touch /proc/sys/x && echo open") }).await;
    assert_eq!(bench.lines("c1"), Vec::<String>::new());
    assert!(!bench.path("shm/x").exists());
    assert_ne!(exit.exit_code, 0);
}

#[tokio::test]
async fn an_image_whose_proc_is_a_link_is_refused() {
    let bench = Bench::new("builtin");
    fs::remove_dir(bench.path("image/proc")).unwrap();
    symlink("/tmp", bench.path("image/proc")).unwrap();
    let runtime = bench.open().await;
    let exit = bench.run(&runtime, bench.shell("c1", "echo run")).await;
    assert_eq!((exit.exit_code, exit.reason.as_str()), (128, "StartError"));
    assert!(exit.message.ends_with("mount proc at /proc: the image has a link in its place"), "{}", exit.message);
}

/// What hides paths would be the pod's.
#[tokio::test]
async fn nothing_takes_the_place_of_dev() {
    let bench = Bench::new("builtin");
    let runtime = bench.open().await;
    symlink("/proc/sys/kernel/core_pattern", bench.path("shm/null")).unwrap();
    for (id, destination) in [("c1", "/dev"), ("c2", "/dev/")] {
        let mounts = vec![BindMount { source: bench.path("shm"), destination: destination.into(), read_only: false }];
        let exit = bench.run(&runtime, ContainerSpec { mounts, ..bench.shell(id, "echo run") }).await;
        assert_eq!((exit.exit_code, exit.reason.as_str()), (128, "StartError"));
        assert!(exit.message.ends_with("nothing can be mounted in the place of /dev"), "{}", exit.message);
    }
    // By a link it comes to lie over the devices, when they have done their work.
    symlink("/dev", bench.path("image/devices")).unwrap();
    let mounts = vec![BindMount { source: bench.path("shm"), destination: "/devices".into(), read_only: false }];
    bench.run(&runtime, ContainerSpec { mounts, ..bench.shell("c3", "cat /proc/interrupts; echo end") }).await;
    assert_eq!(bench.lines("c3"), ["end"]);
}

#[tokio::test]
async fn a_volume_that_is_not_there_is_named() {
    let bench = Bench::new("builtin");
    let runtime = bench.open().await;
    let mounts = vec![BindMount { source: bench.path("gone"), destination: "/data".into(), read_only: false }];
    let exit = bench.run(&runtime, ContainerSpec { mounts, ..bench.shell("c1", "echo run") }).await;
    assert_eq!((exit.exit_code, exit.reason.as_str()), (128, "StartError"));
    let source = bench.path("gone").display().to_string();
    assert!(exit.message.contains(&format!("open {source}: No such file")), "{}", exit.message);
}

/// Who has the host's open may change its mode.
#[rstest]
#[tokio::test]
async fn what_leads_nowhere_is_the_containers_own(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let container = runtime.start(bench.shell("c1", "sleep 1000"), BTreeMap::new()).await.unwrap();
    let input = format!("/proc/{}/fd/0", running(&container).await);
    let is_of_host = || fs::metadata(&input).unwrap().dev() == fs::metadata("/dev/null").unwrap().dev();
    eventually("standard input is the container's", || !is_of_host()).await;
    assert_eq!(fs::read_link(&input).unwrap(), std::path::Path::new("/dev/null"));
    runtime.remove(&container.id).await.unwrap();
}

/// The image's own directories are made up for, on its writable layer.
#[rstest]
#[tokio::test]
async fn a_working_directory_is_made_and_a_home_is_known(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let spec = ContainerSpec {
        command: vec!["sh".into(), "-c".into(), "pwd; echo $HOME; echo $0".into()],
        working_dir: Some("/not/there".into()),
        ..bench.shell("c1", "")
    };
    bench.run(&runtime, spec).await;
    assert_eq!(bench.lines("c1"), ["/not/there", "/root", "sh"]);
    let mut spec = ContainerSpec { command: vec!["missing".into()], ..bench.shell("c2", "") };
    spec.security.run_as_user = Some(101);
    let exit = bench.run(&runtime, spec).await;
    assert_eq!((exit.exit_code, exit.reason.as_str()), (128, "StartError"));
    assert!(exit.message.contains("missing") && exit.message.contains("$PATH"), "{}", exit.message);
}

#[rstest]
#[tokio::test]
async fn nothing_of_ours_is_handed_on(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let script = "grep -E '^(SigBlk|SigIgn):' /proc/self/status; for f in /proc/$$/fd/*; do echo $f; done; \
         echo written >/dev/stdout";
    let mut spec = bench.shell("c1", script);
    spec.security.run_as_user = Some(101);
    bench.run(&runtime, spec).await;
    let lines = bench.lines("c1");
    for signal in [libc::SIGPIPE, libc::SIGTERM, libc::SIGCHLD, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        let has =
            |line: &String| u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap() >> (signal - 1) & 1;
        assert!(lines[..2].iter().all(|line| has(line) == 0), "{signal}: {lines:?}");
    }
    let open: Vec<&str> = lines[2..].iter().filter_map(|line| line.rsplit_once("/fd/")).map(|(_, fd)| fd).collect();
    assert_eq!(open.iter().filter(|fd| matches!(**fd, "0" | "1" | "2")).count(), 3, "{lines:?}");
    // The shell's own, with which it reads the directory.
    assert!(open.len() <= 4, "{lines:?}");
    assert_eq!(lines.last().unwrap(), "written", "the streams are the user's");
}

/// What `/proc/self/exe` leads to in a container before its program is executed.
#[tokio::test]
async fn the_monitor_runs_from_a_copy_that_nobody_can_write_to() {
    let bench = Bench::new("builtin");
    let runtime = bench.open().await;
    let container = runtime.start(bench.shell("c1", "sleep 1000"), BTreeMap::new()).await.unwrap();
    running(&container).await;
    let exe = format!("/proc/{}/exe", bench.monitor_state("c1").monitor_pid);
    assert!(fs::read_link(&exe).unwrap().to_str().unwrap().starts_with("/memfd:"));
    assert_eq!(fs::File::options().write(true).open(&exe).unwrap_err().raw_os_error(), Some(libc::ETXTBSY));
    let copy = fs::File::open(&exe).unwrap();
    assert!(rustix::fs::fcntl_get_seals(&copy).unwrap().contains(rustix::fs::SealFlags::WRITE));
    runtime.remove(&container.id).await.unwrap();
}

#[tokio::test]
async fn too_little_memory_to_start_is_told() {
    let bench = Bench::new("builtin");
    let runtime = bench.open().await;
    let mut spec = bench.shell("c1", "echo run");
    spec.resources.memory_limit_bytes = Some(4096);
    let exit = bench.run(&runtime, spec).await;
    assert_ne!(exit.exit_code, 0);
    assert_eq!(bench.lines("c1"), Vec::<String>::new());
    assert!(exit.reason == "OOMKilled" || exit.message.contains("memory limit"), "{exit:?}");
}

/// The monitor is killed before it can say who its container's process is.
#[tokio::test]
async fn a_container_that_nobody_knows_the_process_of_is_ended_by_its_cgroups() {
    let bench = Bench::new("builtin");
    let runtime = bench.open().await;
    let container = runtime.start(bench.shell("c1", "sleep 1000"), BTreeMap::new()).await.unwrap();
    let pid = i32::try_from(running(&container).await).unwrap();
    runtime.close().await;
    drop(runtime);
    let monitor = bench.monitor_state("c1").monitor_pid;
    kill(monitor);
    eventually("the monitor is gone", || !is_alive(monitor)).await;
    fs::remove_file(bench.run_dir("c1").join(larder_monitor::files::STATE_FILE)).unwrap();
    assert!(is_alive(pid));

    let runtime = bench.open().await;
    let container = runtime.list().await.unwrap().remove(0);
    assert_eq!(exited(&container).await.reason, "ContainerStatusUnknown");
    assert!(!is_alive(pid));
    runtime.remove(&container.id).await.unwrap();
}
