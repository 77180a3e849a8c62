//! Writing a volume's content so that an update is seen at once or not at all.
//!
//! Layout, the one that Kubernetes documents for its users (`pkg/volume/util/atomic_writer.go`): the files are in a folder
//! `..<number>/`, the link `..data` leads there, and a link for each first part of a path leads through `..data`. An update
//! writes a new folder and renames a new link over `..data`.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use super::payload::{Payload, PayloadFile};
use crate::host::removal;

const CURRENT: &str = "..data";

/// Brings `folder` up to date. Nothing is touched when the content is the same.
pub(super) fn write(folder: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<()> {
    let current = folder.join(CURRENT);
    let old = fs::read_link(&current).ok();
    if old.as_ref().is_some_and(|old| is_same(&folder.join(old), payload)) {
        return link_paths(folder, payload);
    }
    let name = format!("..{}", next_number(old.as_deref()));
    let new = folder.join(&name);
    // Left by a life that ended in here.
    removal::remove_folder(&new)?;
    fs::DirBuilder::new().mode(0o755).create(&new)?;
    give_to_group(&new, fs_group)?;
    for (path, file) in &payload.files {
        write_file(&new, path, file, fs_group)?;
    }
    let link = folder.join("..data_tmp");
    removal::remove_file(&link)?;
    symlink(&name, &link)?;
    fs::rename(&link, &current)?;
    link_paths(folder, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(folder.join(old))?;
    }
    Ok(())
}

fn next_number(old: Option<&Path>) -> u64 {
    let number =
        old.and_then(Path::to_str).and_then(|name| name.strip_prefix("..")).and_then(|n| n.parse::<u64>().ok());
    number.map_or(1, |number| number.wrapping_add(1))
}

fn is_same(data: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    let same = list_files(data, &PathBuf::new(), &mut found).is_ok()
        && payload.files.iter().all(|(path, file)| {
            let path = data.join(path);
            let mode = fs::metadata(&path).map(|data| data.permissions().mode() & 0o777);
            // The group's rights may have been widened for fsGroup.
            mode.is_ok_and(|mode| mode & 0o707 == file.mode & 0o707)
                && fs::read(&path).is_ok_and(|content| content == file.content)
        });
    same && found.iter().map(|path| path.to_string_lossy().into_owned()).eq(payload.files.keys().cloned())
}

fn list_files(root: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list_files(root, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

fn write_file(root: &Path, path: &str, file: &PayloadFile, fs_group: Option<u32>) -> io::Result<()> {
    let target = root.join(path);
    let mut parent = root.to_owned();
    for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        if !parent.is_dir() {
            fs::DirBuilder::new().mode(0o755).create(&parent)?;
            give_to_group(&parent, fs_group)?;
        }
    }
    let mut options = fs::OpenOptions::new();
    let mut handle = options.write(true).create_new(true).mode(0o600).open(&target)?;
    io::Write::write_all(&mut handle, &file.content)?;
    chown(&target, file.user, fs_group)?;
    // The group may read what it is given, as a kubelet has it for read-only volumes.
    let group = if fs_group.is_some() { 0o440 } else { 0 };
    fs::set_permissions(&target, fs::Permissions::from_mode(file.mode | group))
}

fn give_to_group(folder: &Path, fs_group: Option<u32>) -> io::Result<()> {
    if fs_group.is_none() {
        return Ok(());
    }
    chown(folder, None, fs_group)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o2755))
}

/// A link for the first part of each path; links whose path is gone are removed.
fn link_paths(folder: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(CURRENT).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let known = name.to_str().is_some_and(|name| name.starts_with("..") || wanted.contains(name));
        if !known {
            fs::remove_file(folder.join(name))?;
        }
    }
    Ok(())
}
