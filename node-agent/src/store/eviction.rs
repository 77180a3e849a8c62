//! Which layers go when room is needed: those that nobody pins, the longest unused first.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::HashSet;

use super::index::{ImageRecord, LayerRecord};
use crate::digest::Digest;

/// What to remove, and what that frees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Composed images that lose a layer: they are removed first.
    pub images: Vec<Digest>,
    /// Layers, in the order in which to remove them.
    pub layers: Vec<Digest>,
    /// Bytes that this frees.
    pub freed_bytes: u64,
}

/// Plans to free at least `needed_bytes`. Where that cannot be had, frees what can: the caller compares.
pub fn plan(layers: &[LayerRecord], images: &[ImageRecord], pinned: &HashSet<Digest>, needed_bytes: u64) -> Plan {
    let mut candidates: Vec<&LayerRecord> = layers.iter().filter(|layer| !pinned.contains(&layer.diff_id)).collect();
    // Of layers that were last used together the larger goes first, so that fewer have to; the digest settles the rest.
    candidates.sort_by_key(|layer| (layer.last_use, std::cmp::Reverse(layer.disk_bytes), layer.diff_id));
    let mut plan = Plan::default();
    for layer in candidates {
        if plan.freed_bytes >= needed_bytes {
            break;
        }
        plan.freed_bytes = plan.freed_bytes.saturating_add(layer.disk_bytes);
        plan.layers.push(layer.diff_id);
    }
    let gone: HashSet<&Digest> = plan.layers.iter().collect();
    let broken = images.iter().filter(|image| image.diff_ids.iter().any(|diff_id| gone.contains(diff_id)));
    plan.images = broken.map(|image| image.manifest).collect();
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    fn layer(number: u8, disk_bytes: u64, last_use: u64) -> LayerRecord {
        LayerRecord { diff_id: digest(number), size_bytes: disk_bytes, disk_bytes, last_use }
    }

    #[test]
    fn the_longest_unused_go_first_and_take_their_images_with_them() {
        let layers = [layer(1, 10, 300), layer(2, 20, 100), layer(3, 30, 200), layer(4, 40, 50)];
        let images = [
            ImageRecord { manifest: digest(100), diff_ids: vec![digest(1), digest(2)] },
            ImageRecord { manifest: digest(101), diff_ids: vec![digest(1)] },
        ];
        let pinned = HashSet::from([digest(4)]);
        let found = plan(&layers, &images, &pinned, 25);
        assert_eq!(found, Plan { images: vec![digest(100)], layers: vec![digest(2), digest(3)], freed_bytes: 50 });
        assert_eq!(plan(&layers, &images, &pinned, 0), Plan::default());
    }

    proptest! {
        #[test]
        fn never_a_pinned_layer_never_more_than_needed(
            sizes in prop::collection::vec((0u64..1000, 0u64..10), 0..30),
            pins in prop::collection::hash_set(0u8..30, 0..10),
            needed in 0u64..20_000,
        ) {
            let layers: Vec<LayerRecord> =
                (0u8..).zip(&sizes).map(|(n, (size, used))| layer(n, *size, *used)).collect();
            let pinned: HashSet<Digest> = pins.iter().map(|n| digest(*n)).collect();
            let found = plan(&layers, &[], &pinned, needed);
            prop_assert!(found.layers.iter().all(|layer| !pinned.contains(layer)));
            let size = |id: &Digest| layers.iter().find(|l| l.diff_id == *id).map_or(0, |l| l.disk_bytes);
            prop_assert_eq!(found.freed_bytes, found.layers.iter().map(size).sum::<u64>());
            let available: u64 = layers.iter().filter(|l| !pinned.contains(&l.diff_id)).map(|l| l.disk_bytes).sum();
            prop_assert!(found.freed_bytes >= needed.min(available));
            if let Some(last) = found.layers.last() {
                prop_assert!(found.freed_bytes - size(last) < needed, "the last one was not needed");
            }
        }
    }
}
