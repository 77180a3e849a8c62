//! What this host is: the facts that its Node object is made from.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The store's file system has too little room below this share of its size, in percent (`nodefs.available` of the
/// kubelet's eviction) ...
const DISK_PRESSURE_PERCENT: u64 = 10;
/// ... or below so many bytes, whichever is less: a tenth of a large disk is more than any pull wants.
const DISK_PRESSURE_BYTES: u64 = 4 << 30;
/// The host is short of memory below this much that is available (`memory.available` of the kubelet's eviction).
const MEMORY_PRESSURE_BYTES: u64 = 100 << 20;

/// What does not change while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The host's name.
    pub hostname: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The machine's UUID by its firmware; the machine id where there is none.
    pub system_uuid: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// In Go's names: `amd64`, `arm64`.
    pub architecture: String,
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Size of the file system that holds the store.
    pub storage_bytes: u64,
}

/// What changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Too little room for a pull; the text says how much there is.
    pub disk: Option<String>,
    /// Short of memory; the text says how short.
    pub memory: Option<String>,
}

/// A fact that cannot be found out.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The host does not say.
    #[error("read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{path} has no {what}")]
    Missing {
        /// Which file.
        path: PathBuf,
        /// Which line.
        what: &'static str,
    },
}

/// Finds out what this host is; `root` is the store's folder, which must be there. Blocks for a moment.
///
/// # Errors
/// When the host does not say how much memory or disk it has.
pub fn facts(root: &Path) -> Result<HostFacts, NodeError> {
    let name = rustix::system::uname();
    let machine_id = line("/etc/machine-id").unwrap_or_default();
    let system_uuid = line("/sys/class/dmi/id/product_uuid").unwrap_or_else(|| machine_id.clone());
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(HostFacts {
        hostname: name.nodename().to_string_lossy().into_owned(),
        system_uuid,
        machine_id,
        boot_id: line("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        kernel_version: name.release().to_string_lossy().into_owned(),
        os_image: pretty_name(&os_release).unwrap_or_else(|| "Linux".to_owned()),
        architecture: go_architecture(std::env::consts::ARCH).to_owned(),
        cpu_milli: u64::try_from(cores).unwrap_or(1) * 1000,
        memory_bytes: memory("MemTotal")?,
        storage_bytes: storage(root)?.0,
    })
}

/// Finds out whether disk or memory are short. Blocks for a moment.
///
/// # Errors
/// When the host does not say.
pub fn pressure(root: &Path) -> Result<Pressure, NodeError> {
    let (size, free) = storage(root)?;
    let available = memory("MemAvailable")?;
    Ok(Pressure { disk: disk_pressure(root, size, free), memory: memory_pressure(available) })
}

fn disk_pressure(root: &Path, size: u64, free: u64) -> Option<String> {
    let needed = (size / 100 * DISK_PRESSURE_PERCENT).min(DISK_PRESSURE_BYTES);
    (free < needed).then(|| {
        format!(
            "{} has {free} of {size} bytes free, pulls want {needed}: make room there, or delete image caches",
            root.display()
        )
    })
}

fn memory_pressure(available: u64) -> Option<String> {
    (available < MEMORY_PRESSURE_BYTES)
        .then(|| format!("{available} bytes of memory are available, less than {MEMORY_PRESSURE_BYTES}"))
}

/// Size of the file system below a folder, and what is free for us.
fn storage(root: &Path) -> Result<(u64, u64), NodeError> {
    let stat =
        rustix::fs::statvfs(root).map_err(|source| NodeError::Read { path: root.to_owned(), source: source.into() })?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

fn memory(what: &'static str) -> Result<u64, NodeError> {
    let path = Path::new("/proc/meminfo");
    let text = fs::read_to_string(path).map_err(|source| NodeError::Read { path: path.to_owned(), source })?;
    meminfo(&text, what).ok_or_else(|| NodeError::Missing { path: path.to_owned(), what })
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, what: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|name| !name.is_empty())
}

fn go_architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_facts() {
        let folder = tempfile::tempdir().unwrap();
        let facts = facts(folder.path()).unwrap();
        assert!(facts.cpu_milli >= 1000 && facts.memory_bytes > 0 && facts.storage_bytes > 0, "{facts:?}");
        assert!(!facts.kernel_version.is_empty() && !facts.boot_id.is_empty(), "{facts:?}");
        pressure(folder.path()).unwrap();
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:        2048 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(2048 * 1024));
        assert_eq!(meminfo(text, "MemAvailable"), Some(1024 * 1024));
        assert_eq!(meminfo(text, "Mem"), None);
    }

    #[test]
    fn pressure_says_how_much() {
        let root = Path::new("/var/lib/larder");
        assert_eq!(disk_pressure(root, 1000, 100), None);
        assert!(disk_pressure(root, 1000, 99).is_some_and(|text| text.contains("99 of 1000 bytes")));
        assert_eq!(disk_pressure(root, 1 << 40, 5 << 30), None);
        assert!(disk_pressure(root, 1 << 40, 3 << 30).is_some());
        assert_eq!(memory_pressure(1 << 30), None);
        assert!(memory_pressure(5).is_some_and(|text| text.starts_with("5 bytes")));
    }

    #[test]
    fn the_system_is_named_as_it_names_itself() {
        assert_eq!(pretty_name("ID=debian\nPRETTY_NAME=\"Debian 12\"\n"), Some("Debian 12".to_owned()));
        assert_eq!(pretty_name("ID=debian\n"), None);
    }
}
