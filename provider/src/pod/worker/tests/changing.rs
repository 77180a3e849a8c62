//! Pods that change while they run: readiness gates, which the agent must hear of, a resize, which it must not, and an
//! API server that goes back.

use k8s_openapi::api::core::v1::PodCondition;

use super::*;

fn stand(pod: &mut Pod, gate: &str) {
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "example.com/lb");
    let type_ = "example.com/lb".to_owned();
    conditions.push(PodCondition { type_, status: gate.to_owned(), ..PodCondition::default() });
}

fn gate_of(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "example.com/lb").map(|condition| condition.status.clone())
}

fn ready(value: &str) -> PodStatus {
    let mut status = status("Running");
    let type_ = "Ready".to_owned();
    status.conditions = Some(vec![PodCondition { type_, status: value.to_owned(), ..PodCondition::default() }]);
    status
}

fn condition(record: &Record, type_: &str) -> Option<PodCondition> {
    let conditions = record.pods["ns/p"].status.as_ref()?.conditions.clone()?;
    conditions.into_iter().find(|condition| condition.type_ == type_)
}

#[tokio::test(start_paused = true)]
async fn the_agent_hears_how_the_gates_stand_and_of_no_other_condition() {
    let mut bench = Bench::new();
    let mut gated = pod("p", "u1");
    gated.spec.as_mut().unwrap().readiness_gates =
        serde_json::from_value(json!([{"conditionType": "example.com/lb"}])).unwrap();
    bench.start();
    bench.cluster.put_pod(gated);
    bench.ran(1).await;
    assert_eq!(bench.agent.see(|record| gate_of(&record.runs[0].pod)), None);
    bench.agent.report("u1", ready("False"));
    bench.phase("p", "Running").await;
    bench.cluster.edit_pod("ns", "p", |pod| stand(pod, "True"));
    bench.ran(2).await;
    assert_eq!(bench.agent.see(|record| gate_of(&record.runs[1].pod)).as_deref(), Some("True"));
    // Whether it is ready is the agent's to say, and the gate's owner's what the gate says.
    let is_ready = |record: &Record, value: &str| condition(record, "Ready").is_some_and(|ready| ready.status == value);
    assert!(bench.cluster.see(|record| is_ready(record, "False")));
    bench.agent.report("u1", ready("True"));
    bench.cluster.wait("ready", |record| is_ready(record, "True")).await;
    assert_eq!(bench.cluster.see(|record| gate_of(&record.pods["ns/p"])).as_deref(), Some("True"));
    bench.cluster.edit_pod("ns", "p", |pod| stand(pod, "False"));
    bench.ran(3).await;
    bench.cluster.edit_pod("ns", "p", |pod| {
        let type_ = "example.com/other".to_owned();
        let other = PodCondition { type_, status: "True".to_owned(), ..PodCondition::default() };
        pod.status.get_or_insert_default().conditions.get_or_insert_default().push(other);
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.agent.see(|record| record.runs.len()), 3);
}

fn resize(pod: &mut Pod, generation: i64, cpu: &str) {
    pod.metadata.generation = Some(generation);
    pod.spec.as_mut().unwrap().containers[0].resources =
        serde_json::from_value(json!({"requests": {"cpu": cpu}})).unwrap();
}

/// What the agent would say of the pod as it was handed over last.
fn made(bench: &Bench) -> PodStatus {
    let mut status = status("Running");
    let pod = bench.agent.see(|record| record.runs.last().unwrap().pod.clone());
    let container = &mut status.container_statuses.as_mut().unwrap()[0];
    container.container_id = Some("crun://1".to_owned());
    container.resources = pod.spec.as_ref().unwrap().containers[0].resources.clone();
    status.observed_generation = pod.metadata.generation;
    status
}

fn handed(bench: &Bench, run: usize) -> (Option<i64>, String) {
    bench.agent.see(|record| {
        let pod = &record.runs[run].pod;
        let resources = pod.spec.as_ref().unwrap().containers[0].resources.as_ref().unwrap();
        (pod.metadata.generation, resources.requests.as_ref().unwrap()["cpu"].0.clone())
    })
}

#[tokio::test(start_paused = true)]
async fn a_resize_is_not_passed_on_and_the_status_says_so() {
    let mut bench = Bench::new();
    let mut small = pod("p", "u1");
    resize(&mut small, 1, "1");
    bench.start();
    bench.cluster.put_pod(small);
    bench.ran(1).await;
    bench.agent.report("u1", made(&bench));
    bench.phase("p", "Running").await;
    assert_eq!(bench.cluster.see(|record| condition(record, "PodResizePending")), None);

    bench.cluster.edit_pod("ns", "p", |pod| resize(pod, 2, "2"));
    bench.ran(2).await;
    assert_eq!(handed(&bench, 1), (Some(2), "1".to_owned()));
    bench.agent.report("u1", made(&bench));
    let pending = |record: &Record| condition(record, "PodResizePending");
    bench.cluster.wait("pending", |record| pending(record).is_some()).await;
    let told = bench.cluster.see(pending).unwrap();
    assert_eq!((told.reason.as_deref(), told.observed_generation), (Some("Infeasible"), Some(2)));
    bench.event("ResizeInfeasible").await;
    let is_seen = |record: &Record| record.pods["ns/p"].status.as_ref().unwrap().observed_generation == Some(2);
    bench.cluster.wait("the generation", is_seen).await;

    // A provider that has begun anew knows it from the agent, and does not tell it a second time.
    bench.restart().await;
    bench.ran(3).await;
    assert_eq!(handed(&bench, 2), (Some(2), "1".to_owned()));
    let mut restarted = made(&bench);
    restarted.container_statuses.as_mut().unwrap()[0].restart_count = 1;
    let writes = bench.cluster.see(|record| record.status_patches.len());
    bench.agent.report("u1", restarted);
    bench.cluster.wait("another status", |record| record.status_patches.len() > writes).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(bench.cluster.see(|record| pending(record).is_some()));
    let events = bench.cluster.see(|record| {
        let reasons = record.events.iter().filter_map(|event| event.reason.clone());
        reasons.filter(|reason| reason == "ResizeInfeasible").count()
    });
    assert_eq!(events, 1);

    bench.cluster.edit_pod("ns", "p", |pod| resize(pod, 3, "1"));
    bench.ran(4).await;
    bench.cluster.wait("nothing pending", |record| pending(record).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_goes_back_to_a_backup_is_believed() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("other", "u0"));
    let backup = bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(2).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    bench.cluster.restore(|record| {
        record.pods.insert("ns/p".into(), backup);
    });
    bench.phase("p", "Running").await;
    bench.cluster.edit_pod("ns", "p", |pod| {
        pod.metadata.labels = Some([("changed".to_owned(), "yes".to_owned())].into());
    });
    bench.ran(3).await;
}
