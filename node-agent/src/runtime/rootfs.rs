//! A container's files on the host: its directories, its mounted root, and what has to be read from the image before it runs.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::record::ContainerDirs;
use crate::host::overlay::{Overlay, mount_overlay, unmount_tree};
use crate::host::removal;

/// The longest passwd or group file of an image that is looked at, in bytes.
const MAX_ACCOUNT_FILE: u64 = 1024 * 1024;

/// Mounts the container's root: `lower`, highest first, under a directory for its changes.
pub(super) fn mount(dirs: &ContainerDirs, lower: &[std::path::PathBuf]) -> io::Result<()> {
    for dir in [dirs.rootfs(), dirs.upper(), dirs.work()] {
        fs::create_dir_all(dir)?;
    }
    mount_overlay(&Overlay { lower, upper: &dirs.upper(), work: &dirs.work() }, &dirs.rootfs())
}

/// Takes away everything of a container. What is not there is no error, so that it can be called again.
pub(super) fn remove(dirs: &ContainerDirs) -> io::Result<()> {
    // Never descend into a directory that may still be a mount of somebody's data.
    unmount_tree(&dirs.rootfs())?;
    for dir in [&dirs.writable, &dirs.run] {
        removal::remove_folder(dir)?;
    }
    Ok(())
}

/// Reads a text file of the image as the container would see it: no link in it leads out of `rootfs`. Empty when there is no
/// such file, or it is none that can be read.
pub(super) fn read_beneath(rootfs: &Path, path: &str) -> io::Result<String> {
    let root = File::open(rootfs)?;
    // A fifo must not keep us waiting.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(&root, path, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(String::new()),
        Err(err) => return Err(err.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(MAX_ACCOUNT_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_in_the_image_does_not_lead_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(dir.path().join("secret"), "host").unwrap();
        symlink(dir.path().join("secret"), root.join("etc/passwd")).unwrap();
        symlink("../../../secret", root.join("etc/group")).unwrap();
        assert_eq!(read_beneath(&root, "/etc/passwd").unwrap(), "");
        assert_eq!(read_beneath(&root, "/etc/group").unwrap(), "");
        fs::write(root.join("secret"), "image").unwrap();
        assert_eq!(read_beneath(&root, "/etc/group").unwrap(), "image");
    }

    #[test]
    fn what_is_no_file_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), Mode::RUSR).unwrap();
        for path in ["/etc", "/etc/passwd", "/loop", "/fifo", "/fifo/x"] {
            assert_eq!(read_beneath(dir.path(), path).unwrap(), "", "{path}");
        }
    }

    #[test]
    fn a_root_is_mounted_and_removed_again() {
        let dir = tempfile::tempdir().unwrap();
        let lower = dir.path().join("lower");
        fs::create_dir(&lower).unwrap();
        fs::write(lower.join("file"), "image").unwrap();
        let dirs = ContainerDirs::new(&dir.path().join("run"), &dir.path().join("disk"), "c1");
        mount(&dirs, std::slice::from_ref(&lower)).unwrap();
        fs::write(dirs.rootfs().join("file"), "changed").unwrap();
        remove(&dirs).unwrap();
        remove(&dirs).unwrap();
        assert_eq!(fs::read_to_string(lower.join("file")).unwrap(), "image");
        assert!(!dirs.run.exists() && !dirs.writable.exists());
    }
}
