use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerStatus;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    image::RegistryAccess,
    pod::{
        lifecycle::{Event, Failure, Phase, Run},
        objects::PodObjects,
        wish::PodWish,
    },
    runtime::{ContainerExit, users::ProcessUser},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// A pod with its machine, and the status told last.
struct Bench {
    pod: Pod,
    machine: Machine,
    previous: PodStatus,
}

impl Bench {
    fn new(spec: Value) -> Self {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "generation": 3}, "spec": spec,
        }))
        .unwrap();
        let (objects, access) = (PodObjects::default(), RegistryAccess::default());
        let plan = PodWish { pod: pod.clone(), objects, access, cache: None }.plan(at(0));
        Self { pod, machine: Machine::new(plan), previous: PodStatus::default() }
    }

    fn take(&mut self, second: i64, events: impl IntoIterator<Item = Event>) -> &mut Self {
        events.into_iter().for_each(|event| drop(self.machine.handle(event, at(second))));
        self
    }

    fn ready(&mut self) -> &mut Self {
        let images = (0..self.machine.images.len()).map(Event::ImageReady);
        self.take(0, [Event::Tick, Event::SandboxReady, Event::VolumesReady]).take(0, images)
    }

    fn tell(&mut self, second: i64) -> PodStatus {
        let ip = "10.0.0.7".parse().unwrap();
        let facts = Facts { ips: &[ip], runtime: "crun", started_at: at(0), now: at(second) };
        self.previous = status(&self.pod, &self.previous, &self.machine, &facts);
        self.previous.clone()
    }
}

fn two_apps(policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "containers": [{"name": "web", "image": "nginx:1"}, {"name": "db", "image": "nginx:1"}],
    })
}

fn with_init(policy: &str) -> Value {
    let mut spec = two_apps(policy);
    spec["initContainers"] = json!([{"name": "init", "image": "nginx:1"}]);
    spec
}

fn launched(index: usize, attempt: u32) -> Event {
    let run = Run {
        id: format!("{index}{attempt}"),
        attempt,
        image: "docker.io/library/nginx:1".into(),
        image_id: "docker.io/library/nginx@sha256:0".into(),
        user: Some(ProcessUser { uid: 1000, gid: 3000, additional_gids: vec![3000, 4000] }),
        exit: None,
    };
    Event::Launched(index, run)
}

fn exited(index: usize, exit_code: i32, second: i64) -> Event {
    let reason = if exit_code == 0 { "Completed" } else { "Error" };
    let (started_at, finished_at) = (Some(at(0)), at(second));
    let exit = ContainerExit {
        exit_code,
        signal: None,
        reason: reason.into(),
        message: String::new(),
        started_at,
        finished_at,
    };
    Event::Exited(index, exit)
}

fn container<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerStatus {
    let app = status.container_statuses.iter().flatten();
    app.chain(status.init_container_statuses.iter().flatten()).find(|told| told.name == name).unwrap()
}

/// `Waiting reason`, `Running` or `Terminated code`.
fn state(status: &PodStatus, name: &str) -> String {
    let state = container(status, name).state.as_ref().unwrap();
    match (&state.waiting, &state.running, &state.terminated) {
        (Some(waiting), None, None) => format!("Waiting {}", waiting.reason.as_deref().unwrap_or_default()),
        (None, Some(_), None) => "Running".to_owned(),
        (None, None, Some(terminated)) => format!("Terminated {}", terminated.exit_code),
        _ => panic!("one state, not {state:?}"),
    }
}

/// `type=status reason`, of the conditions.
fn conditions(status: &PodStatus) -> Vec<String> {
    let all = status.conditions.iter().flatten();
    all.map(|c| format!("{}={} {}", c.type_, c.status, c.reason.as_deref().unwrap_or_default()).trim().to_owned())
        .collect()
}

fn phase(status: &PodStatus) -> &str {
    status.phase.as_deref().unwrap()
}

