//! How much processor and memory is used: by the node, by a pod, by a container.
//!
//! Read from cgroups of version 1 or 2 and from `/proc` at the moment somebody asks. Nothing is kept and nothing runs in
//! between.

mod parse;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::cgroup::{self, CgroupLayout};

/// What is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since the start, in nanoseconds.
    pub cpu_core_nanoseconds: u64,
    /// Memory charged, in bytes.
    pub memory_usage_bytes: u64,
    /// Memory charged less inactive file pages, in bytes: what a kubelet calls the working set.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory, in bytes.
    pub memory_rss_bytes: u64,
}

/// The node's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeMemory {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// What can be had without swapping, as the kernel estimates it, in bytes.
    pub available_bytes: u64,
}

/// A figure cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error("find {what} in {}", path.display())]
    Missing {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The host has no such controller.
    #[error("find the {controller} controller of this host")]
    NoController {
        /// Its name.
        controller: &'static str,
    },
}

/// Reads figures. All calls block for a few file reads.
#[derive(Debug, Clone)]
pub struct Stats {
    cgroups: CgroupLayout,
    cgroup_parent: String,
}

impl Stats {
    /// For a host with these cgroups, and pods below `cgroup_parent`.
    pub fn new(cgroups: CgroupLayout, cgroup_parent: &str) -> Self {
        Self { cgroups, cgroup_parent: cgroup_parent.to_owned() }
    }

    /// A pod's use, its containers together. `None` when none of them is there.
    ///
    /// # Errors
    /// When a file is there but cannot be read.
    pub fn pod(&self, uid: &str) -> Result<Option<Usage>, StatsError> {
        self.cgroup(&cgroup::pod_path(&self.cgroup_parent, uid))
    }

    /// A container's use. `None` when it is not there.
    ///
    /// # Errors
    /// When a file is there but cannot be read.
    pub fn container(&self, pod_uid: &str, id: &str) -> Result<Option<Usage>, StatsError> {
        self.cgroup(&cgroup::container_path(&self.cgroup_parent, pod_uid, id))
    }

    /// The node's use: all processes, the kernel's memory included.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn node(&self) -> Result<Usage, StatsError> {
        let (stat, meminfo) = (Path::new("/proc/stat"), Path::new("/proc/meminfo"));
        let ticks = find("processor times", stat, parse::busy_ticks(&read(stat)?))?;
        let memory = read(meminfo)?;
        let kilobytes = |key: &'static str| find(key, meminfo, parse::keyed(&memory, key)).map(|kb| kb * 1024);
        let used = kilobytes("MemTotal:")?.saturating_sub(kilobytes("MemFree:")?);
        Ok(Usage {
            cpu_core_nanoseconds: ticks.saturating_mul(1_000_000_000 / clock_ticks_per_second()),
            memory_usage_bytes: used,
            memory_working_set_bytes: used.saturating_sub(kilobytes("Inactive(file):")?),
            memory_rss_bytes: kilobytes("AnonPages:")?,
        })
    }

    /// The node's memory.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn node_memory(&self) -> Result<NodeMemory, StatsError> {
        let path = Path::new("/proc/meminfo");
        let memory = read(path)?;
        let kilobytes = |key: &'static str| find(key, path, parse::keyed(&memory, key)).map(|kb| kb * 1024);
        Ok(NodeMemory { total_bytes: kilobytes("MemTotal:")?, available_bytes: kilobytes("MemAvailable:")? })
    }

    fn cgroup(&self, path: &str) -> Result<Option<Usage>, StatsError> {
        let dir = |controller| self.cgroups.dir(controller, path).ok_or(StatsError::NoController { controller });
        let read = match self.cgroups {
            CgroupLayout::Unified { .. } => unified(&dir("memory")?),
            CgroupLayout::PerController { .. } | CgroupLayout::None => {
                per_controller(&dir("cpuacct")?, &dir("memory")?)
            }
        };
        match read {
            Ok(usage) => Ok(Some(usage)),
            // ENODEV: it was removed while it was read.
            Err(StatsError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(None)
            }
            Err(err) => Err(err),
        }
    }
}

/// From a directory of version 2.
fn unified(dir: &Path) -> Result<Usage, StatsError> {
    let (cpu, memory) = (dir.join("cpu.stat"), dir.join("memory.stat"));
    let microseconds = find("usage_usec", &cpu, parse::keyed(&read(&cpu)?, "usage_usec"))?;
    let stat = read(&memory)?;
    usage(
        microseconds.saturating_mul(1000),
        read_number(&dir.join("memory.current"))?,
        find("inactive_file", &memory, parse::keyed(&stat, "inactive_file"))?,
        find("anon", &memory, parse::keyed(&stat, "anon"))?,
    )
}

