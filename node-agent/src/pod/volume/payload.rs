//! What the files of a volume hold.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection};

use crate::pod::{
    downward::{self, DownwardError, NodeResources},
    objects::{ObjectData, PodObjects},
};

/// Mode of a file for which nothing else is said.
const DEFAULT_MODE: u32 = 0o644;
/// Life of a token for which nothing else is said, in seconds.
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

/// What content is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct SourceContext<'a> {
    pub(super) pod: &'a Pod,
    pub(super) objects: &'a PodObjects,
    pub(super) node: &'a NodeResources,
}

/// Files by their path below the volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) files: BTreeMap<String, PayloadFile>,
}

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PayloadFile {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    pub(super) user: Option<u32>,
}

impl std::fmt::Debug for PayloadFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content may be a secret.
        write!(f, "{} bytes, mode {:o}", self.content.len(), self.mode)
    }
}

/// Why a volume has no content. The words are the kubelet's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PayloadError {
    /// An object that is not optional is missing.
    #[error("{kind} {name:?} not found")]
    ObjectNotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A key that is not optional is missing.
    #[error("references non-existent {kind} key: {key}")]
    KeyNotFound {
        /// `config` or `secret`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// A path that would lead out of the volume.
    #[error("path {0:?} is not a relative path below the volume")]
    BadPath(String),
    /// No token came for this projection.
    #[error("no token of the service account for audience {audience:?}")]
    NoToken {
        /// The audience; empty for the API server's default.
        audience: String,
    },
    /// A source that this agent does not offer.
    #[error("projected source {0} is not supported: use configMap, secret, downwardAPI or serviceAccountToken")]
    UnsupportedSource(&'static str),
    /// The downward API does not have what is asked for.
    #[error(transparent)]
    Downward(#[from] DownwardError),
}

/// How the files of one source are owned.
#[derive(Debug, Clone, Copy)]
struct Ownership {
    mode: u32,
    user: Option<u32>,
}

/// A ConfigMap or Secret that a volume names.
struct Object<'a> {
    kind: &'static str,
    key_kind: &'static str,
    name: &'a str,
    optional: bool,
    items: Option<&'a [KeyToPath]>,
    data: Option<&'a ObjectData>,
}

impl Payload {
    /// The content of a volume; none when it is of another kind.
    pub(super) fn of(volume: &Volume, context: &SourceContext<'_>) -> Result<Option<Self>, PayloadError> {
        let objects = context.objects;
        let mut payload = Self::default();
        if let Some(source) = &volume.config_map {
            let object = config_map(&source.name, source.optional, source.items.as_deref(), objects);
            payload.add_object(&object, Ownership::of(source.default_mode, source.default_user))?;
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let object = secret(name, source.optional, source.items.as_deref(), objects);
            payload.add_object(&object, Ownership::of(source.default_mode, source.default_user))?;
        } else if let Some(source) = &volume.downward_api {
            let own = Ownership::of(source.default_mode, source.default_user);
            payload.add_downward(source.items.as_deref().unwrap_or_default(), context, own)?;
        } else if let Some(source) = &volume.projected {
            let own = Ownership::of(source.default_mode, source.default_user);
            for projection in source.sources.iter().flatten() {
                payload.add_projection(projection, context, own)?;
            }
        } else {
            return Ok(None);
        }
        Ok(Some(payload))
    }

    fn add_projection(
        &mut self,
        projection: &VolumeProjection,
        context: &SourceContext<'_>,
        own: Ownership,
    ) -> Result<(), PayloadError> {
        let objects = context.objects;
        if let Some(source) = &projection.config_map {
            self.add_object(&config_map(&source.name, source.optional, source.items.as_deref(), objects), own)
        } else if let Some(source) = &projection.secret {
            self.add_object(&secret(&source.name, source.optional, source.items.as_deref(), objects), own)
        } else if let Some(source) = &projection.downward_api {
            self.add_downward(source.items.as_deref().unwrap_or_default(), context, own)
        } else if let Some(source) = &projection.service_account_token {
            let audience = source.audience.as_deref().unwrap_or_default();
            let seconds = source.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
            let fits = |token: &&crate::pod::objects::ServiceAccountToken| {
                token.audience == audience && token.expiration_seconds == seconds
            };
            let token = objects.tokens.iter().find(fits);
            let token = token.ok_or_else(|| PayloadError::NoToken { audience: audience.to_owned() })?;
            let own = own.with(None, source.user);
            self.add(&source.path, token.token.clone().into_bytes(), token_ownership(context.pod, own))
        } else if projection.cluster_trust_bundle.is_some() {
            Err(PayloadError::UnsupportedSource("clusterTrustBundle"))
        } else if projection.pod_certificate.is_some() {
            Err(PayloadError::UnsupportedSource("podCertificate"))
        } else {
            Ok(())
        }
    }

    fn add_object(&mut self, object: &Object<'_>, own: Ownership) -> Result<(), PayloadError> {
        let Some(data) = object.data else {
            if object.optional {
                return Ok(());
            }
            return Err(PayloadError::ObjectNotFound { kind: object.kind, name: object.name.to_owned() });
        };
        let Some(items) = object.items else {
            for (key, content) in data {
                self.add(key, content.clone(), own)?;
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(content) => self.add(&item.path, content.clone(), own.with(item.mode, item.user))?,
                None if object.optional => {}
                None => return Err(PayloadError::KeyNotFound { kind: object.key_kind, key: item.key.clone() }),
            }
        }
        Ok(())
    }

    fn add_downward(
        &mut self,
        items: &[DownwardAPIVolumeFile],
        context: &SourceContext<'_>,
        own: Ownership,
    ) -> Result<(), PayloadError> {
        for item in items {
            let content = if let Some(field) = &item.field_ref {
                downward::metadata_field(context.pod, &field.field_path)?
            } else if let Some(resource) = &item.resource_field_ref {
                downward::resource(context.pod, "", resource, context.node)?
            } else {
                String::new()
            };
            self.add(&item.path, content.into_bytes(), own.with(item.mode, item.user))?;
        }
        Ok(())
    }

    fn add(&mut self, path: &str, content: Vec<u8>, own: Ownership) -> Result<(), PayloadError> {
        // `..data` and its like are the names by which an update is switched (see `atomic`).
        let bad = path.is_empty()
            || path.starts_with("..")
            || path.split('/').any(|part| part.is_empty() || part == "." || part == "..");
        if bad {
            return Err(PayloadError::BadPath(path.to_owned()));
        }
        self.files.insert(path.to_owned(), PayloadFile { content, mode: own.mode, user: own.user });
        Ok(())
    }
}

impl Ownership {
    fn of(mode: Option<i32>, user: Option<i64>) -> Self {
        Self { mode: DEFAULT_MODE, user: None }.with(mode, user)
    }

    fn with(self, mode: Option<i32>, user: Option<i64>) -> Self {
        Self {
            mode: mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(self.mode),
            user: user.and_then(|user| u32::try_from(user).ok()).or(self.user),
        }
    }
}

/// A token is for the pod's user alone when all its containers run as one (`pkg/volume/projected`).
fn token_ownership(pod: &Pod, own: Ownership) -> Ownership {
    let Some(spec) = &pod.spec else { return own };
    let context = spec.security_context.as_ref();
    let default = context.and_then(|context| context.run_as_user);
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let users: Vec<Option<i64>> = all
        .map(|container| container.security_context.as_ref().and_then(|context| context.run_as_user).or(default))
        .collect();
    let common = users.first().copied().flatten().filter(|user| users.iter().all(|other| *other == Some(*user)));
    let has_group = context.is_some_and(|context| context.fs_group.is_some());
    if let Some(user) = common.and_then(|user| u32::try_from(user).ok()) {
        Ownership { mode: 0o600, user: own.user.or(Some(user)) }
    } else if has_group {
        Ownership { mode: 0o600, user: own.user }
    } else {
        own
    }
}

fn config_map<'a>(
    name: &'a str,
    optional: Option<bool>,
    items: Option<&'a [KeyToPath]>,
    objects: &'a PodObjects,
) -> Object<'a> {
    let data = objects.config_maps.get(name);
    Object { kind: "configmap", key_kind: "config", name, optional: optional == Some(true), items, data }
}

