//! The index in memory: for tests, and for a disk on which no database can be opened.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ImageRecord, Index, IndexError, LayerRecord};
use crate::digest::Digest;

/// An index that is gone with the process.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    records: Mutex<Records>,
}

#[derive(Debug, Default)]
struct Records {
    layers: HashMap<Digest, LayerRecord>,
    images: HashMap<Digest, ImageRecord>,
}

impl MemoryIndex {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index for MemoryIndex {
    fn layers(&self) -> Result<Vec<LayerRecord>, IndexError> {
        Ok(self.records().layers.values().cloned().collect())
    }

    fn put_layer(&self, layer: &LayerRecord) -> Result<(), IndexError> {
        self.records().layers.insert(layer.diff_id, layer.clone());
        Ok(())
    }

    fn remove_layer(&self, diff_id: &Digest) -> Result<(), IndexError> {
        self.records().layers.remove(diff_id);
        Ok(())
    }

    fn touch(&self, diff_ids: &[Digest], at: u64) -> Result<(), IndexError> {
        let mut records = self.records();
        for diff_id in diff_ids {
            if let Some(layer) = records.layers.get_mut(diff_id) {
                layer.last_use = layer.last_use.max(at);
            }
        }
        Ok(())
    }

    fn images(&self) -> Result<Vec<ImageRecord>, IndexError> {
        Ok(self.records().images.values().cloned().collect())
    }

    fn put_image(&self, image: &ImageRecord) -> Result<(), IndexError> {
        self.records().images.insert(image.manifest, image.clone());
        Ok(())
    }

    fn remove_image(&self, manifest: &Digest) -> Result<(), IndexError> {
        self.records().images.remove(manifest);
        Ok(())
    }

    fn flush(&self) -> Result<(), IndexError> {
        Ok(())
    }
}
