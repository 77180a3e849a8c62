//! Images from a seeded generator: every kind of file, links, attributes, whiteouts, opaque directories, kinds that replace
//! each other, in every dialect. The mounted tree is compared with what independent unpackers make of the same layers.
//!
//! Left out is what those disagree on among themselves (whiteouts behind entries that they would concern, old sparse
//! entries for umoci); the suite has tests of its own for that.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rstest::rstest;

use super::compare::{self, Leeway};
use super::fixture::{Bench, Layers};
use super::tarball::{self, Dialect, Entry, Sparse};
use super::{checked_by, reference};
use crate::snapshot::Driver;

/// The names of a user's attributes.
const USER_XATTRS: [&str; 3] = ["user.a", "user.b", "user.long.name.with.dots"];

/// Bytes in a path, well within what the references take.
const PATH_MAX: usize = 2000;

/// Images a test case.
const IMAGES: u64 = 30;

/// What is at a path of the image so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    Symlink,
    Other,
}

/// An image that is being made.
struct Generator {
    random: StdRng,
    /// All layers so far.
    files: BTreeMap<String, Kind>,
    /// Which of them this layer has made.
    own: BTreeSet<String>,
    /// Files of the layers below that this layer has further names for.
    linked: BTreeSet<String>,
    /// Directories that have whiteouts of this layer, which are made where they are missing.
    marked: BTreeSet<String>,
    entries: Vec<Entry>,
    /// Whether umoci can be asked: it knows no old sparse entries.
    old_sparse: bool,
}

