//! The node agent as the provider sees it: one trait, its values, the real client ([`grpc`]) and one for tests (`fake`).
//!
//! This module and what lies beneath it are the only part that names the wire contract; the values here are the
//! provider's own, so that nothing above knows how they travel. It never decides anything about a pod.

#[cfg(test)]
pub mod fake;
pub mod grpc;
pub mod model;

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use model::{
    BuildEvent, CacheChange, CachePhase, CacheState, CachedImage, ChosenCache, ContainerStats, HostImage,
    ImageCacheBuild, LogQuery, NodeFacts, NodeStats, PodChange, PodEvent, PodGone, PodState, PodStats,
    RegistryCredential, ResolvedObject, RunPod, ServiceAccountToken, Stopping, Usage, VerificationPolicy,
};

/// Why a call to the agent did not succeed. The classes are those that a caller acts on differently.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AgentError {
    /// Nobody answers at the agent's address, or the connection broke.
    #[error("reach node agent: {message}")]
    Unreachable {
        /// What went wrong, for people.
        message: String,
    },
    /// The agent did not answer in time.
    #[error("node agent did not answer {call} within {}", humantime::format_duration(*after))]
    Timeout {
        /// The call.
        call: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The agent cannot do what is asked, and will not be able to when asked again. The message names the field and the
    /// remedy.
    #[error("{message}")]
    Refused {
        /// The agent's own words.
        message: String,
    },
    /// The agent could not read what it was sent.
    #[error("node agent rejects the request: {message}")]
    Invalid {
        /// The agent's own words.
        message: String,
    },
    /// There is no such pod, container, previous run or cache.
    #[error("{message}")]
    NotFound {
        /// The agent's own words.
        message: String,
    },
    /// The agent failed; asking again may help.
    #[error("node agent fails {call}: {message}")]
    Failed {
        /// The call.
        call: &'static str,
        /// The agent's own words.
        message: String,
    },
    /// The agent sent something that cannot be read.
    #[error("read answer of node agent: {message}")]
    Malformed {
        /// What cannot be read.
        message: String,
    },
}

impl AgentError {
    /// True when the same request will be answered the same way, so that only a change of the pod or of the agent helps.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::Invalid { .. } => true,
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::NotFound { .. }
            | Self::Failed { .. }
            | Self::Malformed { .. } => false,
        }
    }
}

/// A stream from the agent. It ends with an error when the connection breaks; the owner opens a new one.
pub type AgentStream<T> = BoxStream<'static, Result<T, AgentError>>;

/// One node agent. Every call carries its own deadline and can be repeated without harm; a stream starts with everything
/// that there is.
#[async_trait]
pub trait AgentClient: Send + Sync + std::fmt::Debug {
    /// Where the agent is, for messages: `unix:///run/larder/agent.sock`.
    fn address(&self) -> &str;

    /// Hands over a pod, or its newer objects. Returns when it is on record at the agent.
    async fn run_pod(&self, pod: &RunPod) -> Result<(), AgentError>;

    /// Begins to end a pod; `None` takes the pod's own grace period. The end is seen as [`PodChange::Gone`].
    async fn stop_pod(&self, uid: &str, grace: Option<Duration>) -> Result<Stopping, AgentError>;

    /// All pods, then each change.
    async fn watch_pods(&self) -> Result<AgentStream<PodChange>, AgentError>;

    /// A container's log, in pieces.
    async fn read_logs(&self, query: &LogQuery) -> Result<AgentStream<bytes::Bytes>, AgentError>;

    /// What the host is, at this moment.
    async fn node_facts(&self) -> Result<NodeFacts, AgentError>;

    /// What the host is: at once, on each change, and every 3 seconds at least.
    async fn watch_node(&self) -> Result<AgentStream<NodeFacts>, AgentError>;

    /// Use of processor and memory.
    async fn stats(&self) -> Result<NodeStats, AgentError>;

    /// Starts to build an image cache, or to rebuild it when its images differ. Returns when the build is on record.
    async fn build_image_cache(&self, build: &ImageCacheBuild) -> Result<(), AgentError>;

    /// Forgets an image cache. One that is not there is not an error.
    async fn delete_image_cache(&self, id: &str) -> Result<(), AgentError>;

    /// All image caches, then each change.
    async fn watch_image_caches(&self) -> Result<AgentStream<CacheChange>, AgentError>;
}
