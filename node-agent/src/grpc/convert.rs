//! From the wire and back.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use larder_proto::v1;
use tonic::Status;

use crate::{
    image::{
        ChosenCache, Credential, Login, RegistryAccess,
        verification::{Origin, Policy},
    },
    pod::{
        events::PodEvent,
        objects::{ObjectData, PodObjects, ServiceAccountToken},
        publisher::{Change, PodSnapshot},
        wish::PodWish,
    },
};

/// A UID is part of paths on this host, so it is not taken on trust.
const MAX_UID_BYTES: usize = 64;

/// A pod and what it refers to.
pub(super) fn wish(request: v1::RunPodRequest) -> Result<PodWish, Status> {
    let pod: Pod = serde_json::from_slice(&request.pod_json)
        .map_err(|error| Status::invalid_argument(format!("decode pod_json: {error}")))?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    check_uid(uid)?;
    for (name, value) in [("namespace", &pod.metadata.namespace), ("name", &pod.metadata.name)] {
        let value = value.as_deref().unwrap_or_default();
        if value.is_empty() || value.len() > 253 || value.contains('/') || value.starts_with('.') {
            return Err(Status::invalid_argument(format!("metadata.{name} {value:?} is no name of an object")));
        }
    }
    let tokens = request.tokens.into_iter().map(|token| ServiceAccountToken {
        audience: token.audience,
        expiration_seconds: token.expiration_seconds,
        token: token.token,
    });
    let policy = policy(request.image_pull_credentials_verification_policy);
    Ok(PodWish {
        pod,
        objects: PodObjects {
            config_maps: objects(request.config_maps),
            secrets: objects(request.secrets),
            tokens: tokens.collect(),
            service_env: request.service_env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
        },
        access: RegistryAccess {
            credentials: request.credentials.into_iter().map(credential).collect(),
            plain_http: request.plain_http_registries,
            insecure: request.insecure_registries,
        },
        cache: cache(request.image_cache_id, request.image_cache_automatic, policy),
    })
}

fn cache(id: String, is_automatic: bool, policy: Option<Policy>) -> Option<ChosenCache> {
    let origin = if is_automatic { Origin::Automatic } else { Origin::ByHand };
    (!id.is_empty()).then_some(ChosenCache { id, origin, policy })
}

/// A cache's own policy. One of a later provider, which means nothing here, must not come to less than it meant there.
fn policy(wire: i32) -> Option<Policy> {
    use v1::ImagePullCredentialsVerificationPolicy as Wire;
    match Wire::try_from(wire) {
        Ok(Wire::Unspecified) => None,
        Ok(Wire::NeverVerify) => Some(Policy::NeverVerify),
        Ok(Wire::NeverVerifyPreloadedImages) => Some(Policy::NeverVerifyPreloadedImages),
        Ok(Wire::NeverVerifyAllowlistedImages) => Some(Policy::NeverVerifyAllowlistedImages),
        Ok(Wire::AlwaysVerify) | Err(_) => Some(Policy::AlwaysVerify),
    }
}

/// Refuses a UID that could not be a folder's name.
pub(super) fn check_uid(uid: &str) -> Result<(), Status> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if (1..=MAX_UID_BYTES).contains(&uid.len()) && uid.bytes().all(valid) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("metadata.uid {uid:?} is not a UID")))
}

fn objects(objects: Vec<v1::ResolvedObject>) -> BTreeMap<String, ObjectData> {
    let data = |data: std::collections::HashMap<String, prost_bytes::Bytes>| -> ObjectData {
        data.into_iter().map(|(key, bytes)| (key, bytes.to_vec())).collect()
    };
    objects.into_iter().map(|object| (object.name, data(object.data))).collect()
}

/// A registry login.
pub(super) fn credential(credential: v1::RegistryCredential) -> Credential {
    let login = if !credential.registry_token.is_empty() {
        Login::RegistryToken(credential.registry_token)
    } else if !credential.identity_token.is_empty() {
        Login::IdentityToken(credential.identity_token)
    } else {
        Login::Basic { username: credential.username, password: credential.password }
    };
    Credential { registry: credential.registry, login }
}

/// A time span; negative ones are none.
pub(super) fn duration(duration: prost_types::Duration) -> Duration {
    Duration::try_from(duration).unwrap_or(Duration::ZERO)
}

/// A point in time.
pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// A point in time from the wire; none when there is no such time.
pub(super) fn time(timestamp: prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(timestamp.seconds, timestamp.nanos).ok()
}

