//! Owns the workers, one a pod: hands requests to them, takes up the pods of an earlier life, and joins them at the end.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info, info_span, warn};

use super::{
    files::FilesError,
    host::{Host, Parts, Settings},
    last_words::LastWords,
    ledger::{Entry, LedgerError},
    lifecycle::Event,
    publisher::Publisher,
    wish::PodWish,
    worker::{self, End, Found, Queue, Request, Worker},
};
use crate::{
    chain::Chain,
    image::PresentImage,
    runtime::{Container, ContainerState, RuntimeError},
    sandbox::{Sandbox, SandboxError},
};

/// How many requests wait for the supervisor at most.
const QUEUE_LENGTH: usize = 256;
/// How long after a worker broke off its pod is taken up again; doubled with each time, up to [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// More requests for this pod are waiting than are kept.
    #[error("pod {0} has too many requests waiting, try again")]
    Busy(String),
    /// The agent is shutting down.
    #[error("the agent is shutting down")]
    ShuttingDown,
    /// The wish could not be put on record.
    #[error("put pod {uid} on record")]
    Record {
        /// The pod.
        uid: String,
        /// Why.
        source: LedgerError,
    },
}

/// Why the pods of an earlier life could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The ledger.
    #[error("list pods on record")]
    Ledger(#[from] LedgerError),
    /// The containers.
    #[error("list containers")]
    Runtime(#[from] RuntimeError),
    /// The sandboxes.
    #[error("list sandboxes")]
    Sandboxes(#[from] SandboxError),
}

/// The asking side of the supervisor; clones ask the same one.
#[derive(Debug, Clone)]
pub struct Pods {
    requests: mpsc::Sender<Ask>,
    /// Where statuses and events come from.
    pub publisher: Publisher,
}

#[derive(Debug)]
enum Ask {
    Run { wish: Box<PodWish>, reply: oneshot::Sender<Result<(), RequestError>> },
    Stop { uid: String, grace: Option<Duration>, reply: oneshot::Sender<Result<bool, RequestError>> },
}

impl Pods {
    /// Takes a pod on, or a newer wish for one that is on record. Returns when it is on record.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn run(&self, wish: PodWish) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Run { wish: Box::new(wish), reply }).await?;
        answer.await.unwrap_or(Err(RequestError::ShuttingDown))
    }

    /// Begins to end a pod. False when there is none with this UID.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn stop(&self, uid: String, grace: Option<Duration>) -> Result<bool, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Stop { uid, grace, reply }).await?;
        answer.await.unwrap_or(Err(RequestError::ShuttingDown))
    }

    async fn ask(&self, ask: Ask) -> Result<(), RequestError> {
        self.requests.send(ask).await.map_err(|_| RequestError::ShuttingDown)
    }
}

/// The owner of all workers.
#[derive(Debug)]
pub struct Supervisor {
    host: Arc<Host>,
    asks: mpsc::Receiver<Ask>,
    workers: HashMap<String, Queue>,
    tasks: JoinSet<(String, End)>,
    uids: HashMap<Id, String>,
    broken: HashMap<String, u32>,
    ends: CancellationToken,
}

impl Supervisor {
    /// A supervisor without pods, and the way to ask it. It ends, and its workers with it, when `ends` is cancelled.
    pub fn new(parts: Parts, settings: Settings, ends: CancellationToken) -> (Self, Pods) {
        let (requests, asks) = mpsc::channel(QUEUE_LENGTH);
        let publisher = parts.publisher.clone();
        let host = Arc::new(Host::new(parts, settings));
        let supervisor = Self {
            host,
            asks,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            uids: HashMap::new(),
            broken: HashMap::new(),
            ends,
        };
        (supervisor, Pods { requests, publisher })
    }

    /// Takes up the pods that an earlier life of this process ran, and removes what belongs to no pod. To be called once,
    /// before [`Supervisor::run`].
    ///
    /// # Errors
    /// When it cannot be found out what is there; nothing is removed then.
    pub async fn adopt(&mut self) -> Result<(), AdoptError> {
        let parts = self.host.parts.clone();
        let uids = parts.ledger.uids()?;
        let mut containers: HashMap<String, Vec<Container>> = HashMap::new();
        for container in parts.runtime.list().await? {
            containers.entry(container.pod.uid.clone()).or_default().push(container);
        }
        let mut sandboxes = parts.sandboxes.list().await?;
        let mut known = HashSet::new();
        for uid in uids {
            let Some(entry) = self.read_entry(&uid) else { continue };
            let found = self.look_at(&entry.wish, containers.remove(&uid).unwrap_or_default()).await;
            info!(pod_uid = uid, containers = found.len(), "adopt pod");
            let (worker, events) = Worker::adopted(Arc::clone(&self.host), entry, found, sandboxes.remove(&uid));
            self.spawn(&uid, worker, events);
            known.insert(uid);
        }
        self.clean(containers, sandboxes, &known).await;
        Ok(())
    }

