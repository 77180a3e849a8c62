//! How much room a folder takes on its disk, as `du -x` counts it.
//!
//! The folder may be one that a container writes to while it is counted: no link in it leads anywhere, and no other file
//! system is entered.

use std::{
    collections::HashSet,
    ffi::{CStr, OsStr},
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat};

/// The size of a block of `st_blocks`, whatever the file system's own is.
const BLOCK_BYTES: u64 = 512;

/// Bytes on disk of a folder and all that is in it; zero for one that is not there. Blocks for as long as the folder is
/// large. What goes away meanwhile does not count, nor what lies so deep that no path leads there.
///
/// # Errors
/// When the folder itself cannot be read.
pub fn bytes_below(folder: &Path) -> io::Result<u64> {
    let root = match File::open(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        root => root?,
    };
    let mut count = Count { bytes: 0, linked: HashSet::new(), folders: vec![PathBuf::from(".")] };
    while let Some(path) = count.folders.pop() {
        if let Ok(opened) = open_below(&root, &path) {
            count.add_folder(opened, &path);
        }
    }
    Ok(count.bytes)
}

/// As [`bytes_below`], without the folder itself: zero for an empty one.
///
/// # Errors
/// As [`bytes_below`] has them.
pub fn bytes_within(folder: &Path) -> io::Result<u64> {
    let own = std::fs::metadata(folder).map_or(0, |folder| folder.blocks().saturating_mul(BLOCK_BYTES));
    Ok(bytes_below(folder)?.saturating_sub(own))
}

fn open_below(root: &File, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(root, path, flags, Mode::empty(), resolve)?)
}

struct Count {
    bytes: u64,
    /// Files of several names that have been counted, by device and number.
    linked: HashSet<(u64, u64)>,
    /// Folders to go into, from the root.
    folders: Vec<PathBuf>,
}

impl Count {
    fn add_folder(&mut self, folder: OwnedFd, path: &Path) {
        let Ok(entries) = Dir::read_from(&folder) else { return };
        if let Ok(stat) = rustix::fs::fstat(&folder) {
            self.add(&stat);
        }
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(stat) = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                // Counted when it is opened, if it is of this file system.
                self.folders.push(path.join(os_name(name)));
            } else {
                self.add(&stat);
            }
        }
    }

    fn add(&mut self, stat: &Stat) {
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_folder && stat.st_nlink > 1 && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
        self.bytes = self.bytes.saturating_add(blocks.saturating_mul(BLOCK_BYTES));
    }
}

fn os_name(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{FileExt as _, MetadataExt as _, symlink},
        process::Command,
    };

    use super::*;

    /// What `du` says.
    fn du(folder: &Path) -> u64 {
        let said = Command::new("du").args(["-sx", "--block-size=1"]).arg(folder).output().unwrap().stdout;
        String::from_utf8(said).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn a_folder_itself_is_within_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(bytes_within(dir.path()).unwrap(), 0);
        assert_eq!(bytes_within(&dir.path().join("none")).unwrap(), 0);
        fs::write(dir.path().join("file"), vec![1; 100_000]).unwrap();
        let own = dir.path().metadata().unwrap().blocks() * BLOCK_BYTES;
        assert_eq!(bytes_within(dir.path()).unwrap(), du(dir.path()) - own);
    }

    #[test]
    fn it_counts_as_du_does() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::write(root.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("a/file"), root.join("a/b/again")).unwrap();
        fs::write(root.join("a/b/c/small"), "x").unwrap();
        // Large to look at, and nearly nothing on disk.
        fs::File::create(root.join("sparse")).unwrap().write_at(b"x", 1 << 30).unwrap();
        // What lies behind a link is somebody else's.
        fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        symlink(dir.path(), root.join("link")).unwrap();
        symlink("link", root.join("loop")).unwrap();
        let counted = bytes_below(&root).unwrap();
        assert_eq!(counted, du(&root));
        assert!(counted >= fs::metadata(root.join("a/file")).unwrap().blocks() * BLOCK_BYTES && counted < 1 << 20);
    }

    #[test]
    fn what_is_not_there_takes_no_room() {
        assert_eq!(bytes_below(Path::new("/nonexistent/folder")).unwrap(), 0);
    }

    #[test]
    fn another_file_system_is_not_entered() {
        crate::host::namespace::on_test_host(async || {
            let dir = tempfile::tempdir().unwrap();
            let inner = dir.path().join("inner");
            fs::create_dir(&inner).unwrap();
            let before = bytes_below(dir.path()).unwrap();
            crate::host::namespace::mount_memory_volume(&inner, 0).unwrap();
            fs::write(inner.join("file"), vec![1; 1 << 20]).unwrap();
            assert!(bytes_below(dir.path()).unwrap() <= before);
            crate::host::namespace::unmount(&inner).unwrap();
        });
    }
}
