//! The driver `directory`: a layer is unpacked, an image is its layers' directories on top of each other.
//!
//! A layer is unpacked knowing nothing of those below it, as it may be part of several images. What a stack of directories
//! would then show wrong (the owner of a directory that a layer only passes through, a path through a symbolic link of a
//! lower layer, a hard link to a file of a lower layer) is put right by one more small directory on top, made for the image.
//!
//! Locks: one a layer while it is put in its place (see `publication.rs`).
//! Recovery: nothing is kept in memory, and nothing is mounted.

mod check;
mod data;
mod patch;
mod patch_files;
mod planting;
mod sums;
mod unpack;

use std::io;
use std::path::{Path, PathBuf};

use self::sums::Sums;
use self::unpack::{Unpacked, Unpacker};
use super::erofs_driver::{Unfinished, layer_of};
use super::layer_stream::LayerStream;
use super::publication::Publication;
use super::{
    Condition, Driver, ImageLayers, Layer, LayerWriter, Limits, Mend, MountedImage, SnapshotError, Snapshotter,
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

    /// What goes on top of an image's layers, with the layers.
    fn patch(&self, image: &ImageLayers) -> Result<Patch, SnapshotError> {
        let trees = layer_index::read_all(image, &self.limits, |diff_id| {
            self.layer(diff_id).ok_or(SnapshotError::MissingLayer(*diff_id))?;
            layer_index::read(&self.layout, diff_id)
        })?;
        let merged = merge::merge(&trees)?;
        let stacked = merge::merge(&patch::as_stacked(&trees, &image.diff_ids))?;
        let files = image.diff_ids.iter().map(|diff_id| self.layout.layer(diff_id).files()).collect();
        // Where there are no layers, an overlay needs something to stand on.
        let tree = patch::between(&stacked, &merged, &patch::with_whiteouts(&trees))
            .or_else(|| image.diff_ids.is_empty().then(Tree::new));
        Ok(Patch { tree, trees, files })
    }

    fn make_patch(&self, image: &ImageLayers, directory: &Path) -> Result<(), SnapshotError> {
        let Patch { tree, trees, files } = self.patch(image)?;
        durable::create_unfinished_directory(directory)
            .map_err(|error| SnapshotError::io("create", directory, 0, error))?;
        match tree {
            Some(tree) => patch_files::write(&directory.join(PATCH), &tree, &trees, &files),
            None => Ok(()),
        }
    }

    /// What is wrong with what was made of an image.
    fn patch_fault(&self, image: &ImageLayers) -> Result<Option<String>, SnapshotError> {
        let place = self.layout.image_directories(&image.manifest);
        if !place.is_dir() {
            return Ok(Some("it is gone".to_owned()));
        }
        let Patch { tree, trees, files } = self.patch(image)?;
        let path = place.join(PATCH);
        match (tree, path.is_dir()) {
            (Some(tree), true) => patch_files::fault(&path, &tree, &trees, &files),
            (Some(_), false) => Ok(Some("what goes on top is gone".to_owned())),
            (None, true) => Ok(Some("nothing should go on top".to_owned())),
            (None, false) => Ok(None),
        }
    }

    /// What is wrong with a layer that has digests.
    fn layer_fault(
        &self,
        diff_id: &Digest,
        sums: &Sums,
        read: &mut dyn FnMut(u64),
    ) -> Result<Option<String>, SnapshotError> {
        let paths = self.layout.layer(diff_id);
        let index =
            std::fs::read(paths.index()).map_err(|error| SnapshotError::io("read", &paths.index(), 0, error))?;
        if Digest::of(&index) != sums.index {
            return Ok(Some("index of the layer: it has another digest".to_owned()));
        }
        let tree = layer_index::read(&self.layout, diff_id)?;
        check::fault(&paths.files(), &tree, &mut |file, path| data::has_digest(file, path, sums, read))
    }
}

/// What goes on top of an image's layers: nothing, where their directories show what they should.
struct Patch {
    tree: Option<Tree>,
    trees: Vec<Tree>,
    /// The unpacked layers.
    files: Vec<PathBuf>,
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
        let sums = match sums::read(&paths.sums()) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok(Condition::Damaged("the digests of its files are not what was written".to_owned()));
            }
            other => other.map_err(|error| SnapshotError::io("read", &paths.sums(), 0, error))?,
        };
        let checked = match &sums {
            Some(sums) => self.layer_fault(diff_id, sums, read),
            None => layer_index::read(&self.layout, diff_id)
                .and_then(|tree| check::fault(&paths.files(), &tree, &mut |_, _| Ok(true))),
        };
        match checked {
            Ok(Some(fault)) => Ok(Condition::Damaged(fault)),
            Ok(None) => Ok(if sums.is_some() { Condition::Sound } else { Condition::Unhashed }),
            // Nothing is left that it could be made from.
            Err(error @ (SnapshotError::CorruptIndex { .. } | SnapshotError::MissingLayer(_))) => {
                Ok(Condition::Damaged(format!("index of the layer: {}", crate::chain::Chain(&error))))
            }
            Err(error) => Err(error),
        }
    }

    fn check_image(&self, image: &ImageLayers, mend: Mend) -> Result<Condition, SnapshotError> {
        let Some(fault) = self.patch_fault(image)? else { return Ok(Condition::Sound) };
        if mend == Mend::Yes {
            let place = self.layout.image_directories(&image.manifest);
            durable::remove(&place).map_err(|error| SnapshotError::io("remove", &place, 0, error))?;
            self.compose(image)?;
        }
        Ok(Condition::Derived { why: format!("directory of the image: {fault}"), mended: mend == Mend::Yes })
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
        let unpacked = read.unpack.finish(&read.tree)?;
        let index_bytes = layer_index::write(&self.paths.index(), &read.tree, &[])?;
        let disk_bytes = unpacked.bytes + index_bytes + write_sums(&self.paths, &unpacked)?;
        let meta =
            LayerMeta { diff_id: expected.to_string(), size_bytes: read.bytes, disk_bytes, driver: NAME.to_owned() };
        layer_index::write_meta(&self.paths, &meta)?;
        self.publication.publish(&self.paths, expected)?;
        drop(self.unfinished);
        Ok(Layer { diff_id: *expected, size_bytes: read.bytes, disk_bytes })
    }
}

/// Writes the digests of what a layer was unpacked to; says how long they are.
fn write_sums(paths: &LayerPaths, unpacked: &Unpacked) -> Result<u64, SnapshotError> {
    let io = |action, path: &Path, error| SnapshotError::io(action, path, 0, error);
    let index = std::fs::read(paths.index()).map_err(|error| io("read", &paths.index(), error))?;
    sums::write(&paths.sums(), &Digest::of(&index), &unpacked.sums).map_err(|error| io("write", &paths.sums(), error))
}
