//! Compares two trees on disk, file by file, in everything that a process could see.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};

use crate::digest::Digest;
use crate::snapshot::Driver;

/// All that is compared of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    mtime: Option<(i64, i64)>,
    device: u64,
    /// How many names the file has.
    names: u64,
    /// The first of the names in this tree, for files with several.
    first_name: Option<PathBuf>,
    content: Option<Digest>,
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Where two unpackers may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leeway {
    /// Nowhere.
    None,
    /// umoci leaves out attributes of no bytes, which GNU tar keeps as the archive states them.
    EmptyAttributes,
}

/// Panics with the differences where the trees are not the same. On stacked directories the count of names of a file is
/// that of its layer, as overlayfs shows it, so there only the names that are seen must belong together.
pub(super) fn same(expected: &Path, found: &Path, driver: Driver, leeway: Leeway) {
    let what = format!("{} and {driver:?}", expected.display());
    let (expected, mut found) = (facts(expected), facts(found));
    let mut differences = Vec::new();
    for (path, expected) in &expected {
        match found.remove(path) {
            None => differences.push(format!("{} is missing", path.display())),
            Some(mut found) => {
                // An unpacker that passes through a directory leaves the time at which it did.
                if expected.mtime.is_none() {
                    found.mtime = None;
                }
                if driver == Driver::Directory {
                    found.names = expected.names;
                }
                if leeway == Leeway::EmptyAttributes {
                    found.xattrs.retain(|_, value| !value.is_empty());
                }
                if found != *expected {
                    differences.push(format!("{}:\n  expected {expected:?}\n  found    {found:?}", path.display()));
                }
            }
        }
    }
    differences.extend(found.keys().map(|path| format!("{} should not be there", path.display())));
    assert!(differences.is_empty(), "{what} differ:\n{}", differences.join("\n"));
}

fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut open = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(directory) = open.pop() {
        paths.push(directory.clone());
        for entry in fs::read_dir(&directory).expect("read directory") {
            let entry = entry.expect("entry");
            let list = if entry.file_type().expect("type").is_dir() { &mut open } else { &mut paths };
            list.push(entry.path());
        }
    }
    paths.sort();
    let mut names: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    for path in &paths {
        let found = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("stat {}: {error}", path.display()));
        let relative = path.strip_prefix(root).expect("below the root");
        names.entry((found.dev(), found.ino())).or_default().push(relative.to_owned());
    }
    let one = |path: PathBuf| {
        let relative = path.strip_prefix(root).expect("below the root").to_owned();
        let facts = one(&path, relative.as_os_str().is_empty(), &names);
        (relative, facts)
    };
    paths.into_iter().map(one).collect()
}

fn one(path: &Path, is_root: bool, names: &BTreeMap<(u64, u64), Vec<PathBuf>>) -> Facts {
    let found = fs::symlink_metadata(path).expect("stat");
    let kind = found.file_type();
    let is_directory = kind.is_dir();
    let several = names.get(&(found.dev(), found.ino())).filter(|names| names.len() > 1);
    // Every time that a test layer states is years ago, or decades to come.
    let stated = !(1_700_000_000..4_000_000_000).contains(&found.mtime()) && !is_root;
    Facts {
        kind: match () {
            () if kind.is_file() => "file",
            () if is_directory => "directory",
            () if kind.is_symlink() => "symlink",
            () if kind.is_fifo() => "fifo",
            () if kind.is_char_device() => "char device",
            () if kind.is_block_device() => "block device",
            () => "other",
        },
        // The root's mode is the overlay's own.
        mode: if is_root { 0 } else { found.mode() & 0o7777 },
        owner: (found.uid(), found.gid()),
        size: if is_directory { 0 } else { found.size() },
        mtime: stated.then(|| (found.mtime(), found.mtime_nsec())),
        device: found.rdev(),
        names: if is_directory { 0 } else { found.nlink() },
        first_name: several.and_then(|names| names.first().cloned()),
        content: kind.is_file().then(|| Digest::of(&fs::read(path).expect("read"))),
        target: kind.is_symlink().then(|| fs::read_link(path).expect("readlink")),
        xattrs: xattrs(path),
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = llistxattr(path, &mut names[..]).expect("listxattr");
    let mut all = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // What overlayfs and umoci keep for themselves.
        if name.starts_with(b"trusted.overlay.") || name == b"user.rootlesscontainers" {
            continue;
        }
        let mut value = vec![0; 65536];
        let length = lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..]).expect("getxattr");
        value.truncate(length);
        all.insert(name.to_vec(), value);
    }
    all
}
