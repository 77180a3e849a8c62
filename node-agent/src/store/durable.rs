//! Files that are there whole or not at all, also after a power cut: written under another name, synced, renamed, and the
//! directory synced.
//!
//! Everything that changes the store's files goes through here, so that the order of it is seen in one place and a test can
//! cut the power after each step (see [`super::steps`]).

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::steps::{Step, passed};

/// How much is compared, and written where it differs, at a time.
const OVERWRITE_BYTES: usize = 64 << 10;

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
        let mut file = create_file(unfinished)?;
        let result = write(&mut file)?;
        sync_file(&file)?;
        Ok(result)
    })();
    let result = match written {
        Ok(result) => result,
        Err(error) => {
            // The error that matters is the first; a leftover is removed at the next start.
            let _ = remove(unfinished);
            return Err(error);
        }
    };
    rename(unfinished, path)?;
    Ok(result)
}

/// A new, empty file to write to; an older one of this name is emptied. Its name is durable once its directory is synced.
///
/// # Errors
/// What the file system says.
pub fn create_file(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    passed(Step::File(path));
    Ok(file)
}

/// Makes what a file holds durable.
///
/// # Errors
/// What the file system says.
pub fn sync_file(file: &File) -> io::Result<()> {
    file.sync_data()?;
    passed(Step::SyncFile(file));
    Ok(())
}

/// Makes one directory for something unfinished; it becomes durable with the rename that finishes it.
///
/// # Errors
/// What the file system says.
pub fn create_unfinished_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    passed(Step::Directory(path));
    Ok(())
}

/// Makes a directory and those above it that are missing, each durable by name: also where a process that was killed has
/// made one and not got to sync it. Only the last that it made can be such a one, as each is synced before the next.
///
/// # Errors
/// What the file system says.
pub fn create_directories(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if !path.is_dir() {
        if let Some(parent) = parent {
            create_directories(parent)?;
        }
        match fs::create_dir(path) {
            // Somebody else has made it in this moment.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            other => other?,
        }
        passed(Step::Directory(path));
    }
    sync_directory(parent.unwrap_or(Path::new(".")))
}

/// Makes a file hold what another one holds, where it differs: whoever has it open or mounted reads the right bytes from
/// then on. Cut short, it is nearer to the other one than before.
///
/// # Errors
/// What the file system says.
pub fn overwrite(from: &Path, to: &Path) -> io::Result<()> {
    let (mut source, target) = (File::open(from)?, File::options().read(true).write(true).open(to)?);
    target.set_len(source.metadata()?.len())?;
    let (mut right, mut there) = (vec![0; OVERWRITE_BYTES], vec![0; OVERWRITE_BYTES]);
    let mut offset = 0;
    loop {
        let length = source.read(&mut right)?;
        if length == 0 {
            break;
        }
        // What cannot be read back is written: a bad block is mended by that, if by anything.
        let is_right = target.read_exact_at(&mut there[..length], offset).is_ok() && right[..length] == there[..length];
        if !is_right {
            target.write_all_at(&right[..length], offset)?;
        }
        offset += length as u64;
    }
    sync_file(&target)
}

/// Renames and makes the new name durable, then that the old one is gone: a file system without a journal may otherwise
/// show both after a power cut, and what has the old name is removed at the next start.
///
/// # Errors
/// What the file system says.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    passed(Step::Rename(from, to));
    let (old, new) = (from.parent().unwrap_or(Path::new("/")), to.parent().unwrap_or(Path::new("/")));
    sync_directory(new)?;
    if old == new { Ok(()) } else { sync_directory(old) }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// What the file system says.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    passed(Step::SyncDirectory(path));
    Ok(())
}

/// Makes a directory and everything in it durable, given open.
///
/// # Errors
/// What the file system says.
pub fn sync_tree(directory: impl AsFd, path: &Path) -> io::Result<()> {
    rustix::fs::syncfs(directory)?;
    passed(Step::SyncTree(path));
    Ok(())
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
        other => {
            passed(Step::Remove(path));
            other
        }
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
