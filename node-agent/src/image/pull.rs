//! Pulling one layer: receive and hash | inflate | write, each on a thread of its own, through bounded channels of recycled
//! buffers. Nothing of a layer is visible before its compressed bytes are verified and its writer has finished.

use std::{
    io,
    sync::{Arc, mpsc as blocking},
};

use bytes::Bytes;
use futures::StreamExt as _;
use sha2::Digest as _;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    inflate::{self, Piece, PieceReader},
    pull_plan::{Content, PlannedLayer},
    single_flight::Progress,
};
use crate::{
    digest::Digest,
    registry::{RegistryError, Repository, retry},
    snapshot::{self, Layer, LayerWriter, SnapshotError, Snapshotter},
    store::Store,
};

/// Compressed pieces on their way to the inflater. A piece is what one read from the connection gave, half a megabyte at
/// most.
const PIECES: usize = 4;
/// Plain buffers of a layer, one being filled, one being written, and some between them.
const BUFFERS: usize = 4;
/// Size of a plain buffer.
const BUFFER_BYTES: usize = 512 << 10;
/// A transfer that has moved this much since its last failure has made progress.
const PROGRESS_BYTES: u64 = 1 << 20;
/// The largest image configuration.
const MAX_CONFIG: u64 = 8 << 20;

/// Why a layer could not be pulled.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It could not be kept.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// It is not compressed as it should be.
    #[error("decompress layer {digest}")]
    Inflate {
        /// Of the layer's blob.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// A thread of the pull ended without a word.
    #[error("pull of {0} ended unexpectedly")]
    Interrupted(Digest),
}

impl PullError {
    /// Whether another login may get what this one could not.
    pub(super) fn is_about_access(&self) -> bool {
        match self {
            Self::Registry(err) => err.is_about_access(),
            Self::Snapshot(_) | Self::Inflate { .. } | Self::Interrupted(_) => false,
        }
    }
}

/// What pulls need.
#[derive(Debug, Clone)]
pub(super) struct Puller {
    pub(super) store: Arc<Store>,
    pub(super) snapshotter: Arc<dyn Snapshotter>,
    pub(super) tasks: TaskTracker,
}

impl Puller {
    /// Brings a layer into the store, unless it is there.
    ///
    /// # Errors
    /// After a few tries; nothing is left then.
    pub(super) async fn layer(
        &self,
        repository: &dyn Repository,
        layer: &PlannedLayer,
        progress: &Progress,
    ) -> Result<Layer, PullError> {
        // It may have come since the plan was made.
        let (snapshotter, diff_id) = (Arc::clone(&self.snapshotter), layer.diff_id);
        if let Ok(Some(here)) = self.tasks.spawn_blocking(move || snapshotter.layer(&diff_id)).await {
            return Ok(here);
        }
        let (mut without, mut wrong) = (Vec::new(), None);
        loop {
            let mut endpoint = None;
            let result = self.one_pass(repository, layer, progress, &without, &mut endpoint).await;
            match (result, endpoint) {
                // A mirror that lies is passed over; the next one in order may have the right bytes.
                (Err(PullError::Registry(err)), Some(from)) if err.is_wrong_content() => {
                    tracing::warn!(blob = %layer.blob.digest, error = %err, "registry sent wrong content");
                    without.push(from);
                    progress.set(0);
                    wrong = Some(err);
                }
                (Err(PullError::Snapshot(SnapshotError::DiskFull { needed_bytes, .. })), _)
                    if self.make_room(needed_bytes.saturating_add(layer.blob.size)).await =>
                {
                    progress.set(0);
                }
                (Err(PullError::Registry(RegistryError::NoEndpoint { .. })), _) if wrong.is_some() => {
                    return Err(wrong.map_or(PullError::Interrupted(layer.blob.digest), PullError::Registry));
                }
                (result, _) => return result,
            }
        }
    }

    /// Removes layers that nobody uses; says whether there were any.
    async fn make_room(&self, needed_bytes: u64) -> bool {
        let (store, snapshotter) = (Arc::clone(&self.store), Arc::clone(&self.snapshotter));
        let made = self.tasks.spawn_blocking(move || free(&store, snapshotter.as_ref(), needed_bytes));
        made.await.unwrap_or(false)
    }

