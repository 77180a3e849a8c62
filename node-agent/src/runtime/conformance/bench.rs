//! A host in a temporary directory: a root file system, a pod's namespaces, and a runtime that can be dropped and opened again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};
use larder_monitor::files::{self, CONFIG_FILE, SOCKET_FILE, STATE_FILE};
use larder_monitor::{LogConfig, MonitorConfig, RuntimeCommand, Starter};
use tempfile::TempDir;

use crate::host::cgroup::CgroupLayout;
use crate::host::namespace::{self, Kind};
use crate::runtime::oci::{OciRuntime, OciRuntimeConfig};
use crate::runtime::record::{ContainerDirs, RECORD_FILE, Record};
use crate::runtime::rootfs;
use crate::runtime::{
    Container, ContainerExit, ContainerId, ContainerSpec, ContainerState, PodIdentity, ResourceSpec, Runtime,
    SecuritySpec,
};
use crate::sandbox::PodNamespaces;

/// How long anything here may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// The commands of busybox that tests use.
const COMMANDS: [&str; 18] = [
    "sh", "cat", "echo", "id", "grep", "sleep", "unshare", "mount", "readlink", "hostname", "tty", "touch", "seq",
    "chroot", "true", "pwd", "dd", "mknod",
];

/// The host.
pub(super) struct Bench {
    dir: TempDir,
    runtime_name: &'static str,
    pub(super) cgroups: CgroupLayout,
}

impl Bench {
    pub(super) fn new(runtime_name: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bench = Self { dir, runtime_name, cgroups: CgroupLayout::detect().unwrap() };
        for name in ["run", "root", "shm", "pod"] {
            fs::create_dir(bench.path(name)).unwrap();
        }
        namespace::mount_run_folder(&bench.path("run")).unwrap();
        make_image(&bench.path("image"));
        namespace::create_pinned(&bench.path("pod"), || namespace::set_names("test-host", "")).unwrap();
        bench
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn runtime_name(&self) -> &'static str {
        self.runtime_name
    }

    pub(super) async fn open(&self) -> OciRuntime {
        self.open_with_spares(0).await
    }

    /// With so many starts kept ready.
    pub(super) async fn open_with_spares(&self, spare_starts: usize) -> OciRuntime {
        let config = OciRuntimeConfig {
            run_dir: self.path("run"),
            root_dir: self.path("root"),
            runtime: self.runtime_name.into(),
            search_path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
            monitor: monitor_program(),
            cgroup_parent: self.cgroup_parent(),
            log_max_size: 64 * 1024,
            log_max_files: 3,
            start_limit: Duration::from_secs(20),
            spare_starts,
        };
        OciRuntime::open(config).await.unwrap()
    }

    /// A cgroup of its own, so that suites may run side by side.
    pub(super) fn cgroup_parent(&self) -> String {
        format!("larder-conformance{}", self.dir.path().to_string_lossy().replace(['/', '.'], "-"))
    }

    /// A container that runs `script` in a shell.
    pub(super) fn shell(&self, id: &str, script: &str) -> ContainerSpec {
        let image =
            ImageConfigurationBuilder::default().config(ConfigBuilder::default().build().unwrap()).build().unwrap();
        ContainerSpec {
            id: ContainerId(id.into()),
            pod: PodIdentity { uid: "uid-1".into(), namespace: "default".into(), name: "test".into() },
            name: "main".into(),
            attempt: 0,
            image: Arc::new(image),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            tty: false,
            stdin: false,
            security: SecuritySpec { allow_privilege_escalation: true, ..SecuritySpec::default() },
            resources: ResourceSpec::default(),
            mounts: Vec::new(),
            lower_dirs: vec![self.path("image")],
            namespaces: PodNamespaces {
                network: self.path("pod/net"),
                ipc: self.path("pod/ipc"),
                uts: self.path("pod/uts"),
            },
            shm: self.path("shm"),
            hostname: "test-host".into(),
            log_path: self.path("logs").join(id).join("0.log"),
        }
    }

    pub(super) fn run_dir(&self, id: &str) -> PathBuf {
        self.path("run/containers").join(id)
    }

