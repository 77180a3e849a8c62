//! The merge against a model that knows nothing of trees: a map from path to file, changed entry by entry in the order of
//! the tars, as an unpacker would.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{MergeError, merge};
use crate::erofs::tree::{Data, InodeId, Node, Timestamp, Tree, Xattr};
use crate::erofs::{Device, read_image, write_image};
use crate::snapshot::Limits;
use crate::snapshot::layer_tree::LayerBuilder;
use crate::snapshot::tar::{Entry, EntryKind, RegularData};

/// What the model knows of a file. Files that are hard links of each other have the same `identity`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ModelFile {
    kind: ModelKind,
    uid: u32,
    identity: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ModelKind {
    Directory,
    File { size: u64, layer: usize, block: u64 },
    Symlink(Vec<u8>),
    Fifo,
}

/// One step of a layer, in words that always make sense.
#[derive(Debug, Clone)]
enum Step {
    Directory(Vec<u8>),
    File(Vec<u8>, u64),
    Symlink(Vec<u8>),
    Fifo(Vec<u8>),
    HardLink(Vec<u8>, usize),
    Whiteout(Vec<u8>),
    Opaque(Vec<u8>),
}

type Model = BTreeMap<Vec<u8>, ModelFile>;

fn paths() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|parts| parts.join("/").into_bytes())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => paths().prop_map(Step::Directory),
        4 => (paths(), 0u64..5000).prop_map(|(path, size)| Step::File(path, size)),
        1 => paths().prop_map(Step::Symlink),
        1 => paths().prop_map(Step::Fifo),
        2 => (paths(), 0usize..9).prop_map(|(path, which)| Step::HardLink(path, which)),
        2 => paths().prop_map(Step::Whiteout),
        1 => paths().prop_map(Step::Opaque),
    ];
    prop::collection::vec(step, 0..20)
}

/// Runs layers through the model and through the builder; a step that an unpacker would refuse is left out of both.
#[derive(Default)]
struct Run {
    model: Model,
    identities: usize,
}

struct LayerRun<'a> {
    run: &'a mut Run,
    layer: usize,
    /// What this layer has put where, so that its whiteouts leave it alone.
    own: BTreeSet<Vec<u8>>,
    /// Directories of it that it has an entry for.
    stated: BTreeSet<Vec<u8>>,
    builder: LayerBuilder,
    block: u64,
}

fn parents(path: &[u8]) -> Vec<Vec<u8>> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    ends.map(|end| path[..end].to_vec()).collect()
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}

