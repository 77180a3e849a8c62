//! Faults of an answer's body: bytes changed, held back, or cut off.

use super::{Body, Fault};
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// A body on its way to a client, and what happens to it.
struct Spoiled {
    body: Body,
    fault: Fault,
    socket: Arc<OwnedFd>,
    /// Bytes passed on.
    passed: u64,
    /// What has arrived and is not passed on.
    rest: Bytes,
}

/// Applies a fault to a body. The length that the answer promised stays.
pub(super) fn spoil(body: Body, fault: Fault, socket: Arc<OwnedFd>) -> Body {
    let spoiled = Spoiled { body, fault, socket, passed: 0, rest: Bytes::new() };
    let pieces = futures::stream::unfold(Some(spoiled), async |spoiled| {
        let mut spoiled = spoiled?;
        match spoiled.next().await {
            Ok(Some(piece)) => Some((Ok(Frame::data(piece)), Some(spoiled))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    BodyExt::boxed(StreamBody::new(pieces))
}

impl Spoiled {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.rest.is_empty() && !self.read().await? {
            return Ok(None);
        }
        let piece = match self.fault {
            Fault::Truncate { after } | Fault::Reset { after } => {
                let left =
                    usize::try_from(after.saturating_sub(self.passed)).unwrap_or(usize::MAX).min(self.rest.len());
                if left == 0 {
                    // A pause of one turn, in which the server sends what it has.
                    tokio::task::yield_now().await;
                    return Err(self.cut());
                }
                self.rest.split_to(left)
            }
            Fault::Drip { piece, pause } => {
                tokio::time::sleep(pause).await;
                self.rest.split_to(piece.clamp(1, self.rest.len()))
            }
            Fault::FlipByte { at } => self.flipped(at),
            Fault::Silence
            | Fault::Status(_)
            | Fault::Endless(_)
            | Fault::Replace(_)
            | Fault::Longer { .. }
            | Fault::Redirect { .. }
            | Fault::TokenLoop
            | Fault::TooManyRequests { .. }
            | Fault::Credentials { .. } => std::mem::take(&mut self.rest),
        };
        self.passed += piece.len() as u64;
        Ok(Some(piece))
    }

    /// Fetches more. False at the end.
    async fn read(&mut self) -> io::Result<bool> {
        while self.rest.is_empty() {
            match self.body.frame().await {
                None => return Ok(false),
                Some(frame) => self.rest = frame?.into_data().unwrap_or_default(),
            }
        }
        Ok(true)
    }

    /// Everything at hand, with the byte at this offset of the whole body changed if it is there.
    fn flipped(&mut self, at: u64) -> Bytes {
        let mut piece = std::mem::take(&mut self.rest).to_vec();
        let index = at.checked_sub(self.passed).and_then(|index| usize::try_from(index).ok());
        if let Some(byte) = index.and_then(|index| piece.get_mut(index)) {
            *byte ^= 1;
        }
        piece.into()
    }

    /// Ends the connection here: with a reset, or as if the server had died.
    fn cut(&self) -> io::Error {
        if matches!(self.fault, Fault::Reset { .. }) {
            // With no time to linger, closing the socket sends a reset.
            let _ = rustix::net::sockopt::set_socket_linger(self.socket.as_fd(), Some(Duration::ZERO));
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, "the proxy was told to cut the answer here")
    }
}
