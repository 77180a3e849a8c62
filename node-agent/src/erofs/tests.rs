//! Any tree through the writer and back.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::chunks;
use super::format::superblock_checksum;
use super::tree::{
    BLOCK, Below, Data, DeviceNumber, Directory, Extent, Inode, InodeId, Metadata, Node, Origin, Regular, Timestamp,
    Tree, Xattr,
};
use super::{Device, ReadError, WriteError, can_hold_xattr, read_image, write_image};

/// A file to come, and the directory that it goes to: the n-th of those that are there by then.
#[derive(Debug, Clone)]
enum Plan {
    Inode(usize, Vec<u8>, Inode),
    /// A further name of the n-th file.
    Link(usize, Vec<u8>, usize),
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![3 => "[a-d!.-]{1,3}", 1 => "[a-z \u{e9}]{1,120}", 1 => "x{255}"]
        .prop_filter("not a dot", |name| name != "." && name != "..")
        .prop_map(String::into_bytes)
}

fn xattrs() -> impl Strategy<Value = Vec<Xattr>> {
    let value = prop_oneof![Just(b"often the same".to_vec()), prop::collection::vec(any::<u8>(), 0..700)];
    prop::collection::btree_map("(user|security)\\.[a-c]{1,2}|system\\.posix_acl_access", value, 0..4).prop_map(|all| {
        all.into_iter().map(|(name, value)| Xattr { name: name.into_bytes().into(), value: value.into() }).collect()
    })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let time =
        (any::<i64>(), 0u32..1_000_000_000).prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds });
    (0u16..0o10000, any::<u32>(), any::<u32>(), time, xattrs()).prop_map(|(mode, uid, gid, mtime, xattrs)| Metadata {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    })
}

fn sparse() -> impl Strategy<Value = Node> {
    let pieces = prop::collection::vec((1u64..9, 1u64..9), 0..12);
    (pieces, 0u64..5, 0..BLOCK, 0u64..1 << 31).prop_map(|(pieces, hole, short, mut block)| {
        let (mut offset, mut extents) = (0, Vec::new());
        for (gap, blocks) in pieces {
            offset += gap * BLOCK;
            extents.push(Extent { offset, length: blocks * BLOCK, device: 0, block });
            (offset, block) = (offset + blocks * BLOCK, block + 1000);
        }
        // The last piece may end inside a block, where the file ends too.
        if let (0, Some(last)) = (hole, extents.last_mut()) {
            (last.length, offset) = (last.length - short, offset - short);
        }
        Node::Regular(Regular { size: offset + hole * BLOCK, data: Data::Sparse(extents.into()) })
    })
}

fn nodes() -> impl Strategy<Value = Node> {
    let directory = (any::<bool>(), 0usize..3).prop_map(|(implied, below)| {
        let mut directory = Directory::new(InodeId::ROOT, if implied { Origin::Implied } else { Origin::Stated });
        directory.below = [Below::Merged, Below::Emptied, Below::Replaced][below];
        Node::Directory(directory)
    });
    let contiguous = (0u64..1 << 40, 0u64..1 << 31)
        .prop_map(|(size, block)| Node::Regular(Regular { size, data: Data::Contiguous { device: 0, block } }));
    let number = || (1u32..1 << 12, 0u32..1 << 20).prop_map(|(major, minor)| DeviceNumber { major, minor });
    let target = || prop_oneof!["[a-z/]{1,40}", "[a-z/]{400,600}", "x{4095}"].prop_map(String::into_bytes);
    prop_oneof![
        4 => directory,
        2 => contiguous,
        2 => sparse(),
        2 => target().prop_map(|target| Node::Symlink(target.into())),
        1 => target().prop_map(|target| Node::LinkBelow(target.into())),
        1 => number().prop_map(Node::CharDevice),
        1 => number().prop_map(Node::BlockDevice),
        1 => Just(Node::Fifo),
        1 => Just(Node::Socket),
        1 => Just(Node::Whiteout),
    ]
}

