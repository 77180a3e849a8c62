//! Pure: no I/O, no clock, no randomness.
//!
//! Which image cache a pod starts from, and whether one is to be made for it.
//!
//! A pod image matches a cached image *exactly* when repository and tag are the same, or when the pod names a digest that
//! the cached image's manifest or index has, whichever tag it was cached under. It matches *by repository* when only the
//! repository is the same: then layers may be shared, but the image still comes from the registry.
//!
//! Caches are ordered by
//! 1. the number of distinct pod images that match exactly,
//! 2. the number of those that match by repository only,
//! 3. the size of what the cache holds beyond the pod's images (the closest in size first),
//! 4. the time of creation (the newest first),
//! 5. the name, so that the order is total.
//!
//! A hit needs one exact match at least. ECI also leaves out caches that are larger than the instance's own disk; here a
//! cache belongs to the host and takes nothing of the pod's own room, so there is nothing to leave out.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::catalog::{Alike, Candidate, CandidateImage, Catalog, Standing};
use super::reference::{Reference, Version};
use super::request::{Condition, Wish};

/// The images that a pod runs, and what it pulls them with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodImages {
    /// Every distinct image.
    pub distinct: BTreeSet<Reference>,
    /// Texts that are no image reference. They match nothing.
    pub invalid: BTreeSet<String>,
    /// Its pull secrets, `namespace:name`.
    pub secrets: BTreeSet<String>,
}

/// What a pod starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The pod wants no image cache.
    Off,
    /// The cache that the pod names.
    Pinned {
        /// Its id.
        id: String,
        /// How much of the pod it holds.
        coverage: Coverage,
    },
    /// The cache that matched best.
    Hit {
        /// Its id.
        id: String,
        /// How much of the pod it holds.
        coverage: Coverage,
    },
    /// No cache is of use; the pod starts with normal pulls.
    Miss(MissReason),
    /// The pod must not start now: the cache that it names cannot be used.
    Refused(Refusal),
}

/// How much of a pod a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Every image.
    Full,
    /// Some images, or, where the pod names the cache, none; the others are pulled.
    Partial {
        /// So many it holds.
        held: usize,
        /// So many distinct ones the pod has.
        of: usize,
    },
}

/// Why no cache is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MissReason {
    /// No cache holds anything of the pod.
    NoCandidate,
    /// Caches hold images of the same repositories, and none of them is the pod's.
    RepositoryOnly,
    /// A cache holds images of the pod, and fewer than the pod asks for.
    ConditionNotMet,
    /// A cache would do, and is not there yet or could not be made.
    NotReady,
    /// Nobody has said yet which caches there are.
    NotKnown,
}

/// Why a named cache cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such cache.
    NotFound {
        /// The id, as the pod names it.
        id: String,
    },
    /// It is not Ready yet.
    NotComplete {
        /// The id, as the pod names it.
        id: String,
    },
    /// It could not be made.
    Failed {
        /// The id, as the pod names it.
        id: String,
        /// Why not.
        why: String,
    },
    /// Nobody has said yet which caches there are.
    NotKnown {
        /// The id, as the pod names it.
        id: String,
    },
}

/// The outcome for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What it starts from.
    pub choice: Choice,
    /// What is to be made for the pods after it.
    pub automatic: Automatic,
}

/// Whether an image cache is to be made for a pod's images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Automatic {
    /// Yes: matching is on, and no cache holds the whole pod.
    Build,
    /// No.
    Nothing,
}

impl PodImages {
    /// Reads the image fields of a pod's containers.
    pub fn read<'a>(images: impl IntoIterator<Item = &'a str>) -> Self {
        let mut read = Self::default();
        for image in images {
            match Reference::parse(image) {
                Ok(reference) => read.distinct.insert(reference),
                Err(_) => read.invalid.insert(image.to_owned()),
            };
        }
        read
    }

    /// The same of a pod with these pull secrets.
    #[must_use]
    pub fn pulled_with(self, secrets: BTreeSet<String>) -> Self {
        Self { secrets, ..self }
    }

    fn count(&self) -> usize {
        self.distinct.len() + self.invalid.len()
    }

    /// Whether a cache can be made of them: there is something to cache, and nothing that no registry would serve.
    fn can_be_cached(&self) -> bool {
        !self.distinct.is_empty() && self.invalid.is_empty()
    }
}

impl Refusal {
    /// The reason of the event, and of the pod's status while it waits.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "ImageCacheNotFound",
            Self::NotComplete { .. } => "ImageCacheNotComplete",
            Self::Failed { .. } => "ImageCacheFailed",
            Self::NotKnown { .. } => "ImageCacheNotKnown",
        }
    }

    /// The text of the event.
    pub fn message(&self) -> String {
        match self {
            Self::NotFound { id } => format!("The specified image cache {id} does not exist."),
            Self::NotComplete { id } => format!("The production for specified image cache {id} is not yet complete."),
            Self::NotKnown { id } => format!("The state of specified image cache {id} is not known yet."),
            Self::Failed { id, why } => format!("The production of specified image cache {id} failed: {why}"),
        }
    }
}

