//! What to do next for a pod, given what has happened so far.
//!
//! ```text
//!            every container ended for good, or the deadline passed        StopPod
//!  Active ───────────────────────────────────────────────────> Terminal ──────────┐
//!    │                                                             ^              v
//!    │ StopPod, deadline                        processes gone     │           Removing ──> Gone
//!    └─────────────────────────> Stopping ─────────────────────────┴──────────────^
//! ```
//!
//! In `Active` the sandbox, the volumes and the images are made at the same time; init containers run in order, then all
//! app containers at once. In `Stopping` nothing new is begun, what runs is asked to end and killed at the deadline. In
//! `Terminal` sandbox and volumes are given back, log and status stay. `Removing` takes the rest away.
//!
//! Each event is legal in each state; what no longer matters does nothing. Steps follow from the state alone
//! ([`Machine::advance`]), so a step that failed is simply found due again.
//!
//! Pure: no I/O, no clock, no randomness.

mod advance;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;

use super::restart::{self, BackOff, RestartPolicy, Verdict};
use crate::runtime::{ContainerExit, Signal};

/// How long `ErrImagePull` shows before it becomes `ImagePullBackOff`, and `RunContainerError` before `CrashLoopBackOff`.
const SHOW_ERROR_FOR: Duration = Duration::from_secs(2);
/// A kill that did not end a process is sent again after this time.
const KILL_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// The delay before taking something away is tried again.
const RELEASE_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// The least time between SIGTERM and SIGKILL (`minimumGracePeriodInSeconds` of the kubelet).
pub const LEAST_GRACE: Duration = Duration::from_secs(2);

/// What a pod is to become, as far as its order of steps goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Init containers first, each group in the pod's order.
    pub containers: Vec<ContainerPlan>,
    /// How many distinct images the containers name.
    pub images: usize,
    /// When a container that has ended runs again.
    pub restart_policy: RestartPolicy,
    /// `terminationGracePeriodSeconds`.
    pub grace: Duration,
    /// `activeDeadlineSeconds`, as a point in time.
    pub deadline: Option<Timestamp>,
}

/// One container of a [`Plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerPlan {
    /// Init or app.
    pub kind: ContainerKind,
    /// Which of the plan's images it runs on.
    pub image: usize,
    /// Ask for the image again before each restart (`imagePullPolicy: Always`).
    pub pull_again: bool,
}

/// The two kinds of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerKind {
    /// Runs to its end before the next one starts.
    Init,
    /// Runs beside the others once all init containers are done.
    App,
}

/// Where the pod stands as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Coming up or running.
    Active,
    /// Its processes are being ended.
    Stopping {
        /// When what still runs is killed (again).
        kill_at: Timestamp,
        /// What follows.
        then: Then,
    },
    /// All containers have ended for good; log and status stay until StopPod.
    Terminal(Cause),
    /// Everything that is left is being taken away.
    Removing,
    /// Nothing is left.
    Gone,
}

/// What follows once the processes are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Keep log and status.
    Keep(Cause),
    /// Take everything away.
    Remove,
}

/// Why a pod is terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its containers ended.
    Finished,
    /// `activeDeadlineSeconds` passed.
    DeadlineExceeded,
}

/// A wait before something is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// When.
    pub at: Timestamp,
    /// How long the wait is in all.
    pub delay: Duration,
}

/// The sandbox, or the volumes, or what is left of containers: made, then given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Not there yet.
    Absent,
    /// Under way for the first time: nothing is there.
    Making {
        /// What it is made of has changed meanwhile.
        again: bool,
    },
    /// There.
    Ready,
    /// There, and being brought up to date.
    Updating {
        /// It has changed once more meanwhile.
        again: bool,
    },
    /// It could not be made; tried again.
    MakeFailed(Retry),
    /// On its way out.
    Releasing,
    /// It could not be taken away; tried again.
    ReleaseFailed(Retry),
    /// Taken away.
    Released,
}

/// An image that containers of the pod run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// Nobody has asked for it yet.
    Absent,
    /// Asked for.
    Ensuring {
        /// The registry is at work, so it may take long.
        pulling: bool,
        /// The delay before this try; none for the first.
        after: Option<Duration>,
    },
    /// Here, and held by the pod.
    Here,
    /// Not to be had; tried again.
    Failed {
        /// Reason and message.
        failure: Failure,
        /// From when on the back-off is what shows; absent once it does.
        error_shows_until: Option<Timestamp>,
        /// When it is asked for again.
        retry: Retry,
    },
}

