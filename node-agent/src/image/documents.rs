//! Manifests, indexes and image configurations, as files of the store named by their digests.
//!
//! What is read is verified again. Everything here blocks.

use std::{fs, io, io::Write as _, sync::Arc};

use crate::{
    digest::Digest,
    store::{Store, StoreError, durable},
};

/// The folder `manifests/` of a store.
#[derive(Debug, Clone)]
pub(super) struct Documents(pub(super) Arc<Store>);

impl Documents {
    /// The document, when it is here and whole.
    pub(super) fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        let content = fs::read(self.0.layout().manifest(digest)).ok()?;
        (Digest::of(&content) == *digest).then_some(content)
    }

    /// Keeps a document, durably. One that is here already is not written again.
    pub(super) fn put(&self, digest: &Digest, content: &[u8]) -> Result<(), StoreError> {
        if self.get(digest).is_some() {
            return Ok(());
        }
        let (layout, path) = (self.0.layout(), self.0.layout().manifest(digest));
        let write = |file: &mut fs::File| -> io::Result<()> { file.write_all(content) };
        durable::write_file(&path, &layout.unfinished("manifest"), write).map_err(|source| StoreError::Io {
            action: "write",
            path,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_only_what_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let documents = Documents(Arc::new(Store::open(dir.path()).unwrap()));
        let digest = Digest::of(b"abc");
        assert_eq!(documents.get(&digest), None);
        documents.put(&digest, b"abc").unwrap();
        assert_eq!(documents.get(&digest).as_deref(), Some(&b"abc"[..]));
        let path = documents.0.layout().manifest(&digest);
        fs::write(&path, b"ab").unwrap();
        assert_eq!(documents.get(&digest), None);
        documents.put(&digest, b"abc").unwrap();
        assert_eq!(documents.get(&digest).as_deref(), Some(&b"abc"[..]));
    }
}
