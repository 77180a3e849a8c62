//! What is told to whoever the disk was too small for: what of it could be had, and what keeps the rest.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::HashMap;
use std::fmt;

use super::eviction::Disk;
use super::index::LayerRecord;
use super::pins::Holder;
use crate::digest::Digest;
use crate::sizes::Bytes;

/// Whose the store's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    /// The file system.
    pub disk: Disk,
    /// Layers that nobody uses: they go when room is needed.
    pub unused_bytes: u64,
    /// Layers that image caches keep.
    pub cached_bytes: u64,
    /// Layers that only pods and pulls keep.
    pub used_bytes: u64,
}

impl Shortage {
    /// Sums up what these layers take and who keeps them.
    pub fn of(disk: Disk, layers: &[LayerRecord], holders: &HashMap<Digest, Holder>) -> Self {
        let mut shortage = Self { disk, unused_bytes: 0, cached_bytes: 0, used_bytes: 0 };
        for layer in layers {
            let sum = match holders.get(&layer.diff_id) {
                None => &mut shortage.unused_bytes,
                Some(Holder::Cache) => &mut shortage.cached_bytes,
                Some(Holder::Pod) => &mut shortage.used_bytes,
            };
            *sum = sum.saturating_add(layer.disk_bytes);
        }
        shortage
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.unused_bytes.saturating_add(self.cached_bytes).saturating_add(self.used_bytes);
        let other = self.disk.size_bytes.saturating_sub(self.disk.free_bytes).saturating_sub(layers);
        write!(
            f,
            "without it {} of {} are free; unused layers, which can be removed, take {}, layers of image caches {}, layers \
             of running pods and pulls {}, everything else {}",
            Bytes(self.disk.free_bytes),
            Bytes(self.disk.size_bytes),
            Bytes(self.unused_bytes),
            Bytes(self.cached_bytes),
            Bytes(self.used_bytes),
            Bytes(other)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_is_somebodys_once() {
        let layer = |number: u8, disk_bytes| LayerRecord {
            diff_id: Digest::from_bytes([number; 32]),
            size_bytes: 1,
            disk_bytes,
            last_use: 0,
        };
        let layers = [layer(1, 1 << 30), layer(2, 2 << 30), layer(3, 3 << 30), layer(4, 4 << 20)];
        let holders = HashMap::from([(layers[1].diff_id, Holder::Cache), (layers[2].diff_id, Holder::Pod)]);
        let disk = Disk { size_bytes: 10 << 30, free_bytes: 1 << 30 };
        let shortage = Shortage::of(disk, &layers, &holders);
        assert_eq!(shortage.unused_bytes, (1 << 30) + (4 << 20));
        assert_eq!(
            shortage.to_string(),
            "without it 1.0 GiB of 10.0 GiB are free; unused layers, which can be removed, take 1.0 GiB, layers of image \
             caches 2.0 GiB, layers of running pods and pulls 3.0 GiB, everything else 3.0 GiB"
        );
        // A store that lies on a disk which says less of itself than the layers do.
        let odd = Shortage::of(Disk { size_bytes: 0, free_bytes: 5 }, &layers, &holders).to_string();
        assert!(odd.ends_with("everything else 0 B"), "{odd}");
    }
}
