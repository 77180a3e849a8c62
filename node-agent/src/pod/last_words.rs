//! What a container left behind when it ended: its termination message file or, where the pod asks for it, the end of its
//! log.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use k8s_openapi::api::core::v1::Container;
use tokio::sync::mpsc;

use super::{container_spec, host::Host};
use crate::{
    container_log::{self, LogOptions},
    runtime::{ContainerExit, PodIdentity},
};

/// How much of a log's end counts (`MaxContainerTerminationMessageLogLength` and `...LogLines` of the kubelet).
const LOG_BYTES: usize = 2048;
const LOG_LINES: u64 = 80;
/// How many pieces of a log wait to be taken.
const PIECES: usize = 4;

/// Where the last words of one run are found.
#[derive(Debug, Clone)]
pub(crate) struct LastWords {
    host: Arc<Host>,
    uid: String,
    container: String,
    attempt: u32,
    /// The log, where it stands in for a message that was not left.
    log: Option<PathBuf>,
}

impl LastWords {
    /// Those of a run of `container`.
    pub(crate) fn of(host: &Arc<Host>, pod: &PodIdentity, container: &Container, attempt: u32) -> Self {
        let from_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        let path = || container_spec::log_path(&host.settings.log_root, pod, &container.name, attempt);
        Self {
            host: Arc::clone(host),
            uid: pod.uid.clone(),
            container: container.name.clone(),
            attempt,
            log: from_log.then(path),
        }
    }

    /// The end of a run, with what it left behind.
    pub(crate) async fn add_to(self, mut exit: ContainerExit) -> ContainerExit {
        // Nothing of it ever ran: the runtime's words are all there is.
        if exit.started_at.is_none() {
            return exit;
        }
        let (host, uid, name, attempt) = (Arc::clone(&self.host), self.uid, self.container, self.attempt);
        let read = tokio::task::spawn_blocking(move || host.parts.files.last_message(&uid, &name, attempt));
        let mut words = read.await.unwrap_or_default();
        if let Some(log) = self.log.filter(|_| words.is_empty() && exit.exit_code != 0) {
            words = end_of(log).await;
        }
        if !words.is_empty() {
            if !exit.message.is_empty() {
                exit.message.push_str(": ");
            }
            exit.message.push_str(&words);
        }
        exit
    }
}

/// The end of a log; empty when there is none.
async fn end_of(log: PathBuf) -> String {
    let options = LogOptions { tail_lines: Some(LOG_LINES), ..LogOptions::default() };
    let (sender, mut pieces) = mpsc::channel::<Bytes>(PIECES);
    let reading = async move {
        // A log that cannot be read is one that says nothing.
        let _ = container_log::read(&log, &options, std::future::ready(()), &sender).await;
    };
    let taking = async {
        let mut end = Vec::new();
        while let Some(piece) = pieces.recv().await {
            end.extend_from_slice(&piece);
            let surplus = end.len().saturating_sub(LOG_BYTES);
            end.drain(..surplus);
        }
        end
    };
    let ((), end) = tokio::join!(reading, taking);
    String::from_utf8_lossy(&end).into_owned()
}
