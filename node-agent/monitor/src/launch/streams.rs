//! The container's standard streams.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};

use super::{Failure, OrFailure};
use crate::runtime::Stdios;

/// Takes over those that lead somewhere, for a container that runs as `uid`. The others are the monitor's until [`fill`].
pub(super) fn take(streams: &Stdios, uid: u32) -> Result<(), Failure> {
    let streams = all(streams);
    for stream in streams.into_iter().flatten() {
        own(stream, uid).or_failure(|| "hand over a standard stream".into())?;
    }
    replace(streams).or_failure(|| "take over standard streams".into())
}

/// Puts the container's own `/dev/null` in the place of those that lead nowhere: the host's belongs to the host, and whoever has
/// it open may change its mode.
pub(super) fn fill(streams: &Stdios) -> Result<(), Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let filled = rustix::fs::open("/dev/null", flags, Mode::empty())
        .and_then(|null| replace(all(streams).map(|stream| stream.is_none().then_some(&null))));
    filled.or_failure(|| "open /dev/null".into())
}

/// Puts descriptors in the place of standard input, output and error, where there are any.
pub(super) fn replace([stdin, stdout, stderr]: [Option<&OwnedFd>; 3]) -> rustix::io::Result<()> {
    stdin.map_or(Ok(()), rustix::stdio::dup2_stdin)?;
    stdout.map_or(Ok(()), rustix::stdio::dup2_stdout)?;
    stderr.map_or(Ok(()), rustix::stdio::dup2_stderr)
}

fn all(streams: &Stdios) -> [Option<&OwnedFd>; 3] {
    [streams.stdin.as_ref(), streams.stdout.as_ref(), streams.stderr.as_ref()]
}

/// Makes a pipe the container's user's, so that `/dev/stdout` can be opened.
fn own(stream: &OwnedFd, uid: u32) -> rustix::io::Result<()> {
    let status = rustix::fs::fstat(stream)?;
    if uid == status.st_uid || FileType::from_raw_mode(status.st_mode) != FileType::Fifo {
        return Ok(());
    }
    rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>)
}
