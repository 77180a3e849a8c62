//! Reading layers and images again, to see whether they still are what they were.
//!
//! What a disk gives back is compared with what does not change: a tar with its diff id, an index with the tar that it is
//! derived from, unpacked files with the index. Files are read from the disk, not from memory that an earlier read has
//! left, and leave nothing there for others to miss.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use super::layer_stream::{KeepTar, LayerStream, ReadLayer};
use super::{Limits, SnapshotError};
use crate::digest::Digest;
use crate::erofs::tree::{Inode, InodeId, Node, Origin, Tree};
use crate::erofs::{Device, read_image, write_image};
use crate::store::layout::Layout;

/// What becomes of derived files that are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mend {
    /// They are made anew.
    Yes,
    /// They stay as they are.
    No,
}

/// What reading something again has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Every byte is what it was.
    Sound,
    /// Every file is there, of the right kind, size and owner; there is no digest to tell about their bytes.
    Unhashed,
    /// Something that is derived from sound files is wrong.
    Derived {
        /// What and how.
        why: String,
        /// Whether it has been made anew.
        mended: bool,
    },
    /// It is not what it was.
    Damaged(String),
}

/// Reads a layer's tar in full, telling how much it reads.
pub(super) fn read_tar(
    layout: &Layout,
    diff_id: &Digest,
    limits: Limits,
    read: &mut dyn FnMut(u64),
) -> Result<Result<ReadLayer<KeepTar>, String>, SnapshotError> {
    let path = layout.layer(diff_id).tar();
    let io = |error| SnapshotError::io("read", &path, 0, error);
    let mut file = File::open(&path).map_err(io)?;
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let mut stream = LayerStream::new(limits, KeepTar);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer).map_err(io)?;
        if length == 0 {
            break;
        }
        if let Err(error) = stream.feed(&buffer[..length]) {
            return Ok(Err(error.to_string()));
        }
        read(length as u64);
    }
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    Ok(stream.finish().map_err(|error| error.to_string()))
}

/// What is wrong with an index on disk that should be of this tree.
pub(super) fn index_fault(path: &Path, tree: &Tree, devices: &[Device]) -> Result<Option<String>, SnapshotError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some("it is not there".to_owned())),
        other => other.map_err(|error| SnapshotError::io("read", path, 0, error))?,
    };
    let found = match read_image(&bytes) {
        Ok(found) => found,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let Some(difference) = difference(tree, &found) else { return Ok(None) };
    // What an index cannot say is in none; so the tree is compared as an index would give it back.
    let mut again = Vec::new();
    let written = write_image(tree, devices, &mut again).map_err(|error| error.to_string());
    let read = written.and_then(|_| read_image(&again).map_err(|error| error.to_string()));
    Ok(read.map_or(Some(difference), |expected| self::difference(&expected, &found)))
}

/// What is wrong with a layer's unpacked files.
pub(super) fn files_fault(root: &Path, tree: &Tree) -> Result<Option<String>, SnapshotError> {
    for (path, id) in tree.walk() {
        let (full, inode) = (root.join(OsStr::from_bytes(&path)), tree.inode(id));
        if matches!(inode.node, Node::LinkBelow(_)) {
            continue;
        }
        let found = match fs::symlink_metadata(&full) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(format!("{} is gone", show(&path))));
            }
            other => other.map_err(|error| SnapshotError::io("stat", &full, 0, error))?,
        };
        if let Some(what) = file_fault(inode, &found) {
            return Ok(Some(format!("the {what} of {} is not what it was", show(&path))));
        }
    }
    Ok(None)
}

fn file_fault(inode: &Inode, found: &fs::Metadata) -> Option<&'static str> {
    let kind = found.file_type();
    let (is_of_kind, size, stated) = match &inode.node {
        Node::Directory(directory) => (kind.is_dir(), None, directory.origin == Origin::Stated),
        Node::Regular(file) => (kind.is_file(), Some(file.size), true),
        Node::Symlink(target) => (kind.is_symlink(), u64::try_from(target.len()).ok(), true),
        Node::CharDevice(_) => (kind.is_char_device(), None, true),
        Node::BlockDevice(_) => (kind.is_block_device(), None, true),
        Node::Fifo => (kind.is_fifo(), None, true),
        Node::Socket => (kind.is_socket(), None, true),
        Node::Whiteout => (kind.is_char_device() && found.rdev() == 0, None, false),
        Node::LinkBelow(_) => (true, None, false),
    };
    let metadata = &inode.metadata;
    if !is_of_kind {
        return Some("kind");
    }
    if size.is_some_and(|size| size != found.len()) {
        return Some("size");
    }
    if stated && (metadata.uid, metadata.gid) != (found.uid(), found.gid()) {
        return Some("owner");
    }
    // Linux has no modes of symbolic links.
    let has_mode = stated && !kind.is_symlink();
    (has_mode && u32::from(metadata.mode) != found.mode() & 0o7777).then_some("mode")
}

/// Where two trees differ first; none where they are the same files under the same names.
fn difference(expected: &Tree, found: &Tree) -> Option<String> {
    let (left, right) = (expected.walk(), found.walk());
    let root = std::iter::once((Vec::new(), InodeId::ROOT));
    let mut same: HashMap<InodeId, InodeId> = HashMap::new();
    for ((path, id), (other_path, other)) in root.clone().chain(left.clone()).zip(root.chain(right.clone())) {
        if path != other_path {
            return Some(format!("{} and {} differ", show(&path), show(&other_path)));
        }
        if *same.entry(id).or_insert(other) != other {
            return Some(format!("{} is linked to another file", show(&path)));
        }
        if !is_same(expected.inode(id), found.inode(other)) {
            return Some(format!("{} differs", show(&path)));
        }
    }
    (left.len() != right.len()).then(|| format!("{} entries instead of {}", right.len(), left.len()))
}

/// The same but for the entries of directories, which are numbers that mean something in their own tree only.
fn is_same(left: &Inode, right: &Inode) -> bool {
    match (&left.node, &right.node) {
        (Node::Directory(one), Node::Directory(other)) => {
            left.metadata == right.metadata && one.origin == other.origin && one.below == other.below
        }
        _ => left == right,
    }
}

fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}
