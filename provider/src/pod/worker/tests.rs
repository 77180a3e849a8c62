//! Controller and workers against an agent and an API server in memory, with time paused.

mod breaking;
mod changing;
mod contents;
mod ending;
mod marks;
mod running;
mod starting;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;
use tokio::task::JoinSet;

use super::*;
use crate::agent::PodState;
use crate::agent::fake::FakeAgent;
use crate::cluster::fake::{FakeCluster, Record};
use crate::meters::Meters;
use crate::parts::PartError;
use crate::pod::cache_choice::NoCaches;
use crate::pod::{PodController, PodDirectory, PodServices};

const NODE: &str = "virtual-node-eci-0";

struct Bench {
    cluster: Arc<FakeCluster>,
    agent: Arc<FakeAgent>,
    tasks: JoinSet<Result<(), PartError>>,
    stop: CancellationToken,
    directory: Option<PodDirectory>,
}

impl Bench {
    fn new() -> Self {
        let (cluster, agent) = (Arc::new(FakeCluster::default()), Arc::new(FakeAgent::default()));
        Self { cluster, agent, tasks: JoinSet::new(), stop: CancellationToken::new(), directory: None }
    }

    /// With the pod `ns/p` of UID `u1`, which runs, and whose status says so.
    async fn with_running_pod() -> Self {
        let mut bench = Self::new();
        bench.start();
        bench.cluster.put_pod(pod("p", "u1"));
        bench.ran(1).await;
        bench.agent.report("u1", status("Running"));
        bench.phase("p", "Running").await;
        bench
    }

    fn start(&mut self) {
        self.start_with(Arc::new(NoCaches));
    }

    fn start_with(&mut self, caches: Arc<dyn CacheChoice>) {
        let (events, writer) = EventRecorder::new(self.cluster.clone());
        let (store, store_task) = ObjectStore::new(self.cluster.clone());
        let services = PodServices {
            pods: self.cluster.clone(),
            objects: self.cluster.clone(),
            store,
            events,
            caches,
            meters: Meters::default(),
        };
        let (controller, directory) = PodController::new(NODE, Some("10.0.0.1".into()), self.agent.clone(), services);
        self.directory = Some(directory);
        self.tasks.spawn(writer.run(self.stop.clone()));
        self.tasks.spawn(store_task.run(self.stop.clone()));
        self.tasks.spawn(controller.run(self.stop.clone()));
    }

    async fn restart(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.stop = CancellationToken::new();
        self.start();
    }

    async fn ran(&self, count: usize) {
        self.agent.wait(&format!("{count} hand-overs"), |record| record.runs.len() == count).await;
    }

    async fn phase(&self, name: &str, phase: &str) {
        let key = format!("ns/{name}");
        self.cluster
            .wait(&format!("{name} {phase}"), |record| phase_of(record.pods.get(&key)) == Some(phase.into()))
            .await;
    }

    async fn event(&self, reason: &str) {
        let is_it = |event: &k8s_openapi::api::core::v1::Event| event.reason.as_deref() == Some(reason);
        self.cluster.wait(reason, |record| record.events.iter().any(is_it)).await;
    }
}

fn phase_of(pod: Option<&Pod>) -> Option<String> {
    pod?.status.as_ref()?.phase.clone()
}

fn pod(name: &str, uid: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": uid, "generation": 1},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "i"}], "restartPolicy": "Always"},
        "status": {"phase": "Pending"}
    }))
    .unwrap()
}

fn status(phase: &str) -> PodStatus {
    let state = match phase {
        "Running" => json!({"running": {}}),
        _ => json!({"terminated": {"exitCode": 0}}),
    };
    serde_json::from_value(json!({
        "phase": phase, "podIP": "10.244.0.2",
        "containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": phase == "Running", "restartCount": 0, "state": state
        }]
    }))
    .unwrap()
}

fn on_record(uid: &str, name: &str, phase: &str) -> PodState {
    PodState {
        uid: uid.into(),
        namespace: "ns".into(),
        name: name.into(),
        generation: 5,
        status: status(phase),
        terminated: phase != "Running",
    }
}