#[test]
fn a_container_that_exists_has_its_user_in_the_status() {
    let mut bench = Bench::new(two_apps("Always"));
    bench.ready().take(1, [launched(0, 0)]);
    assert_eq!(container(&bench.tell(1), "web").user, None, "no process has been seen yet");
    bench.take(1, [Event::Running(0, at(1))]);
    let expected = json!({"linux": {"uid": 1000, "gid": 3000, "supplementalGroups": [3000, 4000]}});
    for (event, name) in [(None, "running"), (Some(exited(0, 1, 2)), "about to run again")] {
        bench.take(2, event);
        assert_eq!(serde_json::to_value(&container(&bench.tell(2), "web").user).unwrap(), expected, "{name}");
    }
    assert_eq!(container(&bench.tell(2), "db").user, None);
    let told = container(&bench.tell(2), "web").user.clone().unwrap();
    assert_eq!(process_user(&told), Some(ProcessUser { uid: 1000, gid: 3000, additional_gids: vec![3000, 4000] }));
}

#[test]
fn a_start_is_told_as_a_kubelet_tells_it() {
    let mut bench = Bench::new(two_apps("Always"));
    bench.take(0, [Event::Tick]);
    let told = bench.tell(0);
    assert_eq!(phase(&told), "Pending");
    assert_eq!(state(&told, "web"), "Waiting ContainerCreating");
    assert_eq!(
        conditions(&told),
        [
            "PodReadyToStartContainers=False PodSandboxNotReady",
            "Initialized=True",
            "Ready=False ContainersNotReady",
            "ContainersReady=False ContainersNotReady",
            "PodScheduled=True"
        ]
    );
    bench.ready().take(1, [launched(0, 0), launched(1, 0), Event::Running(0, at(1)), Event::Running(1, at(1))]);
    let told = bench.tell(1);
    insta::assert_json_snapshot!("running", told);
}

#[test]
fn a_container_that_is_not_ready_is_named_in_the_pods_order() {
    let mut bench = Bench::new(two_apps("Always"));
    bench.ready();
    let told = bench.tell(0);
    let ready = told.conditions.as_ref().unwrap().iter().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [web db]"));
    // Statuses are told in order of their names.
    let names: Vec<_> = told.container_statuses.iter().flatten().map(|told| told.name.as_str()).collect();
    assert_eq!(names, ["db", "web"]);
}

#[test]
fn initialisation_is_told() {
    let mut bench = Bench::new(with_init("Never"));
    bench.ready().take(1, [launched(0, 0), Event::Running(0, at(1))]);
    let told = bench.tell(1);
    assert_eq!(
        (phase(&told), state(&told, "init"), state(&told, "web")),
        ("Pending", "Running".into(), "Waiting PodInitializing".into())
    );
    assert_eq!(conditions(&told)[1], "Initialized=False ContainersNotInitialized");
    bench.take(2, [exited(0, 0, 2)]);
    let told = bench.tell(2);
    assert_eq!(conditions(&told)[1], "Initialized=True");
    assert!(container(&told, "init").ready);
    bench.take(3, [launched(1, 0), launched(2, 0), Event::Running(1, at(3)), Event::Running(2, at(3))]);
    assert_eq!(phase(&bench.tell(3)), "Running");
}

#[test]
fn an_init_container_that_failed_for_good_fails_the_pod() {
    let mut bench = Bench::new(with_init("Never"));
    bench.ready().take(1, [launched(0, 0), exited(0, 9, 1)]);
    let told = bench.tell(1);
    assert_eq!((phase(&told), state(&told, "init")), ("Failed", "Terminated 9".into()));
    // The others never had their turn.
    assert_eq!(state(&told, "web"), "Waiting PodInitializing");
}

#[test]
fn an_image_that_does_not_come_is_told_when_it_is_the_containers_turn() {
    let failure = Failure { reason: "ErrImagePull".into(), message: "connection refused".into() };
    let mut bench = Bench::new(two_apps("Always"));
    bench.take(0, [Event::Tick, Event::SandboxReady, Event::VolumesReady, Event::ImageFailed(0, failure.clone())]);
    let told = bench.tell(0);
    assert_eq!(state(&told, "web"), "Waiting ErrImagePull");
    bench.take(2, [Event::Tick]);
    let told = bench.tell(2);
    assert_eq!(state(&told, "web"), "Waiting ImagePullBackOff");
    let waiting = container(&told, "web").state.as_ref().unwrap().waiting.as_ref().unwrap();
    let message = "Back-off pulling image \"nginx:1\": ErrImagePull: connection refused";
    assert_eq!(waiting.message.as_deref(), Some(message));

    let mut bench = Bench::new(with_init("Always"));
    bench.take(0, [Event::Tick, Event::SandboxReady, Event::VolumesReady, Event::ImageFailed(0, failure)]);
    let told = bench.tell(0);
    assert_eq!(
        (state(&told, "init"), state(&told, "web")),
        ("Waiting ErrImagePull".into(), "Waiting PodInitializing".into())
    );
}

