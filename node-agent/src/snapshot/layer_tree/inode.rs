//! From one entry of a tar to what the tree holds of it, and what that takes.
//!
//! Pure: no I/O, no clock, no randomness.

use std::convert::Infallible;

use super::{LayerError, shown};
use crate::erofs;
use crate::erofs::tree::{
    BLOCK, Data, DeviceNumber, Directory, Extent, InodeId, Metadata, Node, Order, Origin, Regular, Tree, Xattr,
};
use crate::snapshot::limits::Limits;
use crate::snapshot::tar::{Entry, EntryKind, RegularData};

/// What an entry takes in memory besides what its length varies with: an inode, a name, and both again in the plan of the
/// image. An estimate from above.
pub(super) const ENTRY_BYTES: u64 = 256;
/// The same of an extended attribute, a piece of a sparse file, a chunk.
const XATTR_BYTES: u64 = 48;
const PIECE_BYTES: u64 = 48;
const CHUNK_BYTES: u64 = 8;

/// What kind of file an entry is, with its content; directories and hard links are the builder's affair.
pub(super) fn node(entry: &Entry, limits: &Limits) -> Result<Node, LayerError> {
    Ok(match &entry.kind {
        EntryKind::Regular(data) => Node::Regular(regular(&entry.path, data, limits)?),
        EntryKind::Symlink(target) => {
            if target.is_empty() || target.len() >= limits.path_bytes || target.contains(&0) {
                let what = "the target of a symbolic link must have 1 to 4095 bytes";
                return Err(LayerError::Path { path: shown(&entry.path), what });
            }
            Node::Symlink(target.as_slice().into())
        }
        // To overlayfs a character device of this number is a whiteout, wherever it comes from.
        EntryKind::CharDevice(DeviceNumber { major: 0, minor: 0 }) => Node::Whiteout,
        EntryKind::CharDevice(number) => Node::CharDevice(*number),
        EntryKind::BlockDevice(number) => Node::BlockDevice(*number),
        EntryKind::Fifo => Node::Fifo,
        EntryKind::Directory | EntryKind::HardLink(_) => Node::Directory(Directory::new(InodeId::ROOT, Origin::Stated)),
    })
}

fn regular(path: &[u8], data: &RegularData, limits: &Limits) -> Result<Regular, LayerError> {
    let refused = |what| LayerError::Sparse { path: shown(path), what };
    let mut extents = Vec::new();
    let mut block = data.block;
    match &data.pieces {
        None if data.size > 0 => {
            return Ok(Regular { size: data.size, data: Data::Contiguous { device: 0, block } });
        }
        None => {}
        Some(pieces) => {
            for (index, piece) in pieces.iter().enumerate() {
                let last = index + 1 == pieces.len();
                if piece.offset % BLOCK != 0 || !last && piece.length % BLOCK != 0 {
                    return Err(refused("a piece does not lie on blocks of 512 bytes"));
                }
                // What fills the last block up is zeros, as what follows in the file: it may be taken as data.
                let length = piece.length.next_multiple_of(BLOCK).min(data.size - piece.offset);
                extents.push(Extent { offset: piece.offset, length, device: 0, block });
                block += piece.length.div_ceil(BLOCK);
            }
        }
    }
    let regular = match extents.as_slice() {
        [only] if only.length == data.size => {
            Regular { size: data.size, data: Data::Contiguous { device: 0, block: only.block } }
        }
        _ => Regular { size: data.size, data: Data::Sparse(extents.into()) },
    };
    if erofs::chunk_count(&regular) > limits.sparse_chunks {
        return Err(refused("the index would be too long"));
    }
    Ok(regular)
}

/// The metadata of an entry as the tree has it. Linux has no modes of symbolic links.
pub(crate) fn metadata(entry: &Entry) -> Metadata {
    let xattrs = entry.xattrs.iter().filter(|xattr| is_kept(&xattr.name, &entry.kind)).cloned().collect();
    let mode = if matches!(entry.kind, EntryKind::Symlink(_)) { 0o777 } else { entry.mode & 0o7777 };
    Metadata { mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs }
}

/// Attributes by which a layer could steer the node (`trusted.`, overlayfs's own) are dropped, as are those that no Linux
/// file system takes: of other systems, and a user's on anything but files and directories.
fn is_kept(name: &[u8], kind: &EntryKind) -> bool {
    let users = name.starts_with(b"user.");
    erofs::can_hold_xattr(name)
        && !name.starts_with(b"trusted.")
        && !name.starts_with(b"user.overlay.")
        && (!users || matches!(kind, EntryKind::Regular(_) | EntryKind::Directory))
}

/// Bytes of memory that an entry takes, what it implies left out.
pub(super) fn cost(entry: &Entry) -> u64 {
    let varying = match &entry.kind {
        EntryKind::Symlink(target) | EntryKind::HardLink(target) => target.len() as u64,
        EntryKind::Regular(data) => data.pieces.as_ref().map_or(0, |pieces| pieces.len() as u64 * PIECE_BYTES),
        EntryKind::Directory | EntryKind::CharDevice(_) | EntryKind::BlockDevice(_) | EntryKind::Fifo => 0,
    };
    ENTRY_BYTES + entry.path.len() as u64 + varying + xattr_bytes(&entry.xattrs)
}

/// Bytes of memory that a chunk index takes.
pub(super) fn chunk_bytes(node: &Node) -> u64 {
    if let Node::Regular(file) = node { erofs::chunk_count(file) * CHUNK_BYTES } else { 0 }
}

/// Bytes of memory that a tree takes, counted as the entries were that it is from.
pub(crate) fn metadata_bytes(tree: &Tree) -> u64 {
    let mut bytes = 0;
    let Ok(()) = tree.visit(Order::DirectoriesFirst, |path, id| {
        let inode = tree.inode(id);
        let content = match &inode.node {
            Node::Symlink(target) | Node::LinkBelow(target) => target.len() as u64,
            Node::Regular(Regular { data: Data::Sparse(extents), .. }) => extents.len() as u64 * PIECE_BYTES,
            Node::Regular(_)
            | Node::Directory(_)
            | Node::CharDevice(_)
            | Node::BlockDevice(_)
            | Node::Fifo
            | Node::Socket
            | Node::Whiteout => 0,
        };
        bytes +=
            ENTRY_BYTES + path.len() as u64 + content + chunk_bytes(&inode.node) + xattr_bytes(&inode.metadata.xattrs);
        Ok::<(), Infallible>(())
    });
    bytes
}

fn xattr_bytes(xattrs: &[Xattr]) -> u64 {
    xattrs.iter().map(|xattr| XATTR_BYTES + (xattr.name.len() + xattr.value.len()) as u64).sum()
}
