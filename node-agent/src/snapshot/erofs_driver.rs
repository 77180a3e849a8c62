//! The driver `erofs`: a layer stays the tar that it came as, an image is one metadata-only EROFS over the tars of its layers.
//!
//! Locks: one mutex, held for the moment of mounting or unmounting, so that the same image is not mounted twice over; one a
//! layer while it is put in its place (see `publication.rs`).
//! Composing needs none: it ends with a rename, and doing it twice gives the same file.
//! Recovery: nothing is kept in memory; mounts are found by asking the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::layer_stream::{KeepTar, LayerStream, ReadLayer};
use super::publication::Publication;
use super::tar_file::TarFile;
use super::{
    Condition, Driver, ImageLayers, Layer, LayerWriter, Limits, Mend, MountedImage, SnapshotError, Snapshotter, check,
    layer_index, merge,
};
use crate::digest::Digest;
use crate::erofs::Device;
use crate::erofs::tree::Tree;
use crate::host::mount;
use crate::store::durable;
use crate::store::layout::{LayerMeta, LayerPaths, Layout};

/// What the driver is called in `meta.json`.
pub(crate) const NAME: &str = "erofs";

/// Snapshots as EROFS over tars.
#[derive(Debug)]
pub struct ErofsSnapshotter {
    layout: Layout,
    mounts: PathBuf,
    limits: Limits,
    publication: Publication,
    mounting: Mutex<()>,
}

impl ErofsSnapshotter {
    /// A driver over this store, which mounts images below `mounts` (on tmpfs).
    pub fn new(layout: Layout, mounts: PathBuf, limits: Limits) -> Self {
        let publication = Publication::new(layout.clone());
        Self { layout, mounts, limits, publication, mounting: Mutex::new(()) }
    }

    fn mount_point(&self, manifest: &Digest) -> PathBuf {
        self.mounts.join(manifest.hex())
    }

    /// A layer's tree; the index is derived from the tar, and made anew where it is damaged.
    fn tree(&self, diff_id: &Digest) -> Result<Tree, SnapshotError> {
        let paths = self.layout.layer(diff_id);
        match layer_index::read(&self.layout, diff_id) {
            Err(SnapshotError::CorruptIndex { path, source }) => {
                tracing::warn!(path = %path.display(), error = %source, "layer index is damaged, making it anew");
                self.rebuild_index(diff_id)
            }
            Err(SnapshotError::MissingLayer(_)) if paths.tar().exists() => {
                tracing::warn!(path = %paths.index().display(), "layer index is gone, making it anew");
                self.rebuild_index(diff_id)
            }
            other => other,
        }
    }

    fn rebuild_index(&self, diff_id: &Digest) -> Result<Tree, SnapshotError> {
        let read = check::read_tar(&self.layout, diff_id, self.limits, &mut |_| ())?;
        let read = read.map_err(SnapshotError::MalformedTar)?;
        if read.diff_id != *diff_id {
            return Err(SnapshotError::DiffIdMismatch { expected: *diff_id, actual: read.diff_id });
        }
        self.write_index(diff_id, &read)?;
        Ok(read.tree)
    }

    fn write_index(&self, diff_id: &Digest, read: &ReadLayer<KeepTar>) -> Result<(), SnapshotError> {
        let (unfinished, index) = (self.layout.unfinished("index"), self.layout.layer(diff_id).index());
        layer_index::write(&unfinished, &read.tree, &[device(diff_id, read.bytes)])?;
        durable::rename(&unfinished, &index).map_err(|error| SnapshotError::io("rename", &index, 0, error))
    }

    /// The tree of an image, and the tars that its files lie in.
    fn merged(&self, image: &ImageLayers, mend: Mend) -> Result<(Tree, Vec<Device>), SnapshotError> {
        let mut devices = Vec::with_capacity(image.diff_ids.len());
        for diff_id in &image.diff_ids {
            let layer = self.layer(diff_id).ok_or(SnapshotError::MissingLayer(*diff_id))?;
            devices.push(device(diff_id, layer.size_bytes));
        }
        let trees = layer_index::read_all(image, &self.limits, |diff_id| match mend {
            Mend::Yes => self.tree(diff_id),
            Mend::No => layer_index::read(&self.layout, diff_id),
        })?;
        Ok((merge::merge(&trees)?, devices))
    }

