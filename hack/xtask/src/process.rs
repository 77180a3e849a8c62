//! Processes that outlive the command that started them: started detached, found again and ended by their pid.
//!
//! A process named NAME leaves two files in the folder given: `NAME.pid` (pid and start time, so that a pid which the
//! kernel gave to somebody else is never taken for ours) and `NAME.log` (both outputs). Nothing here restarts a
//! process or waits for it to be useful; that is the caller's.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, pidfd_send_signal, waitpid,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How long a process gets to die of SIGKILL before that is called an error.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What can go wrong with a process of ours.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program is not there.
    #[error("find program {}", program.display())]
    NoProgram {
        /// Where it was looked for.
        program: PathBuf,
    },
    /// The program could not be started.
    #[error("start {name}")]
    Start {
        /// The process' name.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// A file of ours could not be read or written.
    #[error("access {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A signal could not be sent, or the end not waited for.
    #[error("end {name} (pid {pid})")]
    Stop {
        /// The process' name.
        name: String,
        /// Its pid.
        pid: i32,
        /// The cause.
        source: io::Error,
    },
}

/// A program to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What the process is called; names its files.
    pub name: String,
    /// The folder of its pid file and log.
    pub dir: PathBuf,
    /// The program, as a path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables on top of this process' own environment.
    pub env: Vec<(String, String)>,
}

impl Spec {
    /// A program without arguments.
    #[must_use]
    pub fn new(name: &str, dir: &Path, program: impl Into<PathBuf>) -> Self {
        Self { name: name.to_owned(), dir: dir.to_owned(), program: program.into(), args: Vec::new(), env: Vec::new() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds a flag and its value as two arguments.
    #[must_use]
    pub fn flag(self, name: &str, value: impl std::fmt::Display) -> Self {
        self.arg(name).arg(value.to_string())
    }

    /// Adds a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Tells two commands apart, and a program from its rebuilt self: a running process with another fingerprint than
    /// its spec is out of date.
    fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let built = fs::metadata(&self.program).and_then(|meta| meta.modified()).ok();
        hash.update(format!("{:?}\n{:?}\n{:?}\n{built:?}", self.program, self.args, self.env));
        hex::encode(hash.finalize())
    }
}

/// What the pid file holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    pid: i32,
    /// Ticks after boot, field 22 of /proc/PID/stat.
    start_time: u64,
    fingerprint: String,
}

/// A process that was started here, by this or an earlier run.
#[derive(Debug, Clone)]
pub struct Process {
    name: String,
    dir: PathBuf,
    record: Record,
}

/// Starts the program unless it runs already just as the spec says; one that runs differently is ended and started anew.
///
/// # Errors
/// When the old one cannot be ended or the new one not started.
pub fn ensure(spec: &Spec, grace: Duration) -> Result<Process, ProcessError> {
    if let Some(running) = find(&spec.dir, &spec.name) {
        if running.record.fingerprint == spec.fingerprint() {
            return Ok(running);
        }
        running.stop(grace)?;
    }
    start(spec)
}

/// Starts the program in a session of its own.
///
/// # Errors
/// When the program is missing, or its files cannot be written.
pub fn start(spec: &Spec) -> Result<Process, ProcessError> {
    if !spec.program.exists() {
        return Err(ProcessError::NoProgram { program: spec.program.clone() });
    }
    let file_error = |path: &Path| {
        let path = path.to_owned();
        move |source| ProcessError::File { path, source }
    };
    fs::create_dir_all(&spec.dir).map_err(file_error(&spec.dir))?;
    let log_path = spec.dir.join(format!("{}.log", spec.name));
    let log = File::options().create(true).append(true).open(&log_path).map_err(file_error(&log_path))?;
    let start_error = |source| ProcessError::Start { name: spec.name.clone(), source };
    // setsid(1) replaces itself with the program, so the child's pid is the program's.
    let child = Command::new("setsid")
        .arg(&spec.program)
        .args(&spec.args)
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(start_error)?)
        .stderr(log)
        .spawn()
        .map_err(start_error)?;
    let pid = i32::try_from(child.id()).map_err(|_| start_error(io::ErrorKind::InvalidData.into()))?;
    // Read even if it has ended already: until it is reaped, the kernel knows it.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(start_error)?;
    let (_, start_time) = parse_stat(&stat).ok_or_else(|| start_error(io::ErrorKind::InvalidData.into()))?;
    let record = Record { pid, start_time, fingerprint: spec.fingerprint() };
    let process = Process { name: spec.name.clone(), dir: spec.dir.clone(), record };
    let text = serde_json::to_vec(&process.record).map_err(|err| start_error(err.into()))?;
    fs::write(process.pid_file(), text).map_err(file_error(&process.pid_file()))?;
    Ok(process)
}

