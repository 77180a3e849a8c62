//! The life of one container, from the runtime's start to its removal.
//!
//! ```text
//! Spare --there is a container--> Starting, Launching
//! Starting --runtime ends well--> Running --container ends--> Draining --streams end--> Deleting --runtime ends--> (end)
//!     |                                                                                     ^
//!     +--runtime fails or takes too long----------------------------------------------------+
//! ```
//!
//! `exit.json` is written, and everybody who watches is told, on the way into `Deleting`. The process ends after it, which
//! closes the socket: whoever sees that knows that the runtime has let go of the container.
//!
//! Without a runtime, the monitor's own launcher starts the container: `Launching` takes the place of `Starting`, and nothing
//! is left to delete.
//!
//! A spare has its runtime wait for a container that is not known yet. Whoever it is kept for stays connected; when nobody is
//! any more and no container came, both end.

mod start;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder_monitor::cri_log::Stream;
use larder_monitor::files::{self, CONFIG_FILE, EXIT_FILE, START_ERROR_EXIT_CODE, STATE_FILE, process_start_time};
use larder_monitor::wire::Event;
use larder_monitor::{ContainerState, Exit, FileError, MonitorConfig, StartError, Starter, UnixNanos};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, set_child_subreaper, wait};

use crate::collect::CollectError;
use crate::console::ConsoleSocket;
use crate::diagnostics::{Chain, report};
use crate::launch::Launched;
use crate::log_writer::LogWriter;
use crate::outputs::Outputs;
use crate::runtime::{Runtime, mark_removed};
use crate::server::Server;
use crate::{clock, memory, sys};

/// How long the streams may stay open after the container's first process has ended. They end with it unless a process outside
/// of the container's own process namespace holds them.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How long the runtime may take to remove the container. After it the agent has to.
const DELETE_LIMIT: Duration = Duration::from_secs(30);
/// How many children may end while the runtime starts the container before the rest is forgotten. One of them can be the
/// container's first process.
const MAX_EARLY_ENDS: usize = 256;