fn secret<'a>(
    name: &'a str,
    optional: Option<bool>,
    items: Option<&'a [KeyToPath]>,
    objects: &'a PodObjects,
) -> Object<'a> {
    let data = objects.secrets.get(name);
    Object { kind: "secret", key_kind: "secret", name, optional: optional == Some(true), items, data }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::pod::objects::ServiceAccountToken;

    fn payload(volume: serde_json::Value, security: serde_json::Value) -> Result<Option<Payload>, PayloadError> {
        let mut volume = volume;
        volume["name"] = json!("v");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c"}], "securityContext": security, "volumes": [volume.clone()]},
        }))
        .unwrap();
        let data = || ObjectData::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let objects = PodObjects {
            config_maps: BTreeMap::from([("c".to_owned(), data())]),
            secrets: BTreeMap::from([("s".to_owned(), data())]),
            tokens: vec![ServiceAccountToken {
                audience: String::new(),
                expiration_seconds: 3607,
                token: "tok".into(),
            }],
            service_env: vec![],
        };
        let volume = serde_json::from_value(volume).unwrap();
        Payload::of(&volume, &SourceContext { pod: &pod, objects: &objects, node: &NodeResources::default() })
    }

    fn listing(payload: &Payload) -> Vec<String> {
        let line = |(path, file): (&String, &PayloadFile)| {
            format!("{path}={} {:o} {:?}", String::from_utf8_lossy(&file.content), file.mode, file.user)
        };
        payload.files.iter().map(line).collect()
    }

    #[rstest]
    #[case(json!({"configMap": {"name": "c"}}), &["a=1 644 None", "b=2 644 None"])]
    #[case(json!({"configMap": {"name": "c", "defaultMode": 256, "items": [{"key": "b", "path": "x/y", "mode": 511}]}}), &["x/y=2 777 None"])]
    #[case(json!({"secret": {"secretName": "s", "defaultMode": 256}}), &["a=1 400 None", "b=2 400 None"])]
    #[case(json!({"secret": {"secretName": "gone", "optional": true}}), &[])]
    #[case(json!({"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}), &["l=app=\"web\" 644 None"])]
    #[case(json!({"projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "c", "items": [{"key": "a", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]}}), &["ca.crt=1 644 None", "namespace=shop 644 None", "token=tok 644 None"])]
    fn makes_files(#[case] volume: serde_json::Value, #[case] expected: &[&str]) {
        assert_eq!(listing(&payload(volume, json!({})).unwrap().unwrap()), expected);
    }

    #[rstest]
    #[case(json!({}), "token=tok 644 None")]
    #[case(json!({"runAsUser": 7}), "token=tok 600 Some(7)")]
    #[case(json!({"fsGroup": 9}), "token=tok 600 None")]
    fn a_token_is_for_the_pod_s_user(#[case] security: serde_json::Value, #[case] expected: &str) {
        let source = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}});
        let payload = payload(json!({"projected": {"sources": [source]}}), security).unwrap().unwrap();
        assert_eq!(listing(&payload), [expected]);
    }

    #[rstest]
    #[case(json!({"configMap": {"name": "gone"}}), "configmap \"gone\" not found")]
    #[case(json!({"secret": {"secretName": "gone"}}), "secret \"gone\" not found")]
    #[case(json!({"configMap": {"name": "c", "items": [{"key": "z", "path": "z"}]}}), "references non-existent config key: z")]
    #[case(json!({"configMap": {"name": "c", "items": [{"key": "a", "path": "../x"}]}}), "path \"../x\" is not a relative path below the volume")]
    #[case(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]}}), "no token of the service account for audience \"vault\"")]
    fn what_is_missing_is_named(#[case] volume: serde_json::Value, #[case] message: &str) {
        assert_eq!(payload(volume, json!({})).unwrap_err().to_string(), message);
    }

    #[test]
    fn another_kind_has_no_payload() {
        assert_eq!(payload(json!({"hostPath": {"path": "/"}}), json!({})), Ok(None));
    }
}
