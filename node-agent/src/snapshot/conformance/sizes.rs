//! Long paths, many layers, large directories, large layers, small disks.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::fixture::{Bench, Item, Layers, layout_at};
use sha2::Digest as _;

use super::tarball::{self, Entry};
use crate::digest::Digest;
use crate::erofs::tree::{Data, Inode, InodeId, Metadata, Node, Regular, Tree};
use crate::erofs::{Device, write_image};
use crate::host::mount;
use crate::snapshot::{Driver, ErofsSnapshotter, ImageLayers, Limits, SnapshotError, Snapshotter as _};

#[test]
fn a_full_disk_is_told_with_its_sizes_and_leaves_nothing() {
    let content = vec![7; 3 << 20];
    let layers = Layers::new([vec![Item::file("large", &content)]]);
    for driver in [Driver::Erofs, Driver::Directory] {
        let bench = Bench::on_disk_of(1 << 20);
        let tar = &layers.tars()[0];
        for hint in [None, Some(tar.len() as u64)] {
            let written = bench
                .driver(driver)
                .begin_layer(hint)
                .and_then(|mut writer| tar.chunks(65536).try_for_each(|piece| writer.write(piece)));
            match written {
                Err(SnapshotError::DiskFull { needed_bytes, free_bytes, .. }) => {
                    assert!(free_bytes <= 1 << 20, "{driver:?}: {free_bytes} free");
                    assert!(driver == Driver::Directory || needed_bytes > 0, "{driver:?}: {needed_bytes} needed");
                }
                other => panic!("{driver:?}: {other:?}"),
            }
            bench.assert_nothing_left(driver);
        }
    }
}

/// How long the layer of the next test is; `hack/test soak` asks for more than 32 bits can count, which takes a while: all of
/// it is written.
const LARGE: &str = "LARDER_LARGE_LAYER_BYTES";
const LARGE_BY_DEFAULT: u64 = 32 << 20;

#[test]
fn a_long_layer_is_written_and_what_lies_behind_is_found() {
    let megabytes = std::env::var(LARGE).map_or(LARGE_BY_DEFAULT, |bytes| bytes.parse().expect(LARGE)) >> 20;
    let length = megabytes << 20;
    let header = |name: &str, size| {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).expect("short");
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let bench = Bench::new();
    let snapshotter = bench.driver(Driver::Erofs);
    let mut writer = snapshotter.begin_layer(Some(length)).expect("begun");
    let mut hash = sha2::Sha256::new();
    let mut put = |bytes: &[u8]| {
        hash.update(bytes);
        writer.write(bytes).expect("written");
    };
    put(&header("large", length));
    let zeros = vec![0; 1 << 20];
    (0..megabytes).for_each(|_| put(&zeros));
    put(&header("behind", 6));
    put(b"behind");
    put(&zeros[..512 - 6 + 1024]);
    let diff_id = Digest::from_bytes(hash.finalize().into());
    writer.finish(&diff_id).expect("finished");
    let image = ImageLayers { manifest: diff_id, diff_ids: vec![diff_id] };
    let mounted = snapshotter.mount(&image).expect("mounted").lower_dirs.remove(0);
    assert_eq!(fs::read_to_string(mounted.join("behind")).expect("read"), "behind");
    let large = File::open(mounted.join("large")).expect("open");
    assert_eq!(large.metadata().expect("stat").len(), length);
    let mut last = [1];
    large.read_exact_at(&mut last, length - 1).expect("read");
    assert_eq!(last, [0]);
    snapshotter.unmount(&image.manifest).expect("unmounted");
}

