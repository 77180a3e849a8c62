//! Pure: no I/O, no clock, no randomness.
//!
//! The image caches that one virtual node knows, arranged so that a choice among a thousand looks at few: those that hold an
//! image of the pod's repositories, and once at those that hold the same.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::reference::Reference;
use crate::agent::VerificationPolicy;

/// An image cache, as far as matching cares: on the host that the pod goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// `imc-...`.
    pub id: String,
    /// The object's name.
    pub name: String,
    /// When the object was created, in seconds since 1970.
    pub created: i64,
    /// Whether a pod on this host can start from it.
    pub standing: Standing,
    /// What its host is told of it with a pod that starts from it.
    pub trust: Trust,
    /// The secrets, `namespace:name`, that a pod must have to start from it: for an automatic cache those that it was made
    /// with, where its host does not find out by itself which pods may have a private image. Empty otherwise.
    pub only_with: BTreeSet<String>,
    /// What it holds on this host; what it is to hold where it does not serve.
    pub images: Vec<CandidateImage>,
}

/// Whom a cache is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trust {
    /// Whether it was made for a pod, with that pod's credentials.
    pub is_automatic: bool,
    /// Its own policy; none for the host's.
    pub policy: Option<VerificationPolicy>,
}

/// Whether pods can start from a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is complete on the host.
    Serving,
    /// It is being made, or will be.
    NotComplete,
    /// It could not be made; the text says why.
    Failed(String),
}

/// An image of a cache.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CandidateImage {
    /// Under which reference it was cached.
    pub reference: Reference,
    /// Digest of the platform's manifest.
    pub manifest_digest: String,
    /// Digest of the index that led to it; empty where there was none.
    pub index_digest: String,
    /// Unpacked size in bytes.
    pub size: u64,
}

/// Image caches, each under its name.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    by_name: BTreeMap<String, Arc<Candidate>>,
    /// The names of those that have an id.
    names: BTreeMap<String, BTreeSet<String>>,
    /// Those that hold the same, by what that is.
    alike: BTreeMap<Arc<[CandidateImage]>, BTreeMap<Age, Arc<Candidate>>>,
    /// What is held of a repository.
    of_repository: BTreeMap<String, BTreeSet<Arc<[CandidateImage]>>>,
}

/// The order of caches that hold the same: the newest first, then by name.
type Age = (Reverse<i64>, String);

/// Image caches that hold the same images.
#[derive(Debug, Clone, Copy)]
pub struct Alike<'a> {
    images: &'a [CandidateImage],
    caches: &'a BTreeMap<Age, Arc<Candidate>>,
}

impl<'a> Alike<'a> {
    /// What they hold.
    pub fn images(&self) -> &'a [CandidateImage] {
        self.images
    }

    /// They themselves; those of the same age by name.
    pub fn newest_first(&self) -> impl Iterator<Item = &'a Candidate> + use<'a> {
        self.caches.values().map(|cache| &**cache)
    }
}

impl PartialEq for Catalog {
    fn eq(&self, other: &Self) -> bool {
        // All else follows.
        self.by_name == other.by_name
    }
}

impl Eq for Catalog {}

impl FromIterator<Candidate> for Catalog {
    fn from_iter<T: IntoIterator<Item = Candidate>>(all: T) -> Self {
        let mut catalog = Self::default();
        for cache in all {
            catalog.put(cache);
        }
        catalog
    }
}

impl Catalog {
    /// The cache of this name.
    pub fn named(&self, name: &str) -> Option<&Candidate> {
        self.by_name.get(name).map(|cache| &**cache)
    }

    /// The caches that have this id, which is one, by name.
    pub fn with_id(&self, id: &str) -> impl Iterator<Item = &Candidate> {
        self.names.get(id).into_iter().flatten().filter_map(|name| self.named(name))
    }