impl LayerRun<'_> {
    /// Whether the parents are directories or missing; symbolic links and files on the way are left to other tests.
    fn reachable(&self, path: &[u8]) -> bool {
        let directory =
            |parent: &Vec<u8>| self.run.model.get(parent).is_none_or(|file| file.kind == ModelKind::Directory);
        parents(path).iter().all(directory)
    }

    fn make_parents(&mut self, path: &[u8]) {
        for parent in parents(path) {
            if !self.run.model.contains_key(&parent) {
                let identity = self.identity();
                self.run.model.insert(parent.clone(), ModelFile { kind: ModelKind::Directory, uid: 0, identity });
            }
            self.own.insert(parent);
        }
    }

    fn identity(&mut self) -> usize {
        self.run.identities += 1;
        self.run.identities
    }

    fn remove(&mut self, path: &[u8], keep_own: bool, itself: bool) {
        let own = &self.own;
        self.run.model.retain(|found, _| {
            let concerned = itself && found == path || is_below(found, path);
            !concerned || keep_own && own.contains(found)
        });
        // A directory that the layer only passes through loses the owner that it had below.
        for (found, file) in &mut self.run.model {
            let concerned = itself && found == path || is_below(found, path);
            if keep_own && concerned && file.kind == ModelKind::Directory && !self.stated.contains(found) {
                file.uid = 0;
            }
        }
    }

    fn put(&mut self, path: &[u8], kind: ModelKind, uid: u32) {
        self.make_parents(path);
        let identity = self.identity();
        let directory = kind == ModelKind::Directory;
        let was_directory = self.run.model.get(path).is_some_and(|file| file.kind == ModelKind::Directory);
        if !(directory && was_directory) {
            self.remove(path, false, true);
            self.own.retain(|own| own != path && !is_below(own, path));
            self.stated.retain(|own| own != path && !is_below(own, path));
        }
        if directory {
            self.stated.insert(path.to_vec());
        }
        self.run.model.insert(path.to_vec(), ModelFile { kind, uid, identity });
        self.own.insert(path.to_vec());
    }

    fn step(&mut self, step: &Step, uid: u32) {
        match step {
            Step::Directory(path) if self.reachable(path) => {
                self.put(path, ModelKind::Directory, uid);
                self.add(path.clone(), EntryKind::Directory, uid);
            }
            Step::File(path, size) if self.reachable(path) => {
                self.block += 20;
                let block = if *size == 0 { 0 } else { self.block };
                self.put(path, ModelKind::File { size: *size, layer: self.layer, block }, uid);
                let data = RegularData { size: *size, block: self.block, pieces: None };
                self.add(path.clone(), EntryKind::Regular(data), uid);
            }
            Step::Symlink(path) if self.reachable(path) => {
                self.put(path, ModelKind::Symlink(b"nowhere".to_vec()), uid);
                self.add(path.clone(), EntryKind::Symlink(b"nowhere".to_vec()), uid);
            }
            Step::Fifo(path) if self.reachable(path) => {
                self.put(path, ModelKind::Fifo, uid);
                self.add(path.clone(), EntryKind::Fifo, uid);
            }
            Step::HardLink(path, which) if self.reachable(path) => self.hard_link(path, *which),
            Step::Whiteout(path) if self.reachable(path) => self.whiteout(path),
            Step::Opaque(path) if self.reachable(&[path.as_slice(), b"/x"].concat()) => {
                self.make_parents(&[path.as_slice(), b"/x"].concat());
                self.remove(path, true, false);
                self.add([path.as_slice(), b"/.wh..wh..opq"].concat(), EntryKind::Regular(empty()), 0);
            }
            Step::Directory(_)
            | Step::File(..)
            | Step::Symlink(_)
            | Step::Fifo(_)
            | Step::HardLink(..)
            | Step::Whiteout(_)
            | Step::Opaque(_) => {}
        }
    }

    fn hard_link(&mut self, path: &[u8], which: usize) {
        let files = self.run.model.iter().filter(|(_, file)| file.kind != ModelKind::Directory);
        let Some((target, file)) = files.map(|(target, file)| (target.clone(), file.clone())).nth(which) else {
            return;
        };
        // A link in place of its target, or of a directory that holds it, leaves nothing to link to.
        if target == path || is_below(&target, path) {
            return;
        }
        self.put(path, ModelKind::Fifo, 0);
        self.run.model.insert(path.to_vec(), file);
        self.add(path.to_vec(), EntryKind::HardLink(target), 0);
    }

    /// A whiteout concerns the layers below: what this layer has itself stays.
    fn whiteout(&mut self, path: &[u8]) {
        self.make_parents(path);
        let own = self.own.contains(path);
        if own && self.run.model.get(path).is_some_and(|file| file.kind != ModelKind::Directory) {
            // Already in place of what was below.
        } else {
            self.remove(path, true, true);
        }
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..=slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        self.add([parent, b".wh.", name].concat(), EntryKind::Regular(empty()), 0);
    }

    fn add(&mut self, path: Vec<u8>, kind: EntryKind, uid: u32) {
        let mtime = Timestamp { seconds: 1, nanoseconds: 2 };
        let xattrs = vec![Xattr { name: b"user.x"[..].into(), value: b"y"[..].into() }];
        let entry = Entry { path, mode: 0o751, uid, gid: 7, mtime, xattrs, kind };
        self.builder.add(&entry).expect("a step that makes sense");
    }
}

fn empty() -> RegularData {
    RegularData { size: 0, block: 0, pieces: None }
}

