//! Wire messages to the provider's values and back.
//!
//! Pure: no I/O, no clock, no randomness.

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use larder_proto::v1;

use crate::agent::{
    AgentError, BuildEvent, CacheChange, CachePhase, CacheState, CachedImage, ContainerStats, HostImage,
    ImageCacheBuild, LogQuery, NodeFacts, NodeStats, PodChange, PodEvent, PodGone, PodState, PodStats,
    RegistryCredential, ResolvedObject, RunPod, Usage, VerificationPolicy,
};

pub(super) fn run_pod(run: &RunPod) -> Result<v1::RunPodRequest, AgentError> {
    let pod_json = serde_json::to_vec(&*run.pod)
        .map_err(|error| AgentError::Invalid { message: format!("encode pod as JSON: {error}") })?;
    let cache = run.image_cache.as_ref();
    Ok(v1::RunPodRequest {
        pod_json: pod_json.into(),
        config_maps: run.config_maps.iter().map(object).collect(),
        secrets: run.secrets.iter().map(object).collect(),
        tokens: run
            .tokens
            .iter()
            .map(|token| v1::ServiceAccountToken {
                audience: token.audience.clone(),
                expiration_seconds: token.expiration_seconds,
                token: token.token.clone(),
            })
            .collect(),
        service_env: run
            .service_env
            .iter()
            .map(|(name, value)| v1::EnvVar { name: name.clone(), value: value.clone() })
            .collect(),
        credentials: run.credentials.iter().map(credential).collect(),
        image_cache_id: cache.map(|cache| cache.id.clone()).unwrap_or_default(),
        image_cache_automatic: cache.is_some_and(|cache| cache.is_automatic),
        image_pull_credentials_verification_policy: policy(cache.and_then(|cache| cache.policy)).into(),
        plain_http_registries: run.plain_http_registries.clone(),
        insecure_registries: run.insecure_registries.clone(),
    })
}

fn policy(policy: Option<VerificationPolicy>) -> v1::ImagePullCredentialsVerificationPolicy {
    use v1::ImagePullCredentialsVerificationPolicy as Wire;
    match policy {
        None => Wire::Unspecified,
        Some(VerificationPolicy::NeverVerify) => Wire::NeverVerify,
        Some(VerificationPolicy::NeverVerifyPreloadedImages) => Wire::NeverVerifyPreloadedImages,
        Some(VerificationPolicy::NeverVerifyAllowlistedImages) => Wire::NeverVerifyAllowlistedImages,
        Some(VerificationPolicy::AlwaysVerify) => Wire::AlwaysVerify,
    }
}

fn object(object: &ResolvedObject) -> v1::ResolvedObject {
    let data = object.data.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    v1::ResolvedObject { name: object.name.clone(), data }
}

fn credential(credential: &RegistryCredential) -> v1::RegistryCredential {
    v1::RegistryCredential {
        registry: credential.registry.clone(),
        username: credential.username.clone(),
        password: credential.password.clone(),
        identity_token: credential.identity_token.clone(),
        registry_token: credential.registry_token.clone(),
    }
}

pub(super) fn build(build: &ImageCacheBuild) -> v1::BuildImageCacheRequest {
    v1::BuildImageCacheRequest {
        id: build.id.clone(),
        name: build.name.clone(),
        images: build.images.clone(),
        credentials: build.credentials.iter().map(credential).collect(),
        plain_http_registries: build.plain_http_registries.clone(),
        insecure_registries: build.insecure_registries.clone(),
        size_limit_bytes: build.size_limit_bytes,
        refresh: build.refresh.clone(),
    }
}

pub(super) fn log_query(query: &LogQuery) -> v1::ReadLogsRequest {
    v1::ReadLogsRequest {
        uid: query.uid.clone(),
        container: query.container.clone(),
        follow: query.follow,
        previous: query.previous,
        tail_lines: query.tail_lines,
        since: query
            .since
            .map(|time| prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }),
        timestamps: query.timestamps,
        limit_bytes: query.limit_bytes,
    }
}

/// A time that cannot be told is left out: it is there for people.
fn time(wire: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    wire.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
}