/// The process of this name, if one was started in this folder and still runs.
#[must_use]
pub fn find(dir: &Path, name: &str) -> Option<Process> {
    let text = fs::read(dir.join(format!("{name}.pid"))).ok()?;
    let process = Process { name: name.to_owned(), dir: dir.to_owned(), record: serde_json::from_slice(&text).ok()? };
    process.is_running().then_some(process)
}

/// Every process that was started in this folder and still runs, by name.
#[must_use]
pub fn all(dir: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".pid").map(str::to_owned))
        .collect();
    names.sort();
    names.iter().filter_map(|name| find(dir, name)).collect()
}

impl Process {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.record.pid
    }

    /// How it was started, as the kernel tells it, but for variables: it has those of whoever started it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn spec(&self) -> Result<Spec, ProcessError> {
        let path = PathBuf::from(format!("/proc/{}/cmdline", self.record.pid));
        let text = fs::read(&path).map_err(|source| ProcessError::File { path: path.clone(), source })?;
        let mut words = text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let program = words.next().unwrap_or_default();
        let mut args: Vec<String> = words.collect();
        // Each word ends with a zero, the last too.
        args.pop();
        Ok(Spec { args, ..Spec::new(&self.name, &self.dir, program) })
    }

    /// Where its outputs go.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    /// The last lines of its outputs, for an error message.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(self.log_file()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Whether it still runs; a zombie does not.
    #[must_use]
    pub fn is_running(&self) -> bool {
        start_time(self.record.pid) == Some(self.record.start_time)
    }

    /// Sends a signal. A process that is gone is not an error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        let Some(pidfd) = self.open()? else { return Ok(()) };
        self.send(&pidfd, signal)
    }

    /// Ends it: SIGTERM, and after the grace time SIGKILL. Comes back when it is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self, grace: Duration) -> Result<(), ProcessError> {
        self.end(Signal::TERM, grace)
    }

    /// Ends it with SIGKILL and comes back when it is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&self) -> Result<(), ProcessError> {
        self.end(Signal::KILL, KILL_DEADLINE)
    }

    fn end(&self, first: Signal, grace: Duration) -> Result<(), ProcessError> {
        if let Some(pidfd) = self.open()? {
            self.send(&pidfd, first)?;
            if !self.wait(&pidfd, grace)? {
                self.send(&pidfd, Signal::KILL)?;
                if !self.wait(&pidfd, KILL_DEADLINE)? {
                    return Err(self.stop_error(io::ErrorKind::TimedOut.into()));
                }
            }
            // It is a zombie when it is our own child; for others this does nothing.
            if let Some(pid) = Pid::from_raw(self.record.pid) {
                let _reaped = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
        match fs::remove_file(self.pid_file()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ProcessError::File { path: self.pid_file(), source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Waits until it ends, at most this long; false when it did not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait_for_end(&self, at_most: Duration) -> Result<bool, ProcessError> {
        self.open()?.map_or(Ok(true), |pidfd| self.wait(&pidfd, at_most))
    }

    /// A handle of the process; the start time is compared after it is open, so it cannot be somebody else's.
    fn open(&self) -> Result<Option<OwnedFd>, ProcessError> {
        let Some(pid) = Pid::from_raw(self.record.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(self.is_running().then_some(pidfd)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(errno) => Err(self.stop_error(errno.into())),
        }
    }

    fn send(&self, pidfd: &OwnedFd, signal: Signal) -> Result<(), ProcessError> {
        match pidfd_send_signal(pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(self.stop_error(errno.into())),
        }
    }

    fn wait(&self, pidfd: &OwnedFd, at_most: Duration) -> Result<bool, ProcessError> {
        let timeout = Timespec::try_from(at_most).map_err(|_| self.stop_error(io::ErrorKind::InvalidInput.into()))?;
        let ready = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout));
        Ok(ready.map_err(|errno| self.stop_error(errno.into()))? > 0)
    }

    fn stop_error(&self, source: io::Error) -> ProcessError {
        ProcessError::Stop { name: self.name.clone(), pid: self.record.pid, source }
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join(format!("{}.pid", self.name))
    }
}

/// Sends SIGKILL to every process of a process group.
///
/// # Errors
/// When the kernel refuses; a group that is gone is not an error.
pub fn kill_group(leader: i32) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(leader) else { return Ok(()) };
    match kill_process_group(pid, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// When the process started, in ticks after boot; none when it is gone or a zombie.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    let (state, start_time) = parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    (!matches!(state, 'Z' | 'X')).then_some(start_time)
}

/// Fields 3 and 22 of a stat line (proc(5)), state and start time; the name in field 2 may itself hold spaces and
/// parentheses.
fn parse_stat(line: &str) -> Option<(char, u64)> {
    let (_, rest) = line.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path, seconds: &str) -> Spec {
        Spec::new("sleeper", dir, "/bin/sleep").arg(seconds)
    }

    #[test]
    fn a_process_is_found_again_and_ended() {
        let dir = tempfile::tempdir().expect("make a folder");
        let started = start(&sleeper(dir.path(), "300")).expect("start");
        let found = find(dir.path(), "sleeper").expect("find it again");
        assert_eq!(found.pid(), started.pid());
        found.stop(Duration::from_secs(5)).expect("stop");
        assert!(!started.is_running());
        assert!(find(dir.path(), "sleeper").is_none());
    }

    #[test]
    fn a_reused_pid_is_never_taken_for_ours() {
        let dir = tempfile::tempdir().expect("make a folder");
        let mut stranger = Command::new("/bin/sleep").arg("300").spawn().expect("start a stranger");
        let record = serde_json::json!({"pid": stranger.id(), "start_time": 1, "fingerprint": ""});
        fs::write(dir.path().join("sleeper.pid"), record.to_string()).expect("write the pid file");
        assert!(find(dir.path(), "sleeper").is_none());
        assert!(stranger.try_wait().expect("look at the stranger").is_none());
        stranger.kill().expect("end the stranger");
        stranger.wait().expect("reap the stranger");
    }

    #[test]
    fn ensure_keeps_the_same_command_and_replaces_another() {
        let dir = tempfile::tempdir().expect("make a folder");
        let grace = Duration::from_secs(5);
        let first = ensure(&sleeper(dir.path(), "300"), grace).expect("start");
        let same = ensure(&sleeper(dir.path(), "300"), grace).expect("keep");
        assert_eq!(first.pid(), same.pid());
        let other = ensure(&sleeper(dir.path(), "301"), grace).expect("replace");
        assert_ne!(first.pid(), other.pid());
        assert!(!first.is_running());
        other.kill().expect("kill");
    }

    #[test]
    fn a_program_that_ends_at_once_is_started_and_not_running() {
        let dir = tempfile::tempdir().expect("make a folder");
        let started = start(&Spec::new("short", dir.path(), "/bin/true")).expect("start");
        assert!(started.wait_for_end(Duration::from_secs(5)).expect("wait"));
        assert!(find(dir.path(), "short").is_none());
    }

    #[test]
    fn stat_lines() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 99";
        assert_eq!(parse_stat(&format!("7 (a) b) {fields}")), Some(('S', 4242)));
        assert_eq!(parse_stat("7 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }
}
