//! Unpacks a layer as it streams by.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::FileType;
use sha2::{Digest as _, Sha256};

use super::planting::Bed;
use crate::digest::Digest;
use crate::erofs::tree::{BLOCK, DeviceNumber, Metadata, Tree};
use crate::snapshot::SnapshotError;
use crate::snapshot::layer_stream::Unpack;
use crate::snapshot::layer_tree::{Change, metadata};
use crate::snapshot::tar::{Entry, EntryKind, RegularData};
use crate::store::steps::{Step, passed};

/// A layer that is being unpacked.
#[derive(Debug)]
pub(super) struct Unpacker {
    bed: Bed,
    /// The file whose data are coming. It gets its metadata when they have come: writing takes capabilities away.
    open: Option<OpenFile>,
    bytes: u64,
    /// Digests of data, by the first block of them in the tar.
    sums: Vec<(u64, Digest)>,
}

/// What a layer has come to.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// Bytes of all regular files.
    pub(super) bytes: u64,
    /// Digests of their data, by the first block of them in the tar.
    pub(super) sums: Vec<(u64, Digest)>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: Vec<u8>,
    metadata: Metadata,
    sum: Sum,
}

/// The digest of a file's data while they come.
#[derive(Debug)]
struct Sum {
    data: RegularData,
    hash: Sha256,
}

impl Sum {
    /// The first block of the data in the tar, and their digest; none where there are no data. As the index has it a last
    /// block is whole, filled up with zeros.
    fn finish(mut self) -> Option<(u64, Digest)> {
        match &self.data.pieces {
            None if self.data.size == 0 => return None,
            None => {}
            Some(pieces) => {
                let last = pieces.last()?;
                let whole = last.length.next_multiple_of(BLOCK).min(self.data.size - last.offset);
                self.hash.update(vec![0; usize::try_from(whole - last.length).unwrap_or_default()]);
            }
        }
        Some((self.data.block, Digest::from_bytes(self.hash.finalize().into())))
    }
}

impl Unpacker {
    /// Unpacks into this directory, which must not exist.
    pub(super) fn create(path: &Path) -> Result<Self, SnapshotError> {
        Ok(Self { bed: Bed::create(path)?, open: None, bytes: 0, sums: Vec::new() })
    }

    /// All entries have come.
    pub(super) fn finish(mut self, tree: &Tree) -> Result<Unpacked, SnapshotError> {
        self.close()?;
        self.bed.finish(tree)?;
        self.bed.sync()?;
        Ok(Unpacked { bytes: self.bytes, sums: self.sums })
    }

    fn close(&mut self) -> Result<(), SnapshotError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let OpenFile { file, path, metadata, sum } = open;
        file.set_len(sum.data.size).map_err(|error| self.bed.io("truncate", &path, error))?;
        drop(file);
        self.bed.dress(&path, &metadata, false)?;
        self.sums.extend(sum.finish());
        Ok(())
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
                let (path, sum) = (path.to_owned(), Sum { data: data.clone(), hash: Sha256::new() });
                self.open = Some(OpenFile { file, path, metadata, sum });
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
        passed(Step::Mark("a layer is unpacked in part"));
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
        let Some(open) = &mut self.open else { return Ok(()) };
        self.bytes += bytes.len() as u64;
        open.sum.hash.update(bytes);
        open.file.write_all_at(bytes, offset).map_err(|error| self.bed.io("write", &open.path, error))
    }
}
