//! Layers and indexes from any bytes. See [`crate::fuzzing`].

use super::Limits;
use super::layer_stream::{KeepTar, LayerStream};
use super::merge::merge;
use crate::erofs::tree::Tree;
use crate::erofs::{Device, WriteError, read_image, write_image};

/// Small, so that a bound is reached by small inputs.
const LIMITS: Limits = Limits {
    entries: 200,
    metadata_bytes: 1 << 20,
    path_bytes: 4096,
    extension_bytes: 1 << 16,
    xattr_bytes: 4096,
    sparse_extents: 100,
    sparse_chunks: 1 << 12,
    layer_bytes: 1 << 20,
};

/// Two layers from one tar that is cut at a block: how it arrives makes no difference, and what is read has an index that
/// reads back the same and merges with itself.
pub fn layer(bytes: &[u8]) {
    let (cut, bytes) = bytes.split_first().unwrap_or((&0, bytes));
    let (lower, upper) = bytes.split_at((usize::from(*cut) * 512).min(bytes.len()));
    let mut layers = Vec::new();
    for tar in [lower, upper] {
        let (whole, pieces) = (read(std::iter::once(tar)), read(tar.chunks(usize::from(*cut) + 1)));
        assert_eq!(whole.as_ref().map(written), pieces.as_ref().map(written), "however it arrives");
        layers.extend(whole);
    }
    layers.iter().for_each(round_trip);
    for layers in [&layers[..], &[layers.clone(), layers.clone()].concat()] {
        if let Ok(image) = merge(layers) {
            round_trip(&image);
        }
    }
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Option<Tree> {
    let mut stream = LayerStream::new(LIMITS, KeepTar);
    for piece in pieces {
        stream.feed(piece).ok()?;
    }
    stream.finish().ok().map(|read| read.tree)
}

/// Any bytes as an index; its checksum is made to match, or nothing behind it would be seen.
pub fn erofs(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    if let Some(block) = bytes.get_mut(1024..1536) {
        block[4..8].fill(0);
        let checksum = !crc32c::crc32c(block);
        block[4..8].copy_from_slice(&checksum.to_le_bytes());
    }
    if let Ok(tree) = read_image(&bytes) {
        round_trip(&tree);
    }
}

/// What was written reads back as what gives the same image.
fn round_trip(tree: &Tree) {
    if let Some(image) = written(tree) {
        let read = read_image(&image).map(|tree| written(&tree));
        assert_eq!(read, Ok(Some(image)), "an image of ours");
    }
}

/// `None` for what the format cannot hold.
fn written(tree: &Tree) -> Option<Vec<u8>> {
    let devices = vec![Device { tag: String::from("tar"), bytes: 1 << 20 }; 4];
    let mut image = Vec::new();
    match write_image(tree, &devices, &mut image) {
        Ok(length) => assert_eq!(length, image.len() as u64, "the length that was told"),
        Err(WriteError::NotExpressible { .. }) => return None,
        Err(error) => panic!("{error}"),
    }
    Some(image)
}