    /// Looks where the containers of a pod stand: the last words of those that have ended, and the images below those that
    /// run, so that nobody takes them away.
    async fn look_at(&self, wish: &PodWish, containers: impl IntoIterator<Item = Container>) -> Vec<Found> {
        let mut found = Vec::new();
        for container in containers {
            // What is decided upon and what is watched for must be the same state, so it is looked at once.
            let state = container.state.borrow().clone();
            let spec = wish.containers().find(|spec| spec.name == container.name);
            let (state, image) = match (state, spec) {
                (ContainerState::Exited(exit), Some(spec)) => {
                    let words = LastWords::of(&self.host, &container.pod, spec, container.attempt);
                    (ContainerState::Exited(words.add_to(exit).await), None)
                }
                (state @ ContainerState::Exited(_), None) => (state, None),
                (state @ (ContainerState::Starting | ContainerState::Running { .. }), _) => {
                    (state, self.hold_image(&container).await)
                }
            };
            found.push(Found { container, state, image });
        }
        found
    }

    async fn hold_image(&self, container: &Container) -> Option<PresentImage> {
        let (reference, manifest) = worker::execution::image_of(container)?;
        match self.host.parts.images.adopt(&reference, &manifest).await {
            Ok(image) => Some(image),
            Err(error) => {
                warn!(pod_uid = container.pod.uid, error = %Chain(&error), "adopt image of running container");
                None
            }
        }
    }

    /// A pod whose wish cannot be read is as good as unknown: what is there of it is removed.
    fn read_entry(&self, uid: &str) -> Option<Entry> {
        match self.host.parts.ledger.read(uid) {
            Ok(entry) => entry,
            Err(error) => {
                error!(pod_uid = uid, error = %Chain(&error), "read pod on record, it is given up");
                None
            }
        }
    }

    /// Removes what belongs to no pod. What cannot be removed now is found again at the next start.
    async fn clean(
        &self,
        containers: HashMap<String, Vec<Container>>,
        sandboxes: HashMap<String, Sandbox>,
        known: &HashSet<String>,
    ) {
        let parts = &self.host.parts;
        for container in containers.into_values().flatten() {
            warn!(pod_uid = container.pod.uid, container = container.id.0, "remove container of unknown pod");
            if let Err(error) = parts.runtime.remove(&container.id).await {
                warn!(container = container.id.0, error = %Chain(&error), "remove container of unknown pod failed");
            }
        }
        for uid in sandboxes.into_keys() {
            warn!(pod_uid = uid, "remove sandbox of unknown pod");
            if let Err(error) = parts.sandboxes.remove(&uid).await {
                warn!(pod_uid = uid, error = %Chain(&error), "remove sandbox of unknown pod failed");
            }
        }
        for uid in parts.ledger.uids().unwrap_or_default() {
            if !known.contains(&uid) {
                self.remove_files(uid).await;
            }
        }
    }

    async fn remove_files(&self, uid: String) {
        let parts = self.host.parts.clone();
        let name = uid.clone();
        let removed = tokio::task::spawn_blocking(move || {
            parts.files.tear_down(&uid).map_err(|error: FilesError| Chain(&error).to_string())?;
            parts.ledger.remove(&uid).map_err(|error| Chain(&error).to_string())
        });
        if let Ok(Err(error)) = removed.await {
            warn!(pod_uid = name, error, "remove files of unknown pod failed");
        }
    }

