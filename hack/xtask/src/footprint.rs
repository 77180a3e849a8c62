//! What the cluster of `hack/up` leaves on a machine, as a list that can be compared: processes, mounts, links, packet
//! filter tables, cgroups. Only what bears its names counts, because the rest of the machine, other agents among it, comes
//! and goes as it likes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// One line a thing; equal machines have equal footprints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    lines: BTreeSet<String>,
}

impl Footprint {
    /// What there is now.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub fn take() -> anyhow::Result<Self> {
        let mut lines = BTreeSet::new();
        mounts(&mut lines)?;
        links(&mut lines)?;
        rules(&mut lines)?;
        cgroups(Path::new("/sys/fs/cgroup"), &mut lines);
        processes(&mut lines)?;
        Ok(Self { lines })
    }

    /// What is here and was not in `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Vec<String> {
        self.lines.difference(&earlier.lines).cloned().collect()
    }
}

/// Whether a name is that of the cluster's i-th agent: `larder0`, `larder-0`, `larder-larder0`.
fn is_of_an_agent(name: &str) -> bool {
    let number = name.strip_prefix("larder-").unwrap_or(name);
    let number = number.strip_prefix("larder").unwrap_or(number);
    name.starts_with("larder") && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn mounts(lines: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let state = crate::workspace::state();
    for point in crate::mounts::read()?.into_iter().map(|mount| mount.point) {
        if point.starts_with("/run/larder/") || point.starts_with(&state) {
            lines.insert(format!("mount {}", point.display()));
        }
    }
    Ok(())
}

/// Bridges of ours, what is plugged into one, and ends of pods' links that are plugged into nothing any more.
fn links(lines: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir("/sys/class/net").context("read the links")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let master = fs::read_link(entry.path().join("master")).ok();
        let bridge = master.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let loose = name.starts_with("lard") && bridge.is_none() && !name.starts_with("larder");
        if loose || is_of_an_agent(&name) || bridge.is_some_and(|bridge| is_of_an_agent(&bridge)) {
            lines.insert(format!("link {name}"));
        }
    }
    Ok(())
}

/// The tables; what is in them comes and goes with them.
fn rules(lines: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let output = Command::new("nft").args(["list", "tables"]).output().context("run nft")?;
    ensure!(output.status.success(), "nft list tables: {}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let name = line.rsplit(' ').next().unwrap_or(line);
        if is_of_an_agent(name) || matches!(name, "larder-guard" | "kube-proxy") {
            lines.insert(format!("nft {line}"));
        }
    }
    Ok(())
}

/// Ours are at the top of a hierarchy, and those of pods below them.
fn cgroups(dir: &Path, lines: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if is_of_an_agent(&entry.file_name().to_string_lossy()) {
            lines.insert(format!("cgroup {}", entry.path().display()));
        }
        cgroups(&entry.path(), lines);
    }
}

/// Programs of ours that work for this cluster, and whatever runs in a cgroup of it.
fn processes(lines: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let state = crate::workspace::state().display().to_string();
    for entry in fs::read_dir("/proc").context("read the processes")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_err() || name == std::process::id().to_string() {
            continue;
        }
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        // The programs themselves lie there, or their arguments name a folder that does.
        let ours = command.contains(&state) || command.contains(" /run/larder/");
        if ours || cgroup.split(['/', '\n']).any(is_of_an_agent) {
            lines.insert(format!("process {name} {}", command.trim()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_cluster_are_told_from_others() {
        for ours in ["larder0", "larder-0", "larder-12", "larder-larder7"] {
            assert!(is_of_an_agent(ours), "{ours}");
        }
        for other in ["larder", "larder-", "larderE", "larder-eci", "lard0a1b2c3d4e", "eth0", "larder-guard"] {
            assert!(!is_of_an_agent(other), "{other}");
        }
    }
}
