//! A fresh file system for one run, in a file: ext4 on a loop device, the same for every engine. The device reads and
//! writes its file directly, as a disk would: through the page cache every byte that is made durable would be copied twice, and
//! took several times as long.
//!
//! An engine that unpacks to files cannot be timed on a file system where it has removed as many before: ext4 without a
//! journal looks at each inode that was freed in the last five minutes, and the second run takes several times the first.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::mounts;

/// Room for an image, compressed and unpacked, several times over; the file is sparse.
const SIZE: u64 = 16 << 30;

/// A mounted file system.
#[derive(Debug)]
pub(in crate::bench) struct Disk {
    file: PathBuf,
    root: PathBuf,
}

impl Disk {
    /// The one in this folder, whether or not it is there.
    pub(in crate::bench) fn in_folder(folder: &Path) -> Self {
        Self { file: folder.join("disk.ext4"), root: folder.join("disk") }
    }

    /// Makes one in this folder.
    pub(in crate::bench) fn fresh(folder: &Path) -> anyhow::Result<Self> {
        let disk = Self::in_folder(folder);
        disk.remove()?;
        fs::create_dir_all(&disk.root).with_context(|| format!("create {}", disk.root.display()))?;
        let file = fs::File::create(&disk.file).with_context(|| format!("create {}", disk.file.display()))?;
        file.set_len(SIZE).with_context(|| format!("lengthen {}", disk.file.display()))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "nodiscard"]).arg(&disk.file))?;
        let device = run(Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&disk.file))?;
        // Without the last option the kernel writes inode tables in the background, beside what is measured.
        run(Command::new("mount").args(["-o", "noatime,noinit_itable", &device]).arg(&disk.root))?;
        // It is in use now, so this means: with the unmounting.
        run(Command::new("losetup").args(["--detach", &device]))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(in crate::bench) fn root(&self) -> &Path {
        &self.root
    }

    /// Unmounts it, if it is mounted, and removes its file.
    pub(in crate::bench) fn remove(&self) -> anyhow::Result<()> {
        while is_mount(&self.root)? {
            run(Command::new("umount").arg(&self.root))?;
        }
        if self.file.exists() {
            // Left when a bench was killed between making the device and mounting it.
            let list = ["--noheadings", "--output", "NAME", "--associated"];
            for device in run(Command::new("losetup").args(list).arg(&self.file))?.lines() {
                run(Command::new("losetup").args(["--detach", device.trim()]))?;
            }
            fs::remove_file(&self.file).with_context(|| format!("remove {}", self.file.display()))?;
        }
        Ok(())
    }
}

fn is_mount(path: &Path) -> anyhow::Result<bool> {
    Ok(mounts::read()?.iter().any(|mount| mount.point == path))
}

/// What it prints, without the end of the line.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Bytes that the files below a folder take on their file system; what is mounted there is not counted, and a file with
/// several names once.
pub(in crate::bench) fn used_bytes(folder: &Path) -> anyhow::Result<u64> {
    let own = fs::symlink_metadata(folder).with_context(|| format!("look at {}", folder.display()))?.dev();
    let (mut bytes, mut seen, mut folders) = (0, HashSet::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let entry = entry?;
            let meta = entry.metadata().with_context(|| format!("look at {}", entry.path().display()))?;
            if meta.dev() != own || (meta.nlink() > 1 && !meta.is_dir() && !seen.insert(meta.ino())) {
                continue;
            }
            // In units of 512 bytes, whatever the file system's own block is.
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root, as every bench does.
    #[test]
    fn a_disk_is_fresh_each_time_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let disk = Disk::fresh(dir.path()).unwrap();
            assert!(is_mount(disk.root()).unwrap());
            assert!(!disk.root().join("mark").exists());
            fs::write(disk.root().join("mark"), "x").unwrap();
        }
        let disk = Disk::in_folder(dir.path());
        disk.remove().unwrap();
        assert!(!is_mount(disk.root()).unwrap());
        assert!(!disk.file.exists());
    }

    #[test]
    fn a_file_with_two_names_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        fs::create_dir_all(store.join("a/b")).unwrap();
        fs::write(store.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        let once = used_bytes(&store).unwrap();
        assert!((1 << 20..2 << 20).contains(&once), "{once}");
        fs::hard_link(store.join("a/b/file"), store.join("again")).unwrap();
        assert_eq!(used_bytes(&store).unwrap(), once);
        fs::write(store.join("other"), vec![1; 1 << 20]).unwrap();
        assert!(used_bytes(&store).unwrap() >= once + (1 << 20));
    }
}
