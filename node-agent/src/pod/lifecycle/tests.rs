use proptest::prelude::*;

use super::*;
use crate::{
    pod::{restart::RestartPolicy, storage::Overuse},
    runtime::{ContainerExit, Signal},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn container(kind: ContainerKind, image: usize) -> ContainerPlan {
    ContainerPlan { kind, image, pull_again: false }
}

fn plan(kinds: &[ContainerKind], restart_policy: RestartPolicy) -> Plan {
    let containers: Vec<_> = kinds.iter().enumerate().map(|(index, kind)| container(*kind, index)).collect();
    Plan { images: containers.len(), containers, restart_policy, grace: Duration::from_secs(30), deadline: None }
}

fn run(attempt: u32) -> Run {
    Run {
        id: format!("id{attempt}"),
        attempt,
        image: "i".into(),
        image_id: "i@sha256:0".into(),
        user: None,
        exit: None,
    }
}

fn exit(exit_code: i32, second: i64) -> ContainerExit {
    ContainerExit {
        exit_code,
        signal: None,
        reason: if exit_code == 0 { "Completed".into() } else { "Error".into() },
        message: String::new(),
        started_at: Some(at(0)),
        finished_at: at(second),
    }
}

use ContainerKind::{App, Init};

/// Brings a pod of one app container to where its process runs.
fn running(restart_policy: RestartPolicy) -> Machine {
    let mut machine = Machine::new(plan(&[App], restart_policy));
    machine.handle(Event::Tick, at(0));
    machine.handle(Event::SandboxReady, at(0));
    machine.handle(Event::VolumesReady, at(0));
    assert_eq!(machine.handle(Event::ImageReady(0), at(0)), [Step::StartContainer(0)]);
    machine.handle(Event::Launched(0, run(0)), at(0));
    machine.handle(Event::Running(0, at(0)), at(0));
    machine
}

#[test]
fn everything_is_begun_at_once() {
    let mut machine = Machine::new(plan(&[Init, App, App], RestartPolicy::Always));
    let steps = machine.handle(Event::Tick, at(0));
    assert_eq!(
        steps,
        [Step::MakeSandbox, Step::SetUpVolumes, Step::EnsureImage(0), Step::EnsureImage(1), Step::EnsureImage(2)]
    );
    assert!(machine.in_flight());
}

#[test]
fn init_containers_come_first_and_one_by_one() {
    let mut machine = Machine::new(plan(&[Init, Init, App], RestartPolicy::Always));
    machine.handle(Event::Tick, at(0));
    for event in [Event::SandboxReady, Event::VolumesReady, Event::ImageReady(2), Event::ImageReady(1)] {
        assert_eq!(machine.handle(event, at(0)), []);
    }
    assert_eq!(machine.handle(Event::ImageReady(0), at(0)), [Step::StartContainer(0)]);
    machine.handle(Event::Launched(0, run(0)), at(0));
    machine.handle(Event::Running(0, at(0)), at(0));
    assert_eq!(machine.handle(Event::Exited(0, exit(0, 1)), at(1)), [Step::RemoveEnded(0), Step::StartContainer(1)]);
    machine.handle(Event::Launched(1, run(0)), at(1));
    // An init container may end before anybody saw it run.
    assert_eq!(machine.handle(Event::Exited(1, exit(0, 2)), at(2)), [Step::RemoveEnded(1), Step::StartContainer(2)]);
    assert!(machine.is_initialized());
}

#[test]
fn a_failed_init_container_ends_the_pod_only_with_policy_never() {
    for (policy, stage) in [
        (RestartPolicy::Never, Stage::Terminal(Cause::Finished)),
        (RestartPolicy::OnFailure, Stage::Active),
        (RestartPolicy::Always, Stage::Active),
    ] {
        let mut machine = Machine::new(plan(&[Init, App], policy));
        for event in [
            Event::Tick,
            Event::SandboxReady,
            Event::VolumesReady,
            Event::ImageReady(0),
            Event::ImageReady(1),
            Event::Launched(0, run(0)),
            Event::Exited(0, exit(3, 1)),
        ] {
            machine.handle(event, at(1));
        }
        assert_eq!(machine.stage, stage, "{policy:?}");
    }
}

#[test]
fn a_crash_is_restarted_at_once_and_then_waits() {
    let mut machine = running(RestartPolicy::Always);
    assert_eq!(machine.handle(Event::Exited(0, exit(1, 5)), at(5)), [Step::RemoveEnded(0), Step::StartContainer(0)]);
    machine.handle(Event::Launched(0, run(1)), at(5));
    machine.handle(Event::Running(0, at(5)), at(5));
    assert_eq!(machine.handle(Event::Exited(0, exit(1, 6)), at(6)), [Step::AnnounceCrashLoop(0), Step::RemoveEnded(0)]);
    assert_eq!(machine.wake_at(), Some(at(16)));
    assert_eq!(machine.handle(Event::Tick, at(15)), []);
    assert_eq!(machine.handle(Event::Tick, at(16)), [Step::StartContainer(0)]);
    assert_eq!(machine.nodes[0].next_attempt(), 2);
}

#[test]
fn a_restart_asks_for_the_image_again_only_when_the_policy_says_so() {
    let mut machine = running(RestartPolicy::Always);
    machine.plan.containers[0].pull_again = true;
    assert_eq!(machine.handle(Event::Exited(0, exit(1, 5)), at(5)), [Step::RemoveEnded(0), Step::EnsureImage(0)]);
    assert_eq!(machine.handle(Event::ImageReady(0), at(5)), [Step::StartContainer(0)]);
}

#[test]
fn a_pull_that_fails_backs_off_and_recovers() {
    let mut machine = Machine::new(plan(&[App], RestartPolicy::Always));
    for event in [Event::Tick, Event::SandboxReady, Event::VolumesReady] {
        machine.handle(event, at(0));
    }
    let failure = Failure { reason: "ErrImagePull".into(), message: "connection refused".into() };
    assert_eq!(machine.handle(Event::ImageFailed(0, failure.clone()), at(0)), []);
    assert_eq!(machine.wake_at(), Some(at(2)));
    assert_eq!(machine.handle(Event::Tick, at(2)), [Step::AnnouncePullBackOff(0)]);
    assert_eq!(machine.wake_at(), Some(at(10)));
    assert_eq!(machine.handle(Event::Tick, at(10)), [Step::EnsureImage(0)]);
    machine.handle(Event::ImageFailed(0, failure), at(11));
    machine.handle(Event::Tick, at(13));
    assert_eq!(machine.wake_at(), Some(at(31)));
    // New credentials are tried at once.
    assert_eq!(machine.handle(Event::Updated, at(14)), [Step::SetUpVolumes, Step::EnsureImage(0)]);
    machine.handle(Event::VolumesReady, at(14));
    assert_eq!(machine.handle(Event::ImageReady(0), at(15)), [Step::StartContainer(0)]);
}

#[test]
fn a_container_that_cannot_be_created_is_tried_again() {
    let mut machine = Machine::new(plan(&[App], RestartPolicy::Never));
    for event in [Event::Tick, Event::SandboxReady, Event::VolumesReady, Event::ImageReady(0)] {
        machine.handle(event, at(0));
    }
    let failure = Failure { reason: "CreateContainerConfigError".into(), message: "configmap \"c\" not found".into() };
    assert_eq!(machine.handle(Event::StartFailed(0, failure.clone()), at(0)), []);
    assert_eq!(machine.handle(Event::Tick, at(10)), [Step::StartContainer(0)]);
    machine.handle(Event::StartFailed(0, failure), at(10));
    let steps = machine.handle(Event::Updated, at(11));
    assert_eq!(steps, [Step::SetUpVolumes, Step::StartContainer(0)]);
}

#[test]
fn run_to_completion_gives_back_everything_but_the_record() {
    let mut machine = running(RestartPolicy::Never);
    let steps = machine.handle(Event::Exited(0, exit(0, 5)), at(5));
    assert_eq!(steps, [Step::RemoveEnded(0), Step::RemoveContainers]);
    assert_eq!(machine.stage, Stage::Terminal(Cause::Finished));
    assert_eq!(machine.handle(Event::ContainersRemoved, at(5)), [Step::ReleaseSandbox, Step::ReleaseVolumes]);
    machine.handle(Event::SandboxReleased, at(5));
    assert_eq!(machine.handle(Event::VolumesReleased, at(5)), []);
    assert_eq!(machine.wake_at(), None);
    assert_eq!(machine.handle(Event::Stop(None), at(9)), [Step::Forget]);
    machine.handle(Event::Forgotten, at(9));
    assert_eq!(machine.stage, Stage::Gone);
}

#[test]
fn stop_asks_then_kills_then_takes_away() {
    let mut machine = running(RestartPolicy::Always);
    let steps = machine.handle(Event::Stop(Some(Duration::from_secs(20))), at(5));
    assert_eq!(steps, [Step::CancelImages, Step::CancelStarts, Step::Signal(0, Signal::Stop)]);
    assert_eq!(machine.wake_at(), Some(at(25)));
    // A shorter grace shortens, a longer one does not prolong.
    machine.handle(Event::Stop(Some(Duration::from_secs(60))), at(6));
    assert_eq!(machine.wake_at(), Some(at(25)));
    machine.handle(Event::Stop(Some(Duration::from_secs(3))), at(6));
    assert_eq!(machine.wake_at(), Some(at(9)));
    assert_eq!(machine.handle(Event::Tick, at(9)), [Step::Signal(0, Signal::Kill)]);
    assert_eq!(machine.handle(Event::Exited(0, exit(137, 9)), at(9)), [Step::RemoveEnded(0), Step::RemoveContainers]);
    machine.handle(Event::ContainersRemoved, at(9));
    machine.handle(Event::SandboxReleaseFailed, at(9));
    machine.handle(Event::VolumesReleased, at(9));
    assert_eq!(machine.wake_at(), Some(at(14)));
    assert_eq!(machine.handle(Event::Tick, at(14)), [Step::ReleaseSandbox]);
    assert_eq!(machine.handle(Event::SandboxReleased, at(14)), [Step::Forget]);
    machine.handle(Event::Forgotten, at(14));
    assert_eq!(machine.stage, Stage::Gone);
}

#[test]
fn stop_while_pulling_waits_for_nothing_but_the_cancelled_pull() {
    let mut machine = Machine::new(plan(&[App], RestartPolicy::Always));
    for event in [Event::Tick, Event::SandboxReady, Event::VolumesReady, Event::ImagePulling(0)] {
        machine.handle(event, at(0));
    }
    assert!(!machine.in_flight());
    assert_eq!(machine.handle(Event::Stop(None), at(1)), [Step::CancelImages, Step::CancelStarts]);
    assert_eq!(machine.handle(Event::ImageCancelled(0), at(1)), [Step::RemoveContainers]);
}

#[test]
fn the_deadline_ends_the_pod_but_keeps_its_status() {
    let mut machine = running(RestartPolicy::Always);
    machine.plan.deadline = Some(at(60));
    assert_eq!(machine.wake_at(), Some(at(60)));
    assert_eq!(
        machine.handle(Event::Tick, at(60)),
        [Step::AnnounceDeadline, Step::CancelImages, Step::CancelStarts, Step::Signal(0, Signal::Stop)]
    );
    assert_eq!(machine.handle(Event::Tick, at(61)), []);
    machine.handle(Event::Exited(0, exit(143, 61)), at(61));
    assert_eq!(machine.stage, Stage::Terminal(Cause::DeadlineExceeded));
}

#[test]
fn a_pod_that_takes_too_much_is_ended_at_once_and_keeps_its_status() {
    let mut machine = running(RestartPolicy::Always);
    assert_eq!(
        machine.handle(Event::Overused(Overuse::Pod), at(60)),
        [Step::AnnounceEviction(Overuse::Pod), Step::CancelImages, Step::CancelStarts, Step::Signal(0, Signal::Stop)]
    );
    // Measured once more while it ends.
    assert_eq!(machine.handle(Event::Overused(Overuse::Container(0)), at(60)), []);
    assert_eq!(machine.handle(Event::Tick, at(61)), [Step::Signal(0, Signal::Kill)]);
    machine.handle(Event::Exited(0, exit(137, 61)), at(61));
    assert_eq!(machine.stage, Stage::Terminal(Cause::Evicted(Overuse::Pod)));
}

#[test]
fn volumes_that_were_never_made_are_not_used_whatever_comes_meanwhile() {
    let mut machine = Machine::new(plan(&[App], RestartPolicy::Always));
    for event in [Event::Tick, Event::SandboxReady, Event::ImageReady(0)] {
        machine.handle(event, at(0));
    }
    // A second wish comes while the volumes are made, and what they need is in neither.
    assert_eq!(machine.handle(Event::Updated, at(1)), []);
    assert_eq!(machine.handle(Event::VolumesFailed, at(2)), [Step::SetUpVolumes]);
    assert_eq!(machine.handle(Event::VolumesFailed, at(3)), []);
    assert!(matches!(machine.volumes, Part::MakeFailed(_)));
    // The third has it.
    assert_eq!(machine.handle(Event::Updated, at(4)), [Step::SetUpVolumes]);
    assert_eq!(machine.handle(Event::VolumesReady, at(5)), [Step::StartContainer(0)]);
}

#[test]
fn volumes_that_changed_while_they_were_made_are_used_and_brought_up_to_date() {
    let mut machine = Machine::new(plan(&[App], RestartPolicy::Always));
    for event in [Event::Tick, Event::SandboxReady, Event::ImageReady(0), Event::Updated] {
        machine.handle(event, at(0));
    }
    assert_eq!(machine.handle(Event::VolumesReady, at(1)), [Step::SetUpVolumes, Step::StartContainer(0)]);
    assert_eq!(machine.handle(Event::VolumesFailed, at(2)), []);
    assert_eq!(machine.volumes, Part::Ready);
}

#[test]
fn a_container_runs_again_on_its_new_image() {
    let mut machine = running(RestartPolicy::Never);
    machine.plan.containers[0].image = 1;
    machine.images.push(Image::Absent);
    assert_eq!(machine.handle(Event::Replaced(0), at(5)), [Step::Replace(0)]);
    assert_eq!(machine.wake_at(), Some(at(35)));
    assert_eq!(machine.handle(Event::Tick, at(35)), [Step::Signal(0, Signal::Kill)]);
    let steps = machine.handle(Event::Exited(0, exit(137, 35)), at(35));
    assert_eq!(steps, [Step::RemoveEnded(0), Step::EnsureImage(1)]);
    assert_eq!(machine.handle(Event::ImageReady(1), at(36)), [Step::StartContainer(0)]);
    assert_eq!(machine.nodes[0].next_attempt(), 1);
}

fn failures() -> impl Strategy<Value = Failure> {
    Just(Failure { reason: "ErrImagePull".into(), message: "no".into() })
}

fn events(containers: usize) -> impl Strategy<Value = Event> {
    let index = 0..=containers; // one out of range
    prop_oneof![
        Just(Event::Tick),
        Just(Event::SandboxReady),
        Just(Event::SandboxFailed),
        Just(Event::VolumesReady),
        Just(Event::VolumesFailed),
        index.clone().prop_map(Event::ImagePulling),
        index.clone().prop_map(Event::ImageReady),
        (index.clone(), failures()).prop_map(|(i, f)| Event::ImageFailed(i, f)),
        index.clone().prop_map(Event::ImageCancelled),
        index.clone().prop_map(Event::StartCancelled),
        (index.clone(), failures()).prop_map(|(i, f)| Event::StartFailed(i, f)),
        (index.clone(), 0_u32..5).prop_map(|(i, attempt)| Event::Launched(i, run(attempt))),
        (index.clone(), 0_i64..1000).prop_map(|(i, s)| Event::Running(i, at(s))),
        (index, 0_i32..3, 0_i64..1000).prop_map(|(i, code, s)| Event::Exited(i, exit(code, s))),
        Just(Event::Updated),
        (0..=containers).prop_map(Event::Replaced),
        Just(Event::Overused(Overuse::Pod)),
        (0_u64..100).prop_map(|s| Event::Stop(Some(Duration::from_secs(s)))),
        Just(Event::SandboxReleased),
        Just(Event::SandboxReleaseFailed),
        Just(Event::VolumesReleased),
        Just(Event::VolumesReleaseFailed),
        Just(Event::ContainersRemoved),
        Just(Event::ContainersRemoveFailed),
        Just(Event::Forgotten),
        Just(Event::ForgetFailed),
    ]
}

fn policies() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)]
}

