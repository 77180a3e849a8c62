//! How an event changes the state of a pod.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Cause, ContainerKind, Event, Failure, Image, LEAST_GRACE, Machine, Part, Phase, Retry, Run, Stage, Step, Then,
};
use crate::{
    pod::{
        restart::{self, RestartPolicy, Verdict},
        storage::Overuse,
    },
    runtime::ContainerExit,
};

/// How long `ErrImagePull` shows before it becomes `ImagePullBackOff`, and `RunContainerError` before `CrashLoopBackOff`.
const SHOW_ERROR_FOR: Duration = Duration::from_secs(2);

/// The time between SIGTERM and SIGKILL of a pod that is evicted (`immediateEvictionGracePeriodSeconds` of the kubelet).
const EVICTION_GRACE: Duration = Duration::from_secs(1);

impl Machine {
    /// Changes the state by an event. The steps are those that follow from the event itself.
    pub(super) fn take_in(&mut self, event: Event, now: Timestamp) -> Vec<Step> {
        match event {
            Event::Tick => {}
            Event::SandboxReady => self.sandbox.made(),
            Event::SandboxFailed => self.sandbox.make_failed(now),
            Event::VolumesReady => return self.volumes_ready(),
            Event::VolumesFailed => return self.volumes_failed(now),
            Event::ImagePulling(image) => self.image_pulling(image),
            Event::ImageReady(image) => self.set_image(image, Image::Here),
            Event::ImageFailed(image, failure) => self.image_failed(image, failure, now),
            Event::ImageCancelled(image) => self.set_image(image, Image::Absent),
            Event::StartCancelled(index) => self.start_cancelled(index),
            Event::StartFailed(index, failure) => self.start_failed(index, failure, now),
            Event::Launched(index, run) => self.launched(index, run),
            Event::Running(index, since) => self.running(index, since),
            Event::Exited(index, exit) => return self.exited(index, exit, now),
            Event::Updated => return self.updated(now),
            Event::Replaced(index) => return self.replaced(index, now),
            Event::Overused(overuse) => return self.overused(overuse, now),
            Event::Stop(grace) => {
                let grace = grace.unwrap_or(self.plan.grace).max(LEAST_GRACE);
                return self.stop(restart::later(now, grace), Then::Remove);
            }
            Event::SandboxReleased => self.sandbox.released(),
            Event::SandboxReleaseFailed => self.sandbox.release_failed(now),
            Event::VolumesReleased => self.volumes.released(),
            Event::VolumesReleaseFailed => self.volumes.release_failed(now),
            Event::ContainersRemoved => self.remains.released(),
            Event::ContainersRemoveFailed => self.remains.release_failed(now),
            Event::Forgotten => self.record.released(),
            Event::ForgetFailed => self.record.release_failed(now),
        }
        Vec::new()
    }

    fn volumes_ready(&mut self) -> Vec<Step> {
        if let Part::Making { again: true } | Part::Updating { again: true } = self.volumes {
            self.volumes = Part::Updating { again: false };
            return vec![Step::SetUpVolumes];
        }
        if let Part::Making { again: false } | Part::Updating { again: false } = self.volumes {
            self.volumes = Part::Ready;
        }
        Vec::new()
    }

    fn volumes_failed(&mut self, now: Timestamp) -> Vec<Step> {
        match self.volumes {
            // Nothing is there yet. What has come meanwhile may be what was missing, so it is tried at once.
            Part::Making { again: true } => {
                self.volumes = Part::MakeFailed(Retry { at: now, delay: restart::FIRST_DELAY });
                Vec::new()
            }
            // What is there stays, also when bringing it up to date failed.
            Part::Updating { .. } => self.volumes_ready(),
            Part::Absent
            | Part::Making { again: false }
            | Part::Ready
            | Part::MakeFailed(_)
            | Part::Releasing
            | Part::ReleaseFailed(_)
            | Part::Released => {
                self.volumes.make_failed(now);
                Vec::new()
            }
        }
    }

    fn image_pulling(&mut self, image: usize) {
        if let Some(Image::Ensuring { pulling, .. }) = self.images.get_mut(image) {
            *pulling = true;
        }
    }

    fn set_image(&mut self, image: usize, state: Image) {
        if let Some(image) = self.images.get_mut(image) {
            *image = state;
        }
    }

    fn image_failed(&mut self, image: usize, failure: Failure, now: Timestamp) {
        let Some(state) = self.images.get_mut(image) else { return };
        let Image::Ensuring { after, .. } = state else { return };
        let delay = restart::next_delay(*after);
        let error_shows_until = Some(restart::later(now, SHOW_ERROR_FOR));
        let retry = Retry { at: restart::later(now, delay), delay };
        *state = Image::Failed { failure, error_shows_until, retry };
    }

    fn start_cancelled(&mut self, index: usize) {
        if let Some(node) = self.nodes.get_mut(index)
            && node.phase == Phase::Starting
        {
            node.phase = Phase::Waiting;
        }
    }

