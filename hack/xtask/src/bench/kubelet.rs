//! The peer of a whole node: the kubelet of the control plane program with containerd, runc and the CNI plugins, as one more
//! Node of the cluster that is measured. So its pods go through the same API server, to the same watch.
//!
//! Both have their defaults, but for where things are, for what lets them run beside others (a cgroup, a bridge and a port of
//! their own), and for what would end pods on a full disk. Each life has a fresh file system ([`Disk`]).

mod configuration;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams};
use kube::runtime::wait::await_condition;

use super::ground::Ground;
use super::pods;
use super::pull::account::{Account, CGROUP};
use super::pull::disk::Disk;
use super::pull::remains;
use crate::conditions::node_is_ready;
use crate::control_plane::{Config, ControlPlane};
use crate::images::PAUSE;
use crate::kubeconfig::{self, Identity};
use crate::pki::{Authority, Leaf, PairFiles};
use crate::process::{self, Process, Spec};
use crate::up::layout::Layout;
use crate::{controlplane_program, mounts, peer, prerequisites};
use configuration::Places;

/// The Node's name.
const NODE: &str = "larder-bench-kubelet";
/// How long the node may take to be Ready.
const READY: Duration = Duration::from_secs(120);
/// Between two looks at something that tells nobody.
const LOOK: Duration = Duration::from_millis(50);

/// What the kubelet sets in the kernel when it starts, and what it leaves behind in a folder that no flag moves.
const KERNEL: [&str; 4] = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];
const FOLDER: &str = "/var/lib/kubelet";

/// The peer. It has one life at most.
#[derive(Debug)]
pub(super) struct Kubelet {
    layout: Layout,
    side: String,
    /// The kernel's settings before, and whether the folder was there.
    kernel: Vec<(PathBuf, String)>,
    folder_was_there: bool,
}

impl Kubelet {
    /// Builds what it consists of, and looks at what it will change.
    pub(super) async fn prepare(ground: &Ground) -> Result<Self> {
        let programs = ground.layout().programs();
        let built = move || {
            prerequisites::ensure_for_peers()?;
            controlplane_program::build(&programs)?;
            peer::build_containerd()
        };
        crate::console::blocking_step("build the kubelet and containerd (once)", built).await?;
        let version = ground.client.apiserver_version().await.context("ask for the version")?;
        let side = format!("kubelet {} + containerd {}", version.git_version, peer::containerd_version()?);
        let read = |name: &&str| {
            let path = Path::new("/proc/sys").join(name);
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            Ok((path, text))
        };
        let kernel = KERNEL.iter().map(read).collect::<Result<Vec<_>>>()?;
        let folder_was_there = Path::new(FOLDER).exists();
        Ok(Self { layout: ground.layout().clone(), side, kernel, folder_was_there })
    }

    /// As a row names it.
    pub(super) fn side(&self) -> &str {
        &self.side
    }

