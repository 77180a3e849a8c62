//! The OCI runtime's program: where it is, what it is, and a sealed copy of it in memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// How long the runtime may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// The runtime's program.
#[derive(Debug)]
pub(super) struct Program {
    /// Where it is.
    pub(super) path: PathBuf,
    /// `crun://1.8.1`.
    pub(super) version: String,
    /// A copy that nobody can write to. crun and runc make one for themselves at every start and execute themselves again if
    /// they do not run from one: it keeps a container from overwriting the host's runtime. None for a script, and where the
    /// kernel refuses.
    pub(super) sealed: Option<OwnedFd>,
}

impl Program {
    /// Finds the program `name`, a path or a name to look for in `search_path`, and asks it for its version.
    pub(super) async fn find(name: &Path, search_path: &str) -> io::Result<Self> {
        let path = locate(name, search_path)?;
        let mut command = tokio::process::Command::new(&path);
        command.arg("--version").kill_on_drop(true).stdin(std::process::Stdio::null());
        let output = tokio::time::timeout(VERSION_LIMIT, command.output()).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no answer to --version within {VERSION_LIMIT:?}"))
        })??;
        let version = version_from(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the answer to --version is none of an OCI runtime")
        })?;
        let copied = path.clone();
        let sealed = tokio::task::spawn_blocking(move || sealed_copy(&copied)).await.ok().and_then(Result::ok);
        Ok(Self { path, version, sealed: sealed.flatten() })
    }

    /// Whether it takes a compiled system call filter as an annotation.
    pub(super) fn takes_compiled_filter(&self) -> bool {
        self.is_crun()
    }

    /// Whether it can be started before there is a container: nothing is done before `config.json` is read, and what is kept
    /// of that for later is copied from its path afterwards.
    pub(super) fn can_wait(&self) -> bool {
        self.is_crun()
    }

    fn is_crun(&self) -> bool {
        self.version.starts_with("crun://")
    }
}

fn locate(name: &Path, search_path: &str) -> io::Result<PathBuf> {
    if name.components().count() > 1 {
        return name.canonicalize();
    }
    let found = std::env::split_paths(search_path).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("not found in {search_path}")))
}

/// `crun://1.8.1` out of `crun version 1.8.1` and whatever follows.
fn version_from(output: &str) -> Option<String> {
    let mut words = output.lines().next()?.split_ascii_whitespace();
    let (name, middle, version) = (words.next()?, words.next()?, words.next()?);
    (middle.trim_end_matches(':') == "version").then(|| format!("{name}://{version}"))
}

fn sealed_copy(path: &Path) -> io::Result<Option<OwnedFd>> {
    let mut file = File::open(path)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic)?;
    if magic != *b"\x7fELF" {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or(path.as_os_str());
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know that flag, and execute without it.
    let copy = memfd_create(name, flags | MemfdFlags::EXEC).or_else(|_| memfd_create(name, flags))?;
    let mut copy = File::from(copy);
    io::Seek::rewind(&mut file)?;
    io::copy(&mut file, &mut copy)?;
    fcntl_add_seals(&copy, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(Some(copy.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_every_runtime() {
        let cases = [
            ("crun version 1.8.1\ncommit: f8a0\nspec: 1.0.0\n", Some("crun://1.8.1")),
            ("runc version 1.1.5+ds1\ncommit: 1\n", Some("runc://1.1.5+ds1")),
            ("youki version: 0.5.7\n", Some("youki://0.5.7")),
            ("ls (GNU coreutils) 9.1", None),
            ("", None),
        ];
        for (output, version) in cases {
            assert_eq!(version_from(output).as_deref(), version);
        }
    }

    #[test]
    fn a_name_is_looked_for_in_the_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tool"), "").unwrap();
        let search = format!("/nonexistent:{}", dir.path().display());
        assert_eq!(locate(Path::new("tool"), &search).unwrap(), dir.path().join("tool"));
        assert_eq!(locate(Path::new("none"), &search).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_copy_is_sealed_and_a_script_is_not_copied() {
        let me = std::env::current_exe().unwrap();
        let copy = sealed_copy(&me).unwrap().unwrap();
        assert!(rustix::fs::fcntl_get_seals(&copy).unwrap().contains(SealFlags::WRITE));
        assert_eq!(rustix::fs::fstat(&copy).unwrap().st_size, i64::try_from(me.metadata().unwrap().len()).unwrap());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("script"), "#!/bin/sh\n").unwrap();
        assert!(sealed_copy(&dir.path().join("script")).unwrap().is_none());
    }
}
