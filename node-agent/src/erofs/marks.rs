//! How a layer's image says what plain EROFS has no word for: extended attributes of our own on the inodes concerned.
//!
//! A merged tree has nothing to mark.
//!
//! Pure: no I/O, no clock, no randomness.

use super::format::{XATTR_IMPLIED, XATTR_LINK_BELOW, XATTR_OPAQUE, XATTR_REPLACED};
use super::tree::{Below, DeviceNumber, Directory, Inode, Node, Origin};
use super::xattrs::Pair;

/// An inode's attributes with its marks behind them.
pub(crate) fn with_marks(inode: &Inode) -> impl Iterator<Item = Pair<'_>> + Clone {
    let own = inode.metadata.xattrs.iter().map(|xattr| (&*xattr.name, &*xattr.value));
    own.chain(marks_of(&inode.node).into_iter().flatten())
}

/// At most three, of which only those that apply are there.
fn marks_of(node: &Node) -> [Option<Pair<'static>>; 3] {
    match node {
        Node::Directory(directory) => [
            (directory.origin == Origin::Implied).then_some((XATTR_IMPLIED, b"")),
            (directory.below != Below::Merged).then_some((XATTR_OPAQUE, b"y")),
            (directory.below == Below::Replaced).then_some((XATTR_REPLACED, b"")),
        ],
        Node::LinkBelow(_) => [Some((XATTR_LINK_BELOW, b"")), None, None],
        Node::Regular(_)
        | Node::Symlink(_)
        | Node::CharDevice(_)
        | Node::BlockDevice(_)
        | Node::Fifo
        | Node::Socket
        | Node::Whiteout => [None; 3],
    }
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
