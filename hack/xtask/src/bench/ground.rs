//! The cluster that is measured: one virtual node with nothing else on it, an agent with an empty store, a registry with
//! the large image. Everything is left as it was found: a cluster that was up stays up with its own store, one that was
//! brought up for the bench goes down again.

use crate::bench::{large_image, pods, trace};
use crate::console::{blocking_step, step};
use crate::larder::{Agent, Provider};
use crate::process::{self, Process, Spec};
use crate::up::layout::{Layout, Settings};
use crate::{down, kept_store, manifests, workspace};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::Client;
use kube::api::{Api, ListParams};
use kube::runtime::wait::await_condition;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::process::Command;

/// The namespace of the bench's pods.
pub(super) const NAMESPACE: &str = "larder-bench";
/// How long the cluster gets to act on an object.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long the provider gets to end by itself.
const GRACE: Duration = Duration::from_secs(20);

/// The ground that a bench stands on.
pub(super) struct Ground {
    layout: Layout,
    settings: Settings,
    /// For the administrator.
    pub(super) client: Client,
    /// The agent that is measured. Its own store waits beside its place for the end.
    agent: Agent,
    /// How the provider was started, where a bench has started it otherwise since.
    provider: Option<Spec>,
    brought_up: bool,
}

impl Ground {
    /// Brings a cluster up if there is none, and takes its first node for the bench.
    pub(super) async fn take() -> Result<Self> {
        let layout = Layout::new(&workspace::state());
        let brought_up = Settings::read(&layout)?.is_none();
        if brought_up {
            this_program(&["up", "--empty"]).await?;
        }
        large_image::make(&layout).await?;
        large_image::push(&layout, layout.registry_address()).await?;
        let client = manifests::client(&layout.kubeconfig()).await?;
        let settings = Settings::read(&layout)?.context("the cluster has gone down")?;
        let agent = settings.agent(&layout, 0);
        if !brought_up {
            end_killed(&client, &agent).await?;
            ensure_unused(&client, &agent.node).await?;
        }
        let agent = trace::logging_steps(agent);
        let ground = Self { layout, settings, client, agent, provider: None, brought_up };
        ground.take_node().await?;
        Ok(ground)
    }

