//! `cargo xtask down`: ends exactly what `cargo xtask up` started and removes what it left on the machine.
//!
//! Processes are ended by the pids that were written down, containers through the cgroups and folders of our agents.
//! What a restart of the agent would keep (containers, their monitors) ends here too, because nothing comes back to it.

mod host;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::pinned_kind;
use kube::runtime::wait::await_condition;
use kube::{Client, ResourceExt as _};
use rustix::process::geteuid;
use serde_json::json;

use crate::console::{blocking_step, note, say, step};
use crate::control_plane::{self, kube_proxy};
use crate::larder::{Agent, Provider};
use crate::up::layout::{IP_FORWARD, Layout, Settings};
use crate::up::{guard, sample};
use crate::{bench, kept_store, manifests, process, registry, workspace};

/// How long an agent or the provider gets to end by itself.
const GRACE: Duration = Duration::from_secs(20);

/// How long somebody else's cluster gets to remove what was ours.
const DEADLINE: Duration = Duration::from_secs(60);

/// What in the state folder belongs to one life of the cluster.
const STATE: [&str; 9] = [
    "etcd",
    "flex-volume",
    "pki",
    "run",
    "registries",
    "kubeconfig",
    "provider.kubeconfig",
    "kube-proxy.json",
    "up.json",
];
/// What outlives the cluster, unless it is to go too.
const STORES: [&str; 3] = ["agents", "registry", "images"];

/// The provider's entries at the API server, which it sets the fields of in its own name.
const WEBHOOKS: &str = "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\n\
                        metadata:\n  name: vk-webhook\n---\n\
                        apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\n\
                        metadata:\n  name: vk-webhook-imagecaches\n";

/// What the provider keeps a deleted image cache by, until the hosts have forgotten it. No provider, nobody to take it away.
const FINALIZER: &str = "eci.alibabacloud.com/imagecache";

/// What is to go.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove stores too: images on the nodes, the registry's blobs, the sample images. Built programs stay
    #[arg(long)]
    purge: bool,
}

/// Ends an agent that runs, with its containers, and removes everything that it left on this machine, but not its store.
///
/// # Errors
/// When a process does not end or a mount cannot be removed.
pub(crate) fn end_agent(agent: &Agent) -> anyhow::Result<()> {
    if let Some(process) = process::find(&agent.dir, &agent.name()) {
        process.stop(GRACE)?;
    }
    clear_agent(agent)
}

/// Removes everything that an agent which has ended left on this machine, but not its store.
///
/// # Errors
/// When a process does not end or a mount cannot be removed.
pub fn clear_agent(agent: &Agent) -> anyhow::Result<()> {
    host::clear(agent).with_context(|| format!("clear what {} left", agent.node))
}

/// Kills what runs in a cgroup or below it, and removes it, in every hierarchy.
///
/// # Errors
/// When a process does not end.
pub(crate) fn clear_cgroup(name: &str) -> anyhow::Result<()> {
    host::clear_cgroup(name)
}

/// Where the hierarchies of cgroups are mounted.
///
/// # Errors
/// When the mounts of this machine cannot be read.
pub fn cgroup_hierarchies() -> anyhow::Result<Vec<std::path::PathBuf>> {
    host::cgroup_hierarchies()
}

/// Removes the cgroups whose names begin so, in these hierarchies, where no process is left in them.
pub fn remove_empty_cgroups(hierarchies: &[std::path::PathBuf], prefix: &str) {
    host::remove_empty_cgroups(hierarchies, prefix);
}

/// Takes away what is mounted on these folders and below them.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn unmount_below(dirs: &[&PathBuf]) -> anyhow::Result<()> {
    host::unmount_below(dirs, None)
}

/// Pids of the monitors of an agent's containers, by its run folder.
#[must_use]
pub fn monitors(run_dir: &Path) -> std::collections::BTreeSet<i32> {
    host::monitors(run_dir)
}

/// Brings the cluster down.
///
/// # Errors
/// When something does not end or cannot be removed.
pub async fn run(args: Args) -> anyhow::Result<()> {
    ensure!(geteuid().is_root(), "what hack/up started runs as root: run this as root");
    let layout = Layout::new(&workspace::state());
    // A bench that was killed may have left engines of its own, with or without a cluster.
    let benches = layout.clone();
    blocking_step("end what benches have left", move || bench::clear(&benches)).await?;
    let settings = Settings::read(&layout)?;
    if let Some(settings) = &settings {
        // A cluster that is gone for good must not keep this machine from being cleared.
        if let Some(file) = &settings.external
            && let Err(err) = step("remove our objects from the cluster", leave(&layout, settings)).await
        {
            note(&format!(
                "!! {}\n!! so the cluster of {} may still have our nodes, the namespace larder-system, the webhooks \
                 vk-webhook and vk-webhook-imagecaches and the ClusterRole larder-provider; where it is still there, remove them with kubectl",
                manifests::cause(&err),
                file.display()
            ));
        }
        let (layout, settings) = (layout.clone(), settings.clone());
        blocking_step("end processes and containers", move || end(&layout, &settings)).await?;
    } else {
        let running = process::all(&layout.run());
        ensure!(
            running.is_empty(),
            "{} is gone, but processes of a cluster run: {running:?}",
            Settings::file(&layout).display()
        );
        say("no cluster is up");
    }
    remove(layout.state(), &STATE)?;
    if args.purge {
        remove(layout.state(), &STORES)?;
    }
    Ok(())
}

