//! The files of one log, oldest first: those that were put aside, named after the one that is written, and that one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::fs::File;

/// A file, whatever it is called at the moment: device and inode.
pub(super) type FileId = (u64, u64);

/// The place where a log is read: one of its files, open.
#[derive(Debug)]
pub(super) struct OpenLog {
    pub(super) file: File,
    id: FileId,
    /// Whether this file was seen to be put aside already, and then read to its end once more.
    was_put_aside: bool,
}

impl OpenLog {
    pub(super) fn new(file: fs::File) -> io::Result<Self> {
        let id = file_id(&file.metadata()?);
        Ok(Self { file: File::from_std(file), id, was_put_aside: false })
    }

    /// Called at the end of the file: goes on to the next one if this was put aside. False when it is the one that is written,
    /// so that there is nothing more for now.
    ///
    /// Between the end that was seen and the moment it was put aside the writer may have written, so the file is read once
    /// more before it is left: after that moment nothing is written to it.
    pub(super) async fn advance(&mut self, path: &Path) -> io::Result<bool> {
        let (path, id) = (path.to_owned(), self.id);
        let next = tokio::task::spawn_blocking(move || next_file(&path, id)).await.map_err(io::Error::other)??;
        let Some(next) = next else { return Ok(false) };
        if self.was_put_aside {
            *self = Self::new(next)?;
        } else {
            self.was_put_aside = true;
        }
        Ok(true)
    }
}

fn file_id(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// Opens the oldest file of the log `path`. The log exists as long as the file that is written does.
pub(super) fn open_oldest(path: &Path) -> io::Result<OpenLog> {
    // Kept open, so that it is there even if it is put aside and removed in the meantime.
    let current = fs::File::open(path)?;
    for older in put_aside(path)? {
        match fs::File::open(older) {
            Ok(file) => return OpenLog::new(file),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    OpenLog::new(current)
}

/// The files that were put aside, oldest first.
pub(super) fn put_aside(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_older =
            entry.file_name().to_str().and_then(|other| other.strip_prefix(name)?.strip_prefix('.')).is_some();
        if is_older {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The file after the one that is `id`. `None` when that is the one that is written.
fn next_file(path: &Path, id: FileId) -> io::Result<Option<fs::File>> {
    loop {
        let current = match fs::File::open(path) {
            Ok(current) => current,
            // Between two steps of turning over. The next event tells when the new one is there.
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err),
        };
        if file_id(&current.metadata()?) == id {
            return Ok(None);
        }
        let older = put_aside(path)?;
        let position =
            older.iter().position(|older| fs::metadata(older).is_ok_and(|metadata| file_id(&metadata) == id));
        // A file that is gone was older than all that are left.
        let after = position.map_or(0, |position| position + 1);
        match older.get(after) {
            None => {
                // `current` was opened before the list was made: if it is on the list by now, it is what comes next.
                return Ok(Some(current));
            }
            Some(next) => match fs::File::open(next) {
                Ok(file) => return Ok(Some(file)),
                // Removed since: look again.
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => return Err(err),
            },
        }
    }
}
