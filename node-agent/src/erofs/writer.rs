//! Writes a tree as an EROFS image, front to back, to any writer.

use std::io::{self, Write};

use super::chunks::{self, Chunk};
use super::dirents::{self, Dirent};
use super::format::{
    BLOCK, BLOCK_BITS, BLOCK_LEN, COMPAT_CHECKSUM, COMPAT_MTIME, DEVICE_SLOT_LEN, DEVICE_TAG_BYTES, DEVICES_MAX,
    FIRST_DEVICE_SLOT, FORMAT_EXTENDED, HOLE, INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE, INODE_LEN, LAYOUT_CHUNKS,
    LAYOUT_INLINE, MAGIC, SUPERBLOCK_AT, SUPERBLOCK_LEN, file_type, mode, superblock_checksum,
};
use super::layout::{self, Layout, Place};
use super::tree::{DeviceNumber, Inode, InodeId, NAME_MAX, Node, Regular, Tree};
use super::{marks, xattrs};

/// A device that holds the bytes of regular files: the tar of one layer.
#[derive(Debug, Clone)]
pub struct Device {
    /// What names it, at most 64 bytes: the hexadecimal digits of the layer's diff id.
    pub tag: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The writer failed.
    #[error("write erofs image")]
    Write(#[source] io::Error),
    /// More devices than a 16-bit number can tell apart.
    #[error("write erofs image: {count} devices, at most {DEVICES_MAX} can be named")]
    TooManyDevices {
        /// How many there are.
        count: usize,
    },
    /// A device is longer than 32 bits of blocks.
    #[error("write erofs image: device {tag} has {bytes} bytes, beyond what its blocks can number")]
    DeviceTooLong {
        /// The device.
        tag: String,
        /// Its length.
        bytes: u64,
    },
    /// The image is longer than 32 bits of blocks, or a file has attributes that EROFS cannot hold, or lies beyond 2 TiB
    /// of its device.
    #[error("write erofs image: inode {index} has {what} that the format cannot hold")]
    NotExpressible {
        /// The inode's place in the tree's arena.
        index: usize,
        /// What it has too much of.
        what: &'static str,
    },
}

/// Writes the image of a tree; returns its length in bytes, a multiple of the block size.
///
/// A layer's tree keeps its whiteouts (as character devices 0:0, as overlayfs has them), opaque directories and the like
/// as marks, so that reading the image gives the same tree back.
pub fn write_image(tree: &Tree, devices: &[Device], out: &mut impl Write) -> Result<u64, WriteError> {
    let layout = layout::plan(tree, devices.len());
    let mut image = Image { out, at: 0 };
    image.zeros_to(SUPERBLOCK_AT)?;
    image.put(&head(&layout, devices)?)?;
    let mut scratch = Vec::with_capacity(4096);
    for id in &layout.order {
        image.inode(tree, &layout, *id, &mut scratch)?;
    }
    image.zeros_to(layout.shared_area * BLOCK)?;
    image.put(layout.shared.bytes())?;
    image.zeros_to(layout.block_area * BLOCK)?;
    for id in &layout.order {
        image.blocks(tree, &layout, *id)?;
    }
    image.zeros_to(layout.blocks * BLOCK)?;
    image.out.flush().map_err(WriteError::Write)?;
    Ok(image.at)
}

/// The superblock and the device slots, padded to whole blocks.
fn head(layout: &Layout<'_>, devices: &[Device]) -> Result<Vec<u8>, WriteError> {
    let extra = u16::try_from(devices.len()).map_err(|_| WriteError::TooManyDevices { count: devices.len() })?;
    let root = layout.places[InodeId::ROOT.index()].number();
    let too_much = |what| WriteError::NotExpressible { index: InodeId::ROOT.index(), what };
    let root = u16::try_from(root).map_err(|_| too_much("a place"))?;
    let blocks = u32::try_from(layout.blocks).map_err(|_| too_much("an image length"))?;
    // It lies within the image, so it is a smaller number.
    let shared = u32::try_from(layout.shared_area).map_err(|_| too_much("an image length"))?;
    let mut bytes = vec![0; SUPERBLOCK_LEN];
    let mut field = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    field(0, &MAGIC.to_le_bytes());
    field(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
    field(12, &[BLOCK_BITS]);
    field(14, &root.to_le_bytes());
    field(16, &(layout.order.len() as u64).to_le_bytes());
    field(36, &blocks.to_le_bytes());
    field(44, &shared.to_le_bytes());
    field(80, &(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE).to_le_bytes());
    field(86, &extra.to_le_bytes());
    field(88, &FIRST_DEVICE_SLOT.to_le_bytes());
    for device in devices {
        device_slot(device, &mut bytes)?;
    }
    bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN), 0);
    let checksum = superblock_checksum(&bytes[..BLOCK_LEN]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

fn device_slot(device: &Device, bytes: &mut Vec<u8>) -> Result<(), WriteError> {
    let too_long = || WriteError::DeviceTooLong { tag: device.tag.clone(), bytes: device.bytes };
    let blocks = u32::try_from(device.bytes.div_ceil(BLOCK)).map_err(|_| too_long())?;
    let start = bytes.len();
    let tag = device.tag.as_bytes();
    bytes.extend_from_slice(&tag[..tag.len().min(DEVICE_TAG_BYTES)]);
    bytes.resize(start + DEVICE_TAG_BYTES, 0);
    bytes.extend_from_slice(&blocks.to_le_bytes());
    bytes.resize(start + DEVICE_SLOT_LEN, 0);
    Ok(())
}

/// A writer that knows where it is.
struct Image<'a, W> {
    out: &'a mut W,
    at: u64,
}

impl<W: Write> Image<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.out.write_all(bytes).map_err(WriteError::Write)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn zeros_to(&mut self, at: u64) -> Result<(), WriteError> {
        const ZEROS: [u8; 2048] = [0; 2048];
        while self.at < at {
            let missing = slice_len(at - self.at);
            self.put(&ZEROS[..missing.min(ZEROS.len())])?;
        }
        Ok(())
    }

