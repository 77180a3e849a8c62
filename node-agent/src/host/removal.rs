//! Taking files and folders away that may have gone already: what was begun before an end of this process is gone on with.

use std::{fs, io, path::Path};

/// Removes a file, or a link. One that is not there is fine.
///
/// # Errors
/// What the file system says.
pub fn remove_file(path: &Path) -> io::Result<()> {
    unless_gone(fs::remove_file(path))
}

/// Removes a folder and what is in it. One that is not there is fine.
///
/// # Errors
/// What the file system says.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    unless_gone(fs::remove_dir_all(path))
}

fn unless_gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_fine_and_what_cannot_be_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
        fs::write(&file, "").unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("inner"), "").unwrap();
        assert!(remove_file(&folder).is_err(), "a folder is no file");
        for _ in 0..2 {
            remove_file(&file).unwrap();
            remove_folder(&folder).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
