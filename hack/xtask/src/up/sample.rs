//! The documented Deployments: the one that finds its cache by itself, then a cache made by hand and the one pinned to it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::api::{Api, DynamicObject};
use kube::core::GroupVersionKind;
use kube::discovery::pinned_kind;
use kube::runtime::wait::await_condition;

use super::cluster::{Cluster, read_manifest};
use super::layout::{Layout, Settings};
use super::stopwatch::Stopwatch;
use crate::conditions::pod_is_ready;
use crate::console::step;
use crate::manifests;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

/// The label of the documented Deployments' pods.
const LABELS: &str = "app=nginx";
/// How many pods each has.
const REPLICAS: usize = 2;
const CACHE: &str = "nginx-busybox";
/// The id in the documentation, which stands for the reader's own.
const DOCUMENTED_ID: &str = "imc-2ze5tm5gehgtiiga****";
/// How long a step may take: the first pull of the images is among it.
const DEADLINE: Duration = Duration::from_secs(120);

/// Where the two Deployments go. They have one name and one selector, so each has a namespace of its own; in somebody
/// else's cluster neither is one where others may have such a Deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Namespaces {
    pub(crate) automatic: &'static str,
    pub(crate) pinned: &'static str,
}

impl Namespaces {
    /// Those of a cluster.
    pub(crate) fn of(settings: &Settings) -> Self {
        match settings.external {
            None => Self { automatic: "default", pinned: "pinned" },
            Some(_) => Self { automatic: "larder-sample", pinned: "larder-sample-pinned" },
        }
    }

    /// Those that the sample makes, as manifests.
    pub(crate) fn manifests(self) -> String {
        let made = [self.automatic, self.pinned].into_iter().filter(|name| *name != "default");
        made.map(|name| format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")).collect()
    }
}

/// Applies the sample and waits until it runs.
pub(super) async fn run(layout: &Layout, settings: &Settings, cluster: &Cluster) -> anyhow::Result<Stopwatch> {
    let namespaces = Namespaces::of(settings);
    let Namespaces { automatic, pinned } = namespaces;
    manifests::create_missing(&cluster.client, &namespaces.manifests(), "default").await?;
    let stopwatch = Stopwatch::start(&cluster.client, LABELS).await;
    step("apply the Deployment that finds its image cache by itself", async {
        manifests::create_missing(&cluster.client, &read_manifest("sample/automatic.yaml")?, automatic).await?;
        wait_ready(layout, cluster, &stopwatch, automatic).await
    })
    .await?;
    let id = step("make an image cache by hand", async {
        manifests::create_missing(&cluster.client, &read_manifest("sample/imagecache.yaml")?, "default").await?;
        cache_id(cluster).await
    })
    .await?;
    step(&format!("apply the Deployment that is pinned to {id}"), async {
        let deployment = read_manifest("sample/pinned.yaml")?.replace(DOCUMENTED_ID, &id);
        manifests::create_missing(&cluster.client, &deployment, pinned).await?;
        wait_ready(layout, cluster, &stopwatch, pinned).await
    })
    .await?;
    Ok(stopwatch)
}

/// The id of the cache made by hand, once it is Ready.
async fn cache_id(cluster: &Cluster) -> anyhow::Result<String> {
    let kind = GroupVersionKind::gvk("eci.alibabacloud.com", "v1", "ImageCache");
    let (resource, _) = pinned_kind(&cluster.client, &kind).await.context("find kind ImageCache")?;
    let caches: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let over = await_condition(caches.clone(), CACHE, |cache: Option<&DynamicObject>| {
        cache.is_some_and(|cache| matches!(field(cache, "phase"), Some("Ready" | "Failed")))
    });
    let cache = match tokio::time::timeout(DEADLINE, over).await {
        Ok(cache) => cache?.context("the image cache is gone")?,
        Err(_) => caches.get(CACHE).await?,
    };
    match (field(&cache, "phase"), field(&cache, "imageCacheId")) {
        (Some("Ready"), Some(id)) => Ok(id.to_owned()),
        _ => bail!("the image cache is not Ready: {}", cache.data.get("status").unwrap_or(&serde_json::Value::Null)),
    }
}

fn field<'a>(cache: &'a DynamicObject, name: &str) -> Option<&'a str> {
    cache.data.get("status")?.get(name)?.as_str()
}

/// Waits for the Deployment's pods: those that start now, or those that run already.
async fn wait_ready(layout: &Layout, cluster: &Cluster, stopwatch: &Stopwatch, namespace: &str) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let there = pods.list(&ListParams::default().labels(LABELS)).await.context("list pods")?;
    let ready = there.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() && pod_is_ready(pod)).count();
    if ready >= REPLICAS {
        return Ok(());
    }
    if tokio::time::timeout(DEADLINE, stopwatch.wait_ready(namespace, REPLICAS - ready)).await.is_err() {
        bail!("the pods are not Ready after {DEADLINE:?}\n{}", describe(layout, namespace)?);
    }
    Ok(())
}

/// What kubectl tells about the pods, for the error message.
fn describe(layout: &Layout, namespace: &str) -> anyhow::Result<String> {
    let program = super::report::kubectl(layout).unwrap_or_else(|| Path::new("kubectl").to_owned());
    let output = Command::new(program)
        .arg("--kubeconfig")
        .arg(layout.kubeconfig())
        .args(["describe", "pods", "--namespace", namespace, "--selector", LABELS])
        .output()
        .context("run kubectl")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
