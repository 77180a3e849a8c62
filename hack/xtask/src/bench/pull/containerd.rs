//! containerd as an engine: its daemon with the overlay snapshotter and runc, driven by its own command line. From the
//! start of `ctr images pull` until `ctr run --detach` comes back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use tokio::process::Command;
use tokio::time::{Duration, Instant, sleep};

use super::account::{Account, PODS};
use super::engine::{DEADLINE, Engine, Start};
use super::remains;
use crate::bench::pods::COMMAND;
use crate::process::{self, Process, Spec};
use crate::up::layout::Layout;
use crate::{peer, prerequisites};

/// Between two looks at something that tells nobody.
const LOOK: Duration = Duration::from_millis(20);
/// How many layers are unpacked at the same time. The default is one; ours unpacks as many as it transfers.
const UNPACKS: usize = 4;
/// Parts that are not used: they would make folders, sockets and connections of their own.
const WITHOUT: [&str; 6] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
];

/// The daemon that is measured.
#[derive(Debug)]
pub(super) struct Containerd {
    layout: Layout,
    programs: PathBuf,
    side: String,
    warm_up: Start,
    running: Option<Process>,
}

impl Containerd {
    pub(super) fn new(layout: &Layout, warm_up: Start) -> Result<Self> {
        let side = format!("containerd {}", peer::containerd_version()?);
        Ok(Self { layout: layout.clone(), programs: peer::folder(), side, warm_up, running: None })
    }

    fn socket(&self) -> PathBuf {
        remains::containerd_state(&self.layout).join("containerd.sock")
    }

    /// Runs `ctr`, counted with the daemon.
    async fn ctr(&self, account: &Account, args: &[&str]) -> Result<()> {
        let output = Command::new("sh")
            .args(["-c", "echo 0 >\"$0\" && exec \"$@\""])
            .arg(account.processes())
            .arg(self.programs.join("ctr"))
            .arg("--address")
            .arg(self.socket())
            .args(args)
            .env("PATH", self.path()?)
            .kill_on_drop(true)
            .output()
            .await
            .context("run ctr")?;
        ensure!(output.status.success(), "ctr {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Where the daemon looks for its shim, and the shim for runc.
    fn path(&self) -> Result<String> {
        let runc = prerequisites::find("runc").context("find runc")?;
        let beside = runc.parent().context("find runc's folder")?;
        let path = std::env::var("PATH").unwrap_or_default();
        Ok(format!("{}:{}:{path}", self.programs.display(), beside.display()))
    }

    async fn pull_and_run(&self, account: &Account, image: &str, name: &str) -> Result<()> {
        let hosts = self.layout.registries().display().to_string();
        self.ctr(account, &["images", "pull", "--hosts-dir", &hosts, image]).await?;
        let state = remains::containerd_state(&self.layout);
        let (runc, fifos) = (state.join("runc").display().to_string(), state.join("fifo").display().to_string());
        let cgroup = format!("/{PODS}/{name}");
        let run = ["run", "--detach", "--runc-root", &runc, "--fifo-dir", &fifos, "--cgroup", &cgroup, image, name];
        self.ctr(account, &[&run[..], &COMMAND].concat()).await
    }
}

impl Engine for Containerd {
    fn side(&self) -> &str {
        &self.side
    }

    async fn begin(&mut self, store: &Path, account: &Account) -> Result<()> {
        let state = remains::containerd_state(&self.layout);
        fs::create_dir_all(&state).with_context(|| format!("create {}", state.display()))?;
        let file = state.join("config.toml");
        fs::write(&file, config(&store.join("containerd"), &state, &self.socket()))
            .context("write the configuration")?;
        let spec = Spec::new(remains::CONTAINERD, &self.layout.run(), self.programs.join("containerd"))
            .flag("--config", file.display())
            .env("PATH", self.path()?);
        let process = process::start(&spec)?;
        account.admit(process.pid())?;
        self.running = Some(process.clone());
        let deadline = Instant::now() + DEADLINE;
        while let Err(err) = self.ctr(account, &["version"]).await {
            ensure!(process.is_running() && Instant::now() < deadline, "{err:#}\n{}", process.log_tail(20));
            sleep(LOOK).await;
        }
        let warm_up = self.warm_up.clone();
        self.start(&warm_up, account).await
    }

    async fn start(&mut self, start: &Start, account: &Account) -> Result<()> {
        let this = &*self;
        let all =
            start.names().into_iter().map(|name| async move { this.pull_and_run(account, &start.image, &name).await });
        try_join_all(all).await.map(drop)
    }

    fn daemon(&self) -> Result<&Process> {
        self.running.as_ref().context("containerd does not run")
    }

    async fn steps(&mut self, _start: &Start) -> Result<BTreeMap<String, Vec<f64>>> {
        Ok(BTreeMap::new())
    }

    async fn end(&mut self) -> Result<()> {
        self.running = None;
        let layout = self.layout.clone();
        tokio::task::spawn_blocking(move || remains::end_containerd(&layout)).await.context("ending it panicked")?
    }
}

/// The configuration: what `containerd config default` says, but for where things are and how many layers are unpacked.
fn config(root: &Path, state: &Path, socket: &Path) -> String {
    let (root, state, socket) = (root.display(), state.display(), socket.display());
    let without = WITHOUT.map(|part| format!("\"{part}\"")).join(", ");
    format!(
        "version = 4\nroot = \"{root}\"\nstate = \"{state}\"\ndisabled_plugins = [{without}]\n\n\
         [plugins.\"io.containerd.server.v1.grpc\"]\n  address = \"{socket}\"\n\n\
         [plugins.\"io.containerd.server.v1.ttrpc\"]\n  address = \"{socket}.ttrpc\"\n\n\
         [plugins.\"io.containerd.transfer.v1.local\"]\n  max_concurrent_downloads = {UNPACKS}\n  \
         max_concurrent_unpacks = {UNPACKS}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_toml_and_names_our_folders() {
        let text = config(Path::new("/store"), Path::new("/run/x"), Path::new("/run/x/c.sock"));
        let config: toml::Value = toml::from_str(&text).unwrap();
        assert_eq!(config["root"].as_str(), Some("/store"));
        assert_eq!(config["plugins"]["io.containerd.server.v1.grpc"]["address"].as_str(), Some("/run/x/c.sock"));
        assert_eq!(config["disabled_plugins"].as_array().map(Vec::len), Some(WITHOUT.len()));
    }
}