    /// An inode with what follows it.
    fn inode<'a>(
        &mut self,
        tree: &'a Tree,
        layout: &Layout<'a>,
        id: InodeId,
        scratch: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        let (inode, place) = (tree.inode(id), &layout.places[id.index()]);
        let refused = |what| WriteError::NotExpressible { index: id.index(), what };
        if let Node::Directory(directory) = &inode.node
            && directory.entries.keys().any(|name| name.len() > NAME_MAX)
        {
            return Err(refused("a name of more than 255 bytes"));
        }
        self.zeros_to(place.at)?;
        scratch.clear();
        encode_inode(inode, place, scratch).ok_or_else(|| refused("attributes or a block address"))?;
        let named = layout.shared.encode(marks::with_marks(inode), scratch);
        named.ok_or_else(|| refused("an extended attribute"))?;
        if let (Node::Regular(file), LAYOUT_CHUNKS) = (&inode.node, place.layout) {
            let padded = scratch.len().next_multiple_of(8);
            scratch.resize(padded, 0);
            encode_chunks(file, scratch).ok_or_else(|| refused("data beyond 2 TiB"))?;
        }
        if place.layout == LAYOUT_INLINE {
            let content = content(tree, layout, id);
            scratch.extend_from_slice(&content[slice_len(place.bytes_in_blocks())..]);
        }
        self.put(scratch)
    }

    /// What of an inode's content goes to the block area.
    fn blocks(&mut self, tree: &Tree, layout: &Layout<'_>, id: InodeId) -> Result<(), WriteError> {
        let place = &layout.places[id.index()];
        let count = place.bytes_in_blocks();
        if count == 0 {
            return Ok(());
        }
        self.zeros_to(place.first_block * BLOCK)?;
        let content = content(tree, layout, id);
        self.put(&content[..slice_len(count)])
    }
}

