//! Makes files of a tree below one directory on disk, and never anywhere else.
//!
//! Every path is opened with `openat2`, which must stay beneath the root and follow no symbolic link: the paths that
//! come here have none, and if one had, the kernel would refuse.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fsetxattr, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::erofs::tree::{Below, DeviceNumber, InodeId, Metadata, Node, Order, Tree};
use crate::snapshot::SnapshotError;
use crate::store::durable;

/// What overlayfs reads on a directory that hides those below it.
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

/// Where so much is free, a disk is not full for a file's attributes.
const XATTRS_AND_MORE: u64 = 1 << 20;

/// A directory on disk that files are made in. Paths are relative to it.
#[derive(Debug)]
pub(super) struct Bed {
    root: OwnedFd,
    path: PathBuf,
    /// The parent that was used last: the entries of a directory usually follow each other.
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Bed {
    /// Makes the root, which must not exist.
    pub(super) fn create(path: &Path) -> Result<Self, SnapshotError> {
        let made = (|| {
            mkdirat(CWD, path, Mode::from_raw_mode(0o755))?;
            openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        })();
        let root = made.map_err(|error| SnapshotError::io("create", path, 0, error.into()))?;
        Ok(Self { root, path: path.to_owned(), last: None })
    }

    /// A directory, unless it is there.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<(), SnapshotError> {
        self.at(path, "create directory", |parent, name| match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Err(Errno::EXIST) if is_directory(parent, name)? => Ok(()),
            Err(Errno::EXIST) => {
                unlinkat(parent, name, AtFlags::empty())?;
                mkdirat(parent, name, Mode::from_raw_mode(0o700))
            }
            other => other,
        })
    }

    /// An empty regular file to write to.
    pub(super) fn file(&mut self, path: &[u8]) -> Result<File, SnapshotError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.at(path, "create", |parent, name| openat(parent, name, flags, Mode::from_raw_mode(0o600))).map(File::from)
    }

    /// A symbolic link.
    pub(super) fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), SnapshotError> {
        self.at(path, "create symbolic link", |parent, name| symlinkat(target, parent, name))
    }

    /// A device, named pipe or socket.
    pub(super) fn node(&mut self, path: &[u8], kind: FileType, number: DeviceNumber) -> Result<(), SnapshotError> {
        let device = makedev(number.major, number.minor);
        self.at(path, "create node", |parent, name| mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device))
    }

    /// What overlayfs takes as "nothing here, whatever is below".
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<(), SnapshotError> {
        self.node(path, FileType::CharacterDevice, DeviceNumber { major: 0, minor: 0 })
    }

    /// A further name of a file.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), SnapshotError> {
        let (to_parent, to_name) = split(target);
        let from = self.open(to_parent).map_err(|error| self.failed("open", target, error))?;
        self.at(path, "link", |parent, name| linkat(&from, to_name, parent, name, AtFlags::empty()))
    }

    /// Removes whatever is at the path.
    pub(super) fn clear(&mut self, path: &[u8]) -> Result<(), SnapshotError> {
        let directory = self.at(path, "remove", |parent, name| match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(false),
            Err(Errno::ISDIR) => Ok(true),
            Err(error) => Err(error),
        })?;
        if directory {
            self.last = None;
            let full = self.full(path);
            durable::remove(&full).map_err(|error| SnapshotError::io("remove", &full, 0, error))?;
        }
        Ok(())
    }

    /// Owner, mode, attributes and time. In this order: a change of owner takes setuid and capabilities away.
    pub(super) fn dress(&mut self, path: &[u8], metadata: &Metadata, symlink: bool) -> Result<(), SnapshotError> {
        let times = times(metadata);
        let owner = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
        if path.is_empty() {
            return self.dress_root(metadata, owner, &times);
        }
        let mode = Mode::from_raw_mode(u32::from(metadata.mode));
        self.at(path, "set owner, mode or time", |parent, name| {
            chownat(parent, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
            // Linux has no modes of symbolic links.
            if !symlink {
                chmodat(parent, name, mode, AtFlags::empty())?;
            }
            Ok(())
        })?;
        if !metadata.xattrs.is_empty() {
            self.set_xattrs(path, metadata)?;
        }
        self.at(path, "set time", |parent, name| utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW))
    }

    fn dress_root(&self, metadata: &Metadata, owner: (Uid, Gid), times: &Timestamps) -> Result<(), SnapshotError> {
        let failed = |error| self.failed("set owner, mode or time", b"", error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(&self.root, ".", flags, Mode::empty()).map_err(failed)?;
        rustix::fs::fchown(&root, Some(owner.0), Some(owner.1)).map_err(failed)?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(u32::from(metadata.mode))).map_err(failed)?;
        for xattr in &metadata.xattrs {
            tolerate_unsupported(fsetxattr(&root, &*xattr.name, &xattr.value, XattrFlags::empty()))
                .map_err(|error| self.xattr_failed(b"", error))?;
        }
        rustix::fs::futimens(&root, times).map_err(failed)
    }

    fn set_xattrs(&mut self, path: &[u8], metadata: &Metadata) -> Result<(), SnapshotError> {
        let (parent, name) = split(path);
        let parent = self.open(parent).map_err(|error| self.failed("open", path, error))?;
        // There is no setxattrat before Linux 6.13; the descriptor's path under /proc names the same directory.
        let place = descriptor_path(&parent, name);
        for xattr in &metadata.xattrs {
            tolerate_unsupported(lsetxattr(place.as_slice(), &*xattr.name, &xattr.value, XattrFlags::empty()))
                .map_err(|error| self.xattr_failed(path, error))?;
        }
        Ok(())
    }

    /// Marks a directory so that overlayfs hides what is below it.
    fn make_opaque(&mut self, path: &[u8]) -> Result<(), SnapshotError> {
        let marked = self.open(path).and_then(|directory| {
            lsetxattr(descriptor_path(&directory, b".").as_slice(), OPAQUE, b"y", XattrFlags::empty())
        });
        marked.map_err(|error| self.failed("set opaque marker", path, error))
    }

    /// Whiteouts, opaque markers and, from the deepest up, the metadata of directories, once all files are there.
    pub(super) fn finish(&mut self, tree: &Tree) -> Result<(), SnapshotError> {
        tree.visit(Order::ContentsFirst, |path, id| {
            if tree.inode(id).node == Node::Whiteout {
                self.whiteout(path)
            } else {
                self.finish_directory(tree, path, id)
            }
        })?;
        self.finish_directory(tree, b"", InodeId::ROOT)
    }

    fn finish_directory(&mut self, tree: &Tree, path: &[u8], id: InodeId) -> Result<(), SnapshotError> {
        let Some(directory) = tree.directory(id) else { return Ok(()) };
        if directory.entries.is_empty() && !path.is_empty() {
            // One whose entries were all whiteouts of bookkeeping, say, may not have been needed until now.
            self.directory(path)?;
        }
        if directory.below != Below::Merged {
            self.make_opaque(path)?;
        }
        self.dress(path, &tree.inode(id).metadata, false)
    }

    /// Runs an operation on a name in its parent, which is made where it is missing.
    fn at<T>(
        &mut self,
        path: &[u8],
        action: &'static str,
        operation: impl FnOnce(&OwnedFd, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, SnapshotError> {
        let (parent, name) = split(path);
        if self.last.as_ref().is_none_or(|(last, _)| last != parent) {
            let opened = self.open_or_make(parent).map_err(|error| self.failed(action, path, error))?;
            self.last = Some((parent.to_vec(), opened));
        }
        match &self.last {
            Some((_, parent)) => operation(parent, name).map_err(|error| self.failed(action, path, error)),
            None => Err(self.failed(action, path, Errno::NOENT)),
        }
    }

    fn open_or_make(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        match self.open(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let (parent, name) = split(path);
        // As deep as a path is long, which is bounded; each level is one small frame.
        let parent = self.open_or_make(parent)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => self.open(path),
            Err(error) => Err(error),
        }
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    fn full(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt as _;
        self.path.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Makes everything in it durable.
    pub(super) fn sync(&self) -> Result<(), SnapshotError> {
        let opened = openat(&self.root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let opened = opened.map_err(|error| self.failed("open", b"", error))?;
        durable::sync_tree(opened, &self.path).map_err(|error| self.io("sync", b"", error))
    }

    /// What went wrong with a file in it.
    pub(super) fn io(&self, action: &'static str, path: &[u8], error: io::Error) -> SnapshotError {
        SnapshotError::io(action, &self.full(path), 0, error)
    }

    /// A file system has room for a few kilobytes of attributes a file, and says that it is full where there are more.
    fn xattr_failed(&self, path: &[u8], error: Errno) -> SnapshotError {
        let full = matches!(error, Errno::NOSPC | Errno::DQUOT) && durable::free_bytes(&self.path) < XATTRS_AND_MORE;
        if full || !matches!(error, Errno::NOSPC | Errno::DQUOT | Errno::TOOBIG | Errno::RANGE) {
            return self.failed("set extended attribute", path, error);
        }
        let path = self.full(path);
        SnapshotError::LimitExceeded(format!(
            "the extended attributes of {} are larger than the store's file system takes",
            path.display()
        ))
    }

    fn failed(&self, action: &'static str, path: &[u8], error: Errno) -> SnapshotError {
        SnapshotError::io(action, &self.full(path), 0, io::Error::from(error))
    }
}

fn is_directory(parent: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
    let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

/// Attributes that this file system does not have are left out, as every unpacker does.
fn tolerate_unsupported(set: Result<(), Errno>) -> Result<(), Errno> {
    match set {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn descriptor_path(parent: &OwnedFd, name: &[u8]) -> Vec<u8> {
    use std::os::fd::AsRawFd as _;
    [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat()
}

pub(super) fn times(metadata: &Metadata) -> Timestamps {
    let time = Timespec { tv_sec: metadata.mtime.seconds, tv_nsec: i64::from(metadata.mtime.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

/// The parent's path and the name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
