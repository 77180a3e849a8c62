//! Files that are there whole or not at all, also after a power cut: written under another name, synced, renamed, and the
//! directory synced.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Makes a file appear at `path` with what `write` puts into it. `unfinished` is the name it has until then, on the same
/// file system; nothing is left there by a failure.
///
/// # Errors
/// What the file system says, or `write`.
pub fn write_file<T, E: From<io::Error>>(
    path: &Path,
    unfinished: &Path,
    write: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    let written = (|| {
        let mut file = File::create(unfinished)?;
        let result = write(&mut file)?;
        file.sync_data()?;
        Ok(result)
    })();
    let result = match written {
        Ok(result) => result,
        Err(error) => {
            // The error that matters is the first; a leftover is removed at the next start.
            let _ = fs::remove_file(unfinished);
            return Err(error);
        }
    };
    rename(unfinished, path)?;
    Ok(result)
}

/// Renames and makes the new name durable.
///
/// # Errors
/// What the file system says.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory(to.parent().unwrap_or(Path::new("/")))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// What the file system says.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes a file or a whole directory; one that is not there is fine.
///
/// # Errors
/// What the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Bytes that unprivileged writers could still write to the file system of this path; zero when it cannot be asked.
pub fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether an error says that there is no room: the disk is full, or a quota is used up.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Removes an empty directory; one that is not there is fine.
///
/// # Errors
/// What the file system says.
pub fn remove_empty(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
