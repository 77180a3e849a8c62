//! An API server in memory, for tests of whatever uses one of the traits of [`crate::cluster`].
//!
//! It keeps objects, applies the patches that we send, and says what changed. It knows nothing else of Kubernetes.

mod definitions;
mod image_caches;
mod patching;
mod profile;
mod selectors;
mod webhooks;

pub use patching::strategic;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::MutexGuard;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, future, stream};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use crate::custom_resource::ImageCache;
use crate::custom_resource::selector::Selector;
use crate::observed::{Observed, Summary};

use super::objects::{IssuedToken, ObjectContent, TokenWish};
use super::pods::{PodMarks, PodName};
use super::{AccessApi, ClusterError, EventApi, NodeApi, ObjectApi, ObjectKey, PodApi, WatchStream, Watched};

/// What the fake holds; tests read it through [`FakeCluster::see`].
#[derive(Debug, Default)]
pub struct Record {
    /// Pods by `namespace/name`.
    pub pods: BTreeMap<String, Pod>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Leases by name.
    pub leases: BTreeMap<String, Lease>,
    /// Events, in the order of their writing; counts are kept up to date.
    pub events: Vec<Event>,
    /// ConfigMaps and Secrets.
    pub objects: BTreeMap<ObjectKey, ObjectContent>,
    /// Services.
    pub services: Vec<Service>,
    /// ImageCache objects by name.
    pub image_caches: BTreeMap<String, ImageCache>,
    /// Selectors by name.
    pub selectors: BTreeMap<String, Selector>,
    /// The definition of ImageCache.
    pub definition: Option<CustomResourceDefinition>,
    /// The ConfigMap `kube-system/eci-profile`.
    pub profile: Option<ConfigMap>,
    /// Why entries of the webhook are refused.
    pub webhook_refusal: Option<String>,
    /// How long a watch of the webhook's entry has nothing to say at first.
    pub webhook_delay: Duration,
    /// The same of the Selectors.
    pub selector_delay: Duration,
    /// Entries of the mutating webhook that hold this text are refused, however often they come.
    pub webhook_refused_with: Option<String>,
    /// The code that entries of the validating webhook are refused with.
    pub validating_webhook_refusal: Option<u16>,
    /// The entry of the mutating webhook.
    pub webhook: Option<MutatingWebhookConfiguration>,
    /// The entry of the validating webhook.
    pub validating_webhook: Option<ValidatingWebhookConfiguration>,
    /// How often the mutating one was applied.
    pub webhook_applies: usize,
    /// Every status patch of a pod, in order.
    pub status_patches: Vec<(PodName, Value)>,
    /// Every removal of a pod, in order.
    pub removals: Vec<PodName>,
    /// How many tokens were asked for.
    pub tokens: usize,
    /// How long a token lives.
    pub token_life: Duration,
    /// Users by token.
    pub users: BTreeMap<String, UserInfo>,
    /// `user verb subresource node` of everything that is allowed.
    pub rights: Vec<String>,
    /// How many reviews were asked for.
    pub reviews: usize,
    offline: bool,
    version: u64,
}

/// An API server in memory.
#[derive(Debug)]
pub struct FakeCluster {
    record: Observed<Record>,
    pods: broadcast::Sender<Watched<Pod>>,
    nodes: broadcast::Sender<Watched<Node>>,
    objects: broadcast::Sender<(ObjectKey, Watched<ObjectContent>)>,
    services: broadcast::Sender<Watched<Service>>,
    image_caches: broadcast::Sender<Watched<ImageCache>>,
    definitions: broadcast::Sender<Watched<CustomResourceDefinition>>,
    webhooks: broadcast::Sender<Watched<MutatingWebhookConfiguration>>,
    validating_webhooks: broadcast::Sender<Watched<ValidatingWebhookConfiguration>>,
    profiles: broadcast::Sender<Watched<ConfigMap>>,
    selectors: broadcast::Sender<Watched<Selector>>,
}

impl Default for FakeCluster {
    fn default() -> Self {
        Self {
            record: Observed::new(Record { token_life: Duration::from_secs(3600), ..Record::default() }),
            pods: broadcast::Sender::new(1024),
            nodes: broadcast::Sender::new(1024),
            objects: broadcast::Sender::new(1024),
            services: broadcast::Sender::new(1024),
            image_caches: broadcast::Sender::new(1024),
            definitions: broadcast::Sender::new(1024),
            webhooks: broadcast::Sender::new(1024),
            validating_webhooks: broadcast::Sender::new(1024),
            profiles: broadcast::Sender::new(1024),
            selectors: broadcast::Sender::new(1024),
        }
    }
}

