//! The blocking half of a pull: inflate | hash and write, each on a thread of its own, through bounded channels of recycled
//! buffers. What comes from the network is kept beside it, so that a transfer can go on after this process has ended.

use std::{
    io,
    sync::{Arc, mpsc as blocking},
};

use tokio::sync::mpsc;

use super::{
    inflate::{self, Piece, PieceReader},
    partial::Partial,
    pull::PullError,
    pull_plan::PlannedLayer,
};
use crate::{
    snapshot::{Layer, LayerWriter, SnapshotError, Snapshotter},
    store::Store,
};

/// Plain buffers of a layer, one being filled, one being written, and some between them.
const BUFFERS: usize = 4;
/// Size of a plain buffer.
const BUFFER_BYTES: usize = 512 << 10;

/// One layer on its way from compressed pieces to the store.
pub(super) struct Unpack {
    pub(super) store: Arc<Store>,
    pub(super) snapshotter: Arc<dyn Snapshotter>,
    pub(super) layer: PlannedLayer,
}

impl Unpack {
    /// Takes the pieces to their end. Nothing of the layer is visible before they were verified and the writer has finished.
    pub(super) fn run(&self, pieces: mpsc::Receiver<Piece>, partial: Option<Partial>) -> Result<Layer, PullError> {
        let mut writer = self.snapshotter.begin_layer(Some(self.layer.plain_bytes_at_least()))?;
        let mut source = PieceReader::new(pieces, partial);
        let (full, to_write) = blocking::sync_channel::<Vec<u8>>(BUFFERS);
        let (empty, to_fill) = blocking::sync_channel::<Vec<u8>>(BUFFERS);
        for _ in 0..BUFFERS {
            // The channel has room for all of them.
            let _ = empty.try_send(vec![0; BUFFER_BYTES]);
        }
        // A plain thread: it lives only as long as this scope.
        let (inflated, written) = std::thread::scope(|scope| {
            let writing = scope.spawn(|| write_all(writer.as_mut(), to_write, empty));
            let inflated = inflate_all(&mut source, full, &to_fill);
            // Without this, a writer that failed and an inflater that still sends would wait for each other.
            drop(to_fill);
            (inflated, writing.join())
        });
        // A writer that failed made the inflater stop, so its error is the cause.
        written.map_err(|_| PullError::Interrupted(self.layer.blob.digest))??;
        inflated.map_err(|source| PullError::Inflate { digest: self.layer.blob.digest, source })?;
        let layer = writer.finish(&self.layer.diff_id)?;
        source.forget_partial();
        self.store.record_layer(&layer.diff_id, layer.size_bytes, layer.disk_bytes, super::pull::unix_seconds());
        Ok(layer)
    }
}

fn inflate_all(
    pieces: &mut PieceReader,
    full: blocking::SyncSender<Vec<u8>>,
    to_fill: &blocking::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let stopped = || io::Error::new(io::ErrorKind::BrokenPipe, "the writer has stopped");
    let mut plain = inflate::plain(pieces)?;
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
