//! Layers to test with, and a place to keep and mount them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::digest::Digest;
use crate::snapshot::{
    Condition, DirectorySnapshotter, Driver, ErofsSnapshotter, ImageLayers, Layer, Limits, Mend, SnapshotError,
    Snapshotter,
};
use crate::store::layout::Layout;

/// One entry of a tar, as a test states it.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) path: String,
    kind: tar::EntryType,
    content: Vec<u8>,
    link: String,
    mode: u32,
    owner: (u64, u64),
    device: (u32, u32),
}

impl Item {
    fn new(path: &str, kind: tar::EntryType, mode: u32) -> Self {
        let (path, link) = (path.to_owned(), String::new());
        Self { path, kind, content: Vec::new(), link, mode, owner: (0, 0), device: (0, 0) }
    }

    pub(super) fn file(path: &str, content: &[u8]) -> Self {
        Self { content: content.to_vec(), ..Self::new(path, tar::EntryType::Regular, 0o644) }
    }

    pub(super) fn directory(path: &str) -> Self {
        Self::new(path, tar::EntryType::Directory, 0o755)
    }

    pub(super) fn symlink(path: &str, target: &str) -> Self {
        Self { link: target.to_owned(), ..Self::new(path, tar::EntryType::Symlink, 0o777) }
    }

    pub(super) fn hard_link(path: &str, target: &str) -> Self {
        Self { link: target.to_owned(), ..Self::new(path, tar::EntryType::Link, 0o644) }
    }

    pub(super) fn fifo(path: &str) -> Self {
        Self::new(path, tar::EntryType::Fifo, 0o600)
    }

    pub(super) fn char_device(path: &str, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(path, tar::EntryType::Char, 0o666) }
    }

    pub(super) fn owner(self, uid: u64, gid: u64) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    pub(super) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    fn append(&self, tar: &mut tar::Builder<Vec<u8>>) {
        let mut header = tar::Header::new_gnu();
        // Written by hand: the crate refuses paths that a test wants to be refused by us.
        let name = self.path.as_bytes();
        header.as_old_mut().name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        let link = self.link.as_bytes();
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(1_500_000_000);
        header.set_size(self.content.len() as u64);
        header.set_device_major(self.device.0).expect("gnu header");
        header.set_device_minor(self.device.1).expect("gnu header");
        header.set_cksum();
        if name.len() > 100 {
            let mut long = tar::Header::new_gnu();
            long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
            long.set_entry_type(tar::EntryType::GNULongName);
            long.set_size(name.len() as u64 + 1);
            long.set_cksum();
            tar.append(&long, [name, b"\0"].concat().as_slice()).expect("in memory");
        }
        tar.append(&header, self.content.as_slice()).expect("in memory");
    }
}

/// The layers of one image.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    tars: Vec<Vec<u8>>,
}

impl From<Vec<Vec<u8>>> for Layers {
    fn from(tars: Vec<Vec<u8>>) -> Self {
        Self { tars }
    }
}

impl Layers {
    pub(super) fn new(layers: impl IntoIterator<Item = Vec<Item>>) -> Self {
        let pack = |items: Vec<Item>| {
            let mut tar = tar::Builder::new(Vec::new());
            items.iter().for_each(|item| item.append(&mut tar));
            tar.into_inner().expect("in memory")
        };
        Self { tars: layers.into_iter().map(pack).collect() }
    }

    pub(super) fn tars(&self) -> &[Vec<u8>] {
        &self.tars
    }

    pub(super) fn image(&self) -> ImageLayers {
        let diff_ids: Vec<Digest> = self.tars.iter().map(|tar| Digest::of(tar)).collect();
        ImageLayers { manifest: Digest::of(format!("{diff_ids:?}").as_bytes()), diff_ids }
    }
}

/// A tar of a tree that `make` lays out, by GNU tar in this dialect.
pub(super) fn packed(dialect: &str, make: fn(&Path, &str)) -> Vec<u8> {
    let format = format!("--format={dialect}");
    let xattrs: &[&str] = if dialect == "pax" { &["--xattrs", "--xattrs-include=*"] } else { &[] };
    let arguments = [&[format.as_str()][..], xattrs].concat();
    pack(&arguments, |root| make(root, dialect))
}

/// The same with arguments for GNU tar.
pub(super) fn packed_with(arguments: &[&str], make: fn(&Path)) -> Vec<u8> {
    pack(arguments, make)
}