fn pod_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

impl Deref for FakeCluster {
    type Target = Observed<Record>;

    fn deref(&self) -> &Self::Target {
        &self.record
    }
}

impl Summary for Record {
    fn summary(&self) -> String {
        let phases: Vec<_> = self.pods.values().map(|pod| (PodName::of(pod), pod.status.clone())).collect();
        let events: Vec<_> = self.events.iter().map(|event| &event.reason).collect();
        format!("pods {phases:?}, events {events:?}, nodes {:?}", self.nodes.keys())
    }
}

impl FakeCluster {
    fn online(&self) -> Result<MutexGuard<'_, Record>, ClusterError> {
        let record = self.lock();
        if record.offline {
            return Err(ClusterError::Unavailable { what: "fake".into(), message: "offline".into() });
        }
        Ok(record)
    }

    /// Answers no more calls; watches stay silent.
    pub fn go_offline(&self) {
        self.lock().offline = true;
    }

    /// Answers again.
    pub fn go_online(&self) {
        self.lock().offline = false;
    }

    /// Writes a pod as somebody else would, under a new version.
    pub fn put_pod(&self, mut pod: Pod) -> Pod {
        let mut record = self.lock();
        stamp(&mut record, &mut pod);
        let name = PodName::of(&pod);
        record.pods.insert(pod_key(&name.namespace, &name.name), pod.clone());
        let _ = self.pods.send(Watched::Applied(pod.clone()));
        drop(record);
        self.touch();
        pod
    }

    /// Changes a pod as somebody else would.
    ///
    /// # Panics
    /// When there is no such pod.
    pub fn edit_pod(&self, namespace: &str, name: &str, change: impl FnOnce(&mut Pod)) -> Pod {
        let mut pod = self.see(|record| record.pods[&pod_key(namespace, name)].clone());
        change(&mut pod);
        self.put_pod(pod)
    }

    /// Takes a pod away as somebody else would.
    pub fn drop_pod(&self, namespace: &str, name: &str) {
        let removed = self.lock().pods.remove(&pod_key(namespace, name));
        if let Some(pod) = removed {
            let _ = self.pods.send(Watched::Deleted(pod));
        }
        self.touch();
    }

    /// Takes a node away as somebody else would.
    pub fn drop_node(&self, name: &str) {
        let removed = self.lock().nodes.remove(name);
        if let Some(node) = removed {
            let _ = self.nodes.send(Watched::Deleted(node));
        }
        self.touch();
    }

    /// Goes back to earlier objects and versions, as after the restore of a backup. Watches of pods and nodes list again.
    pub fn restore(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.lock();
        change(&mut record);
        record.version = 0;
        let (mut pods, mut nodes) = (std::mem::take(&mut record.pods), std::mem::take(&mut record.nodes));
        pods.values_mut().for_each(|pod| stamp(&mut record, pod));
        nodes.values_mut().for_each(|node| stamp(&mut record, node));
        let _ = self.pods.send(Watched::All(pods.values().cloned().collect()));
        let _ = self.nodes.send(Watched::All(nodes.values().cloned().collect()));
        (record.pods, record.nodes) = (pods, nodes);
        drop(record);
        self.touch();
    }

    /// Writes or removes a ConfigMap or Secret.
    pub fn put_object(&self, key: ObjectKey, content: Option<ObjectContent>) {
        let change = match content {
            Some(content) => {
                self.lock().objects.insert(key.clone(), content.clone());
                Watched::Applied(content)
            }
            None => match self.lock().objects.remove(&key) {
                Some(content) => Watched::Deleted(content),
                None => return,
            },
        };
        let _ = self.objects.send((key, change));
    }
}

fn stamp<K: Resource>(record: &mut Record, object: &mut K) {
    record.version += 1;
    object.meta_mut().resource_version = Some(record.version.to_string());
}

