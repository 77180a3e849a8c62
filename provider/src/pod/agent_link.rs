//! The stream of an agent's pods, opened again and again for as long as its owner lives.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;

use super::backoff::Backoff;
use crate::agent::{AgentClient, AgentError, PodChange};

/// Until the full list must be there.
const FIRST: Duration = Duration::from_secs(10);

/// What the link says.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// An element of the stream; the first after [`LinkEvent::Lost`] and at the start is a list.
    Change(Box<PodChange>),
    /// The stream has ended; another is being opened.
    Lost,
}

/// Follows the agent's pods until the receiver is dropped.
pub(super) async fn follow(agent: Arc<dyn AgentClient>, events: mpsc::Sender<LinkEvent>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
    let mut said = false;
    loop {
        let error = one_stream(&*agent, &events, &mut backoff, &mut said).await;
        if events.send(LinkEvent::Lost).await.is_err() {
            return;
        }
        if !said {
            tracing::warn!(agent = agent.address(), %error, "no stream of pods from the node agent, trying again");
            said = true;
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn one_stream(
    agent: &dyn AgentClient,
    events: &mpsc::Sender<LinkEvent>,
    backoff: &mut Backoff,
    said: &mut bool,
) -> AgentError {
    let mut stream = match agent.watch_pods().await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    let mut first = true;
    loop {
        let next = if first {
            let missing = Some(Err(AgentError::Timeout { call: "WatchPods", after: FIRST }));
            tokio::time::timeout(FIRST, stream.next()).await.unwrap_or(missing)
        } else {
            stream.next().await
        };
        match next {
            Some(Ok(change)) => {
                if first {
                    tracing::info!(agent = agent.address(), "connected to the pods of the node agent");
                    (first, *said) = (false, false);
                    backoff.reset();
                }
                if events.send(LinkEvent::Change(Box::new(change))).await.is_err() {
                    return AgentError::Unreachable { message: "nobody listens any more".to_owned() };
                }
            }
            Some(Err(error)) => return error,
            None => return AgentError::Unreachable { message: "the agent has ended the stream".to_owned() },
        }
    }
}
