//! The container's `/dev`.

use std::fs::OpenOptions;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, makedev, mknodat, symlinkat};
use rustix::mount::mount_bind;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};

use super::{Failure, OrFailure, streams};

/// The devices that every container has, as the runtime specification demands.
const DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The links that every container has.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Makes the devices and links in a new `/dev`.
pub(super) fn populate() -> Result<(), Failure> {
    for (path, major, minor) in DEVICES {
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor))
            .or_failure(|| format!("make device {path}"))?;
    }
    for (target, path) in LINKS {
        symlinkat(target, CWD, path).or_failure(|| format!("make link {path}"))?;
    }
    Ok(())
}

/// Makes a terminal of the container's own its standard streams, and sends the other side to whoever reads from `socket`.
pub(super) fn open_terminal(socket: &UnixStream, uid: u32) -> Result<(), Failure> {
    let opened = || {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = rustix::fs::open("/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        unlockpt(&ours)?;
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        rustix::fs::fchown(&theirs, Some(Uid::from_raw(uid)), None::<Gid>)?;
        rustix::process::ioctl_tiocsctty(&theirs)?;
        streams::replace([Some(&theirs); 3])?;
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open("/dev/console")?;
        mount_bind(ptsname(&ours, Vec::new())?, "/dev/console")?;
        let fds = [ours.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(socket, &[IoSlice::new(b"terminal")], &mut control, SendFlags::empty())?;
        Ok::<_, std::io::Error>(())
    };
    opened().or_failure(|| "open a terminal".into())
}