fn patched<K: Serialize + DeserializeOwned>(object: &K, patch: &Value) -> Result<K, ClusterError> {
    let refuse = |error: serde_json::Error| ClusterError::Refused {
        what: "patch".into(),
        code: 422,
        message: error.to_string(),
    };
    let mut value = serde_json::to_value(object).map_err(refuse)?;
    patching::strategic(&mut value, patch);
    serde_json::from_value(value).map_err(refuse)
}

/// A watch of an API server that does not answer at first.
fn late<K: Send + 'static>(delay: Duration, watch: WatchStream<K>) -> WatchStream<K> {
    if delay.is_zero() {
        return watch;
    }
    stream::once(tokio::time::sleep(delay)).flat_map(|()| stream::empty()).chain(watch).boxed()
}

fn list_then<K: Clone + Send + 'static>(list: Vec<K>, changes: broadcast::Receiver<Watched<K>>) -> WatchStream<K> {
    let changes = BroadcastStream::new(changes).filter_map(|change| future::ready(change.ok()));
    stream::once(future::ready(Watched::All(list))).chain(changes).boxed()
}

fn not_found(what: &str) -> ClusterError {
    ClusterError::NotFound { what: what.to_owned() }
}

fn conflict(what: &str, message: &str) -> ClusterError {
    ClusterError::Conflict { what: what.to_owned(), message: message.to_owned() }
}

impl FakeCluster {
    fn change_pod(
        &self,
        name: &PodName,
        change: impl FnOnce(&mut Record, &Pod) -> Result<Pod, ClusterError>,
    ) -> Result<Pod, ClusterError> {
        let mut record = self.online()?;
        let key = pod_key(&name.namespace, &name.name);
        let Some(pod) = record.pods.get(&key).cloned() else { return Err(not_found(&key)) };
        if pod.metadata.uid.as_ref() != Some(&name.uid) {
            return Err(conflict(&key, "uid"));
        }
        let mut pod = change(&mut record, &pod)?;
        stamp(&mut record, &mut pod);
        record.pods.insert(key, pod.clone());
        let _ = self.pods.send(Watched::Applied(pod.clone()));
        drop(record);
        self.touch();
        Ok(pod)
    }
}

#[async_trait]
impl PodApi for FakeCluster {
    fn watch_pods(&self, node: &str) -> WatchStream<Pod> {
        let record = self.lock();
        let node = node.to_owned();
        let on_node = move |pod: &Pod| {
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_none_or(|name| *name == node)
        };
        list_then(record.pods.values().filter(|pod| on_node(pod)).cloned().collect(), self.pods.subscribe())
    }

    async fn patch_pod_status(&self, pod: &PodName, patch: Value) -> Result<Pod, ClusterError> {
        self.change_pod(pod, |record, current| {
            record.status_patches.push((pod.clone(), patch.clone()));
            patched(current, &patch)
        })
    }

    async fn annotate_pod(&self, pod: &PodName, set: &PodMarks) -> Result<Pod, ClusterError> {
        self.change_pod(pod, |_, current| {
            let mut current = current.clone();
            set.put_on(&mut current);
            Ok(current)
        })
    }

    async fn remove_pod(&self, pod: &PodName) -> Result<(), ClusterError> {
        let mut record = self.online()?;
        record.removals.push(pod.clone());
        let key = pod_key(&pod.namespace, &pod.name);
        if record.pods.get(&key).is_some_and(|there| there.metadata.uid.as_ref() == Some(&pod.uid)) {
            let removed = record.pods.remove(&key);
            if let Some(pod) = removed {
                let _ = self.pods.send(Watched::Deleted(pod));
            }
        }
        drop(record);
        self.touch();
        Ok(())
    }
}

impl FakeCluster {
    /// Writes a node as somebody else would.
    pub fn write_node(&self, node: Node) {
        self.put_node(self.lock(), node);
    }

    fn put_node(&self, mut record: MutexGuard<'_, Record>, mut node: Node) -> Node {
        stamp(&mut record, &mut node);
        record.nodes.insert(node.metadata.name.clone().unwrap_or_default(), node.clone());
        let _ = self.nodes.send(Watched::Applied(node.clone()));
        drop(record);
        self.touch();
        node
    }
}

#[async_trait]
impl NodeApi for FakeCluster {
    fn watch_node(&self, name: &str) -> WatchStream<Node> {
        let record = self.lock();
        list_then(record.nodes.get(name).cloned().into_iter().collect(), self.nodes.subscribe())
    }

