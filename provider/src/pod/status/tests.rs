//! Tables and properties of the write-back.

use proptest::prelude::*;

use super::*;
use crate::cluster::fake::strategic;

fn pod(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

fn status(value: Value) -> PodStatus {
    serde_json::from_value(value).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn situation(pod: &Pod) -> Situation<'_> {
    Situation { pod, failure: None, host_ip: Some("10.0.0.1"), handed_over: Some(1), resize: None, now: at(1000) }
}

/// Applies the patch as the API server would.
fn applied(pod: &Pod, wanted: &PodStatus) -> Pod {
    let current = pod.status.clone().unwrap_or_default();
    let mut value = serde_json::to_value(pod).unwrap();
    if let Some(patch) = patch(&canonical(&current), &canonical(wanted)) {
        strategic(&mut value, &patch);
    }
    serde_json::from_value(value).unwrap()
}

fn scheduled() -> Value {
    json!({
        "metadata": {"name": "p", "uid": "u"},
        "spec": {"containers": [{"name": "c"}]},
        "status": {
            "phase": "Pending", "qosClass": "Burstable",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "example.com/theirs", "status": "False"}
            ]
        }
    })
}

fn running() -> PodStatus {
    status(json!({
        "phase": "Running", "podIP": "10.244.0.2", "startTime": "2026-01-01T00:00:05Z",
        "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:06Z"},
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:06Z"}
        ],
        "containerStatuses": [{
            "name": "c", "image": "i", "imageID": "i@d", "ready": true, "restartCount": 0, "started": true, "lastState": {},
            "state": {"running": {"startedAt": "2026-01-01T00:00:05Z"}}
        }]
    }))
}

