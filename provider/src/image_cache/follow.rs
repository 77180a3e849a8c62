//! Follows what one host says of its image caches, for as long as its owner lets it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::mpsc;

use super::hosts::Labels;
use crate::agent::{AgentClient, AgentError, CacheChange};
use crate::cluster::{NodeApi, Watched};

/// Between two attempts to reach a host: at first, and at most.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What a host says.
#[derive(Debug)]
pub(super) enum Heard {
    /// Something about its caches.
    Change(CacheChange),
    /// The connection is lost.
    Lost,
    /// The labels of its virtual node; nothing when there is no such node.
    Labels(Option<Labels>),
}

/// Sends the labels of a virtual node whenever they change. Ends when nobody listens.
pub(super) async fn follow_labels(node: String, api: Arc<dyn NodeApi>, heard: mpsc::Sender<(String, Heard)>) {
    let mut nodes = api.watch_node(&node);
    let mut last = None;
    while let Some(change) = nodes.next().await {
        let is_meant = |it: &Node| it.metadata.name.as_ref() == Some(&node);
        let labels = match change {
            Watched::All(nodes) => nodes.into_iter().find(is_meant).map(labels),
            Watched::Applied(it) if is_meant(&it) => Some(labels(it)),
            Watched::Deleted(it) if is_meant(&it) => None,
            Watched::Applied(_) | Watched::Deleted(_) => continue,
        };
        // A node's status changes all the time.
        if last.as_ref() == Some(&labels) {
            continue;
        }
        last = Some(labels.clone());
        if heard.send((node.clone(), Heard::Labels(labels))).await.is_err() {
            return;
        }
    }
}

fn labels(node: Node) -> Labels {
    node.metadata.labels.unwrap_or_default()
}

/// Sends what the host of `node` says, and opens the stream again whenever it breaks. Ends when nobody listens.
pub(super) async fn follow(node: String, agent: Arc<dyn AgentClient>, heard: mpsc::Sender<(String, Heard)>) {
    let mut wait = WAITS.0;
    let mut is_told = false;
    loop {
        let error = match listen(&node, &*agent, &heard, &mut wait).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if heard.send((node.clone(), Heard::Lost)).await.is_err() {
            return;
        }
        // Once for each break, not once for each try.
        is_told &= wait > WAITS.0;
        if !is_told {
            tracing::warn!(node, %error, "image caches of the host cannot be followed, trying until they can");
            is_told = true;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WAITS.1);
    }
}

/// Ok: nobody listens any more.
async fn listen(
    node: &str,
    agent: &dyn AgentClient,
    heard: &mpsc::Sender<(String, Heard)>,
    wait: &mut Duration,
) -> Result<(), AgentError> {
    let mut stream = agent.watch_image_caches().await?;
    while let Some(change) = stream.next().await {
        let change = change?;
        *wait = WAITS.0;
        if heard.send((node.to_owned(), Heard::Change(change))).await.is_err() {
            return Ok(());
        }
    }
    Err(AgentError::Unreachable { message: "the stream of image caches ended".to_owned() })
}
