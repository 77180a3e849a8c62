//! The most memory that this process takes.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use larder_node_agent::host::memory;

/// The memory of a process is one: what measures has it to itself.
static ALONE: Mutex<()> = Mutex::new(());

/// Keeps other tests of this process from running.
pub(crate) struct Alone(#[expect(dead_code, reason = "held for its drop")] MutexGuard<'static, ()>);

/// A measurement.
pub(crate) struct Peak {
    before: u64,
}

impl Alone {
    pub(crate) fn wait() -> Self {
        // As the agent does.
        memory::keep_small();
        Self(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn measure(&self) -> Peak {
        memory::give_back();
        // Makes the kernel note the peak anew.
        fs::write("/proc/self/clear_refs", "5").expect("clear_refs");
        Peak { before: memory::resident_bytes() }
    }
}

impl Peak {
    /// How many bytes more than at the beginning there were at most.
    pub(crate) fn bytes(&self) -> u64 {
        let status = fs::read_to_string("/proc/self/status").expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        (kibibytes << 10).saturating_sub(self.before)
    }
}
