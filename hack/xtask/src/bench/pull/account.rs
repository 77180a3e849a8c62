//! What an engine costs: the CPU time of everything that runs in its cgroup, and the greatest resident memory of its daemon.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::bench::memory::kilobytes;
use crate::mounts::{self, Mount};

/// The cgroup of what is measured; only one engine runs at a time.
pub(in crate::bench) const CGROUP: &str = "larder-bench";
/// Below it: the cgroup of the containers.
pub(in crate::bench) const PODS: &str = "larder-bench/pods";

/// The engine's cgroup in the hierarchy that counts CPU time.
#[derive(Debug)]
pub(in crate::bench) struct Account {
    dir: PathBuf,
    /// The file with the time, and nanoseconds in one unit of it.
    usage: (PathBuf, u64),
}

impl Account {
    /// Opens one.
    pub(in crate::bench) fn open() -> anyhow::Result<Self> {
        let (mount, version) = hierarchy(&mounts::read()?).context("no cgroup hierarchy counts CPU time")?;
        let dir = mount.join(CGROUP);
        // Processes are in a leaf of their own: version 2 allows none beside cgroups.
        let leaf = dir.join("engine");
        fs::create_dir_all(&leaf).with_context(|| format!("create cgroup {}", leaf.display()))?;
        let usage = match version {
            Version::One => (dir.join("cpuacct.usage"), 1),
            Version::Two => (dir.join("cpu.stat"), 1000),
        };
        Ok(Self { dir, usage })
    }

    /// The file that a process writes 0 to, to be counted.
    pub(in crate::bench) fn processes(&self) -> PathBuf {
        self.dir.join("engine/cgroup.procs")
    }

    /// Counts this process from now on, and what it starts.
    pub(in crate::bench) fn admit(&self, pid: i32) -> anyhow::Result<()> {
        fs::write(self.processes(), pid.to_string()).with_context(|| format!("put process {pid} into {CGROUP}"))
    }

    /// CPU time of all, those that have ended among them.
    pub(in crate::bench) fn cpu(&self) -> anyhow::Result<Duration> {
        let (path, unit) = &self.usage;
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let units = first_number(&text).with_context(|| format!("{} has no number", path.display()))?;
        Ok(Duration::from_nanos(units * unit))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where CPU time is counted.
fn hierarchy(mounts: &[Mount]) -> Option<(PathBuf, Version)> {
    let of = |found: Option<&Mount>, version| found.map(|mount| (mount.point.clone(), version));
    let counts = |mount: &Mount| mount.options.split(',').any(|option| option == "cpuacct");
    let one = mounts.iter().find(|mount| mount.kind == "cgroup" && counts(mount));
    of(one, Version::One).or_else(|| of(mounts.iter().find(|mount| mount.kind == "cgroup2"), Version::Two))
}

/// `cpuacct.usage` is a number; `cpu.stat` begins with a line `usage_usec NUMBER`.
fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().find_map(|word| word.parse().ok())
}

/// The greatest resident memory of a process from now on.
pub(in crate::bench) fn reset_peak(pid: i32) -> anyhow::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").with_context(|| format!("reset the peak memory of process {pid}"))
}

/// The greatest resident memory since the last reset, in MiB.
pub(in crate::bench) fn peak_mebibytes(pid: i32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    Ok(kilobytes(&path, "VmHWM:")? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_that_counts_is_found() {
        let one = "30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                   31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(hierarchy(&mounts::parse(one)), Some((PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"), Version::One)));
        let two = "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate\n";
        assert_eq!(hierarchy(&mounts::parse(two)), Some((PathBuf::from("/sys/fs/cgroup"), Version::Two)));
        assert_eq!(hierarchy(&mounts::parse("1 1 0:1 / / rw - ext4 /dev/a rw\n")), None);
    }

    #[test]
    fn both_forms_of_the_time_are_read() {
        assert_eq!(first_number("123456\n"), Some(123_456));
        assert_eq!(first_number("usage_usec 77\nuser_usec 70\n"), Some(77));
        assert_eq!(first_number("\n"), None);
    }

    #[test]
    fn the_peak_of_this_process_is_seen() {
        let own = i32::try_from(std::process::id()).unwrap();
        reset_peak(own).unwrap();
        let before = peak_mebibytes(own).unwrap();
        let memory = std::hint::black_box(vec![1u8; 64 << 20]);
        drop(memory);
        let peak = peak_mebibytes(own).unwrap();
        assert!(peak > before + 32.0, "{before} {peak}");
    }
}
