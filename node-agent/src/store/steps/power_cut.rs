//! What is on a disk after the power was cut: a model of a file system that owes nothing but what was synced.
//!
//! - A file's content is there once it was synced after the last write; before that it may be there, in part or not at all.
//! - A directory that was synced with all in it is there as it was, wherever it is found; before that it is not.
//! - A name (made, renamed, removed) is there, or gone, once its directory was synced afterwards; before that each may or may
//!   not be, whatever became of the others. Of the two names of a rename one is there until the old one's directory is synced:
//!   the new one is not safe before its own is.
//!
//! So a real file system keeps more than this model, never less.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::observers::{Copied, Seen};

type Id = usize;

const ROOT: Id = 0;

/// A change of one name, or of the two of a rename.
#[derive(Debug, Clone)]
struct Change {
    edits: Vec<Edit>,
}

#[derive(Debug, Clone)]
struct Edit {
    directory: Id,
    name: String,
    /// What it names from now on, if anything.
    named: Option<Id>,
    is_durable: bool,
}

impl Edit {
    fn new(directory: Id, name: String, named: Option<Id>) -> Self {
        Self { directory, name, named, is_durable: false }
    }
}

#[derive(Debug, Clone)]
enum Node {
    Directory,
    /// The content that was synced last.
    File(Option<Vec<u8>>),
    /// A directory that was synced with all in it, and is changed no more.
    Tree(Copied),
}

/// A file system, below one folder, that forgets.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
    nodes: Vec<Node>,
    /// What a process sees while the power is on.
    seen: BTreeMap<Id, BTreeMap<String, Id>>,
    changes: Vec<Change>,
}

/// What becomes of changes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// None of them is there.
    Lost,
    /// All of them are there, but file contents are not.
    Kept,
    /// By this seed, each on its own.
    Drawn(u64),
}

impl Disk {
    /// The file system after these steps, which all lie below `folder`.
    pub(crate) fn after(folder: &Path, steps: &[Seen]) -> Self {
        let seen = BTreeMap::from([(ROOT, BTreeMap::new())]);
        let mut disk = Self { folder: folder.to_owned(), nodes: vec![Node::Directory], seen, changes: Vec::new() };
        for step in steps {
            disk.take(step);
        }
        disk
    }

    fn take(&mut self, step: &Seen) {
        match step {
            Seen::File(path) => self.add(path, Node::File(None)),
            Seen::Directory(path) => self.add(path, Node::Directory),
            Seen::SyncFile(path, content) => {
                // A file that has been renamed or removed meanwhile has no name to be found by, and needs none.
                if let Some(id) = self.find(path) {
                    self.nodes[id] = Node::File(Some(content.clone()));
                }
            }
            Seen::SyncDirectory(path) => {
                let Some(id) = self.find(path) else { return };
                let edits = self.changes.iter_mut().flat_map(|change| &mut change.edits);
                edits.filter(|edit| edit.directory == id).for_each(|edit| edit.is_durable = true);
            }
            Seen::SyncTree(path, copied) => {
                self.add(path, Node::Tree(copied.clone()));
                let edits = self.changes.last_mut().map(|change| &mut change.edits);
                edits.into_iter().flatten().for_each(|edit| edit.is_durable = true);
            }
            Seen::Rename(from, to) => {
                let (old, old_name) = self.place(from);
                let (new, new_name) = self.place(to);
                let id = self.seen[&old][&old_name];
                self.change(vec![Edit::new(old, old_name, None), Edit::new(new, new_name, Some(id))]);
            }
            Seen::Remove(path) => {
                let (directory, name) = self.place(path);
                if let Some(id) = self.seen[&directory].get(&name).copied() {
                    self.empty(id);
                    self.change(vec![Edit::new(directory, name, None)]);
                }
            }
            Seen::Mark(_) => {}
        }
    }

    fn add(&mut self, path: &Path, node: Node) {
        let (directory, name) = self.place(path);
        let id = self.nodes.len();
        if matches!(node, Node::Directory) {
            self.seen.insert(id, BTreeMap::new());
        }
        self.nodes.push(node);
        self.change(vec![Edit::new(directory, name, Some(id))]);
    }

