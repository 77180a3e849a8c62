//! The per-container monitor: one small process that starts one container, by itself or through an OCI runtime, writes its log,
//! keeps its exit code, and ends with it. It outlives the agent, so that an agent that is killed or upgraded loses nothing.
//!
//! `larder-monitor run DIR` is started by the agent with a listening socket as standard input and, if the agent could make
//! one, a sealed copy of the runtime's program as standard output. `larder-monitor collect DIR` cleans up after a monitor that
//! was killed: it ends the container, records that nobody knows how it ended, and removes it from the runtime.
//! `larder-monitor spare DIR` is `run` for a container that is not known yet; a verb of its own, so that a monitor of a version
//! before it refuses it. `larder-monitor --version` answers as an OCI runtime does.
//!
//! It has one thread, waits in one `poll`, and never looks at a clock to find out whether something happened. It knows
//! nothing of pods, images or Kubernetes.

mod clock;
mod collect;
mod console;
mod diagnostics;
mod launch;
mod log_writer;
mod memory;
mod monitor;
mod outputs;
mod runtime;
mod server;
mod sys;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::diagnostics::report;

fn main() -> ExitCode {
    // Executed from memory it would have the name of a descriptor.
    let _ = rustix::thread::set_name(c"larder-monitor");
    let mut args = std::env::args_os().skip(1);
    let (verb, dir, rest) = (args.next(), args.next().map(PathBuf::from), args.next());
    let result = match (verb.as_ref().and_then(|verb| verb.to_str()), dir, rest) {
        (Some("run" | "spare"), Some(dir), None) => monitor::run(&dir),
        (Some("collect"), Some(dir), None) => collect::collect(&dir),
        (Some("--version"), None, None) => {
            return match writeln!(std::io::stdout(), "larder version {}", env!("CARGO_PKG_VERSION")) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        _ => {
            report(&"usage: larder-monitor run|spare|collect DIR (the agent starts it; it is not meant to be typed)");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            report(&diagnostics::Chain(&err));
            ExitCode::FAILURE
        }
    }
}
