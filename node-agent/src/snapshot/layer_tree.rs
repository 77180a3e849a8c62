//! From the entries of one layer's tar, in their order, to the layer's tree.
//!
//! The tree is what an unpacker would leave in an empty directory, plus what concerns the layers below: whiteouts,
//! opaque directories, directories that are only passed through. Symbolic links in the middle of a path are followed
//! inside the root, as an unpacker that is safe does; nothing ever leads outside.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::VecDeque;

use super::erofs;
use super::limits::Limits;
use super::tar::{Entry, EntryKind, RegularData, TarError};
use super::tree::{
    BLOCK, Below, Data, DeviceNumber, Directory, Extent, Inode, InodeId, Metadata, NAME_MAX, Node, Origin, Regular,
    Tree, Xattr, join,
};

/// Symbolic links that one path may lead through, as in Linux.
const SYMLINK_HOPS: usize = 40;

/// What marks a whiteout: this, then the name that is hidden.
const WHITEOUT: &[u8] = b".wh.";
/// In a directory: hides everything of it in the layers below.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of aufs that old layers have; no runtime makes files of it.
const BOOKKEEPING: &[u8] = b".wh..wh.";

/// Why a layer's entries make no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LayerError {
    /// The tar itself is malformed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// More entries, or more directories that they imply, than allowed.
    #[error("read layer: more than {limit} entries")]
    TooManyEntries {
        /// How many are allowed.
        limit: usize,
    },
    /// More bytes than allowed.
    #[error("read layer: more than {limit} bytes")]
    TooLong {
        /// How many are allowed.
        limit: u64,
    },
    /// A path that no unpacker should accept.
    #[error("read layer: entry {path}: {what}")]
    Path {
        /// The entry.
        path: String,
        /// What is wrong with its path.
        what: &'static str,
    },
    /// A component of the path is a file.
    #[error("read layer: entry {path}: {component} is not a directory")]
    NotADirectory {
        /// The entry.
        path: String,
        /// The component.
        component: String,
    },
    /// A path that leads through too many symbolic links.
    #[error("read layer: entry {path}: too many symbolic links")]
    SymlinkLoop {
        /// The entry.
        path: String,
    },
    /// A hard link to what cannot have one, or is hidden.
    #[error("read layer: hard link {path}: {target} {what}")]
    HardLink {
        /// The entry.
        path: String,
        /// The target.
        target: String,
        /// Why not.
        what: &'static str,
    },
    /// A sparse file whose pieces do not lie on block borders, or are too many for an index.
    #[error("read layer: sparse file {path}: {what}")]
    Sparse {
        /// The entry.
        path: String,
        /// What is the matter.
        what: &'static str,
    },
}

/// What an entry did to the tree, for those who do the same to a directory on disk. Paths are from the root, without a
/// leading slash, free of symbolic links and of `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing that a directory on disk shows at once: the root's metadata, a whiteout, an opaque marker.
    Later,
    /// Something of the entry's kind is at this path now, in place of what was there; a directory keeps its entries.
    Made(Vec<u8>),
    /// The path is a further name of a file of this layer.
    Linked {
        /// The new name.
        path: Vec<u8>,
        /// The file's own.
        target: Vec<u8>,
    },
    /// The path is a further name of a file that the layers below hold. Whatever was at the path is gone.
    LinkedBelow(Vec<u8>),
}

/// Builds a layer's tree.
#[derive(Debug)]
pub(crate) struct LayerBuilder {
    tree: Tree,
    limits: Limits,
    entries: usize,
}

/// A directory of the tree and its path.
#[derive(Debug, Clone)]
struct At {
    id: InodeId,
    path: Vec<u8>,
}

