//! Opening a store after whatever may have happened to it.

use super::*;
use crate::store::layout::{ImageMeta, LayerMeta};

fn put_layer(layout: &Layout, number: u8) -> Digest {
    let diff_id = Digest::from_bytes([number; 32]);
    let paths = layout.layer(&diff_id);
    fs::create_dir_all(paths.directory()).expect("mkdir");
    fs::write(paths.tar(), b"tar").expect("write");
    let meta = LayerMeta { diff_id: diff_id.to_string(), size_bytes: 3, disk_bytes: 5, driver: "erofs".to_owned() };
    fs::write(paths.meta(), serde_json::to_vec(&meta).expect("json")).expect("write");
    diff_id
}

fn put_image(layout: &Layout, number: u8, diff_ids: &[Digest]) -> Digest {
    let manifest = Digest::from_bytes([number; 32]);
    let meta = ImageMeta { diff_ids: diff_ids.iter().map(ToString::to_string).collect() };
    fs::write(layout.image_meta(&manifest), serde_json::to_vec(&meta).expect("json")).expect("write");
    fs::write(layout.image_index(&manifest), b"image").expect("write");
    manifest
}

#[test]
fn one_process_at_a_time() {
    let root = tempfile::tempdir().expect("temporary directory");
    let first = Store::open(root.path()).expect("opens");
    assert!(matches!(Store::open(root.path()), Err(StoreError::InUse { .. })));
    drop(first);
    Store::open(root.path()).expect("opens again");
}

#[test]
fn a_store_of_another_version_is_not_touched() {
    let root = tempfile::tempdir().expect("temporary directory");
    drop(Store::open(root.path()).expect("opens"));
    fs::write(root.path().join("version"), "99").expect("write");
    let rubbish = Layout::new(root.path()).unfinished("layer");
    fs::write(&rubbish, b"x").expect("write");
    assert!(matches!(Store::open(root.path()), Err(StoreError::Version { .. })));
    assert!(rubbish.exists());
}

#[test]
fn what_was_half_done_goes_and_partial_downloads_stay() {
    let root = tempfile::tempdir().expect("temporary directory");
    let layout = Layout::new(root.path());
    drop(Store::open(root.path()).expect("opens"));
    let whole = put_layer(&layout, 1);
    let half = put_layer(&layout, 2);
    fs::remove_file(layout.layer(&half).meta()).expect("remove");
    fs::create_dir(layout.unfinished("layer")).expect("mkdir");
    let partial = layout.partial(&Digest::of(b"blob"));
    fs::write(&partial, b"some").expect("write");
    let incomplete = put_image(&layout, 8, &[whole]);
    fs::remove_file(layout.image_meta(&incomplete)).expect("remove");
    let image = put_image(&layout, 9, &[whole]);

    let store = Store::open(root.path()).expect("opens");
    let expected = Recovered { removed: 3, partial_downloads: 1, layers: 1, index_rebuilds: 0 };
    assert_eq!(*store.recovered(), expected);
    assert!(partial.exists());
    assert!(!layout.layer(&half).directory().exists());
    assert!(!layout.image_index(&incomplete).exists());
    let layer = LayerRecord { diff_id: whole, size_bytes: 3, disk_bytes: 5, last_use: 0 };
    assert_eq!(store.layers().expect("layers"), [layer]);
    assert_eq!(store.images().expect("images"), [ImageRecord { manifest: image, diff_ids: vec![whole] }]);
}

#[test]
fn the_index_follows_the_files_and_keeps_times_of_use() {
    let root = tempfile::tempdir().expect("temporary directory");
    let layout = Layout::new(root.path());
    let store = Store::open(root.path()).expect("opens");
    let (kept, gone) = (put_layer(&layout, 1), put_layer(&layout, 2));
    store.record_layer(&kept, 3, 5, 1234);
    store.record_layer(&gone, 3, 5, 1234);
    store.flush();
    drop(store);
    durable::remove(layout.layer(&gone).directory()).expect("remove");
    let added = put_layer(&layout, 3);
    let store = Store::open(root.path()).expect("opens");
    let mut layers = store.layers().expect("layers");
    layers.sort_by_key(|layer| layer.diff_id);
    let expected = |diff_id, last_use| LayerRecord { diff_id, size_bytes: 3, disk_bytes: 5, last_use };
    assert_eq!(layers, [expected(kept, 1234), expected(added, 0)]);
}

#[test]
fn an_index_that_is_lost_or_damaged_is_filled_from_the_files() {
    let root = tempfile::tempdir().expect("temporary directory");
    let layout = Layout::new(root.path());
    drop(Store::open(root.path()).expect("opens"));
    let layer = put_layer(&layout, 1);
    let image = put_image(&layout, 9, &[layer]);
    for damage in [
        |index: &Path| durable::remove(index).expect("remove"),
        |index: &Path| fs::write(index.join("db/db"), [0xff; 999]).expect("write"),
        |index: &Path| fs::write(index.join("version"), b"").expect("write"),
    ] {
        drop(Store::open(root.path()).expect("opens"));
        damage(&layout.index());
        let store = Store::open(root.path()).expect("opens");
        assert_eq!(store.layers().expect("layers").len(), 1);
        assert_eq!(store.images().expect("images")[0].manifest, image);
    }
}

#[test]
fn caches_are_files_that_outlive_a_bad_neighbour() {
    let root = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(root.path()).expect("opens");
    let layout = store.layout();
    caches::put(layout, "imc-1", &vec![1, 2]).expect("put");
    caches::put(layout, "imc-2", &vec![3]).expect("put");
    caches::put(layout, "imc-1", &vec![9]).expect("put again");
    fs::write(layout.caches().join("bad.json"), b"{").expect("write");
    let expected = [("imc-1".to_owned(), vec![9]), ("imc-2".to_owned(), vec![3])];
    assert_eq!(caches::list::<Vec<u32>>(layout).expect("list"), expected);
    caches::remove(layout, "imc-1").expect("remove");
    caches::remove(layout, "imc-1").expect("remove again");
    assert_eq!(caches::list::<Vec<u32>>(layout).expect("list").len(), 1);
    for id in ["", "../x", "a/b", ".hidden", &"x".repeat(300)] {
        assert!(caches::put(layout, id, &1).is_err(), "{id}");
    }
}
