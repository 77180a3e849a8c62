//! The task of one pod: a worker at work and, after one broke off, the next one, begun from the record as a restarted agent
//! would. Requests wait in one queue from the first worker to the last, so none is lost in between.
//!
//! ```text
//!  worker at work ──it broke off──> pausing ──the pause is over, or a request came──> taking up ──> worker at work
//!    │                                 ^                                               │   │
//!    │ nothing is left,                └────────────the host does not answer───────────┘   │ nothing is on record
//!    v the agent ends                                                                      v
//!  (end) <─────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{
    host::Host,
    ledger::LedgerError,
    lifecycle::Event,
    publisher::PodSnapshot,
    request::Request,
    survivors,
    worker::{End, Worker},
};
use crate::{chain::Chain, runtime::RuntimeError, sandbox::SandboxError};

/// How long after a worker broke off its pod is taken up again; doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause. A worker that lasted longer than this is forgiven what was before.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A worker and what it takes in first.
pub(crate) type Life = (Worker, Vec<Event>);

/// Why a pod cannot be taken up now.
#[derive(Debug, thiserror::Error)]
enum TakeUpError {
    #[error("read pod on record")]
    Ledger(#[from] LedgerError),
    #[error("list containers")]
    Runtime(#[from] RuntimeError),
    #[error("list sandboxes")]
    Sandboxes(#[from] SandboxError),
}

/// The owner of one pod, across the workers that it takes.
#[derive(Debug)]
pub(crate) struct Caretaker {
    host: Arc<Host>,
    uid: String,
    requests: mpsc::Receiver<Request>,
    /// Came while no worker was there to take it.
    waiting: Option<Request>,
    ends: CancellationToken,
    next_pause: Duration,
}

impl Caretaker {
    pub(crate) fn new(
        host: Arc<Host>,
        uid: String,
        requests: mpsc::Receiver<Request>,
        ends: CancellationToken,
    ) -> Self {
        Self { host, uid, requests, waiting: None, ends, next_pause: FIRST_PAUSE }
    }

    /// Runs the pod until nothing is left of it, or the agent ends. Without a first worker the pod is taken up from its
    /// record.
    pub(crate) async fn run(mut self, first: Option<Life>) {
        let mut next = first;
        loop {
            let life = match next.take() {
                Some(life) => Some(life),
                None => self.take_up_until_done().await,
            };
            let Some((worker, events)) = life else { return };
            let begun = Instant::now();
            match self.live(worker, events).await {
                End::Gone | End::LetGo => return,
                End::Lost => {}
            }
            if begun.elapsed() > LONGEST_PAUSE {
                self.next_pause = FIRST_PAUSE;
            }
            if !self.pause().await {
                return;
            }
        }
    }

    async fn live(&mut self, worker: Worker, events: Vec<Event>) -> End {
        let run = worker.run(events, self.waiting.take(), &mut self.requests, &self.ends);
        // What a worker held when it panicked is gone with it, and the next one begins from the record: nothing half
        // changed is seen by anybody.
        match AssertUnwindSafe(run).catch_unwind().await {
            Ok(end) => end,
            Err(_) => {
                error!(pod_uid = self.uid, "worker of a pod broke off");
                End::Lost
            }
        }
    }

    /// Takes the pod up from what is on record and on the host, as often as that takes. None when nothing is left of it, or
    /// the agent ends.
    async fn take_up_until_done(&mut self) -> Option<Life> {
        loop {
            let ends = self.ends.clone();
            match ends.run_until_cancelled(self.take_up()).await? {
                Ok(Some(life)) => {
                    warn!(pod_uid = self.uid, "take up pod again");
                    return Some(life);
                }
                Ok(None) => {
                    self.say_farewell();
                    return None;
                }
                Err(error) => {
                    error!(pod_uid = self.uid, error = %Chain(&error), "take up pod again, it is tried again")
                }
            }
            if !self.pause().await {
                return None;
            }
        }
    }

    async fn take_up(&self) -> Result<Option<Life>, TakeUpError> {
        let parts = &self.host.parts;
        let Some(entry) = parts.ledger.read(&self.uid)? else { return Ok(None) };
        let containers = parts.runtime.list().await?;
        let sandbox = parts.sandboxes.list().await?.remove(&self.uid);
        let containers = containers.into_iter().filter(|container| container.pod.uid == self.uid);
        let found = survivors::look_at(&self.host, &entry.wish, containers).await;
        let (worker, events) = Worker::adopted(Arc::clone(&self.host), entry, found, sandbox);
        worker.make_known();
        Ok(Some((worker, events)))
    }

    /// Waits before the pod is taken up again, unless somebody asks for it. False when the agent ends.
    async fn pause(&mut self) -> bool {
        let pause = self.next_pause;
        self.next_pause = (pause * 2).min(LONGEST_PAUSE);
        tokio::select! {
            // Dropping any of these waits loses nothing: a channel keeps what it holds.
            () = self.ends.cancelled() => false,
            request = self.requests.recv(), if self.waiting.is_none() => {
                self.waiting = request;
                self.waiting.is_some()
            }
            () = tokio::time::sleep(pause) => true,
        }
    }

    /// The record goes last, so nothing else is left. Whoever watches must learn of it, though no worker could say so.
    fn say_farewell(&self) {
        let publisher = &self.host.parts.publisher;
        let Some(told) = publisher.get(&self.uid) else { return };
        publisher.gone(PodSnapshot { generation: told.generation + 1, terminated: true, ..(*told).clone() });
    }
}