#[test]
fn a_store_may_lie_at_a_long_path_and_an_image_may_have_many_layers() {
    let layers = Layers::new((0..130).map(|index| vec![Item::file(&format!("file-{index}"), &[index; 700])]));
    let bench = Bench::new();
    let long = bench.directory(&"long".repeat(60));
    let layout = layout_at(&long.join("store"));
    let snapshotter = ErofsSnapshotter::new(layout, long.join("mounts"), Limits::default());
    for (tar, diff_id) in layers.tars().iter().zip(layers.image().diff_ids) {
        let mut writer = snapshotter.begin_layer(None).expect("begun");
        writer.write(tar).expect("written");
        writer.finish(&diff_id).expect("finished");
    }
    let mounted = snapshotter.mount(&layers.image()).expect("mounted");
    for index in 0..130 {
        let content = fs::read(mounted.lower_dirs[0].join(format!("file-{index}"))).expect("read");
        assert_eq!(content, [index; 700]);
    }
    snapshotter.unmount(&layers.image().manifest).expect("unmounted");
}

#[test]
fn a_directory_may_have_more_entries_than_sixteen_bits_count() {
    const COUNT: usize = 70_000;
    let mut entries = vec![Entry::new("d", b'5')];
    entries
        .extend((0..COUNT).map(|index| Entry::new(&format!("d/{index:x}"), if index % 7 == 0 { b'5' } else { b'0' })));
    let layers = Layers::from(vec![tarball::of(&entries)]);
    let bench = Bench::in_memory();
    for driver in [Driver::Erofs, Driver::Directory] {
        let shown = bench.mount(driver, &layers);
        let directory = shown.root().join("d");
        assert_eq!(fs::read_dir(&directory).expect("read").count(), COUNT, "{driver:?}");
        // Looked up by bisection over thousands of blocks.
        for index in (0..COUNT).step_by(101) {
            let found = fs::metadata(directory.join(format!("{index:x}"))).expect("there");
            assert_eq!(found.is_dir(), index % 7 == 0, "{driver:?}: {index:x}");
        }
        assert!(fs::metadata(directory.join("fffff")).is_err(), "{driver:?}");
    }
    let mounted = bench.driver(Driver::Erofs).mount(&layers.image()).expect("mounted");
    let links = fs::metadata(mounted.lower_dirs[0].join("d")).expect("there").nlink();
    assert_eq!(links, 2 + COUNT.div_ceil(7) as u64);
    bench.driver(Driver::Erofs).unmount(&layers.image().manifest).expect("unmounted");
}

/// The tar is one large hole with a few bytes in it; what is mounted is the index that a layer of that size would have.
#[test]
fn a_layer_may_be_larger_than_32_bits_of_bytes() {
    const LARGE: u64 = 5 << 30;
    const AT: u64 = LARGE - 10;
    let bench = Bench::new();
    let [index, tar, target] = ["index", "tar", "target"].map(|name| bench.root().join(name));
    let file = |size, block| Node::Regular(Regular { size, data: Data::Contiguous { device: 0, block } });
    let mut tree = Tree::new();
    for (name, node) in [("large", file(LARGE, 1)), ("behind", file(6, LARGE / 512 + 2))] {
        let id = tree.add(Inode { metadata: Metadata { mode: 0o644, ..Metadata::default() }, node });
        tree.link(InodeId::ROOT, name.as_bytes(), id);
    }
    let data = File::create(&tar).expect("create");
    data.set_len(LARGE + (1 << 20)).expect("a hole");
    data.write_all_at(b"at the end", 512 + AT).expect("write");
    data.write_all_at(b"behind", LARGE + 1024).expect("write");
    let device = Device { tag: "tar".into(), bytes: LARGE + (1 << 20) };
    write_image(&tree, &[device], &mut File::create(&index).expect("create")).expect("written");
    fs::create_dir(&target).expect("mkdir");
    mount::mount_erofs(&index, &[&tar], &target).expect("mounted");
    let large = File::open(target.join("large")).expect("open");
    assert_eq!(large.metadata().expect("stat").len(), LARGE);
    let mut end = [1; 30];
    large.read_exact_at(&mut end[..20], AT - 10).expect("read");
    assert_eq!(&end[..20], b"\0\0\0\0\0\0\0\0\0\0at the end");
    assert_eq!(fs::read_to_string(target.join("behind")).expect("read"), "behind");
    drop(large);
    mount::unmount_if_mounted(&target).expect("unmounted");
}