    /// Hands requests to the workers until the agent ends; then lets the workers end and joins them.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                // Dropping any of these waits loses nothing: channels keep what they hold, a set its tasks.
                () = self.ends.cancelled() => break,
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.take(ask),
                    None => break,
                },
                Some(ended) = self.tasks.join_next_with_id() => self.take_end(ended).await,
            }
        }
        self.ends.cancel();
        self.workers.clear();
        while self.tasks.join_next().await.is_some() {}
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Run { wish, reply } => self.take_wish(wish, reply),
            Ask::Stop { uid, grace, reply } => {
                let result = match self.workers.get(&uid) {
                    None => Ok(false),
                    Some(queue) => match queue.try_send(Request::Stop { grace }) {
                        Ok(()) => Ok(true),
                        Err(mpsc::error::TrySendError::Full(_)) => Err(RequestError::Busy(uid)),
                        // The worker has just ended: nothing of the pod is left.
                        Err(mpsc::error::TrySendError::Closed(_)) => Ok(false),
                    },
                };
                // Whoever asked may have gone.
                let _ = reply.send(result);
            }
        }
    }

    fn take_wish(&mut self, wish: Box<PodWish>, reply: oneshot::Sender<Result<(), RequestError>>) {
        let uid = wish.identity().uid;
        let Some(queue) = self.workers.get(&uid).filter(|queue| !queue.is_closed()) else {
            let result = self.begin(*wish);
            let _ = reply.send(result);
            return;
        };
        let (recorded, on_record) = oneshot::channel();
        match queue.try_send(Request::Run { wish, reply: recorded }) {
            // The worker's answer goes on to whoever asked, on a task of its own so that other pods do not wait for it.
            Ok(()) => {
                let forward = async move {
                    let result = match on_record.await {
                        Ok(result) => result.map_err(|source| RequestError::Record { uid: uid.clone(), source }),
                        Err(_) => Err(RequestError::Busy(uid.clone())),
                    };
                    let _ = reply.send(result);
                    (String::new(), End::LetGo)
                };
                self.tasks.spawn(forward);
            }
            Err(_) => {
                let _ = reply.send(Err(RequestError::Busy(uid)));
            }
        }
    }

    fn begin(&mut self, wish: PodWish) -> Result<(), RequestError> {
        let identity = wish.identity();
        info!(pod_uid = identity.uid, namespace = identity.namespace, pod = identity.name, "take pod on");
        // On tmpfs: as long as memory takes.
        let written = self.host.parts.ledger.write_wish(&identity.uid, &wish);
        written.map_err(|source| RequestError::Record { uid: identity.uid.clone(), source })?;
        let (worker, events) = Worker::new(Arc::clone(&self.host), wish);
        self.spawn(&identity.uid, worker, events);
        Ok(())
    }

    fn spawn(&mut self, uid: &str, worker: Worker, events: Vec<Event>) {
        let (queue, requests) = worker::queue();
        let (owned, ends) = (uid.to_owned(), self.ends.clone());
        worker.introduce();
        let span = info_span!("pod", pod_uid = uid);
        let task = async move { (owned, worker.run(events, requests, ends).await) };
        let id = self.tasks.spawn(task.instrument(span)).id();
        self.uids.insert(id, uid.to_owned());
        self.workers.insert(uid.to_owned(), queue);
        self.count();
    }

    fn count(&self) {
        self.host.parts.meters.pods.set(i64::try_from(self.workers.len()).unwrap_or(i64::MAX));
    }

    async fn take_end(&mut self, ended: Result<(Id, (String, End)), JoinError>) {
        let (uid, lost) = match ended {
            Ok((id, (_, end))) => (self.uids.remove(&id), end == End::Lost),
            Err(error) => {
                error!(error = %Chain(&error), "worker of a pod broke off");
                (self.uids.remove(&error.id()), true)
            }
        };
        let Some(uid) = uid else { return };
        self.workers.remove(&uid);
        self.count();
        if !lost {
            self.broken.remove(&uid);
            return;
        }
        self.take_up_again(&uid).await;
    }

    /// A worker that broke off left its pod on record, as a killed agent does.
    async fn take_up_again(&mut self, uid: &str) {
        let times = self.broken.entry(uid.to_owned()).or_default();
        let delay = FIRST_RETRY.saturating_mul(1 << (*times).min(6)).min(LONGEST_RETRY);
        *times += 1;
        let Some(entry) = self.read_entry(uid) else { return };
        let containers = self.host.parts.runtime.list().await;
        let sandboxes = self.host.parts.sandboxes.list().await;
        let (Ok(containers), Ok(mut sandboxes)) = (containers, sandboxes) else {
            error!(pod_uid = uid, "take up pod again failed, it is taken up when the agent starts next");
            return;
        };
        let containers = containers.into_iter().filter(|container| container.pod.uid == uid);
        let found = self.look_at(&entry.wish, containers).await;
        let (worker, events) = Worker::adopted(Arc::clone(&self.host), entry, found, sandboxes.remove(uid));
        warn!(pod_uid = uid, ?delay, "take up pod again");
        self.spawn(uid, worker.after(delay), events);
    }
}
