//! Tells from the agent's stream of facts whether the host lives.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::node_object::Host;
use crate::agent::{AgentClient, AgentError, AgentStream, NodeFacts};

/// The agent says something every 3 seconds at least; after this long without a word it counts as lost.
const SILENCE: Duration = Duration::from_secs(8);
/// Between two tries to reach it.
const RETRY: Duration = Duration::from_millis(500);

/// Writes what is known of the host until the owner drops this. A short break, such as a restart of the agent, changes
/// nothing.
pub(super) async fn follow(agent: Arc<dyn AgentClient>, host: watch::Sender<Host>) {
    let mut heard = Instant::now();
    loop {
        let error = listen(&*agent, &host, &mut heard).await;
        let left = SILENCE.saturating_sub(heard.elapsed());
        if left.is_zero() {
            lose(&host, &format!("node agent at {} does not answer: {error}", agent.address()));
        }
        tokio::time::sleep(RETRY.min(left.max(Duration::from_millis(50)))).await;
    }
}

async fn listen(agent: &dyn AgentClient, host: &watch::Sender<Host>, heard: &mut Instant) -> AgentError {
    let silence = |heard: &Instant| {
        let left = SILENCE.saturating_sub(heard.elapsed());
        // Once it is lost, each try gets its full time.
        if left.is_zero() { SILENCE } else { left }
    };
    let silent = AgentError::Timeout { call: "WatchNode", after: SILENCE };
    let mut facts: AgentStream<NodeFacts> = match tokio::time::timeout(silence(heard), agent.watch_node()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return error,
        Err(_) => return silent,
    };
    loop {
        match tokio::time::timeout(silence(heard), facts.next()).await {
            Ok(Some(Ok(facts))) => {
                *heard = Instant::now();
                let alive = Host::Alive(facts);
                host.send_if_modified(|known| {
                    let differs = *known != alive;
                    *known = alive;
                    differs
                });
            }
            Ok(Some(Err(error))) => return error,
            Ok(None) => return AgentError::Unreachable { message: "the agent has ended the stream".to_owned() },
            Err(_) => return silent,
        }
    }
}

fn lose(host: &watch::Sender<Host>, message: &str) {
    host.send_if_modified(|known| {
        let now = match known.clone() {
            Host::Unheard | Host::Unknown { .. } => Host::Unknown { message: message.to_owned() },
            // The first reason says most; the later ones only that it is still so.
            Host::Lost { .. } => return false,
            Host::Alive(last) => Host::Lost { last, message: message.to_owned() },
        };
        let differs = *known != now;
        *known = now;
        differs
    });
}
