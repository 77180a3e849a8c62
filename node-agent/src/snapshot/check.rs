//! Reading layers and images again, to see whether they still are what they were.
//!
//! What a disk gives back is compared with what does not change: a tar with its diff id, an index with the tar that it is
//! derived from, unpacked files with the index and their digests. Files are read from the disk, not from memory that an
//! earlier read has left, and leave nothing there for others to miss.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use super::layer_stream::{KeepTar, LayerStream, ReadLayer};
use super::{Limits, SnapshotError};
use crate::digest::Digest;
use crate::erofs::tree::{Inode, InodeId, Node, Tree};
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
    /// Every file is there, with the right metadata; there is no digest to tell about their bytes.
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

/// A path from the root, for messages.
pub(super) fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}
