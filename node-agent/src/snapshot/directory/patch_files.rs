//! Writes a patch to disk; file content is copied from the layers' directories.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::planting::Bed;
use crate::snapshot::SnapshotError;
use crate::snapshot::tree::{Data, DeviceNumber, InodeId, Node, Regular, Tree};

/// Makes the directory `path` from the patch. `files` are the unpacked layers, `layers` their trees, the lowest first.
pub(super) fn write(path: &Path, patch: &Tree, layers: &[Tree], files: &[PathBuf]) -> Result<(), SnapshotError> {
    let sources = sources(layers);
    let mut bed = Bed::create(path)?;
    let mut made: HashMap<InodeId, Vec<u8>> = HashMap::new();
    for (path, id) in patch.walk() {
        if let Some(target) = made.get(&id) {
            bed.link(&path, target)?;
            continue;
        }
        let inode = patch.inode(id);
        let none = DeviceNumber { major: 0, minor: 0 };
        match &inode.node {
            // Made as their entries need them, dressed at the end; whiteouts likewise.
            Node::Directory(_) | Node::Whiteout | Node::LinkBelow(_) => continue,
            Node::Regular(file) => {
                let to = bed.file(&path)?;
                copy(file, &sources, files, to).map_err(|error| bed.io("copy", &path, error))?;
            }
            Node::Symlink(target) => bed.symlink(&path, target)?,
            Node::CharDevice(number) => bed.node(&path, FileType::CharacterDevice, *number)?,
            Node::BlockDevice(number) => bed.node(&path, FileType::BlockDevice, *number)?,
            Node::Fifo => bed.node(&path, FileType::Fifo, none)?,
            Node::Socket => bed.node(&path, FileType::Socket, none)?,
        }
        bed.dress(&path, &inode.metadata, matches!(inode.node, Node::Symlink(_)))?;
        made.insert(id, path);
    }
    bed.finish(patch)?;
    bed.sync()
}

/// Where a file's bytes are: no two files of a layer begin at the same block of its tar.
type Sources = HashMap<(usize, u64), Vec<u8>>;

fn sources(layers: &[Tree]) -> Sources {
    let mut sources = HashMap::new();
    for (index, layer) in layers.iter().enumerate() {
        for (path, id) in layer.walk() {
            if let Node::Regular(file) = &layer.inode(id).node
                && let Some((_, block)) = first_block(file)
            {
                sources.insert((index, block), path);
            }
        }
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
