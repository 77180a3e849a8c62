//! Keeps one Node object: made, adopted, made again when somebody deletes it, its status true.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::node_metadata::metadata_patch;
use super::node_object::{self, Heartbeat, Host, NodeIdentity};
use super::{agent_beat, lease};
use crate::agent::AgentClient;
use crate::cluster::{ClusterError, Echo, NodeApi, Watched};
use crate::parts::{PartError, Parts};

/// A status that does not change is written again after this long: the kubelet's figure.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Between two tries, when the API server does not take something.
const RETRY: Duration = Duration::from_secs(1);

/// What a virtual node is kept with.
#[derive(Debug, Clone)]
pub struct NodeServices {
    /// Nodes at the API server.
    pub api: Arc<dyn NodeApi>,
    /// The node's agent.
    pub agent: Arc<dyn AgentClient>,
}

/// The owner of one Node object.
#[derive(Debug)]
pub struct NodeController {
    services: NodeServices,
    identity: NodeIdentity,
    /// `None` until the watch has listed; then the object, or that there is none.
    current: Option<Option<Node>>,
    echo: Echo,
    uid: watch::Sender<Option<String>>,
    /// Set to true when the node is there with a status of ours.
    registered: watch::Sender<bool>,
    beaten: Option<Instant>,
    retry: Option<Instant>,
    /// The last write failed, and that has been said.
    failing: bool,
}

impl NodeController {
    /// A controller for a node. The receiver turns true once the node is registered.
    pub fn new(identity: NodeIdentity, services: NodeServices) -> (Self, watch::Receiver<bool>) {
        let (registered, receiver) = watch::channel(false);
        let controller = Self {
            services,
            identity,
            current: None,
            echo: Echo::default(),
            uid: watch::Sender::new(None),
            registered,
            beaten: None,
            retry: None,
            failing: false,
        };
        (controller, receiver)
    }

    /// Works until `stop`. The node and its lease stay: pods go on running while we are away.
    ///
    /// # Errors
    /// When it lacks one of its parts.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), PartError> {
        let mut parts = Parts::default();
        let (sender, host) = watch::channel(Host::Unheard);
        let beat = agent_beat::follow(self.services.agent.clone(), sender);
        parts.spawn("the stream of what the host says", beat.in_current_span());
        let name = self.identity.name.clone();
        let lease = lease::keep(self.services.api.clone(), name, self.uid.subscribe(), stop.clone());
        parts.spawn("the renewal of the lease", lease.in_current_span());
        let ended = self.work(&mut parts, host, &stop).await;
        parts.shutdown().await;
        ended
    }

    async fn work(
        &mut self,
        parts: &mut Parts,
        mut host: watch::Receiver<Host>,
        stop: &CancellationToken,
    ) -> Result<(), PartError> {
        let mut watched = self.services.api.watch_node(&self.identity.name);
        loop {
            let known = host.borrow_and_update().clone();
            // Dropped half-way, what it writes is written again by whoever comes next.
            tokio::select! {
                () = self.reconcile(&known) => {}
                () = stop.cancelled() => return Ok(()),
            }
            let wake = self.wake();
            // Each arm waits for something that stays there until it is taken.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                missing = parts.missing(stop) => return Err(missing),
                // The sender is a part's: when it is gone, so is the part.
                Ok(()) = host.changed() => {}
                change = watched.next() => self.take(change.ok_or_else(|| PartError::ended("the watch of the node"))?),
                () = tokio::time::sleep_until(wake) => self.retry = None,
            }
        }
    }

    fn wake(&self) -> Instant {
        let beat = self.beaten.map_or_else(|| Instant::now() + HEARTBEAT, |beaten| beaten + HEARTBEAT);
        self.retry.map_or(beat, |retry| retry.min(beat))
    }

    fn take(&mut self, change: Watched<Node>) {
        match change {
            Watched::All(mut nodes) => {
                self.echo.listed();
                self.learn(nodes.pop());
            }
            Watched::Applied(node) if self.echo.is_behind(&node) => {}
            Watched::Applied(node) => self.learn(Some(node)),
            Watched::Deleted(_) => self.learn(None),
        }
    }

    /// Takes in the answer to a write of ours, which is newer than what the watch has said so far.
    fn take_answer(&mut self, node: Node) {
        self.echo.answered(&node);
        self.learn(Some(node));
    }

    fn learn(&mut self, node: Option<Node>) {
        let uid = node.as_ref().and_then(|node| node.metadata.uid.clone());
        self.uid.send_if_modified(|known| {
            let differs = *known != uid;
            *known = uid;
            differs
        });
        self.current = Some(node);
    }

    async fn reconcile(&mut self, host: &Host) {
        if self.retry.is_some_and(|retry| retry > Instant::now()) {
            return;
        }
        let Some(current) = self.current.clone() else { return };
        let done = match current {
            None => self.create(host).await,
            Some(node) => self.update(&node, host).await,
        };
        match done {
            Ok(()) => (self.retry, self.failing) = (None, false),
            // The watch brings what is there now.
            Err(ClusterError::NotFound { .. }) => self.learn(None),
            Err(error) => {
                if !self.failing {
                    tracing::warn!(%error, "node is not written, trying again");
                }
                self.failing = true;
                self.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    async fn create(&mut self, host: &Host) -> Result<(), ClusterError> {
        let wanted = node_object::new_node(&self.identity, host, Timestamp::now());
        match self.services.api.create_node(&wanted).await {
            Ok(node) => {
                tracing::info!("registered the node");
                self.take_answer(node);
                self.beaten = Some(Instant::now());
                self.registered.send_replace(true);
                Ok(())
            }
            // Somebody was faster; the watch brings it, and it is adopted.
            Err(ClusterError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn update(&mut self, node: &Node, host: &Host) -> Result<(), ClusterError> {
        let name = self.identity.name.clone();
        let mut node = node.clone();
        if node.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        if let Some(patch) = metadata_patch(&node, &self.identity, host) {
            node = self.services.api.patch_node(&name, patch).await?;
            self.take_answer(node.clone());
        }
        if *host == Host::Unheard {
            // A node that was there before us is as true as what we could say.
            return Ok(());
        }
        let current = node.status.unwrap_or_default();
        let wanted = node_object::status(&self.identity, host, &current, Timestamp::now());
        let due = self.beaten.is_none_or(|beaten| beaten.elapsed() >= HEARTBEAT);
        let heartbeat = if due { Heartbeat::Due } else { Heartbeat::NotDue };
        if let Some(patch) = node_object::status_patch(&current, &wanted, heartbeat) {
            let node = self.services.api.patch_node_status(&name, patch).await?;
            self.take_answer(node);
            self.beaten = Some(Instant::now());
            self.registered.send_replace(true);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