fn status(uid: &str, json: &Bytes) -> Result<PodStatus, AgentError> {
    serde_json::from_slice(json)
        .map_err(|error| AgentError::Malformed { message: format!("status of pod {uid}: {error}") })
}

fn pod_state(wire: v1::PodState) -> Result<PodState, AgentError> {
    Ok(PodState {
        status: status(&wire.uid, &wire.status_json)?,
        uid: wire.uid,
        namespace: wire.namespace,
        name: wire.name,
        generation: wire.generation,
        terminated: wire.terminated,
    })
}

/// `None` for an element of a kind that this version does not know.
pub(super) fn pod_change(wire: v1::WatchPodsResponse) -> Result<Option<PodChange>, AgentError> {
    use v1::watch_pods_response::Item;
    let Some(item) = wire.item else { return Ok(None) };
    Ok(Some(match item {
        Item::List(list) => PodChange::List(list.pods.into_iter().map(pod_state).collect::<Result<_, _>>()?),
        Item::Changed(state) => PodChange::Changed(pod_state(state)?),
        Item::Gone(gone) => PodChange::Gone(PodGone {
            status: status(&gone.uid, &gone.status_json)?,
            uid: gone.uid,
            generation: gone.generation,
        }),
        Item::Event(event) => PodChange::Event(PodEvent {
            uid: event.uid,
            namespace: event.namespace,
            name: event.name,
            warning: event.r#type == "Warning",
            reason: event.reason,
            message: event.message,
            field_path: event.field_path,
            time: time(event.time),
        }),
    }))
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

pub(super) fn facts(wire: v1::NodeFacts) -> NodeFacts {
    NodeFacts {
        hostname: wire.hostname,
        machine_id: wire.machine_id,
        system_uuid: wire.system_uuid,
        boot_id: wire.boot_id,
        kernel_version: wire.kernel_version,
        os_image: wire.os_image,
        operating_system: wire.operating_system,
        architecture: wire.architecture,
        container_runtime_version: wire.container_runtime_version,
        agent_version: wire.agent_version,
        cpu_milli: wire.cpu_milli,
        memory_bytes: wire.memory_bytes,
        ephemeral_storage_bytes: wire.ephemeral_storage_bytes,
        max_pods: wire.max_pods,
        pod_cidr: wire.pod_cidr,
        images: wire
            .images
            .into_iter()
            .map(|image| HostImage { names: image.names, size_bytes: image.size_bytes })
            .collect(),
        disk_pressure: given(wire.disk_pressure),
        memory_pressure: given(wire.memory_pressure),
        snapshotter: wire.snapshotter,
        not_ready: given(wire.not_ready),
    }
}

fn usage(wire: Option<v1::Usage>) -> Usage {
    let wire = wire.unwrap_or_default();
    Usage {
        cpu_core_nanoseconds: wire.cpu_core_nanoseconds,
        memory_usage_bytes: wire.memory_usage_bytes,
        memory_working_set_bytes: wire.memory_working_set_bytes,
        memory_rss_bytes: wire.memory_rss_bytes,
    }
}

pub(super) fn stats(wire: v1::NodeStats) -> NodeStats {
    let container = |container: v1::ContainerStats| ContainerStats {
        name: container.name,
        started: time(container.started),
        usage: usage(container.usage),
    };
    let pod = |pod: v1::PodStats| PodStats {
        uid: pod.uid,
        namespace: pod.namespace,
        name: pod.name,
        containers: pod.containers.into_iter().map(container).collect(),
    };
    NodeStats { time: time(wire.time), usage: usage(wire.usage), pods: wire.pods.into_iter().map(pod).collect() }
}

/// `None` for an element of a kind that this version does not know.
pub(super) fn cache_change(wire: v1::WatchImageCachesResponse) -> Option<CacheChange> {
    use v1::watch_image_caches_response::Item;
    Some(match wire.item? {
        Item::List(list) => CacheChange::List(list.caches.into_iter().map(cache_state).collect()),
        Item::Changed(state) => CacheChange::Changed(cache_state(state)),
        Item::Deleted(id) => CacheChange::Deleted(id),
    })
}

fn cache_state(wire: v1::ImageCacheState) -> CacheState {
    let phase = match wire.phase() {
        v1::ImageCachePhase::Unspecified | v1::ImageCachePhase::Creating => CachePhase::Creating,
        v1::ImageCachePhase::Ready => CachePhase::Ready,
        v1::ImageCachePhase::Failed if wire.ask_again => CachePhase::Interrupted,
        v1::ImageCachePhase::Failed => CachePhase::Failed,
        v1::ImageCachePhase::Updating => CachePhase::Updating,
        v1::ImageCachePhase::UpdateFailed if wire.ask_again => CachePhase::UpdateInterrupted,
        v1::ImageCachePhase::UpdateFailed => CachePhase::UpdateFailed,
    };
    let image = |image: v1::CachedImage| CachedImage {
        reference: image.reference,
        manifest_digest: image.manifest_digest,
        index_digest: image.index_digest,
        size_bytes: image.size_bytes,
    };
    let event = |event: v1::BuildEvent| BuildEvent {
        name: event.name,
        reason: event.reason,
        message: event.message,
        warning: event.r#type == "Warning",
        time: time(event.time),
    };
    CacheState {
        phase,
        id: wire.id,
        name: wire.name,
        generation: wire.generation,
        progress_percent: wire.progress_percent.min(100),
        reason: wire.reason,
        refresh: wire.refresh,
        images: wire.images.into_iter().map(image).collect(),
        events: wire.events.into_iter().map(event).collect(),
        started: time(wire.started),
        last_updated: time(wire.last_updated),
        verifies_credentials: wire.verifies_credentials,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::agent::ChosenCache;

    #[test]
    fn what_is_to_be_asked_for_again_has_not_failed() {
        for (phase, ask_again, expected) in [
            (v1::ImageCachePhase::Failed, false, CachePhase::Failed),
            (v1::ImageCachePhase::Failed, true, CachePhase::Interrupted),
            (v1::ImageCachePhase::UpdateFailed, false, CachePhase::UpdateFailed),
            (v1::ImageCachePhase::UpdateFailed, true, CachePhase::UpdateInterrupted),
        ] {
            let wire = v1::ImageCacheState { phase: phase.into(), ask_again, ..Default::default() };
            assert_eq!(cache_state(wire).phase, expected);
        }
    }

    #[test]
    fn pod_travels_as_its_own_json() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "namespace": "b", "uid": "u"}, "spec": {"containers": [{"name": "c"}]}
        }))
        .unwrap();
        let run = RunPod {
            pod: Arc::new(pod.clone()),
            config_maps: vec![ResolvedObject { name: "m".into(), data: [("k".into(), Bytes::from("v"))].into() }],
            secrets: vec![],
            tokens: vec![],
            service_env: vec![("A".into(), "1".into())],
            credentials: vec![],
            image_cache: Some(ChosenCache {
                id: "imc-1".into(),
                is_automatic: true,
                policy: Some(VerificationPolicy::AlwaysVerify),
            }),
            plain_http_registries: vec![],
            insecure_registries: vec![],
        };
        let wire = run_pod(&run).unwrap();
        assert_eq!(serde_json::from_slice::<Pod>(&wire.pod_json).unwrap(), pod);
        let value: serde_json::Value = serde_json::from_slice(&wire.pod_json).unwrap();
        assert_eq!((&value["kind"], &value["apiVersion"]), (&"Pod".into(), &"v1".into()));
        assert_eq!((wire.image_cache_id.as_str(), wire.image_cache_automatic), ("imc-1", true));
        assert_eq!(
            wire.image_pull_credentials_verification_policy(),
            v1::ImagePullCredentialsVerificationPolicy::AlwaysVerify
        );
        assert_eq!(wire.config_maps[0].data["k"], "v");
    }

    #[test]
    fn status_that_is_no_json_is_an_error_not_a_panic() {
        let state = v1::PodState { uid: "u".into(), status_json: Bytes::from("{"), ..Default::default() };
        let wire = v1::WatchPodsResponse { item: Some(v1::watch_pods_response::Item::Changed(state)) };
        assert!(matches!(pod_change(wire), Err(AgentError::Malformed { .. })));
        assert_eq!(pod_change(v1::WatchPodsResponse { item: None }).unwrap(), None);
    }
}
