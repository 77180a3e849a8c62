//! `docker-registry` (CNCF distribution) on loopback, from a folder; and the mirror files that send a registry's name there.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use crate::process::{self, Process, Spec};

const NAME: &str = "docker-registry";
const GRACE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(30);

/// Where a registry lives.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pid file, log and configuration.
    pub dir: PathBuf,
    /// The blobs.
    pub storage: PathBuf,
    /// Where it listens, in plain HTTP.
    pub listen: SocketAddr,
    /// The program.
    pub program: PathBuf,
}

/// Starts it if it does not run, and waits until it accepts connections.
///
/// # Errors
/// When it ends early, or something else listens there.
pub async fn start(config: &Config) -> anyhow::Result<Process> {
    fs::create_dir_all(&config.dir).context("create the registry's folder")?;
    let file = config.dir.join("registry.json");
    fs::write(&file, format!("{:#}", settings(config))).context("write the registry's configuration")?;
    let spec = Spec::new(NAME, &config.dir, &config.program)
        .arg("serve")
        .arg(file.display().to_string())
        .env("OTEL_TRACES_EXPORTER", "none");
    let process = process::ensure(&spec, GRACE)?;
    let deadline = Instant::now() + DEADLINE;
    while tokio::net::TcpStream::connect(config.listen).await.is_err() {
        if !process.is_running() || Instant::now() > deadline {
            bail!("the registry does not listen on {}:\n{}", config.listen, process.log_tail(20));
        }
        sleep(Duration::from_millis(20)).await;
    }
    if !process.is_running() {
        bail!("something else listens on {}:\n{}", config.listen, process.log_tail(20));
    }
    Ok(process)
}

/// Ends the registry of this folder, if it runs.
///
/// # Errors
/// When it does not end.
pub fn stop(dir: &Path) -> anyhow::Result<()> {
    process::find(dir, NAME).map_or(Ok(()), |process| Ok(process.stop(GRACE)?))
}

/// Tells a node, in containerd's `hosts.toml` layout, that a registry's images come from here.
///
/// # Errors
/// When the file cannot be written.
pub fn write_mirror(registries: &Path, host: &str, mirror: SocketAddr) -> anyhow::Result<()> {
    let dir = registries.join(host);
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let text = format!(
        "server = \"https://{host}\"\n\n[host.\"http://{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    fs::write(dir.join("hosts.toml"), text).with_context(|| format!("write the mirror of {host}"))
}

fn settings(config: &Config) -> serde_json::Value {
    serde_json::json!({
        "version": "0.1",
        "log": { "level": "warn" },
        "storage": {
            "filesystem": { "rootdirectory": config.storage },
            "delete": { "enabled": true },
        },
        "http": { "addr": config.listen.to_string() },
    })
}
