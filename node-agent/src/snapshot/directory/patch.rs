//! What a stack of unpacked layers shows wrong, as a tree to put on top of it.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use crate::digest::Digest;
use crate::erofs::tree::{Below, Directory, Inode, InodeId, Metadata, Node, Order, Origin, Tree};

/// The layers as overlayfs sees their directories: what a layer passes through is a directory like any other, a hard link
/// to a file below is nothing at all, and of a layer that comes twice only the upper one is stacked.
pub(super) fn as_stacked(layers: &[Tree], diff_ids: &[Digest]) -> Vec<Tree> {
    let mut stacked = layers.to_vec();
    for (index, tree) in stacked.iter_mut().enumerate() {
        if diff_ids.iter().skip(index + 1).any(|above| Some(above) == diff_ids.get(index)) {
            *tree = Tree::new();
        }
        for id in tree.reachable() {
            let links: Vec<Box<[u8]>> =
                tree.directory(id).map(|directory| links_below(tree, directory)).unwrap_or_default();
            if let Some(directory) = tree.directory_mut(id) {
                directory.origin = Origin::Stated;
                for name in links {
                    directory.entries.remove(&name);
                }
            }
        }
    }
    stacked
}

fn links_below(tree: &Tree, directory: &Directory) -> Vec<Box<[u8]>> {
    let is_link = |id: InodeId| matches!(tree.inode(id).node, Node::LinkBelow(_));
    directory.entries.iter().filter(|(_, id)| is_link(**id)).map(|(name, _)| name.clone()).collect()
}

/// Directories that have whiteouts in any of these layers, by their paths.
pub(super) fn with_whiteouts(layers: &[Tree]) -> BTreeSet<Vec<u8>> {
    let mut directories = BTreeSet::new();
    for layer in layers {
        let Ok(()) = layer.visit(Order::DirectoriesFirst, |path, id| {
            if layer.inode(id).node == Node::Whiteout {
                let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |slash| &path[..slash]);
                if !directories.contains(parent) {
                    directories.insert(parent.to_vec());
                }
            }
            Ok::<(), Infallible>(())
        });
    }
    directories
}

/// What to put on `stacked` so that `wanted` is seen; nothing where they are the same.
///
/// overlayfs lists the whiteouts of a directory that it has in one layer only, though it does not find them then. So
/// directories that have some come on top once more: what is in two layers is merged, and merging leaves them out.
pub(super) fn between(stacked: &Tree, wanted: &Tree, with_whiteouts: &BTreeSet<Vec<u8>>) -> Option<Tree> {
    let mut comparison = Comparison {
        stacked,
        wanted,
        regrouped: regrouped(stacked, wanted),
        patch: Tree::new(),
        copied: BTreeMap::new(),
        anything: false,
    };
    comparison.run();
    for path in with_whiteouts {
        comparison.again(path);
    }
    comparison.anything.then_some(comparison.patch)
}

/// Files with several names that are not the same names in both trees.
fn regrouped(stacked: &Tree, wanted: &Tree) -> BTreeSet<InodeId> {
    let before = groups(stacked);
    let before: BTreeSet<&Vec<Digest>> = before.values().collect();
    groups(wanted)
        .into_iter()
        .filter(|(_, names)| names.len() > 1 && !before.contains(names))
        .map(|(id, _)| id)
        .collect()
}

/// The paths of each file, by their digests: all paths of an image at once would take much memory.
fn groups(tree: &Tree) -> BTreeMap<InodeId, Vec<Digest>> {
    let mut groups: BTreeMap<InodeId, Vec<Digest>> = BTreeMap::new();
    let Ok(()) = tree.visit(Order::DirectoriesFirst, |path, id| {
        if tree.directory(id).is_none() {
            groups.entry(id).or_default().push(Digest::of(path));
        }
        Ok::<(), Infallible>(())
    });
    groups
}

struct Comparison<'a> {
    stacked: &'a Tree,
    wanted: &'a Tree,
    regrouped: BTreeSet<InodeId>,
    patch: Tree,
    copied: BTreeMap<InodeId, InodeId>,
    anything: bool,
}

/// A directory in all three trees: as it is, as it should be, and its place in the patch by path.
struct Pair {
    stacked: InodeId,
    wanted: InodeId,
    path: Vec<Box<[u8]>>,
}

