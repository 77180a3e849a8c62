//! Up, down, up, down: nothing is left on the machine, and a cluster that is up already is found so within seconds.
//!
//! The only test that uses the ports, bridges and folders of `hack/up` itself, hence alone in its program.

#![expect(clippy::tests_outside_test_module, reason = "the whole file is one")]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use larder_dev::footprint::Footprint;
use larder_dev::up::layout::{Layout, Settings};
use larder_dev::workspace;
use tokio::time::{Instant, sleep};

/// How long the kernel may take to remove the links of namespaces that are gone.
const SETTLE: Duration = Duration::from_secs(30);
/// What "takes seconds" means for a cluster that is up already, on a machine that is busy with nothing else.
const SECOND_CALL: Duration = Duration::from_secs(20);

fn hack(command: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(workspace::root().join("hack").join(command)).args(args).output().context("run hack")?;
    ensure!(
        output.status.success(),
        "hack/{command} {args:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Waits until nothing is there that was not there before.
async fn settled(before: &Footprint) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let left = Footprint::take()?.since(before);
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "left on the machine:\n{}", left.join("\n"));
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn up_and_down_leave_nothing() -> anyhow::Result<()> {
    let layout = Layout::new(&workspace::state());
    ensure!(Settings::read(&layout).is_none(), "a cluster is up on this machine; run hack/down first");
    let before = Footprint::take()?;
    for _ in 0..2 {
        hack("up", &["--nodes", "2"])?;
        ensure!(!Footprint::take()?.since(&before).is_empty(), "a cluster that is up has a footprint");
        let again = Instant::now();
        hack("up", &["--nodes", "2"])?;
        ensure!(again.elapsed() < SECOND_CALL, "the second call took {:?}", again.elapsed());
        hack("down", &[])?;
        settled(&before).await?;
    }
    Ok(())
}