/// Does what a step asks for, as a host that never fails would.
fn obey(machine: &mut Machine, step: Step, now: Timestamp) -> Vec<Step> {
    let event = match step {
        Step::MakeSandbox => Event::SandboxReady,
        Step::SetUpVolumes => Event::VolumesReady,
        Step::EnsureImage(image) => Event::ImageReady(image),
        Step::CancelImages => {
            let busy = (0..machine.images.len())
                .filter(|index| matches!(machine.images[*index], Image::Ensuring { .. }))
                .collect::<Vec<_>>();
            return busy.into_iter().flat_map(|image| machine.handle(Event::ImageCancelled(image), now)).collect();
        }
        Step::CancelStarts => {
            let busy = (0..machine.nodes.len())
                .filter(|index| machine.nodes[*index].phase == Phase::Starting)
                .collect::<Vec<_>>();
            return busy.into_iter().flat_map(|index| machine.handle(Event::StartCancelled(index), now)).collect();
        }
        Step::StartContainer(index) => {
            let run = run(machine.nodes[index].next_attempt());
            let mut steps = machine.handle(Event::Launched(index, run), now);
            steps.extend(machine.handle(Event::Running(index, now), now));
            return steps;
        }
        Step::Signal(index, _) | Step::Replace(index) => Event::Exited(index, exit(143, 0)),
        Step::RemoveEnded(_)
        | Step::AnnouncePullBackOff(_)
        | Step::AnnounceCrashLoop(_)
        | Step::AnnounceDeadline
        | Step::AnnounceEviction(_) => {
            return Vec::new();
        }
        Step::ReleaseSandbox => Event::SandboxReleased,
        Step::ReleaseVolumes => Event::VolumesReleased,
        Step::RemoveContainers => Event::ContainersRemoved,
        Step::Forget => Event::Forgotten,
    };
    machine.handle(event, now)
}

