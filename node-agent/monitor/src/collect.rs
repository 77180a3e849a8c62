//! What has to be done for a container whose monitor is gone: end it, record that nobody knows how it ended, remove it from
//! the runtime. Harmless to repeat, and after a monitor that got as far as `exit.json` only the removal is left.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_monitor::files::{self, CONFIG_FILE, EXIT_FILE, KILLED_EXIT_CODE, STATE_FILE, process_start_time};
use larder_monitor::{ContainerState, Exit, FileError, MonitorConfig, Starter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, pidfd_send_signal, waitpid};

use crate::diagnostics::report;
use crate::runtime::{Runtime, mark_removed};
use crate::{clock, launch, memory};

/// How long a killed process may take to end, and the runtime to remove the container.
const LIMIT: Duration = Duration::from_secs(30);

/// The container could not be collected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    /// A file of the run directory.
    #[error("use run directory")]
    File(#[from] FileError),
    /// There is nothing to collect.
    #[error("find {CONFIG_FILE} in {}", dir.display())]
    NoConfig { dir: PathBuf },
    /// The container's process does not go away.
    #[error("end process {pid}")]
    Kill { pid: i32, source: io::Error },
    /// The runtime cannot be used.
    #[error("remove the container with {}", runtime.display())]
    Delete { runtime: PathBuf, source: io::Error },
    /// What is left in its cgroups does not go away.
    #[error("end the container's processes")]
    Cgroup(#[source] io::Error),
}

/// Collects the container that `dir` describes.
pub(crate) fn collect(dir: &Path) -> Result<(), crate::monitor::MonitorError> {
    collect_container(dir).map_err(crate::monitor::MonitorError::Collect)
}

fn collect_container(dir: &Path) -> Result<(), CollectError> {
    let config: MonitorConfig =
        files::read_json(dir, CONFIG_FILE)?.ok_or_else(|| CollectError::NoConfig { dir: dir.to_path_buf() })?;
    let known: Option<Exit> = files::read_json(dir, EXIT_FILE)?;
    let state: Option<ContainerState> = files::read_json(dir, STATE_FILE)?;
    if let Some(state) = &state {
        kill(state).map_err(|source| CollectError::Kill { pid: state.pid, source })?;
    }
    let oom_killed = memory::ran_out(config.memory_cgroup.as_deref());
    match &config.starter {
        Starter::Runtime(command) => {
            let runtime = Runtime::new(dir, &config, command, None);
            delete(&runtime).map_err(|source| CollectError::Delete { runtime: command.path.clone(), source })?;
        }
        Starter::Launch(launch) => {
            // Where the monitor had no time to say who its first process is.
            launch::processes(launch)
                .and_then(|pids| pids.into_iter().try_for_each(end))
                .map_err(CollectError::Cgroup)?;
            mark_removed(dir);
        }
    }
    if known.is_none() {
        let exit = Exit {
            id: config.id,
            exit_code: KILLED_EXIT_CODE,
            signal: None,
            oom_killed,
            started_at: state.map(|state| state.started_at),
            finished_at: clock::now(),
            start_error: None,
            lost: true,
        };
        files::write_json(dir, EXIT_FILE, &exit)?;
    }
    Ok(())
}

/// Ends the container's first process, and with it, by its process namespace, all others.
fn kill(state: &ContainerState) -> io::Result<()> {
    let Some(process) = open(state.pid)? else { return Ok(()) };
    // Compared once the descriptor is held: from here on the id cannot come to mean another process.
    if process_start_time(state.pid) != Some(state.start_time) {
        return Ok(());
    }
    kill_and_wait(&process)
}

/// Ends a process of the container's cgroups. Who is not there is no error.
fn end(pid: i32) -> io::Result<()> {
    open(pid)?.map_or(Ok(()), |process| kill_and_wait(&process))
}

fn open(pid: i32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

fn kill_and_wait(process: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) => await_end(process),
        Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// Waits for the end of the process behind a pidfd.
fn await_end(process: &OwnedFd) -> io::Result<()> {
    let until = clock::instant() + LIMIT;
    loop {
        let left = until.saturating_duration_since(clock::instant());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

/// Has the runtime remove the container. A runtime that does not know it says so by its exit code, which is as good.
fn delete(runtime: &Runtime) -> io::Result<()> {
    let pid = runtime.delete()?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let ended = await_end(&process);
    if ended.is_err() {
        report(&"the runtime does not remove the container");
        kill_process(pid, Signal::KILL)?;
    }
    waitpid(Some(pid), WaitOptions::empty())?;
    runtime.mark_removed();
    ended
}
