//! What comes from outside, as bytes: the targets of `node-agent/fuzz`. There for fuzzing and for tests only.
//!
//! Each takes any bytes, and panics where something that must hold does not.

use std::fs;

use oci_spec::image::ImageConfiguration;

pub use crate::snapshot::fuzzing::{erofs, layer};
use crate::{
    digest::Digest,
    image::pull_plan::{self, Document, Platform},
    registry::{
        Reference,
        hosts::{Endpoint, endpoints},
    },
};

/// A manifest or index; what an image's configuration says of layers.
pub fn manifest(bytes: &[u8]) {
    let digest = Digest::of(bytes);
    match pull_plan::read_document(bytes, digest) {
        Err(_) => {}
        Ok(Document::Index(entries)) => {
            if let Ok(chosen) = pull_plan::choose(&entries, &Platform::host(), digest) {
                assert!(!chosen.is_empty(), "what can be chosen from is chosen from");
                let is_entry = |digest: &Digest| entries.iter().any(|entry| entry.digest == *digest);
                assert!(chosen.iter().all(is_entry), "what is chosen is in the index");
            }
        }
        Ok(Document::Image(manifest)) => {
            // The same bytes stand for the configuration too: what matters is that nothing of it can panic.
            if let Ok(config) = serde_json::from_slice::<ImageConfiguration>(bytes)
                && let Ok(layers) = pull_plan::layers(&manifest, &config, &Platform::host(), digest)
            {
                assert_eq!(pull_plan::plan(&layers, |_| true).missing, [], "nothing is missing where all is there");
            }
        }
    }
}

/// An image reference: one that is read is written as one that means the same.
pub fn reference(bytes: &[u8]) {
    let Ok(reference) = String::from_utf8_lossy(bytes).parse::<Reference>() else { return };
    let shown = reference.to_string();
    assert_eq!(shown.parse::<Reference>().as_ref(), Ok(&reference), "{shown}");
}

/// A `hosts.toml`: the registry itself is always among the endpoints, and is the last.
pub fn hosts_toml(bytes: &[u8]) {
    let Ok(dir) = tempfile::tempdir() else { return };
    let folder = dir.path().join("registry.example");
    if fs::create_dir(&folder).and_then(|()| fs::write(folder.join("hosts.toml"), bytes)).is_err() {
        return;
    }
    let origin = Endpoint::origin("registry.example", false, false);
    if let Ok(endpoints) = endpoints(Some(dir.path()), "registry.example", origin) {
        assert!(endpoints.last().is_some_and(|endpoint| endpoint.origin), "{endpoints:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuzzing has found worth keeping, and seeds for it: a crash that was mended stays mended.
    fn replay(name: &str, target: fn(&[u8])) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut count = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            target(&fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 3, "{} has {count} files", folder.display());
    }

    #[test]
    fn the_corpus_passes() {
        replay("layer", layer);
        replay("erofs", erofs);
        replay("manifest", manifest);
        replay("reference", reference);
        replay("hosts_toml", hosts_toml);
    }
}
