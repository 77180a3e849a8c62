//! Pods that are started to be measured, and the clock: from just before the request to create one until the watch event
//! that shows it Ready, both in this process.

use super::ground::{Ground, NAMESPACE};
use crate::conditions::pod_is_ready;
use crate::images::BUSYBOX;
use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::pinned_kind;
use kube::runtime::wait::await_condition;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// How long a pod may take to be Ready, or to be gone.
const DEADLINE: Duration = Duration::from_secs(180);
/// The label of the bench's pods.
const LABEL: &str = "larder-bench";
/// How many requests for pods that are created at once are under way together. One for each pod would be a connection for each
/// pod: the handshakes of the bench itself would be the most of what is measured.
const CREATED_AT_ONCE: usize = 16;

/// What a measured container runs: it waits, and ends at once when it is asked to.
pub(super) const COMMAND: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 86400 & wait"];

/// Who says on which node a pod runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// The pod itself.
    Directly,
    /// The scheduler.
    ByScheduler,
}

/// How a pod gets its image.
#[derive(Debug, Clone)]
pub(super) enum From {
    /// From the registry, as far as the store does not have it; no cache is looked for or made.
    Registry,
    /// From the image cache of this id.
    Cache(String),
    /// From the image cache that matches best.
    Matched,
}

/// A kind of pod.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    /// The image.
    pub(super) image: String,
    /// Where it comes from.
    pub(super) from: From,
    /// How it gets to the node.
    pub(super) placed: Placed,
}

/// Starts pods one after the other and times them.
pub(super) struct Starter {
    pods: Api<Pod>,
    node: String,
    events: BoxStream<'static, Result<Event<Pod>, watcher::Error>>,
    started: usize,
}

impl Starter {
    /// For the node that is measured. Its watch is up when this returns.
    pub(super) async fn new(ground: &Ground) -> Result<Self> {
        Self::on(ground, ground.node()).await
    }

    /// For a node. Its watch is up when this returns.
    pub(super) async fn on(ground: &Ground, node: &str) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(ground.client.clone(), NAMESPACE);
        let mut events = watcher(pods.clone(), watcher::Config::default().labels(LABEL)).boxed();
        while let Some(event) = tokio::time::timeout(DEADLINE, events.try_next()).await?? {
            if matches!(event, Event::InitDone) {
                break;
            }
        }
        Ok(Self { pods, node: node.to_owned(), events, started: 0 })
    }

    /// Creates a pod and waits until it is seen Ready. Returns its name and the time that took.
    pub(super) async fn start(&mut self, kind: &Kind) -> Result<(String, Duration)> {
        let name = self.name();
        let pod = pod(&name, kind, &self.node)?;
        let begin = Instant::now();
        self.pods.create(&PostParams::default(), &pod).await.with_context(|| format!("create pod {name}"))?;
        match tokio::time::timeout(DEADLINE, self.seen_ready(BTreeSet::from([name.clone()]))).await {
            Ok(seen) => Ok((name, seen?.duration_since(begin))),
            Err(_) => {
                let pod = self.pods.get_status(&name).await?;
                bail!("pod {name} is not Ready after {DEADLINE:?}: {}", status(&pod))
            }
        }
    }

    /// Creates so many pods at once and waits until all are seen Ready. Returns their names and the time that took.
    pub(super) async fn start_at_once(&mut self, kind: &Kind, count: usize) -> Result<(Vec<String>, Duration)> {
        let names: Vec<String> = (0..count).map(|_| self.name()).collect();
        let pods = names.iter().map(|name| pod(name, kind, &self.node)).collect::<Result<Vec<Pod>>>()?;
        let begin = Instant::now();
        let params = PostParams::default();
        let creations = stream::iter(pods.iter().map(|pod| self.pods.create(&params, pod)));
        let mut creations = creations.buffer_unordered(CREATED_AT_ONCE);
        while creations.try_next().await.context("create pods")?.is_some() {}
        drop(creations);
        let seen = tokio::time::timeout(DEADLINE, self.seen_ready(names.iter().cloned().collect())).await;
        let seen = seen.with_context(|| format!("not all of {count} pods are Ready after {DEADLINE:?}"))??;
        Ok((names, seen.duration_since(begin)))
    }

    fn name(&mut self) -> String {
        self.started += 1;
        format!("bench-{}", self.started)
    }

    /// When the last of these was seen Ready.
    async fn seen_ready(&mut self, mut missing: BTreeSet<String>) -> Result<Instant> {
        while let Some(event) = self.events.try_next().await? {
            let (Event::Apply(pod) | Event::InitApply(pod)) = event else { continue };
            let name = pod.name_any();
            if !missing.contains(&name) {
                continue;
            }
            if pod_is_ready(&pod) {
                missing.remove(&name);
            }
            if missing.is_empty() {
                return Ok(Instant::now());
            }
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            ensure!(!matches!(phase, Some("Failed" | "Succeeded")), "pod {name} ended: {}", status(&pod));
        }
        bail!("the watch of pods ended")
    }

    /// Deletes pods at once and waits until all are gone.
    pub(super) async fn remove_all(&mut self, names: Vec<String>) -> Result<()> {
        let params = DeleteParams::default();
        try_join_all(names.iter().map(|name| self.pods.delete(name, &params))).await.context("delete pods")?;
        let mut left: BTreeSet<String> = names.into_iter().collect();
        let gone = async {
            while !left.is_empty() {
                match self.events.try_next().await? {
                    Some(Event::Delete(pod)) => drop(left.remove(&pod.name_any())),
                    Some(Event::Apply(_) | Event::Init | Event::InitApply(_) | Event::InitDone) => {}
                    None => bail!("the watch of pods ended"),
                }
            }
            Ok(())
        };
        tokio::time::timeout(DEADLINE, gone).await.with_context(|| format!("pods are not gone after {DEADLINE:?}"))?
    }

    /// Deletes a pod and waits until it is gone.
    pub(super) async fn remove(&mut self, name: &str) -> Result<()> {
        self.remove_all(vec![name.to_owned()]).await
    }
}