/// The tree as the model sees files, identities made comparable: the first path of the file.
fn flat(tree: &Tree) -> BTreeMap<Vec<u8>, (ModelKind, u32, Vec<u8>)> {
    let mut first = BTreeMap::new();
    let mut all = BTreeMap::new();
    let mut paths = tree.walk();
    paths.sort();
    for (path, id) in paths {
        let inode = tree.inode(id);
        let kind = match &inode.node {
            Node::Directory(_) => ModelKind::Directory,
            Node::Regular(file) => match file.data {
                Data::Contiguous { device, block } => {
                    ModelKind::File { size: file.size, layer: usize::from(device), block }
                }
                Data::Sparse(_) => ModelKind::File { size: 0, layer: usize::MAX, block: 0 },
            },
            Node::Symlink(target) => ModelKind::Symlink(target.to_vec()),
            Node::Fifo => ModelKind::Fifo,
            Node::CharDevice(_) | Node::BlockDevice(_) | Node::Socket | Node::Whiteout | Node::LinkBelow(_) => {
                panic!("{:?} in a merged tree", inode.node)
            }
        };
        let name = first.entry(id).or_insert_with(|| path.clone()).clone();
        all.insert(path, (kind, inode.metadata.uid, name));
    }
    all
}

fn flat_model(model: &Model) -> BTreeMap<Vec<u8>, (ModelKind, u32, Vec<u8>)> {
    let mut first = BTreeMap::new();
    let mut all = BTreeMap::new();
    for (path, file) in model {
        let mut kind = file.kind.clone();
        if let ModelKind::File { size: 0, layer, .. } = &mut kind {
            *layer = usize::MAX;
        }
        let name = first.entry(file.identity).or_insert_with(|| path.clone()).clone();
        all.insert(path.clone(), (kind, file.uid, name));
    }
    all
}

/// Random layers through the builder, beside the model that they must merge to.
fn run(layers: &[Vec<Step>]) -> (Vec<Tree>, Model) {
    let mut run = Run::default();
    let mut trees = Vec::new();
    for (layer, steps) in layers.iter().enumerate() {
        let builder = LayerBuilder::new(Limits::default());
        // No block is in two layers, so that it says which layer's file a file is.
        let block = layer as u64 * 1000;
        let (own, stated) = (BTreeSet::new(), BTreeSet::new());
        let mut layer_run = LayerRun { run: &mut run, layer, own, stated, builder, block };
        for (uid, step) in (1u32..).zip(steps) {
            layer_run.step(step, uid + 100 * u32::try_from(layer).expect("few"));
        }
        trees.push(layer_run.builder.finish());
    }
    (trees, run.model)
}

/// Random layers, for those who compare something else.
pub(in crate::snapshot) fn layers() -> impl Strategy<Value = Vec<Tree>> {
    prop::collection::vec(steps(), 1..4).prop_map(|layers| run(&layers).0)
}

/// What is seen of a tree but for which device a file is on; names of one file belong together.
pub(in crate::snapshot) fn seen(tree: &Tree) -> BTreeMap<Vec<u8>, (String, Vec<u8>)> {
    let shown = |(kind, uid, name): (ModelKind, u32, Vec<u8>)| match &kind {
        ModelKind::File { size, block, .. } => (format!("file {size} {block} {uid}"), name),
        ModelKind::Directory | ModelKind::Symlink(_) | ModelKind::Fifo => (format!("{kind:?} {uid}"), name),
    };
    flat(tree).into_iter().map(|(path, file)| (path, shown(file))).collect()
}

