//! Compares unpacked files with the tree that they were made from, in everything that a container could see.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, futimens, lgetxattr, makedev, openat};
use rustix::io::Errno;

use super::planting::{OPAQUE, times};
use crate::erofs::tree::{Below, DeviceNumber, Directory, Inode, InodeId, Metadata, Node, Order, Regular, Tree};
use crate::snapshot::SnapshotError;
use crate::snapshot::check::show;

/// Whether the file at a path has the data that this inode's file had.
pub(super) type HasData<'a> = &'a mut dyn FnMut(&Regular, &Path) -> io::Result<bool>;

/// What is wrong with the files below `root`, if anything. `has_data` is asked once a file, however many names it has.
pub(super) fn fault(root: &Path, tree: &Tree, has_data: HasData<'_>) -> Result<Option<String>, SnapshotError> {
    let mut check = Check { root, tree, has_data, seen: HashMap::new() };
    let faults = check.entry(b"", InodeId::ROOT);
    let faults = faults.and_then(|()| tree.visit(Order::DirectoriesFirst, |path, id| check.entry(path, id)));
    match faults {
        Ok(()) => Ok(None),
        Err(Fault::Found(what)) => Ok(Some(what)),
        Err(Fault::Unreadable(path, error)) => Err(SnapshotError::io("read", &path, 0, error)),
    }
}

/// Why a comparison ends before its end.
enum Fault {
    Found(String),
    Unreadable(PathBuf, io::Error),
}

struct Check<'a> {
    root: &'a Path,
    tree: &'a Tree,
    has_data: HasData<'a>,
    /// The number on disk of each file that has been looked at.
    seen: HashMap<InodeId, u64>,
}

impl Check<'_> {
    fn entry(&mut self, path: &[u8], id: InodeId) -> Result<(), Fault> {
        let (full, inode) = (self.root.join(OsStr::from_bytes(path)), self.tree.inode(id));
        if matches!(inode.node, Node::LinkBelow(_)) {
            return Ok(());
        }
        let found = match fs::symlink_metadata(&full) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Fault::Found(format!("{} is gone", show(path))));
            }
            other => other.map_err(|error| Fault::Unreadable(full.clone(), error))?,
        };
        let fault = match self.seen.insert(id, found.ino()) {
            Some(number) => (number != found.ino()).then_some("content"),
            None => self.difference(inode, &found, &full).map_err(|error| Fault::Unreadable(full.clone(), error))?,
        };
        match fault {
            Some(what) => Err(Fault::Found(format!("the {what} of {} is not what it was", show(path)))),
            None => Ok(()),
        }
    }

    fn difference(&mut self, inode: &Inode, found: &fs::Metadata, full: &Path) -> io::Result<Option<&'static str>> {
        if !is_of_kind(&inode.node, found) {
            return Ok(Some("kind"));
        }
        if inode.node == Node::Whiteout {
            return Ok(None);
        }
        if let Some(what) = metadata_differs(&inode.metadata, found, full)? {
            return Ok(Some(what));
        }
        Ok(match &inode.node {
            Node::Regular(file) if file.size != found.len() => Some("size"),
            Node::Regular(file) => (!(self.has_data)(file, full)?).then_some("content"),
            Node::Symlink(target) => (fs::read_link(full)?.as_os_str().as_bytes() != &**target).then_some("target"),
            Node::Directory(directory) => directory_differs(self.tree, directory, full)?,
            Node::CharDevice(number) | Node::BlockDevice(number) => {
                (found.rdev() != device(*number)).then_some("device number")
            }
            Node::Fifo | Node::Socket | Node::Whiteout | Node::LinkBelow(_) => None,
        })
    }
}

fn is_of_kind(node: &Node, found: &fs::Metadata) -> bool {
    let kind = found.file_type();
    match node {
        Node::Directory(_) => kind.is_dir(),
        Node::Regular(_) => kind.is_file(),
        Node::Symlink(_) => kind.is_symlink(),
        Node::CharDevice(_) => kind.is_char_device(),
        Node::BlockDevice(_) => kind.is_block_device(),
        Node::Fifo => kind.is_fifo(),
        Node::Socket => kind.is_socket(),
        Node::Whiteout => kind.is_char_device() && found.rdev() == 0,
        Node::LinkBelow(_) => true,
    }
}

fn metadata_differs(metadata: &Metadata, found: &fs::Metadata, full: &Path) -> io::Result<Option<&'static str>> {
    if (metadata.uid, metadata.gid) != (found.uid(), found.gid()) {
        return Ok(Some("owner"));
    }
    // Linux has no modes of symbolic links.
    if !found.file_type().is_symlink() && u32::from(metadata.mode) != found.mode() & 0o7777 {
        return Ok(Some("mode"));
    }
    for xattr in &metadata.xattrs {
        // The kernel keeps these in a form of its own.
        if !xattr.name.starts_with(b"system.") && !has_xattr(full, &xattr.name, &xattr.value)? {
            return Ok(Some("extended attributes"));
        }
    }
    let time = (found.mtime(), found.mtime_nsec());
    if time != (metadata.mtime.seconds, metadata.mtime.nanoseconds.into()) && as_kept(full, metadata)? != Some(time) {
        return Ok(Some("time"));
    }
    Ok(None)
}

/// Whether a file has an attribute, or its file system has none of the kind.
fn has_xattr(full: &Path, name: &[u8], value: &[u8]) -> io::Result<bool> {
    // One byte more, so that a longer value shows.
    let mut found = vec![0; value.len() + 1];
    match lgetxattr(full, name, &mut found[..]) {
        Ok(length) => Ok(found[..length] == *value),
        Err(Errno::OPNOTSUPP) => Ok(true),
        Err(Errno::NODATA | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What the file system makes of a time that is beyond what it can keep, or finer: none where it cannot be tried.
fn as_kept(full: &Path, metadata: &Metadata) -> io::Result<Option<(i64, i64)>> {
    let Some(directory) = full.parent() else { return Ok(None) };
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(CWD, directory, flags, Mode::from_raw_mode(0o600)) {
        Ok(scratch) => {
            futimens(&scratch, &times(metadata))?;
            let kept = File::from(scratch).metadata()?;
            Ok(Some((kept.mtime(), kept.mtime_nsec())))
        }
        Err(_) => Ok(None),
    }
}

fn directory_differs(tree: &Tree, directory: &Directory, full: &Path) -> io::Result<Option<&'static str>> {
    if directory.below != Below::Merged && !has_xattr(full, OPAQUE.as_bytes(), b"y")? {
        return Ok(Some("opaque marker"));
    }
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(full)? {
        found.insert(entry?.file_name().as_bytes().to_vec());
    }
    // One that is missing is named when its turn comes.
    let is_expected = |name: &Vec<u8>| {
        let id = directory.entries.get(name.as_slice());
        id.is_some_and(|id| !matches!(tree.inode(*id).node, Node::LinkBelow(_)))
    };
    Ok((!found.iter().all(is_expected)).then_some("list of entries"))
}

fn device(number: DeviceNumber) -> u64 {
    makedev(number.major, number.minor)
}
