//! Waits for an API server to be ready. It tells nobody when it is, so it is asked until it says so.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::time::{Instant, sleep};

use crate::process::Process;

/// How long a start may take; it took 3 s on two idle cores.
const DEADLINE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

/// Comes back when the API server that runs as this process answers `ok`.
pub(super) async fn wait(kubeconfig: &Path, process: &Process) -> anyhow::Result<()> {
    let client = client(kubeconfig).await?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let request = http::Request::get("/readyz").body(Vec::new())?;
        let answer = tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await;
        if matches!(&answer, Ok(Ok(text)) if text == "ok") {
            return Ok(());
        }
        if !process.is_running() {
            bail!("{} ended:\n{}", process.name(), process.log_tail(20));
        }
        if Instant::now() > deadline {
            bail!("{} is not ready after {DEADLINE:?}: {answer:?}\n{}", process.name(), process.log_tail(20));
        }
        sleep(PAUSE).await;
    }
}

/// A client that uses this kubeconfig and nothing else.
async fn client(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    let file = Kubeconfig::read_from(kubeconfig).context("read the kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}