    /// The content of every entry of a container's log, and which streams they came on.
    pub(super) fn log(&self, id: &str) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.path("logs").join(id).join("0.log")).unwrap_or_default();
        text.split_terminator('\n')
            .map(|line| {
                let mut fields = line.splitn(4, ' ');
                let stream = fields.nth(1).unwrap().to_owned();
                (stream, fields.nth(1).unwrap().to_owned())
            })
            .collect()
    }

    /// What a container wrote to its standard output. How the two streams lie to each other in time is not kept exactly.
    pub(super) fn lines(&self, id: &str) -> Vec<String> {
        self.log(id).into_iter().filter(|(stream, _)| stream == "stdout").map(|(_, content)| content).collect()
    }

    /// Leaves on the host what an agent leaves that is killed between binding a monitor's socket and starting the monitor.
    pub(super) fn leave_without_monitor(&self, id: &str) {
        let spec = self.shell(id, "exit 0");
        let dirs = ContainerDirs::new(&self.path("run/containers"), &self.path("root/containers"), id);
        fs::create_dir_all(&dirs.run).unwrap();
        rootfs::mount(&dirs, &spec.lower_dirs).unwrap();
        let record = Record {
            id: id.to_owned(),
            pod_uid: spec.pod.uid,
            pod_namespace: spec.pod.namespace,
            pod_name: spec.pod.name,
            name: spec.name,
            attempt: spec.attempt,
            annotations: BTreeMap::new(),
            user: None,
            stop_signal: 15,
            cgroup: crate::host::cgroup::container_path(&self.cgroup_parent(), "uid-1", id),
            log_path: spec.log_path,
        };
        files::write_json(&dirs.run, RECORD_FILE, &record).unwrap();
        files::write_json(&dirs.run, CONFIG_FILE, &self.monitor_config(&record, &dirs)).unwrap();
        // The listener ends here, as that of a killed process does; the socket's name stays.
        drop(UnixListener::bind(dirs.run.join(SOCKET_FILE)).unwrap());
    }

    fn monitor_config(&self, record: &Record, dirs: &ContainerDirs) -> MonitorConfig {
        MonitorConfig {
            id: record.id.clone(),
            bundle: dirs.run.clone(),
            starter: Starter::Runtime(RuntimeCommand {
                path: self.runtime_name.into(),
                root: self.path("run/runtime"),
                options: Vec::new(),
            }),
            log: LogConfig { path: record.log_path.clone(), max_size: 64 * 1024, max_files: 3 },
            terminal: false,
            stdin: false,
            hidden_mounts: Vec::new(),
            memory_cgroup: None,
            start_timeout_ms: 1000,
            spare: false,
        }
    }

    pub(super) fn monitor_state(&self, id: &str) -> larder_monitor::ContainerState {
        files::read_json(&self.run_dir(id), STATE_FILE).unwrap().unwrap()
    }

    /// What a file of a container's cgroup holds, in the hierarchy of `controller`.
    pub(super) fn cgroup_file(&self, id: &str, controller: &str, name: &str) -> String {
        let path = crate::host::cgroup::container_path(&self.cgroup_parent(), "uid-1", id);
        let dir = self.cgroups.dir(controller, &path).unwrap();
        fs::read_to_string(dir.join(name)).unwrap().trim().to_owned()
    }

    /// Runs a container to its end and removes it.
    pub(super) async fn run(&self, runtime: &OciRuntime, spec: ContainerSpec) -> ContainerExit {
        let id = spec.id.clone();
        let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
        let exit = exited(&container).await;
        runtime.remove(&id).await.unwrap();
        exit
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A test that failed half way leaves containers, which must not outlive it.
        for entry in fs::read_dir(self.path("run/containers")).into_iter().flatten().flatten() {
            let id = entry.file_name().into_string().unwrap();
            drop(Command::new(monitor_program()).arg("collect").arg(entry.path()).status());
            let dirs = ContainerDirs::new(&self.path("run/containers"), &self.path("root/containers"), &id);
            drop(rootfs::remove(&dirs));
        }
        self.cgroups.remove_if_empty(&crate::host::cgroup::pod_path(&self.cgroup_parent(), "uid-1"));
        for kind in Kind::ALL {
            namespace::unpin(&self.path("pod").join(kind.file_name())).unwrap();
        }
        self.cgroups.remove_if_empty(&self.cgroup_parent());
        namespace::unmount(&self.path("run")).unwrap();
    }
}

/// A root file system with nothing but busybox.
fn make_image(image: &Path) {
    for dir in ["bin", "etc", "proc", "run", "sys", "dev", "tmp"] {
        fs::create_dir_all(image.join(dir)).unwrap();
    }
    fs::copy("/usr/bin/busybox", image.join("bin/busybox")).expect("install busybox-static");
    for command in COMMANDS {
        symlink("busybox", image.join("bin").join(command)).unwrap();
    }
    fs::write(image.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/:/bin/sh\n").unwrap();
    fs::write(image.join("etc/group"), "root:x:0:\nweb:x:102:\naudio:x:29:web\n").unwrap();
}

/// The monitor's program, built once for all tests.
fn monitor_program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let mut cargo = Command::new(env!("CARGO"));
        let built = cargo.args(["build", "--quiet", "--package", "larder-monitor"]).status().unwrap();
        assert!(built.success(), "build larder-monitor");
        // This test's own program is <target>/<profile>/deps/<name>.
        let me = std::env::current_exe().unwrap();
        me.ancestors().nth(2).unwrap().join("larder-monitor")
    };
    PROGRAM.get_or_init(build).clone()
}

pub(super) async fn running(container: &Container) -> u32 {
    let mut state = container.state.clone();
    let started = state.wait_for(|state| !matches!(state, ContainerState::Starting));
    let state = tokio::time::timeout(DEADLINE, started).await.expect("it starts").unwrap().clone();
    match state {
        ContainerState::Running { pid, .. } => pid,
        other @ (ContainerState::Starting | ContainerState::Exited(_)) => {
            panic!("expected a running container: {other:?}")
        }
    }
}

pub(super) async fn exited(container: &Container) -> ContainerExit {
    let mut state = container.state.clone();
    let ended = state.wait_for(|state| matches!(state, ContainerState::Exited(_)));
    let state = tokio::time::timeout(DEADLINE, ended).await.expect("it ends").unwrap().clone();
    match state {
        ContainerState::Exited(exit) => exit,
        other @ (ContainerState::Starting | ContainerState::Running { .. }) => {
            panic!("expected an ended one: {other:?}")
        }
    }
}

/// Asks until the answer is yes.
pub(super) async fn eventually(what: &str, mut question: impl FnMut() -> bool) {
    let asking = async {
        while !question() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, asking).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Whether a process is there and not only waiting to be taken note of.
pub(super) fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

pub(super) fn kill(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}
