//! What the measured engines leave when they end, and its removal: after each life, and after a bench that was killed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::account::CGROUP;
use super::disk::Disk;
use super::larder;
use crate::larder::Agent;
use crate::up::layout::Layout;
use crate::{down, process, registry};

/// What containerd's process is called here.
pub(in crate::bench) const CONTAINERD: &str = "bench-containerd";
/// What the kubelet's process is called here.
pub(in crate::bench) const KUBELET: &str = "bench-kubelet";
/// The bridge of the kubelet's pods.
pub(in crate::bench) const BRIDGE: &str = "larderbench0";
/// How long a daemon gets to end by itself.
const GRACE: Duration = Duration::from_secs(20);

/// The folder of the disks.
pub(in crate::bench) fn folder(layout: &Layout) -> PathBuf {
    layout.state().join("bench")
}

/// The pid file and the log of the registry.
pub(in crate::bench) fn registry(layout: &Layout) -> PathBuf {
    folder(layout).join("registry")
}

/// containerd's sockets and what it knows of running containers, on tmpfs.
pub(in crate::bench) fn containerd_state(layout: &Layout) -> PathBuf {
    // Beside the run folders of the agents, which are named by numbers.
    let agents = layout.agent(0).run_dir;
    agents.with_file_name("bench-containerd")
}

/// Ends the agent, its pods and all that they left, but for the store.
pub(in crate::bench) fn end_agent(agent: &Agent) -> Result<()> {
    down::end_agent(agent)?;
    down::clear_cgroup(CGROUP)
}

/// Ends containerd, a kubelet that drives it, their containers and all that they left, but for the store.
pub(in crate::bench) fn end_containerd(layout: &Layout) -> Result<()> {
    // Its shims outlive it, and are in the cgroup with everything else.
    for name in [KUBELET, CONTAINERD] {
        if let Some(process) = process::find(&layout.run(), name) {
            process.stop(GRACE)?;
        }
    }
    down::clear_cgroup(CGROUP)?;
    let state = containerd_state(layout);
    for namespace in ["default", "k8s.io"] {
        remove_shim_sockets(&state.join("io.containerd.runtime.v2.task").join(namespace))?;
    }
    down::unmount_below(&[&state])?;
    // Fails when it is not there, which is what we want.
    drop(Command::new("ip").args(["link", "delete", BRIDGE]).output());
    match fs::remove_dir_all(&state) {
        Err(err) if err.kind() != ErrorKind::NotFound => {
            return Err(err).with_context(|| format!("remove {}", state.display()));
        }
        Ok(()) | Err(_) => {}
    }
    // Only when no agent has a folder beside it.
    if let Some(parent) = state.parent() {
        drop(fs::remove_dir(parent));
    }
    Ok(())
}

/// Shims that were killed leave their sockets in a folder that no flag moves, where those of a containerd of the machine's
/// own are too. Each container's folder says which is its shim's.
fn remove_shim_sockets(containers: &Path) -> Result<()> {
    let Ok(containers) = fs::read_dir(containers) else { return Ok(()) };
    for container in containers.flatten() {
        let Ok(text) = fs::read(container.path().join("bootstrap.json")) else { continue };
        let Some(socket) = shim_socket(&text) else { continue };
        match fs::remove_file(&socket) {
            Err(err) if err.kind() != ErrorKind::NotFound => {
                return Err(err).with_context(|| format!("remove {}", socket.display()));
            }
            Ok(()) | Err(_) => {}
        }
        for folder in socket.ancestors().skip(1).take(2) {
            // Only when nothing else is in it.
            drop(fs::remove_dir(folder));
        }
    }
    Ok(())
}

/// The socket that a container's `bootstrap.json` names.
fn shim_socket(bootstrap: &[u8]) -> Option<PathBuf> {
    let parameters: serde_json::Value = serde_json::from_slice(bootstrap).ok()?;
    parameters.get("address")?.as_str()?.strip_prefix("unix://").map(PathBuf::from)
}

/// Removes everything that a bench leaves, if it was killed.
pub(crate) fn clear(layout: &Layout) -> Result<()> {
    end_agent(&larder::agent(layout))?;
    end_containerd(layout)?;
    registry::stop(&registry(layout))?;
    let folder = folder(layout);
    Disk::in_folder(&folder).remove()?;
    match fs::remove_dir_all(&folder) {
        Err(err) if err.kind() != ErrorKind::NotFound => {
            Err(err).with_context(|| format!("remove {}", folder.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_of_a_shim_is_read() {
        let text = br#"{"version":2,"address":"unix:///run/containerd/s/55feb","protocol":"ttrpc"}"#;
        assert_eq!(shim_socket(text), Some(PathBuf::from("/run/containerd/s/55feb")));
        assert_eq!(shim_socket(br#"{"version":2}"#), None);
        assert_eq!(shim_socket(b""), None);
    }
}
