//! What is done when a store is opened: rubbish goes, and the index is brought in line with the files.
//!
//! A layer that cannot be read back is rubbish: what it was is known by its digest, and it is fetched again when somebody
//! wants it. What a disk refuses to read is left alone and told.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::index::{ImageRecord, Index, LayerRecord};
use super::layout::{DAMAGED, ImageMeta, LayerMeta, LayerPaths, Layout, UNFINISHED, named_by};
use super::{StoreError, aside, durable, note};
use crate::digest::Digest;

/// What was found when a store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Unfinished things that were removed.
    pub removed: u64,
    /// Downloads that can go on.
    pub partial_downloads: u64,
    /// Layers that are whole.
    pub layers: u64,
    /// 1 when the index was lost or could not be used, and was made anew from the files.
    pub index_rebuilds: u64,
}

/// A layer that is whole, as its files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLayer {
    /// What the index knows of it.
    pub record: LayerRecord,
    /// The driver that wrote it.
    pub driver: String,
}

/// What is whole on disk.
pub(super) struct Found {
    pub(super) layers: Vec<FoundLayer>,
    images: Vec<ImageRecord>,
}

/// Removes what a killed process left half done; gives what is left.
pub(super) fn clean(layout: &Layout) -> Result<(Found, Recovered), StoreError> {
    let mut recovered = Recovered::default();
    for path in entries(&layout.ingest())? {
        if name(&path).starts_with(UNFINISHED) {
            remove(&path, &mut recovered)?;
        } else if let Some(diff_id) = named_by(&path, DAMAGED) {
            match aside::settle(layout, &diff_id) {
                Ok(settled) => tracing::info!(%diff_id, ?settled, "ended a repair that was cut short"),
                // What it keeps is no more wrong than it was, and the next start tries again.
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%diff_id, error, "a repair that was cut short cannot be ended");
                }
            }
        } else {
            recovered.partial_downloads += 1;
        }
    }
    let mut layers = Vec::new();
    for path in entries(&layout.layers())? {
        match layer_at(&path)? {
            Some(layer) => layers.push(layer),
            None => remove(&path, &mut recovered)?,
        }
    }
    recovered.layers = layers.len() as u64;
    let images = clean_images(layout, &layers, &mut recovered)?;
    Ok((Found { layers, images }, recovered))
}

/// Removes composed images that are not complete, or whose layers are gone; gives the others.
fn clean_images(
    layout: &Layout,
    layers: &[FoundLayer],
    recovered: &mut Recovered,
) -> Result<Vec<ImageRecord>, StoreError> {
    let layers: HashSet<Digest> = layers.iter().map(|layer| layer.record.diff_id).collect();
    let is_complete = |image: &ImageRecord| {
        // The list of layers is written first, what is made of them after it.
        let made = [layout.image_index(&image.manifest), layout.image_directories(&image.manifest)];
        made.iter().any(|path| path.exists()) && image.diff_ids.iter().all(|diff_id| layers.contains(diff_id))
    };
    let complete: Vec<ImageRecord> = images_on_disk(layout)?.into_iter().filter(is_complete).collect();
    let known: HashSet<String> = complete.iter().map(|image| image.manifest.hex()).collect();
    for path in entries(&layout.images())? {
        let stem = name(&path).split('.').next().unwrap_or_default();
        if !known.contains(stem) {
            remove(&path, recovered)?;
        }
    }
    Ok(complete)
}

/// Adds to the index what only the files know, and takes out what they do not.
pub(super) fn reconcile(found: &Found, index: &dyn Index) {
    let mut known: HashMap<Digest, LayerRecord> = HashMap::new();
    for layer in index.layers().unwrap_or_default() {
        known.insert(layer.diff_id, layer);
    }
    for FoundLayer { record: layer, .. } in &found.layers {
        match known.remove(&layer.diff_id) {
            Some(record) if record.size_bytes == layer.size_bytes && record.disk_bytes == layer.disk_bytes => {}
            Some(record) => note(index.put_layer(&LayerRecord { last_use: record.last_use, ..*layer })),
            None => note(index.put_layer(layer)),
        }
    }
    for gone in known.keys() {
        note(index.remove_layer(gone));
    }
    let mut known: HashMap<Digest, ImageRecord> = HashMap::new();
    for image in index.images().unwrap_or_default() {
        known.insert(image.manifest, image);
    }
    for image in &found.images {
        if known.remove(&image.manifest).as_ref() != Some(image) {
            note(index.put_image(image));
        }
    }
    for gone in known.keys() {
        note(index.remove_image(gone));
    }
}

/// The layers that are whole on disk.
pub(super) fn layers_on_disk(layout: &Layout) -> Result<Vec<LayerRecord>, StoreError> {
    let mut layers = Vec::new();
    for path in entries(&layout.layers())? {
        layers.extend(layer_at(&path)?.map(|layer| layer.record));
    }
    Ok(layers)
}

/// The layer in this directory; none when it is not one, or not whole.
pub(super) fn layer_at(path: &Path) -> Result<Option<FoundLayer>, StoreError> {
    let paths = LayerPaths::at(path);
    // The name counts: it is what a layer is found by.
    let Some(diff_id) = Digest::from_hex(name(path)) else { return Ok(None) };
    let Some(meta) = read_json::<LayerMeta>(&paths.meta())? else { return Ok(None) };
    let is_whole = match fs::metadata(paths.tar()) {
        Ok(tar) => tar.len() == meta.size_bytes,
        Err(error) if absent(&error) => paths.files().is_dir(),
        Err(error) => return Err(StoreError::io("stat", &paths.tar())(error)),
    };
    let LayerMeta { size_bytes, disk_bytes, driver, .. } = meta;
    let last_use = modified(&paths.meta());
    let record = LayerRecord { diff_id, size_bytes, disk_bytes, last_use };
    Ok(is_whole.then_some(FoundLayer { record, driver }))
}

/// When a file was changed, in seconds since 1970: for a layer's `meta.json` its last use. 0 when that is not known.
fn modified(path: &Path) -> u64 {
    let time = fs::metadata(path).and_then(|found| found.modified()).ok();
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

/// The composed images on disk.
pub(super) fn images_on_disk(layout: &Layout) -> Result<Vec<ImageRecord>, StoreError> {
    let mut images = Vec::new();
    for path in entries(&layout.images())? {
        let Some(manifest) = named_by(&path, ".json") else { continue };
        let Some(meta) = read_json::<ImageMeta>(&path)? else { continue };
        let diff_ids: Result<Vec<Digest>, _> = meta.diff_ids.iter().map(|diff_id| diff_id.parse()).collect();
        if let Ok(diff_ids) = diff_ids {
            images.push(ImageRecord { manifest, diff_ids });
        }
    }
    Ok(images)
}

/// What a file says; none when it is not there, or is not what it should be.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// What is in a directory.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(StoreError::io("read", directory))? {
        paths.push(entry.map_err(StoreError::io("read", directory))?.path());
    }
    Ok(paths)
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn remove(path: &Path, recovered: &mut Recovered) -> Result<(), StoreError> {
    recovered.removed += 1;
    durable::remove(path).map_err(StoreError::io("remove", path))
}
