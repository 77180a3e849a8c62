//! What an agent leaves on its host when it ends: containers and their monitors, mounts, namespaces, a bridge, rules,
//! cgroups, logs. It is recognized by the agent's own folder, bridge and cgroup, so that nothing else is touched.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::larder::Agent;
use crate::mounts;

/// How long a killed process may take to be gone.
const DEADLINE: Duration = Duration::from_secs(20);

/// Removes everything.
pub(super) fn clear(agent: &Agent) -> anyhow::Result<()> {
    let pods = names_in(&agent.run_dir.join("pods"));
    // Monitors first: one that sees its container die would report it to nobody.
    kill_all(&monitors(&agent.run_dir))?;
    let cgroups = kill_cgroup(&agent.cgroup_parent)?;
    // A disk that somebody mounted for the store itself is theirs.
    unmount_below(&[&agent.run_dir, &agent.root], Some(&agent.root))?;
    remove_cgroups(&cgroups)?;
    // Both fail when the thing is not there, which is what we want.
    drop(Command::new("ip").args(["link", "delete", &agent.bridge]).output());
    drop(Command::new("nft").args(["delete", "table", "ip", &format!("larder-{}", agent.bridge)]).output());
    for uid in &pods {
        remove_logs(&agent.log_root, uid)?;
    }
    match fs::remove_dir_all(&agent.run_dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(err).with_context(|| format!("remove {}", agent.run_dir.display()));
        }
        Ok(()) | Err(_) => {}
    }
    // Only when it is empty: other agents have folders beside ours.
    if let Some(parent) = agent.run_dir.parent() {
        drop(fs::remove_dir(parent));
    }
    Ok(())
}

/// Kills what runs in a cgroup or below it, in every hierarchy. Returns its folders.
fn kill_cgroup(name: &str) -> anyhow::Result<Vec<PathBuf>> {
    let cgroups = cgroups(name)?;
    kill_all(&processes_in(&cgroups))?;
    Ok(cgroups)
}

/// Where the hierarchies of cgroups are mounted.
pub(super) fn cgroup_hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    cgroups("")
}

/// Removes the cgroups whose names begin so, in these hierarchies, where no process is left in them.
pub(super) fn remove_empty_cgroups(hierarchies: &[PathBuf], prefix: &str) {
    for hierarchy in hierarchies {
        for name in names_in(hierarchy).into_iter().filter(|name| name.starts_with(prefix)) {
            // What is in use is somebody's.
            drop(remove_cgroup(&hierarchy.join(name)));
        }
    }
}

fn remove_cgroups(cgroups: &[PathBuf]) -> anyhow::Result<()> {
    for cgroup in cgroups {
        remove_cgroup(cgroup).with_context(|| format!("remove cgroup {}", cgroup.display()))?;
    }
    Ok(())
}

/// Kills what runs in a cgroup or below it, and removes it.
pub(super) fn clear_cgroup(name: &str) -> anyhow::Result<()> {
    remove_cgroups(&kill_cgroup(name)?)
}

/// Takes away what is mounted on these folders and below them, the last first, but for what is mounted on `kept` itself.
pub(super) fn unmount_below(dirs: &[&PathBuf], kept: Option<&PathBuf>) -> anyhow::Result<()> {
    for point in mounts_below(dirs)?.iter().rev().filter(|point| Some(*point) != kept) {
        unmount(point, UnmountFlags::DETACH).with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}

fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The agent's cgroup in every hierarchy of this machine, version 1 and 2.
fn cgroups(parent: &str) -> anyhow::Result<Vec<PathBuf>> {
    let hierarchies = mounts::read()?.into_iter().filter(|mount| matches!(mount.kind.as_str(), "cgroup" | "cgroup2"));
    let mut found: Vec<PathBuf> =
        hierarchies.map(|mount| mount.point.join(parent)).filter(|path| path.is_dir()).collect();
    found.dedup();
    Ok(found)
}

/// Pids of the monitors that work in this folder.
pub(super) fn monitors(run_dir: &Path) -> BTreeSet<i32> {
    let own = format!("{}/", run_dir.display());
    names_in(Path::new("/proc"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(|pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let mut words = line.split('\0');
            words.next().is_some_and(|program| program.ends_with("larder-monitor"))
                && words.any(|word| word.contains(&own))
        })
        .collect()
}

fn processes_in(cgroups: &[PathBuf]) -> BTreeSet<i32> {
    let mut pids = BTreeSet::new();
    for cgroup in cgroups {
        walk(cgroup, &mut |dir| {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        });
    }
    pids
}

/// Calls for every folder below this one and then for itself.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        walk(&entry.path(), visit);
    }
    visit(dir);
}

/// Kills, and comes back when all are gone.
fn kill_all(pids: &BTreeSet<i32>) -> anyhow::Result<()> {
    let opened = pids.iter().filter_map(|pid| pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok());
    let opened: Vec<_> = opened.collect();
    for pidfd in &opened {
        match pidfd_send_signal(pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(errno).context("kill a process of a container"),
        }
    }
    let deadline = Timespec::try_from(DEADLINE).context("a deadline")?;
    for pidfd in &opened {
        let gone = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&deadline)).context("wait for a process")?;
        ensure!(gone > 0, "a process of a container does not die");
    }
    Ok(())
}

/// Mount points below these folders, in the order they were mounted.
fn mounts_below(dirs: &[&PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let points = mounts::read()?.into_iter().map(|mount| mount.point);
    Ok(points.filter(|point| dirs.iter().any(|dir| point.starts_with(dir))).collect())
}

/// Removes a cgroup and those below it. The kernel may take a moment after the last process is gone.
fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for _ in 0..100 {
        result = Ok(());
        walk(cgroup, &mut |dir| {
            if let Err(err) = fs::remove_dir(dir) {
                result = Err(err);
            }
        });
        if result.is_ok() {
            return result;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    result
}

/// Removes the logs of one pod, in the folder `NAMESPACE_NAME_UID`.
fn remove_logs(log_root: &Path, uid: &str) -> anyhow::Result<()> {
    for name in names_in(log_root).iter().filter(|name| name.ends_with(&format!("_{uid}"))) {
        let dir = log_root.join(name);
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walk_goes_from_the_bottom_up() {
        let dir = tempfile::tempdir().expect("make a folder");
        fs::create_dir_all(dir.path().join("a/b")).expect("make folders");
        let mut seen = Vec::new();
        walk(dir.path(), &mut |path| seen.push(path.to_owned()));
        assert_eq!(seen, [dir.path().join("a/b"), dir.path().join("a"), dir.path().to_owned()]);
    }
}
