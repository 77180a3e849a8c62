//! kube-proxy on this machine, so that Service addresses work from pods. It writes the nftables tables `kube-proxy` of
//! the network namespace that it runs in.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use super::Config;
use crate::process::{self, Process, Spec};

const NAME: &str = "kube-proxy";

/// Starts it if it does not run. `node` names the Node whose addresses become those of NodePort Services; it should be
/// there, or kube-proxy waits for it for half a minute.
///
/// # Errors
/// When it cannot be started.
pub fn start(config: &Config, node: &str) -> anyhow::Result<Process> {
    let file = config.dir.join("kube-proxy.json");
    let settings = settings(&config.dir.join("pki/kube-proxy.kubeconfig"), &config.pod_cidr, node);
    fs::write(&file, format!("{settings:#}")).context("write kube-proxy's configuration")?;
    let program = config.programs.join(NAME);
    // It ends on purpose when its Node is deleted or changes address, and expects to be started again.
    let spec = Spec::new(NAME, &super::components::run_dir(&config.dir), "/bin/sh")
        .arg("-c")
        .arg("while :; do \"$@\"; sleep 1; done")
        .arg(NAME)
        .arg(program.display().to_string())
        .flag("--config", file.display());
    Ok(process::ensure(&spec, Duration::from_secs(1))?)
}

/// Ends it and removes its tables.
///
/// # Errors
/// When it does not end.
pub fn stop(dir: &Path) -> anyhow::Result<()> {
    let Some(process) = process::find(&super::components::run_dir(dir), NAME) else { return Ok(()) };
    // The shell would start it again, so both are ended at once.
    process::kill_group(process.pid()).context("end kube-proxy")?;
    process.kill()?;
    remove_tables();
    Ok(())
}

/// Removes the tables; those that are not there need no removal.
fn remove_tables() {
    for family in ["ip", "ip6"] {
        // Fails when the table is not there, which is what we want.
        drop(Command::new("nft").args(["delete", "table", family, "kube-proxy"]).output());
    }
}

/// The configuration: nftables, listening on loopback only; connection tracking limits stay the machine's own.
fn settings(kubeconfig: &Path, pod_cidr: &str, node: &str) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node,
        "clientConnection": { "kubeconfig": kubeconfig },
        "clusterCIDR": pod_cidr,
        "detectLocalMode": "ClusterCIDR",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
            "udpTimeout": "0s",
            "udpStreamTimeout": "0s",
        },
    })
}
