//! How pods start: what is refused, what is tried again, and from which image cache.

use std::collections::BTreeMap;

use async_trait::async_trait;
use rstest::rstest;

use super::*;
use crate::agent::{AgentError, ChosenCache, VerificationPolicy};
use crate::pod::cache_choice::{CacheDecision, Notice, Refusal};

#[tokio::test(start_paused = true)]
async fn what_the_agent_refuses_is_said_and_tried_again_when_changed() {
    let mut bench = Bench::new();
    let message = "spec.hostPID is not offered; leave it out";
    bench.agent.set(|record| record.run_failures.push_back(AgentError::Refused { message: message.into() }));
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.event("ProviderCreateFailed").await;
    let reason = |record: &Record| record.pods["ns/p"].status.as_ref()?.reason.clone();
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

fn cache() -> ChosenCache {
    ChosenCache { id: "imc-1".into(), is_automatic: true, policy: Some(VerificationPolicy::NeverVerify) }
}

fn admitted() -> Admitted {
    Admitted {
        image_cache: Some(cache()),
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
        assert_eq!(record.runs[0].image_cache, Some(cache()));
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

#[rstest]
#[case("Always", "Pending")]
#[case("OnFailure", "Pending")]
#[case("Never", "Failed")]
#[tokio::test(start_paused = true)]
async fn what_the_policy_refuses_waits_unless_it_never_restarts(#[case] restart: &str, #[case] phase: &str) {
    let mut bench = Bench::new();
    let refusal = Refusal { reason: "ProviderFailed".into(), message: "spec.hostPID: no".into(), notices: vec![] };
    bench.start_with(Arc::new(Scripted(vec![CacheDecision::Refuse(refusal)].into())));
    let mut pod = pod("p", "u1");
    pod.spec.as_mut().unwrap().restart_policy = Some(restart.to_owned());
    bench.cluster.put_pod(pod);
    let shown = |record: &Record| record.pods["ns/p"].status.clone().unwrap();
    bench.cluster.wait("reason", |record| shown(record).reason.is_some()).await;
    let shown = bench.cluster.see(shown);
    assert_eq!((shown.phase.as_deref(), shown.message.as_deref()), (Some(phase), Some("spec.hostPID: no")));
}

/// What the agent says while it makes a pod's first container.
fn on_its_way() -> PodStatus {
    serde_json::from_value(json!({
        "phase": "Pending", "podIP": "10.244.0.2",
        "containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ContainerCreating"}}
        }]
    }))
    .unwrap()
}

#[rstest]
#[case::at_once(Duration::from_millis(40), &["Running"])]
#[case::slowly(Duration::from_secs(2), &["Pending", "Running"])]
#[tokio::test(start_paused = true)]
async fn of_a_pod_that_runs_at_once_the_api_server_is_told_once(#[case] took: Duration, #[case] told: &[&str]) {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.agent.report("u1", on_its_way());
    tokio::time::sleep(took).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    let phases: Vec<_> = bench.cluster.see(|record| {
        let patches = record.status_patches.iter().map(|(_, patch)| patch["status"]["phase"].as_str());
        // What is not in a patch has not changed.
        patches.map(|phase| phase.unwrap_or("Pending").to_owned()).collect()
    });
    assert_eq!(phases, told);
}

#[tokio::test(start_paused = true)]
async fn what_keeps_a_pod_from_starting_is_told_at_once() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    let began = Instant::now();
    let mut failing = on_its_way();
    let state = failing.container_statuses.as_mut().unwrap()[0].state.as_mut().unwrap();
    state.waiting.as_mut().unwrap().reason = Some("ErrImagePull".to_owned());
    bench.agent.report("u1", failing);
    bench.cluster.wait("a patch", |record| !record.status_patches.is_empty()).await;
    assert!(began.elapsed() < Duration::from_millis(50), "told after {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn events_are_written_after_the_start_and_with_its_time() {
    let mut bench = Bench::new();
    bench.start_with(Arc::new(Scripted(vec![CacheDecision::Run(admitted())].into())));
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.cluster.see(|record| record.events.len()), 0, "in the way of a start");
    bench.event("SuccessfulHitImageCache").await;
}

/// Forty pods at once: of one that runs this is written, and all else waits until the last one does.
#[tokio::test(start_paused = true)]
async fn while_pods_start_what_can_wait_waits() {
    let mut bench = Bench::new();
    let decisions = std::iter::repeat_with(|| CacheDecision::Run(admitted())).take(40).collect::<Vec<_>>();
    bench.start_with(Arc::new(Scripted(decisions.into())));
    let began = Instant::now();
    for number in 0..40 {
        bench.cluster.put_pod(pod(&format!("p{number}"), &format!("u{number}")));
    }
    bench.ran(40).await;
    for number in 0..39 {
        bench.agent.report(&format!("u{number}"), status("Running"));
    }
    bench.agent.report("u39", on_its_way());
    for number in 0..39 {
        bench.phase(&format!("p{number}"), "Running").await;
    }
    assert!(began.elapsed() < Duration::from_millis(100), "told after {:?}", began.elapsed());
    let written = |record: &Record| {
        let marked = record.pods.values().filter(|pod| pod.metadata.annotations.is_some()).count();
        (record.events.len(), marked, record.status_patches.len())
    };
    tokio::time::sleep_until(began + Duration::from_millis(900)).await;
    assert_eq!(bench.cluster.see(written), (0, 0, 39), "in the way of the last start");
    bench.agent.report("u39", status("Running"));
    bench.phase("p39", "Running").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bench.cluster.see(written), (40, 40, 40));
}

/// With the pods `ns/p` of UID `u1` and `ns/q` of UID `u2`, which were just handed over.
async fn two_handed_over() -> Bench {
    let mut bench = Bench::new();
    bench.start_with(Arc::new(Scripted(vec![CacheDecision::Run(admitted()), CacheDecision::Run(admitted())].into())));
    bench.cluster.put_pod(pod("p", "u1"));
    bench.cluster.put_pod(pod("q", "u2"));
    bench.ran(2).await;
    bench
}

/// One that does not come up keeps nobody's events for long, nor its own state.
#[tokio::test(start_paused = true)]
async fn a_start_that_takes_long_is_told_of_and_keeps_nothing_back() {
    let bench = two_handed_over().await;
    bench.agent.report("u1", on_its_way());
    bench.agent.report("u2", status("Running"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    bench.cluster.see(|record| {
        assert_eq!(record.events.len(), 2);
        assert!(record.pods.values().all(|pod| pod.metadata.annotations.is_some()));
        assert!(record.status_patches.iter().any(|(pod, _)| pod.name == "p"));
    });
}

/// What is to be written on a pod comes also when it ran only for the moment in which that waited.
#[tokio::test(start_paused = true)]
async fn a_pod_that_ran_for_a_moment_gets_its_marks() {
    let bench = two_handed_over().await;
    bench.agent.report("u2", on_its_way());
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    bench.agent.report("u1", status("Succeeded"));
    bench.phase("p", "Succeeded").await;
    let is_marked = |record: &Record| record.pods["ns/p"].metadata.annotations.is_some();
    assert!(!bench.cluster.see(is_marked), "in the way of the other");
    bench.cluster.wait("marks", is_marked).await;
}
