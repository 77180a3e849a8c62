//! The system calls that have no safe wrapper in our dependencies. Nothing else in this program is unsafe.
#![expect(unsafe_code, reason = "clone3, execve, signals, mount attributes and filters have no safe wrapper")]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
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

/// Moves this process into namespaces of its own. `flags` name namespaces alone.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: namespaces do not touch the descriptor table, which is what makes other flags of unshare unsafe.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Clones this process into new namespaces for processes and mounts. The clone calls `child`, and ends when that comes back.
pub(crate) fn clone_container(child: impl FnOnce()) -> io::Result<Pid> {
    // SAFETY: all zeroes are valid arguments, and those of an ordinary fork but for the signal.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from((libc::CLONE_NEWPID | libc::CLONE_NEWNS).unsigned_abs());
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    // SAFETY: without CLONE_VM the clone has a memory and a stack of its own, and this program has one thread, so that no lock
    // can be held by one that is not there any more.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(0) => {
            // What is above us on the stack is the monitor's, and must not go on in the clone.
            drop(catch_unwind(AssertUnwindSafe(child)));
            // SAFETY: it has no preconditions.
            unsafe { libc::_exit(1) }
        }
        Ok(pid) => Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(io::Error::last_os_error),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Takes back what this process does about signals: none is blocked and none is ignored, neither by Rust nor by whoever started
/// the agent.
pub(crate) fn default_signals() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: SIG_DFL is valid for every signal; where it may not be set, it is. `set` is initialised by sigemptyset before it is
    // used.
    let done = unsafe {
        for signal in 1..=libc::SIGSYS {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
    };
    checked(done.into())
}

/// Has every descriptor but the three standard streams be closed when a program is executed.
pub(crate) fn close_on_execution() -> io::Result<()> {
    // SAFETY: no descriptor is closed now.
    checked(unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Cuts a tree of mounts, mounted or not, off from the ones it was copied from.
pub(crate) fn make_private(mounts: impl AsFd) -> io::Result<()> {
    set_mount_attributes(mounts, libc::AT_RECURSIVE, 0, libc::MS_PRIVATE)
}

/// Makes a mount read-only, and none that is mounted on it.
pub(crate) fn make_read_only(mount: impl AsFd) -> io::Result<()> {
    set_mount_attributes(mount, 0, libc::MOUNT_ATTR_RDONLY, 0)
}

fn set_mount_attributes(mount: impl AsFd, flags: libc::c_int, set: u64, propagation: u64) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let (fd, flags) = (mount.as_fd().as_raw_fd(), flags | libc::AT_EMPTY_PATH);
    // SAFETY: the path is a string, and the attributes live for as long as the call, which is told their size.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// Loads a system call filter, an array of `struct sock_filter`.
pub(crate) fn load_filter(filter: &[u8]) -> io::Result<()> {
    let mut instructions: Vec<libc::sock_filter> = filter
        .chunks_exact(size_of::<libc::sock_filter>())
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let len = u16::try_from(instructions.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let program = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    // SAFETY: the program points to as many instructions as it says, and the kernel copies them.
    checked(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
}

/// Gives this process a new and empty session keyring.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    // SAFETY: without a name there is nothing that it would read.
    checked(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) })
}

/// Executes a program. Comes back only if that fails.
pub(crate) fn execute(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers =
        |strings: &[CString]| strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both lists end with a null pointer, and what they point to lives for as long as the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn checked(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
