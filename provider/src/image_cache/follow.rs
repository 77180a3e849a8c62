//! Follows what one host says of its image caches, for as long as its owner lets it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::agent::{AgentClient, AgentError, CacheChange};

/// Between two attempts to reach a host: at first, and at most.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What a host says.
#[derive(Debug)]
pub(super) enum Heard {
    /// Something about its caches.
    Change(CacheChange),
    /// The connection is lost.
    Lost,
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
