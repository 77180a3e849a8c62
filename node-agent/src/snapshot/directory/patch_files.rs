//! Writes a patch to disk; file content is copied from the layers' directories.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::planting::Bed;
use crate::erofs::tree::{Data, DeviceNumber, InodeId, Node, Order, Regular, Tree};
use crate::snapshot::SnapshotError;

/// Makes the directory `path` from the patch. `files` are the unpacked layers, `layers` their trees, the lowest first.
pub(super) fn write(path: &Path, patch: &Tree, layers: &[Tree], files: &[PathBuf]) -> Result<(), SnapshotError> {
    let sources = sources(layers);
    let mut bed = Bed::create(path)?;
    let mut made: HashMap<InodeId, Vec<u8>> = HashMap::new();
    patch.visit(Order::DirectoriesFirst, |path, id| {
        if let Some(target) = made.get(&id) {
            return bed.link(path, target);
        }
        let inode = patch.inode(id);
        if plant(&mut bed, path, &inode.node, &sources, files)? {
            bed.dress(path, &inode.metadata, matches!(inode.node, Node::Symlink(_)))?;
            made.insert(id, path.to_vec());
        }
        Ok(())
    })?;
    bed.finish(patch)?;
    bed.sync()
}

/// Makes one file without its metadata. Directories are made as their entries need them and dressed at the end, whiteouts
/// likewise: those are no file yet.
fn plant(bed: &mut Bed, path: &[u8], node: &Node, sources: &Sources, files: &[PathBuf]) -> Result<bool, SnapshotError> {
    let none = DeviceNumber { major: 0, minor: 0 };
    match node {
        Node::Directory(_) | Node::Whiteout | Node::LinkBelow(_) => return Ok(false),
        Node::Regular(file) => {
            let to = bed.file(path)?;
            copy(file, sources, files, to).map_err(|error| bed.io("copy", path, error))?;
        }
        Node::Symlink(target) => bed.symlink(path, target)?,
        Node::CharDevice(number) => bed.node(path, FileType::CharacterDevice, *number)?,
        Node::BlockDevice(number) => bed.node(path, FileType::BlockDevice, *number)?,
        Node::Fifo => bed.node(path, FileType::Fifo, none)?,
        Node::Socket => bed.node(path, FileType::Socket, none)?,
    }
    Ok(true)
}

/// Where a file's bytes are: no two files of a layer begin at the same block of its tar.
type Sources = HashMap<(usize, u64), Vec<u8>>;

fn sources(layers: &[Tree]) -> Sources {
    let mut sources = HashMap::new();
    for (index, layer) in layers.iter().enumerate() {
        let Ok(()) = layer.visit(Order::DirectoriesFirst, |path, id| {
            if let Node::Regular(file) = &layer.inode(id).node
                && let Some((_, block)) = first_block(file)
            {
                sources.insert((index, block), path.to_vec());
            }
            Ok::<(), Infallible>(())
        });
    }
    sources
}

fn first_block(file: &Regular) -> Option<(u16, u64)> {
    match &file.data {
        Data::Contiguous { device, block } => Some((*device, *block)),
        Data::Sparse(extents) => extents.first().map(|extent| (extent.device, extent.block)),
    }
}

fn copy(file: &Regular, sources: &Sources, files: &[PathBuf], mut to: File) -> io::Result<()> {
    if let Some((device, block)) = first_block(file) {
        let device = usize::from(device);
        let source = sources.get(&(device, block)).zip(files.get(device));
        let (path, root) = source.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut from = File::open(root.join(std::ffi::OsStr::from_bytes(path)))?;
        io::copy(&mut from, &mut to)?;
    }
    to.set_len(file.size)
}
