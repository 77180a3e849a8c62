//! What a pod worker asks before it hands a new pod to the agent: may it run here, and from which image cache.
//!
//! The trait lives with its consumer; image caches and pod policy implement it without this module knowing them.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;

use crate::agent::ChosenCache;

/// Decides how a pod starts.
#[async_trait]
pub trait CacheChoice: Send + Sync + std::fmt::Debug {
    /// Asked once for a pod that the agent does not have yet, and again only when the answer was [`CacheDecision::Later`]
    /// or a refusal and something has changed. It may start the build of a cache.
    async fn choose(&self, node: &str, pod: &Pod) -> CacheDecision;

    /// Ends when [`CacheChoice::choose`] would no longer answer [`CacheDecision::Later`], so that a pod need not wait for
    /// its back-off. Dropping it loses nothing.
    async fn until_worth_asking(&self, _node: &str, _pod: &Pod) {
        std::future::pending().await
    }

    /// What holds for a pod that already runs, and of which nobody remembers what [`CacheChoice::choose`] said: that is the
    /// agent's to know, so it names no image cache. Records nothing and starts nothing.
    fn recall(&self, node: &str, pod: &Pod) -> Admitted;
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheDecision {
    /// It may start.
    Run(Admitted),
    /// It may not, until its object is changed.
    Refuse(Refusal),
    /// It may not yet; ask again after a back-off. The reason is shown on the pod.
    Later(Refusal),
}

/// How a pod starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The image cache that it starts from.
    pub image_cache: Option<ChosenCache>,
    /// Events to record on it, in order.
    pub notices: Vec<Notice>,
    /// Annotations to write on it. The agent sees them from the start; the API server gets them right after.
    pub annotations: BTreeMap<String, String>,
    /// Annotations to take off it, which only we may write.
    pub cleared: BTreeSet<String>,
    /// Labels to write on it, likewise.
    pub labels: BTreeMap<String, String>,
    /// Registry hosts that are spoken to over plain http.
    pub plain_http_registries: Vec<String>,
    /// Registry hosts whose certificate is not verified.
    pub insecure_registries: Vec<String>,
}

/// Why a pod does not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// In one word, for the event and for `status.reason`: `ProviderFailed`.
    pub reason: String,
    /// What, where and what to do.
    pub message: String,
    /// Events to record on it, in order, besides the one that the refusal itself makes.
    pub notices: Vec<Notice>,
}

/// An event to record on a pod, with source `EciService`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// True for a `Warning`.
    pub warning: bool,
    /// In one word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Admits every pod without a cache: for tests, and for a provider without image caches.
#[derive(Debug, Default)]
pub struct NoCaches;

#[async_trait]
impl CacheChoice for NoCaches {
    async fn choose(&self, _node: &str, _pod: &Pod) -> CacheDecision {
        CacheDecision::Run(Admitted::default())
    }

    fn recall(&self, _node: &str, _pod: &Pod) -> Admitted {
        Admitted::default()
    }
}
