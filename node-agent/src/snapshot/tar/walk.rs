//! The state machine over a tar stream.
//!
//! ```text
//!              +-------------------------------------------------------+
//!              v                                                       |
//!  start --> Header --> Extension (x g L K) ---------> Padding --------+
//!              |                                          ^            |
//!              +--> Pairs (old GNU sparse) --+            |            |
//!              +--> Map (PAX sparse 1.0) ----+--> Data ---+            |
//!              |                                                       |
//!              +--> entry without data --------------------------------+
//!              +--> two zero blocks --> End (what follows is ignored, as every tar does)
//! ```
//!
//! Pure: no I/O, no clock, no randomness.

use super::entry::{Entry, EntryKind, RegularData};
use super::error::TarError;
use super::header::{BLOCK, Header, text};
use super::pax::{MalformedRecord, Overrides, SparseKind};
use super::sparse::{CONTINUATION_PAIRS, MapReader, Piece, SparseMap, read_pairs};
use crate::erofs::tree::{DeviceNumber, Timestamp, Xattr};
use crate::snapshot::limits::Limits;

/// What a walker calls back.
pub(crate) trait Visitor {
    /// What may go wrong in here; a tar's own errors are passed through it.
    type Error: From<TarError>;

    /// An entry. Its data, if it has any, come next.
    fn entry(&mut self, entry: Entry) -> Result<(), Self::Error>;

