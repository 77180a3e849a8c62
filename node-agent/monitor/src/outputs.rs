//! The container's output streams: two pipes, or one terminal.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use larder_monitor::UnixNanos;
use larder_monitor::cri_log::{LineSplitter, Stream};
use rustix::io::Errno;

use crate::log_writer::LogWriter;

/// How much is read at once, in bytes. Touched only as far as the container writes.
const READ_SIZE: usize = 32 * 1024;

/// The open streams, and the two buffers that all of them share.
#[derive(Debug)]
pub(crate) struct Outputs {
    open: Vec<Output>,
    read_buffer: Box<[u8]>,
    entries: Vec<u8>,
}

#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    lines: LineSplitter,
}

impl Outputs {
    /// No stream yet.
    pub(crate) fn new() -> Self {
        Self { open: Vec::with_capacity(2), read_buffer: vec![0; READ_SIZE].into_boxed_slice(), entries: Vec::new() }
    }

    /// Takes the reading end of a stream.
    pub(crate) fn add(&mut self, stream: Stream, fd: OwnedFd) {
        self.open.push(Output { fd, lines: LineSplitter::new(stream) });
    }

    /// Whether every stream has come to its end.
    pub(crate) fn all_ended(&self) -> bool {
        self.open.is_empty()
    }

    /// The descriptors to wait for, in an order that [`Outputs::read`] understands until it is called.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.open.iter().map(|output| output.fd.as_fd())
    }

    /// Reads once from each of the streams that are `ready`, which holds one flag for each of [`Outputs::fds`].
    pub(crate) fn read(&mut self, ready: &[bool], log: &mut LogWriter, now: UnixNanos) {
        let mut flags = ready.iter().copied();
        let (buffer, entries) = (&mut self.read_buffer, &mut self.entries);
        self.open.retain_mut(|output| {
            if !flags.next().unwrap_or(false) {
                return true;
            }
            let goes_on = match rustix::io::read(&output.fd, &mut buffer[..]) {
                Ok(0) => false,
                Ok(count) => {
                    output.lines.push(&buffer[..count], now, entries);
                    true
                }
                Err(Errno::INTR | Errno::AGAIN) => true,
                // A terminal whose other side is closed says EIO. Any other error ends the stream as well: to ask again
                // would only turn in circles.
                Err(_) => false,
            };
            if !goes_on {
                output.lines.finish(now, entries);
            }
            goes_on
        });
        log.append(entries, now);
        entries.clear();
    }

    /// Closes what is still open, and writes what was begun.
    pub(crate) fn close(&mut self, log: &mut LogWriter, now: UnixNanos) {
        for mut output in self.open.drain(..) {
            output.lines.finish(now, &mut self.entries);
        }
        log.append(&self.entries, now);
        self.entries.clear();
    }
}

/// A pipe whose ends are not inherited by anyone but for whom they are meant: (reading end, writing end).
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)
}