#[test]
fn others_conditions_live_on_and_ours_are_merged() {
    let pod = pod(scheduled());
    let wanted = wanted(&situation(&pod), Reported::State(&running())).unwrap();
    let patch = patch(&canonical(pod.status.as_ref().unwrap()), &canonical(&wanted)).unwrap();
    let names: Vec<_> = patch["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].clone()).collect();
    assert_eq!(names, ["Ready"]);
    assert_eq!(patch["status"].get("qosClass"), None);
    let after = applied(&pod, &wanted).status.unwrap();
    assert_eq!(after.phase.as_deref(), Some("Running"));
    assert_eq!(after.host_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(after.pod_ips.unwrap()[0].ip, "10.244.0.2");
    assert_eq!(after.conditions.unwrap().len(), 3);
    assert_eq!(after.observed_generation, Some(1));
}

#[test]
fn written_once_nothing_is_left_to_write() {
    let before = pod(scheduled());
    let after = applied(&before, &wanted(&situation(&before), Reported::State(&running())).unwrap());
    let again = wanted(&situation(&after), Reported::State(&running())).unwrap();
    assert_eq!(patch(&canonical(after.status.as_ref().unwrap()), &canonical(&again)), None);
}

#[test]
fn a_transition_keeps_its_time_until_the_status_changes() {
    let before = pod(scheduled());
    let after = applied(&before, &wanted(&situation(&before), Reported::State(&running())).unwrap());
    let mut later = running();
    later.conditions.as_mut().unwrap()[0].last_transition_time = Some(Time(at(99)));
    let same = wanted(&situation(&after), Reported::State(&later)).unwrap();
    assert_eq!(patch(&canonical(after.status.as_ref().unwrap()), &canonical(&same)), None);
    later.conditions.as_mut().unwrap()[0].status = "False".into();
    let changed = wanted(&situation(&after), Reported::State(&later)).unwrap();
    assert_eq!(changed.conditions.unwrap()[0].last_transition_time, Some(Time(at(99))));
}

#[test]
fn an_address_that_changed_replaces_the_old_one() {
    let before = pod(scheduled());
    let after = applied(&before, &wanted(&situation(&before), Reported::State(&running())).unwrap());
    let mut moved = running();
    moved.pod_ip = Some("10.244.0.9".into());
    let moved = applied(&after, &wanted(&situation(&after), Reported::State(&moved)).unwrap());
    let addresses: Vec<_> = moved.status.unwrap().pod_ips.unwrap().into_iter().map(|address| address.ip).collect();
    assert_eq!(addresses, ["10.244.0.9"]);
}

#[test]
fn a_failure_is_shown_and_cleared_when_the_pod_runs() {
    let before = pod(scheduled());
    let failure = Failure { reason: "ProviderFailed".into(), message: "no disk".into(), permanent: true };
    let failing = Situation { failure: Some(&failure), ..situation(&before) };
    let shown = applied(&before, &wanted(&failing, Reported::Nothing).unwrap());
    let status = shown.status.clone().unwrap();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Pending"), Some("ProviderFailed")));
    let after = applied(&shown, &wanted(&situation(&shown), Reported::State(&running())).unwrap()).status.unwrap();
    assert_eq!((after.reason.as_deref(), after.message.as_deref()), (None, None));
    let created = find(&after, INSTANCE_CREATED).unwrap();
    assert_eq!((created.status.as_str(), created.reason.as_deref()), ("True", None));
}

#[test]
fn conditions_that_the_agent_only_gives_back_are_not_written_again() {
    let before = pod(scheduled());
    let failure = Failure { reason: "ImageCacheNotComplete".into(), message: "not yet".into(), permanent: false };
    let failing = Situation { failure: Some(&failure), ..situation(&before) };
    let shown = applied(&before, &wanted(&failing, Reported::Nothing).unwrap());
    let mut echo = running();
    let stale = find(shown.status.as_ref().unwrap(), INSTANCE_CREATED).unwrap().clone();
    let gate = PodCondition { type_: "example.com/gate".into(), status: "False".into(), ..PodCondition::default() };
    echo.conditions.get_or_insert_default().extend([stale, gate.clone()]);
    let after = applied(&shown, &wanted(&situation(&shown), Reported::State(&echo)).unwrap());
    assert_eq!(find(after.status.as_ref().unwrap(), INSTANCE_CREATED).unwrap().status, "True");
    let mut after = after;
    let opened = PodCondition { status: "True".into(), ..gate };
    after.status.as_mut().unwrap().conditions.as_mut().unwrap().push(opened);
    let again = wanted(&situation(&after), Reported::State(&echo)).unwrap();
    assert_eq!(patch(&canonical(after.status.as_ref().unwrap()), &canonical(&again)), None);
}

#[test]
fn a_pod_that_never_restarts_fails_for_good() {
    let mut value = scheduled();
    value["spec"]["restartPolicy"] = "Never".into();
    let before = pod(value);
    let failure = Failure { reason: "ProviderFailed".into(), message: "no".into(), permanent: true };
    let failing = Situation { failure: Some(&failure), ..situation(&before) };
    assert_eq!(wanted(&failing, Reported::Nothing).unwrap().phase.as_deref(), Some("Failed"));
    let passing = Failure { permanent: false, ..failure };
    let passing = Situation { failure: Some(&passing), ..situation(&before) };
    assert_eq!(wanted(&passing, Reported::Nothing).unwrap().phase.as_deref(), Some("Pending"));
}

#[test]
fn an_end_is_final_and_every_container_has_one() {
    let before = pod(scheduled());
    let after = applied(&before, &wanted(&situation(&before), Reported::State(&running())).unwrap());
    let over = wanted(&situation(&after), Reported::Last(&running())).unwrap();
    assert_eq!(over.phase.as_deref(), Some("Failed"));
    let end = over.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

#[test]
fn what_somebody_else_declared_failed_stays_so() {
    let mut value = scheduled();
    value["status"]["phase"] = "Failed".into();
    value["status"]["reason"] = "Evicted".into();
    let evicted = pod(value);
    let wanted = wanted(&situation(&evicted), Reported::State(&running())).unwrap();
    assert_eq!((wanted.phase.as_deref(), wanted.reason.as_deref()), (Some("Failed"), Some("Evicted")));
}

#[test]
fn containers_that_the_host_lost_are_lost_only_where_they_may_not_start_again() {
    let before = pod(scheduled());
    let mut after = applied(&before, &wanted(&situation(&before), Reported::State(&running())).unwrap());
    assert_eq!(wanted(&situation(&after), Reported::Nothing), None);
    after.spec.as_mut().unwrap().restart_policy = Some("Never".into());
    assert!(is_lost_without_agent(&after));
    let lost = wanted(&situation(&after), Reported::Nothing).unwrap();
    assert_eq!(lost.phase.as_deref(), Some("Failed"));
    assert!(!is_lost_without_agent(&pod(scheduled())));
}

fn phases() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["Pending", "Running", "Succeeded", "Failed", "Unknown"])
}

prop_compose! {
    fn statuses()(
        phase in phases(), reason in proptest::option::of("[a-z]{0,3}"), ip in proptest::option::of(0u8..4),
        ready in any::<bool>(), restarts in 0..3, ended in proptest::option::of(0..2), second in 0i64..100_000,
    ) -> PodStatus {
        let state = match ended {
            Some(code) => json!({"terminated": {"exitCode": code}}),
            None => json!({"running": {}}),
        };
        let time = Time(at(second));
        status(json!({
            "phase": phase, "reason": reason, "podIP": ip.map(|n| format!("10.0.0.{n}")), "startTime": time,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": time}],
            "containerStatuses": [{
                "name": "c", "image": "i", "imageID": "", "ready": ready, "restartCount": restarts, "state": state
            }]
        }))
    }
}

proptest! {
    #[test]
    fn a_final_phase_never_changes_and_writing_settles(history in proptest::collection::vec((statuses(), any::<bool>()), 1..8)) {
        let mut current = pod(scheduled());
        for (status, last) in &history {
            let reported = if *last { Reported::Last(status) } else { Reported::State(status) };
            let before = current.status.clone().unwrap();
            let next = wanted(&situation(&current), reported).unwrap();
            current = applied(&current, &next);
            let after = current.status.clone().unwrap();
            if is_terminal(before.phase.as_deref()) {
                prop_assert_eq!(&after.phase, &before.phase);
            }
            prop_assert!(!last || is_terminal(after.phase.as_deref()));
            prop_assert!(find(&after, "PodScheduled").is_some() && find(&after, "example.com/theirs").is_some());
            prop_assert_eq!(after.qos_class.as_deref(), Some("Burstable"));
            let again = wanted(&situation(&current), reported).unwrap();
            prop_assert_eq!(patch(&canonical(&after), &canonical(&again)), None);
        }
    }
}

#[test]
fn a_resize_that_is_not_done_is_told_and_taken_back() {
    let before = pod(scheduled());
    let pending = PodCondition {
        type_: resize::PENDING.into(),
        status: "True".into(),
        reason: Some("Infeasible".into()),
        observed_generation: Some(2),
        ..PodCondition::default()
    };
    let resized = Situation { resize: Some(pending), ..situation(&before) };
    let told = applied(&before, &wanted(&resized, Reported::State(&running())).unwrap());
    let condition = find(told.status.as_ref().unwrap(), resize::PENDING).unwrap();
    assert_eq!((condition.reason.as_deref(), condition.observed_generation), (Some("Infeasible"), Some(2)));
    assert_eq!(condition.last_transition_time, Some(Time(at(1000))));
    let after = applied(&told, &wanted(&situation(&told), Reported::State(&running())).unwrap()).status.unwrap();
    assert_eq!(find(&after, resize::PENDING), None);
    assert_eq!(after.conditions.unwrap().len(), 3);
}

#[test]
fn only_a_pod_whose_first_containers_are_being_made_is_on_its_way() {
    let with = |container: Value| status(json!({"phase": "Pending", "containerStatuses": [container]}));
    let container = |state: Value, restarts: i32| json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state});
    let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
    assert!(is_on_its_way(&PodStatus::default()));
    for reason in ["ContainerCreating", "PodInitializing"] {
        assert!(is_on_its_way(&with(container(waiting(reason), 0))), "{reason}");
        assert!(!is_on_its_way(&with(container(waiting(reason), 1))), "{reason} again");
    }
    for reason in ["ErrImagePull", "ImagePullBackOff", "CrashLoopBackOff", "CreateContainerConfigError"] {
        assert!(!is_on_its_way(&with(container(waiting(reason), 0))), "{reason}");
    }
    assert!(!is_on_its_way(&with(container(json!({"terminated": {"exitCode": 1}}), 0))));
    assert!(!is_on_its_way(&running()));
}
