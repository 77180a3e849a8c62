//! The OCI runtime as a command: how it is started, what it must not see, and what it says when it fails.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use larder_monitor::files::{PID_FILE, REMOVED_FILE, RUNTIME_LOG_FILE};
use larder_monitor::{MonitorConfig, RuntimeCommand};
use rustix::fs::SealFlags;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde::Deserialize;

use crate::diagnostics::report;
use crate::sys;

/// Where the standard streams of a runtime's process go; `None` is nowhere.
#[derive(Debug, Default)]
pub(crate) struct Stdios {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// What becomes of the runtime's process when the monitor is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Survival {
    /// It does what it was started for.
    GoesOn,
    /// It ends: it waits for something that nobody would tell it any more.
    EndsWithUs,
}

fn stdio(fd: &Option<OwnedFd>) -> io::Result<Stdio> {
    fd.as_ref().map_or(Ok(Stdio::null()), |fd| fd.try_clone().map(Stdio::from))
}

/// The runtime for one container.
#[derive(Debug)]
pub(crate) struct Runtime {
    command: RuntimeCommand,
    id: String,
    /// A copy of the runtime in memory that nobody can write to. crun and runc otherwise make one for themselves and execute
    /// themselves again, at every start: it keeps a container from overwriting the host's runtime through `/proc`.
    sealed: Option<OwnedFd>,
    hidden_mounts: Vec<PathBuf>,
    dir: PathBuf,
    bundle: PathBuf,
}

impl Runtime {
    /// A runtime for the container of `config`. `offered` is used instead of the file if it is a sealed copy.
    pub(crate) fn new(dir: &Path, config: &MonitorConfig, command: &RuntimeCommand, offered: Option<OwnedFd>) -> Self {
        let sealed = offered.filter(|fd| {
            rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SEAL | SealFlags::WRITE))
        });
        Self {
            command: command.clone(),
            id: config.id.clone(),
            sealed,
            hidden_mounts: config.hidden_mounts.clone(),
            dir: dir.to_path_buf(),
            bundle: config.bundle.clone(),
        }
    }

    /// Starts the runtime's process that creates and starts the container, and gives its id.
    pub(crate) fn run(&self, stdios: Stdios, console: Option<&Path>, survival: Survival) -> io::Result<Pid> {
        let mut args: Vec<OsString> =
            vec!["run".into(), "--detach".into(), "--pid-file".into(), self.dir.join(PID_FILE).into_os_string()];
        args.extend(["--bundle".into(), self.bundle.clone().into_os_string()]);
        if let Some(socket) = console {
            args.extend(["--console-socket".into(), socket.as_os_str().to_owned()]);
        }
        args.push(self.id.clone().into());
        self.spawn(&args, stdios, survival)
    }

    /// Starts the runtime's process that ends whatever is left in the container and removes it.
    pub(crate) fn delete(&self) -> io::Result<Pid> {
        let args = ["delete".into(), "--force".into(), self.id.clone().into()];
        self.spawn(&args, Stdios::default(), Survival::GoesOn)
    }

    /// Called when the runtime's process that removes the container has ended: leaves a mark if it did. Its exit code does not
    /// tell, because it also complains about a container that is gone already; its state directory does.
    pub(crate) fn mark_removed(&self) {
        if self.command.root.join(&self.id).exists() {
            report(&"the runtime did not remove the container");
        } else {
            mark_removed(&self.dir);
        }
    }

    /// Where its program is.
    pub(crate) fn path(&self) -> &Path {
        &self.command.path
    }

    fn spawn(&self, args: &[OsString], stdios: Stdios, survival: Survival) -> io::Result<Pid> {
        let sealed = self.sealed.as_ref().map(|fd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())));
        let file = self.command.path.clone();
        let child = self.in_own_mounts(|| match sealed {
            // A host may forbid to execute what lies in memory only; the file on disk is then as good, only slower.
            Some(copy) => {
                self.execute(copy, args, &stdios, survival).or_else(|_| self.execute(file, args, &stdios, survival))
            }
            None => self.execute(file, args, &stdios, survival),
        })?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the runtime has no process id"))
    }

    fn execute(&self, program: PathBuf, args: &[OsString], stdios: &Stdios, survival: Survival) -> io::Result<Child> {
        let mut command = Command::new(program);
        command.arg0(self.command.path.file_name().unwrap_or(self.command.path.as_os_str()));
        command.arg("--root").arg(&self.command.root);
        command.arg("--log").arg(self.dir.join(RUNTIME_LOG_FILE)).args(["--log-format", "json"]);
        command.args(&self.command.options).args(args);
        command.stdin(stdio(&stdios.stdin)?).stdout(stdio(&stdios.stdout)?).stderr(stdio(&stdios.stderr)?);
        if survival == Survival::EndsWithUs {
            sys::end_with_us(&mut command);
        }
        command.spawn()
    }

    /// Calls `start` where the hidden mounts are not to be seen. What it starts stays there; the monitor itself comes back,
    /// because a copy of the host's mounts that lives as long as a container would keep every mount in it busy.
    fn in_own_mounts<T>(&self, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.hidden_mounts.is_empty() {
            return start();
        }
        let home = File::open("/proc/self/ns/mnt")?;
        sys::unshare(UnshareFlags::NEWNS)?;
        let started = self.hide().and_then(|()| start());
        move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Mount))?;
        started
    }

    fn hide(&self) -> io::Result<()> {
        // Downstream: what the host unmounts goes here too, and what is unmounted here stays on the host.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        for mount in &self.hidden_mounts {
            match unmount(mount, UnmountFlags::DETACH) {
                // Not mounted is as good as unmounted.
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }
}

/// Leaves a mark that nothing of the container is left but its files.
pub(crate) fn mark_removed(dir: &Path) {
    if let Err(err) = File::create(dir.join(REMOVED_FILE)) {
        report(&format_args!("create {REMOVED_FILE}: {err}"));
    }
}

/// One line of a runtime's log in JSON, as runc, crun and youki write it.
#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The reason for a failure out of the content of a runtime's log: the last error, on one line. `None` if it says nothing.
pub(crate) fn failure_reason(log: &str) -> Option<String> {
    let lines: Vec<LogLine> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let serious = |line: &&LogLine| matches!(line.level.as_str(), "error" | "fatal" | "panic");
    let last = lines.iter().rfind(serious).or(lines.last())?;
    let reason = last.msg.split_whitespace().collect::<Vec<_>>().join(" ");
    (!reason.is_empty()).then_some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_the_reason() {
        let crun = r#"{"msg":"executable file `/bin/nope` not found in $PATH: No such file or directory","level":"error","time":"2026-11-24T06:33:03.291415Z"}"#;
        assert_eq!(
            failure_reason(crun).unwrap(),
            "executable file `/bin/nope` not found in $PATH: No such file or directory"
        );
        let mixed = "{\"level\":\"warning\",\"msg\":\"odd\"}\n{\"level\":\"error\",\"msg\":\"first\"}\nnot json\n\
                     {\"level\":\"error\",\"msg\":\"second\\n  line\"}\n{\"level\":\"info\",\"msg\":\"bye\"}\n";
        assert_eq!(failure_reason(mixed).unwrap(), "second line");
        assert_eq!(failure_reason("{\"level\":\"warning\",\"msg\":\"odd\"}").unwrap(), "odd");
        for nothing in ["", "garbage", "{\"level\":\"error\",\"msg\":\" \"}"] {
            assert_eq!(failure_reason(nothing), None);
        }
    }
}
