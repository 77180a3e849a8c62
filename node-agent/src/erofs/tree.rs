//! The file tree of one layer or of one image, in memory.
//!
//! A tree is an arena of inodes: a hard link is the same [`InodeId`] under two names. A layer's tree also holds what only
//! the next step can resolve: whiteouts, opaque directories, directories that the layer merely passes through, and hard
//! links to files of the layers below. A merged tree holds none of these.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::{BTreeMap, btree_map};

/// The unit in which file data is addressed inside a layer's tar: 512 bytes, the block of tar and of our EROFS images.
pub const BLOCK: u64 = 512;

/// The longest name of one directory entry, as Linux and EROFS have it.
pub const NAME_MAX: usize = 255;

/// Names an inode of one [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(u32);

impl InodeId {
    /// The root directory of every tree.
    pub const ROOT: Self = Self(0);

    /// Its place in the arena, for side tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A file tree.
#[derive(Debug, Clone)]
pub struct Tree {
    inodes: Vec<Inode>,
}

/// One file of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Owner, permissions, time, extended attributes.
    pub metadata: Metadata,
    /// What kind of file it is, with its content.
    pub node: Node,
}

/// What every kind of file has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// The permission bits with setuid, setgid and sticky: twelve bits, no file type.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change.
    pub mtime: Timestamp,
    /// Extended attributes with their full names, sorted by name, each name once.
    pub xattrs: Vec<Xattr>,
}

/// Seconds and nanoseconds since 1970; the seconds may be negative, the nanoseconds count up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// The full name, for example `security.capability`.
    pub name: Box<[u8]>,
    /// The value; may be empty.
    pub value: Box<[u8]>,
}

/// A file's kind and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    Regular(Regular),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device. 0:0 is never one: overlayfs gives that number to whiteouts, so it is read as one.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Hides the entry of this name in the layers below. Layers only.
    Whiteout,
    /// A hard link to a file that only the layers below hold, by its path from the root. Layers only.
    LinkBelow(Box<[u8]>),
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The directory that holds this one; the root holds itself.
    pub parent: InodeId,
    /// The entries, without `.` and `..`, sorted bytewise.
    pub entries: BTreeMap<Box<[u8]>, InodeId>,
    /// Whether the layer states this directory or merely passes through it.
    pub origin: Origin,
    /// What happens to a directory of this name in the layers below.
    pub below: Below,
}

/// Whether a layer has an entry for a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The layer states owner, mode and time.
    Stated,
    /// The layer only has files beneath it: what the layers below say of it stays, a symbolic link to it is followed.
    Implied,
}

/// What a layer's directory does with the directory of the same name in the layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// Entries of both are seen.
    Merged,
    /// The entries below are hidden (an opaque marker in the directory).
    Emptied,
    /// The directory below is gone, with its owner and mode (a whiteout beside it, or a file in between).
    Replaced,
}

/// A regular file's size and where its bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regular {
    /// Bytes, holes included.
    pub size: u64,
    /// Where they lie.
    pub data: Data,
}

/// Where a regular file's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// In one piece.
    Contiguous {
        /// Which layer's tar, counted from the lowest layer.
        device: u16,
        /// The first block of it.
        block: u64,
    },
    /// In pieces, with holes between them: sorted, apart from each other. Every start is a multiple of [`BLOCK`]; so is
    /// every end but the file's own.
    Sparse(Box<[Extent]>),
}

/// One piece of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Which layer's tar.
    pub device: u16,
    /// The first block of it.
    pub block: u64,
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Twelve bits.
    pub major: u32,
    /// Twenty bits.
    pub minor: u32,
}

impl Metadata {
    /// What a directory gets that nobody states: root's, 0755, no time.
    pub fn unstated_directory() -> Self {
        Self { mode: 0o755, ..Self::default() }
    }
}