/// The monitor cannot do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    /// A file of the run directory.
    #[error("use run directory")]
    File(#[from] FileError),
    /// There is nothing to do.
    #[error("find {CONFIG_FILE} in {}", dir.display())]
    NoConfig { dir: PathBuf },
    /// A container whose monitor died could not be cleaned up.
    #[error("collect container")]
    Collect(#[source] CollectError),
    /// The kernel refuses something the monitor cannot live without.
    #[error("{what}")]
    System { what: &'static str, source: io::Error },
}

/// Starts the container that `dir` describes, now or when it comes to be known, and looks after it until it is gone.
pub(crate) fn run(dir: &Path) -> Result<(), MonitorError> {
    let system = |what| move |source| MonitorError::System { what, source };
    let signals = sys::signal_fd().map_err(system("block signals"))?;
    let (socket, offered) = take_standard_streams().map_err(system("take over standard streams"))?;
    // Alone in its session, so that nothing that happens to the agent's terminal or group reaches it. It fails only where
    // this is so already.
    let _ = rustix::process::setsid();
    set_child_subreaper(Some(rustix::process::getpid())).map_err(|err| system("adopt orphans")(err.into()))?;
    let config: MonitorConfig =
        files::read_json(dir, CONFIG_FILE)?.ok_or_else(|| MonitorError::NoConfig { dir: dir.to_path_buf() })?;
    let mut monitor = Monitor::new(dir, config, signals, socket, offered);
    monitor.start();
    while !matches!(monitor.phase, Phase::Ended) {
        monitor.turn().map_err(system("wait for events"))?;
    }
    Ok(())
}

/// Takes the socket and the sealed runtime that came as standard input and output, and puts nothing in their place.
fn take_standard_streams() -> io::Result<(OwnedFd, OwnedFd)> {
    let (socket, offered) = (io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?);
    let nothing = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    Ok((socket, offered))
}

#[derive(Debug)]
enum Phase {
    /// A container is waited for, also by the runtime where there is one.
    Spare { runtime: Option<Pid> },
    /// The container's first process is on its way. Its output is not read yet, as in `Starting`.
    Launching { launched: Launched, until: Instant },
    /// The runtime is at work. Its output is not read yet: until the container runs, it is the runtime's own, which says in
    /// its log what it has to say.
    Starting { runtime: Pid, until: Instant, late: bool },
    /// The container runs.
    Running { pid: Pid },
    /// The container has ended, its streams may hold something yet.
    Draining { exit: Exit, until: Instant },
    /// The runtime removes the container.
    Deleting { runtime: Pid, until: Instant },
    /// Nothing is left to do.
    Ended,
}

#[derive(Debug)]
struct Monitor {
    dir: PathBuf,
    config: MonitorConfig,
    /// None where the container is started without one.
    runtime: Option<Runtime>,
    signals: OwnedFd,
    server: Server,
    console: Option<ConsoleSocket>,
    outputs: Outputs,
    log: LogWriter,
    /// The other end of an open standard input. Nothing is written to it yet; it only must not close.
    stdin: Option<OwnedFd>,
    phase: Phase,
    /// Whether the runtime was started before the container was known.
    was_spare: bool,
    early_ends: Vec<(Pid, WaitStatus, UnixNanos)>,
    /// What a new watcher is told.
    known: Vec<Event>,
}

/// What woke the monitor.
#[derive(Debug, Default)]
struct Ready {
    signals: bool,
    listener: bool,
    console: bool,
    clients: Vec<bool>,
    outputs: Vec<bool>,
}

impl Monitor {
    fn new(dir: &Path, config: MonitorConfig, signals: OwnedFd, socket: OwnedFd, offered: OwnedFd) -> Self {
        Self {
            dir: dir.to_path_buf(),
            runtime: match &config.starter {
                Starter::Runtime(command) => Some(Runtime::new(dir, &config, command, Some(offered))),
                Starter::Launch(_) => None,
            },
            signals,
            server: Server::new(socket),
            console: None,
            outputs: Outputs::new(),
            log: LogWriter::new(config.log.clone()),
            stdin: None,
            phase: Phase::Ended,
            was_spare: config.spare,
            early_ends: Vec::new(),
            known: vec![Event::Starting],
            config,
        }
    }

    /// Waits for the next event or deadline, and handles it.
    fn turn(&mut self) -> io::Result<()> {
        let ready = self.wait()?;
        let now = clock::now();
        if ready.console {
            self.receive_terminal();
        }
        self.server.serve(&ready.clients, &self.known);
        self.look_for_container();
        if ready.listener {
            self.server.accept();
        }
        if !ready.outputs.is_empty() {
            self.outputs.read(&ready.outputs, &mut self.log, now);
        }
        // Before children are taken: a container that has ended already is one that ran.
        self.follow_launch(now);
        if ready.signals {
            self.reap(now);
        }
        self.check_phase();
        Ok(())
    }

    fn wait(&self) -> io::Result<Ready> {
        let clients: Vec<BorrowedFd<'_>> = self.server.client_fds().collect();
        let (outputs, launched): (Vec<BorrowedFd<'_>>, _) = match &self.phase {
            Phase::Spare { .. } | Phase::Starting { .. } => (Vec::new(), None),
            Phase::Launching { launched, .. } => (Vec::new(), Some(launched.report().as_fd())),
            Phase::Running { .. } | Phase::Draining { .. } | Phase::Deleting { .. } | Phase::Ended => {
                (self.outputs.fds().collect(), None)
            }
        };
        let (listener, console) = (self.server.listener_fd(), self.console.as_ref().map(AsFd::as_fd));
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(4 + clients.len() + outputs.len());
        let single = [launched, Some(self.signals.as_fd()), listener, console];
        let all = single.iter().flatten().chain(&clients).chain(&outputs);
        fds.extend(all.map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let timeout = self.deadline().map(|until| remaining(until, clock::instant()));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(err) => return Err(err.into()),
        }
        let mut flags = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || flags.next().unwrap_or(false);
        if launched.is_some() {
            // It is looked at in any case.
            next();
        }
        Ok(Ready {
            signals: next(),
            listener: listener.is_some() && next(),
            console: console.is_some() && next(),
            clients: clients.iter().map(|_| next()).collect(),
            outputs: outputs.iter().map(|_| next()).collect(),
        })
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Spare { .. } | Phase::Starting { late: true, .. } | Phase::Running { .. } | Phase::Ended => None,
            Phase::Starting { until, .. }
            | Phase::Launching { until, .. }
            | Phase::Draining { until, .. }
            | Phase::Deleting { until, .. } => Some(*until),
        }
    }

    fn receive_terminal(&mut self) {
        let Some(console) = self.console.take() else { return };
        match console.receive() {
            Ok(terminal) => self.outputs.add(Stream::Stdout, terminal),
            Err(err) => report(&format_args!("receive the terminal from the runtime: {err}")),
        }
    }

    /// Takes every child that has ended: the runtime, the container, and orphans that were handed to us.
    fn reap(&mut self, now: UnixNanos) {
        // What the descriptor holds is of no interest, it only has to be empty before the children are looked at.
        let mut infos = [0_u8; 8 * 128];
        while rustix::io::read(&self.signals, &mut infos[..]).is_ok_and(|count| count == infos.len()) {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.child_ended(pid, status, now);
        }
    }

    fn child_ended(&mut self, pid: Pid, status: WaitStatus, now: UnixNanos) {
        // It may have had a container since this turn began.
        self.look_for_container();
        match &self.phase {
            Phase::Starting { runtime, late, .. } if *runtime == pid => {
                let late = *late;
                self.runtime_ended(status, late, now);
            }
            // Somebody has ended it, and without it this is of no use.
            Phase::Spare { runtime } if *runtime == Some(pid) => self.phase = Phase::Ended,
            Phase::Starting { .. } if self.early_ends.len() < MAX_EARLY_ENDS => {
                self.early_ends.push((pid, status, now))
            }
            Phase::Launching { launched, .. } if launched.pid() == pid => self.early_ends.push((pid, status, now)),
            Phase::Running { pid: container } if *container == pid => self.container_ended(status, now),
            Phase::Deleting { runtime, .. } if *runtime == pid => {
                self.runtime.iter().for_each(Runtime::mark_removed);
                self.phase = Phase::Ended;
            }
            Phase::Spare { .. }
            | Phase::Starting { .. }
            | Phase::Launching { .. }
            | Phase::Running { .. }
            | Phase::Draining { .. }
            | Phase::Deleting { .. }
            | Phase::Ended => {}
        }
    }

    fn container_runs(&mut self, pid: Pid, now: UnixNanos) {
        let raw = pid.as_raw_nonzero().get();
        let state = ContainerState {
            id: self.config.id.clone(),
            pid: raw,
            // A container that has ended already is none that anybody will have to find again.
            start_time: process_start_time(raw).unwrap_or(0),
            monitor_pid: rustix::process::getpid().as_raw_nonzero().get(),
            started_at: now,
        };
        self.keep(STATE_FILE, &state);
        self.announce(Event::Started(state));
        self.phase = Phase::Running { pid };
        let early_ends = std::mem::take(&mut self.early_ends);
        if let Some((_, status, at)) = early_ends.into_iter().find(|(ended, ..)| *ended == pid) {
            self.container_ended(status, at);
        }
    }

    fn container_ended(&mut self, status: WaitStatus, at: UnixNanos) {
        let signal = status.terminating_signal();
        let started_at = self.known.iter().find_map(|event| match event {
            Event::Started(state) => Some(state.started_at),
            Event::Starting | Event::Exited(_) => None,
        });
        let exit = Exit {
            id: self.config.id.clone(),
            exit_code: signal.map_or_else(|| status.exit_status().unwrap_or(0), |signal| 128 + signal),
            signal,
            // Asked now: when the runtime removes the container, the count goes with it.
            oom_killed: memory::ran_out(self.config.memory_cgroup.as_deref()),
            started_at,
            // The end may have been seen before the runtime told us that it had begun.
            finished_at: started_at.map_or(at, |started| started.max(at)),
            start_error: None,
            lost: false,
        };
        self.phase = Phase::Draining { exit, until: clock::instant() + DRAIN_LIMIT };
    }

    fn start_failed(&mut self, message: String) {
        // Nothing of what was written so far came from the container.
        self.outputs = Outputs::new();
        self.finish(Exit {
            id: self.config.id.clone(),
            exit_code: START_ERROR_EXIT_CODE,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: clock::now(),
            start_error: Some(StartError { message }),
            lost: false,
        });
    }

    /// Moves on where it takes no more event to do so, or where a deadline has passed.
    fn check_phase(&mut self) {
        let now = clock::instant();
        match &mut self.phase {
            Phase::Spare { runtime } if self.server.has_no_clients() => {
                // It has done nothing yet.
                let _ = runtime.map(|runtime| kill_process(runtime, Signal::KILL));
                self.phase = Phase::Ended;
            }
            Phase::Starting { runtime, until, late } if *until <= now && !*late => {
                *late = true;
                // Its end arrives as that of any child.
                let _ = kill_process(*runtime, Signal::KILL);
            }
            Phase::Draining { exit, until } if *until <= now || self.outputs.all_ended() => {
                let exit = exit.clone();
                self.outputs.close(&mut self.log, clock::now());
                self.finish(exit);
            }
            Phase::Deleting { runtime, until } if *until <= now => {
                report(&"the runtime does not remove the container, leaving it to the agent");
                let _ = kill_process(*runtime, Signal::KILL);
                self.phase = Phase::Ended;
            }
            Phase::Spare { .. }
            | Phase::Starting { .. }
            | Phase::Launching { .. }
            | Phase::Running { .. }
            | Phase::Draining { .. }
            | Phase::Deleting { .. }
            | Phase::Ended => {}
        }
    }

    /// Keeps the exit, tells it, and has the runtime remove the container.
    fn finish(&mut self, exit: Exit) {
        self.keep(EXIT_FILE, &exit);
        self.announce(Event::Exited(exit));
        let Some(runtime) = &self.runtime else {
            // Everything of it went with its first process.
            mark_removed(&self.dir);
            self.phase = Phase::Ended;
            return;
        };
        self.phase = match runtime.delete() {
            Ok(runtime) => Phase::Deleting { runtime, until: clock::instant() + DELETE_LIMIT },
            Err(err) => {
                report(&format_args!("execute {}: {err}", runtime.path().display()));
                Phase::Ended
            }
        };
    }

    fn keep<T: serde::Serialize>(&self, name: &str, value: &T) {
        if let Err(err) = files::write_json(&self.dir, name, value) {
            report(&Chain(&err));
        }
    }

    fn announce(&mut self, event: Event) {
        self.server.tell(&event);
        self.known.retain(|known| *known != Event::Starting);
        self.known.push(event);
    }
}

/// How long it is from `now` to `until`, as poll wants it.
fn remaining(until: Instant, now: Instant) -> Timespec {
    let left = until.saturating_duration_since(now);
    // A deadline is some minutes away at most, so neither value can be cut.
    Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) }
}
