//! The container's view of files: its root, and what is mounted into it.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use larder_monitor::CgroupDir;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::spec::{Mount, Spec};
use super::{Failure, OrFailure, devices};
use crate::sys;

/// The magic number that `statfs(2)` gives for procfs.
const PROC_MAGIC: i64 = 0x9fa0;
/// How many links a path may lead through, as in the kernel.
const MAX_LINKS: u32 = 40;

/// A mount and what it needs of the host.
#[derive(Debug)]
pub(super) struct Source<'a> {
    mount: &'a Mount,
    origin: Origin<'a>,
}

#[derive(Debug)]
enum Origin<'a> {
    /// A new file system.
    New,
    /// A copy of mounts of the host.
    Bound(Tree),
    /// The container's own cgroups: one file system for all, or a directory for each.
    Cgroups(Vec<(&'a CgroupDir, Tree)>),
}

/// A copy of mounts, mounted nowhere yet.
#[derive(Debug)]
struct Tree {
    mounts: OwnedFd,
    is_directory: bool,
}

impl Tree {
    fn open(path: &Path) -> Result<Self, Failure> {
        let open = || {
            let mounts = copy(path)?;
            let is_directory = is_directory(&mounts)?;
            // What the host mounts and unmounts there from now on is the host's.
            sys::make_private(&mounts)?;
            Ok::<_, io::Error>(Self { mounts, is_directory })
        };
        open().or_failure(|| format!("open {}", path.display()))
    }

    /// Mounts them upon what a path leads to.
    fn place(self, destination: &Path, flags: MountFlags) -> Result<(), Failure> {
        let place = make_place(destination, self.is_directory)?;
        let is_proc = || rustix::fs::fstatfs(&place).map(|found| found.f_type == PROC_MAGIC);
        if is_proc().or_failure(|| format!("look at {}", destination.display()))? {
            let path = destination.display();
            return Err(Failure(format!("mount {path}: this leads into /proc, where nothing may be mounted")));
        }
        self.put(&place, flags).or_failure(|| format!("mount {}", destination.display()))
    }

    fn put(self, place: &OwnedFd, flags: MountFlags) -> io::Result<()> {
        if flags.contains(MountFlags::RDONLY) {
            sys::make_read_only(&self.mounts)?;
        }
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.mounts, "", place, "", empty).map_err(io::Error::from)
    }
}

/// A copy of what is mounted at `path` and below it, mounted nowhere yet.
fn copy(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags)
}

fn is_directory(fd: impl AsFd) -> rustix::io::Result<bool> {
    rustix::fs::fstat(fd).map(|status| rustix::fs::FileType::from_raw_mode(status.st_mode).is_dir())
}

/// Opens what the mounts need of the host, for as long as it is there.
pub(super) fn open_sources<'a>(spec: &'a Spec, cgroups: &'a [CgroupDir]) -> Result<Vec<Source<'a>>, Failure> {
    // What is unmounted here must not be on the host.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .or_failure(|| "keep mounts from the host".into())?;
    let unified = spec.namespace(super::spec::NamespaceKind::Cgroup).is_some();
    let open = |mount: &'a Mount| {
        let origin = match mount.kind.as_str() {
            "bind" => Origin::Bound(Tree::open(&mount.source)?),
            "cgroup" if !unified => {
                let open = |cgroup: &'a CgroupDir| Tree::open(&cgroup.path).map(|tree| (cgroup, tree));
                Origin::Cgroups(cgroups.iter().map(open).collect::<Result<_, _>>()?)
            }
            _ => Origin::New,
        };
        Ok(Source { mount, origin })
    };
    spec.mounts.iter().map(open).collect()
}

