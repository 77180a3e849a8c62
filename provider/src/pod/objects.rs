//! What a pod refers to: the ConfigMaps, Secrets, tokens and logins that the agent cannot look up.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, Pod, PodSpec, Volume};

use crate::cluster::objects::TokenWish;

/// What a volume gets when it names no lifetime: an hour, as the kubelet.
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

/// Names of what a pod refers to, all in its own namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct References {
    /// ConfigMaps of volumes and environment.
    pub(super) config_maps: BTreeSet<String>,
    /// Secrets of volumes and environment.
    pub(super) secrets: BTreeSet<String>,
    /// Secrets with registry logins, in order.
    pub(super) pull_secrets: Vec<String>,
    /// Tokens of projected volumes.
    pub(super) tokens: BTreeSet<TokenWish>,
    /// The service account that the tokens are of.
    pub(super) service_account: String,
}

impl References {
    /// Reads them from the pod.
    pub(super) fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let mut found = Self {
            service_account: spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
            ..Self::default()
        };
        for volume in spec.volumes.iter().flatten() {
            found.volume(volume);
        }
        for (env, env_from) in environments(spec) {
            for variable in env {
                found.variable(variable);
            }
            for source in env_from {
                found.source(source);
            }
        }
        for secret in spec.image_pull_secrets.iter().flatten() {
            if !secret.name.is_empty() && !found.pull_secrets.contains(&secret.name) {
                found.pull_secrets.push(secret.name.clone());
            }
        }
        found
    }

    fn volume(&mut self, volume: &Volume) {
        if let Some(map) = &volume.config_map {
            self.config_map(&map.name);
        }
        if let Some(secret) = &volume.secret {
            self.secret(secret.secret_name.as_deref().unwrap_or_default());
        }
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for source in projected {
            if let Some(map) = &source.config_map {
                self.config_map(&map.name);
            }
            if let Some(secret) = &source.secret {
                self.secret(&secret.name);
            }
            if let Some(token) = &source.service_account_token {
                self.tokens.insert(TokenWish {
                    audience: token.audience.clone().unwrap_or_default(),
                    expiration_seconds: token.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS),
                });
            }
        }
    }

    fn variable(&mut self, variable: &EnvVar) {
        let Some(from) = &variable.value_from else { return };
        if let Some(map) = &from.config_map_key_ref {
            self.config_map(&map.name);
        }
        if let Some(secret) = &from.secret_key_ref {
            self.secret(&secret.name);
        }
    }

    fn source(&mut self, source: &EnvFromSource) {
        if let Some(map) = &source.config_map_ref {
            self.config_map(&map.name);
        }
        if let Some(secret) = &source.secret_ref {
            self.secret(&secret.name);
        }
    }

    fn config_map(&mut self, name: &str) {
        if !name.is_empty() {
            self.config_maps.insert(name.to_owned());
        }
    }

    fn secret(&mut self, name: &str) {
        if !name.is_empty() {
            self.secrets.insert(name.to_owned());
        }
    }
}

/// The environment of every container, of each kind.
fn environments(spec: &PodSpec) -> impl Iterator<Item = (&[EnvVar], &[EnvFromSource])> {
    let plain = spec.init_containers.iter().flatten().chain(&spec.containers);
    let plain = plain.map(|container| (slice(&container.env), slice(&container.env_from)));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    plain.chain(ephemeral.map(|container| (slice(&container.env), slice(&container.env_from))))
}

fn slice<T>(list: &Option<Vec<T>>) -> &[T] {
    list.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_place_that_can_name_an_object_is_read() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {
                "serviceAccountName": "sa",
                "imagePullSecrets": [{"name": "pull-b"}, {"name": "pull-a"}, {"name": "pull-b"}, {"name": ""}],
                "volumes": [
                    {"name": "1", "configMap": {"name": "cm-volume"}},
                    {"name": "2", "secret": {"secretName": "s-volume"}},
                    {"name": "3", "projected": {"sources": [
                        {"configMap": {"name": "cm-projected"}}, {"secret": {"name": "s-projected"}},
                        {"serviceAccountToken": {"path": "t"}},
                        {"serviceAccountToken": {"path": "u", "audience": "vault", "expirationSeconds": 600}},
                        {"downwardAPI": {}}
                    ]}},
                    {"name": "4", "emptyDir": {}}
                ],
                "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "cm-init"}}]}],
                "containers": [{"name": "c", "env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm-env", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-env", "key": "k"}}},
                    {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
                ], "envFrom": [{"secretRef": {"name": "s-from"}}]}],
                "ephemeralContainers": [{"name": "e", "envFrom": [{"secretRef": {"name": "s-ephemeral"}}]}]
            }
        }))
        .unwrap();
        let found = References::of(&pod);
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(found.config_maps, names(&["cm-volume", "cm-projected", "cm-init", "cm-env"]));
        assert_eq!(found.secrets, names(&["s-volume", "s-projected", "s-env", "s-from", "s-ephemeral"]));
        assert_eq!(found.pull_secrets, ["pull-b", "pull-a"]);
        assert_eq!(found.service_account, "sa");
        let wish = |audience: &str, expiration_seconds| TokenWish { audience: audience.into(), expiration_seconds };
        assert_eq!(found.tokens, [wish("", 3600), wish("vault", 600)].into());
    }

    #[test]
    fn a_pod_without_anything_refers_to_nothing() {
        assert_eq!(References::of(&Pod::default()), References::default());
    }
}
