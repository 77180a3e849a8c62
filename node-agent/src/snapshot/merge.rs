//! From the trees of an image's layers to the image's tree, as the OCI image specification has it.
//!
//! Layer by layer from the lowest: an entry takes the place of what was there, a directory meets a directory, a whiteout
//! takes away what the layers below had, an opaque directory hides their entries. A directory that a layer only passes
//! through leaves owner and mode as they are, and follows a symbolic link in its place, inside the root. Hard links to
//! files of the layers below become further names of them.
//!
//! Pure: no I/O, no clock, no randomness.

use crate::erofs::tree::{Below, Data, Directory, Inode, InodeId, Metadata, NAME_MAX, Node, Origin, Tree};

use super::route::{Route, TooManyLinks};

/// Inodes from which on nobody may imply further directories: far beyond any image, well within memory.
const IMAGE_INODES: usize = 8_000_000;

/// Why layers do not make an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MergeError {
    /// A hard link to a file that no layer below has, or that is a directory.
    #[error("merge layers: hard link in layer {layer} to {target}, which the layers below do not have as a file")]
    LinkTarget {
        /// Counted from the lowest, which is 0.
        layer: usize,
        /// The path of the file that is missing.
        target: String,
    },
    /// More layers than there are device numbers.
    #[error("merge layers: {count} layers, more than can be numbered")]
    TooManyLayers {
        /// How many.
        count: usize,
    },
    /// Paths through symbolic links imply more directories than a layer's limits allow for.
    #[error("merge layers: layer {layer} implies too many directories")]
    TooManyDirectories {
        /// Counted from the lowest.
        layer: usize,
    },
    /// A symbolic link leads through a name that no file system has.
    #[error("merge layers: layer {layer} has entries below a symbolic link to a name of more than 255 bytes")]
    NameTooLong {
        /// Counted from the lowest.
        layer: usize,
    },
    /// A path leads through too many symbolic links.
    #[error("merge layers: too many symbolic links in layer {layer} below {path}")]
    SymlinkLoop {
        /// Counted from the lowest.
        layer: usize,
        /// The link that was one too many.
        path: String,
    },
}

/// The image's tree. `layers` are in order, the lowest first; the data of layer `i` are on device `i` of the result.
pub(crate) fn merge(layers: &[Tree]) -> Result<Tree, MergeError> {
    let mut image = Tree::new();
    for (index, layer) in layers.iter().enumerate() {
        let device = u16::try_from(index).map_err(|_| MergeError::TooManyLayers { count: layers.len() })?;
        Merge { image: &mut image, layer, index, device, moved: vec![None; layer.arena_len()] }.run()?;
    }
    if let Some(root) = image.directory_mut(InodeId::ROOT) {
        root.origin = Origin::Stated;
    }
    Ok(image)
}

/// One layer on its way into the image.
struct Merge<'a> {
    image: &'a mut Tree,
    layer: &'a Tree,
    index: usize,
    device: u16,
    /// What each of the layer's files became, so that hard links stay together.
    moved: Vec<Option<InodeId>>,
}