/// Why something did not work: the reason and message of a waiting container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `CreateContainerConfigError`, `ErrImagePull` ...
    pub reason: String,
    /// For people.
    pub message: String,
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The runtime's name for it; empty for a run of which only the API server remembers.
    pub id: String,
    /// 0 for the first run.
    pub attempt: u32,
    /// The image's reference in full.
    pub image: String,
    /// `repository@sha256:...`.
    pub image_id: String,
    /// How it ended, once it has.
    pub exit: Option<ContainerExit>,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Its turn has not come, or something that it needs is missing.
    Waiting,
    /// Being started; no process of it exists yet.
    Starting,
    /// The runtime is at work; a process may exist.
    Launched,
    /// Its process runs.
    Running {
        /// Since when.
        since: Timestamp,
        /// It has been asked to end.
        stop_sent: bool,
    },
    /// It could not be created; tried again.
    StartFailed {
        /// Reason and message.
        failure: Failure,
        /// When it is tried again.
        retry: Retry,
    },
    /// It has ended and runs again later.
    BackOff {
        /// When.
        retry: Retry,
        /// Until when the failure to start is what shows; absent when there was none, or once the back-off shows.
        error_shows_until: Option<Timestamp>,
    },
    /// It has ended for good.
    Ended,
}

/// A container and its past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it stands.
    pub phase: Phase,
    /// The newest run.
    pub current: Option<Run>,
    /// The run before.
    pub previous: Option<Run>,
    /// What is remembered of its restarts.
    pub back_off: Option<BackOff>,
    /// Its image has changed: it is ended, and runs again on the new one. When it is killed (again).
    pub replaced: Option<Timestamp>,
}

impl Node {
    /// A container that has never run.
    pub fn new() -> Self {
        Self { phase: Phase::Waiting, current: None, previous: None, back_off: None, replaced: None }
    }

    /// Number of the run that starts next.
    pub fn next_attempt(&self) -> u32 {
        self.current.as_ref().map_or(0, |run| run.attempt.saturating_add(1))
    }

    /// The newest run that there is something to say of, and the one before it. A run of which no process has been seen
    /// yet does not hide how the last one ended.
    pub fn shown_runs(&self) -> (Option<&Run>, Option<&Run>) {
        match self.phase {
            Phase::Launched => (self.previous.as_ref(), None),
            Phase::Waiting
            | Phase::Starting
            | Phase::Running { .. }
            | Phase::StartFailed { .. }
            | Phase::BackOff { .. }
            | Phase::Ended => (self.current.as_ref(), self.previous.as_ref()),
        }
    }

    fn succeeded(&self) -> bool {
        matches!(self.phase, Phase::Ended)
            && self.current.as_ref().and_then(|run| run.exit.as_ref()).is_some_and(|exit| exit.exit_code == 0)
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

/// Something that has happened. Containers and images are named by their place in the [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The worker has begun, or time has passed.
    Tick,
    /// The sandbox is there.
    SandboxReady,
    /// It is not.
    SandboxFailed,
    /// The volumes are there.
    VolumesReady,
    /// They are not.
    VolumesFailed,
    /// The registry is being asked for an image.
    ImagePulling(usize),
    /// An image is here.
    ImageReady(usize),
    /// It is not.
    ImageFailed(usize, Failure),
    /// The wish for it was taken back.
    ImageCancelled(usize),
    /// A start was taken back before anything was done.
    StartCancelled(usize),
    /// A container could not be created.
    StartFailed(usize, Failure),
    /// The runtime is at work.
    Launched(usize, Run),
    /// The container's process runs.
    Running(usize, Timestamp),
    /// The container has ended.
    Exited(usize, ContainerExit),
    /// What the pod refers to has changed: what failed may work now.
    Updated,
    /// A container's image has changed; its place in the plan is up to date.
    Replaced(usize),
    /// The pod is to end, with this much time to do so; none for the pod's own.
    Stop(Option<Duration>),
    /// The sandbox is given back.
    SandboxReleased,
    /// It is not.
    SandboxReleaseFailed,
    /// The volumes are given back.
    VolumesReleased,
    /// They are not.
    VolumesReleaseFailed,
    /// What was left of the containers is gone.
    ContainersRemoved,
    /// It is not.
    ContainersRemoveFailed,
    /// Record and logs are gone.
    Forgotten,
    /// They are not.
    ForgetFailed,
}

/// Something to do. Most end with an [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ends with `SandboxReady` or `SandboxFailed`.
    MakeSandbox,
    /// Ends with `VolumesReady` or `VolumesFailed`.
    SetUpVolumes,
    /// Ends with `ImageReady`, `ImageFailed` or, after [`Step::CancelImages`], `ImageCancelled`.
    EnsureImage(usize),
    /// Take back all wishes for images that are under way.
    CancelImages,
    /// Ends with `Launched`, `StartFailed` or, after [`Step::CancelStarts`], `StartCancelled`.
    StartContainer(usize),
    /// Take back the starts that have not reached the runtime.
    CancelStarts,
    /// Send a signal; the end is seen as `Exited`.
    Signal(usize, Signal),
    /// Ask a container to end because it is to run on another image; the end is seen as `Exited`.
    Replace(usize),
    /// Remove everything of a container's runs that have ended, but their logs. Nothing waits for it.
    RemoveEnded(usize),
    /// Say that an image is not asked for again before its back-off ends.
    AnnouncePullBackOff(usize),
    /// Say that a container is not started again before its back-off ends.
    AnnounceCrashLoop(usize),
    /// Say that the pod has had its time.
    AnnounceDeadline,
    /// Ends with `SandboxReleased` or `SandboxReleaseFailed`.
    ReleaseSandbox,
    /// Ends with `VolumesReleased` or `VolumesReleaseFailed`.
    ReleaseVolumes,
    /// Ends with `ContainersRemoved` or `ContainersRemoveFailed`.
    RemoveContainers,
    /// Remove the pod's record and logs. Ends with `Forgotten` or `ForgetFailed`.
    Forget,
}