    async fn take_node(&self) -> Result<()> {
        let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n");
        // One that another bench has just deleted is there for some seconds yet, and takes nothing in.
        let is_free = |namespace: Option<&Namespace>| {
            namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_none())
        };
        let gone = await_condition(Api::<Namespace>::all(self.client.clone()), NAMESPACE, is_free);
        tokio::time::timeout(DEADLINE, gone).await.with_context(|| format!("namespace {NAMESPACE} does not go"))??;
        manifests::apply(&self.client, &namespace, NAMESPACE).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let made = await_condition(accounts, "default", |account: Option<&ServiceAccount>| account.is_some());
        tokio::time::timeout(DEADLINE, made).await.context("the default service account is not made")??;
        self.stop_agent().await?;
        kept_store::set_aside(&self.agent.root)
    }

    /// The node that is measured.
    pub(super) fn node(&self) -> &str {
        &self.agent.node
    }

    /// Starts the agent with an empty store, and waits until the node runs a pod.
    pub(super) async fn fresh_store(&self) -> Result<()> {
        self.stop_agent().await?;
        remove(&self.agent.root)?;
        self.agent.start()?;
        pods::first(self, self.node()).await.context("run a first pod on the fresh node")
    }

    async fn stop_agent(&self) -> Result<()> {
        let agent = self.agent.clone();
        tokio::task::spawn_blocking(move || down::end_agent(&agent)).await.context("stopping the agent panicked")?
    }

    /// Where everything lies.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The address of the nodes.
    pub(super) fn node_ip(&self) -> Ipv4Addr {
        self.settings.node_ip
    }

    /// Starts the provider with further flags, and waits until the node runs a pod. [`Self::leave`] takes them back.
    pub(super) async fn restart_provider(&mut self, flags: &[String]) -> Result<()> {
        let spec = match &self.provider {
            Some(spec) => spec.clone(),
            None => self.provider_process()?.spec()?,
        };
        self.provider = Some(spec.clone());
        let mut changed = spec;
        changed.args.extend_from_slice(flags);
        let start = move || process::ensure(&changed, GRACE).map(drop).context("start the provider");
        tokio::task::spawn_blocking(start).await.context("starting the provider panicked")??;
        pods::first(self, self.node()).await.context("run a first pod with the provider that was started anew")
    }

    /// The agent's process.
    pub(super) fn agent_process(&self) -> Result<Process> {
        process::find(&self.layout.run(), &self.agent.name()).context("the agent does not run")
    }

    /// The provider's process.
    pub(super) fn provider_process(&self) -> Result<Process> {
        process::find(&self.layout.run(), Provider::NAME).context("the provider does not run")
    }

    /// The monitors of the agent's containers.
    pub(super) fn monitors(&self) -> Vec<i32> {
        down::monitors(&self.agent.run_dir).into_iter().collect()
    }

    /// Where the agent's log ends now.
    pub(super) fn log_mark(&self) -> Result<usize> {
        Ok(fs::read(self.agent_process()?.log_file())?.len())
    }

    /// What the agent has logged since `mark`.
    pub(super) fn log_since(&self, mark: usize) -> Result<String> {
        let text = fs::read(self.agent_process()?.log_file())?;
        Ok(String::from_utf8_lossy(text.get(mark..).unwrap_or_default()).into_owned())
    }

    /// A sample image, as a pod on the node names it.
    pub(super) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.layout.registry_address())
    }

    /// Puts back what was there.
    pub(super) async fn leave(self) -> Result<()> {
        step("leave the cluster as it was found", async {
            let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n");
            pods::remove_all(&self.client).await?;
            manifests::delete(&self.client, &namespace, NAMESPACE).await?;
            self.stop_agent().await?;
            kept_store::put_back(&self.agent.root)?;
            if let Some(spec) = &self.provider {
                process::ensure(spec, GRACE).context("start the provider as it was")?;
            }
            if self.brought_up {
                return Ok(());
            }
            self.settings.agent(&self.layout, 0).start()?;
            Ok(())
        })
        .await?;
        if self.brought_up { this_program(&["down"]).await } else { Ok(()) }
    }
}

/// Another command of this program. What it has to say goes to where progress goes: the result of a bench is alone on the
/// standard output.
async fn this_program(args: &[&str]) -> Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command.args(args).stdout(std::io::stderr());
    let status = command.status().await.with_context(|| format!("run {}", args.join(" ")))?;
    ensure!(status.success(), "{} failed: {status}", args.join(" "));
    Ok(())
}

/// Puts right what a bench that was killed left: the node's agent on another store, pods that nobody looks at.
async fn end_killed(client: &Client, agent: &Agent) -> Result<()> {
    if kept_store::is_aside(&agent.root) {
        let agent = agent.clone();
        let restore = move || {
            down::end_agent(&agent)?;
            kept_store::put_back(&agent.root)?;
            agent.start().map(drop).context("start the node's agent")
        };
        blocking_step("put right what a bench that was killed has left", restore).await?;
    }
    pods::remove_all(client).await
}

/// Others' pods would be measured with ours, and stopping the agent would stop them.
async fn ensure_unused(client: &Client, node: &str) -> Result<()> {
    let pods: Api<Pod> = Api::all(client.clone());
    let there = pods.list(&ListParams::default().fields(&format!("spec.nodeName={node}"))).await?;
    ensure!(
        there.items.is_empty(),
        "{} pods are on {node}, and the bench wants it to itself: hack/down, then hack/up --empty",
        there.items.len()
    );
    let caches = pods::image_caches(client).await?.list(&ListParams::default()).await?;
    ensure!(
        caches.items.is_empty(),
        "there are {} image caches, which the bench's fresh node would fetch: delete them first",
        caches.items.len()
    );
    Ok(())
}

fn remove(root: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", root.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
