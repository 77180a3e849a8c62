//! How a layer's image says what plain EROFS has no word for: extended attributes of our own on the inodes concerned.
//!
//! A merged tree has nothing to mark.
//!
//! Pure: no I/O, no clock, no randomness.

use std::borrow::Cow;

use super::format::{XATTR_IMPLIED, XATTR_LINK_BELOW, XATTR_OPAQUE, XATTR_REPLACED};
use crate::snapshot::tree::{Below, DeviceNumber, Directory, Inode, Node, Origin, Xattr};

/// An inode's attributes with its marks among them.
pub(crate) fn with_marks(inode: &Inode) -> Cow<'_, [Xattr]> {
    let marks = marks_of(&inode.node);
    if marks.is_empty() {
        return Cow::Borrowed(&inode.metadata.xattrs);
    }
    let marks = marks.into_iter().map(|(name, value)| Xattr { name: name.into(), value: value.into() });
    Cow::Owned(inode.metadata.xattrs.iter().cloned().chain(marks).collect())
}

fn marks_of(node: &Node) -> Vec<(&'static [u8], &'static [u8])> {
    let mut marks: Vec<(&'static [u8], &'static [u8])> = Vec::new();
    match node {
        Node::Directory(directory) => {
            if directory.origin == Origin::Implied {
                marks.push((XATTR_IMPLIED, b""));
            }
            if directory.below != Below::Merged {
                marks.push((XATTR_OPAQUE, b"y"));
            }
            if directory.below == Below::Replaced {
                marks.push((XATTR_REPLACED, b""));
            }
        }
        Node::LinkBelow(_) => marks.push((XATTR_LINK_BELOW, b"")),
        Node::Regular(_)
        | Node::Symlink(_)
        | Node::CharDevice(_)
        | Node::BlockDevice(_)
        | Node::Fifo
        | Node::Socket
        | Node::Whiteout => {}
    }
    marks
}

/// Turns the attributes that [`with_marks`] added back into what they mean.
pub(crate) fn take(inode: &mut Inode) {
    let mut found = Vec::new();
    inode.metadata.xattrs.retain(|xattr| {
        let ours = [XATTR_OPAQUE, XATTR_IMPLIED, XATTR_REPLACED, XATTR_LINK_BELOW].contains(&&*xattr.name);
        if ours {
            found.push(xattr.name.clone());
        }
        !ours
    });
    let has = |name: &[u8]| found.iter().any(|found| **found == *name);
    match &mut inode.node {
        Node::Directory(directory) => take_directory(directory, has),
        Node::Symlink(target) if has(XATTR_LINK_BELOW) => inode.node = Node::LinkBelow(std::mem::take(target)),
        Node::CharDevice(DeviceNumber { major: 0, minor: 0 }) => inode.node = Node::Whiteout,
        Node::Regular(_)
        | Node::Symlink(_)
        | Node::CharDevice(_)
        | Node::BlockDevice(_)
        | Node::Fifo
        | Node::Socket
        | Node::Whiteout
        | Node::LinkBelow(_) => {}
    }
}

fn take_directory(directory: &mut Directory, has: impl Fn(&[u8]) -> bool) {
    if has(XATTR_IMPLIED) {
        directory.origin = Origin::Implied;
    }
    if has(XATTR_REPLACED) {
        directory.below = Below::Replaced;
    } else if has(XATTR_OPAQUE) {
        directory.below = Below::Emptied;
    }
}