impl Directory {
    /// An empty directory.
    pub fn new(parent: InodeId, origin: Origin) -> Self {
        Self { parent, entries: BTreeMap::new(), origin, below: Below::Merged }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// A tree of one directory, the root, which nobody has stated yet.
    pub fn new() -> Self {
        let root = Node::Directory(Directory::new(InodeId::ROOT, Origin::Implied));
        Self { inodes: vec![Inode { metadata: Metadata::unstated_directory(), node: root }] }
    }

    /// How many inodes the arena holds, those that no name leads to any more included.
    pub fn arena_len(&self) -> usize {
        self.inodes.len()
    }

    /// Puts an inode into the arena; no name leads to it yet. The callers' entry limits keep the arena below 2^32.
    pub fn add(&mut self, inode: Inode) -> InodeId {
        let id = InodeId(u32::try_from(self.inodes.len()).unwrap_or(u32::MAX));
        self.inodes.push(inode);
        id
    }

    /// The inode.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// The inode, to change it.
    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.index()]
    }

    /// The directory behind an id, if it is one.
    pub fn directory(&self, id: InodeId) -> Option<&Directory> {
        if let Node::Directory(directory) = &self.inode(id).node { Some(directory) } else { None }
    }

    /// The directory behind an id, to change it.
    pub fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        if let Node::Directory(directory) = &mut self.inode_mut(id).node { Some(directory) } else { None }
    }

    /// The entry of a directory.
    pub fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.directory(directory)?.entries.get(name).copied()
    }

    /// Makes a name lead to an inode, instead of whatever it led to. Nothing happens where `directory` is none.
    pub fn link(&mut self, directory: InodeId, name: &[u8], inode: InodeId) {
        if let Some(directory) = self.directory_mut(directory) {
            directory.entries.insert(name.into(), inode);
        }
    }

    /// Takes a name away.
    pub fn unlink(&mut self, directory: InodeId, name: &[u8]) {
        if let Some(directory) = self.directory_mut(directory) {
            directory.entries.remove(name);
        }
    }

    /// Adds an empty directory and the name that leads to it.
    pub fn make_directory(&mut self, parent: InodeId, name: &[u8], origin: Origin, metadata: Metadata) -> InodeId {
        let id = self.add(Inode { metadata, node: Node::Directory(Directory::new(parent, origin)) });
        self.link(parent, name, id);
        id
    }

    /// Every inode that a name leads to, each once, a directory before its entries, entries in order of name.
    pub fn reachable(&self) -> Vec<InodeId> {
        let mut seen = vec![false; self.inodes.len()];
        let mut order = Vec::with_capacity(self.inodes.len());
        let mut stack = vec![InodeId::ROOT];
        while let Some(id) = stack.pop() {
            if std::mem::replace(&mut seen[id.index()], true) {
                continue;
            }
            order.push(id);
            if let Some(directory) = self.directory(id) {
                stack.extend(directory.entries.values().rev());
            }
        }
        order
    }

    /// Shows every path below the root with its inode, entries in order of name, until one is refused. The path has no
    /// leading slash; however many there are, one is in memory at a time.
    pub fn visit<E>(&self, order: Order, mut see: impl FnMut(&[u8], InodeId) -> Result<(), E>) -> Result<(), E> {
        let mut path = Vec::new();
        let mut open: Vec<Open<'_>> = Vec::new();
        open.extend(self.directory(InodeId::ROOT).map(|root| (InodeId::ROOT, 0, root.entries.iter())));
        while let Some((id, length, entries)) = open.last_mut() {
            path.truncate(*length);
            let Some((name, child)) = entries.next() else {
                if order == Order::ContentsFirst && *id != InodeId::ROOT {
                    see(&path, *id)?;
                }
                open.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let directory = self.directory(*child);
            if directory.is_none() || order == Order::DirectoriesFirst {
                see(&path, *child)?;
            }
            open.extend(directory.map(|directory| (*child, path.len(), directory.entries.iter())));
        }
        Ok(())
    }

    /// Every path below the root with its inode: a directory before its entries.
    pub(crate) fn walk(&self) -> Vec<(Vec<u8>, InodeId)> {
        let mut found = Vec::new();
        let seen = self.visit(Order::DirectoriesFirst, |path, id| {
            found.push((path.to_vec(), id));
            Ok::<(), std::convert::Infallible>(())
        });
        seen.map_or_else(|never| match never {}, |()| found)
    }
}

/// A directory whose entries are being shown: itself, how long its path is, and the entries to come.
type Open<'a> = (InodeId, usize, btree_map::Iter<'a, Box<[u8]>, InodeId>);

/// Whether [`Tree::visit`] shows a directory before what is in it, or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Before.
    DirectoriesFirst,
    /// After.
    ContentsFirst,
}

/// `directory/name`, or `name` alone in the root.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visit_shows_directories_before_or_after_their_contents_and_ends_when_refused() {
        let mut tree = Tree::new();
        let a = tree.make_directory(InodeId::ROOT, b"a", Origin::Stated, Metadata::default());
        let b = tree.make_directory(a, b"b", Origin::Stated, Metadata::default());
        tree.make_directory(b, b"c", Origin::Stated, Metadata::default());
        let fifo = tree.add(Inode { metadata: Metadata::default(), node: Node::Fifo });
        tree.link(a, b"z", fifo);
        tree.link(InodeId::ROOT, b"a.", fifo);
        let paths = |order, stop: &[u8]| {
            let mut paths = Vec::new();
            let seen = tree.visit(order, |path, _| {
                paths.push(String::from_utf8_lossy(path).into_owned());
                if path == stop { Err(()) } else { Ok(()) }
            });
            (paths, seen.is_ok())
        };
        let all = |paths: [&str; 5]| (paths.map(str::to_owned).to_vec(), true);
        assert_eq!(paths(Order::DirectoriesFirst, b""), all(["a", "a/b", "a/b/c", "a/z", "a."]));
        assert_eq!(paths(Order::ContentsFirst, b""), all(["a/b/c", "a/b", "a/z", "a", "a."]));
        assert_eq!(paths(Order::ContentsFirst, b"a/b").0.len(), 2);
        assert!(!paths(Order::ContentsFirst, b"a/b").1);
    }
}
