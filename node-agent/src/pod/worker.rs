//! The one task that owns a pod: it takes in what happens, lets the [`Machine`] decide, carries the steps out on tasks of
//! its own, and tells the status.
//!
//! What must survive the agent is on record before a step that relies on it is taken: the end of a run before its container
//! is removed, a generation before it is told.

pub(crate) mod execution;
mod outcome;
mod timing;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::{outcome::Outcome, timing::Timing};
use super::{
    adoption::{self, Seen},
    events::{self, Notice, PodEvent},
    files::ReadyFiles,
    host::Host,
    ledger::{Entry, LedgerError, Record},
    lifecycle::{ContainerKind, Event, Image, Machine, Part, Stage, Step},
    publisher::PodSnapshot,
    restart, status,
    wish::{self, ImageWish, PodWish},
};
use crate::{
    chain::Chain,
    image::{PresentImage, PullPolicy},
    runtime::{Container, ContainerId, ContainerState, PodIdentity},
    sandbox::Sandbox,
};

/// How long a status is held back while a start is under way that will change it again.
const SETTLE_FOR: Duration = Duration::from_millis(200);
/// How many requests and notes wait for a worker at most.
const QUEUE_LENGTH: usize = 16;

/// What a worker is asked.
#[derive(Debug)]
pub(crate) enum Request {
    /// A newer wish for the pod. Answered when it is on record.
    Run { wish: Box<PodWish>, reply: oneshot::Sender<Result<(), LedgerError>> },
    /// The pod is to end.
    Stop { grace: Option<Duration> },
}

/// A pod and everything that is held for it.
#[derive(Debug)]
pub(crate) struct Worker {
    host: Arc<Host>,
    identity: PodIdentity,
    wish: Arc<PodWish>,
    machine: Machine,
    started_at: Timestamp,
    generation: u64,
    /// The status told last.
    status: PodStatus,
    /// Whether it was told that no process is left.
    told_terminated: bool,
    /// An earlier life of this process ran it.
    resumed: bool,
    /// What is on record; absent before the first write.
    on_record: Option<Record>,
    /// Since when there is something to tell.
    untold_since: Option<Instant>,
    sandbox: Option<Sandbox>,
    files: Option<Arc<dyn ReadyFiles>>,
    /// The images that the plan's places mean. It only grows: places stay what they are.
    image_wishes: Vec<ImageWish>,
    /// Images as in the plan.
    images: Vec<Option<PresentImage>>,
    /// The image under each container that runs, which must not go away below it.
    held: Vec<Option<PresentImage>>,
    /// Containers on the host, by place in the plan, not removed yet.
    containers: Vec<(usize, ContainerId)>,
    tasks: JoinSet<Outcome>,
    notes: mpsc::Receiver<outcome::Note>,
    notes_sender: mpsc::Sender<outcome::Note>,
    cancel_images: CancellationToken,
    cancel_starts: CancellationToken,
    timing: Timing,
    /// How long to wait before anything is done.
    delay: Duration,
}

/// A container of an earlier life.
#[derive(Debug)]
pub(crate) struct Found {
    /// The container.
    pub(crate) container: Container,
    /// Where it stood when it was found; with its last words, if it had ended.
    pub(crate) state: ContainerState,
    /// What it runs on, held so that it does not go away below it; none when it has ended, or cannot be found.
    pub(crate) image: Option<PresentImage>,
}

/// How a worker has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing is left of the pod.
    Gone,
    /// The agent ends; the pod goes on.
    LetGo,
    /// The outcome of a step is not known: begin again from the record.
    Lost,
}

/// The asking side of a worker.
pub(crate) type Queue = mpsc::Sender<Request>;

/// A queue for a worker.
pub(crate) fn queue() -> (Queue, mpsc::Receiver<Request>) {
    mpsc::channel(QUEUE_LENGTH)
}

impl Worker {
    /// A pod that is new to this agent.
    pub(crate) fn new(host: Arc<Host>, wish: PodWish) -> (Self, Vec<Event>) {
        let now = host.parts.clock.now();
        let (machine, events) = adoption::begin(wish.plan(now), &wish.pod, now);
        let status = adoption::first_status(&wish.pod);
        (Self::build(host, wish, machine, status, (first_generation(now), now)), events)
    }

