//! A node's own store while a bench has the node. It waits beside its place, and as long as it does, what lies in its place
//! is the bench's: so whoever comes after a bench that was killed can tell which is which and put things right.
//!
//! Nothing here starts or stops an agent; none may run on the store meanwhile.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Whether this store's own content waits beside it.
#[must_use]
pub(crate) fn is_aside(root: &Path) -> bool {
    kept(root).exists()
}

/// Sets the store aside and leaves its place empty. One that waits already goes on waiting: a killed bench left it.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn set_aside(root: &Path) -> anyhow::Result<()> {
    let kept = kept(root);
    if kept.exists() {
        return remove(root);
    }
    if root.exists() {
        return fs::rename(root, &kept).with_context(|| format!("set {} aside", root.display()));
    }
    // An empty one, so that the place is known to be taken by the bench.
    fs::create_dir_all(&kept).with_context(|| format!("create {}", kept.display()))
}

/// Puts the store back, if it waits. What the bench had in its place is removed first: if this is cut short, the next call
/// goes on.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn put_back(root: &Path) -> anyhow::Result<()> {
    if !is_aside(root) {
        return Ok(());
    }
    remove(root)?;
    fs::rename(kept(root), root).with_context(|| format!("put {} back", root.display()))
}

fn kept(root: &Path) -> PathBuf {
    root.with_extension("kept")
}

fn remove(root: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(root) {
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("remove {}", root.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store with one file that says whose it is; none for an empty place.
    fn whose(root: &Path) -> Option<String> {
        fs::read_to_string(root.join("whose")).ok()
    }

    fn fill(root: &Path, whose: &str) {
        fs::create_dir_all(root).expect("make a store");
        fs::write(root.join("whose"), whose).expect("fill a store");
    }

    #[test]
    fn a_store_comes_back_after_a_bench_and_after_any_number_of_killed_ones() {
        let dir = tempfile::tempdir().expect("make a folder");
        let root = dir.path().join("root");
        fill(&root, "the node's");
        for _ in 0..3 {
            set_aside(&root).expect("set aside");
            assert!(is_aside(&root));
            assert_eq!(whose(&root), None);
            fill(&root, "a bench's");
        }
        put_back(&root).expect("put back");
        assert!(!is_aside(&root));
        assert_eq!(whose(&root).as_deref(), Some("the node's"));
        put_back(&root).expect("nothing waits any more");
        assert_eq!(whose(&root).as_deref(), Some("the node's"));
    }

    #[test]
    fn a_bench_on_a_node_that_had_no_store_leaves_none_of_its_own() {
        let dir = tempfile::tempdir().expect("make a folder");
        let root = dir.path().join("agent/root");
        set_aside(&root).expect("set aside");
        fill(&root, "a bench's");
        put_back(&root).expect("put back");
        assert_eq!(whose(&root), None);
    }

    #[test]
    fn putting_back_goes_on_where_it_was_cut_short() {
        let dir = tempfile::tempdir().expect("make a folder");
        let root = dir.path().join("root");
        fill(&root, "the node's");
        set_aside(&root).expect("set aside");
        // As if the bench's store had been removed and nothing more.
        put_back(&root).expect("put back");
        assert_eq!(whose(&root).as_deref(), Some("the node's"));
    }
}
