//! Controller and workers against an agent and an API server in memory, with time paused.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;
use tokio::task::JoinSet;

use super::*;
use crate::agent::fake::FakeAgent;
use crate::agent::{AgentError, PodChange, PodGone, PodState};
use crate::cluster::fake::FakeCluster;
use crate::cluster::objects::ObjectContent;
use crate::cluster::{ObjectKey, ObjectKind};
use crate::meters::Meters;
use crate::pod::cache_choice::{CacheDecision, NoCaches, Notice, Refusal};
use crate::pod::{PodController, PodDirectory, PodServices};

const NODE: &str = "virtual-node-eci-0";

struct Bench {
    cluster: Arc<FakeCluster>,
    agent: Arc<FakeAgent>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    directory: Option<PodDirectory>,
}

impl Bench {
    fn new() -> Self {
        let (cluster, agent) = (Arc::new(FakeCluster::default()), Arc::new(FakeAgent::default()));
        Self { cluster, agent, tasks: JoinSet::new(), stop: CancellationToken::new(), directory: None }
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

fn deleting(pod: &mut Pod, seconds: i64) {
    pod.metadata.deletion_timestamp = Some(Timestamp::from_second(1).unwrap().into());
    pod.metadata.deletion_grace_period_seconds = Some(seconds);
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

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_its_status_comes_back() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    let written = bench.cluster.see(|record| record.pods["ns/p"].status.clone().unwrap());
    assert_eq!(written.host_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(written.observed_generation, Some(1));
    let found = bench.directory.clone().unwrap().find("ns", "p").await.unwrap();
    assert_eq!(found.metadata.uid.as_deref(), Some("u1"));
    assert_eq!(bench.directory.unwrap().all().await.len(), 1);
    assert_eq!(bench.agent.see(|record| record.runs.len()), 1);
}

#[tokio::test(start_paused = true)]
async fn the_object_stays_until_the_agent_says_that_nothing_runs() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    bench.cluster.edit_pod("ns", "p", |pod| deleting(pod, 7));
    bench.agent.wait("stop", |record| record.stops == [("u1".to_owned(), Some(Duration::from_secs(7)))]).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(bench.cluster.see(|record| record.removals.is_empty()));
    bench.agent.gone("u1");
    bench.cluster.wait("removal", |record| record.pods.is_empty()).await;
    // What controllers count by was written before the object went.
    let last = bench.cluster.see(|record| record.status_patches.last().unwrap().1.clone());
    assert_eq!(last["status"]["phase"], "Failed");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_ran_is_removed_once_the_agent_has_confirmed() {
    let mut bench = Bench::new();
    let mut doomed = pod("p", "u1");
    deleting(&mut doomed, 0);
    bench.cluster.put_pod(doomed);
    bench.start();
    bench.cluster.wait("removal", |record| record.pods.is_empty()).await;
    assert_eq!(bench.agent.see(|record| (record.stops.len(), record.runs.len())), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn while_the_agent_is_away_nothing_is_removed() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.agent.go_offline();
    bench.cluster.edit_pod("ns", "p", |pod| deleting(pod, 0));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(bench.cluster.see(|record| record.removals.is_empty()));
    bench.agent.go_online();
    bench.agent.wait("stop", |record| !record.stops.is_empty()).await;
    bench.agent.gone("u1");
    bench.cluster.wait("removal", |record| record.pods.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn orphans_of_an_earlier_life_are_ended() {
    let mut bench = Bench::new();
    bench.agent.set(|record| {
        record.pods.insert("old".into(), on_record("old", "p", "Running"));
    });
    bench.start();
    bench.agent.wait("stop", |record| record.stops == [("old".to_owned(), None)]).await;
    bench.agent.gone("old");
    // A pod that is taken away by force is one, too.
    bench.cluster.put_pod(pod("q", "u2"));
    bench.ran(1).await;
    bench.cluster.drop_pod("ns", "q");
    bench.agent.wait("stop", |record| record.stops.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_under_an_old_name_is_another() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.cluster.drop_pod("ns", "p");
    bench.cluster.put_pod(pod("p", "u2"));
    bench.ran(2).await;
    bench.agent.wait("stop of the old", |record| record.stops.iter().any(|(uid, _)| uid == "u1")).await;
    bench.agent.report("u2", status("Running"));
    bench.agent.gone("u1");
    bench.phase("p", "Running").await;
    let uids = bench.cluster.see(|record| record.pods["ns/p"].metadata.uid.clone());
    assert_eq!(uids.as_deref(), Some("u2"));
    assert!(bench.agent.see(|record| record.stops.iter().all(|(uid, _)| uid == "u1")));
}

#[tokio::test(start_paused = true)]
async fn what_the_agent_refuses_is_said_and_tried_again_when_changed() {
    let mut bench = Bench::new();
    let message = "spec.hostPID is not offered; leave it out";
    bench.agent.set(|record| record.run_failures.push_back(AgentError::Refused { message: message.into() }));
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.event("ProviderCreateFailed").await;
    let reason = |record: &crate::cluster::fake::Record| record.pods["ns/p"].status.as_ref()?.reason.clone();
    bench.cluster.wait("reason", |record| reason(record).as_deref() == Some("ProviderFailed")).await;
    let shown = bench.cluster.see(|record| record.pods["ns/p"].status.clone().unwrap());
    assert_eq!((shown.phase.as_deref(), shown.message.as_deref()), (Some("Pending"), Some(message)));
    bench.cluster.edit_pod("ns", "p", |pod| {
        pod.metadata.labels = Some([("fixed".to_owned(), "yes".to_owned())].into());
    });
    tokio::time::timeout(Duration::from_secs(5), bench.ran(1)).await.expect("at once");
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    bench.cluster.wait("no reason", |record| reason(record).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_never_given_up() {
    let mut bench = Bench::new();
    let failure = || AgentError::Failed { call: "RunPod", message: "busy".into() };
    bench.agent.set(|record| record.run_failures.extend(std::iter::repeat_with(failure).take(12)));
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    for left in [8, 4, 0] {
        bench.agent.wait("tries", |record| record.run_failures.len() == left).await;
    }
    bench.ran(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_while_the_agent_is_away_runs_when_it_is_back() {
    let mut bench = Bench::new();
    bench.agent.go_offline();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.agent.go_online();
    bench.ran(1).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    // The pod ends while nobody listens; the list says so.
    bench.agent.go_offline();
    bench.agent.set(|record| {
        record.pods.insert("u1".into(), on_record("u1", "p", "Succeeded"));
    });
    bench.agent.go_online();
    bench.phase("p", "Succeeded").await;
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_only_the_newest_status_is_kept() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    let before = bench.cluster.see(|record| record.status_patches.len());
    bench.cluster.go_offline();
    for restarts in 1..20 {
        let mut newer = status("Running");
        newer.container_statuses.as_mut().unwrap()[0].restart_count = restarts;
        bench.agent.report("u1", newer);
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    bench.cluster.go_online();
    let count = |record: &crate::cluster::fake::Record| {
        record.pods["ns/p"].status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0].restart_count
    };
    bench.cluster.wait("the newest", |record| count(record) == 19).await;
    assert_eq!(bench.cluster.see(|record| record.status_patches.len()), before + 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_newer_is_dropped() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    let stale = PodState { generation: 1, ..on_record("u1", "p", "Failed") };
    bench.agent.send(PodChange::Changed(stale.clone()));
    bench.agent.send(PodChange::Gone(PodGone { uid: "u1".into(), generation: 1, status: stale.status }));
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.phase("p", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn a_final_pod_never_runs_again() {
    let mut bench = Bench::new();
    let mut over = pod("p", "u1");
    over.status = Some(status("Succeeded"));
    bench.cluster.put_pod(over);
    bench.start();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(bench.agent.see(|record| record.runs.len()), 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_pods_are_adopted_and_nothing_is_told_twice() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    bench.restart().await;
    // Fresh tokens and objects, for the same pod that goes on running.
    bench.ran(2).await;
    bench.agent.report("u1", status("Succeeded"));
    bench.phase("p", "Succeeded").await;
    assert!(bench.agent.see(|record| record.stops.is_empty()));
}

fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: "ns".into(), name: name.into() }
}

fn content(value: &str) -> ObjectContent {
    ObjectContent { data: [("k".to_owned(), Bytes::from(value.to_owned()))].into(), ..ObjectContent::default() }
}

fn referring() -> Pod {
    let mut pod = pod("p", "u1");
    let spec = json!({
        "nodeName": NODE,
        "serviceAccountName": "sa",
        "imagePullSecrets": [{"name": "pull"}],
        "volumes": [
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 600}}]}},
            {"name": "m", "configMap": {"name": "map"}}
        ],
        "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "secret"}}]}]
    });
    pod.spec = serde_json::from_value(spec).unwrap();
    pod
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_refers_to_goes_along_and_follows_changes() {
    let mut bench = Bench::new();
    let login = json!({"auths": {"r.example": {"username": "u", "password": "p"}}}).to_string();
    let pull = ObjectContent {
        data: [(".dockerconfigjson".to_owned(), Bytes::from(login))].into(),
        ..ObjectContent::default()
    };
    bench.cluster.put_object(key(ObjectKind::ConfigMap, "map"), Some(content("1")));
    bench.cluster.put_object(key(ObjectKind::Secret, "pull"), Some(pull));
    bench.start();
    bench.cluster.put_pod(referring());
    bench.ran(1).await;
    bench.agent.see(|record| {
        let run = &record.runs[0];
        assert_eq!(run.config_maps[0].data["k"], "1");
        // Missing is not our failure: the agent says what it means for the container.
        assert!(run.secrets.is_empty());
        assert_eq!(run.credentials[0].registry, "r.example");
        assert_eq!((run.tokens[0].token.as_str(), run.tokens[0].expiration_seconds), ("sa//1", 600));
    });
    bench.cluster.put_object(key(ObjectKind::Secret, "secret"), Some(content("s")));
    bench.ran(2).await;
    assert_eq!(bench.agent.see(|record| record.runs[1].secrets[0].data["k"].clone()), "s");
    bench.cluster.put_object(key(ObjectKind::ConfigMap, "map"), None);
    bench.ran(3).await;
    bench.agent.see(|record| {
        assert!(record.runs[2].config_maps.is_empty());
        // A token that is young enough is kept.
        assert_eq!(record.runs[2].tokens[0].token, "sa//1");
    });
}

#[tokio::test(start_paused = true)]
async fn tokens_are_renewed_before_they_end() {
    let mut bench = Bench::new();
    bench.cluster.set(|record| record.token_life = Duration::from_secs(500));
    bench.start();
    bench.cluster.put_pod(referring());
    let began = Instant::now();
    bench.ran(1).await;
    bench.ran(2).await;
    let after = began.elapsed().as_secs();
    assert!((380..=410).contains(&after), "renewed after {after} s");
    assert_eq!(bench.agent.see(|record| record.runs[1].tokens[0].token.clone()), "sa//2");
}

/// Says what the test wants.
#[derive(Debug)]
struct Scripted(std::sync::Mutex<Vec<CacheDecision>>);

#[async_trait]
impl CacheChoice for Scripted {
    async fn choose(&self, node: &str, _: &Pod) -> CacheDecision {
        assert_eq!(node, NODE);
        self.0.lock().unwrap().pop().expect("asked too often")
    }

    fn recall(&self, _: &str, _: &Pod) -> Admitted {
        Admitted::default()
    }
}

fn admitted() -> Admitted {
    Admitted {
        image_cache_id: Some("imc-1".into()),
        notices: vec![Notice { warning: false, reason: "SuccessfulHitImageCache".into(), message: "hit".into() }],
        annotations: BTreeMap::from([("k8s.aliyun.com/eci-instance-id".to_owned(), "eci-1".to_owned())]),
        labels: BTreeMap::from([("virtual".to_owned(), "true".to_owned())]),
        ..Admitted::default()
    }
}

#[tokio::test(start_paused = true)]
async fn the_chosen_cache_goes_along_and_its_marks_are_written_once() {
    let mut bench = Bench::new();
    bench.start_with(Arc::new(Scripted(vec![CacheDecision::Run(admitted())].into())));
    bench.cluster.put_pod(pod("p", "u1"));
    bench.event("SuccessfulHitImageCache").await;
    bench.ran(1).await;
    let has_it = |pod: &Pod| pod.metadata.annotations.as_ref().is_some_and(|all| all.len() == 1);
    bench.cluster.wait("annotations", |record| has_it(&record.pods["ns/p"])).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    // The agent saw the marks from the start, so that nothing had to be handed over again.
    bench.agent.see(|record| {
        assert_eq!(record.runs.len(), 1);
        assert_eq!(record.runs[0].image_cache_id.as_deref(), Some("imc-1"));
        assert!(has_it(&record.runs[0].pod));
    });
    let source = bench.cluster.see(|record| record.events[0].source.clone().unwrap());
    assert_eq!(source.component.as_deref(), Some("EciService"));
}

#[tokio::test(start_paused = true)]
async fn a_choice_that_is_put_off_is_asked_again() {
    let mut bench = Bench::new();
    let refusal = |reason: &str| Refusal { reason: reason.into(), message: "not yet".into(), notices: vec![] };
    let decisions = vec![
        CacheDecision::Run(admitted()),
        CacheDecision::Later(refusal("ProviderFailed")),
        CacheDecision::Later(refusal("ProviderFailed")),
    ];
    bench.start_with(Arc::new(Scripted(decisions.into())));
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.event("ProviderCreateFailed").await;
}

/// Puts pods off until it is opened.
#[derive(Debug)]
struct Gate(tokio::sync::watch::Receiver<bool>);

#[async_trait]
impl CacheChoice for Gate {
    async fn choose(&self, _: &str, _: &Pod) -> CacheDecision {
        if *self.0.borrow() {
            return CacheDecision::Run(admitted());
        }
        let (reason, message) = ("ImageCacheNotComplete".to_owned(), "not yet".to_owned());
        CacheDecision::Later(Refusal { reason, message, notices: vec![] })
    }

    async fn until_worth_asking(&self, _: &str, _: &Pod) {
        drop(self.0.clone().wait_for(|open| *open).await);
    }

    fn recall(&self, _: &str, _: &Pod) -> Admitted {
        Admitted::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_its_cache_starts_as_soon_as_that_is_ready() {
    let mut bench = Bench::new();
    let (open, gate) = tokio::sync::watch::channel(false);
    bench.start_with(Arc::new(Gate(gate)));
    bench.cluster.put_pod(pod("p", "u1"));
    bench.event("ProviderCreateFailed").await;
    // Long enough for the back-off to have grown to its cap.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let began = Instant::now();
    open.send_replace(true);
    bench.ran(1).await;
    assert!(began.elapsed() < Duration::from_secs(1), "waited {:?}", began.elapsed());
}