    /// A pod that an earlier life of this process ran.
    pub(crate) fn adopted(
        host: Arc<Host>,
        entry: Entry,
        found: Vec<Found>,
        sandbox: Option<Sandbox>,
    ) -> (Self, Vec<Event>) {
        let now = host.parts.clock.now();
        let Entry { wish, record } = entry;
        let started_at = record.as_ref().map_or(now, |record| record.started_at);
        let status = record.as_ref().map_or_else(|| adoption::first_status(&wish.pod), |record| record.status.clone());
        let generation = record.as_ref().map_or_else(|| first_generation(now), |record| record.generation);
        let seen = see(&wish, &found);
        let (machine, events) = adoption::resume(wish.plan(started_at), record, &seen, now);
        let mut worker = Self::build(host, wish, machine, status, (generation, started_at));
        worker.resumed = true;
        worker.timing.skip();
        worker.take_over(found, sandbox);
        (worker, events)
    }

    fn build(
        host: Arc<Host>,
        wish: PodWish,
        machine: Machine,
        status: PodStatus,
        (generation, started_at): (u64, Timestamp),
    ) -> Self {
        let (notes_sender, notes) = mpsc::channel(QUEUE_LENGTH);
        Self {
            identity: wish.identity(),
            started_at,
            generation,
            status,
            told_terminated: false,
            resumed: false,
            on_record: None,
            untold_since: Some(Instant::now()),
            sandbox: None,
            files: None,
            image_wishes: wish.images(),
            images: vec![None; machine.plan.images],
            held: vec![None; machine.plan.containers.len()],
            containers: Vec::new(),
            tasks: JoinSet::new(),
            notes,
            notes_sender,
            cancel_images: CancellationToken::new(),
            cancel_starts: CancellationToken::new(),
            timing: Timing::begin(Instant::now()),
            delay: Duration::ZERO,
            wish: Arc::new(wish),
            machine,
            host,
        }
    }

    /// The same worker, beginning only after `delay`.
    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Takes containers and sandbox of an earlier life into the books, and watches what still runs.
    fn take_over(&mut self, found: Vec<Found>, sandbox: Option<Sandbox>) {
        if self.machine.stage == Stage::Active && sandbox.is_some() {
            self.machine.sandbox = Part::Ready;
        }
        self.sandbox = sandbox;
        for Found { container, state, image } in found {
            let Some(index) = place_of(&self.wish, &container) else { continue };
            self.containers.push((index, container.id.clone()));
            match state {
                ContainerState::Exited(_) => {}
                ContainerState::Starting | ContainerState::Running { .. } => {
                    self.held[index] = image;
                    self.watch(index, container, state, None);
                }
            }
        }
    }

    /// Runs the pod until nothing is left of it, or until the agent ends.
    pub(crate) async fn run(
        mut self,
        begin: Vec<Event>,
        mut requests: mpsc::Receiver<Request>,
        ends: CancellationToken,
    ) -> End {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        for event in begin {
            self.take_in(event);
        }
        self.take_in(Event::Tick);
        while self.machine.stage != Stage::Gone {
            self.tell_when_due();
            let wake = self.next_wake();
            tokio::select! {
                biased;
                // Dropping either wait loses nothing: a channel keeps what it holds, a set its tasks.
                Some(note) = self.notes.recv() => self.take_note(note),
                Some(outcome) = self.tasks.join_next() => match outcome {
                    Ok(outcome) => self.take_outcome(outcome),
                    Err(error) => {
                        error!(pod_uid = self.identity.uid, error = %Chain(&error), "step of pod broke off");
                        self.let_go().await;
                        return End::Lost;
                    }
                },
                request = requests.recv() => match request {
                    Some(request) => self.take_request(request),
                    None => return self.end().await,
                },
                () = ends.cancelled() => return self.end().await,
                () = sleep_until(wake) => self.take_in(Event::Tick),
            }
        }
        self.say_farewell();
        End::Gone
    }

    async fn end(self) -> End {
        self.let_go().await;
        End::LetGo
    }