/// A pod whose one container waits, and ends at once when it is asked to.
fn pod(name: &str, kind: &Kind, node: &str) -> Result<Pod> {
    let annotations = match &kind.from {
        From::Registry => json!({ "k8s.aliyun.com/eci-auto-imc": "false" }),
        From::Cache(id) => json!({ "k8s.aliyun.com/eci-imc-id": id }),
        From::Matched => json!({ "k8s.aliyun.com/eci-auto-imc": "true" }),
    };
    let mut spec = json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        // Every taint, that of a disk that is nearly full too: what is measured is the start, not the machine's fitness.
        "tolerations": [{ "operator": "Exists" }],
        "containers": [{
            "name": "main",
            "image": kind.image,
            "imagePullPolicy": "IfNotPresent",
            "command": COMMAND,
        }],
    });
    match kind.placed {
        Placed::Directly => spec["nodeName"] = json!(node),
        Placed::ByScheduler => spec["nodeSelector"] = json!({ "kubernetes.io/hostname": node }),
    }
    let pod = json!({
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { LABEL: "true" }, "annotations": annotations },
        "spec": spec,
    });
    serde_json::from_value(pod).context("make a pod")
}

fn status(pod: &Pod) -> String {
    serde_json::to_string(&pod.status).unwrap_or_default()
}

/// Runs a small pod on a node that has just started, so that every connection is up, and removes it.
pub(super) async fn first(ground: &Ground, node: &str) -> Result<()> {
    let kind = Kind { image: BUSYBOX.to_owned(), from: From::Registry, placed: Placed::Directly };
    let mut starter = Starter::on(ground, node).await?;
    let (name, _) = starter.start(&kind).await?;
    starter.remove(&name).await
}

