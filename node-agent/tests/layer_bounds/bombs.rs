//! Little that is transferred and becomes much: pulled from a registry, through the whole pipeline, onto a disk that has room
//! for what the bound lets be written and not for more.

use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use larder_node_agent::image::pull_plan::Platform;
use larder_node_agent::image::{
    EnsureImage, ImageConfig, ImageService, Images as _, PullPolicy, RegistryAccess, Waiter,
};
use larder_node_agent::meters::Meters;
use larder_node_agent::registry::{RegistryClient, RegistryConfig};
use larder_node_agent::snapshot::{DirectorySnapshotter, Driver, ErofsSnapshotter, Limits, Snapshotter};
use larder_node_agent::store::Store;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::sync::mpsc;

use super::peak::Alone;
use super::registry::Registry;

/// What one layer may have of plain bytes, and of memory.
const ALLOWED: u64 = 64 << 20;
/// What a pull takes of memory besides: its buffers, and those of the registry in this process.
const BESIDES: u64 = 48 << 20;
const LIMITS: Limits = Limits {
    layer_bytes: ALLOWED,
    metadata_bytes: ALLOWED,
    entries: 1_000_000,
    path_bytes: 4096,
    extension_bytes: 1 << 20,
    xattr_bytes: 64 << 10,
    sparse_extents: 1 << 16,
    sparse_chunks: 1 << 20,
};

/// A file system of its own in memory.
struct Disk(tempfile::TempDir);

impl Disk {
    /// With room for the allowed part of a layer, for a blob, and for the store's own files.
    fn small() -> Self {
        let root = tempfile::tempdir().expect("temporary directory");
        let options = CString::new(format!("size={}", ALLOWED + (24 << 20))).expect("no zero bytes");
        mount("tmpfs", root.path(), "tmpfs", MountFlags::empty(), Some(options.as_c_str())).expect("tmpfs");
        Self(root)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).expect("unmount tmpfs");
    }
}

/// The header of a file of nearly 8 GiB, the most that the oldest form of a header can say.
fn header(path: &str) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).expect("short");
    header.set_size((8 << 30) - 1);
    header.set_cksum();
    header
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(plain).expect("in memory");
    encoder.finish().expect("in memory")
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::encode_all(plain, 1).expect("in memory")
}

/// Ten gibibytes of zeroes in one file. They are packed once and then repeated, as both forms may be.
fn bomb(pack: fn(&[u8]) -> Vec<u8>) -> Bytes {
    const PIECE: usize = 16 << 20;
    let zeroes = pack(&vec![0; PIECE]);
    let header = pack(header("bomb").as_bytes());
    [header, zeroes.repeat((10 << 30) / PIECE)].concat().into()
}

/// A hundred thousand empty files with three kilobytes of attributes each, which are said once for all of them.
fn flood() -> Bytes {
    let record = |length: usize| format!("{length} SCHILY.xattr.user.all={}\n", "x".repeat(3000));
    let length = record(1000).len();
    let mut global = tar::Header::new_ustar();
    global.set_entry_type(tar::EntryType::XGlobalHeader);
    global.set_size(length as u64);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut global, "pax_global_header", record(length).as_bytes()).expect("in memory");
    let mut empty = tar::Header::new_ustar();
    empty.set_size(0);
    for index in 0..100_000 {
        tar.append_data(&mut empty, index.to_string(), &b""[..]).expect("in memory");
    }
    gzip(&tar.into_inner().expect("in memory")).into()
}

/// What is said of an image that cannot be had. Nothing of it is left.
async fn refused(driver: Driver, reference: &str) -> String {
    let disk = Disk::small();
    let store = Arc::new(Store::open(&disk.0.path().join("store")).expect("opens"));
    let layout = store.layout().clone();
    let snapshotter: Arc<dyn Snapshotter> = match driver {
        Driver::Erofs => Arc::new(ErofsSnapshotter::new(layout.clone(), disk.0.path().join("mounts"), LIMITS)),
        Driver::Directory => Arc::new(DirectorySnapshotter::new(layout.clone(), LIMITS)),
    };
    let platform = Platform { os: "linux", architecture: "amd64", variants: &[""] };
    let config = ImageConfig {
        max_parallel_layers: 3,
        max_parallel_layers_in_all: 3,
        registry_bandwidth: None,
        resume_over: Duration::ZERO,
        platform,
        rules: larder_node_agent::image::verification::Rules::default(),
        meters: Meters::default(),
    };
    let registries = Arc::new(RegistryClient::new(RegistryConfig::default()));
    let service = ImageService::open(config, Arc::clone(&store), registries, snapshotter).await.expect("opens");
    let wish = EnsureImage {
        reference: reference.to_owned(),
        policy: PullPolicy::IfNotPresent,
        access: RegistryAccess::default(),
        cache: None,
        waiter: Waiter::Command,
    };
    let (progress, _told) = mpsc::channel(100);
    let error = service.ensure(wish, progress).await.expect_err("refused");
    service.shutdown().await;
    assert!(store.layers().expect("layers").is_empty());
    for folder in [layout.layers(), layout.images(), layout.ingest()] {
        assert_eq!(names(&folder), Vec::<String>::new(), "{}", folder.display());
    }
    error.to_string()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("read");
    entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn ten_gibibytes_of_zeroes_are_refused_when_the_allowed_part_of_them_has_come() {
    let alone = Alone::wait();
    let (gzip, zstd) = (bomb(gzip), bomb(zstd));
    assert!(gzip.len() < 16 << 20 && zstd.len() < 16 << 20, "{} and {} bytes", gzip.len(), zstd.len());
    let registry = Registry::of(&[("gzip", gzip), ("zstd", zstd)]).await;
    for driver in [Driver::Erofs, Driver::Directory] {
        for name in ["gzip", "zstd"] {
            let peak = alone.measure();
            let text = refused(driver, &registry.image(name)).await;
            let expected = "read layer: more than 67108864 bytes, the bound set by --max-layer-bytes";
            assert!(text.contains(expected), "{name}, {driver}: {text}");
            let bytes = peak.bytes();
            assert!(bytes <= BESIDES, "{name}, {driver}: {bytes} bytes of memory");
        }
    }
}

#[tokio::test]
async fn a_flood_of_attributes_is_refused_when_it_takes_more_memory_than_allowed() {
    let alone = Alone::wait();
    let registry = Registry::of(&[("flood", flood())]).await;
    let peak = alone.measure();
    let text = refused(Driver::Erofs, &registry.image("flood")).await;
    assert!(text.contains("the bound set by --max-layer-metadata-bytes"), "{text}");
    let bytes = peak.bytes();
    assert!(bytes <= ALLOWED + BESIDES, "{bytes} bytes of memory");
}
