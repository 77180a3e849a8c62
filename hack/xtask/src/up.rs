//! `cargo xtask up`: from nothing to a running cluster with a virtual node and the documented Deployments on it.
//!
//! Every step finds out what is there already, so that a second call takes seconds. What was started is written down
//! where `cargo xtask down` finds it.

pub mod layout;

pub(crate) mod guard;
pub(crate) mod sample;

mod cluster;
mod guest;
mod images;
mod nodes;
mod report;
mod stopwatch;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use rustix::process::geteuid;

use crate::console::blocking_step;
use crate::{controlplane_program, prerequisites, workspace};
use cluster::Cluster;
use layout::{Layout, Settings};

/// How the cluster is to be.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of agents, hence of virtual nodes, each with its own state folder and subnet
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    nodes: u8,
    /// Use the cluster of this kubeconfig instead of an embedded control plane
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The address that the API server reaches this machine at (default: the one this machine reaches others from)
    #[arg(long, value_name = "IP")]
    node_ip: Option<std::net::Ipv4Addr>,
    /// What the virtual nodes are called before their number, in a cluster that is there [default: virtual-node-eci]
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    node_name: Option<String>,
    /// Addresses of our pods in a cluster that is there, a /24 an agent; no other node's [default: 10.245.0.0/16]
    #[arg(long, value_name = "CIDR", requires = "kubeconfig")]
    pod_cidr: Option<ipnet::Ipv4Net>,
    /// Do not apply the sample Deployments
    #[arg(long)]
    empty: bool,
}

/// Brings the cluster up.
///
/// # Errors
/// When a step fails; the message says which and why.
pub async fn run(args: Args) -> anyhow::Result<()> {
    ensure!(geteuid().is_root(), "agents make namespaces and mounts: run this as root");
    let layout = Layout::new(&workspace::state());
    let settings = settings(&layout, &args).await?;
    blocking_step("look for the programs that are needed", prerequisites::ensure_all).await?;
    build_programs(&layout, &settings).await?;
    // Before anything is started, so that hack/down ends what a failed start leaves.
    settings.write(&layout)?;
    images::serve(&layout).await?;
    let cluster = Cluster::connect(&layout, &settings).await?;
    nodes::start(&layout, &settings, &cluster).await?;
    let stopwatch = if args.empty { None } else { Some(sample::run(&layout, &settings, &cluster).await?) };
    report::show(&layout, &settings, &cluster, stopwatch.as_ref()).await
}

/// What this cluster is, from the command line and from what runs already.
async fn settings(layout: &Layout, args: &Args) -> anyhow::Result<Settings> {
    let external = match &args.kubeconfig {
        Some(file) => Some(std::fs::canonicalize(file).with_context(|| format!("find {}", file.display()))?),
        None => None,
    };
    let node_ip = match (args.node_ip, &external) {
        (Some(address), _) => address,
        (None, Some(file)) => layout::own_address(Some(&cluster::server_address(file).await?)),
        (None, None) => layout::own_address(None),
    };
    let mut wanted = Settings::new(args.nodes, external, node_ip)?;
    if let Some(name) = &args.node_name {
        wanted.node_name.clone_from(name);
    }
    wanted.pods = args.pod_cidr.map_or(wanted.pods, |pods| pods.trunc());
    wanted.check()?;
    let Some(running) = Settings::read(layout)? else { return Ok(wanted) };
    ensure!(
        running.external == wanted.external,
        "a cluster of another kind is up (control plane: {}); run hack/down first",
        running.external.as_deref().map_or_else(|| "embedded".into(), |file| file.display().to_string()),
    );
    ensure!(running.nodes <= wanted.nodes, "{} nodes are up; to have fewer run hack/down first", running.nodes);
    let moved = (args.node_name.is_some() && wanted.node_name != running.node_name)
        || (args.pod_cidr.is_some() && wanted.pods != running.pods);
    ensure!(!moved, "nodes are up as {}-0 with pods in {}; run hack/down first", running.node_name, running.pods);
    let settings = Settings { nodes: wanted.nodes, node_ip: args.node_ip.unwrap_or(running.node_ip), ..running };
    settings.check()?;
    Ok(settings)
}

/// Builds what the cluster consists of.
async fn build_programs(layout: &Layout, settings: &Settings) -> anyhow::Result<()> {
    let programs = layout.programs();
    if settings.external.is_none() || prerequisites::find("kubectl").is_none() {
        let title = if controlplane_program::is_current(&programs)? {
            "build the control plane"
        } else {
            "build the control plane (five minutes on two cores, once)"
        };
        blocking_step(title, move || controlplane_program::build(&programs)).await?;
    }
    blocking_step("build larder-provider, larder-node-agent, larder-monitor and larderctl", build_larder).await
}

/// Builds Larder's own programs as they are shipped.
///
/// # Errors
/// When the build fails.
pub fn build_larder() -> anyhow::Result<()> {
    let status = workspace::cargo()
        .args([
            "build",
            "--release",
            "--quiet",
            "-p",
            "larder-provider",
            "-p",
            "larder-node-agent",
            "-p",
            "larder-monitor",
            "-p",
            "larderctl",
        ])
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "cargo build: {status}");
    Ok(())
}
