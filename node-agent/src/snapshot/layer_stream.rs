//! One pass over a layer's plain tar: digest, entries, tree. What happens to the files' data is the driver's affair.

use sha2::{Digest as _, Sha256};

use super::SnapshotError;
use super::layer_tree::{Change, LayerBuilder, LayerError};
use super::limits::Limits;
use super::tar::{Entry, Visitor, Walker};
use crate::digest::Digest;
use crate::erofs::tree::{BLOCK, Tree};

/// A tar is no longer than this: its index numbers blocks in 32 bits, of which one number means a hole.
const MAX_TAR_BYTES: u64 = u32::MAX as u64 * BLOCK;

/// What a driver does with entries as they come.
pub(crate) trait Unpack: Send {
    /// An entry has changed the tree like this.
    fn entry(&mut self, entry: &Entry, change: &Change) -> Result<(), SnapshotError>;

    /// Data of the last entry.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SnapshotError>;
}

/// For drivers that keep the tar itself.
#[derive(Debug)]
pub(crate) struct KeepTar;

impl Unpack for KeepTar {
    fn entry(&mut self, _: &Entry, _: &Change) -> Result<(), SnapshotError> {
        Ok(())
    }

    fn data(&mut self, _: u64, _: &[u8]) -> Result<(), SnapshotError> {
        Ok(())
    }
}

/// A layer that is being read.
#[derive(Debug)]
pub(crate) struct LayerStream<U> {
    hash: Sha256,
    walker: Walker,
    reader: Reader<U>,
    bytes: u64,
    limit: u64,
}

/// A layer that has been read to its end.
#[derive(Debug)]
pub(crate) struct ReadLayer<U> {
    pub(crate) diff_id: Digest,
    pub(crate) bytes: u64,
    pub(crate) tree: Tree,
    pub(crate) unpack: U,
}

#[derive(Debug)]
struct Reader<U> {
    builder: LayerBuilder,
    unpack: U,
}

impl<U: Unpack> Visitor for Reader<U> {
    type Error = SnapshotError;

    fn entry(&mut self, entry: Entry) -> Result<(), SnapshotError> {
        let change = self.builder.add(&entry)?;
        self.unpack.entry(&entry, &change)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.unpack.data(offset, bytes)
    }
}

impl<U: Unpack> LayerStream<U> {
    pub(crate) fn new(limits: Limits, unpack: U) -> Self {
        Self {
            hash: Sha256::new(),
            walker: Walker::new(limits),
            reader: Reader { builder: LayerBuilder::new(limits), unpack },
            bytes: 0,
            limit: limits.layer_bytes,
        }
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes of the plain tar.
    pub(crate) fn feed(&mut self, plain: &[u8]) -> Result<(), SnapshotError> {
        self.bytes += plain.len() as u64;
        if self.bytes > self.limit {
            return Err(LayerError::TooLong { limit: self.limit }.into());
        }
        if self.bytes > MAX_TAR_BYTES {
            return Err(LayerError::BeyondIndex { limit: MAX_TAR_BYTES }.into());
        }
        self.hash.update(plain);
        self.walker.feed(plain, &mut self.reader)
    }

    /// The end of the tar.
    pub(crate) fn finish(self) -> Result<ReadLayer<U>, SnapshotError> {
        self.walker.finish()?;
        Ok(ReadLayer {
            diff_id: Digest::from_bytes(self.hash.finalize().into()),
            bytes: self.bytes,
            tree: self.reader.builder.finish(),
            unpack: self.reader.unpack,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_index_can_number_is_refused_as_it_comes() {
        let limits = Limits { layer_bytes: u64::MAX, ..Limits::default() };
        let mut stream = LayerStream::new(limits, KeepTar);
        // As if so much had come.
        stream.bytes = MAX_TAR_BYTES - 512;
        stream.feed(&[0; 512]).expect("the last block");
        let error = stream.feed(&[0]).expect_err("one byte more");
        assert!(matches!(error, SnapshotError::LimitExceeded(_)), "{error}");
        assert!(error.to_string().contains("2199023255040 bytes"), "{error}");
    }
}
