//! Reads an image of ours back into a tree.
//!
//! Only what [`super::writer`] writes is understood. The bytes come from a disk and may be anything: every offset is checked,
//! and an image that makes no sense is an error, never a panic or an endless walk.

use super::chunks::{self, Chunk};
use super::dirents;
use super::format::{
    BLOCK, BLOCK_BITS, BLOCK_LEN, CHUNK_BITS_MASK, CHUNK_INDEX_BYTES, CHUNK_INDEX_LEN, CHUNK_INDEXES, FORMAT_EXTENDED,
    HOLE, INODE_BYTES, LAYOUT_CHUNKS, LAYOUT_INLINE, LAYOUT_PLAIN, MAGIC, SLOT_BYTES, SLOT_LEN, SUPERBLOCK_AT, mode,
    round_up, superblock_checksum,
};
use super::tree::{
    Data, DeviceNumber, Directory, Inode, InodeId, Metadata, NAME_MAX, Node, Origin, Regular, Timestamp, Tree,
};
use super::{marks, xattrs};

/// Why bytes are not an image of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The superblock is missing or its checksum does not match.
    #[error("read erofs image: {what} of the superblock is wrong")]
    Superblock {
        /// Which field.
        what: &'static str,
    },
    /// An inode is not one.
    #[error("read erofs image: {what} of the inode at slot {number} is wrong")]
    Inode {
        /// The inode's number.
        number: u64,
        /// Which part.
        what: &'static str,
    },
}

/// The tree that an image holds.
pub fn read_image(bytes: &[u8]) -> Result<Tree, ReadError> {
    let image = Image::open(bytes)?;
    let root = image.root;
    let mut tree = Tree::new();
    // By number: an inode begins at each slot at most.
    let mut known: Vec<Option<InodeId>> = vec![None; bytes.len().div_ceil(SLOT_LEN)];
    let (inode, names) = image.inode(root, InodeId::ROOT)?;
    if names.is_none() {
        return Err(ReadError::Inode { number: root, what: "type" });
    }
    *tree.inode_mut(InodeId::ROOT) = inode;
    *slot(&mut known, root)? = Some(InodeId::ROOT);
    let mut open = vec![(InodeId::ROOT, names.unwrap_or_default())];
    while let Some((directory, names)) = open.pop() {
        let mut entries = Vec::with_capacity(names.len());
        for (name, number) in names {
            let known = slot(&mut known, number)?;
            let id = match *known {
                Some(id) if tree.directory(id).is_some() => {
                    return Err(ReadError::Inode { number, what: "second name" });
                }
                Some(id) => id,
                None => {
                    let (inode, names) = image.inode(number, directory)?;
                    let id = tree.add(inode);
                    *known = Some(id);
                    open.extend(names.map(|names| (id, names)));
                    id
                }
            };
            entries.push((name.into(), id));
        }
        if let Some(directory) = tree.directory_mut(directory) {
            // They are in order, and a map that is made of all at once is made fast.
            directory.entries = entries.into_iter().collect();
        }
    }
    Ok(tree)
}

fn slot(known: &mut [Option<InodeId>], number: u64) -> Result<&mut Option<InodeId>, ReadError> {
    let at = usize::try_from(number).unwrap_or(usize::MAX);
    known.get_mut(at).ok_or(ReadError::Inode { number, what: "place" })
}

/// An image whose superblock makes sense.
struct Image<'a> {
    bytes: &'a [u8],
    /// The number of the root.
    root: u64,
    /// What begins at the area of shared attributes.
    shared: &'a [u8],
}

impl<'a> Image<'a> {
    /// Checks the superblock.
    fn open(bytes: &'a [u8]) -> Result<Self, ReadError> {
        let wrong = |what| ReadError::Superblock { what };
        let block = at(bytes, SUPERBLOCK_AT, BLOCK).ok_or(wrong("length"))?;
        if u32_at(block, 0) != MAGIC {
            return Err(wrong("magic number"));
        }
        let mut zeroed = block.to_vec();
        zeroed[4..8].fill(0);
        if superblock_checksum(&zeroed) != u32_at(block, 4) {
            return Err(wrong("checksum"));
        }
        if block[12] != BLOCK_BITS {
            return Err(wrong("block size"));
        }
        if u64::from(u32_at(block, 36)) * BLOCK != bytes.len() as u64 {
            return Err(wrong("image length"));
        }
        let shared_at = u64::from(u32_at(block, 44)) * BLOCK;
        let shared = bytes.len() as u64;
        let shared = at(bytes, shared_at, shared.saturating_sub(shared_at)).ok_or(wrong("attribute area"))?;
        Ok(Self { bytes, root: u64::from(u16_at(block, 14)), shared })
    }

