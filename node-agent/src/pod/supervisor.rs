//! Owns the pods' caretakers, one a pod: hands requests to them, takes up the pods of an earlier life, and joins them at the
//! end.

mod adopt;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info, info_span};

pub use self::adopt::AdoptError;
pub use super::request::RequestError;
use super::{
    caretaker::{Caretaker, Life},
    host::{Host, Parts, Settings},
    publisher::Publisher,
    request::{self, Queue, Reply, Request},
    wish::PodWish,
    worker::Worker,
};
use crate::chain::Chain;

/// How many requests wait for the supervisor at most.
const QUEUE_LENGTH: usize = 256;

/// The asking side of the supervisor; clones ask the same one.
#[derive(Debug, Clone)]
pub struct Pods {
    requests: mpsc::Sender<Ask>,
    /// Where statuses and events come from.
    pub publisher: Publisher,
}

#[derive(Debug)]
enum Ask {
    Run { wish: Box<PodWish>, reply: Reply },
    Stop { uid: String, grace: Option<Duration>, reply: oneshot::Sender<Result<bool, RequestError>> },
}

impl Pods {
    /// Takes a pod on, or a newer wish for one that is on record. Returns when it is on record.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn run(&self, wish: PodWish) -> Result<(), RequestError> {
        let uid = wish.identity().uid;
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Run { wish: Box::new(wish), reply }).await?;
        // Not answered: the pod has gone before it came to this wish. Asked again, it is begun anew.
        answer.await.unwrap_or(Err(RequestError::Busy(uid)))
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

/// The owner of all pods.
#[derive(Debug)]
pub struct Supervisor {
    host: Arc<Host>,
    asks: mpsc::Receiver<Ask>,
    /// The caretakers by the pod's UID. One that has just ended may have a successor of the same UID.
    pods: HashMap<String, Owner>,
    tasks: JoinSet<String>,
    ends: CancellationToken,
}

/// The caretaker of a pod.
#[derive(Debug)]
struct Owner {
    task: Id,
    queue: Queue,
}

impl Supervisor {
    /// A supervisor without pods, and the way to ask it. It ends, and its pods' tasks with it, when `ends` is cancelled.
    pub fn new(parts: Parts, settings: Settings, ends: CancellationToken) -> (Self, Pods) {
        let (requests, asks) = mpsc::channel(QUEUE_LENGTH);
        let publisher = parts.publisher.clone();
        let host = Arc::new(Host::new(parts, settings));
        let supervisor = Self { host, asks, pods: HashMap::new(), tasks: JoinSet::new(), ends };
        (supervisor, Pods { requests, publisher })
    }

    /// Hands requests to the caretakers until the agent ends; then lets them end and joins them.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                // Dropping any of these waits loses nothing: channels keep what they hold, a set its tasks.
                () = self.ends.cancelled() => break,
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.take(ask),
                    None => break,
                },
                Some(ended) = self.tasks.join_next_with_id() => self.take_end(ended),
            }
        }
        self.ends.cancel();
        self.pods.clear();
        while self.tasks.join_next().await.is_some() {}
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Run { wish, reply } => self.take_wish(wish, reply),
            // Whoever asked may have gone.
            Ask::Stop { uid, grace, reply } => drop(reply.send(self.stop(uid, grace))),
        }
    }

    fn stop(&self, uid: String, grace: Option<Duration>) -> Result<bool, RequestError> {
        // Caretakers that end with the agent leave their pods' processes behind: that is not "no such pod".
        if self.ends.is_cancelled() {
            return Err(RequestError::ShuttingDown);
        }
        let Some(owner) = self.pods.get(&uid) else { return Ok(false) };
        match owner.queue.try_send(Request::Stop { grace }) {
            Ok(()) => Ok(true),
            Err(mpsc::error::TrySendError::Full(_)) => Err(RequestError::Busy(uid)),
            // The caretaker has just ended: nothing of the pod is left.
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(false),
        }
    }

    fn take_wish(&mut self, wish: Box<PodWish>, reply: Reply) {
        let uid = wish.identity().uid;
        if let Some(owner) = self.pods.get(&uid).filter(|owner| !owner.queue.is_closed()) {
            hand_on(&owner.queue, wish, reply, uid);
            return;
        }
        // What an earlier life left on record is gone on with, and learns of this wish; it is not begun beside it.
        if matches!(self.host.parts.ledger.read(&uid), Ok(Some(_))) {
            let queue = self.spawn(&uid, None);
            hand_on(&queue, wish, reply, uid);
            return;
        }
        // Whoever asked may have gone.
        drop(reply.send(self.begin(*wish)));
    }

    fn begin(&mut self, wish: PodWish) -> Result<(), RequestError> {
        let identity = wish.identity();
        info!(pod_uid = identity.uid, namespace = identity.namespace, pod = identity.name, "take pod on");
        // On tmpfs: as long as memory takes.
        let written = self.host.parts.ledger.write_wish(&identity.uid, &wish);
        written.map_err(|source| RequestError::Record { uid: identity.uid.clone(), source })?;
        let life = Worker::new(Arc::clone(&self.host), wish);
        self.spawn(&identity.uid, Some(life));
        Ok(())
    }

    /// Gives a pod a caretaker, with its first worker or to find one.
    fn spawn(&mut self, uid: &str, first: Option<Life>) -> Queue {
        let (queue, requests) = request::queue();
        if let Some((worker, _)) = &first {
            worker.introduce();
        }
        let caretaker = Caretaker::new(Arc::clone(&self.host), uid.to_owned(), requests, self.ends.clone());
        let owned = uid.to_owned();
        let care = async move {
            caretaker.run(first).await;
            owned
        };
        let task = self.tasks.spawn(care.instrument(info_span!("pod", pod_uid = uid))).id();
        self.pods.insert(uid.to_owned(), Owner { task, queue: queue.clone() });
        self.count();
        queue
    }

    fn count(&self) {
        self.host.parts.meters.pods.set(i64::try_from(self.pods.len()).unwrap_or(i64::MAX));
    }

    fn take_end(&mut self, ended: Result<(Id, String), JoinError>) {
        match ended {
            Ok((task, uid)) => {
                if self.pods.get(&uid).is_some_and(|owner| owner.task == task) {
                    self.pods.remove(&uid);
                }
            }
            Err(error) => {
                // Workers are caught when they panic; what is left is a fault in the few lines around them. The pod is
                // found again by the next wish for it, or the next life of the agent.
                error!(error = %Chain(&error), "caretaker of a pod broke off");
                self.pods.retain(|_, owner| owner.task != error.id());
            }
        }
        self.count();
    }
}

fn hand_on(queue: &Queue, wish: Box<PodWish>, reply: Reply, uid: String) {
    let Err(refused) = queue.try_send(Request::Run { wish, reply }) else { return };
    if let Request::Run { reply, .. } = refused.into_inner() {
        // Whoever asked may have gone.
        let _ = reply.send(Err(RequestError::Busy(uid)));
    }
}
