//! Each annotation about image caches alone and with every other, valid and not, on pods, on templates, and through the
//! profile.
//!
//! The pods have an image that a cache holds and one whose name no registry can have, so no further cache is ever made of
//! them and each meets the same caches. What a pod is given is read from its events; it need not run.

mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use larder_e2e::cluster::Cluster;
use larder_e2e::scene::{SOON, Scene, image_caches, ready_cache};
use serde_json::{Value, json};

use self::table::{Row, TABLE};
use crate::profile;

/// So many pods are there at once.
const BATCH: usize = 37;

/// What a pod is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The cache.
    Hit,
    /// None, and it is told that it missed.
    Missed,
    /// None, and nothing is said of caches.
    Off,
    /// It must wait for a cache that is not there.
    NotFound,
}

/// Where the annotations stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Pod,
    Template,
    Profile,
}

/// The events of a pod that count: reason, message, and whether the node has said it.
type Told = Vec<(String, String, bool)>;

pub(crate) async fn every_annotation_alone_and_in_every_pair(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let image = cluster.own_image("matrix").await?;
    let id = ready_cache(cluster, "matrix", &[&image]).await?;
    let scene = Scene::new(cluster, "matrix", &[]).await?;
    let mut wrong = String::new();
    for place in [Place::Pod, Place::Template, Place::Profile] {
        for (batch, rows) in TABLE.chunks(BATCH).enumerate() {
            let case = |at: usize| format!("{place:?}{batch}x{at}").to_lowercase();
            let bench = Bench { scene: &scene, image: &image, id: &id, place };
            bench.create(rows, &case).await?;
            let told = bench.told(rows.len(), &case).await?;
            for (at, row) in rows.iter().enumerate() {
                if let Err(why) = judge(row, &told[&case(at)], &id) {
                    writeln!(wrong, "{place:?} {:?}: {why}", row.0)?;
                }
            }
            bench.remove().await?;
        }
    }
    image_caches(&cluster.client).delete("matrix", &Default::default()).await?;
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}

fn key(short: &str) -> &'static str {
    match short {
        "auto" => "k8s.aliyun.com/eci-auto-imc",
        "perfect" => "k8s.aliyun.com/imc-perfect-match",
        "count" => "k8s.aliyun.com/imc-match-count-request",
        _ => "k8s.aliyun.com/eci-imc-id",
    }
}

fn annotations(row: &Row, id: &str) -> Value {
    let pairs = row.0.split(' ').filter_map(|pair| pair.split_once('='));
    let pairs = pairs.map(|(short, value)| (key(short).to_owned(), json!(if value == "GOOD" { id } else { value })));
    Value::Object(pairs.collect())
}

/// What is wrong about what a pod was told.
fn judge(row: &Row, told: &Told, id: &str) -> Result<()> {
    let (_, outcome, invalid) = row;
    let has = |reason: &str| told.iter().find(|(there, _, _)| there == reason).map(|(_, message, _)| message.as_str());
    let found = match (has("SuccessfulHitImageCache"), has("ImageCacheMissed"), has("ImageCacheNotFound")) {
        (Some(message), None, None) if message.contains(id) => Outcome::Hit,
        (None, Some("[eci.imagecache]Missed image cache."), None) => Outcome::Missed,
        (None, None, Some("The specified image cache imc-nobodys does not exist.")) => Outcome::NotFound,
        (None, None, None) => Outcome::Off,
        other => bail!("{other:?}"),
    };
    ensure!(found == *outcome, "{found:?} and not {outcome:?}: {told:?}");
    ensure!((found == Outcome::Hit) == has("ImageCachePartiallyHit").is_some(), "{told:?}");
    for short in ["auto", "perfect", "count", "pin"] {
        let mut warnings = told.iter().filter(|(reason, _, _)| reason == "InvalidAnnotation");
        let is_named = warnings.any(|(_, message, _)| message.contains(key(short)));
        ensure!(is_named == invalid.split(' ').any(|one| one == short), "{short}: {told:?}");
    }
    Ok(())
}

struct Bench<'c> {
    scene: &'c Scene<'c>,
    image: &'c str,
    id: &'c str,
    place: Place,
}

