//! Larder as an engine: the agent alone, spoken to as the provider does. From the call of `RunPod` until the stream of
//! `WatchPods` shows every container running.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::PodStatus;
use larder_proto::v1::pod_service_client::PodServiceClient;
use larder_proto::v1::watch_pods_response::Item;
use larder_proto::v1::{PodState, RunPodRequest, WatchPodsRequest, WatchPodsResponse};
use serde_json::json;
use tokio::time::{Duration, Instant, sleep};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::account::{Account, PODS};
use super::engine::{DEADLINE, Engine, Start};
use crate::bench::pods::COMMAND;
use crate::bench::row::LARDER;
use crate::bench::trace;
use crate::larder::Agent;
use crate::process::Process;
use crate::up::layout::Layout;

/// No cluster has so many nodes, so this agent's folders, bridge and addresses are nobody else's.
const INDEX: u8 = u8::MAX;
/// Between two looks at something that tells nobody.
const LOOK: Duration = Duration::from_millis(20);

/// The agent that is measured.
#[derive(Debug)]
pub(super) struct Larder {
    agent: Agent,
    warm_up: Start,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    process: Process,
    pods: PodServiceClient<Channel>,
    changes: Streaming<WatchPodsResponse>,
    /// Where the log ended when the last start began.
    mark: usize,
}

/// The agent of these benches, as `hack/down` finds it after one that was killed.
pub(super) fn agent(layout: &Layout) -> Agent {
    let mut agent = layout.agent(INDEX);
    agent.cgroup_parent = PODS.to_owned();
    trace::logging_steps(agent)
}

impl Larder {
    pub(super) fn new(layout: &Layout, warm_up: Start) -> Self {
        Self { agent: agent(layout), warm_up, running: None }
    }

    fn running(&mut self) -> Result<&mut Running> {
        self.running.as_mut().context("the agent does not run")
    }
}

impl Engine for Larder {
    fn side(&self) -> &str {
        LARDER
    }

    async fn begin(&mut self, store: &Path, account: &Account) -> Result<()> {
        self.agent.root = store.join("larder");
        let process = self.agent.start()?;
        account.admit(process.pid())?;
        let mut pods = connect(&self.agent, &process).await?;
        let changes = pods.watch_pods(WatchPodsRequest {}).await?.into_inner();
        self.running = Some(Running { process, pods, changes, mark: 0 });
        let warm_up = self.warm_up.clone();
        tokio::time::timeout(DEADLINE, self.start(&warm_up, account)).await.context("the first pod does not run")?
    }

    async fn start(&mut self, start: &Start, _account: &Account) -> Result<()> {
        let running = self.running()?;
        running.mark = log(&running.process)?.len();
        let requests = start.names().into_iter().map(|name| {
            let (mut pods, request) = (running.pods.clone(), request(&name, &start.image));
            async move { Ok::<_, anyhow::Error>(pods.run_pod(request?).await?) }
        });
        try_join_all(requests).await?;
        let mut missing: BTreeSet<String> = start.names().into_iter().collect();
        while !missing.is_empty() {
            let change = running.changes.message().await?.context("the agent's stream of changes ended")?;
            match change.item {
                Some(Item::Changed(pod)) if runs(&pod)? => {
                    missing.remove(&pod.uid);
                }
                Some(Item::Gone(pod)) => bail!("pod {} is gone", pod.uid),
                Some(Item::List(_) | Item::Changed(_) | Item::Event(_)) | None => {}
            }
        }
        Ok(())
    }

    fn daemon(&self) -> Result<&Process> {
        Ok(&self.running.as_ref().context("the agent does not run")?.process)
    }

