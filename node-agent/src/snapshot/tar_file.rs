//! The file that a layer's plain tar is kept in: written once from front to back.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use crate::host::writeback;
use crate::store::durable;

/// After so many bytes the kernel is asked to begin writing them, so that the sync at the end has little left to do. With
/// room allocated beforehand this writes 757 MB durably in 0.26 s, where plain writing and a sync take up to 1 s.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// Room that is allocated ahead at a time, where the length is not known.
const AHEAD_BYTES: u64 = 64 << 20;

/// A tar that is being written.
#[derive(Debug)]
pub(crate) struct TarFile {
    file: File,
    written: u64,
    under_way: u64,
    allocated: u64,
}

impl TarFile {
    /// A new file. With a hint of its length the room is allocated at once: a full disk shows before the transfer.
    pub(crate) fn create(path: &Path, size_hint: Option<u64>) -> io::Result<Self> {
        let file = durable::create_file(path)?;
        let mut tar = Self { file, written: 0, under_way: 0, allocated: 0 };
        if let Some(length @ 1..) = size_hint {
            tar.allocate(length)?;
        }
        Ok(tar)
    }

    /// Appends.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        if self.written - self.under_way >= WRITEBACK_BYTES {
            writeback::begin(&self.file, self.under_way, self.written - self.under_way)?;
            self.under_way = self.written;
            if self.written >= self.allocated {
                // Where so much is not free, what comes may still fit: the write itself will tell.
                let _ = self.allocate(AHEAD_BYTES);
            }
        }
        Ok(())
    }

    /// Allocates room behind what is written.
    fn allocate(&mut self, length: u64) -> io::Result<()> {
        self.allocated = self.written + length;
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.written, length) {
            // Not every file system allocates beforehand; it is a matter of speed only.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::FBIG) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives back room that was allocated and not used, and makes the file durable.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.file.set_len(self.written)?;
        durable::sync_file(&self.file)
    }
}
