//! From a compressed layer to plain tar bytes, as a stream: gzip with any number of members and zeroes behind them, zstd with
//! any number of frames, or plain. The first bytes say which.
//!
//! Everything here blocks.

use std::io::{self, BufRead, Read};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

use super::partial::Partial;

/// The largest zstd window, as a power of two: what `zstd --long` makes. It bounds the decoder's memory.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;

/// What comes to be inflated.
#[derive(Debug)]
pub(super) enum Piece {
    /// The next compressed bytes, from a file that has them already.
    Kept(Bytes),
    /// The next compressed bytes, from the network.
    Data(Bytes),
    /// There are no more, and their digest is the right one.
    Verified,
}

/// Compressed bytes from a channel. It ends only after [`Piece::Verified`]: so whoever reads to the end knows that what was
/// read is what was asked for.
#[derive(Debug)]
pub(super) struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    partial: Option<Partial>,
    current: Bytes,
    verified: bool,
}

impl PieceReader {
    /// Reads from `pieces`; what is new is kept in `partial` as well.
    pub(super) fn new(pieces: mpsc::Receiver<Piece>, partial: Option<Partial>) -> Self {
        Self { pieces, partial, current: Bytes::new(), verified: false }
    }

    /// What was kept is not needed any more.
    pub(super) fn forget_partial(&mut self) {
        if let Some(mut partial) = self.partial.take() {
            partial.remove();
        }
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
                Some(Piece::Kept(data)) => self.current = data,
                Some(Piece::Data(data)) => {
                    if let Some(partial) = &mut self.partial {
                        partial.append(&data);
                    }
                    self.current = data;
                }
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
    /// One that no registry's tools make any more, by its name.
    Other(&'static str),
}

/// So many bytes tell every compression. A tar has a file's name there.
const START: usize = 10;

impl Compression {
    /// By the first bytes. A zstd stream may begin with a skippable frame, whose first byte is `0x50` to `0x5f`.
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59] => Self::Other("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz"),
            _ => Self::Plain,
        }
    }
}

/// A reader of the plain bytes of `source`.
///
/// # Errors
/// When `source` fails before its first bytes, a decoder cannot be made, or there is none for it.
pub(super) fn plain<'a>(mut source: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut start = Vec::with_capacity(START);
    while start.len() < START {
        let available = source.fill_buf()?;
        if available.is_empty() {
            break;
        }
        let taken = available.len().min(START - start.len());
        start.extend_from_slice(&available[..taken]);
        source.consume(taken);
    }
    let compression = Compression::of(&start);
    let source = Read::chain(io::Cursor::new(start), source);
    Ok(match compression {
        Compression::Gzip => Box::new(GzipMembers::new(source)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Compression::Plain => Box::new(source),
        Compression::Other(name) => {
            let why = format!("it is compressed with {name}, which is not supported: push it with gzip or zstd");
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
    })
}

/// Gzip members one after the other. Zeroes behind the last one are taken for the padding of a tape or a block, as gzip
/// itself does; anything else there is an error.
#[expect(clippy::large_enum_variant, reason = "there is one a layer, and it is on the heap as a whole")]
enum GzipMembers<R> {
    Member(flate2::bufread::GzDecoder<R>),
    /// Behind the last member.
    Padding(R),
    /// In between, and after an error.
    Moving,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(source: R) -> Self {
        Self::Member(flate2::bufread::GzDecoder::new(source))
    }

    /// What follows the end of a member.
    fn after_member(mut source: R) -> io::Result<Self> {
        Ok(match source.fill_buf()?.first() {
            Some(0) | None => Self::Padding(source),
            Some(_) => Self::new(source),
        })
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self {
                Self::Member(decoder) => match decoder.read(buffer)? {
                    0 if !buffer.is_empty() => {
                        if let Self::Member(decoder) = std::mem::replace(self, Self::Moving) {
                            *self = Self::after_member(decoder.into_inner())?;
                        }
                    }
                    count => return Ok(count),
                },
                Self::Padding(source) => return skip_zeroes(source),
                Self::Moving => return Err(io::Error::other("it was read on after an error")),
            }
        }
    }
}

/// Reads to the end, which comes after zeroes only.
fn skip_zeroes(source: &mut impl BufRead) -> io::Result<usize> {
    loop {
        let available = source.fill_buf()?;
        let count = available.len();
        if count == 0 {
            return Ok(0);
        }
        if available.iter().any(|&byte| byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "there is garbage behind the gzip data"));
        }
        source.consume(count);
    }
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
        plain(PieceReader::new(receiver, None))?.read_to_end(&mut out)?;
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
    fn zeroes_may_follow_gzip_and_nothing_else() {
        for zeroes in [1, 511, 70_000] {
            let padded = [gzip(b"abc"), gzip(b"def"), vec![0; zeroes]].concat();
            assert_eq!(read_pieces(vec![padded], true).unwrap(), b"abcdef");
        }
        for garbage in [&b"x"[..], b"\0x", &[0x1f, 0x8b], &gzip(b"y")[..12]] {
            let text = read_pieces(vec![gzip(b"abc"), garbage.to_vec()], true);
            assert!(text.is_err(), "{garbage:?}");
        }
        // Not before the digest is known to be right, either.
        let mut cut = gzip(b"abc");
        cut.push(0);
        assert_eq!(read_pieces(vec![cut], false).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[test]
    fn reads_zstd_chunked() {
        // One frame a file, then the table of contents and the footer in skippable frames.
        let skippable = |content: &[u8]| {
            let length = u32::try_from(content.len()).unwrap();
            [&[0x50, 0x2a, 0x4d, 0x18], &length.to_le_bytes()[..], content].concat()
        };
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let chunked = [frame(b"header"), frame(b"content"), skippable(b"table"), skippable(&[7; 64])].concat();
        assert_eq!(read_pieces(vec![chunked], true).unwrap(), b"headercontent");
    }

    #[test]
    fn a_window_that_would_take_too_much_memory_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(MAX_ZSTD_WINDOW_LOG + 1).unwrap();
        encoder.write_all(&[1; 1000]).unwrap();
        assert!(read_pieces(vec![encoder.finish().unwrap()], true).is_err());
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