    /// The Node.
    pub(super) fn node(&self) -> &'static str {
        NODE
    }

    /// Starts it with an empty store, and waits until the node runs a pod.
    pub(super) async fn fresh(&self, ground: &Ground) -> Result<()> {
        self.end(ground).await?;
        let folder = remains::folder(&self.layout);
        let disk =
            tokio::task::spawn_blocking(move || Disk::fresh(&folder)).await.context("making a disk panicked")??;
        let places = Places::new(&remains::containerd_state(&self.layout), disk.root(), &self.layout.registries());
        self.write_files(ground, &places)?;
        let containerd = self.start_containerd(&places).await?;
        let kubelet = self.start_kubelet(&places)?;
        let nodes: Api<Node> = Api::all(ground.client.clone());
        let ready = await_condition(nodes, NODE, |node: Option<&Node>| node.is_some_and(node_is_ready));
        let ready = tokio::time::timeout(READY, ready).await;
        let logs = || format!("{}\n{}", kubelet.log_tail(20), containerd.log_tail(10));
        ready.with_context(|| format!("{NODE} is not Ready after {READY:?}\n{}", logs()))??;
        pods::first(ground, NODE).await.with_context(|| format!("run a first pod on {NODE}\n{}", logs()))
    }

    /// Ends it, its pods and all that they left.
    pub(super) async fn end(&self, ground: &Ground) -> Result<()> {
        let nodes: Api<Node> = Api::all(ground.client.clone());
        let layout = self.layout.clone();
        tokio::task::spawn_blocking(move || {
            remains::end_containerd(&layout)?;
            Disk::in_folder(&remains::folder(&layout)).remove()
        })
        .await
        .context("ending it panicked")??;
        match nodes.delete(NODE, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            answer => drop(answer.with_context(|| format!("delete node {NODE}"))?),
        }
        for (path, text) in &self.kernel {
            fs::write(path, text).with_context(|| format!("set {} back", path.display()))?;
        }
        if !self.folder_was_there {
            // Not there when it has never run.
            drop(fs::remove_dir_all(FOLDER));
        }
        Ok(())
    }

    fn write_files(&self, ground: &Ground, places: &Places) -> Result<()> {
        let state = &places.state;
        for folder in [&places.networks, &places.kubelet, &places.logs] {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let control_plane = ControlPlane::prepare(Config::new(self.layout.state(), &self.layout.programs()))?;
        let authority = control_plane.authority();
        let serving = serving(authority, state, ground)?;
        let client = authority.sign(&Leaf::client(&format!("system:node:{NODE}"), Some("system:nodes")))?;
        let url = control_plane.url();
        kubeconfig::write(&places.kubeconfig(), &url, authority.certificate(), &Identity::Certificate(client))?;
        let runc = prerequisites::find("runc").context("find runc")?;
        fs::write(places.containerd_config(), configuration::containerd(places, &runc, &ground.image(PAUSE)))?;
        fs::write(places.network(), configuration::network(places).to_string())?;
        let kubelet = configuration::kubelet(places, &serving, &authority.files().certificate);
        fs::write(places.kubelet_config(), kubelet.to_string()).context("write the kubelet's configuration")
    }

    async fn start_containerd(&self, places: &Places) -> Result<Process> {
        // Its shims are in the cgroup with it, where they are found and ended.
        let account = Account::open()?;
        make_cgroup()?;
        let path = std::env::var("PATH").unwrap_or_default();
        let spec = Spec::new(remains::CONTAINERD, &self.layout.run(), peer::folder().join("containerd"))
            .flag("--config", places.containerd_config().display())
            .env("PATH", format!("{}:/usr/local/sbin:/usr/sbin:/sbin:{path}", peer::folder().display()));
        let process = process::start(&spec)?;
        account.admit(process.pid())?;
        let deadline = tokio::time::Instant::now() + READY;
        while tokio::net::UnixStream::connect(places.socket()).await.is_err() {
            let in_time = process.is_running() && tokio::time::Instant::now() < deadline;
            ensure!(in_time, "containerd does not listen\n{}", process.log_tail(20));
            tokio::time::sleep(LOOK).await;
        }
        Ok(process)
    }

    fn start_kubelet(&self, places: &Places) -> Result<Process> {
        let path = std::env::var("PATH").unwrap_or_default();
        let spec = Spec::new(remains::KUBELET, &self.layout.run(), self.layout.programs().join("kubelet"))
            .flag("--config", places.kubelet_config().display())
            .flag("--kubeconfig", places.kubeconfig().display())
            .flag("--root-dir", places.kubelet.display())
            .flag("--hostname-override", NODE)
            .env("PATH", format!("/usr/local/sbin:/usr/sbin:/sbin:{path}"));
        let process = process::start(&spec)?;
        Account::open()?.admit(process.pid())?;
        Ok(process)
    }
}

/// The kubelet asks for a certificate to serve with; else it makes one with a key that takes it a second.
fn serving(authority: &Authority, folder: &Path, ground: &Ground) -> Result<PairFiles> {
    let names = [ground.node_ip().to_string(), NODE.to_owned()];
    Ok(authority.sign_once(folder, "serving", &Leaf::server(&format!("system:node:{NODE}"), &names))?)
}

/// The kubelet wants its cgroup to be there in every hierarchy.
fn make_cgroup() -> Result<()> {
    for mount in mounts::read()?.iter().filter(|mount| mount.kind == "cgroup") {
        let dir = mount.point.join(CGROUP);
        fs::create_dir_all(&dir).with_context(|| format!("create cgroup {}", dir.display()))?;
        // A new group of this hierarchy has no processors and no memory until it is given some.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(text) = fs::read_to_string(mount.point.join(file)) {
                fs::write(dir.join(file), text).with_context(|| format!("write {file} of {CGROUP}"))?;
            }
        }
    }
    Ok(())
}
