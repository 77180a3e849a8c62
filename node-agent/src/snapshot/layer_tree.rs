//! From the entries of one layer's tar, in their order, to the layer's tree.
//!
//! The tree is what an unpacker would leave in an empty directory, plus what concerns the layers below: whiteouts,
//! opaque directories, directories that are only passed through. Symbolic links in the middle of a path are followed
//! inside the root, as an unpacker that is safe does; nothing ever leads outside.
//!
//! Pure: no I/O, no clock, no randomness.

mod error;
mod inode;

pub(crate) use error::LayerError;
pub(crate) use inode::{metadata, metadata_bytes};

use super::limits::Limits;
use super::route::{Route, TooManyLinks};
use super::tar::{Entry, EntryKind};
use crate::erofs::tree::{Below, Inode, InodeId, Metadata, NAME_MAX, Node, Origin, Tree, join};

/// What marks a whiteout: this, then the name that is hidden.
const WHITEOUT: &[u8] = b".wh.";
/// In a directory: hides everything of it in the layers below.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of aufs that old layers have, files and directories of files; no runtime makes anything of it.
const BOOKKEEPING: &[u8] = b".wh..wh.";

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
    /// Bytes of memory, estimated.
    metadata_bytes: u64,
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
        Self { tree: Tree::new(), limits, entries: 0, metadata_bytes: 0 }
    }

    /// The tree of all entries added.
    pub(crate) fn finish(self) -> Tree {
        self.tree
    }

    /// Adds the next entry of the tar.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<Change, LayerError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(LayerError::TooManyEntries { limit: self.limits.entries });
        }
        self.charge(inode::cost(entry))?;
        let components = split(&entry.path, &entry.path)?;
        let Some((name, parents)) = components.split_last() else { return self.root(entry) };
        if parents.iter().any(|parent| parent.starts_with(BOOKKEEPING)) {
            return Ok(Change::Later);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(entry, parents, name, hidden);
        }
        let parent = self.directory(&entry.path, parents)?;
        match &entry.kind {
            EntryKind::Directory => self.add_directory(&parent, name, entry),
            EntryKind::HardLink(target) => self.add_hard_link(&parent, name, entry, target),
            EntryKind::Regular(_)
            | EntryKind::Symlink(_)
            | EntryKind::CharDevice(_)
            | EntryKind::BlockDevice(_)
            | EntryKind::Fifo => {
                let node = inode::node(entry, &self.limits)?;
                self.charge(inode::chunk_bytes(&node))?;
                let inode = self.tree.add(Inode { metadata: metadata(entry), node });
                self.tree.link(parent.id, name, inode);
                Ok(Change::Made(join(&parent.path, name)))
            }
        }
    }

    /// Counts memory that is about to be taken.
    fn charge(&mut self, bytes: u64) -> Result<(), LayerError> {
        let limit = self.limits.metadata_bytes;
        self.metadata_bytes = self.metadata_bytes.saturating_add(bytes);
        if self.metadata_bytes > limit { Err(LayerError::TooMuchMetadata { limit }) } else { Ok(()) }
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

    fn add_directory(&mut self, parent: &At, name: &[u8], entry: &Entry) -> Result<Change, LayerError> {
        let id = match self.tree.child(parent.id, name) {
            Some(id) if self.tree.directory(id).is_some() => id,
            before => self.new_directory(parent, name, before.is_some())?,
        };
        self.state(id, entry);
        Ok(Change::Made(join(&parent.path, name)))
    }

    /// A directory in place of nothing, or of a file or whiteout, which then hid what is below.
    fn new_directory(&mut self, parent: &At, name: &[u8], replaces: bool) -> Result<InodeId, LayerError> {
        // A name from a tar was checked already, one from the target of a symbolic link was not.
        if name.len() > NAME_MAX {
            let path = shown(&join(&parent.path, name));
            return Err(LayerError::Path { path, what: "a name has more than 255 bytes" });
        }
        self.charge(inode::ENTRY_BYTES + (parent.path.len() + name.len()) as u64)?;
        let id = self.tree.make_directory(parent.id, name, Origin::Implied, Metadata::unstated_directory());
        if replaces {
            self.hide_below(id, Below::Replaced);
        }
        Ok(id)
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
        let mut at = At::root();
        let mut route = Route::along(&parents.join(&b'/'));
        while let Some(part) = route.next() {
            if part == b".." {
                at = self.up(at);
                continue;
            }
            let Some(child) = self.tree.child(at.id, &part) else { return Ok(None) };
            match &self.tree.inode(child).node {
                Node::Directory(_) => at = at.down(entry, &part, child, self.limits.path_bytes)?,
                Node::Symlink(target) => at = at.follow(entry, target, &mut route)?,
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
        let mut at = At::root();
        let mut route = Route::along(&parents.join(&b'/'));
        while let Some(part) = route.next() {
            if part == b".." {
                at = self.up(at);
                continue;
            }
            let child = match self.tree.child(at.id, &part) {
                None => self.new_directory(&at, &part, false)?,
                Some(child) => match &self.tree.inode(child).node {
                    Node::Directory(_) => child,
                    Node::Whiteout => self.new_directory(&at, &part, true)?,
                    Node::Symlink(target) => {
                        at = at.follow(entry, target, &mut route)?;
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
            at = at.down(entry, &part, child, self.limits.path_bytes)?;
        }
        Ok(at)
    }

    /// One directory up; the root's parent is the root.
    fn up(&self, mut at: At) -> At {
        let Some(directory) = self.tree.directory(at.id) else { return at };
        at.path.truncate(at.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
        At { id: directory.parent, path: at.path }
    }
}

impl At {
    fn root() -> Self {
        Self { id: InodeId::ROOT, path: Vec::new() }
    }

    /// An entry of this directory. Its path may be longer than the one that the tar has, where it went through links.
    fn down(mut self, entry: &[u8], part: &[u8], child: InodeId, path_bytes: usize) -> Result<Self, LayerError> {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(part);
        if self.path.len() > path_bytes {
            let what = "the path that its symbolic links lead to is too long";
            return Err(LayerError::Path { path: shown(entry), what });
        }
        Ok(Self { id: child, path: self.path })
    }

    /// Where a symbolic link in this directory begins.
    fn follow(self, entry: &[u8], target: &[u8], route: &mut Route) -> Result<Self, LayerError> {
        route.follow(target).map_err(|TooManyLinks| LayerError::SymlinkLoop { path: shown(entry) })?;
        Ok(if target.starts_with(b"/") { Self::root() } else { self })
    }
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

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests;
