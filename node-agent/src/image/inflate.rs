//! From a compressed layer to plain tar bytes, as a stream: gzip with any number of members, zstd with any number of
//! frames, or plain. The first bytes say which.
//!
//! Everything here blocks.

use std::io::{self, BufRead, Read};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

/// The largest zstd window, as a power of two: what `zstd --long` makes. It bounds the decoder's memory.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;

/// What comes out of the network.
#[derive(Debug)]
pub(super) enum Piece {
    /// The next compressed bytes.
    Data(Bytes),
    /// There are no more, and their digest is the right one.
    Verified,
}

/// Compressed bytes from a channel. It ends only after [`Piece::Verified`]: so whoever reads to the end knows that what was
/// read is what was asked for.
#[derive(Debug)]
pub(super) struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    verified: bool,
}

impl PieceReader {
    pub(super) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, current: Bytes::new(), verified: false }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.verified {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::Verified) => self.verified = true,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the transfer was given up")),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
    Plain,
}

impl Compression {
    /// By the first bytes. A zstd stream may begin with a skippable frame, whose first byte is `0x50` to `0x5f`.
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// A reader of the plain bytes of `source`.
///
/// # Errors
/// When `source` fails before its first bytes, or a decoder cannot be made.
pub(super) fn plain<'a>(mut source: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut start = Vec::with_capacity(4);
    while start.len() < 4 {
        let available = source.fill_buf()?;
        if available.is_empty() {
            break;
        }
        let taken = available.len().min(4 - start.len());
        start.extend_from_slice(&available[..taken]);
        source.consume(taken);
    }
    let compression = Compression::of(&start);
    let source = Read::chain(io::Cursor::new(start), source);
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Compression::Plain => Box::new(source),
    })
}

/// Fills `buffer` as far as the source goes.
///
/// # Errors
/// When the source fails.
pub(super) fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read_pieces(pieces: Vec<Vec<u8>>, verified: bool) -> io::Result<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(pieces.len() + 1);
        for piece in pieces {
            sender.try_send(Piece::Data(piece.into())).unwrap();
        }
        if verified {
            sender.try_send(Piece::Verified).unwrap();
        }
        drop(sender);
        let mut out = Vec::new();
        plain(PieceReader::new(receiver))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn a_stream_that_was_not_verified_does_not_end_well() {
        for bytes in [gzip(b"abc"), b"abc".to_vec(), zstd::encode_all(&b"abc"[..], 1).unwrap(), Vec::new()] {
            assert!(read_pieces(vec![bytes.clone()], true).is_ok());
            assert_eq!(read_pieces(vec![bytes], false).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        }
    }

    #[test]
    fn reads_several_members_and_frames() {
        let two_members = [gzip(b"abc"), gzip(b"def")].concat();
        assert_eq!(read_pieces(vec![two_members], true).unwrap(), b"abcdef");
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let frames = [&skippable[..], &frame(b"abc"), &skippable, &frame(b"def")].concat();
        assert_eq!(read_pieces(vec![frames], true).unwrap(), b"abcdef");
    }

    #[test]
    fn a_broken_stream_is_an_error() {
        let mut cut = gzip(&[7; 1000]);
        cut.truncate(cut.len() - 4);
        assert!(read_pieces(vec![cut], true).is_err());
        let mut wrong = gzip(b"abcdefgh");
        let last = wrong.len() - 6;
        wrong[last] ^= 1;
        assert!(read_pieces(vec![wrong], true).is_err());
        assert!(read_pieces(vec![vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0]], true).is_err());
    }

    proptest! {
        #[test]
        fn gives_back_what_was_packed_however_it_is_cut(
            bytes in proptest::collection::vec(0u8..4, 0..5000), cut in 1usize..200, kind in 0u8..3
        ) {
            let packed = match kind {
                0 => gzip(&bytes),
                1 => zstd::encode_all(&bytes[..], 3).unwrap(),
                _ => bytes.clone(),
            };
            let pieces = packed.chunks(cut).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(read_pieces(pieces, true).unwrap(), bytes);
        }
    }
}