    /// The agent tells the status first and writes its line then, so the line may be a moment away.
    async fn steps(&mut self, start: &Start) -> Result<BTreeMap<String, Vec<f64>>> {
        let deadline = Instant::now() + DEADLINE;
        let running = self.running()?;
        loop {
            let text = log(&running.process)?;
            let text = String::from_utf8_lossy(text.get(running.mark..).unwrap_or_default()).into_owned();
            let steps = trace::steps(&text);
            if steps.values().any(|samples| samples.len() >= start.containers) {
                return Ok(steps);
            }
            ensure!(Instant::now() < deadline, "the agent does not log the steps of a start:\n{text}");
            sleep(LOOK).await;
        }
    }

    async fn end(&mut self) -> Result<()> {
        self.running = None;
        let agent = self.agent.clone();
        tokio::task::spawn_blocking(move || super::remains::end_agent(&agent)).await.context("ending it panicked")?
    }
}

/// A client, once the agent listens.
async fn connect(agent: &Agent, process: &Process) -> Result<PodServiceClient<Channel>> {
    let endpoint = Endpoint::from_shared(agent.endpoint())?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(PodServiceClient::new(channel)),
            Err(err) => ensure!(
                process.is_running() && Instant::now() < deadline,
                "the agent does not listen: {err}\n{}",
                process.log_tail(20)
            ),
        }
        sleep(LOOK).await;
    }
}

fn log(process: &Process) -> Result<Vec<u8>> {
    let path = process.log_file();
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// A pod whose name is its UID too.
fn request(name: &str, image: &str) -> Result<RunPodRequest> {
    let pod = json!({
        "metadata": { "name": name, "namespace": crate::bench::ground::NAMESPACE, "uid": name },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": COMMAND,
            }],
        },
    });
    Ok(RunPodRequest { pod_json: serde_json::to_vec(&pod)?.into(), ..RunPodRequest::default() })
}

/// Whether every container of a pod runs. A pod that will not is an error.
fn runs(pod: &PodState) -> Result<bool> {
    let status: PodStatus = serde_json::from_slice(&pod.status_json).context("read a pod's status")?;
    let all = status.container_statuses.unwrap_or_default();
    let mut states = all.iter().filter_map(|container| container.state.as_ref());
    let failed = states.clone().filter_map(|state| state.waiting.as_ref()?.reason.as_deref()).any(|reason| {
        matches!(reason, "ErrImagePull" | "ImagePullBackOff" | "CreateContainerError" | "RunContainerError")
    });
    ensure!(!pod.terminated && !failed, "pod {} does not run: {}", pod.uid, String::from_utf8_lossy(&pod.status_json));
    Ok(!all.is_empty() && states.all(|state| state.running.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(status: &serde_json::Value) -> PodState {
        PodState { uid: "x".to_owned(), status_json: status.to_string().into_bytes().into(), ..PodState::default() }
    }

    #[test]
    fn a_pod_runs_when_all_its_containers_do() {
        let container = |state: serde_json::Value| {
            json!({"name": "main", "state": state, "image": "", "imageID": "",
            "ready": false, "restartCount": 0})
        };
        let of = |states: &[serde_json::Value]| {
            runs(&state(&json!({"containerStatuses": states.iter().cloned().map(container).collect::<Vec<_>>()})))
        };
        let (up, waits) = (json!({"running": {}}), json!({"waiting": {"reason": "ContainerCreating"}}));
        assert!(of(std::slice::from_ref(&up)).unwrap());
        assert!(!of(&[up.clone(), waits]).unwrap());
        assert!(!of(&[]).unwrap());
        let error = of(&[up, json!({"waiting": {"reason": "ErrImagePull", "message": "no such tag"}})]).unwrap_err();
        assert!(error.to_string().contains("no such tag"), "{error}");
    }

    #[test]
    fn a_request_has_what_the_agent_asks_for() {
        let request = request("bench-0", "127.0.0.1:5000/samples/large:gzip").unwrap();
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_slice(&request.pod_json).unwrap();
        assert_eq!(pod.metadata.uid.as_deref(), Some("bench-0"));
        assert_eq!(pod.spec.unwrap().containers[0].image.as_deref(), Some("127.0.0.1:5000/samples/large:gzip"));
    }
}
