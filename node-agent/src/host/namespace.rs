//! Namespaces: making them on a thread of their own, pinning them to files, entering them, letting them go.
//!
//! `unshare(2)` and `setns(2)` change the calling thread for good, so each call runs on a thread that ends with it.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    thread::{LinkNameSpaceType, UnshareFlags},
};

use super::removal;

/// A kind of namespace that a pod has for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Links, addresses, routes.
    Network,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Network, Self::Ipc, Self::Uts];

    /// Its name in `/proc/<pid>/ns`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
        }
    }

    fn link_type(self) -> LinkNameSpaceType {
        match self {
            Self::Network => LinkNameSpaceType::Network,
            Self::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Self::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        }
    }
}

/// Runs `work` on a thread that has new network, IPC and UTS namespaces, and pins them as `net`, `ipc` and `uts` in
/// `folder`, which must exist. They live until [`unpin`], whatever becomes of the thread.
///
/// # Errors
/// When the kernel refuses or `work` fails; nothing stays pinned then.
pub fn create_pinned<T: Send>(folder: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let result = on_own_thread(|| {
        let flags = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        unshare(flags)?;
        for kind in Kind::ALL {
            pin(kind, &folder.join(kind.file_name()))?;
        }
        work()
    });
    if result.is_err() {
        for kind in Kind::ALL {
            // The first error is the one to tell; a leftover is found again when the folder is swept at start.
            drop(unpin(&folder.join(kind.file_name())));
        }
    }
    result
}

/// Runs `work` on a thread that has entered the pinned namespaces.
///
/// # Errors
/// When a file is not a namespace, the kernel refuses, or `work` fails.
pub fn enter<T: Send>(pinned: &[(Kind, PathBuf)], work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_own_thread(|| {
        for (kind, path) in pinned {
            let file = File::open(path)?;
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(kind.link_type()))?;
        }
        work()
    })
}

/// Whether `path` is a pinned namespace (and not the plain file that a reboot or a crash leaves).
pub fn is_pinned(path: &Path) -> bool {
    // Magic of nsfs, include/uapi/linux/magic.h.
    const NSFS_MAGIC: u32 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|fs| u32::try_from(fs.f_type).is_ok_and(|magic| magic == NSFS_MAGIC))
}

/// Lets a pinned namespace go and removes its file. A file that is not there is not an error.
///
/// # Errors
/// When the kernel refuses.
pub fn unpin(path: &Path) -> io::Result<()> {
    unmount(path)?;
    removal::remove_file(path)
}

/// Gives `folder` a tmpfs of its own whose mounts and unmounts reach the mount namespaces made from ours. Without that, a
/// monitor's copy of a mount would keep the mount alive after we have taken it away. A folder on which something is mounted
/// already keeps that: an earlier life's tmpfs, or what a container's administrator has put there.
///
/// The host's `/run` will not do: not every host has a tmpfs there, so that what is in it would outlive a reboot and each small
/// file cost a disk's file system its bookkeeping, and some hosts have one from which nothing can be executed, which would
/// hold for the scripts in a pod's ConfigMap volumes.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_run_folder(folder: &Path) -> io::Result<()> {
    let share = || rustix::mount::mount_change(folder, MountPropagationFlags::SHARED);
    match share() {
        // Nothing is mounted there.
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount("tmpfs", folder, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0711")?;
            Ok(share()?)
        }
        shared => Ok(shared?),
    }
}

/// Mounts a tmpfs for POSIX shared memory, of `size_bytes` at most.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_shm(target: &Path, size_bytes: u64) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(format!("mode=1777,size={size_bytes}"))?;
    Ok(rustix::mount::mount("shm", target, "tmpfs", flags, options.as_c_str())?)
}

/// Mounts a tmpfs for a pod's emptyDir in memory, of `size_bytes` at most; 0 for the kernel's default, half the memory.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_memory_volume(target: &Path, size_bytes: u64) -> io::Result<()> {
    let size = if size_bytes == 0 { String::new() } else { format!(",size={size_bytes}") };
    let options = std::ffi::CString::new(format!("mode=0777{size}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount("tmpfs", target, "tmpfs", flags, options.as_c_str())?)
}

/// Takes a mount away, at once for whoever comes next. A path that is none is not an error.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH) {
        // EINVAL: nothing is mounted there.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Sets the names that `uname` gives, in the calling thread's UTS namespace.
///
/// # Errors
/// When a name is longer than 64 bytes or the kernel refuses.
pub fn set_names(hostname: &str, domainname: &str) -> io::Result<()> {
    rustix::system::sethostname(hostname.as_bytes())?;
    if !domainname.is_empty() {
        rustix::system::setdomainname(domainname.as_bytes())?;
    }
    Ok(())
}

/// Sets a kernel setting (`net.core.somaxconn`) in the calling thread's namespaces.
///
/// # Errors
/// When there is no such setting or the kernel refuses the value.
pub fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    // Dots part the levels, and a slash stands for a dot in a name (sysctl.d(5)).
    let path: String = name
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    std::fs::write(Path::new("/proc/sys").join(path), value)
}

fn pin(kind: Kind, file: &Path) -> io::Result<()> {
    File::create(file)?;
    let own = Path::new("/proc/thread-self/ns").join(kind.file_name());
    Ok(rustix::mount::mount_bind(&own, file)?)
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES), "the file table stays shared");
    #[expect(unsafe_code, reason = "rustix marks unshare unsafe for the sake of CLONE_FILES")]
    // SAFETY: only CLONE_FILES endangers other threads, and it is not among the flags.
    unsafe {
        rustix::thread::unshare_unsafe(flags)?;
    }
    Ok(())
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let handle = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work)?;
        handle.join().unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
    })
}

/// Runs a test on a thread with network and mounts of its own, so that it can play host without touching the real one.
/// Needs root, and fails without.
#[cfg(test)]
pub(crate) fn on_test_host<T: Send>(test: impl AsyncFnOnce() -> T + Send) -> T {
    on_own_thread(|| {
        unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS)?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(test()))
    })
    .expect("make a test host: these tests need root")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::StatVfsMountFlags;

    #[test]
    fn a_run_folder_is_a_shared_tmpfs_that_a_second_life_finds_again() {
        on_test_host(async || {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("of an earlier boot"), "").unwrap();
            mount_run_folder(folder.path()).unwrap();
            let here = folder.path().join("here");
            assert!(!folder.path().join("of an earlier boot").exists());
            std::fs::write(&here, "").unwrap();
            mount_run_folder(folder.path()).unwrap();
            assert!(here.exists(), "mounted over what was there");

            let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let path = folder.path().to_str().unwrap();
            let all: Vec<&str> = mounts.lines().filter(|line| line.contains(path)).collect();
            assert!(matches!(all[..], [only] if only.contains(" shared:") && only.contains(" - tmpfs ")), "{all:?}");
            let flags = rustix::fs::statvfs(folder.path()).unwrap().f_flag;
            assert!(!flags.contains(StatVfsMountFlags::NOEXEC), "{flags:?}");
            unmount(folder.path()).unwrap();
        });
    }
}