/// Decides for one pod.
pub fn decide(wish: &Wish, images: &PodImages, caches: &Catalog) -> Decision {
    match wish {
        Wish::Nothing => Decision { choice: Choice::Off, automatic: Automatic::Nothing },
        Wish::Pinned { id } => Decision { choice: pinned(id, images, caches), automatic: Automatic::Nothing },
        Wish::Automatic { condition } => automatic(*condition, images, caches),
    }
}

/// Whether a cache is there for a pod.
fn is_for(images: &PodImages, cache: &Candidate) -> bool {
    cache.only_with.is_subset(&images.secrets)
}

fn pinned(id: &str, images: &PodImages, caches: &Catalog) -> Choice {
    let found = caches.with_id(id).find(|cache| is_for(images, cache));
    let id = id.to_owned();
    let Some(cache) = found else {
        return Choice::Refused(Refusal::NotFound { id });
    };
    match &cache.standing {
        Standing::Serving => Choice::Pinned { id, coverage: Degree::of(images, &cache.images).coverage(images) },
        Standing::NotComplete => Choice::Refused(Refusal::NotComplete { id }),
        Standing::Failed(why) => Choice::Refused(Refusal::Failed { id, why: why.clone() }),
    }
}

fn automatic(condition: Condition, images: &PodImages, caches: &Catalog) -> Decision {
    let choice = match best(images, caches) {
        Some((cache, degree)) if degree.meets(condition, images.count()) => {
            Choice::Hit { id: cache.id.clone(), coverage: degree.coverage(images) }
        }
        Some(_) | None => Choice::Miss(why_missed(condition, images, caches)),
    };
    let whole = matches!(choice, Choice::Hit { coverage: Coverage::Full, .. });
    let automatic = if whole || !images.can_be_cached() { Automatic::Nothing } else { Automatic::Build };
    Decision { choice, automatic }
}

/// What is nearest to a hit, among caches of which none is one.
fn why_missed(condition: Condition, images: &PodImages, caches: &Catalog) -> MissReason {
    let of_alike = |alike: Alike<'_>| {
        let degree = Degree::of(images, alike.images());
        let reason = move |cache: &Candidate| match cache.standing {
            Standing::NotComplete | Standing::Failed(_) if degree.meets(condition, images.count()) => {
                MissReason::NotReady
            }
            Standing::NotComplete | Standing::Failed(_) => MissReason::NoCandidate,
            Standing::Serving if degree.exact > 0 => MissReason::ConditionNotMet,
            Standing::Serving if degree.repository_only > 0 => MissReason::RepositoryOnly,
            Standing::Serving => MissReason::NoCandidate,
        };
        alike.newest_first().filter(|cache| is_for(images, cache)).map(reason).max()
    };
    caches.near(&images.distinct).filter_map(of_alike).max().unwrap_or(MissReason::NoCandidate)
}

/// The cache that comes first in the order of this module, among those that serve and have anything to do with the pod.
fn best<'a>(images: &PodImages, caches: &'a Catalog) -> Option<(&'a Candidate, Degree)> {
    // Those that hold the same differ in their age and name alone, so the first one stands for all of them.
    let first = |alike: Alike<'a>| {
        let serves = |cache: &&Candidate| cache.standing == Standing::Serving && is_for(images, cache);
        Some((alike.newest_first().find(serves)?, Degree::of(images, alike.images())))
    };
    caches.near(&images.distinct).filter_map(first).min_by_key(|(cache, degree)| {
        let fit = (Reverse(degree.exact), Reverse(degree.repository_only), degree.beyond);
        (fit, Reverse(cache.created), cache.name.as_str(), cache.id.as_str())
    })
}

/// How well a cache fits a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Degree {
    exact: usize,
    repository_only: usize,
    /// Bytes of the cache that the pod has no use for.
    beyond: u64,
}

impl Degree {
    fn of(images: &PodImages, held: &[CandidateImage]) -> Self {
        let mut degree = Self { exact: 0, repository_only: 0, beyond: 0 };
        for wanted in &images.distinct {
            if held.iter().any(|cached| is_exact(wanted, cached)) {
                degree.exact += 1;
            } else if held.iter().any(|cached| cached.reference.repository == wanted.repository) {
                degree.repository_only += 1;
            }
        }
        for cached in held {
            if !images.distinct.iter().any(|wanted| is_exact(wanted, cached)) {
                degree.beyond = degree.beyond.saturating_add(cached.size);
            }
        }
        degree
    }

    fn meets(&self, condition: Condition, wanted: usize) -> bool {
        let least = match condition {
            Condition::Any => 1,
            Condition::AtLeast(count) => count.max(1),
            Condition::Perfect => wanted.max(1),
        };
        self.exact >= least
    }

    fn coverage(&self, images: &PodImages) -> Coverage {
        let (held, of) = (self.exact, images.count());
        if held == of { Coverage::Full } else { Coverage::Partial { held, of } }
    }
}

/// Whether a cached image is the wanted one. An image that was cached by digest answers no tag: nobody looked at what the
/// tag means.
fn is_exact(wanted: &Reference, cached: &CandidateImage) -> bool {
    if wanted.repository != cached.reference.repository {
        return false;
    }
    match &wanted.version {
        Version::Tag(_) => wanted.version == cached.reference.version,
        Version::Digest(digest) => {
            wanted.version == cached.reference.version
                || *digest == cached.manifest_digest
                || *digest == cached.index_digest
        }
    }
}

#[cfg(test)]
mod tests;