    async fn create_node(&self, node: &Node) -> Result<Node, ClusterError> {
        let record = self.online()?;
        let name = node.metadata.name.clone().unwrap_or_default();
        if record.nodes.contains_key(&name) {
            return Err(conflict(&name, "already exists"));
        }
        let mut node = node.clone();
        node.metadata.uid = Some(format!("node-uid-{}", record.version));
        Ok(self.put_node(record, node))
    }

    async fn patch_node(&self, name: &str, patch: Value) -> Result<Node, ClusterError> {
        let record = self.online()?;
        let node = patched(record.nodes.get(name).ok_or_else(|| not_found(name))?, &patch)?;
        Ok(self.put_node(record, node))
    }

    async fn patch_node_status(&self, name: &str, patch: Value) -> Result<Node, ClusterError> {
        self.patch_node(name, patch).await
    }

    async fn lease(&self, name: &str) -> Result<Option<Lease>, ClusterError> {
        self.panic_if_broken("lease");
        Ok(self.online()?.leases.get(name).cloned())
    }

    async fn create_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let mut record = self.online()?;
        let mut lease = lease.clone();
        stamp(&mut record, &mut lease);
        record.leases.insert(lease.metadata.name.clone().unwrap_or_default(), lease.clone());
        drop(record);
        self.touch();
        Ok(lease)
    }

    async fn replace_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let name = lease.metadata.name.clone().unwrap_or_default();
        let current = self.lease(&name).await?.ok_or_else(|| not_found(&name))?;
        if current.metadata.resource_version != lease.metadata.resource_version {
            return Err(conflict(&name, "the object has been modified"));
        }
        self.create_lease(lease).await
    }
}

#[async_trait]
impl ObjectApi for FakeCluster {
    fn watch_object(&self, key: &ObjectKey) -> WatchStream<ObjectContent> {
        self.panic_if_broken("watch_object");
        let list = self.lock().objects.get(key).cloned().into_iter().collect();
        let wanted = key.clone();
        let changes = BroadcastStream::new(self.objects.subscribe()).filter_map(move |change| {
            future::ready(change.ok().filter(|(key, _)| *key == wanted).map(|(_, change)| change))
        });
        stream::once(future::ready(Watched::All(list))).chain(changes).boxed()
    }

    fn watch_services(&self) -> WatchStream<Service> {
        list_then(self.lock().services.clone(), self.services.subscribe())
    }

    async fn request_token(&self, _: &PodName, account: &str, wish: &TokenWish) -> Result<IssuedToken, ClusterError> {
        let mut record = self.online()?;
        record.tokens += 1;
        let token = format!("{account}/{}/{}", wish.audience, record.tokens);
        let expires = Timestamp::now() + record.token_life;
        drop(record);
        self.touch();
        Ok(IssuedToken { token, expires })
    }
}

#[async_trait]
impl EventApi for FakeCluster {
    async fn create_event(&self, event: &Event) -> Result<(), ClusterError> {
        self.panic_if_broken("create_event");
        self.online()?.events.push(event.clone());
        self.touch();
        Ok(())
    }

    async fn count_event(&self, _: &str, name: &str, count: i32, _: Timestamp) -> Result<(), ClusterError> {
        let mut record = self.online()?;
        let event = record.events.iter_mut().find(|event| event.metadata.name.as_deref() == Some(name));
        event.ok_or_else(|| not_found(name))?.count = Some(count);
        drop(record);
        self.touch();
        Ok(())
    }
}

#[async_trait]
impl AccessApi for FakeCluster {
    async fn review_token(&self, token: &str) -> Result<Option<UserInfo>, ClusterError> {
        let mut record = self.online()?;
        record.reviews += 1;
        Ok(record.users.get(token).cloned())
    }

    async fn may(&self, user: &UserInfo, what: &ResourceAttributes) -> Result<bool, ClusterError> {
        let mut record = self.online()?;
        record.reviews += 1;
        let of = |part: &Option<String>| part.clone().unwrap_or_default();
        let right = json!([of(&user.username), of(&what.verb), of(&what.subresource), of(&what.name)]);
        let words: Vec<String> = serde_json::from_value(right).unwrap_or_default();
        Ok(record.rights.contains(&words.join(" ")))
    }
}