#[test]
fn a_crash_loop_is_told() {
    let mut bench = Bench::new(two_apps("Always"));
    bench.ready().take(1, [launched(0, 0), launched(1, 0), Event::Running(0, at(1)), Event::Running(1, at(1))]);
    bench.take(2, [exited(0, 1, 2)]);
    let told = bench.tell(2);
    // About to run again: how it ended is what there is to say, and the other one runs.
    assert_eq!(
        (phase(&told), state(&told, "web"), container(&told, "web").restart_count),
        ("Running", "Terminated 1".into(), 0)
    );
    bench.take(3, [launched(0, 1)]);
    assert_eq!(state(&bench.tell(3), "web"), "Terminated 1");
    bench.take(3, [Event::Running(0, at(3))]);
    let told = bench.tell(3);
    assert_eq!((state(&told, "web"), container(&told, "web").restart_count), ("Running".into(), 1));
    assert!(container(&told, "web").last_state.as_ref().unwrap().terminated.is_some());
    bench.take(4, [exited(0, 1, 4)]);
    let told = bench.tell(4);
    assert_eq!((phase(&told), state(&told, "web")), ("Running", "Waiting CrashLoopBackOff".into()));
    let waiting = container(&told, "web").state.as_ref().unwrap().waiting.as_ref().unwrap();
    let message = "back-off 10s restarting failed container=web pod=web_shop(u1)";
    assert_eq!(waiting.message.as_deref(), Some(message));
}

#[test]
fn a_container_that_could_not_run_tells_why_first() {
    let mut bench = Bench::new(json!({"containers": [{"name": "web", "image": "nginx:1"}]}));
    let failed = |second| {
        let Event::Exited(index, mut exit) = exited(0, 128, second) else { unreachable!("made above") };
        (exit.started_at, exit.reason, exit.message) = (None, "StartError".into(), "exec: not found".into());
        Event::Exited(index, exit)
    };
    bench.ready().take(1, [launched(0, 0), failed(1), launched(0, 1), failed(1)]);
    let told = bench.tell(1);
    let waiting = container(&told, "web").state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("RunContainerError"));
    assert_eq!(waiting.message.as_deref(), Some("exec: not found"));
    bench.take(3, [Event::Tick]);
    assert_eq!(state(&bench.tell(3), "web"), "Waiting CrashLoopBackOff");
}

#[test]
fn the_end_is_told() {
    for (policy, codes, expected) in
        [("Never", [0, 0], "Succeeded"), ("Never", [0, 2], "Failed"), ("OnFailure", [0, 0], "Succeeded")]
    {
        let mut bench = Bench::new(two_apps(policy));
        bench.ready().take(1, [launched(0, 0), launched(1, 0), Event::Running(0, at(1)), Event::Running(1, at(1))]);
        bench.tell(1);
        bench.take(2, [exited(0, codes[0], 2), exited(1, codes[1], 2)]);
        let told = bench.tell(2);
        assert_eq!(phase(&told), expected, "{policy} {codes:?}");
        let reason = if expected == "Succeeded" { "PodCompleted" } else { "PodFailed" };
        assert_eq!(conditions(&told)[2], format!("Ready=False {reason}"));
        // The address stays in the status after the sandbox is gone.
        bench.take(3, [Event::ContainersRemoved, Event::SandboxReleased]);
        let facts = Facts { ips: &[], runtime: "crun", started_at: at(0), now: at(3) };
        let later = status(&bench.pod, &bench.previous, &bench.machine, &facts);
        assert_eq!(later.pod_ip.as_deref(), Some("10.0.0.7"));
        assert_eq!(conditions(&later)[0], "PodReadyToStartContainers=False PodSandboxNotReady");
    }
}

