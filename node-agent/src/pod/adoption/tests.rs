use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::pod::{lifecycle::ContainerPlan, restart::RestartPolicy};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn plan(init: usize, app: usize) -> Plan {
    let kinds = [vec![ContainerKind::Init; init], vec![ContainerKind::App; app]].concat();
    Plan {
        containers: kinds.into_iter().map(|kind| ContainerPlan { kind, image: 0, pull_again: false }).collect(),
        images: 1,
        restart_policy: RestartPolicy::Always,
        grace: Duration::from_secs(30),
        deadline: None,
    }
}

/// A container's status as the API server may have it, less its name.
fn told() -> impl Strategy<Value = Value> {
    let states = vec![
        json!({}),
        json!({"waiting": {"reason": "CrashLoopBackOff"}}),
        json!({"running": {}}),
        json!({"terminated": {"exitCode": 3}}),
    ];
    let state = proptest::sample::select(states);
    (state.clone(), state, any::<i32>()).prop_map(|(state, last_state, restarts)| {
        json!({
            "image": "i", "imageID": "i", "ready": false, "restartCount": restarts, "containerID": "larder://id",
            "state": state, "lastState": last_state,
        })
    })
}

/// A pod with a status for some of its containers.
fn pod(init: &[Option<Value>], app: &[Option<Value>], phase: Option<&str>) -> Pod {
    let named = |group: &str, told: &[Option<Value>]| {
        let specs = (0..told.len()).map(|n| json!({"name": format!("{group}{n}")})).collect::<Vec<_>>();
        let statuses = told.iter().enumerate().filter_map(|(n, told)| {
            let mut told = told.clone()?;
            told["name"] = json!(format!("{group}{n}"));
            Some(told)
        });
        (specs, statuses.collect::<Vec<_>>())
    };
    let (init, init_told) = named("i", init);
    let (app, app_told) = named("a", app);
    serde_json::from_value(json!({
        "spec": {"initContainers": init, "containers": app},
        "status": {"phase": phase, "initContainerStatuses": init_told, "containerStatuses": app_told},
    }))
    .unwrap()
}

fn exited(events: &[Event]) -> Vec<usize> {
    let place = |event: &Event| {
        let Event::Exited(index, _) = event else { panic!("{event:?}") };
        *index
    };
    events.iter().map(place).collect()
}

fn launched(machine: &Machine) -> Vec<usize> {
    let nodes = machine.nodes.iter().enumerate();
    nodes.filter(|(_, node)| node.phase == Phase::Launched).map(|(index, _)| index).collect()
}

proptest! {
    #[test]
    fn a_pod_goes_on_from_what_the_api_server_remembers(
        init in proptest::collection::vec(proptest::option::of(told()), 0..4),
        app in proptest::collection::vec(proptest::option::of(told()), 0..4),
        phase in proptest::option::of(proptest::sample::select(vec!["Pending", "Running", "Succeeded", "Failed", "Odd"])),
    ) {
        let pod = pod(&init, &app, phase);
        let (machine, events) = begin(plan(init.len(), app.len()), &pod, NOW);
        let over = matches!(phase, Some("Succeeded" | "Failed"));
        prop_assert_eq!(machine.stage == Stage::Terminal(Cause::Finished), over);
        prop_assert_eq!(machine.nodes.len(), init.len() + app.len());
        for (node, told) in machine.nodes.iter().zip(init.iter().chain(&app)) {
            let has_run = told.as_ref().is_some_and(|told| {
                told["state"]["running"].is_object()
                    || told["state"]["terminated"].is_object()
                    || told["lastState"]["terminated"].is_object()
            });
            prop_assert_eq!(node.current.is_some(), has_run);
            if let (Some(run), Some(told)) = (&node.current, told) {
                // A count never starts anew.
                let restarts = told["restartCount"].as_i64().unwrap().max(0);
                prop_assert_eq!((i64::from(run.attempt), run.id.as_str()), (restarts, "id"));
            }
            prop_assert!(!over || matches!(node.phase, Phase::Ended | Phase::Waiting));
        }
        // Whatever counts as launched is told to have ended: no process of it is left that could say so itself.
        prop_assert_eq!(exited(&events), launched(&machine));
        prop_assert!(!over || events.is_empty());
        prop_assert!(events.is_empty() || launched(&machine).iter().all(|index| *index >= init.len()));
    }

    #[test]
    fn every_container_that_is_found_is_met_and_every_one_that_is_lost_is_told(
        recorded in proptest::collection::vec(proptest::option::of(0_u32..4), 1..5),
        found in proptest::collection::vec(proptest::option::of(0_u32..4), 5),
    ) {
        let run = |attempt| Run {
            id: format!("run{attempt}"),
            attempt,
            image: "i".to_owned(),
            image_id: "i".to_owned(),
            user: None,
            exit: None,
        };
        let plan = plan(0, recorded.len());
        let nodes = recorded.iter().map(|attempt| Node {
            phase: if attempt.is_some() { Phase::Launched } else { Phase::Waiting },
            current: attempt.map(run),
            ..Node::new()
        });
        let record = Record {
            generation: 1,
            started_at: NOW,
            status: PodStatus::default(),
            stage: Stage::Active,
            nodes: nodes.collect(),
        };
        let seen: Vec<Seen> = found
            .iter()
            .take(recorded.len())
            .enumerate()
            .filter_map(|(index, attempt)| {
                Some(Seen { index, run: run((*attempt)?), state: ContainerState::Exited(lost(NOW)) })
            })
            .collect();
        let (machine, events) = resume(plan, Some(record), &seen, NOW);
        // What runs or ran has an end; what was never begun has none.
        prop_assert_eq!(exited(&events), launched(&machine));
        for (index, node) in machine.nodes.iter().enumerate() {
            let newest = recorded[index].max(found[index]);
            prop_assert_eq!(node.current.as_ref().map(|run| run.attempt), newest);
            prop_assert_eq!(node.phase == Phase::Launched, newest.is_some());
        }
    }
}
