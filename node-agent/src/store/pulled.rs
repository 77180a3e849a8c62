//! `pulled/<manifest>.json`: whom registries have let pull an image, so that what one pod's login has brought here is not
//! given to another that may not have it.
//!
//! No login is in it: only what a login comes to together with the file's own salt. A file that is lost or cannot be read
//! says nothing of anybody, so that the registry is asked again.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::{StoreError, durable};
use crate::digest::Digest;

/// Who was let in to pull one image. Fields are added, never changed in meaning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// What the fingerprints of logins are made with.
    pub salt: String,
    /// By the repository that it was pulled from, in full: one image may be private in one and public in another.
    pub repositories: BTreeMap<String, LetIn>,
}

/// Who was let in at one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetIn {
    /// Without a login, or with what the node itself has: every pod of this host is.
    #[serde(default)]
    pub anybody: bool,
    /// Fingerprints of the logins of pods and caches, the newest first.
    #[serde(default)]
    pub logins: Vec<String>,
}

/// Who was let in to pull an image.
pub fn of(layout: &Layout, manifest: &Digest) -> Pulled {
    let bytes = fs::read(layout.pull_record(manifest)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Writes it, durably, in place of what was known.
///
/// # Errors
/// When the file system refuses.
pub fn put(layout: &Layout, manifest: &Digest, pulled: &Pulled) -> Result<(), StoreError> {
    let path = layout.pull_record(manifest);
    let write = |file: &mut fs::File| serde_json::to_writer(file, pulled).map_err(io::Error::from);
    durable::write_file(&path, &layout.unfinished("pulled"), write).map_err(StoreError::io("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back_and_damage_is_nobody() {
        let root = tempfile::tempdir().expect("temporary directory");
        let store = crate::store::Store::open(root.path()).expect("opens");
        let (layout, manifest) = (store.layout(), Digest::of(b"m"));
        assert_eq!(of(layout, &manifest), Pulled::default());
        let let_in = LetIn { anybody: false, logins: vec!["f".to_owned()] };
        let pulled = Pulled { salt: "s".to_owned(), repositories: [("r/a".to_owned(), let_in)].into() };
        put(layout, &manifest, &pulled).expect("put");
        assert_eq!(of(layout, &manifest), pulled);
        fs::write(layout.pull_record(&manifest), b"{").expect("damage");
        assert_eq!(of(layout, &manifest), Pulled::default());
    }
}