impl Comparison<'_> {
    fn run(&mut self) {
        let (wanted, stacked) = (self.wanted.inode(InodeId::ROOT), self.stacked.inode(InodeId::ROOT));
        self.patch.inode_mut(InodeId::ROOT).metadata = wanted.metadata.clone();
        self.anything |= wanted.metadata != stacked.metadata;
        let mut open = vec![Pair { stacked: InodeId::ROOT, wanted: InodeId::ROOT, path: Vec::new() }];
        while let Some(pair) = open.pop() {
            let (Some(as_is), Some(as_wanted)) =
                (self.stacked.directory(pair.stacked), self.wanted.directory(pair.wanted))
            else {
                continue;
            };
            for name in as_is.entries.keys().filter(|name| !as_wanted.entries.contains_key(*name)) {
                let whiteout = self.patch.add(Inode { metadata: Metadata::default(), node: Node::Whiteout });
                self.put(&pair.path, name, whiteout);
            }
            for (name, wanted) in &as_wanted.entries {
                let as_is = as_is.entries.get(name).copied();
                if let Some(next) = self.entry(&pair.path, name, as_is, *wanted) {
                    open.push(next);
                }
            }
        }
    }

    /// Puts a directory into the patch, if there is one at the path. The root is in more than one layer as it is.
    fn again(&mut self, path: &[u8]) {
        let (mut at, mut names) = (InodeId::ROOT, Vec::new());
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Some(child) = self.wanted.child(at, name) else { return };
            at = child;
            names.push(name.into());
        }
        if !names.is_empty() && self.wanted.directory(at).is_some() {
            self.directory(&names);
        }
    }

    /// Compares one entry; a directory that is one in both trees is to be compared next.
    fn entry(&mut self, path: &[Box<[u8]>], name: &[u8], as_is: Option<InodeId>, wanted: InodeId) -> Option<Pair> {
        let inode = self.wanted.inode(wanted);
        if let Some(as_is) = as_is {
            let found = self.stacked.inode(as_is);
            let directories = (self.stacked.directory(as_is), self.wanted.directory(wanted));
            if let (Some(_), Some(_)) = directories {
                let path = [path, &[name.into()]].concat();
                if found.metadata != inode.metadata {
                    self.directory(&path);
                }
                return Some(Pair { stacked: as_is, wanted, path });
            }
            if found == inode && !self.regrouped.contains(&wanted) {
                return None;
            }
        }
        let copy = self.copy(wanted);
        self.put(path, name, copy);
        None
    }

    /// Copies a file, or a directory with all that is in it, into the patch.
    fn copy(&mut self, from: InodeId) -> InodeId {
        let top = self.copy_one(from);
        let mut open = vec![(from, top)];
        while let Some((from, to)) = open.pop() {
            let Some(directory) = self.wanted.directory(from) else { continue };
            for (name, child) in &directory.entries {
                let copy = self.copy_one(*child);
                if let Some(directory) = self.patch.directory_mut(copy) {
                    directory.parent = to;
                    open.push((*child, copy));
                }
                self.patch.link(to, name, copy);
            }
        }
        top
    }

    /// One inode; a file with several names stays one.
    fn copy_one(&mut self, from: InodeId) -> InodeId {
        if let Some(known) = self.copied.get(&from) {
            return *known;
        }
        let mut inode = self.wanted.inode(from).clone();
        if let Node::Directory(directory) = &mut inode.node {
            directory.entries.clear();
            directory.below = Below::Replaced;
        }
        let copy = self.patch.add(inode);
        if self.wanted.directory(from).is_none() {
            self.copied.insert(from, copy);
        }
        copy
    }

    fn put(&mut self, path: &[Box<[u8]>], name: &[u8], inode: InodeId) {
        let parent = self.directory(path);
        if let Some(directory) = self.patch.directory_mut(inode) {
            directory.parent = parent;
        }
        self.patch.link(parent, name, inode);
    }

    /// The patch's directory at a path, with the metadata that are wanted there, made where it is missing.
    fn directory(&mut self, path: &[Box<[u8]>]) -> InodeId {
        self.anything = true;
        let (mut at, mut wanted) = (InodeId::ROOT, InodeId::ROOT);
        for name in path {
            // The path was walked in this tree, so it is there.
            wanted = self.wanted.child(wanted, name).unwrap_or(wanted);
            at = match self.patch.child(at, name) {
                Some(id) => id,
                None => {
                    let metadata = self.wanted.inode(wanted).metadata.clone();
                    self.patch.make_directory(at, name, Origin::Stated, metadata)
                }
            };
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::merge::merge;
    use crate::snapshot::merge::tests::{layers, seen};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// overlayfs shows directories on top of each other as layers merge that state everything.
        #[test]
        fn the_stack_under_its_patch_shows_what_is_wanted(layers in layers()) {
            let wanted = merge(&layers).expect("merged");
            let diff_ids: Vec<Digest> = (0u8..).take(layers.len()).map(|index| Digest::of(&[index])).collect();
            let mut stack = as_stacked(&layers, &diff_ids);
            let patch = between(&merge(&stack).expect("merged"), &wanted, &with_whiteouts(&layers));
            let patched = patch.is_some();
            stack.extend(patch);
            let shown = merge(&stack).expect("merged");
            prop_assert_eq!(seen(&shown), seen(&wanted), "patched: {}", patched);
        }
    }
}