    /// Bytes of the regular file that was the last entry, and where in the file they belong.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// Walks a tar that arrives in chunks.
#[derive(Debug)]
pub(crate) struct Walker {
    limits: Limits,
    state: State,
    /// Bytes of the block that is being collected.
    block: Vec<u8>,
    /// Bytes taken so far.
    at: u64,
    /// Where the current header began.
    header_at: u64,
    zero_blocks: u8,
    global: Overrides,
    next: Overrides,
}

#[derive(Debug)]
enum State {
    Header,
    Extension { kind: u8, size: u64, bytes: Vec<u8> },
    Pairs { header: Box<Header>, pieces: Vec<Piece> },
    Map { header: Box<Header>, size: u64, data: u64, reader: MapReader },
    Data(DataState),
    Padding { left: u64, zero: bool },
    End,
}

/// The data of a regular file, of which `left` bytes are to come.
#[derive(Debug)]
struct DataState {
    left: u64,
    padding: u64,
    /// Pieces that are not over yet, the current one last, cut to what is to come of it.
    pieces: Vec<Piece>,
    sparse: bool,
}

impl Walker {
    /// A walker at the start of a tar.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Header,
            block: Vec::with_capacity(BLOCK),
            at: 0,
            header_at: 0,
            zero_blocks: 0,
            global: Overrides::default(),
            next: Overrides::default(),
        }
    }

    /// Takes the next bytes of the tar.
    pub(crate) fn feed<V: Visitor>(&mut self, mut bytes: &[u8], visitor: &mut V) -> Result<(), V::Error> {
        while !bytes.is_empty() {
            let taken = self.step(bytes, visitor)?;
            self.at += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// The tar is over: was it complete?
    pub(crate) fn finish(&self) -> Result<(), TarError> {
        let complete = match &self.state {
            State::End => true,
            // Many writers leave the end marker out, and the last file's padding too.
            State::Header => self.block.is_empty(),
            State::Padding { .. } => true,
            State::Extension { .. } | State::Pairs { .. } | State::Map { .. } | State::Data(_) => false,
        };
        if complete { Ok(()) } else { Err(TarError::Truncated { at: self.at }) }
    }

    /// Takes some of the bytes, at least one; says how many.
    fn step<V: Visitor>(&mut self, bytes: &[u8], visitor: &mut V) -> Result<usize, V::Error> {
        match &mut self.state {
            State::Header | State::Pairs { .. } | State::Map { .. } => {
                if self.block.is_empty() && matches!(self.state, State::Header) {
                    self.header_at = self.at;
                }
                let taken = bytes.len().min(BLOCK - self.block.len());
                self.block.extend_from_slice(&bytes[..taken]);
                if let Ok(block) = <[u8; BLOCK]>::try_from(self.block.as_slice()) {
                    self.block.clear();
                    self.whole_block(block, self.at + taken as u64, visitor)?;
                }
                Ok(taken)
            }
            State::Extension { kind, size, bytes: collected } => {
                let taken = clamp(*size - collected.len() as u64, bytes.len());
                collected.extend_from_slice(&bytes[..taken]);
                if collected.len() as u64 == *size {
                    let (kind, padding, collected) = (*kind, padding(*size), std::mem::take(collected));
                    self.extension(kind, &collected)?;
                    self.state = after_data(padding, false);
                }
                Ok(taken)
            }
            State::Data(data) => {
                let taken = data.take(bytes, visitor)?;
                if data.left == 0 {
                    self.state = after_data(data.padding, data.sparse);
                }
                Ok(taken)
            }
            State::Padding { left, zero } => {
                let taken = clamp(*left, bytes.len());
                // A sparse file's last block may be read to its end, so what fills it up must be zeros.
                if *zero && bytes[..taken].iter().any(|byte| *byte != 0) {
                    return Err(TarError::Sparse { at: self.header_at, path: String::from("(padding)") }.into());
                }
                *left -= taken as u64;
                if *left == 0 {
                    self.state = State::Header;
                }
                Ok(taken)
            }
            State::End => Ok(bytes.len()),
        }
    }

    /// A whole block has been collected; `end` is the byte behind it.
    fn whole_block<V: Visitor>(&mut self, block: [u8; BLOCK], end: u64, visitor: &mut V) -> Result<(), V::Error> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Header => self.header(block, end, visitor),
            State::Pairs { header, mut pieces } => {
                let read = read_pairs(&block[..CONTINUATION_PAIRS], &mut pieces);
                if read.is_none() || pieces.len() > self.limits.sparse_extents {
                    return Err(self.sparse_error(&header).into());
                }
                if block[CONTINUATION_PAIRS] != 0 {
                    self.state = State::Pairs { header, pieces };
                    return Ok(());
                }
                let size = self.number(&header, "size", header.sparse_size())?;
                self.regular(&header, end, Some(SparseMap { size, pieces }), None, visitor)
            }
            State::Map { header, size, data, mut reader } => {
                let left = data.checked_sub(BLOCK as u64).ok_or_else(|| self.sparse_error(&header))?;
                let found = reader.read(&block, self.limits.sparse_extents).map_err(|()| self.sparse_error(&header))?;
                match found {
                    None => {
                        self.state = State::Map { header, size, data: left, reader };
                        Ok(())
                    }
                    Some(pieces) => self.regular(&header, end, Some(SparseMap { size, pieces }), Some(left), visitor),
                }
            }
            state @ (State::Extension { .. } | State::Data(_) | State::Padding { .. } | State::End) => {
                self.state = state;
                Ok(())
            }
        }
    }

    fn header<V: Visitor>(&mut self, block: [u8; BLOCK], end: u64, visitor: &mut V) -> Result<(), V::Error> {
        if block.iter().all(|byte| *byte == 0) {
            self.zero_blocks += 1;
            if self.zero_blocks == 2 {
                self.state = State::End;
            }
            return Ok(());
        }
        if self.zero_blocks > 0 {
            return Err(TarError::LoneZeroBlock { at: self.header_at - BLOCK as u64 }.into());
        }
        let header = Header::new(block);
        if !header.checksum_matches() {
            return Err(TarError::Checksum { at: self.header_at }.into());
        }
        let kind = header.type_flag();
        match kind {
            b'x' | b'g' | b'L' | b'K' => self.open_extension(kind, &header).map_err(V::Error::from),
            b'S' => self.open_sparse(header, end, visitor),
            b'0' | b'7' | 0 => self.open_regular(header, end, visitor),
            _ => {
                let kind = self.kind_without_data(&header)?;
                let entry = self.entry(&header, kind)?;
                visitor.entry(entry)
            }
        }
    }

    fn open_extension(&mut self, kind: u8, header: &Header) -> Result<(), TarError> {
        let size = self.number(header, "size", header.size())?;
        if size > self.limits.extension_bytes {
            let limit = self.limits.extension_bytes;
            return Err(TarError::TooLong { at: self.header_at, what: "extended header", length: size, limit });
        }
        self.state = State::Extension { kind, size, bytes: Vec::new() };
        if size == 0 {
            self.extension(kind, &[])?;
            self.state = State::Header;
        }
        Ok(())
    }

    /// An extended header is complete.
    fn extension(&mut self, kind: u8, bytes: &[u8]) -> Result<(), TarError> {
        let at = self.header_at;
        let malformed = |record: MalformedRecord| TarError::Extended { at, record: record.0 };
        match kind {
            b'L' => {
                // A PAX path is the more exact one.
                self.next.path.get_or_insert_with(|| text(bytes).to_vec());
            }
            b'K' => {
                self.next.link.get_or_insert_with(|| text(bytes).to_vec());
            }
            b'g' => {
                let mut global = self.global.clone();
                global.read(bytes, self.limits.sparse_extents).map_err(malformed)?;
                self.global = global.inherited();
            }
            _ => self.next.read(bytes, self.limits.sparse_extents).map_err(malformed)?,
        }
        Ok(())
    }

    fn open_sparse<V: Visitor>(&mut self, header: Header, end: u64, visitor: &mut V) -> Result<(), V::Error> {
        let mut pieces = Vec::new();
        read_pairs(header.sparse_pairs(), &mut pieces).ok_or_else(|| self.sparse_error(&header))?;
        if header.sparse_goes_on() {
            self.state = State::Pairs { header: Box::new(header), pieces };
            return Ok(());
        }
        let size = self.number(&header, "size", header.sparse_size())?;
        self.regular(&header, end, Some(SparseMap { size, pieces }), None, visitor)
    }

    fn open_regular<V: Visitor>(&mut self, header: Header, end: u64, visitor: &mut V) -> Result<(), V::Error> {
        match self.next.sparse.kind() {
            Err(()) => Err(self.sparse_error(&header).into()),
            Ok(None) => {
                // Before there was a flag for directories they were files whose name ends with a slash.
                if header.type_flag() == 0 && self.path(&header).ends_with(b"/") {
                    let entry = self.entry(&header, EntryKind::Directory)?;
                    return visitor.entry(entry);
                }
                self.regular(&header, end, None, None, visitor)
            }
            Ok(Some(SparseKind::Known(map))) => self.regular(&header, end, Some(map), None, visitor),
            Ok(Some(SparseKind::InData(size))) => {
                let data = self.data_bytes(&header)?;
                let reader = MapReader::default();
                self.state = State::Map { header: Box::new(header), size, data, reader };
                Ok(())
            }
        }
    }

    /// A regular file whose data begin at `begin`, with `left` bytes of data or what the headers say.
    fn regular<V: Visitor>(
        &mut self,
        header: &Header,
        begin: u64,
        map: Option<SparseMap>,
        left: Option<u64>,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        let bytes = match left {
            Some(left) => left,
            None => self.data_bytes(header)?,
        };
        let map = match map {
            None => None,
            Some(map) => Some(map.checked(bytes).ok_or_else(|| self.sparse_error(header))?),
        };
        let size = map.as_ref().map_or(bytes, |map| map.size);
        let sparse = map.is_some();
        let pieces = map.map(|map| map.pieces);
        let whole = || vec![Piece { offset: 0, length: bytes }];
        let mut to_come = pieces.clone().unwrap_or_else(whole);
        to_come.reverse();
        let block = begin / BLOCK as u64;
        let entry = self.entry(header, EntryKind::Regular(RegularData { size, block, pieces }))?;
        visitor.entry(entry)?;
        if bytes > 0 {
            self.state = State::Data(DataState { left: bytes, padding: padding(bytes), pieces: to_come, sparse });
        }
        Ok(())
    }

    fn kind_without_data(&self, header: &Header) -> Result<EntryKind, TarError> {
        let link = || self.next.link.clone().unwrap_or_else(|| header.link());
        let device = || {
            let (major, minor) = header.device().ok_or_else(|| self.field_error(header, "device number"))?;
            // Linux packs twelve and twenty bits.
            let (Ok(major @ 0..=0xfff), Ok(minor @ 0..=0xf_ffff)) = (u32::try_from(major), u32::try_from(minor)) else {
                return Err(self.field_error(header, "device number"));
            };
            Ok(DeviceNumber { major, minor })
        };
        match header.type_flag() {
            b'1' => Ok(EntryKind::HardLink(link())),
            b'2' => Ok(EntryKind::Symlink(link())),
            b'3' => Ok(EntryKind::CharDevice(device()?)),
            b'4' => Ok(EntryKind::BlockDevice(device()?)),
            b'5' => Ok(EntryKind::Directory),
            b'6' => Ok(EntryKind::Fifo),
            kind => Err(TarError::Kind { at: self.header_at, path: self.shown_path(header), kind: char::from(kind) }),
        }
    }

    /// Header and extensions together; the extensions are used up.
    fn entry(&mut self, header: &Header, kind: EntryKind) -> Result<Entry, TarError> {
        let path = self.path(header);
        self.check_length("path", path.len(), self.limits.path_bytes)?;
        if let EntryKind::Symlink(target) | EntryKind::HardLink(target) = &kind {
            self.check_length("link target", target.len(), self.limits.path_bytes)?;
        }
        let id = |overriding: Option<u64>, global: Option<u64>, own: Option<u64>, field| {
            let id = self.number(header, field, overriding.or(global).or(own))?;
            // The highest is no id: to `chown` it means "leave the owner as it is".
            u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| self.field_error(header, field))
        };
        let uid = id(self.next.uid, self.global.uid, header.uid(), "uid")?;
        let gid = id(self.next.gid, self.global.gid, header.gid(), "gid")?;
        let own_time = || header.mtime().map(|seconds| Timestamp { seconds, nanoseconds: 0 });
        let mtime = self.next.mtime.or(self.global.mtime).or_else(own_time);
        let mtime = mtime.ok_or_else(|| self.field_error(header, "mtime"))?;
        let mode = (self.number(header, "mode", header.mode())? & 0o7777) as u16;
        let xattrs = self.take_xattrs()?;
        self.next = Overrides::default();
        Ok(Entry { path, mode, uid, gid, mtime, xattrs, kind })
    }

    /// The entry's own attributes, and those that hold for all entries unless they state another value.
    fn take_xattrs(&mut self) -> Result<Vec<Xattr>, TarError> {
        let mut xattrs = self.global.xattrs.clone();
        xattrs.append(&mut self.next.xattrs);
        let total = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.check_length("extended attributes", total, self.limits.xattr_bytes)?;
        Ok(xattrs.into_iter().map(|(name, value)| Xattr { name, value }).collect())
    }

    fn check_length(&self, what: &'static str, length: usize, limit: usize) -> Result<(), TarError> {
        if length <= limit {
            return Ok(());
        }
        Err(TarError::TooLong { at: self.header_at, what, length: length as u64, limit: limit as u64 })
    }

    fn path(&self, header: &Header) -> Vec<u8> {
        let given = self.next.sparse.name().or(self.next.path.as_ref());
        given.cloned().unwrap_or_else(|| header.path())
    }

    fn shown_path(&self, header: &Header) -> String {
        String::from_utf8_lossy(&self.path(header)).into_owned()
    }

    /// Bytes of data behind the headers: the PAX size counts where there is one.
    fn data_bytes(&self, header: &Header) -> Result<u64, TarError> {
        let size = self.number(header, "size", self.next.size.or_else(|| header.size()))?;
        // Room to round up without overflow; nothing real is near it.
        if size > i64::MAX as u64 { Err(self.field_error(header, "size")) } else { Ok(size) }
    }

    fn number(&self, header: &Header, field: &'static str, value: Option<u64>) -> Result<u64, TarError> {
        value.ok_or_else(|| self.field_error(header, field))
    }

    fn field_error(&self, header: &Header, field: &'static str) -> TarError {
        TarError::Field { at: self.header_at, path: self.shown_path(header), field }
    }

    fn sparse_error(&self, header: &Header) -> TarError {
        TarError::Sparse { at: self.header_at, path: self.shown_path(header) }
    }
}

impl DataState {
    fn take<V: Visitor>(&mut self, bytes: &[u8], visitor: &mut V) -> Result<usize, V::Error> {
        let Some(piece) = self.pieces.last_mut() else {
            // The map was checked to be as long as the data, so this is not reached; if it were, the data are skipped.
            let taken = clamp(self.left, bytes.len());
            self.left -= taken as u64;
            return Ok(taken);
        };
        let taken = clamp(piece.length, bytes.len());
        visitor.data(piece.offset, &bytes[..taken])?;
        piece.offset += taken as u64;
        piece.length -= taken as u64;
        self.left -= taken as u64;
        if piece.length == 0 {
            self.pieces.pop();
        }
        Ok(taken)
    }
}

/// The state behind data that are followed by this much padding.
fn after_data(padding: u64, zero: bool) -> State {
    if padding == 0 { State::Header } else { State::Padding { left: padding, zero } }
}

/// What fills the last block up.
fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn clamp(left: u64, available: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(available)
}