    fn take_request(&mut self, request: Request) {
        match request {
            Request::Run { wish, reply } => {
                let result = self.renew(*wish);
                // Whoever asked may have gone; the wish is on record all the same.
                let _ = reply.send(result);
            }
            Request::Stop { grace } => {
                info!(pod_uid = self.identity.uid, ?grace, "stop pod");
                self.take_in(Event::Stop(grace));
            }
        }
    }

    /// Takes a newer wish on record. The same wish again changes nothing.
    fn renew(&mut self, wish: PodWish) -> Result<(), LedgerError> {
        if wish == *self.wish {
            return Ok(());
        }
        self.host.parts.ledger.write_wish(&self.identity.uid, &wish)?;
        let plan = wish.plan(self.started_at);
        (self.machine.plan.deadline, self.machine.plan.grace) = (plan.deadline, plan.grace);
        self.wish = Arc::new(wish);
        for index in self.change_images() {
            self.take_in(Event::Replaced(index));
        }
        self.take_in(Event::Updated);
        Ok(())
    }

    /// Brings the plan's images in line with the wish, and says which containers have another one now.
    fn change_images(&mut self) -> Vec<usize> {
        let wish = Arc::clone(&self.wish);
        let mut changed = Vec::new();
        for (index, container) in wish.containers().enumerate().take(self.machine.plan.containers.len()) {
            let wanted = wish::image_of(container);
            let place = self.image_wishes.iter().position(|other| *other == wanted).unwrap_or_else(|| {
                self.image_wishes.push(wanted.clone());
                self.images.push(None);
                self.machine.images.push(Image::Absent);
                self.image_wishes.len() - 1
            });
            let plan = &mut self.machine.plan.containers[index];
            plan.pull_again = wanted.policy == PullPolicy::Always;
            if std::mem::replace(&mut plan.image, place) != place {
                changed.push(index);
            }
        }
        changed
    }

    /// Lets the machine decide on an event, and does what it says.
    fn take_in(&mut self, event: Event) {
        let now = self.host.parts.clock.now();
        let steps = self.machine.handle(event, now);
        self.untold_since.get_or_insert_with(Instant::now);
        self.record_if_changed();
        for step in steps {
            self.take_step(step);
        }
    }

    fn take_step(&mut self, step: Step) {
        match step {
            Step::AnnouncePullBackOff(image) => self.announce_pull_back_off(image),
            Step::AnnounceCrashLoop(index) => self.announce_crash_loop(index),
            Step::AnnounceDeadline => self.tell_event(None, events::deadline_exceeded()),
            Step::CancelImages => self.cancel_images.cancel(),
            Step::CancelStarts => self.cancel_starts.cancel(),
            Step::MakeSandbox
            | Step::SetUpVolumes
            | Step::EnsureImage(_)
            | Step::StartContainer(_)
            | Step::Signal(..)
            | Step::Replace(_)
            | Step::RemoveEnded(_)
            | Step::ReleaseSandbox
            | Step::ReleaseVolumes
            | Step::RemoveContainers
            | Step::Forget => self.execute(step),
        }
    }

    fn announce_pull_back_off(&mut self, image: usize) {
        let Some(reference) = self.image_wishes.get(image).map(|image| image.reference.clone()) else { return };
        for index in self.users_of(image) {
            self.tell_event(Some(index), events::pull_back_off(&reference));
            self.tell_event(Some(index), events::failed("ImagePullBackOff"));
        }
    }

    fn announce_crash_loop(&mut self, index: usize) {
        let Some(container) = self.wish.container(index) else { return };
        let notice = events::crash_loop(&container.name, &status::describe(&self.wish.pod));
        self.tell_event(Some(index), notice);
    }

    /// The containers that run on an image of the plan.
    fn users_of(&self, image: usize) -> Vec<usize> {
        let containers = self.machine.plan.containers.iter().enumerate();
        containers.filter(|(_, plan)| plan.image == image).map(|(index, _)| index).collect()
    }

    fn tell_event(&self, index: Option<usize>, notice: Notice) {
        let container = index.and_then(|index| self.wish.container(index).map(|container| (index, container)));
        let field_path = container.map_or_else(String::new, |(index, container)| {
            let kind = match self.machine.plan.containers[index].kind {
                ContainerKind::Init => "initContainers",
                ContainerKind::App => "containers",
            };
            format!("spec.{kind}{{{}}}", container.name)
        });
        let PodIdentity { uid, namespace, name } = self.identity.clone();
        let time = self.host.parts.clock.now();
        self.host.parts.publisher.event(PodEvent { uid, namespace, name, field_path, notice, time });
    }

