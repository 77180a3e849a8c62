//! Where every inode of an image goes, before a byte of it is written.
//!
//! Inodes follow each other in 32-byte slots, the root first. The tail of a directory or a link target follows its inode
//! where it then lies within one block, as the kernel demands; else all of it goes to the block area behind the inodes.
//!
//! Pure: no I/O, no clock, no randomness.

use super::chunks;
use super::dirents;
use super::format::{
    BLOCK, CHUNK_INDEX_BYTES, DEVICE_SLOT_BYTES, INODE_BYTES, LAYOUT_CHUNKS, LAYOUT_INLINE, LAYOUT_PLAIN, SLOT_BYTES,
    SUPERBLOCK_AT, SUPERBLOCK_BYTES, round_up,
};
use super::marks;
use super::tree::{Inode, InodeId, Node, Tree};
use super::xattrs::Pool;

/// The plan of an image.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    /// The inodes in the order of their places.
    pub(crate) order: Vec<InodeId>,
    /// By arena index. What no name leads to keeps the default.
    pub(crate) places: Vec<Place>,
    /// Attributes that several inodes have.
    pub(crate) shared: Pool<'a>,
    /// First block behind the inodes, where those attributes go.
    pub(crate) shared_area: u64,
    /// First block behind them.
    pub(crate) block_area: u64,
    /// Blocks of the whole image.
    pub(crate) blocks: u64,
}

/// Where one inode goes and how its content is laid out.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    /// Byte address of the inode.
    pub(crate) at: u64,
    /// Bytes of attributes behind it.
    pub(crate) xattr_bytes: u64,
    /// Bytes of content, for `stat`.
    pub(crate) size: u64,
    /// One of the `LAYOUT_` values.
    pub(crate) layout: u16,
    /// First block of the content in the block area, where it has some there.
    pub(crate) first_block: u64,
    /// Names that lead here.
    pub(crate) links: u32,
}

impl Place {
    /// The number by which directories name the inode.
    pub(crate) fn number(&self) -> u64 {
        self.at / SLOT_BYTES
    }

    /// How many bytes of the content go to the block area.
    pub(crate) fn bytes_in_blocks(&self) -> u64 {
        match self.layout {
            LAYOUT_INLINE => self.size - self.size % BLOCK,
            LAYOUT_PLAIN => self.size,
            _ => 0,
        }
    }
}

/// Lays out an image of this tree with this many devices.
pub(crate) fn plan(tree: &Tree, devices: usize) -> Layout<'_> {
    let order = tree.reachable();
    let shared = Pool::of(order.iter().flat_map(|id| marks::with_marks(tree.inode(*id))));
    let mut places = vec![Place::default(); tree.arena_len()];
    count_links(tree, &order, &mut places);
    let mut at = round_up(SUPERBLOCK_AT + SUPERBLOCK_BYTES + devices as u64 * DEVICE_SLOT_BYTES, BLOCK);
    for id in &order {
        let place = &mut places[id.index()];
        at = put(tree.inode(*id), &shared, at, place);
    }
    let shared_area = at.div_ceil(BLOCK);
    let block_area = shared_area + (shared.bytes().len() as u64).div_ceil(BLOCK);
    let mut blocks = block_area;
    for id in &order {
        let place = &mut places[id.index()];
        place.first_block = blocks;
        blocks += place.bytes_in_blocks().div_ceil(BLOCK);
    }
    Layout { order, places, shared, shared_area, block_area, blocks }
}

/// Fills in an inode's place, the next free byte being `free`; returns the next free byte behind it.
fn put<'a>(inode: &'a Inode, shared: &Pool<'a>, free: u64, place: &mut Place) -> u64 {
    place.xattr_bytes = shared.size(marks::with_marks(inode));
    let head = INODE_BYTES + place.xattr_bytes;
    place.at = round_up(free, SLOT_BYTES);
    match &inode.node {
        Node::Regular(file) if file.size > 0 => {
            place.size = file.size;
            place.layout = LAYOUT_CHUNKS;
            let indexes = chunks::count(file.size, chunks::bits(file)) * CHUNK_INDEX_BYTES;
            round_up(place.at + head, CHUNK_INDEX_BYTES) + indexes
        }
        Node::Directory(directory) => {
            place.size = dirents::size(dirents::names(directory).into_iter());
            put_tail(head, place)
        }
        Node::Symlink(target) | Node::LinkBelow(target) => {
            place.size = target.len() as u64;
            put_tail(head, place)
        }
        Node::Regular(_) | Node::CharDevice(_) | Node::BlockDevice(_) | Node::Fifo | Node::Socket | Node::Whiteout => {
            place.at + head
        }
    }
}

/// Moves an inode on, slot by slot, until its tail lies within one block; gives up within a block's worth of slots.
fn put_tail(head: u64, place: &mut Place) -> u64 {
    let tail = place.size % BLOCK;
    if tail == 0 {
        place.layout = LAYOUT_PLAIN;
        return place.at + head;
    }
    for shift in (0..BLOCK / SLOT_BYTES).map(|slots| slots * SLOT_BYTES) {
        if (place.at + shift + head) % BLOCK + tail <= BLOCK {
            place.at += shift;
            place.layout = LAYOUT_INLINE;
            return place.at + head + tail;
        }
    }
    place.layout = LAYOUT_PLAIN;
    place.at + head
}

fn count_links(tree: &Tree, order: &[InodeId], places: &mut [Place]) {
    places[InodeId::ROOT.index()].links += 2;
    for id in order {
        let Some(directory) = tree.directory(*id) else { continue };
        for child in directory.entries.values() {
            if tree.directory(*child).is_some() {
                places[child.index()].links += 2;
                places[id.index()].links += 1;
            } else {
                places[child.index()].links += 1;
            }
        }
    }
}