    fn write_image(&self, image: &ImageLayers) -> Result<(), SnapshotError> {
        let index = self.layout.image_index(&image.manifest);
        let (tree, devices) = self.merged(image, Mend::Yes)?;
        layer_index::write_image_meta(&self.layout, image)?;
        let unfinished = self.layout.unfinished("image");
        let written = layer_index::write(&unfinished, &tree, &devices).and_then(|_| {
            durable::rename(&unfinished, &index).map_err(|error| SnapshotError::io("rename", &index, 0, error))
        });
        if written.is_err() {
            // The error that matters is the first; a leftover is removed at the next start.
            let _ = durable::remove(&unfinished);
        }
        written
    }
}

impl Snapshotter for ErofsSnapshotter {
    fn driver(&self) -> Driver {
        Driver::Erofs
    }

    fn largest_layer_bytes(&self) -> u64 {
        self.limits.layer_bytes
    }

    fn begin_layer(&self, size_hint: Option<u64>) -> Result<Box<dyn LayerWriter>, SnapshotError> {
        let paths = LayerPaths::at(self.layout.unfinished("layer"));
        durable::create_unfinished_directory(paths.directory())
            .map_err(|error| SnapshotError::io("create", paths.directory(), 0, error))?;
        let needed = size_hint.unwrap_or(0);
        let mut writer = Writer {
            publication: self.publication.clone(),
            unfinished: Unfinished(paths.directory().to_owned()),
            paths,
            needed,
            file: None,
            stream: LayerStream::new(self.limits, KeepTar),
        };
        let tar = writer.paths.tar();
        let file =
            TarFile::create(&tar, size_hint).map_err(|error| SnapshotError::io("create", &tar, needed, error))?;
        writer.file = Some(file);
        Ok(Box::new(writer))
    }

    fn layer(&self, diff_id: &Digest) -> Option<Layer> {
        layer_of(&self.layout, diff_id, NAME)
    }

    fn compose(&self, image: &ImageLayers) -> Result<(), SnapshotError> {
        let complete = [self.layout.image_meta(&image.manifest), self.layout.image_index(&image.manifest)];
        if complete.iter().all(|path| path.exists()) { Ok(()) } else { self.write_image(image) }
    }

    fn mount(&self, image: &ImageLayers) -> Result<MountedImage, SnapshotError> {
        let target = self.mount_point(&image.manifest);
        let mounted = MountedImage { lower_dirs: vec![target.clone()] };
        let io = |action, path: &Path, error| SnapshotError::io(action, path, 0, error);
        let is_mounted = || mount::is_erofs(&target).map_err(|error| io("stat", &target, error));
        if is_mounted()? {
            return Ok(mounted);
        }
        self.compose(image)?;
        let index = self.layout.image_index(&image.manifest);
        let devices: Vec<PathBuf> = image.diff_ids.iter().map(|diff_id| self.layout.layer(diff_id).tar()).collect();
        let missing = image.diff_ids.iter().zip(&devices).find(|(_, tar)| !tar.exists());
        if let Some((diff_id, _)) = missing {
            return Err(SnapshotError::MissingLayer(*diff_id));
        }
        let _one = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_mounted()? {
            fs::create_dir_all(&target).map_err(|error| io("create", &target, error))?;
            mount::mount_erofs(&index, &devices, &target).map_err(|error| io("mount", &index, error))?;
        }
        Ok(mounted)
    }

    fn unmount(&self, manifest: &Digest) -> Result<(), SnapshotError> {
        let _one = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let target = self.mount_point(manifest);
        let io = |action, error| SnapshotError::io(action, &target, 0, error);
        mount::unmount_if_mounted(&target).map_err(|error| io("unmount", error))?;
        durable::remove_empty(&target).map_err(|error| io("remove", error))
    }