fn trees() -> impl Strategy<Value = Tree> {
    let inode = (metadata(), nodes()).prop_map(|(metadata, node)| Inode { metadata, node });
    let plan = prop_oneof![
        6 => (0usize..9, names(), inode).prop_map(|(parent, name, inode)| Plan::Inode(parent, name, inode)),
        1 => (0usize..9, names(), 0usize..9).prop_map(|(parent, name, file)| Plan::Link(parent, name, file)),
    ];
    (prop::collection::vec(plan, 0..80), metadata()).prop_map(|(plans, root)| {
        let mut tree = Tree::new();
        tree.inode_mut(InodeId::ROOT).metadata = root;
        let (mut directories, mut files) = (vec![InodeId::ROOT], Vec::new());
        for plan in plans {
            match plan {
                Plan::Inode(parent, name, mut inode) => {
                    let parent = directories[parent % directories.len()];
                    let is_directory = matches!(inode.node, Node::Directory(_));
                    if let Node::Directory(directory) = &mut inode.node {
                        directory.parent = parent;
                    }
                    let id = tree.add(inode);
                    if is_directory {
                        directories.push(id)
                    } else {
                        files.push(id)
                    }
                    tree.link(parent, &name, id);
                }
                Plan::Link(parent, name, file) if !files.is_empty() => {
                    tree.link(directories[parent % directories.len()], &name, files[file % files.len()]);
                }
                Plan::Link(..) => {}
            }
        }
        tree
    })
}

fn image(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_image(tree, &[Device { tag: "x".into(), bytes: 1 << 30 }], &mut bytes).expect("written");
    bytes
}

