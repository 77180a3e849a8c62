//! The writable root file system of a container: an overlay over the read-only directories of its image.

use std::io;
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, unmount,
};

/// What an overlay is made of.
#[derive(Debug)]
pub struct Overlay<'a> {
    /// Read-only directories, highest first.
    pub lower: &'a [std::path::PathBuf],
    /// The directory that takes the changes.
    pub upper: &'a Path,
    /// An empty directory on the same file system as `upper`.
    pub work: &'a Path,
}

/// Mounts an overlay at `target`. Each lower directory is handed over by itself, so that their number is not bounded by the
/// length of an option string.
///
/// # Errors
/// When the kernel refuses; its own words are in the error where it has any.
pub fn mount_overlay(overlay: &Overlay<'_>, target: &Path) -> io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let explain = |err: Errno| explained(&context, err);
    for lower in overlay.lower {
        fsconfig_set_string(&context, "lowerdir+", lower).map_err(explain)?;
    }
    fsconfig_set_string(&context, "upperdir", overlay.upper).map_err(explain)?;
    fsconfig_set_string(&context, "workdir", overlay.work).map_err(explain)?;
    fsconfig_set_string(&context, "source", "larder").map_err(explain)?;
    fsconfig_create(&context).map_err(explain)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(explain)?;
    Ok(move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Takes the mount at `target` away, also while something in it is still open. Where nothing is mounted there is nothing to do.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount_tree(target: &Path) -> io::Result<()> {
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(err) => return Err(err.into()),
        }
    }
}

/// `err`, with what the kernel wrote into the log of the mount that was being set up.
fn explained(context: &std::os::fd::OwnedFd, err: Errno) -> io::Error {
    let mut line = [0_u8; 1024];
    let mut said = Vec::new();
    // One message a read, and an error when there is none left.
    while let Ok(count @ 1..) = rustix::io::read(context, &mut line[..]) {
        said.push(String::from_utf8_lossy(&line[..count]).trim().to_owned());
    }
    let plain = io::Error::from(err);
    if said.is_empty() { plain } else { io::Error::new(plain.kind(), format!("{plain} ({})", said.join("; "))) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_overlay_shows_all_layers_and_keeps_changes_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["high", "low", "upper", "work", "root"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("low").join("a"), "low").unwrap();
        fs::write(path("low").join("b"), "low").unwrap();
        fs::write(path("high").join("a"), "high").unwrap();
        let overlay = Overlay { lower: &[path("high"), path("low")], upper: &path("upper"), work: &path("work") };
        mount_overlay(&overlay, &path("root")).unwrap();
        assert_eq!(fs::read_to_string(path("root").join("a")).unwrap(), "high");
        assert_eq!(fs::read_to_string(path("root").join("b")).unwrap(), "low");
        fs::write(path("root").join("b"), "new").unwrap();
        assert_eq!(fs::read_to_string(path("low").join("b")).unwrap(), "low");
        unmount_tree(&path("root")).unwrap();
        unmount_tree(&path("root")).unwrap();
        assert_eq!(fs::read_dir(path("root")).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_layer_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let missing = [dir.path().join("missing")];
        let overlay = Overlay { lower: &missing, upper: dir.path(), work: dir.path() };
        assert!(mount_overlay(&overlay, dir.path()).is_err());
    }
}