/// Ends everything on this machine.
fn end(layout: &Layout, settings: &Settings) -> anyhow::Result<()> {
    let agents: Vec<Agent> = settings.agents(layout).collect();
    for name in std::iter::once(Provider::NAME.to_owned()).chain(agents.iter().map(Agent::name)) {
        if let Some(process) = process::find(&layout.run(), &name) {
            process.stop(GRACE)?;
        }
    }
    for agent in &agents {
        clear_agent(agent)?;
        kept_store::put_back(&agent.root)?;
    }
    kube_proxy::stop(layout.state())?;
    control_plane::stop_all(layout.state())?;
    registry::stop(&layout.run())?;
    // Whatever an earlier version of this program started under another name.
    process::all(&layout.run()).iter().try_for_each(|process| process.stop(GRACE))?;
    guard::lower();
    if let Err(err) = fs::write(IP_FORWARD, &settings.ip_forward) {
        note(&format!("set {IP_FORWARD} back to {}: {err}", settings.ip_forward));
    }
    Ok(())
}

/// Removes from somebody else's cluster what was applied to it. Image caches and their definition are data and stay, as do
/// a Deployment and a namespace that only have the names of the sample's.
async fn leave(layout: &Layout, settings: &Settings) -> anyhow::Result<()> {
    let client = manifests::client(&layout.kubeconfig()).await?;
    client.apiserver_version().await.context("the API server does not answer")?;
    let nodes: Vec<String> = settings.agents(layout).map(|agent| agent.node).collect();
    let namespaces = sample::Namespaces::of(settings);
    manifests::delete_own(&client, &namespaces.manifests(), "default", manifests::MANAGER).await?;
    // Before the provider ends: nobody else says that a pod's processes are gone.
    namespaces_are_gone(&client, &[namespaces.automatic, namespaces.pinned]).await;
    if let Some(process) = process::find(&layout.run(), Provider::NAME) {
        process.stop(GRACE)?;
    }
    // Only now: while the provider runs, it puts its webhooks back. Nothing answers them any more.
    manifests::delete_own(&client, WEBHOOKS, "default", Provider::NAME).await?;
    release_image_caches(&client).await?;
    for node in nodes {
        let node = format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {node}\n");
        manifests::delete(&client, &node, "default").await?;
    }
    for name in ["provider-token.yaml", "rbac.yaml", "namespace.yaml"] {
        manifests::delete(&client, &read(name)?, "larder-system").await?;
    }
    // What comes back at once must not find it on its way out.
    namespaces_are_gone(&client, &["larder-system"]).await;
    Ok(())
}

/// Takes the provider's finalizer off every image cache, so that whoever deletes one later is not left waiting.
async fn release_image_caches(client: &Client) -> anyhow::Result<()> {
    let kind = GroupVersionKind::gvk("eci.alibabacloud.com", "v1", "ImageCache");
    let Ok((resource, _)) = pinned_kind(client, &kind).await else { return Ok(()) };
    let caches: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    for cache in caches.list(&ListParams::default()).await.context("list the image caches")? {
        let all = cache.metadata.finalizers.clone().unwrap_or_default();
        let others: Vec<&String> = all.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        if others.len() < all.len() {
            let patch = Patch::Merge(json!({"metadata": {"finalizers": others}}));
            let name = cache.name_any();
            match caches.patch(&name, &PatchParams::default(), &patch).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                answer => drop(answer.with_context(|| format!("release image cache {name}"))?),
            }
        }
    }
    Ok(())
}

/// Waits until these namespaces are gone, and says so when they stay.
async fn namespaces_are_gone(client: &Client, names: &[&str]) {
    let all = Api::<Namespace>::all(client.clone());
    let gone = names.iter().map(|name| await_condition(all.clone(), name, |found: Option<&Namespace>| found.is_none()));
    if tokio::time::timeout(DEADLINE, futures::future::join_all(gone)).await.is_err() {
        note(&format!("!! of the namespaces {} some are still being deleted", names.join(", ")));
    }
}

fn read(name: &str) -> anyhow::Result<String> {
    let path = workspace::root().join("hack/deploy").join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// Removes files and folders; what is not there needs no removal.
fn remove(state: &Path, names: &[&str]) -> anyhow::Result<()> {
    for name in names {
        let path = state.join(name);
        let result = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match result {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                return Err(err).with_context(|| format!("remove {}", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purge_leaves_the_programs_alone() {
        let state = tempfile::tempdir().expect("make a folder");
        for name in STATE.iter().chain(&STORES).chain(&["bin"]).filter(|name| !name.contains('.')) {
            fs::create_dir(state.path().join(name)).expect("make a folder");
        }
        fs::write(state.path().join("up.json"), "{}").expect("write a file");
        remove(state.path(), &STATE).expect("remove what belongs to one life");
        assert!(!state.path().join("up.json").exists() && state.path().join("agents").exists());
        remove(state.path(), &STORES).expect("remove the stores");
        let left: Vec<_> = fs::read_dir(state.path()).expect("look").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["bin"]);
    }
}
