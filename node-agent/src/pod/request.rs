//! What a pod's owner is asked, and why it may not be taken.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{ledger::LedgerError, wish::PodWish};

/// How many requests wait for one pod at most.
const QUEUE_LENGTH: usize = 16;

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// More requests for this pod are waiting than are kept, or it has just gone.
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

/// Where the answer to a wish goes.
pub(crate) type Reply = oneshot::Sender<Result<(), RequestError>>;

/// What the owner of one pod is asked.
#[derive(Debug)]
pub(crate) enum Request {
    /// A newer wish for the pod. Answered when it is on record.
    Run { wish: Box<PodWish>, reply: Reply },
    /// The pod is to end.
    Stop { grace: Option<Duration> },
}

/// The asking side of a pod's owner.
pub(crate) type Queue = mpsc::Sender<Request>;

/// A queue for a pod's owner.
pub(crate) fn queue() -> (Queue, mpsc::Receiver<Request>) {
    mpsc::channel(QUEUE_LENGTH)
}
