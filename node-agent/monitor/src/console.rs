//! The terminal of a container that wants one: the runtime makes it inside the container and hands the other side to us over
//! a socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Name of the socket in the run directory.
const SOCKET_FILE: &str = "console.sock";

/// The socket on which the runtime hands over the terminal.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Binds the socket in `dir`, which has to be short enough for a socket's address.
    pub(crate) fn bind(dir: &Path) -> io::Result<Self> {
        let path = dir.join(SOCKET_FILE);
        let listener = UnixListener::bind(&path)?;
        Ok(Self { listener, path })
    }

    /// The path to hand to the runtime.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal out of the connection that is waiting.
    pub(crate) fn receive(&self) -> io::Result<OwnedFd> {
        let (connection, _) = self.listener.accept()?;
        receive_descriptor(&connection)
    }
}

/// Takes the descriptor that comes with the next message.
pub(crate) fn receive_descriptor(connection: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    recvmsg(connection, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = |message| if let RecvAncillaryMessage::ScmRights(fds) = message { Some(fds) } else { None };
    control
        .drain()
        .filter_map(fds)
        .flatten()
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no terminal was sent"))
}

impl AsFd for ConsoleSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}
