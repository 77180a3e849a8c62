//! The engines that Larder is measured beside: built from their own Go modules in the versions that `hack/peers` names.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use crate::go_program::{GoProgram, required_version};
use crate::workspace;

const MODULE: &str = "github.com/containerd/containerd/v2";

/// The folder with containerd, its shim and its command line.
#[must_use]
pub(crate) fn folder() -> PathBuf {
    workspace::state().join("peers/containerd")
}

/// The version of containerd.
///
/// # Errors
/// When its `go.mod` cannot be read.
pub(crate) fn containerd_version() -> anyhow::Result<String> {
    let file = containerd("").folder().join("go.mod");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    required_version(&text, MODULE).with_context(|| format!("{} does not require {MODULE}", file.display()))
}

/// Builds containerd if it is not current; two minutes on two cores the first time.
///
/// # Errors
/// When the build fails.
pub(crate) fn build_containerd() -> anyhow::Result<()> {
    let link_flags = format!("-s -w -X {MODULE}/version.Version=v{}", containerd_version()?);
    containerd(&link_flags).build(&folder())
}

fn containerd(link_flags: &str) -> GoProgram<'_> {
    GoProgram {
        module: "hack/peers/containerd",
        sources: &["go.mod", "go.sum"],
        // The three that its go.mod names.
        package: "tool",
        // btrfs is the one part that needs C.
        tags: "no_btrfs",
        link_flags,
        programs: &["containerd", "containerd-shim-runc-v2", "ctr"],
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_known() {
        assert!(super::containerd_version().unwrap().starts_with("2."));
    }
}
