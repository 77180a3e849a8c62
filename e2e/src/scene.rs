//! One test's part of a cluster: a namespace, and the questions that tests ask of it.
//!
//! Every wait is for a value and has a deadline; its error says what was there instead.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, LogParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource};
use larder_dev::conditions::pod_is_ready;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cluster::{BUSYBOX, Cluster, wait_default_account};

/// How long a thing may take that takes a moment. Long, because a machine under load is slow, and a test that fails is late
/// anyway.
pub const SOON: Duration = Duration::from_secs(60);

/// A test's namespace in a cluster.
#[derive(Debug)]
pub struct Scene<'c> {
    /// The cluster.
    pub cluster: &'c Cluster,
    /// The namespace.
    pub namespace: String,
}

impl<'c> Scene<'c> {
    /// Makes the namespace, with labels.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn new(cluster: &'c Cluster, name: &str, labels: &[(&str, &str)]) -> Result<Self> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        namespaces.create(&PostParams::default(), &namespace).await.context("create the namespace")?;
        wait_default_account(&cluster.client, name).await?;
        Ok(Self { cluster, namespace: name.to_owned() })
    }

    /// Objects of a kind in the namespace.
    #[must_use]
    pub fn api<K: Resource<Scope = NamespaceResourceScope>>(&self) -> Api<K>
    where
        K::DynamicType: Default,
    {
        Api::namespaced(self.client(), &self.namespace)
    }

    fn client(&self) -> Client {
        self.cluster.client.clone()
    }

    /// Creates an object in the namespace.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create<K>(&self, object: Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + serde::Serialize,
        K::DynamicType: Default,
    {
        let object: K = serde_json::from_value(object)?;
        Ok(self.api::<K>().create(&PostParams::default(), &object).await?)
    }

    /// Creates a pod from its spec, for the virtual nodes by selector and toleration. Without a token, because most tests
    /// have no use for one.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn pod(&self, name: &str, spec: Value) -> Result<Pod> {
        self.annotated_pod(name, json!({}), spec).await
    }

    /// The same with annotations.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn annotated_pod(&self, name: &str, annotations: Value, mut spec: Value) -> Result<Pod> {
        let defaults = json!({
            "nodeSelector": {"type": "virtual-kubelet"},
            "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
        });
        if let (Value::Object(spec), Value::Object(defaults)) = (&mut spec, defaults) {
            for (key, value) in defaults {
                spec.entry(key).or_insert(value);
            }
        }
        let object = json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec});
        self.create(object).await
    }

    /// Waits until a pod satisfies `wanted`.
    ///
    /// # Errors
    /// When it does not in time, or goes away; the message has its status and events.
    pub async fn wait_pod(&self, name: &str, what: &str, wanted: impl Fn(&Pod) -> bool) -> Result<Pod> {
        self.wait_pod_for(SOON, name, what, wanted).await
    }

    /// The same with another deadline.
    ///
    /// # Errors
    /// See [`Self::wait_pod`].
    pub async fn wait_pod_for(
        &self,
        at_most: Duration,
        name: &str,
        what: &str,
        wanted: impl Fn(&Pod) -> bool,
    ) -> Result<Pod> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut stream = watcher(self.api::<Pod>(), config).default_backoff().applied_objects().boxed();
        let find = async {
            while let Some(pod) = stream.try_next().await? {
                if wanted(&pod) {
                    return Ok(pod);
                }
            }
            bail!("the watch ended")
        };
        match tokio::time::timeout(at_most, find).await {
            Ok(found) => found,
            Err(_) => bail!("pod {name} is not {what} after {at_most:?}\n{}", self.state_of(name).await),
        }
    }

    /// Waits until a pod is Ready.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn wait_ready(&self, name: &str) -> Result<Pod> {
        self.wait_pod(name, "Ready", pod_is_ready).await
    }

    /// Waits until a pod has this phase.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn wait_phase(&self, name: &str, phase: &str) -> Result<Pod> {
        self.wait_pod(name, phase, |pod| self::phase(pod) == phase).await
    }

    /// Waits until an object of the API server's is gone.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn wait_gone(&self, name: &str) -> Result<()> {
        let gone = kube::runtime::wait::await_condition(self.api::<Pod>(), name, |pod: Option<&Pod>| pod.is_none());
        match tokio::time::timeout(SOON, gone).await {
            Ok(result) => Ok(result.map(drop)?),
            Err(_) => bail!("pod {name} is not gone\n{}", self.state_of(name).await),
        }
    }

    /// Deletes a pod and waits until it is gone.
    ///
    /// # Errors
    /// When it stays.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.api::<Pod>().delete(name, &DeleteParams::default()).await?;
        self.wait_gone(name).await
    }

    /// The log of a container, through the API server.
    ///
    /// # Errors
    /// When the API server or the provider refuses.
    pub async fn logs(&self, pod: &str, params: &LogParams) -> Result<String> {
        self.api::<Pod>().logs(pod, params).await.with_context(|| format!("read the log of {pod}"))
    }

    /// Follows the log of a pod's only container until a line of it contains a text, and gives that line.
    ///
    /// # Errors
    /// When none does in time, or the log ends before.
    pub async fn wait_log(&self, pod: &str, text: &str) -> Result<String> {
        let params = LogParams { follow: true, ..LogParams::default() };
        let mut lines = self.api::<Pod>().log_stream(pod, &params).await?.lines();
        let find = async {
            while let Some(line) = lines.try_next().await? {
                if line.contains(text) {
                    return Ok(line);
                }
            }
            bail!("the log of {pod} ended without {text:?}")
        };
        match tokio::time::timeout(SOON, find).await {
            Ok(found) => found,
            Err(_) => bail!("no line with {text:?} in the log of {pod}\n{}", self.state_of(pod).await),
        }
    }

    /// Waits until a pod has an event with this reason whose message contains a text, and gives its message.
    ///
    /// # Errors
    /// When it has not in time; the message has the events that it has.
    pub async fn wait_event(&self, pod: &str, reason: &str, text: &str) -> Result<String> {
        let config = watcher::Config::default().fields(&format!("involvedObject.name={pod},reason={reason}"));
        let mut stream = watcher(self.api::<Event>(), config).default_backoff().applied_objects().boxed();
        let find = async {
            while let Some(event) = stream.try_next().await? {
                let message = event.message.unwrap_or_default();
                if message.contains(text) {
                    return Ok(message);
                }
            }
            bail!("the watch ended")
        };
        match tokio::time::timeout(SOON, find).await {
            Ok(found) => found,
            Err(_) => bail!("no event {reason} with {text:?}\n{}", self.state_of(pod).await),
        }
    }

    /// The events of a pod, oldest first, as `reason: message`.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn events(&self, pod: &str) -> Result<Vec<String>> {
        let params = ListParams::default().fields(&format!("involvedObject.name={pod}"));
        let mut events = self.api::<Event>().list(&params).await?.items;
        events.sort_by_key(|event| {
            event.event_time.clone().map(|time| time.0).or(event.first_timestamp.clone().map(|time| time.0))
        });
        let line =
            |event: Event| format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default());
        Ok(events.into_iter().map(line).collect())
    }

    /// `kubectl describe pod`.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn describe(&self, pod: &str) -> Result<String> {
        self.cluster.kubectl(&["describe", "pod", pod, "-n", &self.namespace]).await
    }

    async fn state_of(&self, pod: &str) -> String {
        let described = self.describe(pod).await.unwrap_or_else(|err| format!("{err:#}"));
        let nodes = self.cluster.kubectl(&["describe", "nodes"]).await.unwrap_or_else(|err| format!("{err:#}"));
        format!("{described}\n{nodes}\n{}", self.cluster.log_tails())
    }

    /// Runs a shell command in a pod of its own, to its end, and gives what it printed.
    ///
    /// # Errors
    /// When it does not succeed.
    pub async fn run(&self, name: &str, command: &str) -> Result<String> {
        self.pod(name, json!({"restartPolicy": "Never", "containers": [sh(command)]})).await?;
        let pod = self.wait_pod(name, "ended", |pod| matches!(phase(pod), "Succeeded" | "Failed")).await?;
        let output = self.logs(name, &LogParams::default()).await?;
        anyhow::ensure!(phase(&pod) == "Succeeded", "{command}: {output}\n{}", self.state_of(name).await);
        Ok(output)
    }
}