    /// Those that hold an image of one of the same repositories, each once.
    pub fn near<'a>(&'a self, images: &BTreeSet<Reference>) -> impl Iterator<Item = Alike<'a>> + use<'a> {
        let near: BTreeSet<&'a Arc<[CandidateImage]>> =
            images.iter().filter_map(|image| self.of_repository.get(&image.repository)).flatten().collect();
        near.into_iter().filter_map(|held| Some(Alike { images: held, caches: self.alike.get(held)? }))
    }

    /// Puts a cache in, in place of what had its name.
    pub fn put(&mut self, cache: Candidate) {
        self.remove(&cache.name);
        let (name, cache) = (cache.name.clone(), Arc::new(cache));
        let held = match self.alike.get_key_value(cache.images.as_slice()) {
            Some((held, _)) => Arc::clone(held),
            None => cache.images.as_slice().into(),
        };
        for image in &cache.images {
            self.of_repository.entry(image.reference.repository.clone()).or_default().insert(Arc::clone(&held));
        }
        self.alike.entry(held).or_default().insert(age(&cache), Arc::clone(&cache));
        self.names.entry(cache.id.clone()).or_default().insert(name.clone());
        self.by_name.insert(name, cache);
    }

    /// Takes the cache of this name out.
    pub fn remove(&mut self, name: &str) {
        let Some(cache) = self.by_name.remove(name) else { return };
        take_out(&mut self.names, &cache.id, |names| {
            names.remove(name);
            names.is_empty()
        });
        let held = cache.images.as_slice();
        let was_last = take_out(&mut self.alike, held, |alike| {
            alike.remove(&age(&cache));
            alike.is_empty()
        });
        for image in cache.images.iter().filter(|_| was_last) {
            take_out(&mut self.of_repository, &image.reference.repository, |all| {
                all.remove(held);
                all.is_empty()
            });
        }
    }
}

fn age(cache: &Candidate) -> Age {
    (Reverse(cache.created), cache.name.clone())
}

/// Changes what lies under a key, and removes it where nothing is left. Whether it was removed.
fn take_out<K, Q, V>(map: &mut BTreeMap<K, V>, key: &Q, change: impl FnOnce(&mut V) -> bool) -> bool
where
    K: std::borrow::Borrow<Q> + Ord,
    Q: Ord + ?Sized,
{
    let is_empty = map.get_mut(key).is_some_and(change);
    if is_empty {
        map.remove(key);
    }
    is_empty
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some_cache() -> impl Strategy<Value = Candidate> {
        let images = proptest::collection::vec(("[ab]", 0..2_u64), 0..3);
        (images, 0..3_i64, 0..4_u8, 0..3_u8).prop_map(|(images, created, name, id)| Candidate {
            id: format!("imc-{id}"),
            name: format!("c{name}"),
            created,
            standing: Standing::Serving,
            trust: Trust::default(),
            only_with: BTreeSet::new(),
            images: images
                .into_iter()
                .map(|(image, size)| CandidateImage {
                    reference: Reference::parse(&image).unwrap(),
                    manifest_digest: String::new(),
                    index_digest: String::new(),
                    size,
                })
                .collect(),
        })
    }

    proptest! {
        /// Puts and removals against a list that is searched through.
        #[test]
        fn it_finds_what_a_search_finds(
            steps in proptest::collection::vec((some_cache(), any::<bool>()), 0..12), image in "[abc]"
        ) {
            let (mut catalog, mut list) = (Catalog::default(), BTreeMap::new());
            for (cache, is_put) in steps {
                if is_put {
                    list.insert(cache.name.clone(), cache.clone());
                    catalog.put(cache);
                } else {
                    list.remove(&cache.name);
                    catalog.remove(&cache.name);
                }
            }
            let wanted = Reference::parse(&image).unwrap();
            let near: Vec<Alike<'_>> = catalog.near(&[wanted.clone()].into()).collect();
            for alike in &near {
                let caches: Vec<&Candidate> = alike.newest_first().collect();
                prop_assert!(caches.iter().all(|cache| cache.images == alike.images()));
                prop_assert!(caches.is_sorted_by_key(|cache| age(cache)) && !caches.is_empty());
            }
            let mut found: Vec<&str> =
                near.iter().flat_map(Alike::newest_first).map(|cache| cache.name.as_str()).collect();
            found.sort_unstable();
            let has_it = |cache: &&Candidate| {
                cache.images.iter().any(|image| image.reference.repository == wanted.repository)
            };
            let searched: Vec<&str> = list.values().filter(has_it).map(|cache| cache.name.as_str()).collect();
            prop_assert_eq!(found, searched);
            for id in ["imc-0", "imc-1", "imc-2"] {
                let found: Vec<&Candidate> = catalog.with_id(id).collect();
                prop_assert_eq!(found, list.values().filter(|cache| cache.id == id).collect::<Vec<_>>());
            }
            for name in list.keys().cloned().collect::<Vec<_>>() {
                catalog.remove(&name);
            }
            prop_assert!(catalog.names.is_empty() && catalog.alike.is_empty() && catalog.of_repository.is_empty());
        }
    }
}