impl Generator {
    fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let [own, linked, marked] = [const { BTreeSet::new() }; 3];
        Self {
            random,
            files: BTreeMap::new(),
            own,
            linked,
            marked,
            entries: Vec::new(),
            old_sparse: seed.is_multiple_of(5),
        }
    }

    fn layer(&mut self) -> Vec<u8> {
        self.own.clear();
        self.linked.clear();
        self.marked.clear();
        self.entries.clear();
        if !self.files.is_empty() {
            for _ in 0..self.random.random_range(0..6) {
                self.whiteout();
            }
        }
        for _ in 0..self.random.random_range(0..40) {
            self.entry();
        }
        tarball::of(&self.entries)
    }

    fn entry(&mut self) {
        match self.random.random_range(0..20) {
            0..4 => self.directory(),
            4..10 => self.file(),
            10..12 => self.sparse(),
            12..14 => self.symlink(),
            14..17 => self.hard_link(),
            17 => self.special(b'6', (0, 0)),
            18 => {
                let device = (self.random.random_range(1..4096), self.random.random_range(0..1 << 20));
                self.special(b'3', device);
            }
            _ => {
                let device = (self.random.random_range(1..4096), self.random.random_range(0..1 << 20));
                self.special(b'4', device);
            }
        }
    }

    /// A path for a new file, in a directory that is there or in one that the path implies.
    fn new_path(&mut self) -> String {
        let directories: Vec<String> =
            self.files.iter().filter(|(_, kind)| **kind == Kind::Directory).map(|(path, _)| path.clone()).collect();
        let mut path = directories.choose(&mut self.random).filter(|_| self.random.random_bool(0.7)).cloned();
        for _ in 0..self.random.random_range(1..3) {
            let name = self.name();
            path = Some(path.map_or(name.clone(), |path| format!("{path}/{name}")));
        }
        path.unwrap_or_default()
    }

    fn name(&mut self) -> String {
        let long = ["l".repeat(101), "m".repeat(255), "n".repeat(160)];
        let odd =
            ["!", "-r", ".hidden", "with space", "\u{e9}\u{1f980}", "tab\tstop", "back\\slash", "*", "...", ".wh"];
        match self.random.random_range(0..10) {
            0 => (*odd.choose(&mut self.random).expect("some")).to_owned(),
            1 => long.choose(&mut self.random).expect("some").clone(),
            _ => (*["a", "b", "c", "d", "e"].choose(&mut self.random).expect("some")).to_owned(),
        }
    }

    /// Whether a file that is no directory may be put at the path: nothing on the way is a file, and it is not a directory
    /// with entries of this same layer, which GNU tar would not replace.
    fn is_free(&self, path: &str) -> bool {
        let below = format!("{path}/");
        self.is_open(path)
            && !self.own.iter().any(|own| own.starts_with(&below))
            && !self.linked.iter().any(|linked| linked == path || linked.starts_with(&below))
    }

    /// Whether anything may be put at the path. A symbolic link of this layer stays: GNU tar makes those last.
    fn is_open(&self, path: &str) -> bool {
        let link = self.own.contains(path) && self.files.get(path) == Some(&Kind::Symlink);
        path.len() < PATH_MAX && !link && self.parents_are_directories(path)
    }

    fn parents_are_directories(&self, path: &str) -> bool {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        parents.into_iter().all(|parent| self.files.get(parent).is_none_or(|kind| *kind == Kind::Directory))
    }

    /// Notes that the layer has something at the path, with the directories that it implies.
    fn put(&mut self, path: &str, kind: Kind) {
        if kind != Kind::Directory {
            let below = format!("{path}/");
            self.files.retain(|found, _| !found.starts_with(&below));
        }
        for (at, _) in path.match_indices('/') {
            self.files.insert(path[..at].to_owned(), Kind::Directory);
            self.own.insert(path[..at].to_owned());
        }
        self.files.insert(path.to_owned(), kind);
        self.own.insert(path.to_owned());
    }

    /// An entry with any metadata.
    fn dressed(&mut self, path: &str, kind: u8) -> Entry {
        let mut entry = Entry::new(path, kind);
        entry.dialect = if self.random.random_bool(0.6) { Dialect::Pax } else { Dialect::Gnu };
        // Directories without setgid: in one of those a kernel gives its group to directories that a path implies, and when
        // an unpacker sets the mode decides whether it did.
        let bits = if kind == b'5' { 0o5777 } else { 0o7777 };
        entry.mode = if kind == b'2' { 0o777 } else { self.random.random_range(0..0o10000) & bits };
        let ids = [0, 1, 1000, 65_534, 70_000, 2_097_151, 2_097_152, 3_000_000_000, 4_294_967_294];
        let mut id = || *ids.choose(&mut self.random).expect("some");
        entry.owner = (id(), id());
        let seconds = [0, 1, 1_500_000_000, 1_600_000_001, -1, -2_000_000_000, 4_294_967_301, 8_589_934_593];
        entry.mtime.0 = *seconds.choose(&mut self.random).expect("some");
        if entry.dialect == Dialect::Pax {
            entry.mtime.1 = *[0, 1, 123_456_789, 999_999_999].choose(&mut self.random).expect("some");
            entry.xattrs = self.xattrs(kind);
        }
        entry
    }

    fn xattrs(&mut self, kind: u8) -> Vec<(String, Vec<u8>)> {
        let mut xattrs = BTreeMap::new();
        if !matches!(kind, b'0' | b'5') || self.random.random_bool(0.5) {
            return Vec::new();
        }
        for _ in 0..self.random.random_range(1..4) {
            let value: Vec<u8> = match self.random.random_range(0..4) {
                0 => b"often the same".to_vec(),
                1 => vec![self.random.random(); self.random.random_range(1000..3000)],
                _ => (0..self.random.random_range(0..40)).map(|_| self.random.random()).collect(),
            };
            xattrs.insert((*USER_XATTRS.choose(&mut self.random).expect("some")).to_owned(), value);
        }
        if kind == b'0' && self.random.random_bool(0.3) {
            let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            xattrs.insert("security.capability".to_owned(), capability.to_vec());
        }
        xattrs.into_iter().collect()
    }

    fn directory(&mut self) {
        let known: Vec<String> = self.files.keys().cloned().collect();
        let again = known.choose(&mut self.random).filter(|_| self.random.random_bool(0.3)).cloned();
        let path = again.unwrap_or_else(|| self.new_path());
        if !self.is_open(&path) || self.linked.contains(&path) {
            return;
        }
        let mut entry = self.dressed(&path, b'5');
        if self.files.contains_key(&path) {
            // GNU tar leaves attributes that are stated no more; so all are stated again.
            entry.dialect = Dialect::Pax;
            let value = vec![self.random.random(); 5];
            entry.xattrs = USER_XATTRS.map(|name| (name.to_owned(), value.clone())).to_vec();
        }
        if self.random.random_bool(0.5) {
            entry.path.push('/');
        }
        self.entries.push(entry);
        self.put(&path, Kind::Directory);
    }

    fn file(&mut self) {
        let path = self.new_path();
        if !self.is_free(&path) {
            return;
        }
        let mut entry = self.dressed(&path, b'0');
        let length = *[0, 1, 100, 511, 512, 513, 1024, 5000, 40_000].choose(&mut self.random).expect("some");
        entry.content = (0..length).map(|_| self.random.random()).collect();
        self.entries.push(entry);
        self.put(&path, Kind::Other);
    }

    fn sparse(&mut self) {
        let path = self.new_path();
        if !self.is_free(&path) {
            return;
        }
        let mut entry = self.dressed(&path, b'0');
        let how = match entry.dialect {
            Dialect::Gnu if self.old_sparse => Sparse::Gnu,
            Dialect::Gnu => return,
            Dialect::Pax => *[Sparse::Pax00, Sparse::Pax01, Sparse::Pax10].choose(&mut self.random).expect("some"),
        };
        let unit = *[512, 4096, 65_536].choose(&mut self.random).expect("some");
        let (mut offset, mut pieces) = (0, Vec::new());
        for _ in 0..*[0, 1, 2, 3, 5, 9, 30].choose(&mut self.random).expect("some") {
            offset += unit * self.random.random_range(0..4);
            let length = unit * self.random.random_range(1..3);
            pieces.push((offset, length));
            offset += length;
        }
        // The last piece may end anywhere, with the file or before it.
        if let (Some(last), true) = (pieces.last_mut(), self.random.random_bool(0.5)) {
            let short = self.random.random_range(0..512);
            (last.1, offset) = (last.1 - short, offset - short);
        }
        // A hole at the end is told by an empty piece behind it, as GNU tar has it.
        let size = offset + if self.random.random_bool(0.5) { 0 } else { self.random.random_range(1..3 * unit) };
        if size > offset || pieces.is_empty() {
            pieces.push((size, 0));
        }
        let length: u64 = pieces.iter().map(|(_, length)| length).sum();
        entry.content = (0..length).map(|_| self.random.random_range(1..=255)).collect();
        entry.sparse = Some((how, size, pieces));
        self.entries.push(entry);
        self.put(&path, Kind::Other);
    }

    fn symlink(&mut self) {
        let path = self.new_path();
        if !self.is_free(&path) || self.own.contains(&path) {
            return;
        }
        let target = match self.random.random_range(0..4) {
            0 => "t".repeat(self.random.random_range(90..110)),
            1 => format!("/{}", "long/".repeat(self.random.random_range(1..700))),
            2 => "../../../../../../etc".to_owned(),
            _ => "a/b".to_owned(),
        };
        let entry = Entry { link: target, ..self.dressed(&path, b'2') };
        self.entries.push(entry);
        self.put(&path, Kind::Symlink);
    }

    fn hard_link(&mut self) {
        let targets: Vec<(String, Kind)> = self
            .files
            .iter()
            .filter(|(_, kind)| **kind != Kind::Directory)
            .map(|(path, kind)| (path.clone(), *kind))
            .collect();
        let Some((target, kind)) = targets.choose(&mut self.random).cloned() else { return };
        let path = self.new_path();
        if path == target || target.starts_with(&format!("{path}/")) || !self.is_free(&path) {
            return;
        }
        if !self.own.contains(&target) {
            self.linked.insert(target.clone());
        }
        let link = if self.random.random_bool(0.3) { format!("./{target}") } else { target };
        let dialect = if self.random.random_bool(0.5) { Dialect::Pax } else { Dialect::Gnu };
        self.entries.push(Entry { dialect, ..Entry::link(&path, b'1', &link) });
        self.put(&path, kind);
    }

    fn special(&mut self, kind: u8, device: (u64, u64)) {
        let path = self.new_path();
        if !self.is_free(&path) {
            return;
        }
        let entry = Entry { device, ..self.dressed(&path, kind) };
        self.entries.push(entry);
        self.put(&path, Kind::Other);
    }

    /// Comes before the layer's own entries.
    fn whiteout(&mut self) {
        let known: Vec<(String, Kind)> = self.files.iter().map(|(path, kind)| (path.clone(), *kind)).collect();
        let Some((path, kind)) = known.choose(&mut self.random).cloned() else { return };
        let below = format!("{path}/");
        if self.marked.iter().any(|marked| marked.starts_with(&below)) {
            return;
        }
        if kind == Kind::Directory && self.random.random_bool(0.3) {
            self.marked.insert(path.clone());
            self.entries.push(Entry::new(&format!("{path}/.wh..wh..opq"), b'0'));
            self.files.retain(|found, _| !found.starts_with(&below));
            return;
        }
        let (parent, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(parent, name)| (parent, name));
        if name.len() + 4 > 255 || self.marked.contains(&path) {
            return;
        }
        self.marked.insert(parent.to_owned());
        let separator = if parent.is_empty() { "" } else { "/" };
        let marker = format!("{parent}{separator}.wh.{name}");
        // Some builders make whiteouts that are hard links.
        let links = self.entries.first().filter(|_| self.random.random_bool(0.2)).map(|first| first.path.clone());
        self.entries.push(match links {
            Some(first) => Entry::link(&marker, b'1', &first),
            None => Entry::new(&marker, b'0'),
        });
        self.files.retain(|found, _| *found != path && !found.starts_with(&below));
    }
}

