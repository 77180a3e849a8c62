//! Image caches: made by hand, pinned, matched, made by themselves.

mod hosts;
mod interrupted;
mod limits;
mod objects;
mod pods;
mod secrets;

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::DynamicObject;
use kube::runtime::wait::await_condition;
use larder_e2e::cluster::Cluster;
use larder_e2e::scene::{SOON, image_caches};
use serde_json::{Value, json};

pub(crate) use hosts::{
    a_host_lost_in_mid_build, a_host_that_joins_later, deleted_while_a_host_is_away, each_host_is_shown,
    only_where_it_is_wanted,
};
pub(crate) use interrupted::{
    agent_killed_in_mid_build, api_server_away_while_a_build_ends, deleted_while_pods_start,
    provider_killed_in_mid_build,
};
pub(crate) use limits::{definition_by_flag, room_for_two};
pub(crate) use objects::{
    annotations_are_told_of_once, as_kubectl_shows_it, explained, gone_from_the_host_when_deleted, made_by_hand,
    refused_and_taken, updated,
};
pub(crate) use pods::{
    invalid_annotations, made_when_missing, matched_without_the_registry, one_for_many_pods,
    pinned_to_one_in_the_making, pinned_to_one_that_is_missing, pinned_without_the_registry,
};
pub(crate) use secrets::{of_another_namespace, only_for_who_may_read_them};

/// An object as it is written in YAML, with its kind.
fn merge_kind(mut object: Value) -> Value {
    object["apiVersion"] = json!("eci.alibabacloud.com/v1");
    object["kind"] = json!("ImageCache");
    object
}

/// Creates an object that is written without its kind.
async fn create(cluster: &Cluster, object: Value) -> Result<()> {
    let object = serde_json::from_value(merge_kind(object))?;
    image_caches(&cluster.client).create(&Default::default(), &object).await?;
    Ok(())
}

/// Deletes an object, and waits until it is gone.
async fn delete(cluster: &Cluster, name: &str) -> Result<()> {
    image_caches(&cluster.client).delete(name, &Default::default()).await?;
    wait_cache_gone(cluster, name).await
}

/// Whether a field of the status has this value.
fn is(cache: &DynamicObject, field: &str, value: &str) -> bool {
    cache.data["status"][field] == value
}

fn sleeper(image: &str) -> Value {
    json!({"containers": [{"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]}]})
}

/// Waits until an object is gone, finalizer and all.
async fn wait_cache_gone(cluster: &Cluster, name: &str) -> Result<()> {
    let gone = await_condition(image_caches(&cluster.client), name, |cache: Option<&DynamicObject>| cache.is_none());
    match tokio::time::timeout(SOON, gone).await {
        Ok(gone) => gone.map(drop).context("wait for the end of an image cache"),
        Err(_) => bail!("image cache {name} is not gone\n{}", cluster.log_tails()),
    }
}

/// Waits for something on a host that nobody tells of.
async fn wait_until(what: &str, is_so: impl Fn() -> bool) -> Result<()> {
    let deadline = tokio::time::Instant::now() + SOON;
    while !is_so() {
        ensure!(tokio::time::Instant::now() < deadline, "not so in time: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Ok(())
}
