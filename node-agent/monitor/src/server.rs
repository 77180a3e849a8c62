//! The monitor's socket: tells whoever asks what becomes of the container.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use larder_monitor::wire::{self, Event, MAX_LINE, Request};

/// The greatest number of connections at once. There is one agent; the rest is for a person who looks.
const MAX_CLIENTS: usize = 16;

/// The listening socket and its connections. Never waits for a client: one that does not read what it is sent is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    /// None when the monitor was started without a socket, or lost it.
    listener: Option<UnixListener>,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    watches: bool,
}

impl Server {
    /// Serves on `socket`, which listens already.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        let listener = UnixListener::from(socket);
        let usable = listener.local_addr().is_ok() && listener.set_nonblocking(true).is_ok();
        Self { listener: usable.then_some(listener), clients: Vec::new() }
    }

    /// The listening socket.
    pub(crate) fn listener_fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// The connections, in an order that [`Server::serve`] understands until it is called.
    pub(crate) fn client_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.clients.iter().map(|client| client.stream.as_fd())
    }

    /// Whether nobody is connected.
    pub(crate) fn has_no_clients(&self) -> bool {
        self.clients.is_empty()
    }

    /// Takes the connections that are waiting.
    pub(crate) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        loop {
            match listener.accept() {
                Ok((stream, _)) if self.clients.len() < MAX_CLIENTS && stream.set_nonblocking(true).is_ok() => {
                    self.clients.push(Client { stream, received: Vec::new(), watches: false });
                }
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(err) if err.kind() == io::ErrorKind::Interrupted || is_passing(&err) => return,
                Err(_) => {
                    self.listener = None;
                    return;
                }
            }
        }
    }

    /// Reads from the connections that are `ready`, and answers a new watcher with `known`.
    pub(crate) fn serve(&mut self, ready: &[bool], known: &[Event]) {
        let mut flags = ready.iter().copied();
        self.clients.retain_mut(|client| !flags.next().unwrap_or(false) || client.serve(known));
    }

    /// Tells everybody who watches.
    pub(crate) fn tell(&mut self, event: &Event) {
        self.clients.retain_mut(|client| !client.watches || client.send(event));
    }
}

/// Whether an error of accept says nothing about the socket itself: a peer that went away, or too many open files.
fn is_passing(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::ECONNABORTED | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}

impl Client {
    /// Reads and answers. False when the connection is over.
    fn serve(&mut self, known: &[Event]) -> bool {
        let mut buffer = [0; 512];
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(err) => return matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        self.received.extend_from_slice(&buffer[..count]);
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let Ok(Request::Watch) = wire::from_line(&line) else { return false };
            self.watches = true;
            if !known.iter().all(|event| self.send(event)) {
                return false;
            }
        }
        self.received.len() <= MAX_LINE
    }

    /// Sends one event. False when the client does not keep up or is gone. An event fits into the socket's buffer many
    /// times, so a short write means that nobody reads.
    fn send(&mut self, event: &Event) -> bool {
        wire::to_line(event).is_some_and(|line| self.stream.write_all(&line).is_ok())
    }
}
