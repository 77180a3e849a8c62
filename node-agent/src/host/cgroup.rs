//! The host's cgroups: which there are, where those of a pod and a container are, making them, and taking away what is left.
//! An OCI runtime makes them itself.

mod create;
mod device_filter;
mod devices;
pub mod limits;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What the host's cgroups can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CgroupFeatures {
    /// The unified hierarchy (version 2) is in charge.
    pub unified: bool,
    /// The memory controller accounts for swap.
    pub swap: bool,
}

/// How cgroups are mounted on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupLayout {
    /// One hierarchy for all controllers.
    Unified {
        /// Where it is mounted.
        mount: PathBuf,
    },
    /// One hierarchy a controller. A version 2 hierarchy beside them is without controllers that anybody uses.
    PerController {
        /// Where each controller is mounted.
        controllers: BTreeMap<String, PathBuf>,
        /// The version 2 hierarchy, if there is one.
        unified: Option<PathBuf>,
    },
    /// No cgroups at all.
    None,
}

impl CgroupLayout {
    /// Reads the layout from the content of `/proc/self/mountinfo`.
    pub fn from_mountinfo(mountinfo: &str) -> Self {
        let mut controllers = BTreeMap::new();
        let mut unified = None;
        for line in mountinfo.lines() {
            // Fields 1 to 6, optional ones, a dash, the type, the source, the options of the file system.
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(mount) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut after = after.split(' ');
            match (after.next(), after.nth(1)) {
                (Some("cgroup2"), _) if unified.is_none() => unified = Some(mount),
                (Some("cgroup"), Some(options)) => {
                    for option in options.split(',') {
                        controllers.entry(option.to_owned()).or_insert_with(|| mount.clone());
                    }
                }
                _ => {}
            }
        }
        // Options that are not controllers stay in the map; nobody asks for them.
        match unified {
            Some(mount) if !controllers.contains_key("memory") && !controllers.contains_key("cpu") => {
                Self::Unified { mount }
            }
            None if controllers.is_empty() => Self::None,
            unified => Self::PerController { controllers, unified },
        }
    }

    /// Looks at this host.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn detect() -> io::Result<Self> {
        fs::read_to_string("/proc/self/mountinfo").map(|mountinfo| Self::from_mountinfo(&mountinfo))
    }

    /// The directory of the cgroup `path` (below the root, beginning with a slash) in the hierarchy of `controller`.
    pub fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let mount = self.mount(controller)?;
        Some(mount.join(path.trim_start_matches('/')))
    }

    fn mount(&self, controller: &str) -> Option<&PathBuf> {
        match self {
            Self::Unified { mount } => Some(mount),
            Self::PerController { controllers, .. } => controllers.get(controller),
            Self::None => None,
        }
    }

    /// What the runtime specification has to know.
    pub fn features(&self) -> CgroupFeatures {
        match self {
            // Swap is accounted unless the kernel was told not to; only groups below the root have the file.
            Self::Unified { mount } => CgroupFeatures { unified: true, swap: has_below(mount, "memory.swap.max") },
            Self::PerController { controllers, .. } => CgroupFeatures {
                unified: false,
                swap: controllers.get("memory").is_some_and(|dir| dir.join("memory.memsw.limit_in_bytes").exists()),
            },
            Self::None => CgroupFeatures { unified: false, swap: false },
        }
    }

    /// The mounts that the runtime must not see: crun refuses a host where a version 2 hierarchy beside version 1 has a
    /// controller left, although nobody uses it.
    pub fn hidden_mounts(&self) -> Vec<PathBuf> {
        match self {
            Self::PerController { unified: Some(mount), .. } if has_controllers(mount) => vec![mount.clone()],
            Self::PerController { .. } | Self::Unified { .. } | Self::None => Vec::new(),
        }
    }

    /// Removes the cgroup `path` from every hierarchy, and the ones within. One that is not there is no error.
    ///
    /// # Errors
    /// When a process is left in it.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        self.all_dirs(path).iter().try_for_each(|dir| remove_tree(dir))
    }

    /// Removes the cgroup `path` from every hierarchy where nothing is in it. Whatever keeps it is left to whoever comes last.
    pub fn remove_if_empty(&self, path: &str) {
        for dir in self.all_dirs(path) {
            drop(fs::remove_dir(dir));
        }
    }

    fn all_dirs(&self, path: &str) -> Vec<PathBuf> {
        let mut mounts: Vec<&PathBuf> = match self {
            Self::Unified { mount } => vec![mount],
            Self::PerController { controllers, .. } => controllers.values().collect(),
            Self::None => Vec::new(),
        };
        mounts.sort();
        mounts.dedup();
        mounts.into_iter().map(|mount| mount.join(path.trim_start_matches('/'))).collect()
    }
}

