//! Builds the control plane's program from `hack/controlplane` with Go, once.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::go_program::GoProgram;
use crate::workspace;

/// The Kubernetes version that `hack/controlplane/go.mod` names, as the components report it.
const KUBERNETES: [&str; 3] = ["1", "37", "2"];
const PROGRAM: &str = "larder-controlplane";

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
    program(&link_flags()).is_current(folder)
}

/// Builds the program if it is not current; five minutes on two cores the first time.
///
/// # Errors
/// When the build fails.
pub fn build(folder: &Path) -> anyhow::Result<()> {
    program(&link_flags()).build(folder)?;
    COMPONENTS.iter().try_for_each(|component| link(folder, component))
}

fn program(link_flags: &str) -> GoProgram<'_> {
    GoProgram {
        module: "hack/controlplane",
        sources: &["go.mod", "go.sum", "main.go"],
        package: ".",
        tags: "",
        link_flags,
        programs: &[PROGRAM],
    }
}

fn link(folder: &Path, component: &str) -> anyhow::Result<()> {
    match symlink(PROGRAM, folder.join(component)) {
        Err(err) if err.kind() != std::io::ErrorKind::AlreadyExists => bail!("link {component}: {err}"),
        Ok(()) | Err(_) => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_program::required_version;

    #[test]
    fn the_version_is_the_one_in_go_mod() {
        let go_mod = std::fs::read_to_string(program("").folder().join("go.mod")).expect("read go.mod");
        assert_eq!(required_version(&go_mod, "k8s.io/kubernetes"), Some(KUBERNETES.join(".")));
    }
}