    fn next_wake(&self) -> Option<Instant> {
        let now = self.host.parts.clock.now();
        let due =
            self.machine.wake_at().map(|at| Instant::now() + restart::between(now, at).max(Duration::from_millis(1)));
        let settle = self.untold_since.map(|since| since + SETTLE_FOR);
        [due, settle].into_iter().flatten().min()
    }

    /// A status that is about to change again is held back for a moment.
    fn tell_when_due(&mut self) {
        let Some(since) = self.untold_since else { return };
        if self.machine.in_flight() && since.elapsed() < SETTLE_FOR {
            return;
        }
        self.untold_since = None;
        let begun = Instant::now();
        let status = self.compute_status();
        let terminated = self.machine.is_terminated();
        if status != self.status || terminated != self.told_terminated {
            self.told_terminated = terminated;
            self.status = status;
            self.generation += 1;
            self.record_if_changed();
            self.host.parts.publisher.changed(self.snapshot());
        }
        if self.status.phase.as_deref() == Some("Running") {
            self.timing.all_run(&self.identity, &self.host.parts.meters, begun.elapsed());
        }
    }

    fn compute_status(&self) -> PodStatus {
        let facts = status::Facts {
            ips: self.sandbox.as_ref().map_or(&[], |sandbox| &sandbox.ips),
            runtime: &self.host.runtime_name,
            started_at: self.started_at,
            now: self.host.parts.clock.now(),
        };
        status::status(&self.wish.pod, &self.status, &self.machine, &facts)
    }

    fn snapshot(&self) -> PodSnapshot {
        PodSnapshot {
            identity: self.identity.clone(),
            generation: self.generation,
            status: self.status.clone(),
            terminated: self.machine.is_terminated(),
        }
    }

    /// Shows the pod in the list of pods; what there is to tell of it comes when the start has settled.
    pub(crate) fn introduce(&self) {
        self.host.parts.publisher.introduce(self.snapshot());
    }

    /// Writes what has become of the pod, if it is not on record yet.
    fn record_if_changed(&mut self) {
        let record = Record {
            generation: self.generation,
            started_at: self.started_at,
            status: self.status.clone(),
            stage: self.machine.stage,
            nodes: self.machine.nodes.clone(),
        };
        if self.machine.stage == Stage::Gone || self.on_record.as_ref() == Some(&record) {
            return;
        }
        if self.machine.record == Part::Releasing {
            return;
        }
        // On tmpfs: as long as memory takes.
        match self.host.parts.ledger.write_record(&self.identity.uid, &record) {
            Ok(()) => self.on_record = Some(record),
            Err(error) => error!(pod_uid = self.identity.uid, error = %Chain(&error), "write record of pod"),
        }
    }

    fn say_farewell(&mut self) {
        self.status = self.compute_status();
        self.generation += 1;
        self.host.parts.publisher.gone(self.snapshot());
        info!(pod_uid = self.identity.uid, "pod is gone");
    }

    /// The agent ends, the containers live on. Steps under way are finished where that is quick.
    async fn let_go(mut self) {
        self.cancel_images.cancel();
        self.cancel_starts.cancel();
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        self.record_if_changed();
    }
}

/// The newest container of each place in the plan.
fn see(wish: &PodWish, found: &[Found]) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    for Found { container, state, .. } in found {
        let Some(index) = place_of(wish, container) else { continue };
        let newer = Seen { index, run: execution::run_of(container), state: state.clone() };
        match seen.iter_mut().find(|seen| seen.index == index) {
            Some(other) if other.run.attempt >= newer.run.attempt => {}
            Some(other) => *other = newer,
            None => seen.push(newer),
        }
    }
    seen
}

fn place_of(wish: &PodWish, container: &Container) -> Option<usize> {
    wish.containers().position(|other| other.name == container.name)
}

/// Grows across reboots of the host, too, which leave no record.
fn first_generation(now: Timestamp) -> u64 {
    u64::try_from(now.as_millisecond()).unwrap_or_default()
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