fn rank(stage: Stage) -> u8 {
    match stage {
        Stage::Active => 0,
        Stage::Stopping { .. } => 1,
        Stage::Terminal(_) => 2,
        Stage::Removing => 3,
        Stage::Gone => 4,
    }
}

proptest! {
    /// Every event is legal in every state, stages only go forward, and no timer is left in the past.
    #[test]
    fn any_events_in_any_order(
        policy in policies(),
        events in proptest::collection::vec((events(3), 0_i64..50), 0..60),
    ) {
        let mut machine = Machine::new(plan(&[Init, App, App], policy));
        let mut now = 0;
        for (event, later) in events {
            now += later;
            let before = rank(machine.stage);
            machine.handle(event, at(now));
            prop_assert!(rank(machine.stage) >= before);
            if let Some(wake) = machine.wake_at() {
                prop_assert!(wake > at(now), "{wake} is not after {}", at(now));
            }
        }
    }

    /// On a host that obeys, a pod stopped at any moment is gone, and what was made has been given back.
    #[test]
    fn stop_ends_it_on_a_host_that_obeys(policy in policies(), before in 0_usize..30, exits in any::<bool>()) {
        let mut machine = Machine::new(plan(&[Init, App, App], policy));
        let mut steps: std::collections::VecDeque<Step> = machine.handle(Event::Tick, at(0)).into();
        let mut made = std::collections::BTreeSet::new();
        let mut obeyed = 0;
        let mut now = 0;
        let mut stopped = false;
        loop {
            now += 1;
            prop_assert!(now < 2_000, "not gone: {machine:?}");
            if obeyed >= before && !stopped {
                stopped = true;
                steps.extend(machine.handle(Event::Stop(Some(Duration::from_secs(5))), at(now)));
            }
            let Some(step) = steps.pop_front() else {
                if machine.stage == Stage::Gone {
                    break;
                }
                // Init containers end by themselves; in half of the cases the others do, too.
                let runs = |index: &usize| matches!(machine.nodes[*index].phase, Phase::Running { .. });
                let ends = (0..3).filter(runs).find(|index| *index == 0 || exits);
                let event = ends.map_or(Event::Tick, |index| Event::Exited(index, exit(0, now)));
                steps.extend(machine.handle(event, at(now)));
                obeyed += 1;
                continue;
            };
            made.insert(format!("{step:?}"));
            let more = obey(&mut machine, step, at(now));
            steps.extend(more);
            obeyed += 1;
        }
        for release in ["RemoveContainers", "ReleaseSandbox", "ReleaseVolumes", "Forget"] {
            prop_assert!(made.contains(release), "{release} is missing from {made:?}");
        }
    }

    #[test]
    fn gone_absorbs(events in proptest::collection::vec(events(1), 0..40)) {
        let mut machine = Machine::new(plan(&[App], RestartPolicy::Always));
        machine.stage = Stage::Gone;
        for event in events {
            machine.handle(event, at(0));
            prop_assert_eq!(machine.stage, Stage::Gone);
        }
    }
}