    async fn one_pass(
        &self,
        repository: &dyn Repository,
        layer: &PlannedLayer,
        progress: &Progress,
        without: &[usize],
        endpoint: &mut Option<usize>,
    ) -> Result<Layer, PullError> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let unpack =
            Unpack { store: Arc::clone(&self.store), snapshotter: Arc::clone(&self.snapshotter), layer: *layer };
        let unpacking = self.tasks.spawn_blocking(move || unpack.run(receiver));
        let received = receive(repository, &layer.blob, without, endpoint, progress, Sink::Layer(&sender)).await;
        drop(sender);
        match received {
            // The other side is gone because it failed, and knows why; or it is done.
            Ok(()) | Err(ReceiveError::Closed) => match unpacking.await {
                Ok(unpacked) => unpacked,
                Err(_) => Err(PullError::Interrupted(layer.blob.digest)),
            },
            Err(ReceiveError::Registry(err)) => {
                // The writer takes back what it wrote; whoever tries again must not meet it.
                let _ = unpacking.await;
                Err(err.into())
            }
        }
    }

    /// Brings a small blob into memory.
    ///
    /// # Errors
    /// After a few tries.
    pub(super) async fn config(&self, repository: &dyn Repository, content: &Content) -> Result<Bytes, PullError> {
        if content.size > MAX_CONFIG {
            let limit_bytes = MAX_CONFIG;
            let what = format!("configuration {}", content.digest);
            return Err(RegistryError::TooLong { what, url: "the registry".to_owned(), limit_bytes }.into());
        }
        let (mut bytes, mut endpoint) = (Vec::new(), None);
        let progress = Progress::default();
        match receive(repository, content, &[], &mut endpoint, &progress, Sink::Memory(&mut bytes)).await {
            Ok(()) => Ok(bytes.into()),
            Err(ReceiveError::Registry(err)) => Err(err.into()),
            Err(ReceiveError::Closed) => Err(PullError::Interrupted(content.digest)),
        }
    }
}

/// Where received bytes go.
enum Sink<'a> {
    Layer(&'a mpsc::Sender<Piece>),
    Memory(&'a mut Vec<u8>),
}

impl Sink<'_> {
    async fn take(&mut self, piece: Piece) -> Result<(), ReceiveError> {
        match (self, piece) {
            (Self::Layer(sender), piece) => sender.send(piece).await.map_err(|_| ReceiveError::Closed),
            (Self::Memory(bytes), Piece::Data(data)) => {
                bytes.extend_from_slice(&data);
                Ok(())
            }
            (Self::Memory(_), Piece::Verified) => Ok(()),
        }
    }
}

#[derive(Debug)]
enum ReceiveError {
    Registry(RegistryError),
    /// The other side has gone.
    Closed,
}

impl From<RegistryError> for ReceiveError {
    fn from(err: RegistryError) -> Self {
        Self::Registry(err)
    }
}

/// Receives a blob and verifies it. A connection that breaks is taken up again where it broke, a few times in a row.
async fn receive(
    repository: &dyn Repository,
    content: &Content,
    without: &[usize],
    endpoint: &mut Option<usize>,
    progress: &Progress,
    mut sink: Sink<'_>,
) -> Result<(), ReceiveError> {
    let mut received = Received { content: *content, hasher: sha2::Sha256::new(), count: 0 };
    let (mut failures, mut count_at_failure) = (0, 0);
    loop {
        let err = match received.transfer(repository, without, endpoint, progress, &mut sink).await {
            Ok(url) => {
                received.verify(url)?;
                return sink.take(Piece::Verified).await;
            }
            Err(ReceiveError::Registry(err)) if err.is_transient() => err,
            Err(other) => return Err(other),
        };
        if received.count >= count_at_failure + PROGRESS_BYTES {
            failures = 0;
        }
        count_at_failure = received.count;
        failures += 1;
        tracing::debug!(blob = %content.digest, error = %err, at = received.count, "transfer broke off");
        match retry::wait(failures, err.retry_after(), rand::random()) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(err.into()),
        }
    }
}

struct Received {
    content: Content,
    hasher: sha2::Sha256,
    count: u64,
}

impl Received {
    /// One request, from where the last one ended. Returns the address when all has come.
    async fn transfer(
        &mut self,
        repository: &dyn Repository,
        without: &[usize],
        endpoint: &mut Option<usize>,
        progress: &Progress,
        sink: &mut Sink<'_>,
    ) -> Result<String, ReceiveError> {
        let Content { digest, size } = self.content;
        let mut stream = repository.blob(&digest, size, self.count, without).await?;
        *endpoint = Some(stream.endpoint);
        // A registry that does not do ranges begins anew; what we have is not taken twice.
        let mut skip = self.count.saturating_sub(stream.offset);
        while let Some(chunk) = stream.bytes.next().await {
            let mut chunk = chunk?;
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= u64::try_from(skipped).unwrap_or(u64::MAX);
            let chunk = chunk.split_off(skipped);
            if chunk.is_empty() {
                continue;
            }
            self.count += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            if self.count > size {
                let what = digest.to_string();
                return Err(RegistryError::TooLong { what, url: stream.url, limit_bytes: size }.into());
            }
            self.hasher.update(&chunk);
            progress.set(self.count);
            sink.take(Piece::Data(chunk)).await?;
        }
        if self.count < size {
            let url = stream.url;
            return Err(RegistryError::Truncated { url, digest, got_bytes: self.count, expected_bytes: size }.into());
        }
        Ok(stream.url)
    }

