//! Builds the control plane's program from `hack/controlplane` with Go, once: it is current while the hash of its
//! sources and of Go's version is the one it was built from.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{console, workspace};

/// The Kubernetes version that `hack/controlplane/go.mod` names, as the components report it.
const KUBERNETES: [&str; 3] = ["1", "37", "2"];
const PROGRAM: &str = "larder-controlplane";
const STAMP: &str = "larder-controlplane.stamp";
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

/// The components in the program.
pub const COMPONENTS: [&str; 7] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];

/// The folder that holds the program and one link a component.
#[must_use]
pub fn folder() -> PathBuf {
    workspace::state().join("bin")
}

/// Whether the program in this folder is built from the sources as they are.
///
/// # Errors
/// When a source cannot be read or Go is missing.
pub fn is_current(folder: &Path) -> anyhow::Result<bool> {
    Ok(folder.join(PROGRAM).exists()
        && fs::read_to_string(folder.join(STAMP)).is_ok_and(|old| Ok(old) == stamp().map_err(drop)))
}

/// Builds the program if it is not current; five minutes on two cores the first time.
///
/// # Errors
/// When the build fails.
pub fn build(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let stamp = stamp()?;
    if !is_current(folder)? {
        let fresh = folder.join(format!("{PROGRAM}.new"));
        let mut build = Command::new("go")
            .args(["build", "-trimpath", "-ldflags", &link_flags(), "-o"])
            .arg(&fresh)
            .arg(".")
            .current_dir(sources())
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly")
            .stderr(Stdio::piped())
            .spawn()
            .context("run go")?;
        if let Some(messages) = build.stderr.take() {
            show_messages(messages).context("read what go says")?;
        }
        let status = build.wait().context("wait for go")?;
        ensure!(status.success(), "building the control plane: {status}");
        // Renamed, not written over: the old one may be running.
        fs::rename(&fresh, folder.join(PROGRAM)).context("put the program in place")?;
        fs::write(folder.join(STAMP), stamp).context("write the stamp")?;
    }
    COMPONENTS.iter().try_for_each(|component| link(folder, component))
}

/// Shows what Go says, but for the line that it writes for each of two hundred modules that it fetches.
fn show_messages(messages: impl Read) -> std::io::Result<()> {
    for line in BufReader::new(messages).lines() {
        let line = line?;
        if !line.starts_with("go: downloading ") {
            console::note(&line);
        }
    }
    Ok(())
}

fn link(folder: &Path, component: &str) -> anyhow::Result<()> {
    match symlink(PROGRAM, folder.join(component)) {
        Err(err) if err.kind() != std::io::ErrorKind::AlreadyExists => bail!("link {component}: {err}"),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sources() -> PathBuf {
    workspace::root().join("hack/controlplane")
}

/// Without these the components call themselves v0.0.0-master, which clients cannot parse.
fn link_flags() -> String {
    let [major, minor, patch] = KUBERNETES;
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        let values = [
            ("gitVersion", format!("v{major}.{minor}.{patch}")),
            ("gitMajor", major.to_owned()),
            ("gitMinor", minor.to_owned()),
            ("gitTreeState", "clean".to_owned()),
        ];
        for (name, value) in values {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

fn stamp() -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    for name in SOURCES {
        let path = sources().join(name);
        hash.update(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    let go = Command::new("go").arg("version").current_dir(sources()).output().context("run go")?;
    ensure!(go.status.success(), "go version: {}", String::from_utf8_lossy(&go.stderr));
    hash.update(&go.stdout);
    hash.update(link_flags());
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_in_go_mod() {
        let module = fs::read_to_string(sources().join("go.mod")).expect("read go.mod");
        assert!(module.contains(&format!("k8s.io/kubernetes v{}", KUBERNETES.join("."))));
    }
}
