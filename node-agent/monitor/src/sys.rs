//! The system calls that have no safe wrapper in our dependencies. Nothing else in this program is unsafe.
#![expect(unsafe_code, reason = "signalfd, unshare and what a child does before it executes have no safe wrapper")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;

/// The signals that the monitor takes from its signal descriptor. All but SIGCHLD are there to be ignored: a container must
/// not lose its monitor because a terminal was closed or a service stopped. They are blocked and not ignored, because an
/// ignored signal would stay ignored in the container.
const SIGNALS: [libc::c_int; 6] =
    [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1];

/// Blocks [`SIGNALS`] and gives a descriptor that becomes readable when one arrives. `std::process::Command` clears the mask
/// in what it starts, so that nothing of this reaches the runtime.
pub(crate) fn signal_fd() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is initialised by sigemptyset before any other use, and outlives every call; the signal numbers are valid.
    // A descriptor that signalfd returns is open and belongs to nobody else.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in SIGNALS {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Moves this process into a mount namespace of its own.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: NEWNS does not touch the descriptor table, which is what makes other flags of unshare unsafe.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(io::Error::from)
}

/// Has what `command` starts be killed when this process ends. What that starts itself is not.
pub(crate) fn end_with_us(command: &mut Command) {
    let us = getpid();
    let bind = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Where we ended before that, nobody would be told.
        if getppid() == Some(us) { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
    };
    // SAFETY: between fork and exec only system calls are made, which take no lock, and an error of this kind allocates nothing.
    unsafe { command.pre_exec(bind) };
}
