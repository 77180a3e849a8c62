//! What is done when a store is opened: rubbish goes, and the index is brought in line with the files.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::index::{ImageRecord, Index, LayerRecord};
use super::layout::{ImageMeta, LayerMeta, LayerPaths, Layout, UNFINISHED};
use super::{StoreError, durable, note};
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
    /// 1 when the index had to be begun anew.
    pub index_rebuilds: u64,
}

/// Removes what a killed process left half done.
pub(super) fn clean(layout: &Layout) -> Result<Recovered, StoreError> {
    let mut recovered = Recovered::default();
    for path in entries(&layout.ingest())? {
        if name(&path).starts_with(UNFINISHED) {
            remove(&path, &mut recovered)?;
        } else {
            recovered.partial_downloads += 1;
        }
    }
    for path in entries(&layout.layers())? {
        if !LayerPaths::at(&path).meta().exists() {
            remove(&path, &mut recovered)?;
        }
    }
    let images = entries(&layout.images())?;
    let known: HashSet<String> =
        images.iter().filter_map(|path| name(path).strip_suffix(".json")).map(str::to_owned).collect();
    for path in images {
        // The list of layers is written first: what has none is not complete.
        let stem = name(&path).split('.').next().unwrap_or_default();
        if !known.contains(stem) {
            remove(&path, &mut recovered)?;
        }
    }
    Ok(recovered)
}

/// Adds to the index what only the files know, and takes out what they do not.
pub(super) fn reconcile(layout: &Layout, index: &dyn Index, recovered: &mut Recovered) -> Result<(), StoreError> {
    let on_disk = layers_on_disk(layout)?;
    recovered.layers = on_disk.len() as u64;
    let mut known: HashMap<Digest, LayerRecord> = HashMap::new();
    for layer in index.layers().unwrap_or_default() {
        known.insert(layer.diff_id, layer);
    }
    for layer in on_disk {
        match known.remove(&layer.diff_id) {
            Some(record) if record.size_bytes == layer.size_bytes && record.disk_bytes == layer.disk_bytes => {}
            Some(record) => note(index.put_layer(&LayerRecord { last_use: record.last_use, ..layer })),
            None => note(index.put_layer(&layer)),
        }
    }
    for gone in known.keys() {
        note(index.remove_layer(gone));
    }
    let mut known: HashMap<Digest, ImageRecord> = HashMap::new();
    for image in index.images().unwrap_or_default() {
        known.insert(image.manifest, image);
    }
    for image in images_on_disk(layout)? {
        if known.remove(&image.manifest).as_ref() != Some(&image) {
            note(index.put_image(&image));
        }
    }
    for gone in known.keys() {
        note(index.remove_image(gone));
    }
    Ok(())
}

/// The layers that are whole on disk; nobody there knows when they were used.
pub(super) fn layers_on_disk(layout: &Layout) -> Result<Vec<LayerRecord>, StoreError> {
    let mut layers = Vec::new();
    for path in entries(&layout.layers())? {
        let Some(meta) = read_json::<LayerMeta>(&LayerPaths::at(&path).meta()) else { continue };
        // The name counts: it is what a layer is found by.
        let Ok(diff_id) = format!("sha256:{}", name(&path)).parse::<Digest>() else { continue };
        layers.push(LayerRecord { diff_id, size_bytes: meta.size_bytes, disk_bytes: meta.disk_bytes, last_use: 0 });
    }
    Ok(layers)
}

/// The composed images on disk.
pub(super) fn images_on_disk(layout: &Layout) -> Result<Vec<ImageRecord>, StoreError> {
    let mut images = Vec::new();
    for path in entries(&layout.images())? {
        let Some(hex) = name(&path).strip_suffix(".json") else { continue };
        let Ok(manifest) = format!("sha256:{hex}").parse::<Digest>() else { continue };
        let Some(meta) = read_json::<ImageMeta>(&path) else { continue };
        let diff_ids: Result<Vec<Digest>, _> = meta.diff_ids.iter().map(|diff_id| diff_id.parse()).collect();
        if let Ok(diff_ids) = diff_ids {
            images.push(ImageRecord { manifest, diff_ids });
        }
    }
    Ok(images)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
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
