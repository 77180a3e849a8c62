//! Writes a patch to disk; file content is copied from the layers' directories.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::planting::Bed;
use super::{check, data};
use crate::erofs::tree::{DeviceNumber, InodeId, Node, Order, Regular, Tree};
use crate::snapshot::SnapshotError;

/// How much is compared at a time.
const PIECE_BYTES: usize = 64 << 10;

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
                && let Some((_, block)) = data::first_block(file)
            {
                sources.insert((index, block), path.to_vec());
            }
            Ok::<(), Infallible>(())
        });
    }
    sources
}

fn copy(file: &Regular, sources: &Sources, files: &[PathBuf], mut to: File) -> io::Result<()> {
    if let Some(mut from) = source(file, sources, files)? {
        io::copy(&mut from, &mut to)?;
    }
    to.set_len(file.size)
}

/// The file of a layer that a file of the patch is a copy of; none where it has no data.
fn source(file: &Regular, sources: &Sources, files: &[PathBuf]) -> io::Result<Option<File>> {
    let Some((device, block)) = data::first_block(file) else { return Ok(None) };
    let device = usize::from(device);
    let source = sources.get(&(device, block)).zip(files.get(device));
    let (path, root) = source.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    File::open(root.join(std::ffi::OsStr::from_bytes(path))).map(Some)
}

/// What is wrong with the directory `path` that was written.
pub(super) fn fault(
    path: &Path,
    patch: &Tree,
    layers: &[Tree],
    files: &[PathBuf],
) -> Result<Option<String>, SnapshotError> {
    let sources = sources(layers);
    check::fault(path, patch, &mut |file, path| {
        let copy = File::open(path)?;
        source(file, &sources, files)?.map_or(Ok(true), |original| is_copy(original, copy))
    })
}

fn is_copy(mut original: File, mut copy: File) -> io::Result<bool> {
    let (mut one, mut other) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    loop {
        let length = original.read(&mut one)?;
        if length == 0 {
            return Ok(copy.read(&mut other)? == 0);
        }
        match copy.read_exact(&mut other[..length]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if one[..length] != other[..length] {
            return Ok(false);
        }
    }
}