/// From two directories of version 1. The keys with `total_` have the groups within in them.
fn per_controller(cpuacct: &Path, memory: &Path) -> Result<Usage, StatsError> {
    let path = memory.join("memory.stat");
    let stat = read(&path)?;
    usage(
        read_number(&cpuacct.join("cpuacct.usage"))?,
        read_number(&memory.join("memory.usage_in_bytes"))?,
        find("total_inactive_file", &path, parse::keyed(&stat, "total_inactive_file"))?,
        find("total_rss", &path, parse::keyed(&stat, "total_rss"))?,
    )
}

fn usage(cpu_core_nanoseconds: u64, used: u64, inactive_file: u64, anonymous: u64) -> Result<Usage, StatsError> {
    Ok(Usage {
        cpu_core_nanoseconds,
        memory_usage_bytes: used,
        memory_working_set_bytes: used.saturating_sub(inactive_file),
        memory_rss_bytes: anonymous,
    })
}

fn read(path: &Path) -> Result<String, StatsError> {
    fs::read_to_string(path).map_err(|source| StatsError::Read { path: path.to_owned(), source })
}

fn read_number(path: &Path) -> Result<u64, StatsError> {
    find("a number", path, read(path)?.trim().parse().ok())
}

fn find<T>(what: &'static str, path: &Path, found: Option<T>) -> Result<T, StatsError> {
    found.ok_or_else(|| StatsError::Missing { what, path: path.to_owned() })
}

/// The unit of `/proc/stat`. At least 1, so that it can be divided by.
fn clock_ticks_per_second() -> u64 {
    procfs::ticks_per_second().max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
    }

    const EXPECTED: Usage = Usage {
        cpu_core_nanoseconds: 5_000_000,
        memory_usage_bytes: 1000,
        memory_working_set_bytes: 700,
        memory_rss_bytes: 400,
    };

    #[test]
    fn version_2_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let stats = Stats::new(CgroupLayout::Unified { mount: dir.path().to_owned() }, "larder");
        assert_eq!(stats.container("u1", "c1").unwrap(), None);
        let files = [
            ("cpu.stat", "usage_usec 5000\nuser_usec 1\n"),
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 400\nfile 500\ninactive_anon 9\ninactive_file 300\n"),
        ];
        write(&dir.path().join("larder/podu1/c1"), &files);
        assert_eq!(stats.container("u1", "c1").unwrap(), Some(EXPECTED));
        assert_eq!(stats.pod("u1").unwrap(), None, "a directory that has no figures is not there yet");
    }

    #[test]
    fn version_1_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mount = |name: &str| (name.to_owned(), dir.path().join(name));
        let layout = CgroupLayout::PerController {
            controllers: BTreeMap::from([mount("cpuacct"), mount("memory")]),
            unified: None,
        };
        write(&dir.path().join("cpuacct/larder/podu1"), &[("cpuacct.usage", "5000000\n")]);
        let stat = "rss 1\ninactive_file 2\ntotal_rss 400\ntotal_inactive_file 300\n";
        let files = [("memory.usage_in_bytes", "1000\n"), ("memory.stat", stat)];
        write(&dir.path().join("memory/larder/podu1"), &files);
        assert_eq!(Stats::new(layout, "larder").pod("u1").unwrap(), Some(EXPECTED));
    }

    #[test]
    fn a_figure_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let files = [("cpu.stat", "usage_usec many\n"), ("memory.current", "1"), ("memory.stat", "")];
        write(&dir.path().join("larder/podu1/c1"), &files);
        let stats = Stats::new(CgroupLayout::Unified { mount: dir.path().to_owned() }, "larder");
        assert!(matches!(stats.container("u1", "c1"), Err(StatsError::Missing { what: "usage_usec", .. })));
    }

    #[test]
    fn this_host_has_figures() {
        let stats = Stats::new(CgroupLayout::detect().unwrap(), "larder");
        let (usage, memory) = (stats.node().unwrap(), stats.node_memory().unwrap());
        assert!(usage.cpu_core_nanoseconds > 0);
        assert!(usage.memory_working_set_bytes <= usage.memory_usage_bytes);
        assert!(usage.memory_usage_bytes < memory.total_bytes && memory.available_bytes <= memory.total_bytes);
    }
}
