//! Manifests, indexes and image configurations, as files of the store named by their digests.
//!
//! What is read is verified again. Everything here blocks.

use std::{
    collections::HashSet,
    fs, io,
    io::{Read as _, Write as _},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use serde::Deserialize;

use crate::{
    digest::Digest,
    store::{Store, StoreError, durable, entries},
};

/// The folder `manifests/` of a store.
#[derive(Debug, Clone)]
pub(super) struct Documents(pub(super) Arc<Store>);

impl Documents {
    /// The document, when it is here and whole. Its file is as young as its last use, so that no sweep takes it from
    /// somebody who has just found it.
    pub(super) fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        let mut file = fs::File::open(self.0.layout().manifest(digest)).ok()?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).ok()?;
        if Digest::of(&content) != *digest {
            return None;
        }
        #[expect(clippy::disallowed_methods, reason = "compared with the times of files")]
        let now = SystemTime::now();
        // A read-only disk loses nothing by it.
        let _ = file.set_modified(now);
        Some(content)
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

/// What a document says of others; the rest of it does not matter here.
#[derive(Debug, Default, Deserialize)]
struct Mentions {
    config: Option<Mention>,
    #[serde(default)]
    manifests: Vec<Mention>,
}

#[derive(Debug, Deserialize)]
struct Mention {
    digest: String,
}

impl Documents {
    /// Removes the documents, sources and records of pulls that no image of `keep` needs, unless they are younger than `before`; says how
    /// many. An index stays as long as one of its manifests does.
    pub(super) fn sweep(&self, keep: &HashSet<Digest>, before: SystemTime) -> Result<usize, StoreError> {
        let layout = self.0.layout();
        let mut needed: HashSet<String> = keep.iter().map(Digest::hex).collect();
        for manifest in keep {
            let config = self.mentions(&layout.manifest(manifest)).config;
            needed.extend(config.and_then(|config| digest_of(&config)).map(|digest| digest.hex()));
        }
        let mut removed = 0;
        for path in entries(&layout.manifests())? {
            let is_needed = needed.contains(stem(&path));
            if is_needed || !is_older(&path, before) {
                continue;
            }
            let mentioned = self.mentions(&path).manifests;
            let leads_to_one = mentioned.iter().filter_map(digest_of).any(|other| keep.contains(&other));
            if !leads_to_one {
                removed += remove(&path)?;
            }
        }
        for path in entries(&layout.sources())?.into_iter().chain(entries(&layout.pulled())?) {
            if !needed.contains(stem(&path)) && is_older(&path, before) {
                removed += remove(&path)?;
            }
        }
        Ok(removed)
    }

    fn mentions(&self, path: &Path) -> Mentions {
        let content = fs::read(path).unwrap_or_default();
        serde_json::from_slice(&content).unwrap_or_default()
    }

    /// All documents, as their names say.
    pub(super) fn all(&self) -> Result<Vec<Digest>, StoreError> {
        let names = entries(&self.0.layout().manifests())?;
        Ok(names.iter().filter_map(|path| Digest::from_hex(stem(path))).collect())
    }
}

fn digest_of(mention: &Mention) -> Option<Digest> {
    mention.digest.parse().ok()
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_older(path: &Path, than: SystemTime) -> bool {
    fs::metadata(path).and_then(|found| found.modified()).is_ok_and(|time| time < than)
}

fn remove(path: &Path) -> Result<usize, StoreError> {
    durable::remove(path).map_err(StoreError::io("remove", path))?;
    Ok(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{
        pulled::{self, Pulled},
        sources::{self, Source},
    };

    #[test]
    fn a_sweep_keeps_what_images_need_and_what_is_young() {
        let dir = tempfile::tempdir().unwrap();
        let documents = Documents(Arc::new(Store::open(dir.path()).unwrap()));
        let put = |content: &str| {
            let digest = Digest::of(content.as_bytes());
            documents.put(&digest, content.as_bytes()).unwrap();
            digest
        };
        let config = put("{}");
        let manifest = put(&format!(r#"{{"config": {{"digest": "{config}"}}, "layers": []}}"#));
        let index = put(&format!(r#"{{"manifests": [{{"digest": "{manifest}"}}, {{"digest": "nonsense"}}]}}"#));
        let other_config = put("[]");
        let other = put(&format!(r#"{{"config": {{"digest": "{other_config}"}}}}"#));
        let source = Source { reference: "r".to_owned(), plain_http: false, insecure: false };
        for image in [&manifest, &other] {
            sources::note(documents.0.layout(), image, &source).unwrap();
            pulled::put(documents.0.layout(), image, &Pulled::default()).unwrap();
        }
        let keep = HashSet::from([manifest]);
        assert_eq!(documents.sweep(&keep, SystemTime::UNIX_EPOCH).unwrap(), 0, "all are younger than that");
        let later = fs::metadata(documents.0.layout().manifest(&other)).unwrap().modified().unwrap();
        assert_eq!(documents.sweep(&keep, later + Duration::from_secs(60)).unwrap(), 4);
        assert_eq!([config, manifest, index].map(|one| documents.get(&one).is_some()), [true; 3]);
        assert_eq!([other, other_config].map(|one| documents.get(&one).is_some()), [false; 2]);
        let sources = [manifest, other].map(|image| sources::of(documents.0.layout(), &image).len());
        assert_eq!(sources, [1, 0]);
        let records = [manifest, other].map(|image| documents.0.layout().pull_record(&image).exists());
        assert_eq!(records, [true, false]);
    }

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
