//! Receiving one blob: from source to source, taken up again where it broke off, hashed on the way.

use std::path::PathBuf;

use bytes::Bytes;
use futures::StreamExt as _;
use sha2::Digest as _;
use tokio::{io::AsyncReadExt as _, sync::mpsc};
use tokio_util::io::ReaderStream;

use super::{
    bandwidth::Bandwidth,
    inflate::Piece,
    pull_plan::Content,
    route::{FirstBytes, Route, Verdict},
    single_flight::Progress,
};
use crate::{
    digest::Digest,
    meters::Meters,
    registry::{RegistryError, Repository},
};

/// A transfer that has moved this much since its last failure has made progress.
const PROGRESS_BYTES: u64 = 1 << 20;
/// How much of a file is read at once.
const FILE_PIECE: usize = 512 << 10;

/// One blob to be received.
#[derive(Clone, Copy)]
pub(super) struct Transfer<'a> {
    pub(super) repository: &'a dyn Repository,
    pub(super) content: Content,
    pub(super) progress: &'a Progress,
    pub(super) bandwidth: &'a Bandwidth,
    pub(super) meters: &'a Meters,
}

/// The first bytes of a blob, in a file.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// Where received bytes go.
pub(super) enum Sink<'a> {
    Layer(&'a mpsc::Sender<Piece>),
    Memory(&'a mut Vec<u8>),
}

/// Why a transfer ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The bytes are not those of the blob: nothing of them is of use.
    Wrong(Verdict),
    /// Nobody gives more.
    Abandoned(Verdict),
    /// The other side has gone, and knows why.
    Closed,
}

/// Why bytes did not come from one source.
enum Broken {
    Registry(RegistryError),
    Closed,
}

impl From<RegistryError> for Broken {
    fn from(err: RegistryError) -> Self {
        Self::Registry(err)
    }
}

impl Sink<'_> {
    async fn take(&mut self, piece: Piece) -> Result<(), Broken> {
        match (self, piece) {
            (Self::Layer(sender), piece) => sender.send(piece).await.map_err(|_| Broken::Closed),
            (Self::Memory(bytes), Piece::Data(data) | Piece::Kept(data)) => {
                bytes.extend_from_slice(&data);
                Ok(())
            }
            (Self::Memory(_), Piece::Verified) => Ok(()),
        }
    }
}

impl Transfer<'_> {
    /// Receives the blob and verifies it; `kept` comes first. The errors of the sources are in `route`.
    pub(super) async fn receive(
        &self,
        route: &mut Route,
        kept: Option<Kept>,
        mut sink: Sink<'_>,
    ) -> Result<(), Stopped> {
        let mut received = Received { hasher: sha2::Sha256::new(), count: 0 };
        if let Some(kept) = kept.filter(|kept| kept.bytes > 0) {
            route.begin_with(FirstBytes::Kept);
            match self.read_kept(&kept, &mut received, &mut sink).await {
                Ok(()) if received.count < self.content.size => {}
                Ok(()) if received.digest() == self.content.digest => return self.verified(&mut sink).await,
                Ok(()) | Err(Broken::Registry(_)) => return Err(Stopped::Wrong(route.kept_is_wrong())),
                Err(Broken::Closed) => return Err(Stopped::Closed),
            }
        }
        let mut count_at_failure = received.count;
        loop {
            let Some(source) = route.next() else {
                match route.wait(rand::random()) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(Stopped::Abandoned(route.abandoned())),
                }
                continue;
            };
            let err = match self.one_request(source, route, &mut received, &mut sink).await {
                Ok(url) => match received.verify(url, self.content.digest) {
                    Ok(()) => return self.verified(&mut sink).await,
                    Err(err) => return Err(Stopped::Wrong(route.wrong(source, err))),
                },
                Err(Broken::Closed) => return Err(Stopped::Closed),
                Err(Broken::Registry(err)) => err,
            };
            tracing::debug!(blob = %self.content.digest, error = %err, at = received.count, "source failed");
            if matches!(err, RegistryError::TooLong { .. }) {
                return Err(Stopped::Wrong(route.wrong(source, err)));
            }
            if received.count >= count_at_failure + PROGRESS_BYTES {
                route.progressed();
            }
            count_at_failure = received.count;
            route.failed(source, err);
        }
    }

    async fn verified(&self, sink: &mut Sink<'_>) -> Result<(), Stopped> {
        sink.take(Piece::Verified).await.map_err(|_| Stopped::Closed)
    }

    async fn read_kept(&self, kept: &Kept, received: &mut Received, sink: &mut Sink<'_>) -> Result<(), Broken> {
        let unreadable = |why: std::io::Error| RegistryError::Malformed {
            url: kept.path.display().to_string(),
            why: why.to_string(),
        };
        let file = tokio::fs::File::open(&kept.path).await.map_err(unreadable)?;
        let mut pieces = ReaderStream::with_capacity(file.take(kept.bytes), FILE_PIECE);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(unreadable)?;
            received.add(&piece);
            self.progress.set(received.count);
            sink.take(Piece::Kept(piece)).await?;
        }
        Ok(())
    }

    /// One request, from where the last one ended. Returns the address when all has come.
    async fn one_request(
        &self,
        source: usize,
        route: &mut Route,
        received: &mut Received,
        sink: &mut Sink<'_>,
    ) -> Result<String, Broken> {
        let Content { digest, size } = self.content;
        let mut stream = self.repository.blob(source, &digest, size, received.count).await?;
        // A registry that does not do ranges begins anew; what we have is not taken twice.
        let mut skip = received.count.saturating_sub(stream.offset);
        while let Some(chunk) = stream.bytes.next().await {
            let mut chunk = match chunk {
                Ok(chunk) => chunk,
                // All has come, only the end of the answer has not. There is nothing left to ask for, and the digest tells
                // whether it is the blob.
                Err(err) if received.count == size => {
                    tracing::debug!(blob = %digest, error = %err, "the answer broke off after its last byte");
                    break;
                }
                Err(err) => return Err(err.into()),
            };
            self.bandwidth.take(chunk.len()).await;
            self.meters.received(chunk.len());
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= u64::try_from(skipped).unwrap_or(u64::MAX);
            let chunk = chunk.split_off(skipped);
            if chunk.is_empty() {
                continue;
            }
            route.gave(source);
            received.add(&chunk);
            if received.count > size {
                let what = digest.to_string();
                return Err(RegistryError::TooLong { what, url: stream.url, limit_bytes: size }.into());
            }
            self.progress.set(received.count);
            sink.take(Piece::Data(chunk)).await?;
        }
        if received.count < size {
            let (url, got_bytes) = (stream.url, received.count);
            return Err(RegistryError::Truncated { url, digest, got_bytes, expected_bytes: size }.into());
        }
        Ok(stream.url)
    }
}

/// What has come so far.
struct Received {
    hasher: sha2::Sha256,
    count: u64,
}

impl Received {
    fn add(&mut self, bytes: &Bytes) {
        self.count += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.hasher.update(bytes);
    }

    fn digest(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }

    fn verify(&self, url: String, expected: Digest) -> Result<(), RegistryError> {
        let actual = self.digest();
        if actual == expected { Ok(()) } else { Err(RegistryError::WrongDigest { url, expected, actual }) }
    }
}

#[cfg(test)]
mod tests;