    fn mounted(&self) -> Result<Vec<Digest>, SnapshotError> {
        let io = |error| SnapshotError::io("list", &self.mounts, 0, error);
        let entries = match fs::read_dir(&self.mounts) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io)?,
        };
        let mut mounted = Vec::new();
        for entry in entries {
            let path = entry.map_err(io)?.path();
            let hex = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Ok(manifest) = format!("sha256:{hex}").parse()
                && mount::is_erofs(&path).map_err(io)?
            {
                mounted.push(manifest);
            }
        }
        Ok(mounted)
    }

    fn remove_image(&self, manifest: &Digest) -> Result<(), SnapshotError> {
        self.unmount(manifest)?;
        for path in [self.layout.image_index(manifest), self.layout.image_meta(manifest)] {
            durable::remove(&path).map_err(|error| SnapshotError::io("remove", &path, 0, error))?;
        }
        Ok(())
    }

    fn check_layer(&self, diff_id: &Digest, mend: Mend, read: &mut dyn FnMut(u64)) -> Result<Condition, SnapshotError> {
        let found = match check::read_tar(&self.layout, diff_id, self.limits, read)? {
            Ok(found) if found.diff_id == *diff_id => found,
            Ok(found) => return Ok(Condition::Damaged(format!("its tar has the digest {}", found.diff_id))),
            Err(why) => return Ok(Condition::Damaged(why)),
        };
        let index = self.layout.layer(diff_id).index();
        let Some(fault) = check::index_fault(&index, &found.tree, &[device(diff_id, found.bytes)])? else {
            return Ok(Condition::Sound);
        };
        if mend == Mend::Yes {
            self.write_index(diff_id, &found)?;
        }
        Ok(Condition::Derived { why: format!("index of the layer: {fault}"), mended: mend == Mend::Yes })
    }

    fn check_image(&self, image: &ImageLayers, mend: Mend) -> Result<Condition, SnapshotError> {
        let (tree, devices) = self.merged(image, mend)?;
        let index = self.layout.image_index(&image.manifest);
        let Some(fault) = check::index_fault(&index, &tree, &devices)? else { return Ok(Condition::Sound) };
        if mend == Mend::Yes {
            self.write_image(image)?;
        }
        Ok(Condition::Derived { why: format!("index of the image: {fault}"), mended: mend == Mend::Yes })
    }

    fn hide_layer(&self, diff_id: &Digest) -> Result<Option<PathBuf>, SnapshotError> {
        layer_index::hide(&self.layout, diff_id)
    }
}

fn device(diff_id: &Digest, bytes: u64) -> Device {
    Device { tag: diff_id.hex(), bytes }
}

/// The layer on disk, if it is whole and of this driver.
pub(crate) fn layer_of(layout: &Layout, diff_id: &Digest, driver: &str) -> Option<Layer> {
    let meta = layer_index::read_meta(&layout.layer(diff_id))?;
    if meta.driver != driver {
        return None;
    }
    Some(Layer { diff_id: *diff_id, size_bytes: meta.size_bytes, disk_bytes: meta.disk_bytes })
}

/// A directory that goes away with this value, unless it has been renamed.
#[derive(Debug)]
pub(crate) struct Unfinished(pub(crate) PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = durable::remove(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "unfinished layer stays until the next start");
        }
    }
}

/// A layer on its way to disk.
#[derive(Debug)]
struct Writer {
    publication: Publication,
    paths: LayerPaths,
    stream: LayerStream<KeepTar>,
    needed: u64,
    file: Option<TarFile>,
    /// Last, so that the files are closed before they are removed.
    unfinished: Unfinished,
}

impl LayerWriter for Writer {
    fn write(&mut self, plain: &[u8]) -> Result<(), SnapshotError> {
        self.stream.feed(plain)?;
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write(plain).map_err(|error| {
            let needed = self.needed.max(self.stream.bytes());
            SnapshotError::io("write", &self.paths.tar(), needed, error)
        })
    }

    fn finish(mut self: Box<Self>, expected: &Digest) -> Result<Layer, SnapshotError> {
        let read = self.stream.finish()?;
        if read.diff_id != *expected {
            return Err(SnapshotError::DiffIdMismatch { expected: *expected, actual: read.diff_id });
        }
        if let Some(file) = self.file.take() {
            let tar = self.paths.tar();
            file.finish().map_err(|error| SnapshotError::io("sync", &tar, read.bytes, error))?;
        }
        let index_bytes = layer_index::write(&self.paths.index(), &read.tree, &[device(expected, read.bytes)])?;
        let disk_bytes = read.bytes + index_bytes;
        let meta =
            LayerMeta { diff_id: expected.to_string(), size_bytes: read.bytes, disk_bytes, driver: NAME.to_owned() };
        layer_index::write_meta(&self.paths, &meta)?;
        self.publication.publish(&self.paths, expected)?;
        drop(self.unfinished);
        Ok(Layer { diff_id: *expected, size_bytes: read.bytes, disk_bytes })
    }
}
