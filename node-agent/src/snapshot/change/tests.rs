//! Every change of the driver, with pods and without. Mounts real images, so these tests run as root.

use super::*;
use crate::snapshot::ImageLayers;
use crate::store::Store;

struct Bench {
    folder: tempfile::TempDir,
    /// None while it is opened again.
    store: Option<Store>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        Self { folder, store: None }
    }

    /// What a start does.
    fn open(&mut self, choice: DriverChoice, running: Running) -> Result<Arc<dyn Snapshotter>, SnapshotError> {
        self.store = None;
        let store = Store::open(&self.folder.path().join("store")).expect("opens");
        let store = self.store.insert(store);
        open_over(choice, store, &self.folder.path().join("mounts"), Limits::default(), running)
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("opened")
    }

    /// An image of one layer, mounted.
    fn fill(&self, snapshotter: &dyn Snapshotter) -> Digest {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(4);
        tar.append_data(&mut header, "file", &b"text"[..]).expect("tar");
        let plain = tar.into_inner().expect("tar");
        let diff_id = Digest::of(&plain);
        let mut writer = snapshotter.begin_layer(None).expect("begin");
        writer.write(&plain).expect("write");
        let layer = writer.finish(&diff_id).expect("finish");
        self.store().record_layer(&diff_id, layer.size_bytes, layer.disk_bytes, 1);
        let image = ImageLayers { manifest: Digest::of(b"image"), diff_ids: vec![diff_id] };
        snapshotter.compose(&image).expect("compose");
        self.store().record_image(&image.manifest, &image.diff_ids, 1);
        let mounted = snapshotter.mount(&image).expect("mount");
        assert_eq!(std::fs::read(mounted.lower_dirs[0].join("file")).expect("read"), b"text");
        diff_id
    }

    fn holds(&self) -> (usize, usize) {
        let names = |folder| std::fs::read_dir(folder).expect("read").count();
        (names(self.store().layout().layers()), names(self.store().layout().images()))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.folder.path().join("mounts")).into_iter().flatten().flatten() {
            let _ = crate::host::mount::unmount_if_mounted(&entry.path());
        }
    }
}

const BOTH: [(DriverChoice, DriverChoice); 2] =
    [(DriverChoice::Erofs, DriverChoice::Directory), (DriverChoice::Directory, DriverChoice::Erofs)];

#[test]
fn without_pods_the_layers_of_the_other_driver_go_and_come_again() {
    for (before, after) in BOTH {
        let mut bench = Bench::new();
        let snapshotter = bench.open(before, Running::Nothing).expect("opens");
        bench.fill(&*snapshotter);
        bench.open(before, Running::Nothing).expect("the same again");
        assert_eq!(bench.store().layers().expect("layers").len(), 1, "nothing has changed");
        let snapshotter = bench.open(after, Running::Nothing).expect("opens");
        assert_eq!((bench.holds(), bench.store().layers().expect("layers").len()), ((0, 0), 0), "{before:?}");
        assert_eq!(bench.store().images().expect("images"), []);
        let mounts = std::fs::read_dir(bench.folder.path().join("mounts")).map_or(0, Iterator::count);
        assert_eq!(mounts, 0, "{before:?}: nothing stays mounted");
        let layer = bench.fill(&*snapshotter);
        assert!(snapshotter.layer(&layer).is_some());
    }
}

#[test]
fn what_pods_run_on_stays_and_the_remedy_is_told() {
    for (before, after) in BOTH {
        let mut bench = Bench::new();
        let snapshotter = bench.open(before, Running::Nothing).expect("opens");
        let layer = bench.fill(&*snapshotter);
        let words = bench.open(after, Running::Pods).expect_err("pods run on it").to_string();
        let name = if before == DriverChoice::Erofs { "erofs" } else { "directory" };
        assert!(words.contains(&format!("has 1 layers of the driver {name}, and pods may run on them")), "{words}");
        assert!(words.ends_with(&format!("or start with --snapshotter {name}")), "{words}");
        // Where the choice is ours, it is what they run on.
        for choice in [before, DriverChoice::Auto] {
            assert!(bench.open(choice, Running::Pods).expect("opens").layer(&layer).is_some(), "{choice:?}");
        }
    }
}
