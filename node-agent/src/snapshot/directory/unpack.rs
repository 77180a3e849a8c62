//! Unpacks a layer as it streams by.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::FileType;

use super::planting::Bed;
use crate::erofs::tree::{DeviceNumber, Metadata, Tree};
use crate::snapshot::SnapshotError;
use crate::snapshot::layer_stream::Unpack;
use crate::snapshot::layer_tree::{Change, metadata};
use crate::snapshot::tar::{Entry, EntryKind};

/// A layer that is being unpacked.
#[derive(Debug)]
pub(super) struct Unpacker {
    bed: Bed,
    /// The file whose data are coming. It gets its metadata when they have come: writing takes capabilities away.
    open: Option<OpenFile>,
    bytes: u64,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: Vec<u8>,
    size: u64,
    metadata: Metadata,
}

impl Unpacker {
    /// Unpacks into this directory, which must not exist.
    pub(super) fn create(path: &Path) -> Result<Self, SnapshotError> {
        Ok(Self { bed: Bed::create(path)?, open: None, bytes: 0 })
    }

    /// All entries have come. Gives the bytes of all regular files.
    pub(super) fn finish(mut self, tree: &Tree) -> Result<u64, SnapshotError> {
        self.close()?;
        self.bed.finish(tree)?;
        self.bed.sync()?;
        Ok(self.bytes)
    }

    fn close(&mut self) -> Result<(), SnapshotError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        open.file.set_len(open.size).map_err(|error| self.bed.io("truncate", &open.path, error))?;
        drop(open.file);
        self.bed.dress(&open.path, &open.metadata, false)
    }

    fn make(&mut self, entry: &Entry, path: &[u8]) -> Result<(), SnapshotError> {
        if entry.kind == EntryKind::Directory {
            return self.bed.directory(path);
        }
        self.bed.clear(path)?;
        let metadata = metadata(entry);
        match &entry.kind {
            EntryKind::Regular(data) => {
                let file = self.bed.file(path)?;
                self.open = Some(OpenFile { file, path: path.to_owned(), size: data.size, metadata });
                return Ok(());
            }
            EntryKind::Symlink(target) => {
                self.bed.symlink(path, target)?;
                return self.bed.dress(path, &metadata, true);
            }
            // A whiteout, which is made when all files are there.
            EntryKind::CharDevice(DeviceNumber { major: 0, minor: 0 }) => return Ok(()),
            EntryKind::CharDevice(number) => self.bed.node(path, FileType::CharacterDevice, *number)?,
            EntryKind::BlockDevice(number) => self.bed.node(path, FileType::BlockDevice, *number)?,
            EntryKind::Fifo => self.bed.node(path, FileType::Fifo, DeviceNumber { major: 0, minor: 0 })?,
            // Directories were handled above, hard links never come here.
            EntryKind::Directory | EntryKind::HardLink(_) => return Ok(()),
        }
        self.bed.dress(path, &metadata, false)
    }
}

impl Unpack for Unpacker {
    fn entry(&mut self, entry: &Entry, change: &Change) -> Result<(), SnapshotError> {
        self.close()?;
        match change {
            Change::Later => Ok(()),
            Change::Made(path) => self.make(entry, path),
            Change::Linked { path, target } if path == target => Ok(()),
            Change::Linked { path, target } => {
                self.bed.clear(path)?;
                self.bed.link(path, target)
            }
            Change::LinkedBelow(path) => self.bed.clear(path),
        }
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SnapshotError> {
        let Some(open) = &self.open else { return Ok(()) };
        self.bytes += bytes.len() as u64;
        open.file.write_all_at(bytes, offset).map_err(|error| self.bed.io("write", &open.path, error))
    }
}
