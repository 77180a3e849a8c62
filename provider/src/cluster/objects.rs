//! What pods refer to: ConfigMaps, Secrets, Services and tokens.
//!
//! [`ObjectStore`] watches each object that a pod on our nodes names, one watch an object however many pods name it, and
//! nothing else: the provider never asks for all Secrets of the cluster.

mod store;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, future};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use kube::Api;
use kube::api::PostParams;
use kube::runtime::watcher;

pub use store::{Known, KnownServices, ObjectStore, ObjectStoreTask};

use super::pods::PodName;
use super::watching::{WatchStream, Watched, follow, follow_one};
use super::{ClusterError, KubeCluster, within};

/// ConfigMap or Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// ConfigMap or Secret.
    pub kind: ObjectKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What an object holds.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ObjectContent {
    /// `type` of a Secret; empty for a ConfigMap.
    pub secret_type: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Keys and values; `data` and `binaryData` of a ConfigMap in one.
    pub data: BTreeMap<String, Bytes>,
}

impl std::fmt::Debug for ObjectContent {
    /// Keys only: values are secrets as often as not.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectContent")
            .field("secret_type", &self.secret_type)
            .field("keys", &self.data.keys())
            .finish()
    }
}

impl From<ConfigMap> for ObjectContent {
    fn from(map: ConfigMap) -> Self {
        let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, Bytes::from(value)));
        let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, Bytes::from(value.0)));
        Self {
            secret_type: String::new(),
            labels: map.metadata.labels.unwrap_or_default(),
            data: text.chain(binary).collect(),
        }
    }
}

impl From<Secret> for ObjectContent {
    fn from(secret: Secret) -> Self {
        let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, Bytes::from(value.0)));
        Self {
            secret_type: secret.type_.unwrap_or_default(),
            labels: secret.metadata.labels.unwrap_or_default(),
            data: data.collect(),
        }
    }
}

/// A token to ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenWish {
    /// The audience; empty for the API server's own.
    pub audience: String,
    /// How long it shall live.
    pub expiration_seconds: i64,
}

/// A token that was given.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedToken {
    /// The token.
    pub token: String,
    /// When it ends.
    pub expires: Timestamp,
}

impl std::fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedToken").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// What pods refer to, at the API server.
#[async_trait]
pub trait ObjectApi: Send + Sync + std::fmt::Debug {
    /// The object of this key, whether it is there or not.
    fn watch_object(&self, key: &ObjectKey) -> WatchStream<ObjectContent>;

    /// The Services of the cluster.
    fn watch_services(&self) -> WatchStream<Service>;

    /// A token of a service account, bound to a pod.
    async fn request_token(
        &self,
        pod: &PodName,
        service_account: &str,
        wish: &TokenWish,
    ) -> Result<IssuedToken, ClusterError>;
}

fn contents<K: Into<ObjectContent> + Send + 'static>(stream: WatchStream<K>) -> WatchStream<ObjectContent> {
    let convert = |change: Watched<K>| {
        future::ready(match change {
            Watched::All(objects) => Watched::All(objects.into_iter().map(Into::into).collect()),
            Watched::Applied(object) => Watched::Applied(object.into()),
            Watched::Deleted(object) => Watched::Deleted(object.into()),
        })
    };
    stream.then(convert).boxed()
}

#[async_trait]
impl ObjectApi for KubeCluster {
    fn watch_object(&self, key: &ObjectKey) -> WatchStream<ObjectContent> {
        let (client, ObjectKey { kind, namespace, name }) = (self.client(), key);
        let what = format!("{kind:?} {namespace}/{name}");
        match kind {
            ObjectKind::ConfigMap => contents(follow_one::<ConfigMap>(what, Api::namespaced(client, namespace), name)),
            ObjectKind::Secret => contents(follow_one::<Secret>(what, Api::namespaced(client, namespace), name)),
        }
    }

    fn watch_services(&self) -> WatchStream<Service> {
        follow("services".to_owned(), Api::all(self.client()), watcher::Config::default())
    }

    async fn request_token(
        &self,
        pod: &PodName,
        service_account: &str,
        wish: &TokenWish,
    ) -> Result<IssuedToken, ClusterError> {
        let audiences = if wish.audience.is_empty() { vec![] } else { vec![wish.audience.clone()] };
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audiences),
                expiration_seconds: Some(wish.expiration_seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.name.clone()),
                    uid: Some(pod.uid.clone()),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.bounded_client(), &pod.namespace);
        let what = || format!("request token of service account {}/{service_account}", pod.namespace);
        let params = PostParams::default();
        let answer = within(what, api.create_token_request(service_account, &params, &request)).await?;
        let status = answer.status.unwrap_or_default();
        let (Some(token), Some(expires)) = (status.token, status.expiration_timestamp) else {
            return Err(ClusterError::Unavailable { what: what(), message: "the answer holds no token".to_owned() });
        };
        Ok(IssuedToken { token, expires: expires.0 })
    }
}

/// A shared, unchanging content.
pub type SharedContent = Arc<ObjectContent>;
