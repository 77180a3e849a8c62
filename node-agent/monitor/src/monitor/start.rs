//! How the container of a monitor comes to run: by the monitor's own launcher, or by a runtime; at once, or once there is one.

use std::io;
use std::time::{Duration, Instant};

use larder_monitor::cri_log::Stream;
use larder_monitor::files::{self, CONFIG_FILE, FED_FILE, PID_FILE, RUNTIME_LOG_FILE};
use larder_monitor::{Launch, MonitorConfig, Starter, UnixNanos};
use rustix::process::{Pid, WaitStatus};

use super::{Monitor, Phase};
use crate::console::ConsoleSocket;
use crate::diagnostics::{Chain, report};
use crate::launch::Progress;
use crate::log_writer::LogWriter;
use crate::runtime::{Stdios, Survival, failure_reason};
use crate::{clock, launch, memory, outputs};

impl Monitor {
    /// Starts the container, or what waits for one. Whatever fails has an end as the outcome.
    pub(super) fn start(&mut self) {
        if !self.config.spare {
            self.open_log();
        }
        match self.config.starter.clone() {
            Starter::Launch(_) if self.config.spare => self.phase = Phase::Spare { runtime: None },
            Starter::Launch(launch) => self.launch(&launch),
            Starter::Runtime(command) => match self.start_runtime() {
                Ok(runtime) if self.config.spare => self.phase = Phase::Spare { runtime: Some(runtime) },
                Ok(runtime) => self.phase = self.starting(runtime),
                Err(err) => {
                    let message = format!("execute {}: {err}", command.path.display());
                    // Without a container there is nobody to whom it could be told.
                    if self.config.spare { report(&message) } else { self.start_failed(message) }
                }
            },
        }
    }

    fn open_log(&mut self) {
        if let Err(err) = self.log.open() {
            report(&format_args!("open log {}: {err}", self.config.log.path.display()));
        }
    }

    fn starting(&self, runtime: Pid) -> Phase {
        Phase::Starting { runtime, until: self.start_deadline(), late: false }
    }

    fn start_deadline(&self) -> Instant {
        clock::instant() + Duration::from_millis(self.config.start_timeout_ms)
    }

    /// Starts the container without a runtime.
    fn launch(&mut self, launch: &Launch) {
        let stdios = if self.config.terminal { Ok(Stdios::default()) } else { self.open_streams() };
        let stdios = match stdios {
            Ok(stdios) => stdios,
            Err(err) => return self.start_failed(format!("make a pipe: {err}")),
        };
        match launch::launch(&self.config.bundle, launch, stdios) {
            Ok(launched) => self.phase = Phase::Launching { launched, until: self.start_deadline() },
            Err(failure) => self.start_failed(failure.to_string()),
        }
    }

    /// Looks how far the container's first process has come.
    pub(super) fn follow_launch(&mut self, now: UnixNanos) {
        let Phase::Launching { launched, until } = &mut self.phase else { return };
        let late = *until <= clock::instant();
        let progress = launched.progress();
        if matches!(progress, Progress::UnderWay) && !late {
            return;
        }
        let Phase::Launching { mut launched, .. } = std::mem::replace(&mut self.phase, Phase::Ended) else { return };
        let message = match progress {
            Progress::Runs => {
                match launched.terminal() {
                    None => {}
                    Some(Ok(terminal)) => self.outputs.add(Stream::Stdout, terminal),
                    Some(Err(err)) => report(&format_args!("receive the container's terminal: {err}")),
                }
                return self.container_runs(launched.pid(), now);
            }
            Progress::Failed(message) => message,
            Progress::Lost => {
                let cause = if memory::ran_out(self.config.memory_cgroup.as_deref()) {
                    ": its memory limit is too low to start it"
                } else {
                    ""
                };
                format!("the container's process was killed before it could be executed{cause}")
            }
            Progress::UnderWay => {
                let limit = Duration::from_millis(self.config.start_timeout_ms);
                format!("the container's process was not executed within {limit:?}")
            }
        };
        // One that was waited for has no process any more that could be meant.
        if !self.early_ends.iter().any(|(ended, ..)| *ended == launched.pid()) {
            launched.end();
        }
        self.start_failed(message);
    }

    /// Looks whether there is a container for a spare. The runtime may be done with it already.
    pub(super) fn look_for_container(&mut self) {
        let Phase::Spare { runtime } = self.phase else { return };
        let config: MonitorConfig = match files::read_json(&self.dir, CONFIG_FILE) {
            Ok(Some(config)) => config,
            // The directory of a spare that is not wanted any more may go before us.
            Ok(None) => return,
            Err(err) => return report(&Chain(&err)),
        };
        if config.spare {
            return;
        }
        self.log = LogWriter::new(config.log.clone());
        self.config = config;
        match runtime {
            Some(runtime) => self.phase = self.starting(runtime),
            None => self.start(),
        }
    }

    fn start_runtime(&mut self) -> io::Result<Pid> {
        let stdios = if self.config.terminal {
            self.console = Some(ConsoleSocket::bind(&self.dir)?);
            Stdios::default()
        } else {
            self.open_streams()?
        };
        let console = self.console.as_ref().map(ConsoleSocket::path);
        let survival = if self.config.spare { Survival::EndsWithUs } else { Survival::GoesOn };
        let runtime = self.runtime.as_ref().ok_or(io::ErrorKind::NotFound)?;
        runtime.run(stdios, console, survival)
    }

    /// Makes the container's standard streams, and keeps our ends of them.
    fn open_streams(&mut self) -> io::Result<Stdios> {
        let mut stdios = Stdios::default();
        if self.config.stdin {
            let (reading, writing) = outputs::pipe()?;
            stdios.stdin = Some(reading);
            self.stdin = Some(writing);
        }
        for (stream, end) in [(Stream::Stdout, &mut stdios.stdout), (Stream::Stderr, &mut stdios.stderr)] {
            let (reading, writing) = outputs::pipe()?;
            self.outputs.add(stream, reading);
            *end = Some(writing);
        }
        Ok(stdios)
    }

    /// The runtime is done with starting the container, well or not.
    pub(super) fn runtime_ended(&mut self, status: WaitStatus, late: bool, now: UnixNanos) {
        if late {
            let limit = Duration::from_millis(self.config.start_timeout_ms);
            return self.start_failed(format!("the runtime did not start the container within {limit:?}"));
        }
        if self.was_spare && status.exit_status() != Some(0) && !self.dir.join(FED_FILE).exists() {
            // Whoever was about to tell it what to start is gone, and starts it anew.
            self.phase = Phase::Ended;
            return;
        }
        if self.was_spare {
            self.open_log();
        }
        let log = || std::fs::read_to_string(self.dir.join(RUNTIME_LOG_FILE)).unwrap_or_default();
        match status.exit_status() {
            Some(0) => {}
            Some(code) => {
                let reason =
                    failure_reason(&log()).unwrap_or_else(|| format!("the runtime ended with exit code {code}"));
                return self.start_failed(reason);
            }
            None => {
                let signal = status.terminating_signal().unwrap_or_default();
                return self.start_failed(format!("the runtime was ended by signal {signal}"));
            }
        }
        let pid = std::fs::read_to_string(self.dir.join(PID_FILE)).ok().and_then(|text| text.trim().parse().ok());
        match pid.and_then(Pid::from_raw) {
            Some(pid) => self.container_runs(pid, now),
            None => self.start_failed("the runtime left no process id".into()),
        }
    }
}
