//! `layer.erofs`: the tree of one layer on disk, from which images are composed. Derived from the tar; both drivers keep it.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use super::{ImageLayers, Limits, SnapshotError, layer_tree};
use crate::digest::Digest;
use crate::erofs::tree::Tree;
use crate::erofs::{self, Device};
use crate::store::durable;
use crate::store::layout::{ImageMeta, LayerMeta, LayerPaths, Layout};

/// Writes the image of a tree to a new file; returns its length.
pub(crate) fn write(path: &Path, tree: &Tree, devices: &[Device]) -> Result<u64, SnapshotError> {
    let io = |error| SnapshotError::io("write", path, 0, error);
    let file = durable::create_file(path).map_err(io)?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    let length = erofs::write_image(tree, devices, &mut out).map_err(|error| match error {
        erofs::WriteError::Write(source) => io(source),
        other @ (erofs::WriteError::TooManyDevices { .. }
        | erofs::WriteError::DeviceTooLong { .. }
        | erofs::WriteError::NotExpressible { .. }) => SnapshotError::LimitExceeded(other.to_string()),
    })?;
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    durable::sync_file(&file).map_err(io)?;
    Ok(length)
}

/// Reads a layer's tree.
pub(crate) fn read(layout: &Layout, diff_id: &Digest) -> Result<Tree, SnapshotError> {
    let path = layout.layer(diff_id).index();
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(SnapshotError::MissingLayer(*diff_id)),
        other => other.map_err(|error| SnapshotError::io("read", &path, 0, error))?,
    };
    erofs::read_image(&bytes).map_err(|source| SnapshotError::CorruptIndex { path, source })
}

/// Reads the trees of an image's layers with `read`, as long as they take no more memory together than an image may.
pub(crate) fn read_all(
    image: &ImageLayers,
    limits: &Limits,
    read: impl Fn(&Digest) -> Result<Tree, SnapshotError>,
) -> Result<Vec<Tree>, SnapshotError> {
    let limit = limits.image_metadata_bytes();
    let mut bytes = 0;
    let mut trees = Vec::with_capacity(image.diff_ids.len());
    for diff_id in &image.diff_ids {
        let tree = read(diff_id)?;
        bytes += layer_tree::metadata_bytes(&tree);
        if bytes > limit {
            let what = format!(
                "the names and attributes of an image's layers take more than {limit} bytes of memory together, four times \
                 the bound set by --max-layer-metadata-bytes"
            );
            return Err(SnapshotError::LimitExceeded(what));
        }
        trees.push(tree);
    }
    Ok(trees)
}

/// Writes `meta.json`, the last file of a layer, and makes the directory durable.
pub(crate) fn write_meta(layer: &LayerPaths, meta: &LayerMeta) -> Result<(), SnapshotError> {
    let path = layer.meta();
    let unfinished = path.with_extension("unfinished");
    durable::write_file(&path, &unfinished, |file| serde_json::to_writer(file, meta).map_err(io::Error::from))
        .map_err(|error| SnapshotError::io("write", &path, 0, error))
}

/// Writes which layers an image has: first, so that an image without it is known to be incomplete.
pub(crate) fn write_image_meta(layout: &Layout, image: &ImageLayers) -> Result<(), SnapshotError> {
    let path = layout.image_meta(&image.manifest);
    let meta = ImageMeta { diff_ids: image.diff_ids.iter().map(ToString::to_string).collect() };
    let write = |file: &mut File| serde_json::to_writer(file, &meta).map_err(io::Error::from);
    durable::write_file(&path, &layout.unfinished("image"), write)
        .map_err(|error| SnapshotError::io("write", &path, 0, error))
}

/// Reads `meta.json`. A layer that has none, or one that makes no sense, is not there.
pub(crate) fn read_meta(layer: &LayerPaths) -> Option<LayerMeta> {
    serde_json::from_slice(&fs::read(layer.meta()).ok()?).ok()
}

/// Takes a layer out of sight: what is left by a crash is rubbish and no layer. Gives what is to be removed.
pub(crate) fn hide(layout: &Layout, diff_id: &Digest) -> Result<Option<PathBuf>, SnapshotError> {
    let layer = layout.layer(diff_id);
    let hidden = layout.unfinished("removal");
    match durable::rename(layer.directory(), &hidden) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SnapshotError::io("rename", layer.directory(), 0, error)),
        Ok(()) => Ok(Some(hidden)),
    }
}
