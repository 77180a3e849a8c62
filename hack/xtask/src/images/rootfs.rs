//! Puts an image's files together as tar entries: directories and links of ours, files of packages.
//!
//! The order of entries, owners, modes and times come from the packages and from constants alone, never from this
//! machine's disk or clock, so the same packages give the same bytes. Within an image the first writer of a path wins;
//! within a layer every entry's parent directories come before it.

use super::layer::Fanout;
use super::packages::Package;
use super::recipe::{self, merged_path};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// A file system path of `busybox` in its package.
const BUSYBOX_IN_PACKAGE: &str = "bin/busybox";

/// What an image holds so far, over all its layers.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// Paths of everything that is not a directory.
    files: BTreeSet<String>,
    /// Modes and times of directories.
    directories: BTreeMap<String, (u32, u64)>,
}

/// A layer of an image while it is being written.
pub(super) struct LayerContent<'a, 'w> {
    image: &'a mut Image,
    tar: &'a mut tar::Builder<&'w mut Fanout>,
    /// Directories that this layer holds.
    here: BTreeSet<String>,
}

impl<'a, 'w> LayerContent<'a, 'w> {
    /// Starts a layer on top of what `image` has.
    pub(super) fn new(image: &'a mut Image, tar: &'a mut tar::Builder<&'w mut Fanout>) -> Self {
        Self { image, tar, here: BTreeSet::new() }
    }

    /// The directories and files that every image has, with the merged-`/usr` links.
    pub(super) fn skeleton(&mut self) -> Result<()> {
        for (path, mode) in recipe::DIRECTORIES {
            self.directory(path, *mode, 0)?;
        }
        for name in recipe::MERGED {
            self.symlink(name, &format!("usr/{name}"))?;
        }
        self.own_files(recipe::BASE_FILES)
    }

    /// Files of ours.
    pub(super) fn own_files(&mut self, files: &[recipe::OwnFile]) -> Result<()> {
        for (path, mode, content) in files {
            self.file(path, *mode, content.as_bytes())?;
        }
        Ok(())
    }

    /// A directory, unless this layer has it. A directory that a lower layer has keeps that layer's mode.
    fn directory(&mut self, path: &str, mode: u32, mtime: u64) -> Result<()> {
        if path.is_empty() || self.here.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        let (mode, mtime) = *self.image.directories.entry(path.to_owned()).or_insert((mode, mtime));
        let mut header = header(tar::EntryType::Directory, mode, mtime);
        self.tar
            .append_data(&mut header, format!("{path}/"), std::io::empty())
            .with_context(|| format!("add {path}"))?;
        self.here.insert(path.to_owned());
        Ok(())
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent, 0o755, 0),
            None => Ok(()),
        }
    }

    /// Makes `path` this entry's, with the directories above it. False: the image has it already.
    fn claim(&mut self, path: &str) -> Result<bool> {
        if self.image.directories.contains_key(path) || !self.image.files.insert(path.to_owned()) {
            return Ok(false);
        }
        self.parents(path)?;
        Ok(true)
    }

    /// A regular file of ours.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        if self.claim(path)? {
            let mut header = header(tar::EntryType::Regular, mode, 0);
            header.set_size(content.len() as u64);
            self.tar.append_data(&mut header, path, content).with_context(|| format!("add {path}"))?;
        }
        Ok(())
    }

    /// A symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.link(tar::EntryType::Symlink, path, target)
    }

    /// A second name of a file of this layer.
    pub(super) fn hard_link(&mut self, path: &str, target: &str) -> Result<()> {
        self.link(tar::EntryType::Link, path, target)
    }

    fn link(&mut self, kind: tar::EntryType, path: &str, target: &str) -> Result<()> {
        if self.claim(path)? {
            let mut header = header(kind, 0o777, 0);
            self.tar.append_link(&mut header, path, target).with_context(|| format!("add link {path}"))?;
        }
        Ok(())
    }

    /// All files of a package, moved below `usr` where the merged layout has them.
    pub(super) fn package(&mut self, package: &Package) -> Result<()> {
        read_package(package, |entry| self.package_entry(entry))
    }

    fn package_entry(&mut self, entry: &mut PackageEntry<'_>) -> Result<()> {
        let given = String::from_utf8(entry.path_bytes().into_owned()).context("a path that is not UTF-8")?;
        let path = merged_path(&given);
        let kind = entry.header().entry_type();
        let (mode, mtime) = (entry.header().mode()?, entry.header().mtime()?);
        if kind.is_dir() {
            return self.directory(&path, mode, mtime);
        }
        if !self.claim(&path)? {
            return Ok(());
        }
        let mut header = header(kind, mode, mtime);
        header.set_uid(entry.header().uid()?);
        header.set_gid(entry.header().gid()?);
        if kind.is_symlink() || kind.is_hard_link() {
            let target = String::from_utf8(entry.link_name_bytes().context("a link without a target")?.into_owned())
                .context("a link target that is not UTF-8")?;
            let target = if kind.is_hard_link() { merged_path(&target) } else { target };
            self.tar.append_link(&mut header, &path, &target)?;
        } else {
            ensure!(kind.is_file(), "{path} is of a kind that no package should hold: {kind:?}");
            header.set_size(entry.size());
            self.tar.append_data(&mut header, &path, entry)?;
        }
        Ok(())
    }
}

