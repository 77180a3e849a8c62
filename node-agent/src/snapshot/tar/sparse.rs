//! Sparse files in tars: which pieces of the file the data are, everything else being zeros.
//!
//! Pure: no I/O, no clock, no randomness.

use super::header::{BLOCK, text};
use super::number;

/// One piece of a sparse file that the tar has data for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where in the file.
    pub(crate) offset: u64,
    /// How many bytes.
    pub(crate) length: u64,
}

/// The pieces of a sparse file and its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// Bytes, holes included.
    pub(crate) size: u64,
    /// The pieces in order; their data follow each other without a gap.
    pub(crate) pieces: Vec<Piece>,
}

impl SparseMap {
    /// The map without its empty pieces, if it makes sense: in order, apart, within the size, as long as the data.
    pub(crate) fn checked(mut self, data_bytes: u64) -> Option<Self> {
        self.pieces.retain(|piece| piece.length > 0);
        let (mut end, mut total) = (0u64, 0u64);
        for piece in &self.pieces {
            if piece.offset < end {
                return None;
            }
            end = piece.offset.checked_add(piece.length)?;
            total = total.checked_add(piece.length)?;
        }
        (end <= self.size && total == data_bytes).then_some(self)
    }
}

/// Adds the pairs of an old GNU header or continuation block, 24 bytes each; an empty pair ends them.
pub(crate) fn read_pairs(bytes: &[u8], pieces: &mut Vec<Piece>) -> Option<()> {
    for pair in bytes.chunks_exact(24) {
        if text(&pair[..12]).is_empty() && pair[0] & 0x80 == 0 {
            break;
        }
        pieces.push(Piece { offset: number::unsigned(&pair[..12])?, length: number::unsigned(&pair[12..])? });
    }
    Some(())
}

/// Pairs in a continuation block, and the flag behind them that says whether one more block follows.
pub(crate) const CONTINUATION_PAIRS: usize = 21 * 24;

/// The map at the start of the data (PAX sparse 1.0): decimal numbers, a line each, the count first, then the pairs, in
/// whole blocks.
#[derive(Debug, Default)]
pub(crate) struct MapReader {
    bytes: Vec<u8>,
    lines: usize,
    count: Option<usize>,
}

impl MapReader {
    /// Takes one more block; gives the pieces once they are complete. `Err` where it is no map, or too long a one.
    pub(crate) fn read(&mut self, block: &[u8; BLOCK], extents_max: usize) -> Result<Option<Vec<Piece>>, ()> {
        self.bytes.extend_from_slice(block);
        self.lines += block.iter().filter(|byte| **byte == b'\n').count();
        let count = match self.count {
            Some(count) => count,
            None => {
                let line = self.bytes.split(|byte| *byte == b'\n').next().filter(|_| self.lines > 0).ok_or(())?;
                let count = number::decimal(line).and_then(|count| usize::try_from(count).ok()).ok_or(())?;
                *self.count.insert(count)
            }
        };
        if count > extents_max {
            return Err(());
        }
        if self.lines <= count * 2 {
            return Ok(None);
        }
        let mut numbers = self.bytes.split(|byte| *byte == b'\n').skip(1);
        let mut next = || numbers.next().and_then(number::decimal).ok_or(());
        let mut pieces = Vec::with_capacity(count);
        for _ in 0..count {
            pieces.push(Piece { offset: next()?, length: next()? });
        }
        Ok(Some(pieces))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(size: u64, pieces: &[(u64, u64)]) -> SparseMap {
        SparseMap {
            size,
            pieces: pieces.iter().map(|(offset, length)| Piece { offset: *offset, length: *length }).collect(),
        }
    }

    #[test]
    fn maps_that_make_no_sense_are_refused() {
        assert!(map(100, &[(0, 10), (50, 50)]).checked(60).is_some());
        assert!(map(100, &[(100, 0)]).checked(0).is_some());
        assert!(map(100, &[(50, 10), (0, 10)]).checked(20).is_none(), "out of order");
        assert!(map(100, &[(0, 20), (10, 10)]).checked(30).is_none(), "overlapping");
        assert!(map(100, &[(0, 101)]).checked(101).is_none(), "beyond the size");
        assert!(map(100, &[(0, 10)]).checked(11).is_none(), "not as long as the data");
        assert!(map(u64::MAX, &[(u64::MAX, 2)]).checked(2).is_none(), "overflow");
    }

    #[test]
    fn an_empty_pair_ends_a_block_of_pairs() {
        let pair = b"00000000010\x0000000000020\0";
        let mut pieces = Vec::new();
        read_pairs(&[&pair[..], &[0; 24], pair].concat(), &mut pieces).expect("pairs");
        assert_eq!(pieces, [Piece { offset: 8, length: 16 }]);
    }

    proptest! {
        #[test]
        fn a_map_in_the_data_is_read(pieces in prop::collection::vec((0u64..1 << 40, 0u64..1 << 30), 0..100)) {
            let mut text = format!("{}\n", pieces.len());
            for (offset, length) in &pieces {
                text.push_str(&format!("{offset}\n{length}\n"));
            }
            let mut bytes = text.into_bytes();
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            let mut reader = MapReader::default();
            let mut found = None;
            for block in bytes.chunks(BLOCK) {
                prop_assert!(found.is_none());
                found = reader.read(block.try_into().expect("whole blocks"), 100).expect("a map");
            }
            prop_assert_eq!(found, Some(map(0, &pieces).pieces));
        }

        #[test]
        fn any_block_is_read_without_panic(bytes in prop::collection::vec(prop::sample::select(b"0123456789\n\0x".to_vec()), BLOCK)) {
            let _ = MapReader::default().read(bytes.as_slice().try_into().expect("one block"), 9);
        }
    }
}
