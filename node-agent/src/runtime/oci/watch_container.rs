//! The task that listens to one container's monitor, and cleans up when the monitor was killed.
//!
//! ```text
//! connected --monitor ends--> settling --exit.json is there and the runtime let go--> gone
//!     ^                          |
//!     +-- the connection was     +--else: collect, again and again with a growing pause
//!         lost, not the monitor
//! ```

use std::io;
use std::sync::Arc;
use std::time::Duration;

use larder_monitor::files::{self, EXIT_FILE, REMOVED_FILE};
use larder_monitor::wire::Event;
use larder_monitor::{Exit, FileError};
use tokio::process::Child;

use super::{Entry, Inner};
use crate::host::process::ProcessIdentity;
use crate::runtime::ContainerState;
use crate::runtime::exit::{container_exit, timestamp};
use crate::runtime::monitor_client::{self, Connection};

/// The pauses between attempts to clean up after a monitor.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The pause before connecting to a monitor again that is there but does not take us.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Listens until the container is gone, or the runtime is dropped.
pub(super) async fn watch(inner: Arc<Inner>, entry: Arc<Entry>, monitor: Option<Child>) {
    let work = async {
        listen(&entry).await;
        if let Some(mut monitor) = monitor {
            // It has closed its socket, so it ends at once. How it ended is told by the files that it leaves.
            drop(monitor.wait().await);
        }
        settle(&inner, &entry).await;
    };
    tokio::select! {
        // Whatever was under way is found again in the run directory by the next runtime that is opened.
        () = inner.stop.cancelled() => {}
        () = work => {}
    }
}

/// Takes what the monitor says until it has ended.
async fn listen(entry: &Entry) {
    loop {
        match Connection::open(&entry.dirs.run).await {
            Ok(connection) => take_events(entry, connection).await,
            // Only a process that holds the socket keeps it from saying that.
            Err(err) if matches!(err.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => return,
            Err(err) => {
                tracing::debug!(container = %entry.record.id, %err, "connect to monitor");
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        }
    }
}

async fn take_events(entry: &Entry, mut connection: Connection) {
    loop {
        match connection.next().await {
            Ok(Some(event)) => take_event(entry, event),
            Ok(None) => return,
            Err(err) => {
                tracing::debug!(container = %entry.record.id, %err, "read from monitor");
                return;
            }
        }
    }
}

fn take_event(entry: &Entry, event: Event) {
    match event {
        Event::Starting => {}
        Event::Started(state) => {
            // Said again after every new connection, and always the same.
            let _ = entry.process.set(ProcessIdentity { pid: state.pid, start_time: state.start_time });
            let running = ContainerState::Running {
                pid: u32::try_from(state.pid).unwrap_or(0),
                started_at: timestamp(state.started_at),
            };
            let news = entry.state.send_if_modified(|known| {
                let news = *known == ContainerState::Starting;
                if news {
                    *known = running;
                }
                news
            });
            if news {
                tracing::debug!(container = %entry.record.id, pid = state.pid, "container runs");
            }
        }
        Event::Exited(exit) => take_exit(entry, &exit),
    }
}

fn take_exit(entry: &Entry, exit: &Exit) {
    entry.state.send_if_modified(|known| {
        let news = !matches!(known, ContainerState::Exited(_));
        if news {
            *known = ContainerState::Exited(container_exit(exit));
        }
        news
    });
}

/// The monitor is gone: sees to it that the container is too, and that its end is known.
async fn settle(inner: &Inner, entry: &Entry) {
    let mut pause = FIRST_PAUSE;
    loop {
        match read_exit(entry) {
            Ok(Some(exit)) => {
                take_exit(entry, &exit);
                if entry.dirs.run.join(REMOVED_FILE).exists() {
                    break;
                }
            }
            Ok(None) => tracing::warn!(
                container = %entry.record.id,
                said = %monitor_client::last_words(&entry.dirs.run),
                "the container's monitor has died, ending the container"
            ),
            Err(err) => {
                tracing::warn!(container = %entry.record.id, error = &err as &dyn std::error::Error, "read exit");
            }
        }
        if let Err(err) = monitor_client::collect(&inner.config.monitor, &entry.dirs.run).await {
            tracing::warn!(container = %entry.record.id, %err, "collect container");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
    entry.gone.send_replace(true);
}

fn read_exit(entry: &Entry) -> Result<Option<Exit>, FileError> {
    files::read_json(&entry.dirs.run, EXIT_FILE)
}