fn header(kind: tar::EntryType, mode: u32, mtime: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(mtime);
    header.set_size(0);
    header
}

/// An entry of a package's file archive.
type PackageEntry<'a> = tar::Entry<'a, std::process::ChildStdout>;

fn read_package(package: &Package, mut each: impl FnMut(&mut PackageEntry<'_>) -> Result<()>) -> Result<()> {
    let path = &package.path;
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(path)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run dpkg-deb on {}", path.display()))?;
    let stdout = child.stdout.take().context("dpkg-deb has no output")?;
    let mut archive = tar::Archive::new(stdout);
    let read = archive.entries().map_err(anyhow::Error::from).and_then(|entries| {
        for entry in entries {
            let mut entry = entry?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            each(&mut entry).with_context(|| format!("{name} of {}", path.display()))?;
        }
        Ok(())
    });
    // What follows the archive's end marker must be read too, or dpkg-deb reports a broken pipe.
    let mut stdout = archive.into_inner();
    std::io::copy(&mut stdout, &mut std::io::sink())?;
    let status = child.wait()?;
    read?;
    if !status.success() {
        bail!("dpkg-deb on {} ended with {status}", path.display());
    }
    Ok(())
}

/// The program `busybox` out of its package.
pub(super) fn busybox_program(package: &Package) -> Result<Vec<u8>> {
    let mut program = Vec::new();
    read_package(package, |entry| {
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if path.trim_start_matches("./").trim_start_matches("usr/") == BUSYBOX_IN_PACKAGE {
            entry.read_to_end(&mut program)?;
        }
        Ok(())
    })?;
    ensure!(!program.is_empty(), "{} holds no {BUSYBOX_IN_PACKAGE}", package.path.display());
    Ok(program)
}

/// The names of the applets of this machine's busybox. Another architecture's busybox is built with the same ones.
pub(super) fn applets(program: &[u8]) -> Result<Vec<String>> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(program)?;
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let path = file.into_temp_path();
    // It does what its own name says.
    let output = Command::new(&path).arg0("busybox").arg("--list").output().context("ask busybox for its applets")?;
    ensure!(output.status.success(), "busybox --list ended with {}", output.status);
    let mut names: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    names.retain(|name| !name.is_empty() && name != "busybox" && !name.contains('/'));
    names.sort();
    names.dedup();
    ensure!(names.iter().any(|name| name == "sh"), "busybox names no shell");
    Ok(names)
}
