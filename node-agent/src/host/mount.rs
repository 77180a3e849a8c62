//! Mounts of images: the system calls, and what is mounted already.
//!
//! The calls are the new ones (`fsopen` and its kin) rather than `mount(2)`: an image of a hundred layers names a hundred
//! devices, more than fit into the one page of options that `mount(2)` takes.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

/// The magic number that `statfs(2)` gives for EROFS.
const EROFS_MAGIC: i64 = 0xE0F5_E1E2;

/// The longest string that `fsconfig(2)` takes, its final zero byte included.
const FSCONFIG_STRING_MAX: usize = 256;

/// Mounts an EROFS image file read-only. `devices` are the files that hold its data, in the order of its device slots.
///
/// The image file itself is the source: the kernel (6.12 and later) reads it as a file, no loop device is made.
///
/// # Errors
/// What the kernel says, with its own explanation where it gives one.
pub fn mount_erofs<D: AsRef<Path>>(image: &Path, devices: &[D], target: &Path) -> io::Result<()> {
    read_through(image)?;
    let source = Named::of(image)?;
    let mut named = Vec::with_capacity(devices.len());
    for device in devices {
        named.push(Named::of(device.as_ref())?);
    }
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configured = (|| {
        fsconfig_set_string(&context, "source", &*source.path)?;
        fsconfig_set_flag(&context, "ro")?;
        for device in &named {
            fsconfig_set_string(&context, "device", &*device.path)?;
        }
        fsconfig_create(&context)
    })();
    if let Err(error) = configured {
        return Err(explained(&context, error));
    }
    // Only overlays are made on it, which have their own flags: nothing is run or opened as a device from here.
    let attributes =
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Whether an EROFS is mounted at this directory, whoever mounted it.
///
/// # Errors
/// When the path cannot be asked; one that is not there is not mounted.
pub fn is_erofs(target: &Path) -> io::Result<bool> {
    match rustix::fs::statfs(target) {
        Ok(found) => Ok(found.f_type == EROFS_MAGIC),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes a mount away. Overlays that stand on it keep what they have. Nothing mounted there is not an error.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount_if_mounted(target: &Path) -> io::Result<()> {
    match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A file by a name that `fsconfig(2)` takes: it cuts off at 255 bytes, so a longer path goes by a descriptor.
struct Named<'a> {
    path: Cow<'a, Path>,
    /// Open until the mount is made, where `path` names it.
    _open: Option<File>,
}

impl<'a> Named<'a> {
    fn of(path: &'a Path) -> io::Result<Self> {
        if path.as_os_str().len() < FSCONFIG_STRING_MAX {
            return Ok(Self { path: path.into(), _open: None });
        }
        let open = File::open(path)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
        Ok(Self { path: path.into(), _open: Some(open) })
    }
}

/// Reads a file through the page cache. A metadata image has a few megabytes, which the mount needs anyway; on ext4 with
/// debugging the kernel complains once when EROFS is the first to read a block.
fn read_through(image: &Path) -> io::Result<()> {
    let mut file = File::open(image)?;
    let mut buffer = vec![0; 256 << 10];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// The kernel's own words on why a mount failed, which it leaves in the context's message queue.
fn explained(context: &rustix::fd::OwnedFd, error: rustix::io::Errno) -> io::Error {
    let mut buffer = [0; 512];
    let mut words = Vec::new();
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..length]);
        words.push(line.trim_end().to_owned());
    }
    let error = io::Error::from(error);
    if words.is_empty() { error } else { io::Error::new(error.kind(), format!("{error}: {}", words.join("; "))) }
}
