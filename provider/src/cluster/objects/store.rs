//! One watch for each object that somebody follows, kept for a while after the last has gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::watching::{Latest, Watched};
use super::{ObjectApi, ObjectKey, SharedContent};
use crate::parts::PartError;

/// How long an object is watched for the sake of a pod that may come back under another name.
const LINGER: Duration = Duration::from_secs(60);

/// What is known of an object: nothing yet, or that it is not there, or its content.
pub type Known = Option<Option<SharedContent>>;

/// What is known of the Services: nothing yet, or all of them.
pub type KnownServices = Option<Arc<Vec<Service>>>;

/// Asks for objects.
#[derive(Debug, Clone)]
pub struct ObjectStore {
    requests: mpsc::Sender<Request>,
    services: watch::Receiver<KnownServices>,
}

#[derive(Debug)]
struct Request {
    key: ObjectKey,
    answer: oneshot::Sender<watch::Receiver<Known>>,
}

/// The task behind an [`ObjectStore`].
#[derive(Debug)]
pub struct ObjectStoreTask {
    api: Arc<dyn ObjectApi>,
    requests: mpsc::Receiver<Request>,
    services: watch::Sender<KnownServices>,
    followed: BTreeMap<ObjectKey, watch::Sender<Known>>,
    watches: JoinSet<ObjectKey>,
}

impl ObjectStore {
    /// A store, and the task that its owner must run.
    pub fn new(api: Arc<dyn ObjectApi>) -> (Self, ObjectStoreTask) {
        let (requests, receiver) = mpsc::channel(256);
        let (sender, services) = watch::channel(None);
        let task = ObjectStoreTask {
            api,
            requests: receiver,
            services: sender,
            followed: BTreeMap::new(),
            watches: JoinSet::new(),
        };
        (Self { requests, services }, task)
    }

    /// Follows an object until the receiver is dropped. `None` when the store has ended.
    pub async fn follow(&self, key: &ObjectKey) -> Option<watch::Receiver<Known>> {
        let (answer, receiver) = oneshot::channel();
        self.requests.send(Request { key: key.clone(), answer }).await.ok()?;
        receiver.await.ok()
    }

    /// The Services of the cluster.
    pub fn services(&self) -> watch::Receiver<KnownServices> {
        self.services.clone()
    }
}

impl ObjectStoreTask {
    /// Serves until `stop`, or until nobody can ask any more.
    ///
    /// # Errors
    /// When it lacks one of its parts.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), PartError> {
        let ended = self.work(&stop).await;
        self.watches.shutdown().await;
        ended
    }

    async fn work(&mut self, stop: &CancellationToken) -> Result<(), PartError> {
        let mut services = self.api.watch_services();
        let mut latest = Latest::default();
        loop {
            // Each arm takes one element from a queue, a stream or a set that keeps the rest.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request),
                    None => return Ok(()),
                },
                change = services.next() => {
                    latest.take(change.ok_or_else(|| PartError::ended("the watch of Services"))?);
                    self.services.send_replace(Some(Arc::new(latest.values().cloned().collect())));
                }
                Some(ended) = self.watches.join_next() => match ended {
                    Ok(key) => self.retire(key),
                    Err(error) => return Err(PartError::broken("a watch of a ConfigMap or Secret".to_owned(), error)),
                },
            }
        }
    }

    fn serve(&mut self, request: Request) {
        let receiver = match self.followed.get(&request.key) {
            Some(sender) => sender.subscribe(),
            None => self.start(request.key),
        };
        let _ = request.answer.send(receiver);
    }

    fn start(&mut self, key: ObjectKey) -> watch::Receiver<Known> {
        let (sender, receiver) = watch::channel(None);
        self.followed.insert(key.clone(), sender.clone());
        self.watches.spawn(keep_current(self.api.clone(), key, sender));
        receiver
    }

    /// A watch has ended because nobody followed; somebody may have begun to just now.
    fn retire(&mut self, key: ObjectKey) {
        match self.followed.get(&key) {
            Some(sender) if sender.receiver_count() > 0 => {
                self.watches.spawn(keep_current(self.api.clone(), key, sender.clone()));
            }
            Some(_) | None => {
                self.followed.remove(&key);
            }
        }
    }
}

/// Writes each state of an object, until nobody has followed it for a while.
async fn keep_current(api: Arc<dyn ObjectApi>, key: ObjectKey, sender: watch::Sender<Known>) -> ObjectKey {
    let mut changes = api.watch_object(&key);
    loop {
        // Taking an element off a stream and waiting for an end can both be dropped without loss.
        tokio::select! {
            change = changes.next() => {
                let content = match change {
                    None => return key,
                    Some(Watched::All(mut objects)) => objects.pop(),
                    Some(Watched::Applied(object)) => Some(object),
                    Some(Watched::Deleted(_)) => None,
                };
                let content = content.map(Arc::new);
                sender.send_if_modified(|known| {
                    let differs = known.as_ref() != Some(&content);
                    *known = Some(content);
                    differs
                });
            }
            () = unused(&sender) => return key,
        }
    }
}

async fn unused(sender: &watch::Sender<Known>) {
    loop {
        sender.closed().await;
        tokio::time::sleep(LINGER).await;
        if sender.receiver_count() == 0 {
            return;
        }
    }
}