    fn empty(&mut self, id: Id) {
        let inside: Vec<(String, Id)> = self.seen.get(&id).cloned().unwrap_or_default().into_iter().collect();
        for (name, inner) in inside {
            self.empty(inner);
            self.change(vec![Edit::new(id, name, None)]);
        }
    }

    fn change(&mut self, edits: Vec<Edit>) {
        edits.iter().for_each(|edit| apply(&mut self.seen, edit));
        self.changes.push(Change { edits });
    }

    fn place(&self, path: &Path) -> (Id, String) {
        let parent = path.parent().and_then(|parent| self.find(parent));
        let parent = parent.unwrap_or_else(|| panic!("{}: nobody told of its directory", path.display()));
        (parent, path.file_name().expect("a name").to_str().expect("UTF-8").to_owned())
    }

    fn find(&self, path: &Path) -> Option<Id> {
        let mut id = ROOT;
        for part in path.strip_prefix(&self.folder).ok()?.components() {
            let Component::Normal(name) = part else { return None };
            id = *self.seen.get(&id)?.get(name.to_str()?)?;
        }
        Some(id)
    }

    /// Cuts the power, and makes what is left a folder.
    pub(crate) fn cut(&self, unsynced: Unsynced, into: &Path) {
        let mut names: BTreeMap<Id, BTreeMap<String, Id>> = self.seen.keys().map(|id| (*id, BTreeMap::new())).collect();
        let mut coin = Coin::new(unsynced);
        for change in &self.changes {
            // What is not safe is kept or lost together.
            let all = change.edits.iter().all(|edit| edit.is_durable) || coin.keeps();
            change.edits.iter().filter(|edit| all || edit.is_durable).for_each(|edit| apply(&mut names, edit));
        }
        self.write(ROOT, &names, &mut coin, into);
    }

    fn write(&self, id: Id, names: &BTreeMap<Id, BTreeMap<String, Id>>, coin: &mut Coin, path: &Path) {
        match &self.nodes[id] {
            Node::Directory => {
                fs::create_dir_all(path).expect("mkdir");
                for (name, inner) in &names[&id] {
                    self.write(*inner, names, coin, &path.join(name));
                }
            }
            Node::Tree(copied) => copied.put(path),
            Node::File(Some(content)) => fs::write(path, content).expect("write"),
            // Of the right length and without the right bytes, as delayed allocation leaves it, or empty.
            Node::File(None) => fs::write(path, if coin.keeps() { &[0; 700][..] } else { b"" }).expect("write"),
        }
    }
}

fn apply(names: &mut BTreeMap<Id, BTreeMap<String, Id>>, edit: &Edit) {
    let Some(entries) = names.get_mut(&edit.directory) else { return };
    match edit.named {
        Some(id) => entries.insert(edit.name.clone(), id),
        None => entries.remove(&edit.name),
    };
}

/// Decides about each change that was not synced.
struct Coin {
    how: Unsynced,
    state: u64,
}