impl Merge<'_> {
    fn run(mut self) -> Result<(), MergeError> {
        self.resolve_links_below()?;
        let root = self.layer.inode(InodeId::ROOT);
        if let Node::Directory(directory) = &root.node {
            if directory.below != Below::Merged {
                self.empty(InodeId::ROOT);
            }
            if directory.origin == Origin::Stated {
                self.image.inode_mut(InodeId::ROOT).metadata = root.metadata.clone();
            }
        }
        let mut open = vec![(InodeId::ROOT, InodeId::ROOT)];
        while let Some((from, to)) = open.pop() {
            let Some(directory) = self.layer.directory(from) else { continue };
            for (name, child) in &directory.entries {
                if let Some(target) = self.entry(to, name, *child)? {
                    open.push((*child, target));
                }
            }
        }
        Ok(())
    }

    /// Looks up every hard link to a file below while the image still is as the layers below left it.
    fn resolve_links_below(&mut self) -> Result<(), MergeError> {
        for id in self.layer.reachable() {
            let Node::LinkBelow(target) = &self.layer.inode(id).node else { continue };
            let layer = self.index;
            let missing = || MergeError::LinkTarget { layer, target: shown(target) };
            let (parents, name) = match target.iter().rposition(|byte| *byte == b'/') {
                Some(slash) => (&target[..slash], &target[slash + 1..]),
                None => (&b""[..], &target[..]),
            };
            let parent = self.resolve(InodeId::ROOT, parents, Missing::Stop)?.ok_or_else(missing)?;
            let found = self.image.child(parent, name).ok_or_else(missing)?;
            if self.image.directory(found).is_some() {
                return Err(missing());
            }
            self.moved[id.index()] = Some(found);
        }
        Ok(())
    }

    /// Brings one entry of the layer into a directory of the image. Gives the image's directory where the entry is one.
    fn entry(&mut self, to: InodeId, name: &[u8], child: InodeId) -> Result<Option<InodeId>, MergeError> {
        let inode = self.layer.inode(child);
        match &inode.node {
            Node::Whiteout => {
                self.image.unlink(to, name);
                Ok(None)
            }
            Node::Directory(directory) => self.directory(to, name, directory, &inode.metadata).map(Some),
            Node::LinkBelow(_)
            | Node::Regular(_)
            | Node::Symlink(_)
            | Node::CharDevice(_)
            | Node::BlockDevice(_)
            | Node::Fifo
            | Node::Socket => {
                let id = match self.moved[child.index()] {
                    Some(id) => id,
                    None => {
                        let id = self.image.add(self.on_device(inode));
                        self.moved[child.index()] = Some(id);
                        id
                    }
                };
                self.image.link(to, name, id);
                Ok(None)
            }
        }
    }

    fn directory(
        &mut self,
        to: InodeId,
        name: &[u8],
        directory: &Directory,
        metadata: &Metadata,
    ) -> Result<InodeId, MergeError> {
        let stated = directory.origin == Origin::Stated;
        if let (Some(below), false) = (self.image.child(to, name), directory.below == Below::Replaced) {
            let symlink = matches!(self.image.inode(below).node, Node::Symlink(_));
            let existing = if symlink && !stated { self.resolve(to, name, Missing::Make)? } else { Some(below) };
            if let Some(existing) = existing.filter(|id| self.image.directory(*id).is_some()) {
                if directory.below == Below::Emptied {
                    self.empty(existing);
                }
                if stated {
                    self.image.inode_mut(existing).metadata = metadata.clone();
                }
                return Ok(existing);
            }
        }
        let metadata = if stated { metadata.clone() } else { Metadata::unstated_directory() };
        Ok(self.image.make_directory(to, name, Origin::Stated, metadata))
    }

    fn empty(&mut self, id: InodeId) {
        if let Some(directory) = self.image.directory_mut(id) {
            directory.entries.clear();
        }
    }

    /// The layer's inode with its data on the layer's device.
    fn on_device(&self, inode: &Inode) -> Inode {
        let mut inode = inode.clone();
        if let Node::Regular(file) = &mut inode.node {
            match &mut file.data {
                Data::Contiguous { device, .. } => *device = self.device,
                Data::Sparse(extents) => extents.iter_mut().for_each(|extent| extent.device = self.device),
            }
        }
        inode
    }

    /// Follows a path from a directory of the image, symbolic links included, never above the root. `None` where it leads to
    /// no directory.
    fn resolve(&mut self, from: InodeId, path: &[u8], missing: Missing) -> Result<Option<InodeId>, MergeError> {
        let mut at = from;
        let mut route = Route::along(path);
        while let Some(part) = route.next() {
            if part == b".." {
                at = self.image.directory(at).map_or(at, |directory| directory.parent);
                continue;
            }
            let Some(child) = self.image.child(at, &part) else {
                match missing {
                    Missing::Stop => return Ok(None),
                    Missing::Make => {
                        if part.len() > NAME_MAX {
                            return Err(MergeError::NameTooLong { layer: self.index });
                        }
                        if self.image.arena_len() > IMAGE_INODES {
                            return Err(MergeError::TooManyDirectories { layer: self.index });
                        }
                        let metadata = Metadata::unstated_directory();
                        at = self.image.make_directory(at, &part, Origin::Stated, metadata);
                        continue;
                    }
                }
            };
            match &self.image.inode(child).node {
                Node::Directory(_) => at = child,
                Node::Symlink(target) => {
                    let layer = self.index;
                    let looped = |TooManyLinks| MergeError::SymlinkLoop { layer, path: shown(&part) };
                    route.follow(target).map_err(looped)?;
                    if target.starts_with(b"/") {
                        at = InodeId::ROOT;
                    }
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
        Ok(Some(at))
    }
}

/// What to do about a component that is not there.
#[derive(Debug, Clone, Copy)]
enum Missing {
    Stop,
    Make,
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
pub(in crate::snapshot) mod tests;