fn written(tree: &Tree, devices: usize) -> Tree {
    let devices = vec![Device { tag: "x".into(), bytes: 1 << 30 }; devices];
    let mut bytes = Vec::new();
    write_image(tree, &devices, &mut bytes).expect("written");
    read_image(&bytes).expect("read")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_merge_is_what_unpacking_in_order_gives(layers in prop::collection::vec(steps(), 1..4)) {
        let (trees, model) = run(&layers);
        // On their way through the disk the layers stay the same.
        let trees: Vec<Tree> = trees.iter().map(|tree| written(tree, 1)).collect();
        let merged = merge(&trees).expect("merged");
        prop_assert_eq!(flat(&merged), flat_model(&model));
        prop_assert_eq!(flat(&written(&merged, trees.len())), flat_model(&model));
    }
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    let mtime = Timestamp::default();
    Entry { path: path.into(), mode: 0o750, uid: 5, gid: 7, mtime, xattrs: Vec::new(), kind }
}

fn file(path: &str) -> Entry {
    entry(path, EntryKind::Regular(empty()))
}

fn symlink(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Symlink(target.into()))
}

fn hard_link(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::HardLink(target.into()))
}

/// The trees of layers of these entries, merged.
fn merged<const N: usize>(layers: [&[Entry]; N]) -> Result<Tree, MergeError> {
    let trees = layers.map(|entries| {
        let mut builder = LayerBuilder::new(Limits::default());
        for entry in entries {
            builder.add(entry).expect("valid");
        }
        builder.finish()
    });
    merge(&trees)
}

fn paths_of(tree: &Tree) -> Vec<String> {
    tree.walk().into_iter().map(|(path, _)| String::from_utf8(path).expect("ASCII")).collect()
}

#[test]
fn an_opaque_root_hides_all_that_is_below() {
    let image = merged([&[file("a"), file("d/b")], &[file(".wh..wh..opq"), file("c")]]).expect("merged");
    assert_eq!(paths_of(&image), ["c"]);
}

#[test]
fn the_root_has_what_the_last_layer_that_states_it_says() {
    let root = |uid| Entry { uid, ..entry("./", EntryKind::Directory) };
    let image = merged([&[root(1)], &[root(2)], &[file("a")]]).expect("merged");
    assert_eq!(image.inode(InodeId::ROOT).metadata.uid, 2);
}

#[test]
fn attributes_of_a_directory_are_those_of_the_layer_that_states_it_last() {
    let xattrs = vec![Xattr { name: b"user.x"[..].into(), value: b"y"[..].into() }];
    let below = Entry { xattrs, ..entry("d", EntryKind::Directory) };
    let image = merged([&[below], &[entry("d", EntryKind::Directory)]]).expect("merged");
    let directory = image.child(InodeId::ROOT, b"d").expect("an entry");
    assert_eq!(image.inode(directory).metadata.xattrs, []);
}

#[test]
fn a_link_below_leads_from_its_directory_or_from_the_root() {
    let below = [symlink("a/up", "../b"), symlink("a/root", "/b")];
    let image = merged([&below, &[file("a/up/1"), file("a/root/2")]]).expect("merged");
    assert_eq!(paths_of(&image), ["a", "a/root", "a/up", "b", "b/1", "b/2"]);
}

#[test]
fn a_hard_link_to_what_is_no_file_below_is_refused() {
    let below = [entry("d", EntryKind::Directory), file("f"), file("g")];
    for target in ["d", "f/g", "h", "d/h"] {
        let refused = merged([&below, &[hard_link("x", target)]]).map(|_| ());
        assert_eq!(refused, Err(MergeError::LinkTarget { layer: 1, target: target.into() }));
    }
}

#[test]
fn paths_that_lead_nowhere_through_links_below_are_refused() {
    let circle = merged([&[symlink("a", "b"), symlink("b", "a")], &[file("a/x")]]).map(|_| ());
    assert!(matches!(circle, Err(MergeError::SymlinkLoop { layer: 1, .. })), "{circle:?}");
    let long = merged([&[symlink("a", &"n".repeat(256))], &[file("a/x")]]).map(|_| ());
    assert_eq!(long, Err(MergeError::NameTooLong { layer: 1 }));
}

#[test]
fn more_layers_than_sixteen_bits_count_are_refused() {
    let layers = vec![Tree::new(); 65_537];
    assert_eq!(merge(&layers).map(|_| ()), Err(MergeError::TooManyLayers { count: 65_537 }));
}