/// All of a tree by path; names of one file are told by the first of them. How data are described may change on the way,
/// where they lie may not.
fn whole(tree: &Tree) -> BTreeMap<Vec<u8>, (Metadata, String, Vec<u8>)> {
    let shown = |node: &Node| match node {
        Node::Directory(directory) => format!("{:?} {:?}", directory.origin, directory.below),
        Node::Regular(file) if file.size == 0 => String::from("empty"),
        Node::Regular(file) => format!("{} {} {:?}", file.size, chunks::bits(file), chunks::of(file)),
        Node::Symlink(_)
        | Node::CharDevice(_)
        | Node::BlockDevice(_)
        | Node::Fifo
        | Node::Socket
        | Node::Whiteout
        | Node::LinkBelow(_) => format!("{node:?}"),
    };
    let mut first: BTreeMap<InodeId, Vec<u8>> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for (path, id) in [(Vec::new(), InodeId::ROOT)].into_iter().chain(tree.walk()) {
        let inode = tree.inode(id);
        let name = first.entry(id).or_insert_with(|| path.clone()).clone();
        all.insert(path, (inode.metadata.clone(), shown(&inode.node), name));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_tree_comes_back_with_all_that_it_has(tree in trees()) {
        let bytes = image(&tree);
        let read = read_image(&bytes).expect("an image of ours");
        prop_assert_eq!(whole(&read), whole(&tree));
        prop_assert_eq!(image(&read), bytes);
    }

    #[test]
    fn damage_is_an_error_or_another_tree_but_no_panic(
        tree in trees(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = image(&tree);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // A checksum that matches lets the damage of the superblock get further.
        bytes[1028..1032].fill(0);
        let checksum = superblock_checksum(&bytes[1024..1536]);
        bytes[1028..1032].copy_from_slice(&checksum.to_le_bytes());
        let _ = read_image(&bytes);
    }
}

#[test]
fn a_directory_may_have_more_entries_than_sixteen_bits_count() {
    let mut tree = Tree::new();
    for index in 0..70_000u32 {
        let id = tree.make_directory(InodeId::ROOT, format!("{index}").as_bytes(), Origin::Stated, Metadata::default());
        assert_eq!(tree.directory(id).map(|directory| directory.parent), Some(InodeId::ROOT));
    }
    let bytes = image(&tree);
    // Two names of its own and `..` of every directory in it.
    assert_eq!(u32::from_le_bytes(bytes[1536 + 44..1536 + 48].try_into().expect("four bytes")), 70_002);
    let read = read_image(&bytes).expect("an image of ours");
    assert_eq!(read.directory(InodeId::ROOT).map(|root| root.entries.len()), Some(70_000));
}

#[test]
fn what_the_format_cannot_say_is_refused_by_name() {
    let with = |node: Node, xattrs: Vec<Xattr>| {
        let mut tree = Tree::new();
        let id = tree.add(Inode { metadata: Metadata { xattrs, ..Metadata::default() }, node });
        tree.link(InodeId::ROOT, b"x", id);
        write_image(&tree, &[Device { tag: "x".into(), bytes: 0 }], &mut Vec::new()).expect_err("refused").to_string()
    };
    let beyond = Regular { size: 1, data: Data::Contiguous { device: 0, block: u64::from(u32::MAX) } };
    assert!(with(Node::Regular(beyond), vec![]).contains("data beyond 2 TiB"));
    let long = Xattr { name: b"user.x"[..].into(), value: vec![0; 65_536].into() };
    assert!(with(Node::Fifo, vec![long]).contains("an extended attribute"));
    let foreign = Xattr { name: b"com.apple.x"[..].into(), value: Box::default() };
    assert!(with(Node::Fifo, vec![foreign]).contains("an extended attribute"));
    let mut tree = Tree::new();
    tree.make_directory(InodeId::ROOT, &[b'x'; 256], Origin::Stated, Metadata::default());
    let error = write_image(&tree, &[], &mut Vec::new()).expect_err("refused").to_string();
    assert!(error.contains("a name of more than 255 bytes"), "{error}");
    let many = vec![Device { tag: "x".into(), bytes: 0 }; 65_536];
    let error = write_image(&Tree::new(), &many, &mut Vec::new()).expect_err("refused");
    assert!(matches!(error, WriteError::TooManyDevices { count: 65_536 }), "{error}");
    let too_long = [Device { tag: "x".into(), bytes: (1 << 41) + 1 }];
    let error = write_image(&Tree::new(), &too_long, &mut Vec::new()).expect_err("refused");
    assert!(matches!(error, WriteError::DeviceTooLong { .. }), "{error}");
}

#[test]
fn what_is_no_image_is_named() {
    assert_eq!(read_image(b"short").map(|_| ()), Err(ReadError::Superblock { what: "length" }));
    let mut bytes = image(&Tree::new());
    bytes.push(0);
    assert_eq!(read_image(&bytes).map(|_| ()), Err(ReadError::Superblock { what: "image length" }));
    bytes[1024] ^= 1;
    assert_eq!(read_image(&bytes).map(|_| ()), Err(ReadError::Superblock { what: "magic number" }));
}

#[test]
fn an_attribute_fits_with_255_bytes_behind_its_namespace() {
    assert!(can_hold_xattr(&[b"user.", &[b'x'; 255][..]].concat()));
    assert!(!can_hold_xattr(&[b"user.", &[b'x'; 256][..]].concat()));
}

/// A field of an image, as a number.
fn field(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Where the root's inode is.
fn root_at(bytes: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([bytes[1024 + 14], bytes[1024 + 15]])) * 32
}

/// Name, inode number, type and the place of each entry of a directory whose entries lie behind its inode.
fn raw_entries(bytes: &[u8], inode: usize) -> Vec<(&str, u64, u8, usize)> {
    let block = inode + 64..inode + 64 + usize::try_from(field(bytes, inode + 8, 8)).expect("small");
    let offset = |at: usize| block.start + usize::from(u16::from_le_bytes([bytes[at + 8], bytes[at + 9]]));
    let names = offset(block.start);
    let entry = |at: usize| {
        let end = if at + 12 < names { offset(at + 12) } else { block.end };
        let name = std::str::from_utf8(&bytes[offset(at)..end]).expect("ASCII");
        (name, field(bytes, at, 8), bytes[at + 10], at)
    };
    (block.start..names).step_by(12).map(entry).collect()
}

/// Where an entry of the root is, and its inode.
fn in_root(bytes: &[u8], name: &str) -> (usize, usize) {
    let entries = raw_entries(bytes, root_at(bytes));
    let (_, number, _, entry) = entries.iter().find(|(found, ..)| *found == name).expect("an entry");
    (*entry, usize::try_from(*number).expect("small") * 32)
}

/// One of each kind of file, in the root.
fn every_kind() -> Tree {
    let mut tree = Tree::new();
    tree.directory_mut(InodeId::ROOT).expect("a directory").origin = Origin::Stated;
    let directory = tree.make_directory(InodeId::ROOT, b"directory", Origin::Stated, Metadata::default());
    let number = DeviceNumber { major: 1, minor: 3 };
    let file = Regular { size: 1, data: Data::Contiguous { device: 0, block: 1 } };
    for (name, node) in [
        ("!file", Node::Regular(file)),
        ("block", Node::BlockDevice(number)),
        ("char", Node::CharDevice(number)),
        ("fifo", Node::Fifo),
        ("socket", Node::Socket),
        ("symlink", Node::Symlink(b"target"[..].into())),
    ] {
        let id = tree.add(Inode { metadata: Metadata::default(), node });
        tree.link(InodeId::ROOT, name.as_bytes(), id);
        tree.link(directory, name.as_bytes(), id);
    }
    tree
}

/// What no reader of ours looks at is there for others: the kernel, and `fsck.erofs` where it is new enough.
#[test]
fn the_superblock_and_the_device_slots_say_what_others_read_in_them() {
    let device = |tag: &str, bytes| Device { tag: tag.into(), bytes };
    let mut bytes = Vec::new();
    write_image(&every_kind(), &[device("one", 512), device("two", 513)], &mut bytes).expect("written");
    let field = |at, length| field(&bytes[1024..], at, length);
    assert_eq!(field(8, 4), 0x3, "a checksum, and times");
    assert_eq!(field(16, 8), 8, "inodes");
    assert_eq!(field(80, 4), 0xc, "chunks, and a device table");
    assert_eq!((field(86, 2), field(88, 2)), (2, 9), "devices, and the slot of the first");
    for (slot, tag, blocks) in [(128, b"one\0", 1), (256, b"two\0", 2)] {
        assert_eq!(bytes[1024 + slot..][..4], *tag);
        assert_eq!(field(slot + 64, 4), blocks, "blocks of {slot}");
    }
}

#[test]
fn entries_are_in_order_and_name_themselves_their_parent_and_every_type() {
    let bytes = image(&every_kind());
    let (root, (_, directory)) = (root_at(&bytes), in_root(&bytes, "directory"));
    let types =
        |inode| raw_entries(&bytes, inode).into_iter().map(|(name, _, kind, _)| (name, kind)).collect::<Vec<_>>();
    let [file, dots] = [[("!file", 1)], [(".", 2)]];
    let [parent, block, char] = [("..", 2), ("block", 4), ("char", 3)];
    let last = [("fifo", 5), ("socket", 6), ("symlink", 7)];
    assert_eq!(types(directory), [&file[..], &dots, &[parent, block, char], &last].concat());
    assert_eq!(types(root), [&file[..], &dots, &[parent, block, char, ("directory", 2)], &last].concat());
    for (inode, itself, parent) in [(root, root, root), (directory, directory, root)] {
        let dots: Vec<u64> = raw_entries(&bytes, inode)[1..3].iter().map(|(_, number, ..)| number * 32).collect();
        assert_eq!(dots, [itself as u64, parent as u64]);
    }
    for (name, number, ..) in raw_entries(&bytes, root) {
        let inode = usize::try_from(number).expect("small") * 32;
        assert_eq!(field(&bytes, inode + 20, 4), number, "the 32-bit number of {name}");
    }
}

/// What is said of an image of this tree after a change that its checksum covers.
fn changed(tree: &Tree, change: impl FnOnce(&mut [u8])) -> Result<(), ReadError> {
    let mut bytes = image(tree);
    change(&mut bytes);
    bytes[1028..1032].fill(0);
    let checksum = superblock_checksum(&bytes[1024..1536]);
    bytes[1028..1032].copy_from_slice(&checksum.to_le_bytes());
    read_image(&bytes).map(|_| ())
}

#[test]
fn damage_of_the_superblock_is_named() {
    let mut bytes = image(&every_kind());
    bytes[1024 + 16] ^= 1;
    assert_eq!(read_image(&bytes).map(|_| ()), Err(ReadError::Superblock { what: "checksum" }));
    let wrong = |what| Err(ReadError::Superblock { what });
    assert_eq!(changed(&every_kind(), |bytes| bytes[1024 + 12] = 12), wrong("block size"));
    assert_eq!(changed(&every_kind(), |bytes| bytes[1024 + 44..1024 + 48].fill(0xff)), wrong("attribute area"));
    assert_eq!(changed(&every_kind(), |_| ()), Ok(()));
}

#[test]
fn damage_of_inodes_and_entries_is_named() {
    let wrong = |tree: &Tree, change: &dyn Fn(&mut [u8])| match changed(tree, change) {
        Err(ReadError::Inode { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let tree = every_kind();
    for (name, at, value, what) in [
        ("fifo", 0, 0, "version"),
        ("fifo", 5, 0, "type"),
        ("directory", 0, 4 << 1 | 1, "entries"),
        ("!file", 0, 1, "chunks"),
        ("!file", 16, 0, "chunks"),
        // The image itself is device 0, and holds no file's data.
        ("!file", 64 + 2, 0, "chunks"),
    ] {
        let change = |bytes: &mut [u8]| bytes[in_root(bytes, name).1 + at] = value;
        assert_eq!(wrong(&tree, &change), what, "byte {at} of {name}");
    }
    let target_in_chunks = |bytes: &mut [u8]| {
        let (_, inode) = in_root(bytes, "symlink");
        // As blocks, it would be at the start of the image.
        (bytes[inode], bytes[inode + 16]) = (4 << 1 | 1, 0);
    };
    assert_eq!(wrong(&tree, &target_in_chunks), "target");
    for byte in [b'/', 0] {
        let first_name = |bytes: &mut [u8]| bytes[root_at(bytes) + 64 + 9 * 12] = byte;
        assert_eq!(wrong(&tree, &first_name), "entries", "a name that begins with {byte}");
    }
    let again = |bytes: &mut [u8]| {
        let [at, from] = ["block", "directory"].map(|name| in_root(bytes, name).0);
        bytes.copy_within(from..from + 8, at);
    };
    assert_eq!(wrong(&tree, &again), "second name");
    let file_as_root = |bytes: &mut [u8]| {
        let (at, _) = in_root(bytes, "!file");
        bytes.copy_within(at..at + 2, 1024 + 14);
    };
    assert_eq!(wrong(&tree, &file_as_root), "type");
    let mut long = Tree::new();
    long.directory_mut(InodeId::ROOT).expect("a directory").origin = Origin::Stated;
    for name in [&[b'a'; 255][..], b"bbbb"] {
        long.make_directory(InodeId::ROOT, name, Origin::Stated, Metadata::default());
    }
    let first_name_longer = |bytes: &mut [u8]| bytes[root_at(bytes) + 64 + 3 * 12 + 8] += 2;
    assert_eq!(wrong(&long, &first_name_longer), "entries");
}
