//! A snapshotter for tests, in memory. It checks diff ids as the real ones do.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use crate::{
    digest::Digest,
    snapshot::{Condition, Driver, ImageLayers, Layer, LayerWriter, Mend, MountedImage, SnapshotError, Snapshotter},
};

#[derive(Debug, Default)]
struct State {
    layers: HashMap<Digest, Vec<u8>>,
    composed: HashSet<Digest>,
    mounted: HashSet<Digest>,
    unfinished: usize,
    full: bool,
    room: Option<u64>,
    panics_at_mount: bool,
    size_hints: Vec<Option<u64>>,
}

/// Bytes of the largest layer that it takes.
pub(super) const LARGEST_LAYER: u64 = 1 << 50;

/// Layers in memory; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct TestSnapshotter {
    state: Arc<Mutex<State>>,
}

impl TestSnapshotter {
    pub(super) fn layer_count(&self) -> usize {
        self.state.lock().unwrap().layers.len()
    }

    pub(super) fn is_mounted(&self, manifest: &Digest) -> bool {
        self.state.lock().unwrap().mounted.contains(manifest)
    }

    /// Layers that are neither finished nor taken back.
    pub(super) fn unfinished(&self) -> usize {
        self.state.lock().unwrap().unfinished
    }

    /// What was said of the size of each layer that was begun.
    pub(super) fn size_hints(&self) -> Vec<Option<u64>> {
        self.state.lock().unwrap().size_hints.clone()
    }

    pub(super) fn forget_layers(&self) {
        self.state.lock().unwrap().layers.clear();
    }

    /// Whether there is room for anything more. It is made by the removal of a layer.
    pub(super) fn set_full(&self, full: bool) {
        self.state.lock().unwrap().full = full;
    }

    /// Layers that say that they are larger than this find no room.
    pub(super) fn set_room(&self, bytes: u64) {
        self.state.lock().unwrap().room = Some(bytes);
    }

    pub(super) fn panic_at_mount(&self, panics: bool) {
        self.state.lock().unwrap().panics_at_mount = panics;
    }
}

impl Snapshotter for TestSnapshotter {
    fn driver(&self) -> Driver {
        Driver::Directory
    }

    fn largest_layer_bytes(&self) -> u64 {
        LARGEST_LAYER
    }

    fn begin_layer(&self, size_hint: Option<u64>) -> Result<Box<dyn LayerWriter>, SnapshotError> {
        let mut state = self.state.lock().unwrap();
        let needed_bytes = size_hint.unwrap_or_default();
        if let Some(free_bytes) = state.room.filter(|room| *room < needed_bytes) {
            return Err(SnapshotError::DiskFull { path: "/store".into(), needed_bytes, free_bytes });
        }
        state.unfinished += 1;
        state.size_hints.push(size_hint);
        Ok(Box::new(Writer { state: Arc::clone(&self.state), bytes: Vec::new() }))
    }

    fn layer(&self, diff_id: &Digest) -> Option<Layer> {
        let size_bytes = u64::try_from(self.state.lock().unwrap().layers.get(diff_id)?.len()).unwrap();
        Some(Layer { diff_id: *diff_id, size_bytes, disk_bytes: size_bytes })
    }

    fn compose(&self, image: &ImageLayers) -> Result<(), SnapshotError> {
        let mut state = self.state.lock().unwrap();
        if state.composed.contains(&image.manifest) {
            return Ok(());
        }
        if state.full {
            return Err(full());
        }
        if let Some(missing) = image.diff_ids.iter().find(|diff_id| !state.layers.contains_key(diff_id)) {
            return Err(SnapshotError::MissingLayer(*missing));
        }
        state.composed.insert(image.manifest);
        Ok(())
    }

    fn mount(&self, image: &ImageLayers) -> Result<MountedImage, SnapshotError> {
        // Not under the lock, which would be poisoned.
        let panics = self.state.lock().unwrap().panics_at_mount;
        assert!(!panics, "panic for the test");
        let mut state = self.state.lock().unwrap();
        assert!(state.composed.contains(&image.manifest));
        state.mounted.insert(image.manifest);
        Ok(MountedImage { lower_dirs: vec![image.manifest.hex().into()] })
    }

    fn unmount(&self, manifest: &Digest) -> Result<(), SnapshotError> {
        self.state.lock().unwrap().mounted.remove(manifest);
        Ok(())
    }

    fn mounted(&self) -> Result<Vec<Digest>, SnapshotError> {
        Ok(self.state.lock().unwrap().mounted.iter().copied().collect())
    }

    fn remove_image(&self, manifest: &Digest) -> Result<(), SnapshotError> {
        let mut state = self.state.lock().unwrap();
        state.mounted.remove(manifest);
        state.composed.remove(manifest);
        Ok(())
    }

    fn check_layer(&self, diff_id: &Digest, _: Mend, read: &mut dyn FnMut(u64)) -> Result<Condition, SnapshotError> {
        let state = self.state.lock().unwrap();
        let content = state.layers.get(diff_id).ok_or(SnapshotError::MissingLayer(*diff_id))?;
        read(content.len() as u64);
        let is_sound = Digest::of(content) == *diff_id;
        Ok(if is_sound { Condition::Sound } else { Condition::Damaged("its tar has another digest".to_owned()) })
    }

    fn check_image(&self, image: &ImageLayers, mend: Mend) -> Result<Condition, SnapshotError> {
        let is_composed = self.state.lock().unwrap().composed.contains(&image.manifest);
        if is_composed {
            return Ok(Condition::Sound);
        }
        if mend == Mend::Yes {
            self.compose(image)?;
        }
        Ok(Condition::Derived { why: "it is not composed".to_owned(), mended: mend == Mend::Yes })
    }

    fn hide_layer(&self, diff_id: &Digest) -> Result<Option<std::path::PathBuf>, SnapshotError> {
        let mut state = self.state.lock().unwrap();
        if state.layers.remove(diff_id).is_some() {
            state.full = false;
        }
        Ok(None)
    }
}

fn full() -> SnapshotError {
    SnapshotError::DiskFull { path: "/store".into(), needed_bytes: 2, free_bytes: 1 }
}

struct Writer {
    state: Arc<Mutex<State>>,
    bytes: Vec<u8>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.state.lock().unwrap().unfinished -= 1;
    }
}

impl LayerWriter for Writer {
    fn write(&mut self, plain: &[u8]) -> Result<(), SnapshotError> {
        if self.state.lock().unwrap().full {
            return Err(full());
        }
        self.bytes.extend_from_slice(plain);
        Ok(())
    }

    fn finish(mut self: Box<Self>, expected: &Digest) -> Result<Layer, SnapshotError> {
        let actual = Digest::of(&self.bytes);
        if actual != *expected {
            return Err(SnapshotError::DiffIdMismatch { expected: *expected, actual });
        }
        let size_bytes = u64::try_from(self.bytes.len()).unwrap();
        self.state.lock().unwrap().layers.insert(actual, std::mem::take(&mut self.bytes));
        Ok(Layer { diff_id: actual, size_bytes, disk_bytes: size_bytes })
    }
}
