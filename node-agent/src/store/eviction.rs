//! Which layers go: when room is needed, when the disk is nearly full, and when nobody has wanted them for long.
//!
//! The rules are the kubelet's (`pkg/kubelet/images/image_gc_manager.go`), for layers instead of images: a layer that two
//! images share goes only when neither is used. What is pinned (by a pod, an image cache or a pull) never goes.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::HashSet;

use super::index::{ImageRecord, LayerRecord};
use crate::digest::Digest;

/// When unused layers go by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// From this use of the disk on, in percent, unused layers go.
    pub high_percent: u8,
    /// Down to this use of the disk.
    pub low_percent: u8,
    /// A layer stays so many seconds after its last use, however full the disk is.
    pub min_age_seconds: u64,
    /// A layer goes so many seconds after its last use, however empty the disk is.
    pub max_age_seconds: Option<u64>,
}

/// The file system of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What can still be written.
    pub free_bytes: u64,
}

/// What the store holds, and what of it is in use.
#[derive(Debug, Clone, Copy)]
pub struct Stock<'a> {
    /// All layers.
    pub layers: &'a [LayerRecord],
    /// All composed images.
    pub images: &'a [ImageRecord],
    /// The layers in use.
    pub pinned: &'a HashSet<Digest>,
}

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

impl Disk {
    /// How much of it is used, in percent, as the kubelet counts.
    pub fn used_percent(&self) -> u8 {
        let free = (u128::from(self.free_bytes) * 100).checked_div(self.size_bytes.into()).unwrap_or(100);
        u8::try_from(100 - free.min(100)).unwrap_or(100)
    }
}

/// Plans to free at least `needed_bytes`, for somebody who waits for them. Where these are more than what is free and
/// unused together, nothing goes: it would be lost and help nobody.
pub fn make_room(stock: Stock<'_>, free_bytes: u64, needed_bytes: u64) -> Plan {
    let candidates = candidates(stock, |_| true);
    let available = candidates.iter().fold(free_bytes, |sum, layer| sum.saturating_add(layer.disk_bytes));
    let mut plan = Plan::default();
    if available >= needed_bytes {
        plan.take(candidates, needed_bytes);
    }
    plan.with_images(stock)
}

/// Plans that everything goes that nobody uses.
pub fn everything(stock: Stock<'_>) -> Plan {
    let mut plan = Plan::default();
    plan.take(candidates(stock, |_| true), u64::MAX);
    plan.with_images(stock)
}

/// Plans what goes at this moment (seconds since 1970) by itself, and how many bytes were wanted for the water mark.
pub fn collect(stock: Stock<'_>, disk: Disk, rules: &Rules, now: u64) -> (Plan, u64) {
    let age = |layer: &LayerRecord| now.saturating_sub(layer.last_use);
    let mut plan = Plan::default();
    if let Some(max_age) = rules.max_age_seconds {
        plan.take(candidates(stock, |layer| age(layer) > max_age), u64::MAX);
    }
    // At 100 percent there is nothing left to keep: it stands for never.
    let wanted_bytes = if rules.high_percent < 100 && disk.used_percent() >= rules.high_percent {
        // As the kubelet computes it, but without its overflow.
        let keep_free = u128::from(disk.size_bytes) * u128::from(100 - rules.low_percent.min(100)) / 100;
        u64::try_from(keep_free).unwrap_or(u64::MAX).saturating_sub(disk.free_bytes)
    } else {
        0
    };
    let gone: HashSet<Digest> = plan.layers.iter().copied().collect();
    let old_enough = |layer: &LayerRecord| age(layer) >= rules.min_age_seconds && !gone.contains(&layer.diff_id);
    plan.take(candidates(stock, old_enough), wanted_bytes);
    (plan.with_images(stock), wanted_bytes)
}

/// The unused layers that `may_go`, the first to go first.
fn candidates(stock: Stock<'_>, may_go: impl Fn(&LayerRecord) -> bool) -> Vec<&LayerRecord> {
    let unused = stock.layers.iter().filter(|layer| !stock.pinned.contains(&layer.diff_id) && may_go(layer));
    let mut candidates: Vec<&LayerRecord> = unused.collect();
    // Of layers that were last used together the larger goes first, so that fewer have to; the digest settles the rest.
    candidates.sort_by_key(|layer| (layer.last_use, std::cmp::Reverse(layer.disk_bytes), layer.diff_id));
    candidates
}

impl Plan {
    /// Takes layers in this order until so many bytes are freed in all.
    fn take(&mut self, candidates: Vec<&LayerRecord>, needed_bytes: u64) {
        for layer in candidates {
            if self.freed_bytes >= needed_bytes {
                break;
            }
            self.freed_bytes = self.freed_bytes.saturating_add(layer.disk_bytes);
            self.layers.push(layer.diff_id);
        }
    }

    /// Adds the images that lose a layer.
    fn with_images(mut self, stock: Stock<'_>) -> Self {
        let gone: HashSet<&Digest> = self.layers.iter().collect();
        let broken = stock.images.iter().filter(|image| image.diff_ids.iter().any(|diff_id| gone.contains(diff_id)));
        self.images = broken.map(|image| image.manifest).collect();
        self
    }
}

#[cfg(test)]
mod tests;
