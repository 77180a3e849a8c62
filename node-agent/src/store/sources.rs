//! `sources/<manifest>.json`: where an image came from, so that a layer of it can be fetched again when it is damaged.
//!
//! Names only: a login never reaches the disk. A file that is lost or cannot be read costs nothing but that.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::{StoreError, durable};
use crate::digest::Digest;

/// How many sources of one image are kept, the newest first.
const KEPT: usize = 8;

/// One place where an image was pulled from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The reference in full.
    pub reference: String,
    /// Whether its registry was spoken to over plain http by wish of a pod or cache.
    #[serde(default)]
    pub plain_http: bool,
    /// Whether its certificate was not verified by such a wish.
    #[serde(default)]
    pub insecure: bool,
}

/// Where an image came from, the newest first.
pub fn of(layout: &Layout, manifest: &Digest) -> Vec<Source> {
    let bytes = fs::read(layout.source(manifest)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Notes a source of an image. One that is noted already is not written again.
///
/// # Errors
/// When the file system refuses.
pub fn note(layout: &Layout, manifest: &Digest, source: &Source) -> Result<(), StoreError> {
    let mut sources = of(layout, manifest);
    if sources.contains(source) {
        return Ok(());
    }
    sources.retain(|other| other.reference != source.reference);
    sources.insert(0, source.clone());
    sources.truncate(KEPT);
    let path = layout.source(manifest);
    durable::write_file(&path, &layout.unfinished("source"), |file| {
        serde_json::to_writer(file, &sources).map_err(io::Error::from)
    })
    .map_err(StoreError::io("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_come_first_and_each_once() {
        let root = tempfile::tempdir().expect("temporary directory");
        let store = crate::store::Store::open(root.path()).expect("opens");
        let (layout, manifest) = (store.layout(), Digest::of(b"m"));
        let source = |name: &str| Source { reference: name.to_owned(), plain_http: false, insecure: false };
        assert_eq!(of(layout, &manifest), []);
        for name in ["a", "b", "a", "c"] {
            note(layout, &manifest, &source(name)).expect("note");
        }
        assert_eq!(of(layout, &manifest), ["c", "b", "a"].map(source));
        let plain = Source { plain_http: true, ..source("b") };
        note(layout, &manifest, &plain).expect("note");
        assert_eq!(of(layout, &manifest), [plain, source("c"), source("a")]);
        for number in 0..20 {
            note(layout, &manifest, &source(&number.to_string())).expect("note");
        }
        assert_eq!(of(layout, &manifest).len(), KEPT);
        fs::write(layout.source(&manifest), b"{").expect("damage");
        assert_eq!(of(layout, &manifest), []);
    }
}
