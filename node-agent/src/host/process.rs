//! Signals to processes that are not our children, without ever hitting another process that got the same id.
#![expect(unsafe_code, reason = "pidfd_send_signal with a real-time signal has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use larder_monitor::files::process_start_time;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process, for good: an id alone is given to somebody else once its process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Its id.
    pub pid: i32,
    /// When it began, in clock ticks after boot (field 22 of `/proc/<pid>/stat`).
    pub start_time: u64,
}

/// Holds on to a process. `None` when it is gone.
///
/// # Errors
/// When the kernel refuses.
pub fn open_process(process: ProcessIdentity) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(None) };
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(err) => return Err(err.into()),
    };
    // Compared once the descriptor is held: from here on it cannot come to mean another process.
    Ok((process_start_time(process.pid) == Some(process.start_time)).then_some(fd))
}

/// Sends `signal` to a process. One that is gone is not an error.
///
/// # Errors
/// When the kernel refuses, or the number is not that of a signal.
pub fn send_signal(process: ProcessIdentity, signal: i32) -> io::Result<()> {
    let Some(fd) = open_process(process)? else { return Ok(()) };
    // SAFETY: the descriptor is open for the whole call; no information block and no flags are passed.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0_u32)
    };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            err if err.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            err => Err(err),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_signal_reaches_the_process_that_was_meant() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start_time = process_start_time(pid).unwrap();
        send_signal(ProcessIdentity { pid, start_time: start_time + 1 }, libc::SIGKILL).unwrap();
        assert_eq!(child.try_wait().unwrap(), None, "another process with the same id is left alone");
        send_signal(ProcessIdentity { pid, start_time }, libc::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
        send_signal(ProcessIdentity { pid, start_time }, libc::SIGTERM).unwrap();
    }

    #[test]
    fn a_number_that_is_no_signal_is_refused() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let start_time = process_start_time(pid).unwrap();
        assert!(send_signal(ProcessIdentity { pid, start_time }, 999).is_err());
    }
}