fn pack(arguments: &[&str], make: impl FnOnce(&Path)) -> Vec<u8> {
    let root = tempfile::tempdir().expect("temporary directory");
    make(root.path());
    let output = Command::new("tar")
        .args(arguments)
        .args(["--numeric-owner", "-c", "-C"])
        .arg(root.path())
        .arg(".")
        .output()
        .expect("GNU tar is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A tree with every kind of file, as far as the dialect can say it.
pub(super) fn every_kind(root: &Path, dialect: &str) {
    let (pax, v7) = (dialect == "pax", dialect == "v7");
    let put = |name: &str, content: &[u8]| fs::write(root.join(name), content).expect("write");
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    put("empty", b"");
    put("small", b"small");
    put("block", &[7; 512]);
    put("odd", &(0..5000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    put("setuid", b"#!/bin/sh\n");
    chown(root.join("setuid"), Some(1000), Some(2000)).expect("chown");
    mode("setuid", 0o6755);
    fs::create_dir_all(root.join("sticky/deep/er")).expect("mkdir");
    mode("sticky", 0o1777);
    fs::hard_link(root.join("small"), root.join("sticky/deep/hard")).expect("link");
    symlink("../small", root.join("sticky/relative")).expect("symlink");
    symlink("t".repeat(if v7 || dialect == "ustar" { 99 } else { 700 }), root.join("long-target")).expect("symlink");
    put("name with\nnewline and \u{e9}\u{1f980}", b"u");
    if !v7 {
        let node = |name: &str, kind, device| {
            mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o640), device).expect("mknod");
        };
        node("fifo", FileType::Fifo, 0);
        node("char", FileType::CharacterDevice, makedev(10, 229));
        node("block-device", FileType::BlockDevice, makedev(259, 70000));
    }
    if dialect == "pax" || dialect == "gnu" {
        let long = "directory-with-a-long-name".repeat(8);
        fs::create_dir_all(root.join(&long).join(&long)).expect("mkdir");
        put(&format!("{long}/{long}/{}", "f".repeat(255)), b"long");
        chown(root.join("odd"), Some(4_000_000_000), Some(3_000_000)).expect("chown");
    }
    if pax {
        let set = |name: &str, key: &str, value: &[u8]| {
            lsetxattr(root.join(name), key, value, XattrFlags::empty()).expect("setxattr");
        };
        set("small", "user.empty", b"");
        set("small", "user.text", b"value");
        set("sticky", "user.on-directory", &[0, 1, 2, 255]);
        set("odd", "user.large", &[9; 3000]);
        set("setuid", "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    age(root);
}

/// Files with holes at the start, in the middle and at the end, and one that is nothing else.
pub(super) fn sparse_files(root: &Path) {
    use std::os::unix::fs::FileExt as _;
    let make = |name: &str, size: u64, pieces: &[(u64, usize)]| {
        let file = fs::File::create(root.join(name)).expect("create");
        for (offset, length) in pieces {
            file.write_all_at(&vec![b'd'; *length], *offset).expect("write");
        }
        file.set_len(size).expect("truncate");
    };
    make("hole-only", 1 << 20, &[]);
    make("hole-first", 1 << 20, &[((1 << 20) - 4096, 4096)]);
    make("hole-last", (1 << 20) + 17, &[(0, 4096)]);
    make("odd-end", (1 << 20) + 17, &[(0, 8192), (1 << 20, 17)]);
    let many: Vec<(u64, usize)> = (0..60).map(|index| (index * 65536, 4096)).collect();
    make("many", 60 * 65536, &many);
    fs::write(root.join("dense"), [1; 9000]).expect("write");
    age(root);
}

/// Gives every file a time in the past with odd nanoseconds, so that a time that was not kept is seen.
pub(super) fn age(root: &Path) {
    let output = Command::new("find")
        .arg(root)
        .args(["-depth", "-exec", "touch", "-h", "-d", "2019-03-04 05:06:07.123456789Z", "{}", "+"])
        .output()
        .expect("find is installed");
    assert!(output.status.success());
}

/// Two stores, one a driver.
#[derive(Debug)]
pub(super) struct Bench {
    /// Before what it may lie on, so that it goes first.
    root: tempfile::TempDir,
    /// Where everything lies but the store of the driver `erofs`, whose files the kernel mounts from disks only.
    memory: Option<Tmpfs>,
}

/// A file system of its own in memory.
#[derive(Debug)]
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn of_bytes(bytes: u64) -> Self {
        let root = tempfile::tempdir().expect("temporary directory");
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("no zero bytes");
        mount("tmpfs", root.path(), "tmpfs", MountFlags::empty(), Some(options.as_c_str())).expect("tmpfs");
        Self(root)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).expect("unmount tmpfs");
    }
}

/// An image as a container would see it; taken away when dropped.
#[derive(Debug)]
pub(super) struct Shown {
    overlay: PathBuf,
    driver: Box<dyn Snapshotter>,
    image: ImageLayers,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self { root: tempfile::tempdir().expect("temporary directory"), memory: None }
    }

    /// As much as possible in memory: making and removing many files is slow on some disks.
    pub(super) fn in_memory() -> Self {
        Self { memory: Some(Tmpfs::of_bytes(1 << 30)), ..Self::new() }
    }

    /// On a file system of this size.
    pub(super) fn on_disk_of(bytes: u64) -> Self {
        let memory = Tmpfs::of_bytes(bytes);
        Self { root: tempfile::tempdir_in(memory.0.path()).expect("temporary directory"), memory: Some(memory) }
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    fn quick(&self) -> &Path {
        self.memory.as_ref().map_or(self.root.path(), |tmpfs| tmpfs.0.path())
    }

    pub(super) fn directory(&self, name: &str) -> PathBuf {
        let path = self.quick().join(name);
        fs::create_dir(&path).expect("mkdir");
        path
    }

    pub(super) fn layout(&self, driver: Driver) -> Layout {
        let root = if driver == Driver::Erofs { self.root.path() } else { self.quick() };
        layout_at(&root.join(format!("{driver:?}")))
    }

    pub(super) fn driver(&self, driver: Driver) -> Box<dyn Snapshotter> {
        self.driver_within(driver, Limits::default())
    }

    pub(super) fn driver_within(&self, driver: Driver, limits: Limits) -> Box<dyn Snapshotter> {
        let layout = self.layout(driver);
        match driver {
            Driver::Erofs => Box::new(ErofsSnapshotter::new(layout, self.root.path().join("mounts"), limits)),
            Driver::Directory => Box::new(DirectorySnapshotter::new(layout, limits)),
        }
    }

    /// Writes one layer under these limits.
    pub(super) fn ingest_within(&self, driver: Driver, tar: &[u8], limits: Limits) -> Result<Layer, SnapshotError> {
        self.write_with(&*self.driver_within(driver, limits), tar, &Digest::of(tar))
    }

    pub(super) fn ingest(&self, driver: Driver, layers: &Layers) -> Result<Vec<Layer>, SnapshotError> {
        layers.tars().iter().map(|tar| self.ingest_as(driver, tar, &Digest::of(tar))).collect()
    }

    pub(super) fn ingest_as(&self, driver: Driver, tar: &[u8], expected: &Digest) -> Result<Layer, SnapshotError> {
        self.write_with(&*self.driver(driver), tar, expected)
    }

    fn write_with(&self, snapshotter: &dyn Snapshotter, tar: &[u8], expected: &Digest) -> Result<Layer, SnapshotError> {
        let mut writer = snapshotter.begin_layer(Some(tar.len() as u64))?;
        // Cut at odd places.
        for piece in tar.chunks(4001) {
            writer.write(piece)?;
        }
        let layer = writer.finish(expected)?;
        assert_eq!(snapshotter.layer(expected).as_ref(), Some(&layer));
        Ok(layer)
    }

    /// Writes the layers, mounts the image and an overlay on it.
    pub(super) fn mount(&self, driver: Driver, layers: &Layers) -> Shown {
        self.ingest(driver, layers).expect("valid layers");
        let snapshotter = self.driver(driver);
        let image = layers.image();
        let mounted = snapshotter.mount(&image).expect("mounted");
        let base = self.quick().join(format!("overlay-{driver:?}"));
        let [upper, work, overlay] = ["upper", "work", "merged"].map(|name| base.join(name));
        for directory in [&upper, &work, &overlay] {
            fs::create_dir_all(directory).expect("mkdir");
        }
        let lower: Vec<String> = mounted.lower_dirs.iter().map(|path| path.display().to_string()).collect();
        // The upper directory's owner and mode would be seen as the root's: take them from below, as a pod's setup does.
        let below = fs::metadata(&mounted.lower_dirs[0]).expect("mounted");
        fs::set_permissions(&upper, below.permissions()).expect("chmod");
        let owner = |value| Some(value);
        use std::os::unix::fs::MetadataExt as _;
        chown(&upper, owner(below.uid()), owner(below.gid())).expect("chown");
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
        let options = std::ffi::CString::new(options).expect("no zero bytes");
        mount("overlay", &overlay, "overlay", MountFlags::RDONLY, Some(options.as_c_str())).expect("overlay");
        Shown { overlay, driver: snapshotter, image }
    }

    /// What has been ingested and mounted is what it was made from, to the last byte.
    pub(super) fn assert_sound(&self, driver: Driver, layers: &Layers) {
        let (snapshotter, image) = (self.driver(driver), layers.image());
        for diff_id in &image.diff_ids {
            let condition = snapshotter.check_layer(diff_id, Mend::No, &mut |_| ()).expect("readable");
            assert_eq!(condition, Condition::Sound, "{driver:?}");
        }
        let condition = snapshotter.check_image(&image, Mend::No).expect("readable");
        assert_eq!(condition, Condition::Sound, "{driver:?}");
    }

    /// Neither layers, images nor anything in progress.
    pub(super) fn assert_nothing_left(&self, driver: Driver) {
        let layout = self.layout(driver);
        for directory in [layout.layers(), layout.images(), layout.ingest()] {
            let left: Vec<_> = fs::read_dir(&directory).expect("read").collect();
            assert!(left.is_empty(), "{driver:?} left {left:?}");
        }
    }
}

/// A store's folders at this path.
pub(super) fn layout_at(root: &Path) -> Layout {
    let layout = Layout::new(root.to_owned());
    for directory in layout.directories() {
        fs::create_dir_all(directory).expect("mkdir");
    }
    layout
}

impl Shown {
    pub(super) fn root(&self) -> &Path {
        &self.overlay
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // Detached: a program that another test starts at this moment has our open files until it is executed.
        unmount(&self.overlay, UnmountFlags::DETACH).expect("unmount overlay");
        self.driver.unmount(&self.image.manifest).expect("unmount image");
    }
}
