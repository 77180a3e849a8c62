//! What stands ready for the engines: programs, a registry with the large image, a folder for disks. No cluster is needed;
//! one that is up stays as it is.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::process::geteuid;

use super::case::Case;
use super::engine::Start;
use super::remains;
use crate::bench::large_image;
use crate::console::{blocking_step, step};
use crate::images::{self, BUSYBOX_DOCKER};
use crate::registry;
use crate::up::layout::{IP_FORWARD, Layout};
use crate::{peer, ports, prerequisites, up, workspace};

/// The ground that the engines stand on.
#[derive(Debug)]
pub(in crate::bench) struct Ground {
    layout: Layout,
    /// Where the bench's own registry listens: the cluster's may be up, or another program may have its port.
    registry: SocketAddr,
    /// Whether the kernel forwarded packets; the agent turns it on.
    ip_forward: String,
}

impl Ground {
    /// Builds and starts what is not there.
    pub(in crate::bench) async fn take() -> Result<Self> {
        ensure!(geteuid().is_root(), "engines make namespaces and mounts: run this as root");
        let layout = Layout::new(&workspace::state());
        blocking_step("look for the programs that are needed", prerequisites::ensure_for_peers).await?;
        blocking_step("build containerd (two minutes on two cores, once)", peer::build_containerd).await?;
        blocking_step("build larder-node-agent and larder-monitor", up::build_larder).await?;
        let killed = layout.clone();
        blocking_step("clear what a bench that was killed has left", move || remains::clear(&killed)).await?;
        large_image::make(&layout).await?;
        let [port] = ports::free()?;
        let config = registry::Config {
            dir: remains::registry(&layout),
            storage: layout.registry_storage(),
            listen: (Ipv4Addr::LOCALHOST, port).into(),
            program: prerequisites::find("docker-registry").context("find docker-registry")?,
        };
        step("start a registry", registry::start(&config)).await?;
        fs::create_dir_all(layout.registries()).context("create the folder of registries")?;
        let ip_forward = fs::read_to_string(IP_FORWARD).with_context(|| format!("read {IP_FORWARD}"))?;
        large_image::push(&layout, config.listen).await?;
        Ok(Self { layout, registry: config.listen, ip_forward })
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The folder of the disks.
    pub(super) fn folder(&self) -> PathBuf {
        remains::folder(&self.layout)
    }

    /// The start before all others in a life.
    pub(super) fn warm_up(&self) -> Start {
        Start { image: self.image(BUSYBOX_DOCKER), containers: 1, name: "warm-up".to_owned() }
    }

    /// The starts of a case.
    pub(super) fn starts(&self, case: &Case) -> Vec<Start> {
        let start = |(at, step): (usize, &super::case::Step)| Start {
            image: self.image(step.image),
            containers: step.containers,
            name: format!("bench-{at}"),
        };
        case.steps.iter().enumerate().map(start).collect()
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry)
    }

    /// Bytes of an image's layers as plain tars.
    pub(super) async fn plain_bytes(&self, image: &'static str) -> Result<u64> {
        let out = self.layout.images();
        tokio::task::spawn_blocking(move || images::plain_bytes(&out, image)).await.context("counting panicked")?
    }

    /// Ends what the bench started.
    pub(in crate::bench) async fn leave(self) -> Result<()> {
        blocking_step("clear what the bench has left", move || {
            remains::clear(&self.layout)?;
            fs::write(IP_FORWARD, &self.ip_forward).with_context(|| format!("set {IP_FORWARD} back"))
        })
        .await
    }
}