    fn verify(self, url: String) -> Result<(), RegistryError> {
        let actual = Digest::from_bytes(self.hasher.finalize().into());
        let expected = self.content.digest;
        if actual == expected { Ok(()) } else { Err(RegistryError::WrongDigest { url, expected, actual }) }
    }
}

/// The blocking half of a pull.
struct Unpack {
    store: Arc<Store>,
    snapshotter: Arc<dyn Snapshotter>,
    layer: PlannedLayer,
}

impl Unpack {
    fn run(&self, pieces: mpsc::Receiver<Piece>) -> Result<Layer, PullError> {
        let mut writer = self.snapshotter.begin_layer(None)?;
        let (full, to_write) = blocking::sync_channel::<Vec<u8>>(BUFFERS);
        let (empty, to_fill) = blocking::sync_channel::<Vec<u8>>(BUFFERS);
        for _ in 0..BUFFERS {
            // The channel has room for all of them.
            let _ = empty.try_send(vec![0; BUFFER_BYTES]);
        }
        // A plain thread: it lives only as long as this scope.
        let (inflated, written) = std::thread::scope(|scope| {
            let writing = scope.spawn(|| write_all(writer.as_mut(), to_write, empty));
            let inflated = inflate_all(pieces, full, &to_fill);
            // Without this, a writer that failed and an inflater that still sends would wait for each other.
            drop(to_fill);
            (inflated, writing.join())
        });
        // A writer that failed made the inflater stop, so its error is the cause.
        written.map_err(|_| PullError::Interrupted(self.layer.blob.digest))??;
        inflated.map_err(|source| PullError::Inflate { digest: self.layer.blob.digest, source })?;
        let layer = writer.finish(&self.layer.diff_id)?;
        self.store.record_layer(&layer.diff_id, layer.size_bytes, layer.disk_bytes, unix_seconds());
        Ok(layer)
    }
}

fn inflate_all(
    pieces: mpsc::Receiver<Piece>,
    full: blocking::SyncSender<Vec<u8>>,
    to_fill: &blocking::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let stopped = || io::Error::new(io::ErrorKind::BrokenPipe, "the writer has stopped");
    let mut plain = inflate::plain(PieceReader::new(pieces))?;
    loop {
        let mut buffer = to_fill.recv().map_err(|_| stopped())?;
        buffer.resize(BUFFER_BYTES, 0);
        let filled = inflate::fill(plain.as_mut(), &mut buffer)?;
        if filled == 0 {
            return Ok(());
        }
        buffer.truncate(filled);
        full.send(buffer).map_err(|_| stopped())?;
    }
}

fn write_all(
    writer: &mut dyn LayerWriter,
    to_write: blocking::Receiver<Vec<u8>>,
    empty: blocking::SyncSender<Vec<u8>>,
) -> Result<(), SnapshotError> {
    for buffer in to_write {
        writer.write(&buffer)?;
        // The inflater has ended when nobody takes it back.
        let _ = empty.try_send(buffer);
    }
    Ok(())
}

/// Does something that takes disk space; where there is none, again after unused layers have made room. Blocks.
pub(super) fn with_room<T>(
    store: &Store,
    snapshotter: &dyn Snapshotter,
    more_bytes: u64,
    act: impl Fn() -> Result<T, SnapshotError>,
) -> Result<T, SnapshotError> {
    loop {
        match act() {
            Err(SnapshotError::DiskFull { path, needed_bytes, free_bytes }) => {
                // Each round has fewer layers left, so it ends.
                if !free(store, snapshotter, needed_bytes.saturating_add(more_bytes)) {
                    return Err(SnapshotError::DiskFull { path, needed_bytes, free_bytes });
                }
            }
            other => return other,
        }
    }
}

/// Removes unused layers; says whether there were any. Blocks.
fn free(store: &Store, snapshotter: &dyn Snapshotter, needed_bytes: u64) -> bool {
    match snapshot::make_room(store, snapshotter, needed_bytes.max(1)) {
        Ok(freed_bytes) => freed_bytes > 0,
        Err(err) => {
            tracing::warn!(error = %crate::chain::Chain(&err), "make room in the store");
            false
        }
    }
}

/// Now, for the store's record of last use.
pub(super) fn unix_seconds() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default()
}

/// Waits for a turn and notes when it came.
pub(super) async fn turn<'a>(
    turns: &'a tokio::sync::Semaphore,
    progress: &Progress,
) -> Option<tokio::sync::SemaphorePermit<'a>> {
    let permit = turns.acquire().await.ok()?;
    progress.begin(Instant::now());
    Some(permit)
}
