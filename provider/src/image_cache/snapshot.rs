//! Pure: no I/O, no clock, no randomness.
//!
//! The image caches as a pod sees them that is about to start: for each virtual node, which caches serve there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::automatic;
use super::catalog::{Candidate, CandidateImage, Catalog, Standing, Trust};
use super::hosts::{Host, serves};
use super::plan::{id_of, is_leaving};
use super::reference::Reference;
use super::retention;
use super::status::has_failed;
use super::verification;
use crate::agent::{CachePhase, CacheState};
use crate::custom_resource::ImageCache;

/// All image caches, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether the objects are known.
    pub is_known: bool,
    /// By the name of the virtual node.
    pub nodes: BTreeMap<String, NodeCaches>,
}

/// The image caches of one virtual node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeCaches {
    /// Whether its host has said what it holds.
    pub is_known: bool,
    /// All caches, serving here or not.
    pub candidates: Catalog,
}

impl Snapshot {
    /// What is known of a virtual node; nothing when that is not all.
    pub fn of(&self, node: &str) -> Option<&NodeCaches> {
        self.nodes.get(node).filter(|caches| self.is_known && caches.is_known)
    }
}

/// Takes the snapshot. `caches` are nothing until the objects are known.
pub fn take(caches: Option<Vec<&ImageCache>>, hosts: &BTreeMap<String, Host>) -> Snapshot {
    let is_known = caches.is_some();
    let caches: Vec<&ImageCache> = caches.into_iter().flatten().filter(|cache| !is_leaving(cache)).collect();
    let of_host = |host: &Host| NodeCaches {
        is_known: host.is_known,
        candidates: caches.iter().map(|cache| candidate(cache, host)).collect(),
    };
    let nodes = hosts.iter().map(|(node, host)| (node.clone(), of_host(host))).collect();
    Snapshot { is_known, nodes }
}

/// Takes the object of this name into a snapshot as it is now, or its absence. Whether that changes anything; where it does
/// not, the snapshot is not copied.
pub fn retake(
    snapshot: &mut Arc<Snapshot>,
    name: &str,
    cache: Option<&ImageCache>,
    hosts: &BTreeMap<String, Host>,
) -> bool {
    let cache = cache.filter(|cache| !is_leaving(cache));
    let mut is_new = false;
    for (node, host) in hosts {
        let Some(known) = snapshot.nodes.get(node) else { continue };
        let candidate = cache.map(|cache| candidate(cache, host));
        if known.candidates.named(name) == candidate.as_ref() {
            continue;
        }
        is_new = true;
        let Some(known) = Arc::make_mut(snapshot).nodes.get_mut(node) else { continue };
        match candidate {
            Some(candidate) => known.candidates.put(candidate),
            None => known.candidates.remove(name),
        }
    }
    is_new
}

fn candidate(cache: &ImageCache, host: &Host) -> Candidate {
    let id = id_of(cache);
    let state = host.caches.get(&id);
    let created = cache.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    Candidate {
        name: cache.metadata.name.clone().unwrap_or_default(),
        created: created.unwrap_or_default(),
        standing: standing(cache, state),
        trust: Trust { is_automatic: retention::is_automatic(cache), policy: verification::policy(cache) },
        only_with: match state {
            Some(state) if state.verifies_credentials => BTreeSet::new(),
            Some(_) | None => automatic::made_with(cache),
        },
        images: state.iter().flat_map(|state| &state.images).filter_map(image).collect(),
        id,
    }
}

fn standing(cache: &ImageCache, state: Option<&CacheState>) -> Standing {
    match state {
        Some(state) if serves(state.phase) => Standing::Serving,
        Some(state) if state.phase == CachePhase::Failed => Standing::Failed(state.reason.clone()),
        None if has_failed(cache) => {
            Standing::Failed(cache.status.as_ref().map(|status| status.reason.clone()).unwrap_or_default())
        }
        Some(_) | None => Standing::NotComplete,
    }
}

fn image(image: &crate::agent::CachedImage) -> Option<CandidateImage> {
    Some(CandidateImage {
        reference: Reference::parse(&image.reference).ok()?,
        manifest_digest: image.manifest_digest.clone(),
        index_digest: image.index_digest.clone(),
        size: image.size_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::CachedImage;
    use crate::custom_resource::ImageCacheSpec;

    fn caches() -> BTreeMap<String, ImageCache> {
        let mut cache = ImageCache::new("c", ImageCacheSpec { images: vec!["nginx".to_owned()], ..Default::default() });
        cache.metadata.uid = Some("u".to_owned());
        BTreeMap::from([("c".to_owned(), cache)])
    }

    #[test]
    fn each_node_has_what_its_host_holds() {
        let caches = caches();
        let id = id_of(&caches["c"]);
        let state = CacheState {
            id: id.clone(),
            phase: CachePhase::Ready,
            images: vec![CachedImage { reference: "nginx".to_owned(), size_bytes: 7, ..Default::default() }],
            ..Default::default()
        };
        let holding =
            Host { is_known: true, is_connected: true, caches: [(id.clone(), state)].into(), ..Host::default() };
        let other = Host { is_known: true, ..Host::default() };
        let hosts = [("a".to_owned(), holding), ("b".to_owned(), other), ("c".to_owned(), Host::default())].into();
        let snapshot = take(Some(caches.values().collect()), &hosts);
        let candidate = snapshot.of("a").unwrap().candidates.named("c").unwrap();
        assert_eq!((candidate.id.as_str(), &candidate.standing), (id.as_str(), &Standing::Serving));
        assert_eq!(candidate.images[0].size, 7);
        assert_eq!(snapshot.of("b").unwrap().candidates.named("c").unwrap().standing, Standing::NotComplete);
        assert!(snapshot.of("c").is_none() && snapshot.of("d").is_none());
        assert!(take(None, &hosts).of("a").is_none());
    }

    #[test]
    fn only_a_host_that_verifies_is_given_every_pod() {
        let mut caches = caches();
        let cache = caches.get_mut("c").unwrap();
        cache.metadata.labels = Some([(crate::custom_resource::AUTOMATIC_LABEL.to_owned(), "true".to_owned())].into());
        cache.spec.image_pull_secrets = vec!["ns:s".to_owned()];
        let id = id_of(cache);
        let candidate = |verifies_credentials| {
            let state =
                CacheState { id: id.clone(), phase: CachePhase::Ready, verifies_credentials, ..Default::default() };
            let host = Host { is_known: true, caches: [(id.clone(), state)].into(), ..Host::default() };
            let snapshot = take(Some(caches.values().collect()), &[("a".to_owned(), host)].into());
            snapshot.of("a").unwrap().candidates.named("c").unwrap().clone()
        };
        let (verifying, older) = (candidate(true), candidate(false));
        assert!(verifying.trust.is_automatic && verifying.only_with.is_empty());
        assert_eq!(older.only_with, BTreeSet::from(["ns:s".to_owned()]));
    }
}