/// The content of a directory or a link.
fn content(tree: &Tree, layout: &Layout<'_>, id: InodeId) -> Vec<u8> {
    match &tree.inode(id).node {
        Node::Symlink(target) | Node::LinkBelow(target) => target.to_vec(),
        Node::Directory(directory) => {
            let entry = |name, id: InodeId| Dirent {
                name,
                number: layout.places[id.index()].number(),
                file_type: kind(&tree.inode(id).node).1,
            };
            let named = directory.entries.iter().map(|(name, child)| entry(&**name, *child)).collect();
            let entries =
                dirents::with_dots(named, |entry| entry.name, [entry(b".", id), entry(b"..", directory.parent)]);
            dirents::encode(&entries)
        }
        Node::Regular(_) | Node::CharDevice(_) | Node::BlockDevice(_) | Node::Fifo | Node::Socket | Node::Whiteout => {
            Vec::new()
        }
    }
}

/// The type bits of the mode and the type in a directory entry.
fn kind(node: &Node) -> (u16, u8) {
    match node {
        Node::Directory(_) => (mode::DIRECTORY, file_type::DIRECTORY),
        Node::Regular(_) => (mode::REGULAR, file_type::REGULAR),
        Node::Symlink(_) | Node::LinkBelow(_) => (mode::SYMLINK, file_type::SYMLINK),
        Node::CharDevice(_) | Node::Whiteout => (mode::CHAR, file_type::CHAR),
        Node::BlockDevice(_) => (mode::BLOCK, file_type::BLOCK),
        Node::Fifo => (mode::FIFO, file_type::FIFO),
        Node::Socket => (mode::SOCKET, file_type::SOCKET),
    }
}

/// A length within something that is in memory.
fn slice_len(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// An extended inode. `None` where a field is too narrow.
fn encode_inode(inode: &Inode, place: &Place, bytes: &mut Vec<u8>) -> Option<()> {
    let metadata = &inode.metadata;
    let (type_bits, _) = kind(&inode.node);
    let special = match &inode.node {
        Node::CharDevice(number) | Node::BlockDevice(number) => encode_device(*number),
        Node::Regular(file) if file.size > 0 => u32::from(chunks::format_field(chunks::bits(file))),
        Node::Directory(_) | Node::Symlink(_) | Node::LinkBelow(_) => u32::try_from(place.first_block).ok()?,
        Node::Regular(_) | Node::Fifo | Node::Socket | Node::Whiteout => 0,
    };
    let start = bytes.len();
    bytes.extend_from_slice(&(FORMAT_EXTENDED | place.layout << 1).to_le_bytes());
    bytes.extend_from_slice(&xattrs::count_field(place.xattr_bytes)?.to_le_bytes());
    bytes.extend_from_slice(&(type_bits | metadata.mode & 0o7777).to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&place.size.to_le_bytes());
    bytes.extend_from_slice(&special.to_le_bytes());
    // The 32-bit inode number is for old callers only; numbers of images above 128 GiB of metadata would not fit.
    bytes.extend_from_slice(&u32::try_from(place.number()).ok()?.to_le_bytes());
    bytes.extend_from_slice(&metadata.uid.to_le_bytes());
    bytes.extend_from_slice(&metadata.gid.to_le_bytes());
    bytes.extend_from_slice(&metadata.mtime.seconds.to_le_bytes());
    bytes.extend_from_slice(&metadata.mtime.nanoseconds.to_le_bytes());
    bytes.extend_from_slice(&place.links.to_le_bytes());
    bytes.resize(start + INODE_LEN, 0);
    Some(())
}

/// A device number as Linux has it in 32 bits: the minor's low byte, the major, the rest of the minor.
fn encode_device(number: DeviceNumber) -> u32 {
    (number.minor & 0xff) | (number.major & 0xfff) << 8 | (number.minor & 0xf_ff00) << 12
}

fn encode_chunks(file: &Regular, bytes: &mut Vec<u8>) -> Option<()> {
    for chunk in chunks::of(file)? {
        let (device, block) = match chunk {
            Chunk::Hole => (0, HOLE),
            Chunk::At { device, block } => (device.checked_add(1)?, block),
        };
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&device.to_le_bytes());
        bytes.extend_from_slice(&block.to_le_bytes());
    }
    Some(())
}
