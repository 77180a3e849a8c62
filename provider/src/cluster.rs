//! The API server, as the rest of the provider sees it. Only this module and what lies beneath it talk to it.
//!
//! Each consumer asks for the small trait that it needs; [`KubeCluster`] implements all of them, and `fake` does so in
//! memory for tests. Every call has a deadline. Watches never end: they list again after a break, with back-off, and say
//! so with [`Watched::All`].

pub mod access;
pub mod definitions;
pub mod events;
#[cfg(test)]
pub mod fake;
pub mod image_caches;
pub mod nodes;
pub mod objects;
pub mod pods;
pub mod profile;
pub mod selectors;
pub mod watching;
pub mod webhooks;

mod echo;
mod event_series;
mod holds;

use std::path::Path;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::limit::ConcurrencyLimitLayer;

pub use access::AccessApi;
pub use definitions::DefinitionApi;
pub use echo::Echo;
pub use events::{EventApi, EventNote, EventRecorder, Source};
pub use holds::Hold;
pub use image_caches::ImageCacheApi;
pub use nodes::NodeApi;
pub use objects::{ObjectApi, ObjectKey, ObjectKind, ObjectStore};
pub use pods::PodApi;
pub use profile::ProfileApi;
pub use selectors::SelectorApi;
pub use watching::{WatchStream, Watched};
pub use webhooks::WebhookApi;

/// Who owns the fields that we apply.
const OWNER: &str = "larder-provider";
/// Until the API server must have answered a call that is no watch.
const CALL: Duration = Duration::from_secs(15);
/// How many requests for pods wait for their answer at the same time. Each one more would take a connection of its own, whose
/// handshake costs both sides more than the request does: a hundred pods that come together would be a hundred handshakes before
/// the first of them starts.
const REQUESTS_AT_ONCE: usize = 16;

/// Why a call to the API server did not succeed. The classes are those that a caller acts on differently.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClusterError {
    /// The object is not there (any more).
    #[error("{what}: not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The object has been changed or replaced by another of the same name, or is there already.
    #[error("{what}: {message}")]
    Conflict {
        /// What was asked for.
        what: String,
        /// The API server's words.
        message: String,
    },
    /// The API server refuses, and will when asked again.
    #[error("{what}: API server answers {code}: {message}")]
    Refused {
        /// What was asked for.
        what: String,
        /// HTTP status.
        code: u16,
        /// The API server's words.
        message: String,
    },
    /// The API server does not answer, or asks to come back later.
    #[error("{what}: API server is not available: {message}")]
    Unavailable {
        /// What was asked for.
        what: String,
        /// What went wrong.
        message: String,
    },
}

impl ClusterError {
    /// True when the object that was named is no longer the one that was meant.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// Why no client for the API server can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("use kubeconfig {path}")]
    Kubeconfig {
        /// Where it was looked for.
        path: String,
        /// What is wrong with it.
        source: kube::config::KubeconfigError,
    },
    /// No kubeconfig was named, and there is none to be found either.
    #[error("find a way to the API server (give --kubeconfig, or run in a cluster)")]
    Nothing(#[source] kube::config::InferConfigError),
    /// The configuration cannot be turned into a client.
    #[error("make a client for the API server")]
    Client(#[source] kube::Error),
}

/// The real API server.
#[derive(Clone)]
pub struct KubeCluster {
    client: kube::Client,
    /// For what pods that start together ask for at the same time. Leases and watches never wait for it.
    bounded: kube::Client,
    server: Option<(String, u16)>,
}

impl std::fmt::Debug for KubeCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeCluster").finish_non_exhaustive()
    }
}

impl KubeCluster {
    /// Uses `kubeconfig`, else what the environment gives: `KUBECONFIG`, the user's own, or the cluster that we run in.
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// When there is no usable configuration.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, ConnectError> {
        let mut config = match kubeconfig {
            Some(path) => {
                let bad = |source| ConnectError::Kubeconfig { path: path.display().to_string(), source };
                let file = kube::config::Kubeconfig::read_from(path).map_err(bad)?;
                kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
                    .await
                    .map_err(bad)?
            }
            None => kube::Config::infer().await.map_err(ConnectError::Nothing)?,
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        let host = config.cluster_url.host().map(|host| host.trim_matches(['[', ']']).to_owned());
        let server = host.map(|host| (host, config.cluster_url.port_u16().unwrap_or(443)));
        let builder = kube::client::ClientBuilder::try_from(config.clone()).map_err(ConnectError::Client)?;
        let bounded = builder.with_layer(&ConcurrencyLimitLayer::new(REQUESTS_AT_ONCE)).build();
        let client = kube::Client::try_from(config).map_err(ConnectError::Client)?;
        Ok(Self { client, bounded, server })
    }

    /// Host and port of the API server.
    pub fn server(&self) -> Option<(String, u16)> {
        self.server.clone()
    }

    /// Version of the API server; `None` while it does not answer.
    pub async fn version(&self) -> Option<String> {
        match within(|| "get version".to_owned(), self.client.apiserver_version()).await {
            Ok(info) => Some(info.git_version),
            Err(error) => {
                tracing::warn!(%error, "the version of the API server is not known");
                None
            }
        }
    }

    /// Uses a client that is there.
    pub fn new(client: kube::Client) -> Self {
        Self { bounded: client.clone(), client, server: None }
    }

    /// The client, for the other files of this module.
    pub(crate) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The client for what every pod asks for.
    pub(crate) fn bounded_client(&self) -> kube::Client {
        self.bounded.clone()
    }
}

/// Waits for an answer until the deadline, and says what became of it.
pub(crate) async fn within<T>(
    what: impl Fn() -> String,
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<T, ClusterError> {
    match tokio::time::timeout(CALL, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(classify(what(), error)),
        Err(_) => Err(ClusterError::Unavailable {
            what: what(),
            message: format!("no answer within {}", humantime::format_duration(CALL)),
        }),
    }
}

/// Makes a `what`, or makes it as given; our fields are taken back from whoever has changed them.
async fn apply<K>(what: &str, api: &kube::Api<K>, wanted: &K) -> Result<(), ClusterError>
where
    K: kube::Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let name = wanted.meta().name.as_deref().unwrap_or_default();
    let params = PatchParams::apply(OWNER).force();
    within(|| format!("apply {what} {name}"), api.patch(name, &params, &Patch::Apply(wanted))).await.map(drop)
}

/// `None` where the object is not there.
pub(crate) fn optional<T>(result: Result<T, ClusterError>) -> Result<Option<T>, ClusterError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ClusterError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn classify(what: String, error: kube::Error) -> ClusterError {
    let kube::Error::Api(status) = error else {
        return ClusterError::Unavailable { what, message: with_causes(&error) };
    };
    let message = status.message.clone();
    match status.code {
        404 => ClusterError::NotFound { what },
        409 => ClusterError::Conflict { what, message },
        429 | 500.. => ClusterError::Unavailable { what, message },
        // The credentials may be renewed and rights granted while we run.
        401 | 403 => ClusterError::Unavailable { what, message },
        code => ClusterError::Refused { what, code, message },
    }
}

/// An error and what lies beneath it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = error.source();
    }
    text
}