/// Makes `path`, which is a mount, the root of everything, and lets go of the old one.
pub(super) fn change(path: &Path) -> Result<(), Failure> {
    let changed = || {
        mount_change(path, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        chdir(path)?;
        // The old root comes to lie upon the new one, in the same place.
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        chdir("/")
    };
    changed().or_failure(|| format!("make {} the root", path.display()))
}

/// Mounts new file systems, in order. Gives back what is to be bound.
pub(super) fn place_file_systems(sources: Vec<Source<'_>>) -> Result<Vec<Source<'_>>, Failure> {
    let mut bound = Vec::new();
    for Source { mount, origin } in sources {
        let (flags, data) = mount.flags();
        let destination = &mount.destination;
        match origin {
            Origin::Bound(_) => bound.push(Source { mount, origin }),
            Origin::Cgroups(dirs) => place_cgroups(destination, dirs, flags)?,
            Origin::New => {
                let kind = if mount.kind == "cgroup" { "cgroup2" } else { &mount.kind };
                place_new(destination, kind, flags, &data)?;
                if destination == Path::new("/dev") {
                    devices::populate()?;
                }
            }
        }
    }
    Ok(bound)
}

/// Mounts what comes from the host, in order: the pod's volumes, in which anything can be.
pub(super) fn place_bound(sources: Vec<Source<'_>>) -> Result<(), Failure> {
    for Source { mount, origin } in sources {
        if let Origin::Bound(tree) = origin {
            tree.place(&mount.destination, mount.flags().0)?;
        }
    }
    Ok(())
}

/// Mounts a new file system upon a directory.
fn place_new(destination: &Path, kind: &str, flags: MountFlags, data: &str) -> Result<(), Failure> {
    let mounted = || {
        // A link of the image's would have it somewhere else than where paths are hidden.
        match open_place(destination, ResolveFlags::NO_SYMLINKS) {
            Err(Errno::NOENT) => drop(walk(destination, true)?),
            Err(Errno::LOOP) => return Err(io::Error::other("the image has a link in its place")),
            opened => drop(opened?),
        }
        let data = std::ffi::CString::new(data)?;
        mount(kind, destination, kind, flags - MountFlags::RDONLY, Some(&*data))?;
        if flags.contains(MountFlags::RDONLY) {
            // Of this mount alone: the file system may be shared with other containers of the pod, or with the host.
            mount_remount(destination, MountFlags::BIND | flags, c"")?;
        }
        Ok::<_, io::Error>(())
    };
    mounted().or_failure(|| format!("mount {kind} at {}", destination.display()))
}

/// One directory for each hierarchy of cgroups, as on a host of version 1, with nothing in it but the container's own.
fn place_cgroups(destination: &Path, dirs: Vec<(&CgroupDir, Tree)>, flags: MountFlags) -> Result<(), Failure> {
    place_new(destination, "tmpfs", flags - MountFlags::RDONLY, "mode=755")?;
    for (cgroup, tree) in dirs {
        let Some((first, others)) = cgroup.names.split_first() else { continue };
        let place = destination.join(first);
        let placed = || {
            DirBuilder::new().mode(0o755).create(&place)?;
            tree.put(&open_place(&place, ResolveFlags::NO_SYMLINKS)?, flags)?;
            others.iter().try_for_each(|name| symlinkat(first, CWD, destination.join(name)))?;
            Ok::<_, io::Error>(())
        };
        placed().or_failure(|| format!("mount {}", place.display()))?;
    }
    if flags.contains(MountFlags::RDONLY) {
        mount_remount(destination, MountFlags::BIND | flags, c"")
            .or_failure(|| format!("mount {} read-only", destination.display()))?;
    }
    Ok(())
}

/// Hides and protects what the specification says, before anything of the pod's is mounted: what is put over it is the device of
/// our own `/dev`.
pub(super) fn protect(spec: &Spec) -> Result<(), Failure> {
    let mut empty = None;
    for path in &spec.linux.masked_paths {
        hide(path, &mut empty).or_failure(|| format!("hide {}", path.display()))?;
    }
    for path in &spec.linux.readonly_paths {
        let protected = || {
            let tree = match copy(path) {
                Err(Errno::NOENT) => return Ok(()),
                tree => tree?,
            };
            sys::make_read_only(&tree)?;
            move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(io::Error::from)
        };
        protected().or_failure(|| format!("protect {}", path.display()))?;
    }
    Ok(())
}

/// Makes the root read-only, and nothing that is mounted on it.
pub(super) fn make_read_only() -> Result<(), Failure> {
    let read_only = || {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        sys::make_read_only(&root)
    };
    read_only().or_failure(|| "mount the root read-only".into())
}

/// Puts an empty file or directory over what is at `path`, if anything is. `empty` is the directory that was put somewhere
/// already, which is the same for all.
fn hide<'a>(path: &'a Path, empty: &mut Option<&'a Path>) -> rustix::io::Result<()> {
    match mount_bind("/dev/null", path) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTDIR) => match empty {
            Some(empty) => mount_bind(*empty, path),
            None => {
                let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
                mount("tmpfs", path, "tmpfs", flags, c"size=0k")?;
                *empty = Some(path);
                Ok(())
            }
        },
        done => done,
    }
}

/// Makes a directory of the container's, with those above it, where it is not there.
pub(super) fn make_directory(path: &Path) -> Result<(), Failure> {
    make_place(path, true).map(drop)
}

/// Finds the place that a path leads to, and makes what is missing of it: directories, and last of all a directory or a file.
/// Links are followed, also those that lead nowhere yet.
fn make_place(destination: &Path, is_directory: bool) -> Result<OwnedFd, Failure> {
    let open = || match open_place(destination, ResolveFlags::NO_MAGICLINKS) {
        Err(Errno::NOENT | Errno::LOOP) => {
            let path = walk(destination, is_directory)?;
            Ok(open_place(&path, ResolveFlags::NO_SYMLINKS)?)
        }
        opened => opened.map_err(io::Error::from),
    };
    open().or_failure(|| format!("make {}", destination.display()))
}

fn open_place(path: &Path, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Where a path leads, one part after the other.
fn walk(destination: &Path, is_directory: bool) -> io::Result<PathBuf> {
    let mut current = PathBuf::from("/");
    let mut ahead: VecDeque<PathBuf> = parts(destination).collect();
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        match part.components().next() {
            Some(Component::Normal(name)) => {
                let next = current.join(name);
                match fs::symlink_metadata(&next) {
                    Ok(found) if found.is_symlink() => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Errno::LOOP.into());
                        }
                        for part in parts(&fs::read_link(&next)?).collect::<Vec<_>>().into_iter().rev() {
                            ahead.push_front(part);
                        }
                    }
                    Ok(_) => current = next,
                    Err(err) if err.kind() == io::ErrorKind::NotFound => {
                        if ahead.is_empty() && !is_directory {
                            OpenOptions::new().write(true).create_new(true).mode(0o644).open(&next)?;
                        } else {
                            DirBuilder::new().mode(0o755).create(&next)?;
                        }
                        current = next;
                    }
                    Err(err) => return Err(err),
                }
            }
            Some(Component::ParentDir) => drop(current.pop()),
            Some(Component::RootDir) => current = PathBuf::from("/"),
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
    }
    Ok(current)
}

fn parts(path: &Path) -> impl Iterator<Item = PathBuf> {
    path.components().map(|part| PathBuf::from(part.as_os_str()))
}