/// The cgroup of a pod, below the root of every hierarchy.
pub fn pod_path(parent: &str, pod_uid: &str) -> String {
    format!("/{}/pod{pod_uid}", parent.trim_matches('/'))
}

/// The cgroup of a container.
pub fn container_path(parent: &str, pod_uid: &str, container: &str) -> String {
    format!("{}/{container}", pod_path(parent, pod_uid))
}

fn has_controllers(mount: &Path) -> bool {
    fs::read_to_string(mount.join("cgroup.controllers")).is_ok_and(|content| !content.trim().is_empty())
}

/// Whether any group right below `mount` has the file `name`.
fn has_below(mount: &Path, name: &str) -> bool {
    let groups = fs::read_dir(mount).into_iter().flatten().filter_map(Result::ok);
    groups.into_iter().any(|group| group.path().join(name).exists())
}

/// Removes a cgroup and those within, innermost first.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(err),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 29 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn one_hierarchy_a_controller_is_found() {
        let layout = CgroupLayout::from_mountinfo(HYBRID);
        assert_eq!(layout.dir("memory", "/a/b"), Some("/sys/fs/cgroup/memory/a/b".into()));
        assert_eq!(layout.dir("cpuacct", "a"), Some("/sys/fs/cgroup/cpu,cpuacct/a".into()));
        assert_eq!(layout.dir("pids", "/a"), None);
        assert!(
            matches!(&layout, CgroupLayout::PerController { unified: Some(mount), .. } if mount == Path::new("/sys/fs/cgroup/unified"))
        );
        assert!(!layout.features().unified);
    }

    #[test]
    fn the_unified_hierarchy_is_found() {
        let layout =
            CgroupLayout::from_mountinfo("30 29 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate");
        assert_eq!(layout.dir("memory", "/a"), Some("/sys/fs/cgroup/a".into()));
        assert!(layout.features().unified);
        assert!(layout.hidden_mounts().is_empty());
    }

    #[test]
    fn no_cgroups_are_no_cgroups() {
        for mountinfo in ["", "garbage", "30 29 0:26 / / rw - ext4 /dev/vda rw", " - cgroup", "1 2 3 4 - cgroup2"] {
            assert_eq!(CgroupLayout::from_mountinfo(mountinfo), CgroupLayout::None, "{mountinfo}");
        }
    }

    #[test]
    fn removal_takes_what_is_within_and_is_idempotent() {
        let dir = tempfile::tempdir().unwrap();
        let layout = CgroupLayout::Unified { mount: dir.path().to_path_buf() };
        fs::create_dir_all(dir.path().join("larder/pod1/c1/inner")).unwrap();
        layout.remove_if_empty("/larder/pod1");
        assert!(dir.path().join("larder/pod1").exists());
        layout.remove(&container_path("larder", "1", "c1")).unwrap();
        layout.remove(&container_path("larder", "1", "c1")).unwrap();
        layout.remove_if_empty(&pod_path("/larder/", "1"));
        assert_eq!(fs::read_dir(dir.path().join("larder")).unwrap().count(), 0);
    }
}
