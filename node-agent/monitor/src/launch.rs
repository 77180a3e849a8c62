//! The built-in launcher: starts a container's first process from its OCI specification, without an OCI runtime.
//!
//! What a runtime does for a container that nobody has asked anything special of is some eighty system calls. A program that
//! can do everything has to be executed, linked and configured for it first, which takes longer than the calls.
//!
//! The process is a child of the monitor. It is cloned into new process and mount namespaces, makes its surroundings from
//! within, and executes the container's program:
//!
//! ```text
//! monitor   clone ---- put it into its cgroups, open the gate ------------ report ends: it runs
//!             \                               \                          /
//! child        pod's namespaces -- root -------- mounts -- identity -- execute
//! ```
//!
//! Of the specification it knows what the agent writes, and refuses everything else by name. The container's limits are those
//! of the cgroups, which the agent has made.
//!
//! What keeps a container from what is the host's:
//! - The monitor runs from a sealed copy in memory, so that `/proc/self/exe` is nothing that could be overwritten.
//! - Sources on the host are opened before the root is changed, destinations are looked up afterwards: no link in an image or
//!   a volume can lead out of the container, since nothing else is there any more.
//! - Nothing is mounted into `/proc`, wherever a path leads there, so that what is hidden there cannot be uncovered.
//! - All descriptors but the three standard streams are closed with the execution.

mod child;
mod confinement;
mod devices;
mod program;
mod root;
mod spec;
mod streams;

use std::fs::{self, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use larder_monitor::Launch;
use larder_monitor::files::SPEC_FILE;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use self::spec::Spec;
use crate::console::receive_descriptor;
use crate::runtime::Stdios;
use crate::sys;

/// The file of a cgroup that lists its processes, and moves in those that are written into it.
const CGROUP_PROCS_FILE: &str = "cgroup.procs";
/// What the child reports once nothing is left but the execution.
const READY: u8 = 0;
/// The longest report that is read, in bytes.
const MAX_REPORT: u64 = 4096;

/// A container cannot be started, in words for whoever looks at the pod.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failure(String);

/// Says what was attempted when something fails.
trait OrFailure<T> {
    fn or_failure(self, action: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> OrFailure<T> for Result<T, E> {
    fn or_failure(self, action: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|err| Failure(format!("{}: {}", action(), err.into())))
    }
}

/// A container's first process on its way.
#[derive(Debug)]
pub(crate) struct Launched {
    pid: Pid,
    report: PipeReader,
    terminal: Option<UnixStream>,
    reported: Vec<u8>,
}

/// What has become of a [`Launched`].
#[derive(Debug)]
pub(crate) enum Progress {
    /// It is on its way.
    UnderWay,
    /// The container's program was executed.
    Runs,
    /// It will not be.
    Failed(String),
    /// The process has ended before it could say why, or is about to.
    Lost,
}

/// Starts the container whose specification is in `bundle`. Returns as soon as its process is in its cgroups; what becomes of
/// it is heard from [`Launched::progress`].
///
/// # Errors
/// When there is no such process, or none any more.
pub(crate) fn launch(bundle: &Path, launch: &Launch, stdios: Stdios) -> Result<Launched, Failure> {
    let bytes = fs::read(bundle.join(SPEC_FILE)).or_failure(|| format!("read {SPEC_FILE}"))?;
    let spec = Spec::parse(&bytes)?;
    let pipe = || io::pipe().or_failure(|| "make a pipe".into());
    let ((gate, opener), (report, reporter)) = (pipe()?, pipe()?);
    let mut opener = Some(opener);
    rustix::io::ioctl_fionbio(&report, true).or_failure(|| "set up a pipe".into())?;
    let (ours, theirs) = if spec.process.terminal {
        let (ours, theirs) = UnixStream::pair().or_failure(|| "make a socket".into())?;
        (Some(ours), Some(theirs))
    } else {
        (None, None)
    };
    let (oom_score_adj, cgroups) = (spec.process.oom_score_adj, launch.cgroups.clone());
    let pid = {
        let (child, opener) = (child::Child { spec, cgroups, streams: stdios, gate, terminal: theirs }, &mut opener);
        let become_container = move || {
            // Held by the monitor alone, so that its end ends the wait.
            drop(opener.take());
            report_failure(child, reporter);
        };
        sys::clone_container(become_container).or_failure(|| "clone a process".into())?
    };
    let mut launched = Launched { pid, report, terminal: ours, reported: Vec::new() };
    if let Err(failure) = place(pid, launch, oom_score_adj) {
        // A process that has failed by itself says why, which is also why it could not be placed.
        let words = launched.progress();
        launched.end();
        return Err(if let Progress::Failed(words) = words { Failure(words) } else { failure });
    }
    // Whoever does not wait any more has failed, and the report says why.
    drop(opener.iter_mut().try_for_each(|opener| opener.write_all(&[1])));
    Ok(launched)
}

/// The child's whole life before the container's: it comes back only when it has failed, and the monitor has been told.
fn report_failure(child: child::Child, mut reporter: PipeWriter) {
    let failure = child.run(&mut reporter);
    // Who does not hear that is gone.
    drop(reporter.write_all(failure.0.as_bytes()));
}

/// Puts the process into its cgroups, and says how soon it goes when memory is short.
fn place(pid: Pid, launch: &Launch, oom_score_adj: i32) -> Result<(), Failure> {
    let id = pid.as_raw_nonzero().to_string();
    let write = |path: PathBuf, value: &str| {
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .or_failure(|| format!("write {}", path.display()))
    };
    for cgroup in &launch.cgroups {
        write(cgroup.path.join(CGROUP_PROCS_FILE), &id)?;
    }
    write(format!("/proc/{id}/oom_score_adj").into(), &oom_score_adj.to_string())
}

impl Launched {
    /// The process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when there is progress.
    pub(crate) fn report(&self) -> &PipeReader {
        &self.report
    }

    /// What has become of it. Does not wait.
    pub(crate) fn progress(&mut self) -> Progress {
        let room = MAX_REPORT.saturating_sub(u64::try_from(self.reported.len()).unwrap_or(MAX_REPORT));
        match (&self.report).take(room).read_to_end(&mut self.reported) {
            Ok(_) => {}
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Progress::UnderWay,
            Err(err) => return Progress::Failed(format!("read the report of the container's process: {err}")),
        }
        match self.reported.split_first() {
            None => Progress::Lost,
            Some((&READY, [])) => Progress::Runs,
            Some((&READY, words)) => Progress::Failed(String::from_utf8_lossy(words).into_owned()),
            Some(_) => Progress::Failed(String::from_utf8_lossy(&self.reported).into_owned()),
        }
    }

    /// The terminal's other side, where the container has one. Once it runs it was sent.
    pub(crate) fn terminal(&mut self) -> Option<io::Result<OwnedFd>> {
        self.terminal.take().map(|socket| receive_descriptor(&socket))
    }

    /// Ends it, and takes what is left of it. For one that was not waited for.
    pub(crate) fn end(self) {
        let _ = kill_process(self.pid, Signal::KILL);
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}

/// The processes of a container whose monitor is gone.
///
/// # Errors
/// When its cgroups cannot be read.
pub(crate) fn processes(launch: &Launch) -> io::Result<Vec<i32>> {
    // Its processes are the same in all.
    let Some(cgroup) = launch.cgroups.first() else { return Ok(Vec::new()) };
    match fs::read_to_string(cgroup.path.join(CGROUP_PROCS_FILE)) {
        Ok(pids) => Ok(pids.lines().filter_map(|pid| pid.parse().ok()).collect()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(err) => Err(err),
    }
}
