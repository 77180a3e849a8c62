//! Which driver this host can have: asked by mounting a tiny image, not by the kernel's version.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DirectorySnapshotter, ErofsSnapshotter, Limits, SnapshotError, Snapshotter};
use crate::erofs::tree::{Data, Inode, InodeId, Metadata, Node, Regular, Tree};
use crate::erofs::{Device, write_image};
use crate::host::mount;
use crate::host::overlay::{self, Overlay};
use crate::store::durable;
use crate::store::layout::Layout;

/// Which driver is wished for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverChoice {
    /// `erofs` where it works, else `directory`.
    Auto,
    /// `erofs` or nothing.
    Erofs,
    /// `directory`.
    Directory,
}

/// Opens the driver that is wished for over a store that this process holds. Images are mounted below `mounts`. Blocks.
///
/// # Errors
/// When `erofs` is wished for and does not work here.
pub fn open(
    choice: DriverChoice,
    layout: &Layout,
    mounts: &Path,
    limits: Limits,
) -> Result<Arc<dyn Snapshotter>, SnapshotError> {
    let erofs = || Arc::new(ErofsSnapshotter::new(layout.clone(), mounts.to_owned(), limits));
    let directory = || Arc::new(DirectorySnapshotter::new(layout.clone(), limits));
    match choice {
        DriverChoice::Directory => Ok(directory()),
        DriverChoice::Erofs => probe(layout, mounts).map(|()| erofs() as Arc<dyn Snapshotter>),
        DriverChoice::Auto => match probe(layout, mounts) {
            Ok(()) => Ok(erofs()),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::info!(error, "this host cannot mount EROFS from files, layers are unpacked to directories");
                Ok(directory())
            }
        },
    }
}

const CONTENT: &[u8] = b"larder";
const NAME: &[u8] = b"probe";

/// Mounts an image of one file whose data are on a device, an overlay on it as a container has, and reads the file. The
/// overlay is asked for too because file systems may stand on each other only two high, and the store may stand on one.
fn probe(layout: &Layout, mounts: &Path) -> Result<(), SnapshotError> {
    let files = Leftovers(layout.unfinished("probe"));
    let overlay = Leftovers(mounts.join("probe-overlay"));
    let target = Mounted(mounts.join("probe"));
    let io = |action, path: &Path, error| SnapshotError::io(action, path, 0, error);
    for directory in [&files.0, &target.0] {
        fs::create_dir_all(directory).map_err(|error| io("create", directory, error))?;
    }
    let (image, data) = (files.0.join("image"), files.0.join("data"));
    let write = || -> std::io::Result<()> {
        let mut block = CONTENT.to_vec();
        block.resize(4096, 0);
        fs::write(&data, &block)?;
        let mut bytes = Vec::new();
        let device = Device { tag: String::from("probe"), bytes: block.len() as u64 };
        write_image(&tree(), &[device], &mut bytes).map_err(std::io::Error::other)?;
        fs::File::create(&image)?.write_all(&bytes)
    };
    write().map_err(|error| io("write", &image, error))?;
    mount::mount_erofs(&image, &[&data], &target.0).map_err(|error| io("mount", &image, error))?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| overlay.0.join(name));
    for directory in [&upper, &work, &root] {
        fs::create_dir_all(directory).map_err(|error| io("create", directory, error))?;
    }
    let root = Mounted(root);
    let lower = [target.0.clone()];
    overlay::mount_overlay(&Overlay { lower: &lower, upper: &upper, work: &work }, &root.0)
        .map_err(|error| io("mount an overlay on", &target.0, error))?;
    let file = root.0.join("probe");
    let found = fs::read(&file).map_err(|error| io("read", &file, error))?;
    if found == CONTENT {
        return Ok(());
    }
    Err(io("read", &file, std::io::ErrorKind::InvalidData.into()))
}

fn tree() -> Tree {
    let mut tree = Tree::new();
    let data = Data::Contiguous { device: 0, block: 0 };
    let node = Node::Regular(Regular { size: CONTENT.len() as u64, data });
    let file = tree.add(Inode { metadata: Metadata { mode: 0o644, ..Metadata::default() }, node });
    tree.link(InodeId::ROOT, NAME, file);
    tree
}

struct Leftovers(PathBuf);

impl Drop for Leftovers {
    fn drop(&mut self) {
        // What stays is removed at the next start.
        let _ = durable::remove(&self.0);
    }
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = overlay::unmount_tree(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "probe stays mounted");
        }
        let _ = durable::remove_empty(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Driver;
    use crate::store::Store;

    #[test]
    fn this_machine_mounts_erofs_from_files_and_nothing_stays() {
        let root = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&root.path().join("store")).expect("opens");
        let mounts = root.path().join("mounts");
        let driver = open(DriverChoice::Auto, store.layout(), &mounts, Limits::default()).expect("a driver");
        assert_eq!(driver.driver(), Driver::Erofs);
        assert_eq!(fs::read_dir(&mounts).expect("read").count(), 0);
        assert_eq!(fs::read_dir(store.layout().ingest()).expect("read").count(), 0);
    }

    /// What the kernel cannot mount EROFS from a file on stands for a kernel that cannot at all.
    #[test]
    fn where_erofs_cannot_be_mounted_layers_are_unpacked_unless_erofs_was_asked_for() {
        let root = tempfile::tempdir().expect("temporary directory");
        rustix::mount::mount("tmpfs", root.path(), "tmpfs", rustix::mount::MountFlags::empty(), None).expect("tmpfs");
        let tmpfs = Mounted(root.path().to_owned());
        let store = Store::open(&root.path().join("store")).expect("opens");
        let mounts = root.path().join("mounts");
        let open = |choice| open(choice, store.layout(), &mounts, Limits::default());
        assert_eq!(open(DriverChoice::Auto).expect("a driver").driver(), Driver::Directory);
        let error = open(DriverChoice::Erofs).expect_err("it was asked for");
        assert!(error.to_string().starts_with("mount "), "{error}");
        assert_eq!(fs::read_dir(&mounts).expect("read").count(), 0);
        assert_eq!(fs::read_dir(store.layout().ingest()).expect("read").count(), 0);
        drop(store);
        drop(tmpfs);
    }
}
