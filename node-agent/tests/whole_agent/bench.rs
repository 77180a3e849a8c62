//! An agent in a temporary folder, with a bridge, a pod CIDR and a cgroup of its own, and a client that keeps what it is
//! told. Everything is taken away when it is dropped.

use std::{
    collections::HashMap,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use larder_node_agent::host::cgroup::CgroupLayout;
use larder_proto::v1::{
    self, node_service_client::NodeServiceClient, pod_service_client::PodServiceClient,
    pull_service_client::PullServiceClient, watch_pods_response::Item,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tonic::transport::{Channel, Endpoint};

use super::registry::Registry;

/// How long anything here may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// How many benches there can be on a host at once: the second byte of a pod CIDR counts them.
const NUMBERS: u8 = 240;

pub(crate) struct Bench {
    dir: TempDir,
    number: Number,
    pub(crate) registry: Registry,
    agent: Option<Child>,
}

/// What a client has been told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) pods: HashMap<String, (u64, Value)>,
    pub(crate) gone: HashMap<String, Value>,
    pub(crate) events: Vec<(String, String, String)>,
    /// Generations that came out of order.
    pub(crate) disorder: usize,
    /// How many changes of each pod were told.
    pub(crate) changes: HashMap<String, usize>,
}

pub(crate) struct Client {
    pub(crate) pods: PodServiceClient<Channel>,
    pub(crate) node: NodeServiceClient<Channel>,
    pub(crate) pulls: PullServiceClient<Channel>,
    told: watch::Receiver<Told>,
    /// Held for its drop, which ends the watching.
    _watching: JoinSet<()>,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("larder-agent-test").tempdir().unwrap();
        let mut bench = Self { dir, number: Number::take(), registry: Registry::start().await, agent: None };
        bench.start_agent();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bridge(&self) -> String {
        format!("lat{}", self.number.value)
    }

    fn cgroup_parent(&self) -> String {
        format!("larder-agent-test-{}", self.number.value)
    }

    pub(crate) fn start_agent(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("agent.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_larder-node-agent"))
            .arg("--root")
            .arg(self.path("root"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--log-root")
            .arg(self.path("logs"))
            .arg("--listen")
            .arg(format!("unix://{}", self.path("agent.sock").display()))
            .arg("--registry-config")
            .arg(self.path("registries"))
            .arg("--monitor")
            .arg(monitor_program())
            .args(["--bridge", &self.bridge(), "--pod-cidr", &format!("10.{}.77.0/26", self.number.value)])
            .args(["--cgroup-parent", &self.cgroup_parent(), "--network-pool-size", "2"])
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        self.agent = Some(child);
    }

    /// kill -9, at whatever it is doing.
    pub(crate) fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("the agent runs");
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub(crate) async fn client(&self) -> Client {
        let endpoint = Endpoint::try_from(format!("unix://{}", self.path("agent.sock").display())).unwrap();
        let connect = async {
            loop {
                // There is no event to wait for: the socket appears when the agent is ready.
                match endpoint.connect().await {
                    Ok(channel) => return channel,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let channel =
            timeout(DEADLINE, connect).await.unwrap_or_else(|_| panic!("the agent is not there: {}", self.log()));
        let mut pods = PodServiceClient::new(channel.clone());
        let mut stream = pods.watch_pods(v1::WatchPodsRequest {}).await.unwrap().into_inner();
        let (sender, told) = watch::channel(Told::default());
        let first = stream.message().await.unwrap().unwrap();
        sender.send_modify(|told| told.take(first));
        let mut watching = JoinSet::new();
        watching.spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                sender.send_modify(|told| told.take(message));
            }
        });
        let (node, pulls) = (NodeServiceClient::new(channel.clone()), PullServiceClient::new(channel));
        Client { pods, node, pulls, told, _watching: watching }
    }

    /// A pod of one container that runs a script, with `patch` laid over its spec.
    pub(crate) fn pod(&self, uid: &str, script: &str) -> Value {
        json!({
            "metadata": {"uid": uid, "name": uid, "namespace": "test", "generation": 1},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 5,
                "dnsPolicy": "Default",
                "containers": [self.container("app", script)],
            },
        })
    }

    pub(crate) fn container(&self, name: &str, script: &str) -> Value {
        json!({
            "name": name, "image": self.registry.image(), "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/sh", "-c", script],
        })
    }

    pub(crate) fn request(&self, pod: &Value) -> v1::RunPodRequest {
        v1::RunPodRequest {
            pod_json: pod.to_string().into_bytes().into(),
            plain_http_registries: vec![self.registry.address.to_string()],
            ..v1::RunPodRequest::default()
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Processes that were started below this bench's folder: monitors and, by their cgroup, containers.
    pub(crate) fn container_processes(&self) -> usize {
        let cgroup = format!("/{}/", self.cgroup_parent());
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|entry| {
                std::fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|text| text.contains(&cgroup))
            })
            .count()
    }
}