impl Coin {
    fn new(how: Unsynced) -> Self {
        let seed = if let Unsynced::Drawn(seed) = how { seed } else { 0 };
        Self { how, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    fn keeps(&mut self) -> bool {
        match self.how {
            Unsynced::Lost => false,
            Unsynced::Kept => true,
            Unsynced::Drawn(_) => {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.state >> 63 == 1
            }
        }
    }
}

mod tests {
    use super::*;
    use crate::store::durable;
    use crate::store::steps::{Step, observers::Recorder, passed};

    /// Does something in a folder and cuts the power after it; the folder that is left, and what it lies in.
    fn cut_after(unsynced: Unsynced, act: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().expect("temporary directory");
        let (live, dead) = (root.path().join("live"), root.path().join("dead"));
        let recorder = Recorder::below(&live);
        fs::create_dir(&live).expect("mkdir");
        act(&live);
        Disk::after(&live, &recorder.steps()).cut(unsynced, &dead);
        (root, dead)
    }

    /// Does something in a folder, cuts the power after it, and lists what is there.
    fn left(unsynced: Unsynced, act: impl FnOnce(&Path)) -> Vec<(String, Vec<u8>)> {
        let (_root, dead) = cut_after(unsynced, act);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dead).expect("read") {
            let entry = entry.expect("entry");
            let content = fs::read(entry.path()).unwrap_or_default();
            found.push((entry.file_name().into_string().expect("UTF-8"), content));
        }
        found.sort();
        found
    }

    /// As [`left`], one level further down: `folder/name`.
    fn below(unsynced: Unsynced, act: impl FnOnce(&Path)) -> Vec<String> {
        let (_root, dead) = cut_after(unsynced, act);
        let mut found = Vec::new();
        for folder in fs::read_dir(&dead).expect("read") {
            let folder = folder.expect("entry");
            for entry in fs::read_dir(folder.path()).expect("read") {
                let (folder, name) = (folder.file_name(), entry.expect("entry").file_name());
                found.push(format!("{}/{}", folder.display(), name.display()));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn what_was_not_synced_is_not_there() {
        let without_sync = |folder: &Path| {
            let mut file = durable::create_file(&folder.join("a")).expect("create");
            std::io::Write::write_all(&mut file, b"text").expect("write");
        };
        assert_eq!(left(Unsynced::Lost, without_sync), []);
        assert_eq!(left(Unsynced::Kept, without_sync), [("a".to_owned(), vec![0; 700])]);
        let name_only = |folder: &Path| {
            without_sync(folder);
            durable::sync_directory(folder).expect("sync");
        };
        assert_eq!(left(Unsynced::Lost, name_only), [("a".to_owned(), Vec::new())]);
        let written = |folder: &Path| {
            let write = |file: &mut fs::File| std::io::Write::write_all(file, b"text");
            durable::write_file(&folder.join("b"), &folder.join("a"), write).expect("write");
        };
        assert_eq!(left(Unsynced::Lost, written), [("b".to_owned(), b"text".to_vec())]);
        let removed = |folder: &Path| {
            written(folder);
            durable::remove(&folder.join("b")).expect("remove");
        };
        assert_eq!(left(Unsynced::Lost, removed), [("b".to_owned(), b"text".to_vec())]);
        assert_eq!(left(Unsynced::Kept, removed), []);
    }

    #[test]
    fn a_new_name_is_safe_once_its_own_directory_is_synced() {
        let renamed = |folder: &Path| {
            for name in ["old", "new"] {
                durable::create_directories(&folder.join(name)).expect("mkdir");
            }
            let write = |file: &mut fs::File| std::io::Write::write_all(file, b"text");
            durable::write_file(&folder.join("old/a"), &folder.join("old/b"), write).expect("write");
            fs::rename(folder.join("old/a"), folder.join("new/a")).expect("rename");
            passed(Step::Rename(&folder.join("old/a"), &folder.join("new/a")));
        };
        let names = |unsynced, synced: &'static [&'static str]| {
            let act = move |folder: &Path| {
                renamed(folder);
                synced.iter().for_each(|name| durable::sync_directory(&folder.join(name)).expect("sync"));
            };
            below(unsynced, act)
        };
        assert_eq!(names(Unsynced::Lost, &[]), ["old/a"]);
        assert_eq!(names(Unsynced::Kept, &[]), ["new/a"]);
        assert_eq!(names(Unsynced::Lost, &["new"]), ["new/a", "old/a"]);
        assert_eq!(names(Unsynced::Lost, &["old"]), [""; 0]);
        assert_eq!(names(Unsynced::Lost, &["new", "old"]), ["new/a"]);
    }

    #[test]
    fn a_directory_that_was_not_synced_takes_all_in_it_along() {
        let act = |folder: &Path| {
            durable::create_unfinished_directory(&folder.join("d")).expect("mkdir");
            let write = |file: &mut fs::File| std::io::Write::write_all(file, b"text");
            durable::write_file(&folder.join("d/b"), &folder.join("d/a"), write).expect("write");
        };
        assert_eq!(left(Unsynced::Lost, act), []);
        let act = |folder: &Path| {
            durable::create_directories(&folder.join("d/e")).expect("mkdir");
        };
        assert_eq!(left(Unsynced::Lost, act).len(), 1);
    }
}
