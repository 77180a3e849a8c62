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
    let meta = File::open(paths.meta()).expect("open");
    meta.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(USED)).expect("set the time");
    diff_id
}

/// When a layer was used last, for those whose files alone know.
const USED: u64 = 1_700_000_000;

fn put_image(layout: &Layout, number: u8, diff_ids: &[Digest]) -> Digest {
    let manifest = Digest::from_bytes([number; 32]);
    let meta = ImageMeta { diff_ids: diff_ids.iter().map(ToString::to_string).collect() };
    fs::write(layout.image_meta(&manifest), serde_json::to_vec(&meta).expect("json")).expect("write");
    fs::write(layout.image_index(&manifest), b"image").expect("write");
    manifest
}

#[test]
fn who_was_let_in_is_nobody_elses_business() {
    let root = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(root.path()).expect("opens");
    let mode = fs::metadata(store.layout().pulled()).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn one_process_at_a_time() {
    let root = tempfile::tempdir().expect("temporary directory");
    let first = Store::open(root.path()).expect("opens");
    assert!(matches!(Store::open(root.path()), Err(StoreError::InUse { .. })));
    // What a process has that was forked from this one and has not executed its program yet.
    let _copy = first._lock.0.try_clone().expect("a copy");
    drop(first);
    Store::open(root.path()).expect("opens again");
}

#[test]
fn a_store_of_another_version_is_not_touched() {
    let root = tempfile::tempdir().expect("temporary directory");
    drop(Store::open(root.path()).expect("opens"));
    let rubbish = Layout::new(root.path()).unfinished("layer");
    fs::write(&rubbish, b"x").expect("write");
    for (found, remedy) in [("99", "run the newer program"), ("0", "run the program that wrote it"), ("", "no store")] {
        fs::write(root.path().join("version"), found).expect("write");
        let error = Store::open(root.path()).expect_err("another version");
        let words = error.to_string();
        assert!(
            words.contains(&format!("layout {found:?}, this program knows 1: ")) && words.contains(remedy),
            "{words}"
        );
        assert!(rubbish.exists());
    }
}

#[test]
fn a_folder_that_is_no_store_is_not_made_one() {
    for content in ["layers/x", "images/x", "manifests/sha256/x", "caches/x", "sources/x"] {
        let root = tempfile::tempdir().expect("temporary directory");
        let file = root.path().join(content);
        fs::create_dir_all(file.parent().expect("a parent")).expect("mkdir");
        fs::write(&file, b"somebody's").expect("write");
        let error = Store::open(root.path()).expect_err("not ours");
        assert!(matches!(error, StoreError::Version { .. }), "{content}: {error}");
        assert!(error.to_string().contains("there are files and no version"), "{error}");
        assert_eq!(fs::read(&file).expect("it stays"), b"somebody's");
        assert!(!root.path().join("version").exists());
    }
    // What a first start that was cut short has left is as good as nothing.
    let root = tempfile::tempdir().expect("temporary directory");
    for directory in Layout::new(root.path()).directories() {
        fs::create_dir_all(directory).expect("mkdir");
    }
    let rubbish = Layout::new(root.path()).unfinished("version");
    fs::write(&rubbish, b"").expect("write");
    Store::open(root.path()).expect("opens");
    assert!(!rubbish.exists());
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
    let layer = LayerRecord { diff_id: whole, size_bytes: 3, disk_bytes: 5, last_use: USED };
    assert_eq!(store.found(), [FoundLayer { record: layer.clone(), driver: "erofs".to_owned() }]);
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
    assert_eq!(layers, [expected(kept, 1234), expected(added, USED)]);
}

#[test]
fn an_index_that_is_lost_or_damaged_is_filled_from_the_files_and_counted() {
    let root = tempfile::tempdir().expect("temporary directory");
    let layout = Layout::new(root.path());
    let store = Store::open(root.path()).expect("opens");
    assert_eq!(store.recovered().index_rebuilds, 0, "there was nothing to lose");
    drop(store);
    let layer = put_layer(&layout, 1);
    let image = put_image(&layout, 9, &[layer]);
    for damage in [
        |index: &Path| durable::remove(index).expect("remove"),
        |index: &Path| fs::write(index.join("db/db"), [0xff; 999]).expect("write"),
        |index: &Path| fs::write(index.join("version"), b"").expect("write"),
    ] {
        let store = Store::open(root.path()).expect("opens");
        store.touch(&[layer], USED + 7);
        drop(store);
        damage(&layout.index());
        let store = Store::open(root.path()).expect("opens");
        assert_eq!(store.recovered().index_rebuilds, 1);
        let layers = store.layers().expect("layers");
        assert_eq!((layers.len(), layers[0].last_use), (1, USED + 7), "the files know when it was used");
        assert_eq!(store.images().expect("images")[0].manifest, image);
        drop(store);
        assert_eq!(Store::open(root.path()).expect("opens").recovered().index_rebuilds, 0, "it is whole again");
    }
}

#[test]
fn what_cannot_be_read_back_is_not_there() {
    let root = tempfile::tempdir().expect("temporary directory");
    let layout = Layout::new(root.path());
    drop(Store::open(root.path()).expect("opens"));
    let layers: Vec<Digest> = (1..=5).map(|number| put_layer(&layout, number)).collect();
    let paths = |index: usize| layout.layer(&layers[index]);
    fs::write(paths(1).meta(), b"").expect("empty");
    fs::write(paths(2).tar(), b"ta").expect("cut");
    fs::remove_file(paths(3).tar()).expect("remove");
    fs::create_dir(layout.layers().join("not-a-digest")).expect("mkdir");
    // Unpacked ones have no tar.
    fs::remove_file(paths(4).tar()).expect("remove");
    fs::create_dir(paths(4).files()).expect("mkdir");
    let images = [put_image(&layout, 90, &[layers[0]]), put_image(&layout, 91, &[layers[0], layers[1]])];
    let not_made = put_image(&layout, 92, &[layers[0]]);
    fs::remove_file(layout.image_index(&not_made)).expect("remove");
    fs::write(layout.image_meta(&Digest::of(b"x")), b"{").expect("write");

    let store = Store::open(root.path()).expect("opens");
    let mut found: Vec<Digest> = store.layers().expect("layers").iter().map(|layer| layer.diff_id).collect();
    found.sort();
    assert_eq!(found, [layers[0], layers[4]]);
    assert_eq!(store.images().expect("images"), [ImageRecord { manifest: images[0], diff_ids: vec![layers[0]] }]);
    let names = |path| fs::read_dir(path).expect("read").count();
    assert_eq!((names(layout.layers()), names(layout.images())), (2, 2));
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

/// A layer whose tar holds this.
fn put_tar(layout: &Layout, number: u8, tar: &[u8; 3]) -> Digest {
    let diff_id = put_layer(layout, number);
    fs::write(layout.layer(&diff_id).tar(), tar).expect("write");
    diff_id
}

#[test]
fn a_repair_that_was_cut_short_is_ended_at_the_next_start() {
    let root = tempfile::tempdir().expect("temporary directory");
    let layout = Layout::new(root.path());
    drop(Store::open(root.path()).expect("opens"));
    let [waits, has_come] = [put_tar(&layout, 1, b"bad"), put_tar(&layout, 2, b"bad")];
    let mounted = File::open(layout.layer(&has_come).tar()).expect("open");
    for diff_id in [&waits, &has_come] {
        aside::set_aside(&layout, diff_id).expect("set aside");
    }
    put_tar(&layout, 2, b"new");
    let store = Store::open(root.path()).expect("opens");
    assert_eq!(store.recovered().layers, 2);
    let tar = |diff_id| fs::read(layout.layer(diff_id).tar()).expect("read");
    assert_eq!([tar(&waits), tar(&has_come)], [b"bad", b"new"]);
    assert_eq!(io::read_to_string(mounted).expect("read"), "new", "whoever has the old one mounted");
    assert_eq!(fs::read_dir(layout.ingest()).expect("read").count(), 0);
}