#[test]
fn a_pod_stopped_before_it_ran_has_failed_and_its_containers_are_not_known() {
    let mut bench = Bench::new(two_apps("Always"));
    bench.take(0, [Event::Tick, Event::SandboxReady, Event::VolumesReady, Event::Stop(None), Event::ImageCancelled(0)]);
    let told = bench.tell(1);
    assert_eq!((phase(&told), state(&told, "web")), ("Failed", "Terminated 137".into()));
}

#[test]
fn the_deadline_is_told() {
    let mut spec = two_apps("Always");
    spec["activeDeadlineSeconds"] = json!(60);
    let mut bench = Bench::new(spec);
    bench.ready().take(1, [launched(0, 0), launched(1, 0), Event::Running(0, at(1)), Event::Running(1, at(1))]);
    bench.take(60, [Event::Tick]);
    let told = bench.tell(60);
    assert_eq!((phase(&told), told.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
}

#[test]
fn conditions_of_others_are_kept_and_gates_are_asked() {
    let mut spec = two_apps("Always");
    spec["readinessGates"] = json!([{"conditionType": "example.com/lb"}]);
    let mut bench = Bench::new(spec);
    bench.ready().take(1, [launched(0, 0), launched(1, 0), Event::Running(0, at(1)), Event::Running(1, at(1))]);
    let told = bench.tell(1);
    assert_eq!(conditions(&told)[2], "Ready=False ReadinessGatesNotReady");
    bench.pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "example.com/lb", "status": "True"}]})).unwrap();
    let told = bench.tell(2);
    assert_eq!(conditions(&told)[0], "example.com/lb=True");
    assert!(conditions(&told).contains(&"Ready=True".to_owned()));
}

fn events() -> impl Strategy<Value = Event> {
    let failure = || Failure { reason: "ErrImagePull".into(), message: "no".into() };
    prop_oneof![
        Just(Event::Tick),
        Just(Event::SandboxReady),
        Just(Event::VolumesReady),
        Just(Event::ImageReady(0)),
        Just(Event::ImageFailed(0, failure())),
        (0_usize..3, 0_u32..4).prop_map(|(index, attempt)| launched(index, attempt)),
        (0_usize..3, 0_i64..500).prop_map(|(index, second)| Event::Running(index, at(second))),
        (0_usize..3, 0_i32..2, 0_i64..500).prop_map(|(index, code, second)| exited(index, code, second)),
        (0_usize..3).prop_map(move |index| Event::StartFailed(index, failure())),
        Just(Event::Stop(Some(Duration::from_secs(5)))),
        Just(Event::ContainersRemoved),
        Just(Event::SandboxReleased),
        Just(Event::VolumesReleased),
    ]
}

proptest! {
    #[test]
    fn statuses_are_consistent_whatever_happens(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        events in proptest::collection::vec((events(), 0_i64..40), 0..50),
    ) {
        let mut bench = Bench::new(with_init(policy));
        let mut now = 0;
        let mut before = bench.tell(0);
        for (event, later) in events {
            now += later;
            bench.take(now, [event]);
            let told = bench.tell(now);
            // Succeeded and Failed are for good.
            if is_final(&before) {
                prop_assert_eq!(phase(&told), phase(&before));
            }
            // A ready pod has ready containers only.
            let ready = conditions(&told).contains(&"Ready=True".to_owned());
            prop_assert!(!ready || told.container_statuses.iter().flatten().all(|told| told.ready), "{:?}", told);
            // A running container is the machine's.
            let running = bench.machine.nodes.iter().filter(|node| matches!(node.phase, Phase::Running { .. })).count();
            let all = told.container_statuses.iter().chain(told.init_container_statuses.iter()).flatten();
            let told_running = all.filter(|told| told.state.as_ref().is_some_and(|state| state.running.is_some())).count();
            prop_assert_eq!(running, told_running);
            // Telling again changes nothing, and times change only with their condition.
            prop_assert_eq!(&bench.tell(now + 1), &told);
            for condition in told.conditions.iter().flatten() {
                let old = before.conditions.iter().flatten().find(|old| old.type_ == condition.type_);
                let same = old.is_some_and(|old| old.status == condition.status);
                let dated = old.map(|old| &old.last_transition_time) == Some(&condition.last_transition_time);
                prop_assert!(!same || dated, "{:?} after {:?}", condition, old);
            }
            before = told;
        }
    }
}
