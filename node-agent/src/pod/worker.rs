//! The one task that owns a pod: it takes in what happens, lets the [`Machine`] decide, carries the steps out on tasks of
//! its own, and tells the status.
//!
//! What must survive the agent is on record before a step that relies on it is taken: the end of a run before its container
//! is removed, a generation before it is told.

mod execution;
mod measuring;
mod outcome;
mod renewal;
mod start;
mod telling;
mod timing;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::{outcome::Outcome, timing::Timing};
use super::{
    adoption::{self, Seen},
    events,
    files::ReadyFiles,
    host::Host,
    ledger::{Entry, Record},
    lifecycle::{Event, Machine, Part, Stage, Step},
    provenance,
    request::{Request, RequestError},
    restart, storage,
    survivors::Found,
    wish::{ImageWish, PodWish},
};
use crate::{
    chain::Chain,
    image::PresentImage,
    runtime::{Container, ContainerId, ContainerState, PodIdentity},
    sandbox::Sandbox,
};

/// How long a status is held back while a start is under way that will change it again.
const SETTLE_FOR: Duration = Duration::from_millis(200);
/// How many notes of steps wait for a worker at most.
const NOTES_LENGTH: usize = 16;

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
        let (notes_sender, notes) = mpsc::channel(NOTES_LENGTH);
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
            wish: Arc::new(wish),
            machine,
            host,
        }
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

    /// Runs the pod until nothing is left of it, or until the agent ends. `first` is taken before what waits in the queue.
    pub(crate) async fn run(
        mut self,
        begin: Vec<Event>,
        first: Option<Request>,
        requests: &mut mpsc::Receiver<Request>,
        ends: &CancellationToken,
    ) -> End {
        for event in begin {
            self.take_in(event);
        }
        self.take_in(Event::Tick);
        self.measure_later();
        if let Some(request) = first {
            self.take_request(request);
        }
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
                let result = result.map_err(|source| RequestError::Record { uid: self.identity.uid.clone(), source });
                // Whoever asked may have gone; the wish is on record all the same.
                let _ = reply.send(result);
            }
            Request::Stop { grace } => {
                info!(pod_uid = self.identity.uid, ?grace, "stop pod");
                self.take_in(Event::Stop(grace));
            }
        }
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
            Step::AnnounceEviction(overuse) => {
                self.tell_event(None, events::evicted(storage::message(&self.wish.pod, overuse)));
            }
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

    fn next_wake(&self) -> Option<Instant> {
        let now = self.host.parts.clock.now();
        let due =
            self.machine.wake_at().map(|at| Instant::now() + restart::between(now, at).max(Duration::from_millis(1)));
        let settle = self.untold_since.map(|since| since + SETTLE_FOR);
        [due, settle].into_iter().flatten().min()
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
        let newer = Seen { index, run: provenance::run_of(container), state: state.clone() };
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
