//! The agent's side of a container's monitor: starting one, listening to it, and cleaning up after one that was killed.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use larder_monitor::files::{MONITOR_LOG_FILE, SOCKET_FILE};
use larder_monitor::wire::{self, Event, MAX_LINE, Request};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// How long cleaning up after a monitor may take. It has its own limits, which are shorter.
const COLLECT_LIMIT: Duration = Duration::from_secs(90);

/// The address of the socket in a run directory. A socket's path may have no more than 107 bytes, so it goes through the open
/// directory, however deep that lies.
fn socket_address(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd()))
}

/// How a monitor is executed.
#[derive(Debug, Clone, Copy)]
pub(super) struct MonitorProgram<'a> {
    /// What is executed.
    pub(super) path: &'a Path,
    /// A sealed copy of the runtime's program.
    pub(super) sealed_runtime: Option<&'a OwnedFd>,
}

/// Starts the monitor of the container in `run_dir`, whose configuration is written. Its socket is bound before it runs, so
/// that it can be connected to at once. Blocks for as long as it takes to execute a program.
pub(super) fn start(monitor: MonitorProgram<'_>, run_dir: &Path) -> io::Result<Child> {
    let socket = UnixListener::bind(socket_address(&File::open(run_dir)?))?;
    spawn(monitor, "run", run_dir, socket)
}

/// Starts a spare monitor, and gives the connection that keeps it: connected before it runs, so that there is no moment at
/// which it would outlive us.
pub(super) fn start_spare(
    monitor: MonitorProgram<'_>,
    run_dir: &Path,
) -> io::Result<(Child, std::os::unix::net::UnixStream)> {
    let dir = File::open(run_dir)?;
    let socket = UnixListener::bind(socket_address(&dir))?;
    let connection = std::os::unix::net::UnixStream::connect(socket_address(&dir))?;
    Ok((spawn(monitor, "spare", run_dir, socket)?, connection))
}

fn spawn(monitor: MonitorProgram<'_>, verb: &str, run_dir: &Path, socket: UnixListener) -> io::Result<Child> {
    let runtime = match monitor.sealed_runtime {
        Some(copy) => Stdio::from(copy.try_clone()?),
        None => Stdio::null(),
    };
    let mut command = command(monitor.path, verb, run_dir)?;
    command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(runtime).spawn()
}

/// Whether a process holds the socket in `run_dir`: the monitor, or what is about to become it. Blocks for a connection.
pub(super) fn is_at_work(run_dir: &Path) -> bool {
    let connect = || std::os::unix::net::UnixStream::connect(socket_address(&File::open(run_dir)?));
    // Only a process that holds the socket keeps the kernel from saying that nobody is there.
    !matches!(connect(), Err(err) if matches!(err.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
}

/// Ends and removes the container in `run_dir`, whose monitor is gone, and sees to it that there is an `exit.json`.
pub(super) async fn collect(monitor: &Path, run_dir: &Path) -> io::Result<()> {
    let mut command = command(monitor, "collect", run_dir)?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn()?;
    let status = tokio::time::timeout(COLLECT_LIMIT, child.wait()).await.map_err(io::Error::from)??;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("collecting the container ended with {status}: {}", last_words(run_dir))))
}

/// A monitor's command. Its environment is empty: what the agent's service manager says to the agent is not meant for a
/// runtime, which would act upon some of it.
fn command(monitor: &Path, verb: &str, run_dir: &Path) -> io::Result<Command> {
    let log = File::options().create(true).append(true).open(run_dir.join(MONITOR_LOG_FILE))?;
    let mut command = Command::new(monitor);
    command.arg0("larder-monitor").arg(verb).arg(run_dir).env_clear().current_dir("/").stderr(log);
    Ok(command)
}

/// The last line that a monitor wrote about itself.
pub(super) fn last_words(run_dir: &Path) -> String {
    let log = std::fs::read_to_string(run_dir.join(MONITOR_LOG_FILE)).unwrap_or_default();
    log.lines().last().unwrap_or("it said nothing").to_owned()
}

/// A connection to a monitor.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Connection {
    /// Connects to the monitor of the container in `run_dir`, and asks it to tell.
    pub(super) async fn open(run_dir: &Path) -> io::Result<Self> {
        let dir = File::open(run_dir)?;
        let mut stream = UnixStream::connect(socket_address(&dir)).await?;
        let request = wire::to_line(&Request::Watch).unwrap_or_default();
        stream.write_all(&request).await?;
        Ok(Self { stream: BufReader::with_capacity(1024, stream), line: Vec::new() })
    }

    /// The next event; `None` when the monitor has ended. Cancel safe: a line that was read in part stays in `self`.
    pub(super) async fn next(&mut self) -> io::Result<Option<Event>> {
        let limit = u64::try_from(MAX_LINE.saturating_sub(self.line.len())).unwrap_or(0);
        (&mut self.stream).take(limit).read_until(b'\n', &mut self.line).await?;
        if self.line.last() != Some(&b'\n') {
            // Either the end, or a line that no monitor sends.
            return Ok(None);
        }
        let event = wire::from_line(&self.line).map_err(io::Error::from);
        self.line.clear();
        event.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_the_socket_is_at_work() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_at_work(dir.path()), "no socket");
        let socket = UnixListener::bind(socket_address(&File::open(dir.path()).unwrap())).unwrap();
        assert!(is_at_work(dir.path()), "whether it has answered yet or not");
        drop(socket);
        assert!(!is_at_work(dir.path()), "the name of a socket that nobody holds");
    }
}