/// One element of the stream of changes.
pub(super) fn change(change: &Change) -> Result<v1::WatchPodsResponse, Status> {
    use v1::watch_pods_response::Item;
    let item = match change {
        Change::Changed(snapshot) => Item::Changed(pod_state(snapshot)?),
        Change::Gone(snapshot) => Item::Gone(v1::PodGone {
            uid: snapshot.identity.uid.clone(),
            generation: snapshot.generation,
            status_json: status_json(snapshot)?,
        }),
        Change::Event(event) => Item::Event(pod_event(event)),
    };
    Ok(v1::WatchPodsResponse { item: Some(item) })
}

/// What the agent knows of a pod.
pub(super) fn pod_state(snapshot: &PodSnapshot) -> Result<v1::PodState, Status> {
    Ok(v1::PodState {
        uid: snapshot.identity.uid.clone(),
        namespace: snapshot.identity.namespace.clone(),
        name: snapshot.identity.name.clone(),
        generation: snapshot.generation,
        status_json: status_json(snapshot)?,
        terminated: snapshot.terminated,
    })
}

fn status_json(snapshot: &PodSnapshot) -> Result<prost_bytes::Bytes, Status> {
    let json = serde_json::to_vec(&snapshot.status);
    json.map(Into::into).map_err(|error| Status::internal(format!("encode status: {error}")))
}

fn pod_event(event: &PodEvent) -> v1::PodEvent {
    v1::PodEvent {
        uid: event.uid.clone(),
        namespace: event.namespace.clone(),
        name: event.name.clone(),
        r#type: event.notice.severity.as_str().to_owned(),
        reason: event.notice.reason.to_owned(),
        message: event.notice.message.clone(),
        field_path: event.field_path.clone(),
        time: Some(timestamp(event.time)),
    }
}

/// The bytes of the wire types.
mod prost_bytes {
    pub(super) use bytes::Bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pod: &serde_json::Value) -> v1::RunPodRequest {
        v1::RunPodRequest { pod_json: pod.to_string().into_bytes().into(), ..v1::RunPodRequest::default() }
    }

    #[test]
    fn what_could_leave_its_folder_is_refused() {
        for metadata in [
            serde_json::json!({"name": "a", "namespace": "b"}),
            serde_json::json!({"uid": "../../etc", "name": "a", "namespace": "b"}),
            serde_json::json!({"uid": "u", "name": "../a", "namespace": "b"}),
            serde_json::json!({"uid": "u", "name": "..", "namespace": "b"}),
            serde_json::json!({"uid": "u", "name": "a", "namespace": ""}),
        ] {
            let status = wish(request(&serde_json::json!({"metadata": metadata}))).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{metadata}");
        }
        let garbage = v1::RunPodRequest { pod_json: b"{".as_slice().into(), ..v1::RunPodRequest::default() };
        assert_eq!(wish(garbage).unwrap_err().code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn a_wish_comes_whole() {
        let request = v1::RunPodRequest {
            secrets: vec![v1::ResolvedObject {
                name: "s".into(),
                data: [("k".to_owned(), b"v".as_slice().into())].into(),
            }],
            credentials: vec![
                v1::RegistryCredential { username: "u".into(), password: "p".into(), ..Default::default() },
                v1::RegistryCredential { identity_token: "i".into(), ..Default::default() },
                v1::RegistryCredential { registry_token: "r".into(), ..Default::default() },
            ],
            image_cache_id: "imc-1".into(),
            image_cache_automatic: true,
            image_pull_credentials_verification_policy: v1::ImagePullCredentialsVerificationPolicy::NeverVerify.into(),
            ..request(&serde_json::json!({"metadata": {"uid": "u", "name": "a", "namespace": "b"}}))
        };
        let wish = wish(request).unwrap();
        assert_eq!(wish.objects.secrets["s"]["k"], b"v");
        let expected = ChosenCache { id: "imc-1".into(), origin: Origin::Automatic, policy: Some(Policy::NeverVerify) };
        assert_eq!(wish.cache, Some(expected));
        let logins: Vec<_> = wish.access.credentials.into_iter().map(|credential| credential.login).collect();
        assert!(
            logins
                == [
                    Login::Basic { username: "u".into(), password: "p".into() },
                    Login::IdentityToken("i".into()),
                    Login::RegistryToken("r".into())
                ]
        );
    }

    proptest::proptest! {
        #[test]
        fn times_survive_the_wire(second in -100_000_000_000_i64..100_000_000_000, nano in 0..1_000_000_000_i32) {
            let there = Timestamp::new(second, nano).unwrap();
            proptest::prop_assert_eq!(time(timestamp(there)), Some(there));
        }
    }
}
