//! The driver `directory`: a layer is unpacked, an image is its layers' directories on top of each other.
//!
//! A layer is unpacked knowing nothing of those below it, as it may be part of several images. What a stack of directories
//! would then show wrong (the owner of a directory that a layer only passes through, a path through a symbolic link of a
//! lower layer, a hard link to a file of a lower layer) is put right by one more small directory on top, made for the image.
//!
//! Locks: one a layer while it is put in its place (see `publication.rs`).
//! Recovery: nothing is kept in memory, and nothing is mounted.

mod patch;
mod patch_files;
mod planting;
mod unpack;

use std::path::PathBuf;

use self::unpack::Unpacker;
use super::erofs_driver::{Unfinished, layer_of};
use super::layer_stream::LayerStream;
use super::publication::Publication;
use super::{
    Condition, Driver, ImageLayers, Layer, LayerWriter, Limits, Mend, MountedImage, SnapshotError, Snapshotter, check,
    layer_index, merge,
};
use crate::digest::Digest;
use crate::erofs::tree::Tree;
use crate::store::durable;
use crate::store::layout::{LayerMeta, LayerPaths, Layout};

/// What the driver is called in `meta.json`.
pub(crate) const NAME: &str = "directory";

/// Within an image's directory: the files that go on top, where there are any.
const PATCH: &str = "fs";

/// Snapshots as directories.
#[derive(Debug)]
pub struct DirectorySnapshotter {
    layout: Layout,
    limits: Limits,
    publication: Publication,
}

impl DirectorySnapshotter {
    /// A driver over this store.
    pub fn new(layout: Layout, limits: Limits) -> Self {
        let publication = Publication::new(layout.clone());
        Self { layout, limits, publication }
    }

    fn make_patch(&self, image: &ImageLayers, directory: &std::path::Path) -> Result<(), SnapshotError> {
        let trees = layer_index::read_all(image, &self.limits, |diff_id| {
            self.layer(diff_id).ok_or(SnapshotError::MissingLayer(*diff_id))?;
            layer_index::read(&self.layout, diff_id)
        })?;
        let merged = merge::merge(&trees)?;
        let stacked = merge::merge(&patch::as_stacked(&trees, &image.diff_ids))?;
        durable::create_unfinished_directory(directory)
            .map_err(|error| SnapshotError::io("create", directory, 0, error))?;
        if let Some(patch) = patch::between(&stacked, &merged, &patch::with_whiteouts(&trees)) {
            let files: Vec<PathBuf> = image.diff_ids.iter().map(|diff_id| self.layout.layer(diff_id).files()).collect();
            patch_files::write(&directory.join(PATCH), &patch, &trees, &files)?;
        } else if image.diff_ids.is_empty() {
            // An overlay needs something to stand on.
            patch_files::write(&directory.join(PATCH), &Tree::new(), &[], &[])?;
        }
        Ok(())
    }
}

impl Snapshotter for DirectorySnapshotter {
    fn driver(&self) -> Driver {
        Driver::Directory
    }

    fn largest_layer_bytes(&self) -> u64 {
        self.limits.layer_bytes
    }

    fn begin_layer(&self, _size_hint: Option<u64>) -> Result<Box<dyn LayerWriter>, SnapshotError> {
        let paths = LayerPaths::at(self.layout.unfinished("layer"));
        durable::create_unfinished_directory(paths.directory())
            .map_err(|error| SnapshotError::io("create", paths.directory(), 0, error))?;
        let unfinished = Unfinished(paths.directory().to_owned());
        let unpack = Unpacker::create(&paths.files())?;
        let stream = LayerStream::new(self.limits, unpack);
        Ok(Box::new(Writer { publication: self.publication.clone(), paths, stream, unfinished }))
    }

    fn layer(&self, diff_id: &Digest) -> Option<Layer> {
        layer_of(&self.layout, diff_id, NAME)
    }

    fn compose(&self, image: &ImageLayers) -> Result<(), SnapshotError> {
        let place = self.layout.image_directories(&image.manifest);
        if place.exists() && self.layout.image_meta(&image.manifest).exists() {
            return Ok(());
        }
        let unfinished = Unfinished(self.layout.unfinished("image"));
        self.make_patch(image, &unfinished.0)?;
        layer_index::write_image_meta(&self.layout, image)?;
        match durable::rename(&unfinished.0, &place) {
            // Somebody else composed the same image meanwhile.
            Err(_) if place.exists() => Ok(()),
            other => other.map_err(|error| SnapshotError::io("rename", &place, 0, error)),
        }
    }

