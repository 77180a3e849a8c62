//! EROFS's own programs, with which tests have our images checked. Those before 1.6 cannot read blocks of 512 bytes; where
//! the host's are older, those of a newer Debian are fetched with the libraries that they need. Nothing is installed: they
//! lie below the target folder and are run by a loader of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::console::note;
use crate::images::packages::{Archive, Packages};
use crate::images::recipe::Architecture;
use crate::{prerequisites, workspace};

/// The first version that reads our images.
const SINCE: (u32, u32) = (1, 6);
/// Debian 13, which has 1.8.6.
const ARCHIVE: Archive = Archive::Release("trixie");
const PROGRAMS: [&str; 2] = ["fsck.erofs", "dump.erofs"];

/// A PATH that leads to programs that read our images first; none where the host's own do, or no others are to be had: then
/// the tests see to it that these refuse.
pub(crate) fn before_path() -> Option<String> {
    if host_version().is_some_and(|version| version >= SINCE) {
        return None;
    }
    let folder = workspace::state().join("erofs-utils");
    match fetch(&folder) {
        Ok(programs) => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let all = std::iter::once(programs).chain(std::env::split_paths(&path));
            std::env::join_paths(all).ok()?.into_string().ok()
        }
        Err(error) => {
            note(&format!("images are not checked by fsck.erofs: this host's is too old, and {error:#}"));
            None
        }
    }
}

fn host_version() -> Option<(u32, u32)> {
    let output = Command::new(prerequisites::find("fsck.erofs")?).arg("-V").output().ok()?;
    version(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat()))
}

/// From a line like `fsck.erofs 1.5` or `fsck.erofs (erofs-utils) 1.8.6`.
fn version(said: &str) -> Option<(u32, u32)> {
    said.split_whitespace().find_map(|word| {
        let (major, rest) = word.split_once('.')?;
        Some((major.parse().ok()?, rest.split('.').next()?.parse().ok()?))
    })
}

/// Fetches the programs, unless they are there; gives the folder of scripts that run them.
fn fetch(folder: &Path) -> anyhow::Result<PathBuf> {
    let (scripts, root) = (folder.join("bin"), folder.join("root"));
    if PROGRAMS.iter().all(|program| scripts.join(program).exists()) {
        return Ok(scripts);
    }
    let architecture = Architecture::of_machine(std::env::consts::ARCH).context("this architecture is not Debian's")?;
    let packages = Packages::open(&folder.join("packages"), ARCHIVE, architecture)?;
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    for package in packages.fetch(&["erofs-utils"])? {
        let status = Command::new("dpkg-deb").arg("--extract").args([&package.path, &root]).status();
        let status = status.context("run dpkg-deb")?;
        ensure!(status.success(), "dpkg-deb --extract {}: {status}", package.path.display());
    }
    let loader = loader(&root.join("usr/lib"))?;
    fs::create_dir_all(&scripts).with_context(|| format!("create {}", scripts.display()))?;
    for program in PROGRAMS {
        write_script(&scripts.join(program), &loader, &root.join("usr/bin").join(program))?;
    }
    Ok(scripts)
}

/// The dynamic loader, which lies among the libraries of the packages.
fn loader(libraries: &Path) -> anyhow::Result<PathBuf> {
    let read = |folder: &Path| -> anyhow::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
        entries.map(|entry| Ok(entry?.path())).collect()
    };
    for folder in read(libraries)?.into_iter().filter(|path| path.is_dir()) {
        let is_loader =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"));
        if let Some(loader) = read(&folder)?.into_iter().find(is_loader) {
            return Ok(loader);
        }
    }
    anyhow::bail!("{} has no dynamic loader", libraries.display())
}

fn write_script(path: &Path, loader: &Path, program: &Path) -> anyhow::Result<()> {
    let libraries = loader.parent().unwrap_or(loader);
    let script = format!(
        "#!/bin/sh\nexec '{}' --library-path '{}' '{}' \"$@\"\n",
        loader.display(),
        libraries.display(),
        program.display()
    );
    fs::write(path, script).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| format!("chmod {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        assert_eq!(version("fsck.erofs 1.5\n"), Some((1, 5)));
        assert_eq!(version("fsck.erofs (erofs-utils) 1.8.6\navailable decompressors: lz4\n"), Some((1, 8)));
        assert_eq!(version("fsck.erofs: not found"), None);
    }
}