/// A pod's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// What it is to become.
    pub plan: Plan,
    /// Where it stands.
    pub stage: Stage,
    /// Its network and namespaces.
    pub sandbox: Part,
    /// Its volumes.
    pub volumes: Part,
    /// What is left of its containers on the host, apart from logs; `Absent` while they are in use.
    pub remains: Part,
    /// Its record and its logs; `Absent` while they are kept.
    pub record: Part,
    /// Its images, as in the plan.
    pub images: Vec<Image>,
    /// Its containers, as in the plan.
    pub nodes: Vec<Node>,
}

impl Machine {
    /// A pod of which nothing is there yet.
    pub fn new(plan: Plan) -> Self {
        let nodes = vec![Node::new(); plan.containers.len()];
        let images = vec![Image::Absent; plan.images];
        let (sandbox, volumes, remains, record) = (Part::Absent, Part::Absent, Part::Absent, Part::Absent);
        Self { plan, stage: Stage::Active, sandbox, volumes, remains, record, images, nodes }
    }

    /// Takes in an event and says what to do now.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Step> {
        let mut steps = self.take_in(event, now);
        steps.extend(self.advance(now));
        steps
    }

    /// True while a start is under way that is expected to end soon: a status told now would be told again in a moment.
    pub fn in_flight(&self) -> bool {
        if self.stage != Stage::Active {
            return false;
        }
        let parts = [&self.sandbox, &self.volumes].into_iter().any(|part| matches!(part, Part::Making { .. }));
        let images = self.images.iter().any(|image| matches!(image, Image::Ensuring { pulling: false, .. }));
        let starts = self.nodes.iter().any(|node| matches!(node.phase, Phase::Starting | Phase::Launched));
        parts || images || starts
    }

    /// True once every container has ended for good and no process is left.
    pub fn is_terminated(&self) -> bool {
        match self.stage {
            Stage::Terminal(_) | Stage::Removing | Stage::Gone => true,
            Stage::Active | Stage::Stopping { .. } => false,
        }
    }

    /// True when all init containers have succeeded.
    pub fn is_initialized(&self) -> bool {
        self.of_kind(ContainerKind::Init).all(|index| self.nodes[index].succeeded())
    }

    /// The containers of one kind, by index.
    pub(crate) fn of_kind(&self, kind: ContainerKind) -> impl Iterator<Item = usize> + '_ {
        (0..self.plan.containers.len()).filter(move |index| self.plan.containers[*index].kind == kind)
    }

    fn take_in(&mut self, event: Event, now: Timestamp) -> Vec<Step> {
        match event {
            Event::Tick => {}
            Event::SandboxReady => made(&mut self.sandbox),
            Event::SandboxFailed => make_failed(&mut self.sandbox, now),
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
            Event::Stop(grace) => {
                let grace = grace.unwrap_or(self.plan.grace).max(LEAST_GRACE);
                return self.stop(restart::later(now, grace), Then::Remove);
            }
            Event::SandboxReleased => released(&mut self.sandbox),
            Event::SandboxReleaseFailed => release_failed(&mut self.sandbox, now),
            Event::VolumesReleased => released(&mut self.volumes),
            Event::VolumesReleaseFailed => release_failed(&mut self.volumes, now),
            Event::ContainersRemoved => released(&mut self.remains),
            Event::ContainersRemoveFailed => release_failed(&mut self.remains, now),
            Event::Forgotten => released(&mut self.record),
            Event::ForgetFailed => release_failed(&mut self.record, now),
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
                make_failed(&mut self.volumes, now);
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

    fn stop(&mut self, kill_at: Timestamp, then: Then) -> Vec<Step> {
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

fn made(part: &mut Part) {
    if matches!(part, Part::Making { .. }) {
        *part = Part::Ready;
    }
}

fn make_failed(part: &mut Part, now: Timestamp) {
    if matches!(part, Part::Making { .. }) {
        *part = Part::MakeFailed(Retry { at: restart::later(now, restart::FIRST_DELAY), delay: restart::FIRST_DELAY });
    }
}

fn released(part: &mut Part) {
    if *part == Part::Releasing {
        *part = Part::Released;
    }
}

fn release_failed(part: &mut Part, now: Timestamp) {
    if *part == Part::Releasing {
        *part = Part::ReleaseFailed(Retry { at: restart::later(now, RELEASE_AGAIN_AFTER), delay: RELEASE_AGAIN_AFTER });
    }
}
