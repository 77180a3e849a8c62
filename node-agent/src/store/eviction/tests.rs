//! Tables and properties.

use proptest::prelude::*;

use super::*;

fn digest(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

fn layer(number: u8, disk_bytes: u64, last_use: u64) -> LayerRecord {
    LayerRecord { diff_id: digest(number), size_bytes: disk_bytes, disk_bytes, last_use }
}

fn rules(max_age_seconds: Option<u64>) -> Rules {
    Rules { high_percent: 85, low_percent: 80, min_age_seconds: 120, max_age_seconds }
}

#[test]
fn the_longest_unused_go_first_and_take_their_images_with_them() {
    let layers = [layer(1, 10, 300), layer(2, 20, 100), layer(3, 30, 200), layer(4, 40, 50)];
    let images = [
        ImageRecord { manifest: digest(100), diff_ids: vec![digest(1), digest(2)] },
        ImageRecord { manifest: digest(101), diff_ids: vec![digest(1)] },
    ];
    let pinned = HashSet::from([digest(4)]);
    let stock = Stock { layers: &layers, images: &images, pinned: &pinned };
    let expected = Plan { images: vec![digest(100)], layers: vec![digest(2), digest(3)], freed_bytes: 50 };
    assert_eq!(make_room(stock, 0, 25), expected);
    assert_eq!(make_room(stock, 0, 0), Plan::default());
    let all = Plan { images: vec![digest(100), digest(101)], layers: [2, 3, 1].map(digest).to_vec(), freed_bytes: 60 };
    assert_eq!(everything(stock), all);
    assert_eq!(make_room(stock, 40, 100), all);
    assert_eq!(make_room(stock, 40, 101), Plan::default(), "more than there is");
}

#[test]
fn the_water_marks_are_the_kubelets() {
    // kubelet: amountToFree = capacity * (100 - low) / 100 - available, when usage >= high.
    let layers: Vec<_> = (1..=9).map(|n| layer(n, 10, n.into())).collect();
    let pinned = HashSet::from([digest(2)]);
    let stock = Stock { layers: &layers, images: &[], pinned: &pinned };
    let at = |free_bytes| collect(stock, Disk { size_bytes: 1000, free_bytes }, &rules(None), 1000);
    assert_eq!(at(160), (Plan::default(), 0), "84 percent are used");
    let (plan, wanted) = at(150);
    assert_eq!((wanted, plan.layers, plan.freed_bytes), (50, [1, 3, 4, 5, 6].map(digest).to_vec(), 50));
    let (plan, wanted) = at(0);
    assert_eq!((wanted, plan.freed_bytes), (200, 80), "all that is not pinned, which is not enough");
}

#[test]
fn what_was_just_used_stays_and_what_is_old_goes() {
    let layers = [layer(1, 10, 900), layer(2, 10, 881), layer(3, 10, 880), layer(4, 10, 100)];
    let none = HashSet::new();
    let stock = Stock { layers: &layers, images: &[], pinned: &none };
    let full = Disk { size_bytes: 1000, free_bytes: 0 };
    assert_eq!(collect(stock, full, &rules(None), 1000).0.layers, [digest(4), digest(3)]);
    let empty = Disk { size_bytes: 1000, free_bytes: 1000 };
    assert_eq!(collect(stock, empty, &rules(Some(900)), 1000).0, Plan::default());
    assert_eq!(collect(stock, empty, &rules(Some(899)), 1000).0.layers, [digest(4)]);
    assert_eq!(collect(stock, empty, &rules(Some(0)), 99).0, Plan::default(), "a clock that went back removes nothing");
}

#[test]
fn a_disk_of_any_size_has_a_percentage() {
    for (size_bytes, free_bytes, used) in
        [(0, 0, 0), (100, 100, 0), (100, 0, 100), (1000, 155, 85), (1, 7, 0), (u64::MAX, u64::MAX, 0)]
    {
        assert_eq!(Disk { size_bytes, free_bytes }.used_percent(), used, "{free_bytes} of {size_bytes}");
    }
}

fn stocks() -> impl Strategy<Value = (Vec<LayerRecord>, HashSet<Digest>)> {
    let sizes = prop::collection::vec((0u64..1000, 0u64..10), 0..30);
    let pins = prop::collection::hash_set(0u8..30, 0..10);
    (sizes, pins).prop_map(|(sizes, pins)| {
        let layers = (0u8..).zip(&sizes).map(|(n, (size, used))| layer(n, *size, *used)).collect();
        (layers, pins.iter().map(|n| digest(*n)).collect())
    })
}

fn size(layers: &[LayerRecord], diff_id: &Digest) -> u64 {
    layers.iter().find(|layer| layer.diff_id == *diff_id).map_or(0, |layer| layer.disk_bytes)
}

proptest! {
    #[test]
    fn never_a_pinned_layer_never_more_than_needed((layers, pinned) in stocks(), free in 0u64..5_000, needed in 0u64..20_000) {
        let found = make_room(Stock { layers: &layers, images: &[], pinned: &pinned }, free, needed);
        prop_assert!(found.layers.iter().all(|layer| !pinned.contains(layer)));
        prop_assert_eq!(found.freed_bytes, found.layers.iter().map(|id| size(&layers, id)).sum::<u64>());
        let available: u64 = layers.iter().filter(|l| !pinned.contains(&l.diff_id)).map(|l| l.disk_bytes).sum();
        let wanted = if needed <= available + free { needed.min(available) } else { 0 };
        prop_assert!(found.freed_bytes >= wanted);
        if let Some(last) = found.layers.last() {
            prop_assert!(needed <= available + free, "what is needed cannot be had");
            prop_assert!(found.freed_bytes - size(&layers, last) < needed, "the last one was not needed");
        }
    }

    #[test]
    fn collecting_keeps_to_its_rules(
        (layers, pinned) in stocks(),
        free_bytes in 0u64..10_000,
        (min_age_seconds, max_age, now) in (0u64..12, prop::option::of(0u64..12), 0u64..20),
        (low_percent, above) in (0u8..100, 0u8..20),
    ) {
        let high_percent = low_percent.saturating_add(above).min(100);
        let rules = Rules { high_percent, low_percent, min_age_seconds, max_age_seconds: max_age };
        let disk = Disk { size_bytes: 10_000, free_bytes };
        let (plan, wanted) = collect(Stock { layers: &layers, images: &[], pinned: &pinned }, disk, &rules, now);
        prop_assert!(wanted == 0 || disk.used_percent() >= high_percent);
        let distinct: HashSet<&Digest> = plan.layers.iter().collect();
        prop_assert_eq!(distinct.len(), plan.layers.len(), "each once");
        let mut for_room = 0;
        for diff_id in &plan.layers {
            prop_assert!(!pinned.contains(diff_id));
            let age = now.saturating_sub(layers.iter().find(|l| l.diff_id == *diff_id).unwrap().last_use);
            let too_old = max_age.is_some_and(|max| age > max);
            prop_assert!(too_old || (age >= min_age_seconds && wanted > 0));
            for_room += u64::from(!too_old);
        }
        // Everything that is too old goes, whatever the disk.
        let must = layers.iter().filter(|l| !pinned.contains(&l.diff_id));
        let must = must.filter(|l| max_age.is_some_and(|max| now.saturating_sub(l.last_use) > max)).count();
        prop_assert_eq!(plan.layers.len() as u64, must as u64 + for_room);
        if for_room > 0 {
            let last = plan.layers.last().unwrap();
            prop_assert!(plan.freed_bytes - size(&layers, last) < wanted, "the last one was not needed");
        }
    }
}