/// A busybox container named `main` that runs a shell command.
#[must_use]
pub fn sh(command: &str) -> Value {
    json!({"name": "main", "image": BUSYBOX, "command": ["sh", "-c", command]})
}

/// A pod's phase; empty before it has one.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// A pod's address.
///
/// # Errors
/// When it has none.
pub fn pod_ip(pod: &Pod) -> Result<String> {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("the pod has no address")
}

/// The value at a JSON pointer of a pod, `/status/containerStatuses/0/restartCount`.
#[must_use]
pub fn at(pod: &Pod, pointer: &str) -> Value {
    serde_json::to_value(pod).ok().and_then(|value| value.pointer(pointer).cloned()).unwrap_or(Value::Null)
}

/// Image caches.
#[must_use]
pub fn image_caches(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("eci.alibabacloud.com", "v1", "ImageCache");
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, "imagecaches"))
}

/// Creates an image cache by hand and waits until it is Ready. Gives its id.
///
/// # Errors
/// When it is not Ready in time.
pub async fn ready_cache(cluster: &Cluster, name: &str, images: &[&str]) -> Result<String> {
    let object = serde_json::from_value(json!({
        "apiVersion": "eci.alibabacloud.com/v1", "kind": "ImageCache",
        "metadata": {"name": name}, "spec": {"images": images},
    }))?;
    image_caches(&cluster.client).create(&PostParams::default(), &object).await?;
    let cache = wait_cache(cluster, name, "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;
    let id = cache.data["status"]["imageCacheId"].as_str().context("the cache has no id")?;
    Ok(id.to_owned())
}

/// Waits until an image cache satisfies `wanted`.
///
/// # Errors
/// When it does not in time.
pub async fn wait_cache(
    cluster: &Cluster,
    name: &str,
    what: &str,
    wanted: impl Fn(&DynamicObject) -> bool,
) -> Result<DynamicObject> {
    let caches = image_caches(&cluster.client);
    let is_so = |cache: Option<&DynamicObject>| cache.is_some_and(&wanted);
    match tokio::time::timeout(SOON, kube::runtime::wait::await_condition(caches, name, is_so)).await {
        Ok(found) => found?.context("the cache is gone"),
        Err(_) => {
            let described = cluster.kubectl(&["get", "imagecache", name, "-o", "yaml"]).await;
            let described = described.unwrap_or_else(|err| format!("{err:#}"));
            bail!("image cache {name} is not {what}\n{described}\n{}", cluster.log_tails())
        }
    }
}
