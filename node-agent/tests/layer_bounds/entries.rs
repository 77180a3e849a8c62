//! Ten million entries.

use std::ops::Range;

use larder_node_agent::digest::Digest;
use larder_node_agent::snapshot::{ErofsSnapshotter, Limits, SnapshotError, Snapshotter};
use larder_node_agent::store::Store;
use sha2::{Digest as _, Sha256};

use super::peak::Alone;

const ENTRIES: usize = 10_000_000;
/// What is not counted as an entry's: buffers, the writer of the index, what the allocator keeps by the side.
const BESIDES: u64 = 16 << 20;
/// Headers that are given at once.
const AT_ONCE: usize = 2048;

/// A tar of entries without data, which is nowhere as a whole.
struct Tar {
    /// The header of an entry without a name, and the sum of its bytes.
    nameless: [u8; 512],
    sum: u32,
}

impl Tar {
    /// Of entries of this kind, which lead to `target` where they are links.
    fn of(kind: u8, target: &str) -> Self {
        let mut nameless = [0; 512];
        let mut put = |at: usize, text: &[u8]| nameless[at..at + text.len()].copy_from_slice(text);
        put(100, b"0000755\x000000000\x000000000\x0000000000000\x0000000000000\x00        ");
        put(156, &[kind]);
        put(157, target.as_bytes());
        put(257, b"ustar\x0000");
        Self { nameless, sum: nameless.iter().map(|byte| u32::from(*byte)).sum() }
    }

    /// The headers of these entries, which lie in two hundred directories.
    fn write(&self, entries: Range<usize>, to: &mut Vec<u8>) {
        to.clear();
        for index in entries {
            let name = format!("{:03}/{index}", index % 200);
            let sum: u32 = self.sum + name.bytes().map(u32::from).sum::<u32>();
            let at = to.len();
            to.extend_from_slice(&self.nameless);
            to[at..at + name.len()].copy_from_slice(name.as_bytes());
            to[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }

    fn pieces(
        &self,
        count: usize,
        mut take: impl FnMut(&[u8]) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut piece = Vec::with_capacity(AT_ONCE * 512);
        for first in (0..count).step_by(AT_ONCE) {
            self.write(first..(first + AT_ONCE).min(count), &mut piece);
            take(&piece)?;
        }
        Ok(())
    }
}

/// A store on the disk.
struct Bench {
    root: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&root.path().join("store")).expect("opens");
        Self { root, store }
    }

    fn snapshotter(&self, limits: Limits) -> ErofsSnapshotter {
        ErofsSnapshotter::new(self.store.layout().clone(), self.root.path().join("mounts"), limits)
    }

    /// Why ten million entries are not taken, and about how many were.
    fn refused(&self, tar: &Tar, limits: Limits) -> (usize, String) {
        let mut writer = self.snapshotter(limits).begin_layer(None).expect("begun");
        let mut taken = 0;
        let refused = tar.pieces(ENTRIES, |piece| {
            writer.write(piece)?;
            taken += piece.len() / 512;
            Ok(())
        });
        let error = refused.expect_err("refused");
        assert!(matches!(error, SnapshotError::LimitExceeded(_)), "{error}");
        drop(writer);
        let left: Vec<_> = std::fs::read_dir(self.store.layout().ingest()).expect("read").collect();
        assert!(left.is_empty(), "{left:?}");
        (taken, error.to_string())
    }

    /// As many as are taken become a layer.
    fn taken(&self, tar: &Tar, count: usize, limits: Limits) {
        let mut hash = Sha256::new();
        tar.pieces(count, |piece| {
            hash.update(piece);
            Ok(())
        })
        .expect("hashed");
        let mut writer = self.snapshotter(limits).begin_layer(None).expect("begun");
        tar.pieces(count, |piece| writer.write(piece)).expect("taken before");
        writer.finish(&Digest::from_bytes(hash.finalize().into())).expect("a layer");
    }
}

#[test]
fn by_default_ten_million_entries_are_refused_for_their_number() {
    let (alone, bench, limits) = (Alone::wait(), Bench::new(), Limits::default());
    let peak = alone.measure();
    let (taken, text) = bench.refused(&Tar::of(b'0', ""), limits);
    assert!(text.contains("more than 1000000 entries, the bound set by --max-layer-entries"), "{text}");
    assert_eq!(taken, limits.entries / AT_ONCE * AT_ONCE);
    let bytes = peak.bytes();
    assert!(bytes <= limits.metadata_bytes + BESIDES, "{bytes} bytes");
}

#[test]
fn ten_million_entries_where_so_many_may_be_take_the_memory_that_they_may() {
    let alone = Alone::wait();
    let limits = Limits { entries: ENTRIES, metadata_bytes: 32 << 20, ..Limits::default() };
    let kinds = [("files", b'0', ""), ("directories", b'5', ""), ("links", b'2', "a/target/of/some/length")];
    for (what, kind, target) in kinds {
        let (bench, tar) = (Bench::new(), Tar::of(kind, target));
        let peak = alone.measure();
        let (taken, text) = bench.refused(&tar, limits);
        assert!(text.contains("the bound set by --max-layer-metadata-bytes"), "{what}: {text}");
        assert!(taken > 50_000, "{what}: {taken} entries");
        // An index takes its memory once more when it is written.
        bench.taken(&tar, taken, limits);
        let bytes = peak.bytes();
        assert!(bytes <= limits.metadata_bytes + BESIDES, "{what}: {taken} entries took {bytes} bytes");
    }
}
