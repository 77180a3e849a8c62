//! What single entries become; whole layers are in the tests of the merge and in the conformance suite.

use super::{LayerBuilder, metadata};
use crate::erofs::tree::{DeviceNumber, InodeId, Node, Timestamp, Tree, Xattr};
use crate::snapshot::Limits;
use crate::snapshot::tar::{Entry, EntryKind, RegularData};

fn entry(path: &str, kind: EntryKind) -> Entry {
    let mtime = Timestamp::default();
    Entry { path: path.into(), mode: 0o640, uid: 5, gid: 7, mtime, xattrs: Vec::new(), kind }
}

fn file(path: &str) -> Entry {
    entry(path, EntryKind::Regular(RegularData { size: 0, block: 0, pieces: None }))
}

fn symlink(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Symlink(target.into()))
}

fn tree(entries: &[Entry]) -> Tree {
    let mut builder = LayerBuilder::new(Limits::default());
    for entry in entries {
        builder.add(entry).expect("valid");
    }
    builder.finish()
}

fn paths(tree: &Tree) -> Vec<String> {
    tree.walk().into_iter().map(|(path, _)| String::from_utf8(path).expect("ASCII")).collect()
}

#[test]
fn a_link_on_the_way_leads_from_its_directory_or_from_the_root() {
    let tree = tree(&[symlink("a/up", "../b"), symlink("a/root", "/b"), file("a/up/1"), file("a/root/2")]);
    assert_eq!(paths(&tree), ["a", "a/root", "a/up", "b", "b/1", "b/2"]);
}

#[test]
fn bookkeeping_of_aufs_leaves_nothing() {
    let directory = entry(".wh..wh.plnk", EntryKind::Directory);
    let entries = [file("d/.wh..wh.aufs"), file(".wh..wh.orph"), directory, file(".wh..wh.plnk/12.34")];
    assert!(paths(&tree(&entries)).is_empty());
}

#[test]
fn the_root_has_what_its_entry_states() {
    let stated = entry("./", EntryKind::Directory);
    assert_eq!(tree(std::slice::from_ref(&stated)).inode(InodeId::ROOT).metadata, metadata(&stated));
}

#[test]
fn a_character_device_of_number_zero_is_a_whiteout() {
    let device = |minor| entry("x", EntryKind::CharDevice(DeviceNumber { major: 0, minor }));
    let nodes = [0, 1].map(|minor| {
        let tree = tree(&[device(minor)]);
        tree.inode(tree.child(InodeId::ROOT, b"x").expect("an entry")).node.clone()
    });
    assert_eq!(nodes, [Node::Whiteout, Node::CharDevice(DeviceNumber { major: 0, minor: 1 })]);
}

#[test]
fn symbolic_links_have_the_mode_that_linux_gives_them() {
    assert_eq!(metadata(&symlink("x", "y")).mode, 0o777);
    assert_eq!(metadata(&file("x")).mode, 0o640);
}

#[test]
fn attributes_that_steer_the_node_or_that_linux_refuses_are_dropped() {
    let kept = |entry: Entry| {
        let names = ["com.apple.x", "security.capability", "trusted.overlay.opaque", "trusted.x"];
        let users = ["user.a", "user.overlay.opaque", "user.overlayed"];
        let xattr = |name: &str| Xattr { name: name.as_bytes().into(), value: Box::default() };
        let xattrs = names.into_iter().chain(users).map(xattr).collect();
        let kept = metadata(&Entry { xattrs, ..entry }).xattrs;
        kept.iter().map(|xattr| String::from_utf8_lossy(&xattr.name).into_owned()).collect::<Vec<_>>()
    };
    for entry in [file("x"), entry("x", EntryKind::Directory)] {
        assert_eq!(kept(entry), ["security.capability", "user.a", "user.overlayed"]);
    }
    for entry in [entry("x", EntryKind::Fifo), symlink("x", "y")] {
        assert_eq!(kept(entry), ["security.capability"]);
    }
}
