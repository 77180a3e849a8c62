//! What starts containers: the OCI runtime's program, or the monitor's where that does it by itself. Where it is, what it is,
//! and a sealed copy of it in memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// How long the runtime may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// The name in the place of a program's that has the monitor start containers by itself.
pub(super) const BUILT_IN: &str = "builtin";

/// The program.
#[derive(Debug)]
pub(super) struct Program {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Whether it is the monitor.
    pub(super) is_built_in: bool,
    /// `crun://1.8.1`.
    pub(super) version: String,
    /// A copy that nobody can write to. crun and runc make one for themselves at every start and execute themselves again if
    /// they do not run from one: it keeps a container from overwriting the host's runtime. None for a script, and where the
    /// kernel refuses.
    pub(super) sealed: Option<OwnedFd>,
}

impl Program {
    /// Finds the OCI runtime `name`, a path or a name to look for in `search_path`, and asks it for its version. The name
    /// [`BUILT_IN`] stands for `monitor`.
    pub(super) async fn find(name: &Path, search_path: &str, monitor: &Path) -> io::Result<Self> {
        if name == Path::new(BUILT_IN) {
            return Self::built_in(monitor).await;
        }
        let path = locate(name, search_path)?;
        let version = ask_version(&path).await?;
        let sealed = seal(&path).await.ok().flatten();
        Ok(Self { path, is_built_in: false, version, sealed })
    }

    /// The monitor, which runs from memory alone: in a container that it starts it is what `/proc/self/exe` leads to, which
    /// must be nothing that could be written to.
    async fn built_in(monitor: &Path) -> io::Result<Self> {
        let sealed = seal(monitor).await.and_then(|copy| copy.ok_or_else(|| io::ErrorKind::InvalidInput.into()));
        let copy = sealed.map_err(|err| in_memory("copy", monitor, &err))?;
        let version = ask_version(&in_proc(&copy)).await.map_err(|err| in_memory("execute", monitor, &err))?;
        Ok(Self { path: monitor.to_owned(), is_built_in: true, version, sealed: Some(copy) })
    }

    /// What to execute for the monitor: its sealed copy, where it starts containers by itself.
    pub(super) fn monitor(&self, path: &Path) -> PathBuf {
        self.sealed.as_ref().filter(|_| self.is_built_in).map_or_else(|| path.to_owned(), in_proc)
    }

    /// The sealed copy of the OCI runtime, for the monitor.
    pub(super) fn sealed_runtime(&self) -> Option<&OwnedFd> {
        self.sealed.as_ref().filter(|_| !self.is_built_in)
    }

    /// Whether it takes a compiled system call filter as an annotation.
    pub(super) fn takes_compiled_filter(&self) -> bool {
        self.is_crun() || self.is_built_in
    }

    /// Whether it can be started before there is a container. An OCI runtime can if nothing is done before `config.json` is
    /// read, and what is kept of that for later is copied from its path afterwards.
    pub(super) fn can_wait(&self) -> bool {
        self.is_crun() || self.is_built_in
    }

    fn is_crun(&self) -> bool {
        self.version.starts_with("crun://")
    }
}

fn in_proc(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

fn in_memory(verb: &str, monitor: &Path, err: &io::Error) -> io::Error {
    let remedy = "allow it to execute what lies in memory (memfd), or start with --runtime crun";
    io::Error::new(err.kind(), format!("{verb} {} in memory: {err}; {remedy}", monitor.display()))
}

async fn ask_version(path: &Path) -> io::Result<String> {
    let mut command = tokio::process::Command::new(path);
    command.arg("--version").kill_on_drop(true).stdin(std::process::Stdio::null());
    let output = tokio::time::timeout(VERSION_LIMIT, command.output()).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer to --version within {VERSION_LIMIT:?}"))
    })??;
    version_from(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer to --version is none of an OCI runtime"))
}

async fn seal(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = path.to_owned();
    match tokio::task::spawn_blocking(move || sealed_copy(&path)).await {
        Ok(sealed) => sealed,
        Err(err) => std::panic::resume_unwind(err.into_panic()),
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
