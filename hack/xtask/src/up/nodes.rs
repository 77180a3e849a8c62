//! The agents and the provider, started as in production, and the proof that the cluster reaches them.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::cluster::{Cluster, KUBELET_PORT, WEBHOOK_PORT};
use super::layout::{Layout, Settings};
use crate::conditions::node_is_ready;
use crate::console::{blocking_step, note, step};
use crate::control_plane::kube_proxy;
use crate::larder::{Agent, Provider};
use crate::process::Process;
use crate::{down, kept_store, manifests};

/// How long the webhook may take to be called after the nodes are Ready.
const WEBHOOK: Duration = Duration::from_secs(10);
/// How long a virtual node may take to be Ready.
const READY: Duration = Duration::from_secs(60);

/// Starts the agents, the provider and kube-proxy, and waits until every virtual node is Ready.
pub(super) async fn start(layout: &Layout, settings: &Settings, cluster: &Cluster) -> anyhow::Result<()> {
    let agents: Vec<Agent> = settings.agents(layout).collect();
    put_stores_back(&agents).await?;
    let started = step("start the agents and the provider", async {
        let mut started = agents.iter().map(Agent::start).collect::<Result<Vec<_>, _>>()?;
        started.push(provider(layout, settings, cluster, &agents).start()?);
        Ok(started)
    })
    .await?;
    step("wait for the virtual nodes", async {
        for agent in &agents {
            wait_ready(cluster, &agent.node, &started).await?;
        }
        Ok(())
    })
    .await?;
    if let (Some(control_plane), Some(first)) = (&cluster.control_plane, agents.first()) {
        step("start kube-proxy", async { kube_proxy::start(control_plane.config(), &first.node) }).await?;
    }
    let client = manifests::client_that_asks_once(&layout.kubeconfig()).await?;
    for agent in &agents {
        check_reached(settings, &client, &agent.node).await;
    }
    Ok(())
}

/// A bench that was killed left its agent on a store of its own, and the node's beside it.
async fn put_stores_back(agents: &[Agent]) -> anyhow::Result<()> {
    for agent in agents.iter().filter(|agent| kept_store::is_aside(&agent.root)).cloned() {
        blocking_step(&format!("put the store of {} back that a bench left aside", agent.node), move || {
            down::end_agent(&agent)?;
            kept_store::put_back(&agent.root)
        })
        .await?;
    }
    Ok(())
}

fn provider(layout: &Layout, settings: &Settings, cluster: &Cluster, agents: &[Agent]) -> Provider {
    Provider {
        program: Layout::release("larder-provider"),
        dir: layout.run(),
        kubeconfig: layout.provider_kubeconfig(),
        agents: agents.iter().map(|agent| (agent.node.clone(), agent.endpoint())).collect(),
        agent_tls: None,
        node_ip: settings.node_ip.into(),
        listen: format!("0.0.0.0:{KUBELET_PORT}"),
        serving: cluster.serving.clone(),
        client_authority: cluster.client_authority.clone(),
        webhook_listen: format!("0.0.0.0:{WEBHOOK_PORT}"),
        webhook_url: Some(match &cluster.control_plane {
            Some(_) => format!("https://127.0.0.1:{WEBHOOK_PORT}"),
            None => format!("https://{}:{WEBHOOK_PORT}", settings.node_ip),
        }),
        extra: Vec::new(),
        env: Vec::new(),
    }
}

async fn wait_ready(cluster: &Cluster, node: &str, started: &[Process]) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let ready = await_condition(nodes, node, |node: Option<&Node>| node.is_some_and(node_is_ready));
    let failure = tokio::select! {
        // Dropped at the deadline or the end of a process, and then not needed any more.
        ready = ready => return ready.map(drop).with_context(|| format!("watch node {node}")),
        // Holds nothing.
        () = sleep(READY) => format!("{node} is not Ready after {READY:?}"),
        // Looks again from the start when it is called again.
        name = first_end(started) => format!("{name} has ended"),
    };
    let logs: Vec<String> = started
        .iter()
        .map(|process| format!("--- {} ({}):\n{}", process.name(), state(process), process.log_tail(15)))
        .collect();
    bail!("{failure}\n{}", logs.join("\n"))
}

/// The name of the first process that ends. Their ends are not events here: they are not children of this one when an
/// earlier call started them.
async fn first_end(processes: &[Process]) -> &str {
    loop {
        if let Some(ended) = processes.iter().find(|process| !process.is_running()) {
            return ended.name();
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn state(process: &Process) -> &'static str {
    if process.is_running() { "runs" } else { "has ended" }
}

/// Says so when the API server cannot reach the provider: logs and exec would not work, nor the webhook. The pods would.
async fn check_reached(settings: &Settings, client: &Client, node: &str) {
    let address = settings.node_ip;
    let path = format!("/api/v1/nodes/{node}/proxy/healthz");
    let healthz = async {
        let request = http::Request::get(path).body(Vec::new())?;
        Ok::<_, anyhow::Error>(client.request_text(request).await?)
    };
    if let Some(cause) = failure(tokio::time::timeout(Duration::from_secs(15), healthz).await) {
        note(&format!(
            "!! the API server cannot reach the kubelet API of {node} at {address}:{KUBELET_PORT}, so kubectl logs and exec \
             will not work: {cause}\n!! make that address reachable from it, or name another with --node-ip; an API server that \
             verifies certificates of kubelets needs a provider with one that it trusts (--tls-cert-file)"
        ));
    }
    if let Some(cause) = failure(tokio::time::timeout(Duration::from_secs(15), is_mutated(client)).await) {
        note(&format!(
            "!! the API server cannot reach the webhook, so pods labelled alibabacloud.com/eci: \"true\" are not sent to the \
             virtual node by themselves: {cause}\n!! give them nodeSelector type: virtual-kubelet and the toleration of \
             the node's taint, or make port {WEBHOOK_PORT} of this machine reachable from it"
        ));
    }
}

fn failure<T>(result: Result<anyhow::Result<T>, tokio::time::error::Elapsed>) -> Option<String> {
    match result {
        Ok(Ok(_)) => None,
        Ok(Err(err)) => Some(manifests::cause(&err)),
        Err(_) => Some("no answer in 15 s".to_owned()),
    }
}

/// Asks for a pod that is not kept, until admission changes it. Registering the webhook and the API server's taking note
/// of it are not events that anybody can watch.
async fn is_mutated(client: &Client) -> anyhow::Result<()> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "larder-webhook-probe", "labels": { "alibabacloud.com/eci": "true" } },
        "spec": { "automountServiceAccountToken": false, "containers": [{ "name": "probe", "image": "probe" }] },
    }))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let deadline = Instant::now() + WEBHOOK;
    loop {
        let admitted = pods.create(&params, &pod).await.context("ask for a pod")?;
        if admitted.spec.and_then(|spec| spec.node_selector).is_some_and(|selector| !selector.is_empty()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("a pod with that label is admitted unchanged");
        }
        sleep(Duration::from_millis(100)).await;
    }
}