    /// One inode, and the entries of a directory.
    fn inode(&self, number: u64, parent: InodeId) -> Result<(Inode, Option<Names<'a>>), ReadError> {
        let bytes = self.bytes;
        let wrong = |what| ReadError::Inode { number, what };
        let place = number.checked_mul(SLOT_BYTES).ok_or(wrong("number"))?;
        let raw = at(bytes, place, INODE_BYTES).ok_or(wrong("place"))?;
        let format = u16_at(raw, 0);
        if format & 1 != FORMAT_EXTENDED {
            return Err(wrong("version"));
        }
        let xattr_bytes = xattrs::size_of_count(u16_at(raw, 2));
        let xattr_slice = at(bytes, place + INODE_BYTES, xattr_bytes).ok_or(wrong("attribute length"))?;
        let metadata = Metadata {
            mode: u16_at(raw, 4) & 0o7777,
            uid: u32_at(raw, 24),
            gid: u32_at(raw, 28),
            mtime: Timestamp { seconds: u64_at(raw, 32).cast_signed(), nanoseconds: u32_at(raw, 40) },
            xattrs: xattrs::decode(xattr_slice, self.shared).ok_or(wrong("attribute"))?,
        };
        let body = Body {
            bytes,
            layout: format >> 1,
            size: u64_at(raw, 8),
            special: u32_at(raw, 16),
            behind: place + INODE_BYTES + xattr_bytes,
        };
        let mut names = None;
        let node = match u16_at(raw, 4) & mode::TYPE {
            mode::REGULAR => Node::Regular(body.regular().ok_or(wrong("chunks"))?),
            mode::DIRECTORY => {
                names = Some(body.names().ok_or(wrong("entries"))?);
                Node::Directory(Directory::new(parent, Origin::Stated))
            }
            mode::SYMLINK => Node::Symlink(body.content().ok_or(wrong("target"))?.concat().into()),
            mode::CHAR => Node::CharDevice(decode_device(body.special)),
            mode::BLOCK => Node::BlockDevice(decode_device(body.special)),
            mode::FIFO => Node::Fifo,
            mode::SOCKET => Node::Socket,
            _ => return Err(wrong("type")),
        };
        let mut inode = Inode { metadata, node };
        marks::take(&mut inode);
        Ok((inode, names))
    }
}

type Names<'a> = Vec<(&'a [u8], u64)>;

/// What an inode says of its content.
struct Body<'a> {
    bytes: &'a [u8],
    layout: u16,
    size: u64,
    special: u32,
    /// First byte behind inode and attributes.
    behind: u64,
}

impl<'a> Body<'a> {
    /// The content of a directory or link: the part in blocks, the part behind the inode.
    fn content(&self) -> Option<[&'a [u8]; 2]> {
        let in_blocks = match self.layout {
            LAYOUT_PLAIN => self.size,
            LAYOUT_INLINE => self.size - self.size % BLOCK,
            _ => return None,
        };
        let blocks = at(self.bytes, u64::from(self.special) * BLOCK, in_blocks)?;
        let tail = at(self.bytes, self.behind, self.size - in_blocks)?;
        Some([blocks, tail])
    }

    fn names(&self) -> Option<Names<'a>> {
        let mut names = Vec::new();
        for part in self.content()? {
            for block in part.chunks(BLOCK_LEN) {
                names.extend(dirents::decode_block(block)?);
            }
        }
        names.retain(|(name, _)| *name != b"." && *name != b"..");
        let valid = |name: &[u8]| !name.is_empty() && name.len() <= NAME_MAX && !name.contains(&b'/');
        names.iter().all(|(name, _)| valid(name)).then_some(names)
    }

    fn regular(&self) -> Option<Regular> {
        if self.size == 0 {
            return Some(Regular { size: 0, data: Data::Sparse(Box::default()) });
        }
        let format = u16::try_from(self.special).ok()?;
        if self.layout != LAYOUT_CHUNKS || format & !CHUNK_BITS_MASK != CHUNK_INDEXES {
            return None;
        }
        let bits = format & CHUNK_BITS_MASK;
        let count = chunks::count(self.size, bits);
        let length = count.checked_mul(CHUNK_INDEX_BYTES)?;
        let indexes = at(self.bytes, round_up(self.behind, CHUNK_INDEX_BYTES), length)?;
        let mut places = Vec::new();
        for index in indexes.chunks(CHUNK_INDEX_LEN) {
            places.push(match u32_at(index, 4) {
                HOLE => Chunk::Hole,
                block => Chunk::At { device: u16_at(index, 2).checked_sub(1)?, block },
            });
        }
        Some(Regular { size: self.size, data: chunks::join(self.size, bits, &places) })
    }
}

fn decode_device(number: u32) -> DeviceNumber {
    DeviceNumber { major: number >> 8 & 0xfff, minor: number & 0xff | number >> 12 & 0xf_ff00 }
}

/// Bytes at a place of the image, if it has so many.
fn at(bytes: &[u8], start: u64, length: u64) -> Option<&[u8]> {
    let end = usize::try_from(start.checked_add(length)?).ok()?;
    bytes.get(usize::try_from(start).ok()?..end)
}

/// Fields of a slice whose length the caller has checked; a field beyond it reads as zero.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|field| field.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).map_or(0, u64::from_le_bytes)
}
