//! Making a container's cgroups.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use larder_monitor::CgroupDir;

use super::limits::CgroupLimits;
use super::{CgroupLayout, device_filter, devices};

/// The controllers whose hierarchies of version 1 a container has a cgroup in: what limits it, what counts it, and the one by
/// which systemd knows which service a process belongs to. Others would cost time at each start and are asked by nobody.
const CONTROLLERS: [&str; 7] = ["cpu", "cpuacct", "memory", "pids", "blkio", "devices", SYSTEMD];
const SYSTEMD: &str = "name=systemd";

/// The controllers that a container has of the unified hierarchy, where the host has them.
const UNIFIED_CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];

impl CgroupLayout {
    /// Makes the cgroup `path` (below the root, beginning with a slash) in every hierarchy, and sets its limits. Gives the
    /// directories of which a process has to be a member.
    ///
    /// # Errors
    /// When the host refuses, with the file in the message. What was made stays, for [`CgroupLayout::remove`].
    pub fn create(&self, path: &str, limits: &CgroupLimits) -> io::Result<Vec<CgroupDir>> {
        match self {
            Self::Unified { mount } => {
                let dir = create_unified(mount, path, limits)?;
                Ok(vec![CgroupDir { path: dir, names: Vec::new() }])
            }
            Self::PerController { .. } => self.create_per_controller(path, limits),
            Self::None => Err(io::Error::other("this host has no cgroups, by which containers are limited")),
        }
    }

    fn create_per_controller(&self, path: &str, limits: &CgroupLimits) -> io::Result<Vec<CgroupDir>> {
        let mut dirs: Vec<CgroupDir> = Vec::new();
        for controller in CONTROLLERS {
            let Some((mount, path)) = self.mount(controller).zip(self.dir(controller, path)) else { continue };
            let known = dirs.iter_mut().find(|dir| dir.path == path);
            let dir = match known {
                Some(dir) => dir,
                None => {
                    fs::create_dir_all(&path).map_err(|err| named(&path, err))?;
                    let name = mount.file_name().unwrap_or(mount.as_os_str()).to_string_lossy().into_owned();
                    dirs.push(CgroupDir { path, names: vec![name] });
                    let Some(dir) = dirs.last_mut() else { continue };
                    dir
                }
            };
            if controller != SYSTEMD && !dir.names.iter().any(|name| name == controller) {
                dir.names.push(controller.to_owned());
            }
        }
        for setting in limits.per_controller() {
            match self.dir(setting.controller, path) {
                Some(dir) => write(&dir.join(setting.file), &setting.value)?,
                None if setting.is_weight() => {}
                None => return Err(missing(setting.controller)),
            }
        }
        if !limits.all_devices {
            let dir = self.dir("devices", path).ok_or_else(|| missing("devices"))?;
            write(&dir.join("devices.deny"), "a")?;
            devices::lines().try_for_each(|line| write(&dir.join("devices.allow"), &line))?;
        }
        Ok(dirs)
    }
}

fn create_unified(mount: &Path, path: &str, limits: &CgroupLimits) -> io::Result<PathBuf> {
    let mut dir = mount.to_owned();
    let mut refused = Vec::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        refused.append(&mut hand_down(&dir)?);
        dir.push(name);
        match fs::create_dir(&dir) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(named(&dir, err)),
            _ => {}
        }
    }
    for setting in limits.unified() {
        let file = dir.join(setting.file);
        if let Err(err) = write(&file, &setting.value) {
            // Why it is not there says more than that it is not.
            let cause = refused.iter().position(|(controller, _)| *controller == setting.controller);
            match cause.map(|at| refused.swap_remove(at).1) {
                _ if file.exists() => return Err(err),
                _ if setting.is_weight() => {}
                Some(cause) => return Err(cause),
                None => return Err(missing(setting.controller)),
            }
        }
    }
    if !limits.all_devices {
        device_filter::attach(&dir).map_err(|err| named(&dir, err))?;
    }
    Ok(dir)
}

/// Lets the children of a cgroup have its controllers. Gives those that it may not hand down, and why.
fn hand_down(dir: &Path) -> io::Result<Vec<(&'static str, io::Error)>> {
    let list = |name: &str| fs::read_to_string(dir.join(name)).map_err(|err| named(&dir.join(name), err));
    let (own, children) = (list("cgroup.controllers")?, list("cgroup.subtree_control")?);
    let has = |list: &str, controller: &str| list.split_whitespace().any(|word| word == controller);
    let lacking = UNIFIED_CONTROLLERS.iter().filter(|name| has(&own, name) && !has(&children, name));
    let asked = lacking.map(|name| (*name, write(&dir.join("cgroup.subtree_control"), &format!("+{name}"))));
    Ok(asked.filter_map(|(name, result)| result.err().map(|err| (name, err))).collect())
}

fn missing(controller: &str) -> io::Error {
    io::Error::other(format!("this host has no controller {controller}"))
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(|err| named(path, err))?;
    io::Write::write_all(&mut file, value.as_bytes()).map_err(|err| named(path, err))
}

fn named(path: &Path, err: io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("{}: {err}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cgroup::device_filter::tests::Hierarchy;

    /// On any host with a unified hierarchy, whatever controllers it has.
    #[test]
    fn a_unified_cgroup_has_limits_or_says_what_is_missing() {
        let hierarchy = Hierarchy::mount();
        let layout = CgroupLayout::Unified { mount: hierarchy.path().to_owned() };
        let parent = format!("/larder-create-{}", std::process::id());
        let path = format!("{parent}/pod1/c1");
        let plain = CgroupLimits { cpu_shares: 2, ..CgroupLimits::default() };
        let made = layout.create(&path, &plain).unwrap();
        let dir = hierarchy.path().join(path.trim_start_matches('/'));
        assert_eq!(made, [CgroupDir { path: dir.clone(), names: Vec::new() }]);
        let has_memory = fs::read_to_string(dir.join("cgroup.controllers")).unwrap().contains("memory");
        match layout.create(&path, &CgroupLimits { memory_bytes: Some(1 << 24), ..plain }) {
            Ok(_) => assert_eq!(fs::read_to_string(dir.join("memory.max")).unwrap().trim(), (1 << 24).to_string()),
            Err(err) => assert!(!has_memory && err.to_string() == "this host has no controller memory", "{err}"),
        }
        layout.remove(&parent).unwrap();
        assert!(!dir.exists());
    }
}
