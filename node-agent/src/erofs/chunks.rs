//! How a regular file's bytes are described to EROFS: equal chunks of a power of two of blocks, each a run of blocks on one
//! device, or a hole.
//!
//! A file in one piece takes one chunk that covers it. A sparse file takes the largest chunk size that every border between
//! data and hole is a multiple of.
//!
//! Pure: no I/O, no clock, no randomness.

use super::format::{BLOCK, BLOCK_BITS, CHUNK_BITS_MASK, CHUNK_INDEXES, HOLE};
use super::tree::{Data, Extent, Regular};

/// Where one chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Zeros.
    Hole,
    /// From this block of this device on; devices count from zero here.
    At { device: u16, block: u32 },
}

/// The chunk bits of a file: chunk size is 512 << bits.
pub(crate) fn bits(file: &Regular) -> u16 {
    let blocks = file.size.div_ceil(BLOCK).max(1);
    let covering = u16::try_from(blocks.next_power_of_two().trailing_zeros()).unwrap_or(CHUNK_BITS_MASK);
    let bits = match &file.data {
        Data::Contiguous { .. } => covering,
        Data::Sparse(extents) => covering.min(sparse_bits(file.size, extents)),
    };
    bits.min(CHUNK_BITS_MASK)
}

/// log2 of the largest power of two of blocks that every border inside the file is a multiple of.
fn sparse_bits(size: u64, extents: &[Extent]) -> u16 {
    let mut borders = 0;
    for extent in extents {
        borders |= extent.offset;
        let end = extent.offset + extent.length;
        if end < size {
            borders |= end;
        }
    }
    if borders == 0 {
        return CHUNK_BITS_MASK;
    }
    u16::try_from(borders.trailing_zeros()).unwrap_or(0).saturating_sub(u16::from(BLOCK_BITS))
}

/// The format field for chunks of these bits.
pub(crate) fn format_field(bits: u16) -> u16 {
    CHUNK_INDEXES | bits
}

/// How many chunks a file of this size has.
pub(crate) fn count(size: u64, bits: u16) -> u64 {
    size.div_ceil(BLOCK << bits)
}

/// The chunks in order. `None` where a block number is beyond what 32 bits can name (2 TiB into a tar).
pub(crate) fn of(file: &Regular) -> Option<Vec<Chunk>> {
    let bits = bits(file);
    let chunk = BLOCK << bits;
    let total = count(file.size, bits);
    match &file.data {
        Data::Contiguous { device, block } => (0..total).map(|index| at(*device, block + (index << bits))).collect(),
        Data::Sparse(extents) => {
            let mut chunks = vec![Chunk::Hole; usize::try_from(total).ok()?];
            for extent in extents {
                let first = extent.offset / chunk;
                for index in 0..extent.length.div_ceil(chunk) {
                    let place = chunks.get_mut(usize::try_from(first + index).ok()?)?;
                    *place = at(extent.device, extent.block + (index << bits))?;
                }
            }
            Some(chunks)
        }
    }
}

fn at(device: u16, block: u64) -> Option<Chunk> {
    let block = u32::try_from(block).ok().filter(|block| *block != HOLE)?;
    Some(Chunk::At { device, block })
}

/// The reverse of [`of`]: what the file's data are, from its chunks.
pub(crate) fn join(size: u64, bits: u16, chunks: &[Chunk]) -> Data {
    let chunk = BLOCK << bits;
    let mut extents: Vec<Extent> = Vec::new();
    for (index, place) in (0u64..).zip(chunks) {
        let Chunk::At { device, block } = *place else { continue };
        let offset = index * chunk;
        let length = chunk.min(size.saturating_sub(offset));
        let block = u64::from(block);
        match extents.last_mut() {
            Some(last) if follows(last, offset, device, block) => last.length += length,
            _ => extents.push(Extent { offset, length, device, block }),
        }
    }
    match extents.as_slice() {
        [only] if only.offset == 0 && only.length == size => {
            Data::Contiguous { device: only.device, block: only.block }
        }
        _ => Data::Sparse(extents.into()),
    }
}

fn follows(last: &Extent, offset: u64, device: u16, block: u64) -> bool {
    last.offset + last.length == offset && last.device == device && last.block + last.length / BLOCK == block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(size: u64, extents: &[(u64, u64, u64)]) -> Regular {
        let extents = extents.iter().map(|(offset, length, block)| Extent {
            offset: *offset,
            length: *length,
            device: 0,
            block: *block,
        });
        Regular { size, data: Data::Sparse(extents.collect()) }
    }

    #[test]
    fn one_chunk_covers_a_plain_file() {
        for (size, expected) in [(1, 0), (512, 0), (513, 1), (5000, 4), (1 << 20, 11), ((1 << 20) + 1, 12)] {
            let file = Regular { size, data: Data::Contiguous { device: 2, block: 7 } };
            assert_eq!(bits(&file), expected, "size {size}");
            assert_eq!(of(&file), Some(vec![Chunk::At { device: 2, block: 7 }]), "size {size}");
        }
    }

    #[test]
    fn a_sparse_file_takes_the_largest_chunk_that_fits_every_border() {
        let file = sparse(1 << 20, &[(0, 4096, 10), (65536, 8192, 18)]);
        assert_eq!(bits(&file), 3);
        let chunks = of(&file).expect("small");
        assert_eq!(chunks.len(), 256);
        assert_eq!(chunks[0], Chunk::At { device: 0, block: 10 });
        assert_eq!(chunks[1], Chunk::Hole);
        assert_eq!(chunks[16], Chunk::At { device: 0, block: 18 });
        assert_eq!(chunks[17], Chunk::At { device: 0, block: 26 });
        assert_eq!(join(file.size, 3, &chunks), file.data);
    }

    #[test]
    fn a_file_of_one_hole_takes_few_chunks() {
        let file = sparse(1 << 30, &[]);
        assert_eq!(of(&file), Some(vec![Chunk::Hole]));
        assert_eq!(join(file.size, bits(&file), &[Chunk::Hole]), file.data);
    }

    #[test]
    fn the_last_extent_may_end_inside_a_block() {
        let file = sparse(10_000, &[(8192, 1808, 3)]);
        assert_eq!(of(&file), Some(vec![Chunk::Hole, Chunk::At { device: 0, block: 3 }]));
        assert_eq!(join(file.size, bits(&file), &of(&file).expect("small")), file.data);
    }

    #[test]
    fn a_file_of_more_than_a_tebibyte_takes_several_chunks() {
        let file = Regular { size: (1 << 40) + 1, data: Data::Contiguous { device: 0, block: 7 } };
        let chunks = [Chunk::At { device: 0, block: 7 }, Chunk::At { device: 0, block: 7 + (1 << 31) }];
        assert_eq!(of(&file).as_deref(), Some(&chunks[..]));
        assert_eq!(join(file.size, bits(&file), &chunks), file.data);
    }

    #[test]
    fn chunks_that_do_not_follow_each_other_stay_apart() {
        let first = Chunk::At { device: 0, block: 5 };
        for second in [Chunk::At { device: 1, block: 6 }, Chunk::At { device: 0, block: 9 }] {
            let data = join(2 * BLOCK, 0, &[first, second]);
            assert_eq!(of(&Regular { size: 2 * BLOCK, data }), Some(vec![first, second]));
        }
    }

    #[test]
    fn a_block_beyond_two_tebibytes_has_no_number() {
        let file = Regular { size: 1, data: Data::Contiguous { device: 0, block: u64::from(HOLE) } };
        assert_eq!(of(&file), None);
    }
}