impl Bench<'_> {
    fn spec(&self) -> Value {
        let container = |name: &str, image: &str| json!({"name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]});
        json!({
            "containers": [container("held", self.image), container("nobodys", "Not/An-Image")],
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
        })
    }

    fn placed(&self) -> Value {
        let mut spec = self.spec();
        spec["nodeSelector"] = json!({"type": "virtual-kubelet"});
        spec["tolerations"] = json!([{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]);
        spec
    }

    async fn create(&self, rows: &[Row], case: impl Fn(usize) -> String) -> Result<()> {
        if self.place == Place::Profile {
            self.write_profile(rows, &case).await?;
        }
        for (at, row) in rows.iter().enumerate() {
            let name = case(at);
            let annotations = annotations(row, self.id);
            match self.place {
                Place::Pod => {
                    let metadata = json!({"name": name, "annotations": annotations});
                    self.scene.create::<Pod>(json!({"metadata": metadata, "spec": self.placed()})).await?;
                }
                Place::Template => {
                    let labels = json!({"case": name});
                    let metadata = json!({"labels": labels, "annotations": annotations});
                    let template = json!({"metadata": metadata, "spec": self.placed()});
                    let spec = json!({"selector": {"matchLabels": labels}, "template": template});
                    self.scene.create::<Deployment>(json!({"metadata": {"name": name}, "spec": spec})).await?;
                }
                Place::Profile => {
                    let metadata = json!({"name": name, "labels": {"case": name}});
                    self.scene.create::<Pod>(json!({"metadata": metadata, "spec": self.spec()})).await?;
                }
            }
        }
        Ok(())
    }

    /// A selector for each case. The last one is there when all are: they are one object.
    async fn write_profile(&self, rows: &[Row], case: impl Fn(usize) -> String) -> Result<()> {
        let selectors = rows.iter().enumerate().map(|(at, row)| {
            let labels = json!({"matchLabels": {"case": case(at)}});
            json!({"name": case(at), "objectSelector": labels, "effect": {"annotations": annotations(row, self.id)}})
        });
        let selectors = Value::Array(selectors.collect());
        profile::write(self.scene.cluster, json!({"selectors": selectors.to_string()})).await?;
        let last = json!({"case": case(rows.len() - 1)});
        profile::until(self.scene, last, |pod| pod.metadata.annotations.is_some()).await?;
        Ok(())
    }

    /// What each pod is told, until all have been told what counts: the events of a pod are written in their order, so a
    /// word of the node comes after what was chosen.
    async fn told(&self, count: usize, case: impl Fn(usize) -> String) -> Result<BTreeMap<String, Told>> {
        let mut told: BTreeMap<String, Told> = (0..count).map(|at| (case(at), Told::new())).collect();
        let events = watcher(self.scene.api::<Event>(), watcher::Config::default());
        let mut events = events.default_backoff().applied_objects().boxed();
        let all = async {
            while !told.values().all(is_done) {
                let event = events.try_next().await?.context("the watch ended")?;
                // The pods of a Deployment have its name before the first dash; its own events count for nothing.
                let name = event.involved_object.name.unwrap_or_default();
                let Some(told) = told.get_mut(name.split('-').next().unwrap_or_default()) else { continue };
                let source = event.source.and_then(|source| source.component).unwrap_or_default();
                told.push((event.reason.unwrap_or_default(), event.message.unwrap_or_default(), source == "kubelet"));
            }
            anyhow::Ok(())
        };
        let in_time = tokio::time::timeout(SOON, all).await;
        match in_time {
            Ok(all) => all.map(|()| told),
            Err(_) => {
                let missing: Vec<_> = told.iter().filter(|(_, told)| !is_done(told)).collect();
                bail!("not told: {missing:#?}\n{}", self.scene.cluster.log_tails())
            }
        }
    }

    /// Makes room for the next ones.
    async fn remove(&self) -> Result<()> {
        let pods = self.scene.api::<Pod>().list(&ListParams::default()).await?.items;
        let pods: Vec<String> = pods.into_iter().filter_map(|pod| pod.metadata.name).collect();
        let (now, all) = (DeleteParams::background().grace_period(0), ListParams::default());
        if self.place == Place::Template {
            // The garbage collector takes their pods.
            self.scene.api::<Deployment>().delete_collection(&now, &all).await?;
        } else {
            self.scene.api::<Pod>().delete_collection(&now, &all).await?;
        }
        for pod in pods {
            self.scene.wait_gone(&pod).await?;
        }
        if self.place == Place::Profile {
            profile::remove(self.scene.cluster).await?;
        }
        Ok(())
    }
}

fn is_done(told: &Told) -> bool {
    told.iter().any(|(reason, _, by_node)| *by_node || reason == "ImageCacheNotFound")
}