impl Told {
    fn take(&mut self, message: v1::WatchPodsResponse) {
        match message.item.unwrap() {
            Item::List(list) => list.pods.into_iter().for_each(|pod| self.take_pod(pod)),
            Item::Changed(pod) => self.take_pod(pod),
            Item::Gone(gone) => {
                self.pods.remove(&gone.uid);
                self.gone.insert(gone.uid, serde_json::from_slice(&gone.status_json).unwrap());
            }
            Item::Event(event) => self.events.push((event.uid, event.reason, event.message)),
        }
    }

    fn take_pod(&mut self, pod: v1::PodState) {
        *self.changes.entry(pod.uid.clone()).or_default() += 1;
        let status = serde_json::from_slice(&pod.status_json).unwrap();
        let before = self.pods.insert(pod.uid, (pod.generation, status));
        self.disorder += usize::from(before.is_some_and(|(generation, _)| generation >= pod.generation));
    }

    pub(crate) fn status(&self, uid: &str) -> Value {
        self.pods.get(uid).map(|(_, status)| status.clone()).unwrap_or_default()
    }

    /// `reason: message` of a pod's events, in order.
    pub(crate) fn events_of(&self, uid: &str) -> Vec<String> {
        let own = self.events.iter().filter(|(other, _, _)| other == uid);
        own.map(|(_, reason, message)| format!("{reason}: {message}")).collect()
    }
}

impl Client {
    pub(crate) async fn run(&mut self, request: v1::RunPodRequest) {
        self.pods.run_pod(request).await.unwrap();
    }

    pub(crate) async fn stop(&mut self, uid: &str, grace: u64) -> bool {
        let grace_period = Some(prost_types::Duration { seconds: i64::try_from(grace).unwrap(), nanos: 0 });
        let request = v1::StopPodRequest { uid: uid.to_owned(), grace_period };
        self.pods.stop_pod(request).await.unwrap().into_inner().known
    }

    /// Waits until what was told is as wanted.
    pub(crate) async fn until(&mut self, bench: &Bench, what: &str, wanted: impl Fn(&Told) -> bool) -> Told {
        if let Ok(told) = timeout(DEADLINE, self.told.wait_for(wanted)).await {
            return told.expect("the agent ended the stream").clone();
        }
        panic!("not {what}: {:#?}\n{}", self.told.borrow(), bench.log())
    }

    pub(crate) async fn until_phase(&mut self, bench: &Bench, uid: &str, phase: &str) -> Told {
        self.until(bench, &format!("{uid} {phase}"), |told| told.status(uid)["phase"] == phase).await
    }

    pub(crate) async fn until_gone(&mut self, bench: &Bench, uid: &str) -> Told {
        self.until(bench, &format!("{uid} gone"), |told| told.gone.contains_key(uid)).await
    }

    pub(crate) async fn read_log(&mut self, uid: &str) -> String {
        let request = v1::ReadLogsRequest { uid: uid.to_owned(), container: "app".into(), ..Default::default() };
        let mut stream = self.pods.read_logs(request).await.unwrap().into_inner();
        let mut log = Vec::new();
        while let Some(piece) = stream.message().await.unwrap() {
            log.extend_from_slice(&piece.data);
        }
        String::from_utf8(log).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        kill_cgroup(&self.cgroup_parent());
        remove_cgroup(&self.cgroup_parent());
        let run = |program: &str, args: &[&str]| Command::new(program).args(args).output().map(drop);
        let _ = run("ip", &["link", "delete", &self.bridge()]);
        let _ = run("nft", &["delete", "table", "ip", &format!("larder-{}", self.bridge())]);
        unmount_below(self.dir.path());
    }
}

/// What sets a bench apart from every other on this host: its bridge, addresses and cgroup are named by it. Held by the
/// name of a socket, which the kernel gives to one owner at a time and takes back when the process is gone, however it ends.
struct Number {
    value: u8,
    _held: UnixListener,
}

impl Number {
    fn take() -> Self {
        let free = (0..NUMBERS).find_map(|value| {
            let name = SocketAddr::from_abstract_name(format!("larder-agent-test-{value}")).unwrap();
            UnixListener::bind_addr(&name).ok().map(|held| Self { value, _held: held })
        });
        free.expect("fewer benches than numbers")
    }
}

/// Ends what runs in a cgroup of ours, and removes the cgroup.
fn kill_cgroup(name: &str) {
    let suffix = format!("/{name}/");
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let in_it = std::fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|text| text.contains(&suffix));
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw).filter(|_| in_it) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Removes a cgroup in every hierarchy. A process that was killed leaves it a little later; whatever stays in it keeps it.
fn remove_cgroup(name: &str) {
    let layout = CgroupLayout::detect().unwrap();
    for _ in 0..100 {
        match layout.remove(name) {
            Err(err) if err.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Err(_) | Ok(()) => return,
        }
    }
}

fn unmount_below(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut below: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|path| Path::new(path).starts_with(folder))
        .collect();
    below.reverse();
    for path in below {
        let _ = Command::new("umount").args(["--lazy", path]).output();
    }
}

fn monitor_program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let built =
            Command::new(env!("CARGO")).args(["build", "--quiet", "--package", "larder-monitor"]).status().unwrap();
        assert!(built.success(), "build larder-monitor");
        Path::new(env!("CARGO_BIN_EXE_larder-node-agent")).with_file_name("larder-monitor")
    };
    PROGRAM.get_or_init(build).clone()
}