fn check(seed: u64) {
    let mut generator = Generator::new(seed);
    let count = generator.random.random_range(1..5);
    let layers = Layers::from((0..count).map(|_| generator.layer()).collect::<Vec<_>>());
    let bench = Bench::in_memory();
    let mut references = vec![(reference::tar(&layers, &bench.directory("tar")), Leeway::None)];
    if !generator.old_sparse {
        references.push((reference::umoci(&layers, &bench.directory("umoci")), Leeway::EmptyAttributes));
    }
    for driver in [Driver::Erofs, Driver::Directory] {
        let shown = bench.mount(driver, &layers);
        for (expected, leeway) in &references {
            compare::same(expected, shown.root(), driver, *leeway);
        }
        bench.assert_sound(driver, &layers);
    }
    checked_by::erofs_utils(&bench.layout(Driver::Erofs), &layers.image());
}

/// Prints the seed of an image that fails, from which it can be made again.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "a test's own output")]
            {
                eprintln!("the image of seed {}", self.0);
            }
        }
    }
}

#[rstest]
fn generated_images_are_what_others_unpack(#[values(0, 1, 2, 3, 4, 5, 6)] part: u64) {
    for seed in part * IMAGES..(part + 1) * IMAGES {
        let seed = Seed(seed);
        check(seed.0);
    }
}