    fn start_failed(&mut self, index: usize, failure: Failure, now: Timestamp) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        if node.phase == Phase::Starting {
            let retry = Retry { at: restart::later(now, restart::FIRST_DELAY), delay: restart::FIRST_DELAY };
            node.phase = Phase::StartFailed { failure, retry };
        }
    }

    fn launched(&mut self, index: usize, run: Run) {
        // Whatever else was begun is in the worker's books, and goes with the pod.
        let Some(node) = self.nodes.get_mut(index).filter(|node| node.phase == Phase::Starting) else { return };
        node.previous = node.current.take();
        node.current = Some(run);
        node.phase = Phase::Launched;
    }

    fn running(&mut self, index: usize, since: Timestamp) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        if node.phase == Phase::Launched {
            node.phase = Phase::Running { since, stop_sent: false };
        }
    }

    fn exited(&mut self, index: usize, exit: ContainerExit, now: Timestamp) -> Vec<Step> {
        let Some(node) = self.nodes.get_mut(index) else { return Vec::new() };
        if !matches!(node.phase, Phase::Launched | Phase::Running { .. }) {
            return Vec::new();
        }
        if let Some(run) = &mut node.current {
            run.exit = Some(exit.clone());
        }
        let mut steps = self.ended(index, &exit, now);
        steps.push(Step::RemoveEnded(index));
        steps
    }

    /// Decides what becomes of a container whose newest run has ended.
    fn ended(&mut self, index: usize, exit: &ContainerExit, now: Timestamp) -> Vec<Step> {
        let kind = self.plan.containers[index].kind;
        // An init container that succeeded is done, whatever the policy: it is restarted only after a failure.
        let policy = match (kind, self.plan.restart_policy) {
            (ContainerKind::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
            (_, policy) => policy,
        };
        let node = &mut self.nodes[index];
        if self.stage != Stage::Active {
            node.phase = Phase::Ended;
            return Vec::new();
        }
        if node.replaced.take().is_some() {
            (node.phase, node.back_off) = (Phase::Waiting, None);
            return Vec::new();
        }
        match restart::verdict(policy, exit.exit_code == 0, node.back_off, exit.finished_at, now) {
            Verdict::GiveUp => node.phase = Phase::Ended,
            Verdict::RestartAt { at, delay, then } => {
                let never_ran = exit.started_at.is_none() && at > now;
                let error_shows_until = never_ran.then(|| restart::later(now, SHOW_ERROR_FOR).min(at));
                node.back_off = Some(then);
                node.phase = Phase::BackOff { retry: Retry { at, delay }, error_shows_until };
                if at > now && !never_ran {
                    return vec![Step::AnnounceCrashLoop(index)];
                }
            }
        }
        Vec::new()
    }

    fn updated(&mut self, now: Timestamp) -> Vec<Step> {
        if self.stage != Stage::Active {
            return Vec::new();
        }
        for image in &mut self.images {
            if matches!(image, Image::Failed { .. }) {
                *image = Image::Absent;
            }
        }
        for node in &mut self.nodes {
            if matches!(node.phase, Phase::StartFailed { .. }) {
                node.phase = Phase::Waiting;
            }
        }
        match &mut self.volumes {
            Part::MakeFailed(retry) => retry.at = now,
            // New content for volumes that containers are using: put in the place of what is there.
            Part::Ready => {
                self.volumes = Part::Updating { again: false };
                return vec![Step::SetUpVolumes];
            }
            // What is under way may be of the old content: done once more when it has ended.
            Part::Making { again } | Part::Updating { again } => *again = true,
            Part::Absent | Part::Releasing | Part::ReleaseFailed(_) | Part::Released => {}
        }
        Vec::new()
    }

    /// A container runs on as long as it takes to end it; one that waits goes on with the new image.
    fn replaced(&mut self, index: usize, now: Timestamp) -> Vec<Step> {
        let grace = self.plan.grace.max(LEAST_GRACE);
        let Some(node) = self.nodes.get_mut(index).filter(|_| self.stage == Stage::Active) else { return Vec::new() };
        match &mut node.phase {
            Phase::Running { stop_sent, .. } => {
                *stop_sent = true;
                node.replaced = Some(restart::later(now, grace));
                return vec![Step::Replace(index)];
            }
            // Ended as soon as it is seen to run.
            Phase::Starting | Phase::Launched => node.replaced = Some(restart::later(now, grace)),
            Phase::StartFailed { .. } | Phase::BackOff { .. } => {
                (node.phase, node.back_off) = (Phase::Waiting, None);
            }
            Phase::Waiting | Phase::Ended => {}
        }
        Vec::new()
    }

    fn overused(&mut self, overuse: Overuse, now: Timestamp) -> Vec<Step> {
        if self.stage != Stage::Active {
            return Vec::new();
        }
        let mut steps = vec![Step::AnnounceEviction(overuse)];
        steps.extend(self.stop(restart::later(now, EVICTION_GRACE), Then::Keep(Cause::Evicted(overuse))));
        steps
    }

    /// Begins to end the pod, or hastens its end.
    pub(super) fn stop(&mut self, kill_at: Timestamp, then: Then) -> Vec<Step> {
        match &mut self.stage {
            Stage::Active => {
                self.stage = Stage::Stopping { kill_at, then };
                vec![Step::CancelImages, Step::CancelStarts]
            }
            Stage::Stopping { kill_at: planned, then: planned_then } => {
                *planned = (*planned).min(kill_at);
                *planned_then = then;
                Vec::new()
            }
            Stage::Terminal(_) => {
                self.stage = Stage::Removing;
                Vec::new()
            }
            Stage::Removing | Stage::Gone => Vec::new(),
        }
    }
}