    fn mount(&self, image: &ImageLayers) -> Result<MountedImage, SnapshotError> {
        self.compose(image)?;
        let patch = self.layout.image_directories(&image.manifest).join(PATCH);
        let mut lower_dirs = Vec::with_capacity(image.diff_ids.len() + 1);
        if patch.exists() {
            lower_dirs.push(patch);
        }
        for diff_id in image.diff_ids.iter().rev() {
            let files = self.layout.layer(diff_id).files();
            if !files.exists() {
                return Err(SnapshotError::MissingLayer(*diff_id));
            }
            // overlayfs refuses the same directory twice; of a layer that comes twice only the upper one is seen anyway
            // where nothing between them says otherwise, and where something does the patch has put it right.
            if !lower_dirs.contains(&files) {
                lower_dirs.push(files);
            }
        }
        Ok(MountedImage { lower_dirs })
    }

    fn unmount(&self, _manifest: &Digest) -> Result<(), SnapshotError> {
        Ok(())
    }

    fn mounted(&self) -> Result<Vec<Digest>, SnapshotError> {
        Ok(Vec::new())
    }

    fn remove_image(&self, manifest: &Digest) -> Result<(), SnapshotError> {
        for path in [self.layout.image_directories(manifest), self.layout.image_meta(manifest)] {
            durable::remove(&path).map_err(|error| SnapshotError::io("remove", &path, 0, error))?;
        }
        Ok(())
    }

    fn check_layer(&self, diff_id: &Digest, _: Mend, read: &mut dyn FnMut(u64)) -> Result<Condition, SnapshotError> {
        let paths = self.layout.layer(diff_id);
        let tree = match layer_index::read(&self.layout, diff_id) {
            Ok(tree) => tree,
            // Nothing is left that it could be made from.
            Err(error @ (SnapshotError::CorruptIndex { .. } | SnapshotError::MissingLayer(_))) => {
                return Ok(Condition::Damaged(format!("index of the layer: {}", crate::chain::Chain(&error))));
            }
            Err(error) => return Err(error),
        };
        let fault = check::files_fault(&paths.files(), &tree)?;
        read(self.layer(diff_id).map_or(0, |layer| layer.size_bytes));
        Ok(fault.map_or(Condition::Unhashed, Condition::Damaged))
    }

    fn check_image(&self, image: &ImageLayers, mend: Mend) -> Result<Condition, SnapshotError> {
        let place = self.layout.image_directories(&image.manifest);
        if place.is_dir() {
            return Ok(Condition::Unhashed);
        }
        if mend == Mend::Yes {
            self.compose(image)?;
        }
        Ok(Condition::Derived { why: "the image's directory is gone".to_owned(), mended: mend == Mend::Yes })
    }

    fn hide_layer(&self, diff_id: &Digest) -> Result<Option<PathBuf>, SnapshotError> {
        layer_index::hide(&self.layout, diff_id)
    }
}

/// A layer on its way to disk.
#[derive(Debug)]
struct Writer {
    publication: Publication,
    paths: LayerPaths,
    stream: LayerStream<Unpacker>,
    unfinished: Unfinished,
}

impl LayerWriter for Writer {
    fn write(&mut self, plain: &[u8]) -> Result<(), SnapshotError> {
        self.stream.feed(plain)
    }

    fn finish(self: Box<Self>, expected: &Digest) -> Result<Layer, SnapshotError> {
        let read = self.stream.finish()?;
        if read.diff_id != *expected {
            return Err(SnapshotError::DiffIdMismatch { expected: *expected, actual: read.diff_id });
        }
        let file_bytes = read.unpack.finish(&read.tree)?;
        let index_bytes = layer_index::write(&self.paths.index(), &read.tree, &[])?;
        let disk_bytes = file_bytes + index_bytes;
        let meta =
            LayerMeta { diff_id: expected.to_string(), size_bytes: read.bytes, disk_bytes, driver: NAME.to_owned() };
        layer_index::write_meta(&self.paths, &meta)?;
        self.publication.publish(&self.paths, expected)?;
        drop(self.unfinished);
        Ok(Layer { diff_id: *expected, size_bytes: read.bytes, disk_bytes })
    }
}
