//! SIGTERM and SIGINT: the first asks for an orderly end, the second for one at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;

/// The signals, from when it is made.
#[derive(Debug)]
pub(super) struct Signals {
    both: Mutex<(Signal, Signal)>,
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        let both = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { both: Mutex::new(both) })
    }

    /// Waits for one, and names it.
    pub(super) async fn first(&self) -> &'static str {
        let mut both = self.both.lock().await;
        let (terminate, interrupt) = &mut *both;
        // A signal that is not taken stays.
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    }

    /// Waits for one more.
    pub(super) async fn second(&self) {
        self.first().await;
    }
}