/// Deletes whatever pods and caches of the bench are left, and waits until they are gone: caches stay until the node's agent
/// has forgotten them.
pub(super) async fn remove_all(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let left = ListParams::default().labels(LABEL);
    let names: BTreeSet<String> = pods.list(&left).await?.items.iter().map(ResourceExt::name_any).collect();
    for name in &names {
        // One that is being removed already may be gone by now.
        drop(pods.delete(name, &DeleteParams::default()).await);
    }
    for name in &names {
        let gone = await_condition(pods.clone(), name, |pod: Option<&Pod>| pod.is_none());
        tokio::time::timeout(DEADLINE, gone).await.with_context(|| format!("pod {name} is not gone"))??;
    }
    let caches = image_caches(client).await?;
    caches.delete_collection(&DeleteParams::default(), &left).await.context("delete image caches")?;
    for cache in caches.list(&left).await? {
        let name = cache.name_any();
        let gone = await_condition(caches.clone(), &name, |cache: Option<&DynamicObject>| cache.is_none());
        tokio::time::timeout(DEADLINE, gone).await.with_context(|| format!("image cache {name} is not gone"))??;
    }
    Ok(())
}

/// The ImageCache objects.
pub(super) async fn image_caches(client: &Client) -> Result<Api<DynamicObject>> {
    let kind = GroupVersionKind::gvk("eci.alibabacloud.com", "v1", "ImageCache");
    let (resource, _) = pinned_kind(client, &kind).await.context("find kind ImageCache")?;
    Ok(Api::all_with(client.clone(), &resource))
}

/// A made image cache.
pub(super) struct Made {
    /// Its id.
    pub(super) id: String,
    /// From just before its creation until it was seen Ready.
    pub(super) took: Duration,
    /// When it was seen Ready.
    pub(super) seen: Instant,
}

/// Makes an image cache of one image and waits until it is seen Ready.
pub(super) async fn make_cache(ground: &Ground, name: &str, image: &str) -> Result<Made> {
    let caches = image_caches(&ground.client).await?;
    let object = cache_object(name, image)?;
    let begin = Instant::now();
    caches.create(&PostParams::default(), &object).await.with_context(|| format!("create image cache {name}"))?;
    let over = await_condition(caches.clone(), name, |cache: Option<&DynamicObject>| {
        cache.is_some_and(|cache| matches!(field(cache, "phase"), Some("Ready" | "Failed")))
    });
    let cache = tokio::time::timeout(DEADLINE, over)
        .await
        .with_context(|| format!("image cache {name} is not Ready after {DEADLINE:?}"))??
        .context("the image cache is gone")?;
    let seen = Instant::now();
    match (field(&cache, "phase"), field(&cache, "imageCacheId")) {
        (Some("Ready"), Some(id)) => Ok(Made { id: id.to_owned(), took: seen.duration_since(begin), seen }),
        _ => bail!("image cache {name} is not Ready: {}", cache.data.get("status").unwrap_or(&Value::Null)),
    }
}

/// An image cache of one image, as the bench makes them.
pub(super) fn cache_object(name: &str, image: &str) -> Result<DynamicObject> {
    let object = json!({
        "apiVersion": "eci.alibabacloud.com/v1",
        "kind": "ImageCache",
        "metadata": { "name": name, "labels": { LABEL: "true" } },
        "spec": { "images": [image] },
    });
    serde_json::from_value(object).context("make an image cache")
}

/// A text of a cache's status.
pub(super) fn field<'a>(cache: &'a DynamicObject, name: &str) -> Option<&'a str> {
    cache.data.get("status")?.get(name)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_says_where_it_goes_and_where_its_image_comes_from() {
        let direct = Kind { image: "a:1".to_owned(), from: From::Registry, placed: Placed::Directly };
        let made = pod("x", &direct, "n").unwrap();
        assert_eq!(made.spec.as_ref().unwrap().node_name.as_deref(), Some("n"));
        assert_eq!(made.annotations()["k8s.aliyun.com/eci-auto-imc"], "false");
        let from = From::Cache("imc-1".to_owned());
        let made = pod("x", &Kind { from, placed: Placed::ByScheduler, ..direct }, "n").unwrap();
        assert_eq!(made.spec.as_ref().unwrap().node_name, None);
        assert_eq!(made.annotations()["k8s.aliyun.com/eci-imc-id"], "imc-1");
    }
}