impl LayerBuilder {
    /// An empty layer.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { tree: Tree::new(), limits, entries: 0 }
    }

    /// The tree of all entries added.
    pub(crate) fn finish(self) -> Tree {
        self.tree
    }

    /// Adds the next entry of the tar.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<Change, LayerError> {
        self.entries += 1;
        let limit = self.limits.entries;
        if self.entries > limit || self.tree.arena_len() > limit.saturating_mul(2) {
            return Err(LayerError::TooManyEntries { limit });
        }
        let components = split(&entry.path, &entry.path)?;
        let Some((name, parents)) = components.split_last() else { return self.root(entry) };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(entry, parents, name, hidden);
        }
        let parent = self.directory(&entry.path, parents)?;
        match &entry.kind {
            EntryKind::Directory => Ok(self.add_directory(&parent, name, entry)),
            EntryKind::HardLink(target) => self.add_hard_link(&parent, name, entry, target),
            EntryKind::Regular(_)
            | EntryKind::Symlink(_)
            | EntryKind::CharDevice(_)
            | EntryKind::BlockDevice(_)
            | EntryKind::Fifo => {
                let node = self.node(entry)?;
                let inode = self.tree.add(Inode { metadata: metadata(entry), node });
                self.tree.link(parent.id, name, inode);
                Ok(Change::Made(join(&parent.path, name)))
            }
        }
    }

    fn root(&mut self, entry: &Entry) -> Result<Change, LayerError> {
        if entry.kind != EntryKind::Directory {
            return Err(LayerError::Path { path: shown(&entry.path), what: "the root must be a directory" });
        }
        self.state(InodeId::ROOT, entry);
        Ok(Change::Later)
    }

    /// Gives a directory the owner, mode and time of its entry.
    fn state(&mut self, id: InodeId, entry: &Entry) {
        self.tree.inode_mut(id).metadata = metadata(entry);
        if let Some(directory) = self.tree.directory_mut(id) {
            directory.origin = Origin::Stated;
        }
    }

    fn whiteout(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8], hidden: &[u8]) -> Result<Change, LayerError> {
        if name == OPAQUE {
            let directory = self.directory(&entry.path, parents)?.id;
            self.hide_below(directory, Below::Emptied);
            return Ok(Change::Later);
        }
        if name.starts_with(BOOKKEEPING) {
            return Ok(Change::Later);
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(LayerError::Path { path: shown(&entry.path), what: "a whiteout must name what it hides" });
        }
        let parent = self.directory(&entry.path, parents)?.id;
        // A whiteout concerns the layers below only; what this layer itself has under the name stays.
        match self.tree.child(parent, hidden) {
            Some(own) => self.hide_below(own, Below::Replaced),
            None => {
                let inode = Inode { metadata: Metadata::default(), node: Node::Whiteout };
                let whiteout = self.tree.add(inode);
                self.tree.link(parent, hidden, whiteout);
            }
        }
        Ok(Change::Later)
    }

    fn hide_below(&mut self, id: InodeId, how: Below) {
        if let Some(directory) = self.tree.directory_mut(id)
            && directory.below != Below::Replaced
        {
            directory.below = how;
        }
    }

    fn add_directory(&mut self, parent: &At, name: &[u8], entry: &Entry) -> Change {
        let id = match self.tree.child(parent.id, name) {
            Some(id) if self.tree.directory(id).is_some() => id,
            before => self.new_directory(parent.id, name, before.is_some()),
        };
        self.state(id, entry);
        Change::Made(join(&parent.path, name))
    }

    /// A directory in place of nothing, or of a file or whiteout, which then hid what is below.
    fn new_directory(&mut self, parent: InodeId, name: &[u8], replaces: bool) -> InodeId {
        let id = self.tree.make_directory(parent, name, Origin::Implied, Metadata::unstated_directory());
        if replaces {
            self.hide_below(id, Below::Replaced);
        }
        id
    }

    fn add_hard_link(&mut self, parent: &At, name: &[u8], entry: &Entry, target: &[u8]) -> Result<Change, LayerError> {
        let refused = |what| LayerError::HardLink { path: shown(&entry.path), target: shown(target), what };
        let path = join(&parent.path, name);
        let components = split(target, &entry.path)?;
        let Some((target_name, target_parents)) = components.split_last() else {
            return Err(refused("is the root"));
        };
        let Some(found) = self.find(&entry.path, target_parents, target_name)? else {
            let below = components.join(&b'/');
            let inode = self.tree.add(Inode { metadata: metadata(entry), node: Node::LinkBelow(below.into()) });
            self.tree.link(parent.id, name, inode);
            return Ok(Change::LinkedBelow(path));
        };
        match &self.tree.inode(found.id).node {
            Node::Directory(_) => Err(refused("is a directory")),
            Node::Whiteout => Err(refused("is hidden by a whiteout of the same layer")),
            Node::LinkBelow(_) => {
                self.tree.link(parent.id, name, found.id);
                Ok(Change::LinkedBelow(path))
            }
            Node::Regular(_)
            | Node::Symlink(_)
            | Node::CharDevice(_)
            | Node::BlockDevice(_)
            | Node::Fifo
            | Node::Socket => {
                self.tree.link(parent.id, name, found.id);
                Ok(Change::Linked { path, target: found.path })
            }
        }
    }

    /// The file of this layer at a path, with the path that leads to it without symbolic links.
    fn find(&self, entry: &[u8], parents: &[&[u8]], name: &[u8]) -> Result<Option<At>, LayerError> {
        let mut at = At { id: InodeId::ROOT, path: Vec::new() };
        let mut names = Vec::new();
        let mut left: VecDeque<Vec<u8>> = parents.iter().map(|part| part.to_vec()).collect();
        let mut hops = 0;
        while let Some(part) = left.pop_front() {
            if part == b".." {
                at = self.up(at, &mut names);
                continue;
            }
            let Some(child) = self.tree.child(at.id, &part) else { return Ok(None) };
            match &self.tree.inode(child).node {
                Node::Directory(_) => at = down(at, &mut names, &part, child),
                Node::Symlink(target) => {
                    follow(target, &mut at, &mut names, &mut left, &mut hops)
                        .ok_or_else(|| LayerError::SymlinkLoop { path: shown(entry) })?;
                }
                Node::Regular(_)
                | Node::CharDevice(_)
                | Node::BlockDevice(_)
                | Node::Fifo
                | Node::Socket
                | Node::Whiteout
                | Node::LinkBelow(_) => return Ok(None),
            }
        }
        Ok(self.tree.child(at.id, name).map(|id| At { id, path: join(&at.path, name) }))
    }

    /// The directory at a path; what is missing on the way is made, as directories that the layer implies.
    fn directory(&mut self, entry: &[u8], parents: &[&[u8]]) -> Result<At, LayerError> {
        let mut at = At { id: InodeId::ROOT, path: Vec::new() };
        let mut names = Vec::new();
        let mut left: VecDeque<Vec<u8>> = parents.iter().map(|part| part.to_vec()).collect();
        let mut hops = 0;
        while let Some(part) = left.pop_front() {
            if part == b".." {
                at = self.up(at, &mut names);
                continue;
            }
            let child = match self.tree.child(at.id, &part) {
                None => self.new_directory(at.id, &part, false),
                Some(child) => match &self.tree.inode(child).node {
                    Node::Directory(_) => child,
                    Node::Whiteout => self.new_directory(at.id, &part, true),
                    Node::Symlink(target) => {
                        follow(target, &mut at, &mut names, &mut left, &mut hops)
                            .ok_or_else(|| LayerError::SymlinkLoop { path: shown(entry) })?;
                        continue;
                    }
                    Node::Regular(_)
                    | Node::CharDevice(_)
                    | Node::BlockDevice(_)
                    | Node::Fifo
                    | Node::Socket
                    | Node::LinkBelow(_) => {
                        let component = shown(&join(&at.path, &part));
                        return Err(LayerError::NotADirectory { path: shown(entry), component });
                    }
                },
            };
            at = down(at, &mut names, &part, child);
        }
        Ok(at)
    }

    /// One directory up; the root's parent is the root.
    fn up(&self, at: At, names: &mut Vec<Vec<u8>>) -> At {
        let Some(directory) = self.tree.directory(at.id) else { return at };
        names.pop();
        At { id: directory.parent, path: names.join(&b'/') }
    }

    fn node(&self, entry: &Entry) -> Result<Node, LayerError> {
        Ok(match &entry.kind {
            EntryKind::Regular(data) => Node::Regular(self.regular(&entry.path, data)?),
            EntryKind::Symlink(target) => {
                if target.is_empty() || target.len() >= self.limits.path_bytes || target.contains(&0) {
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
            EntryKind::Directory | EntryKind::HardLink(_) => {
                Node::Directory(Directory::new(InodeId::ROOT, Origin::Stated))
            }
        })
    }

    fn regular(&self, path: &[u8], data: &RegularData) -> Result<Regular, LayerError> {
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
        if erofs::chunk_count(&regular) > self.limits.sparse_chunks {
            return Err(refused("the index would be too long"));
        }
        Ok(regular)
    }
}

fn down(at: At, names: &mut Vec<Vec<u8>>, part: &[u8], child: InodeId) -> At {
    names.push(part.to_vec());
    At { id: child, path: join(&at.path, part) }
}

/// Puts a symbolic link's target in front of what is left of a path. `None` after too many.
fn follow(
    target: &[u8],
    at: &mut At,
    names: &mut Vec<Vec<u8>>,
    left: &mut VecDeque<Vec<u8>>,
    hops: &mut usize,
) -> Option<()> {
    *hops += 1;
    if *hops > SYMLINK_HOPS {
        return None;
    }
    if target.starts_with(b"/") {
        *at = At { id: InodeId::ROOT, path: Vec::new() };
        names.clear();
    }
    for part in target.split(|byte| *byte == b'/').rev() {
        if !part.is_empty() && part != b"." {
            left.push_front(part.to_vec());
        }
    }
    Some(())
}

/// The components of a path. Leading slashes are dropped as `tar` drops them; `..` is refused, wherever it leads.
fn split<'a>(path: &'a [u8], entry: &[u8]) -> Result<Vec<&'a [u8]>, LayerError> {
    let refused = |what| LayerError::Path { path: shown(entry), what };
    let mut components = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refused("the path has a component ..")),
            _ if part.len() > NAME_MAX => return Err(refused("a name has more than 255 bytes")),
            _ if part.contains(&0) => return Err(refused("a name has a zero byte")),
            _ => components.push(part),
        }
    }
    Ok(components)
}

/// The metadata of an entry as the tree has it.
pub(crate) fn metadata(entry: &Entry) -> Metadata {
    let mut xattrs: Vec<Xattr> = entry.xattrs.iter().filter(|xattr| is_kept(&xattr.name)).cloned().collect();
    xattrs.sort_by(|left, right| left.name.cmp(&right.name));
    Metadata { mode: entry.mode & 0o7777, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs }
}

/// Attributes by which a layer could steer the node (`trusted.`, overlayfs's own) are dropped, as are those of other
/// systems that no Linux file system takes.
fn is_kept(name: &[u8]) -> bool {
    erofs::can_hold_xattr(name) && !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.")
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
