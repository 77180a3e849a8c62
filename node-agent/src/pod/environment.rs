//! A container's environment, command and arguments, as a kubelet makes them (`pkg/kubelet/kubelet_pods.go`).
//!
//! Order, later ones win: Service variables, `envFrom`, `env`. `$(NAME)` in a value is replaced by what has been defined
//! before it, in command and arguments by anything; `$$` is a plain `$`; what is not defined stays as written.
//!
//! Pure: no I/O, no clock, no randomness.

use std::{collections::HashMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVarSource, Pod};

use super::{
    downward::{self, DownwardError, NodeResources},
    objects::{ObjectData, PodObjects},
};

/// What is known of a pod only once it has its sandbox.
#[derive(Debug, Clone, Default)]
pub struct PodFacts {
    /// The pod's addresses, the primary one first.
    pub pod_ips: Vec<IpAddr>,
    /// The node's addresses, the primary one first.
    pub host_ips: Vec<IpAddr>,
    /// What a container without limits is told.
    pub node: NodeResources,
}

/// The process's surroundings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Variables, in order, each name once.
    pub env: Vec<(String, String)>,
    /// `command`, expanded.
    pub command: Vec<String>,
    /// `args`, expanded.
    pub args: Vec<String>,
    /// Keys of `envFrom` sources that cannot be names of variables, by source: for an event.
    pub skipped: Vec<(String, Vec<String>)>,
}

/// Why there is no environment. The container waits with reason `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvironmentError {
    /// A ConfigMap or Secret that is not optional is missing.
    #[error("{kind} {name:?} not found")]
    ObjectNotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A key that is not optional is missing.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    KeyNotFound {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The pod's namespace.
        namespace: String,
        /// The object.
        name: String,
        /// The key.
        key: String,
    },
    /// Bytes that are no text cannot be a variable.
    #[error("key {key} of {kind} {name} is not UTF-8, which an environment variable must be")]
    NotText {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The object.
        name: String,
        /// The key.
        key: String,
    },
    /// The downward API does not have what is asked for.
    #[error(transparent)]
    Downward(#[from] DownwardError),
    /// A source that this agent does not offer.
    #[error("variable {name}: valueFrom.{source_kind} is not supported")]
    Unsupported {
        /// The variable.
        name: String,
        /// `fileKeyRef` ...
        source_kind: &'static str,
    },
}

/// The environment of `container`, an init container or an app container of `pod`.
///
/// # Errors
/// When something that is not optional is missing.
pub fn environment(
    pod: &Pod,
    container: &Container,
    objects: &PodObjects,
    facts: &PodFacts,
) -> Result<Environment, EnvironmentError> {
    let mut variables = Variables::default();
    let mut skipped = Vec::new();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let service_env: HashMap<_, _> = if links { objects.service_env.iter().cloned().collect() } else { HashMap::new() };
    for source in container.env_from.iter().flatten() {
        add_source(source, objects, &mut variables, &mut skipped)?;
    }
    for entry in container.env.iter().flatten() {
        let value = match (&entry.value, &entry.value_from) {
            (_, Some(source)) => match value_from(pod, container, objects, facts, (&entry.name, source))? {
                Some(value) => value,
                None => continue,
            },
            (Some(text), None) => expand(text, |name| variables.get(name).or_else(|| service_env.get(name))),
            (None, None) => String::new(),
        };
        variables.set(&entry.name, value);
    }
    if links {
        for (name, value) in &objects.service_env {
            if variables.get(name).is_none() {
                variables.set(name, value.clone());
            }
        }
    }
    let expand_all = |texts: &Option<Vec<String>>| -> Vec<String> {
        texts.iter().flatten().map(|text| expand(text, |name| variables.get(name))).collect()
    };
    let (command, args) = (expand_all(&container.command), expand_all(&container.args));
    Ok(Environment { env: variables.in_order, command, args, skipped })
}

/// Variables in the order of their first definition.
#[derive(Debug, Default)]
struct Variables {
    in_order: Vec<(String, String)>,
    positions: HashMap<String, usize>,
}

impl Variables {
    fn get(&self, name: &str) -> Option<&String> {
        self.positions.get(name).map(|&position| &self.in_order[position].1)
    }

    fn set(&mut self, name: &str, value: String) {
        match self.positions.get(name) {
            Some(&position) => self.in_order[position].1 = value,
            None => {
                self.positions.insert(name.to_owned(), self.in_order.len());
                self.in_order.push((name.to_owned(), value));
            }
        }
    }
}

fn add_source(
    source: &EnvFromSource,
    objects: &PodObjects,
    variables: &mut Variables,
    skipped: &mut Vec<(String, Vec<String>)>,
) -> Result<(), EnvironmentError> {
    let (kind, title, name, optional, found) = if let Some(reference) = &source.config_map_ref {
        let found = objects.config_maps.get(&reference.name);
        ("configmap", "ConfigMap", &reference.name, reference.optional, found)
    } else if let Some(reference) = &source.secret_ref {
        let found = objects.secrets.get(&reference.name);
        ("secret", "Secret", &reference.name, reference.optional, found)
    } else {
        return Ok(());
    };
    let Some(data) = found else {
        if optional == Some(true) {
            return Ok(());
        }
        return Err(EnvironmentError::ObjectNotFound { kind, name: name.clone() });
    };
    let mut bad = Vec::new();
    for (key, value) in data {
        let variable = format!("{}{key}", source.prefix.as_deref().unwrap_or_default());
        match std::str::from_utf8(value) {
            Ok(text) if is_variable_name(&variable) => variables.set(&variable, text.to_owned()),
            Ok(_) => bad.push(variable),
            Err(_) => return Err(EnvironmentError::NotText { kind: title, name: name.clone(), key: key.clone() }),
        }
    }
    if !bad.is_empty() {
        skipped.push((format!("{title} {name}"), bad));
    }
    Ok(())
}

/// Any printable ASCII but `=`, since Kubernetes 1.34 (`IsRelaxedEnvVarName`).
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=')
}

/// None for an optional key that is missing: the variable is then not set at all.
fn value_from(
    pod: &Pod,
    container: &Container,
    objects: &PodObjects,
    facts: &PodFacts,
    (variable, source): (&str, &EnvVarSource),
) -> Result<Option<String>, EnvironmentError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        return Ok(Some(downward::env_field(pod, &field.field_path, &facts.pod_ips, &facts.host_ips)?));
    }
    if let Some(resource) = &source.resource_field_ref {
        return Ok(Some(downward::resource(pod, &container.name, resource, &facts.node)?));
    }
    if let Some(selector) = &source.config_map_key_ref {
        let wanted =
            Key { kind: "ConfigMap", namespace, name: &selector.name, key: &selector.key, optional: selector.optional };
        return wanted.value(objects.config_maps.get(&selector.name));
    }
    if let Some(selector) = &source.secret_key_ref {
        let wanted =
            Key { kind: "Secret", namespace, name: &selector.name, key: &selector.key, optional: selector.optional };
        return wanted.value(objects.secrets.get(&selector.name));
    }
    let source_kind = if source.file_key_ref.is_some() { "fileKeyRef" } else { "an unknown source" };
    Err(EnvironmentError::Unsupported { name: variable.to_owned(), source_kind })
}

/// One key of a ConfigMap or Secret.
struct Key<'a> {
    kind: &'static str,
    namespace: &'a str,
    name: &'a str,
    key: &'a str,
    optional: Option<bool>,
}

impl Key<'_> {
    fn value(&self, object: Option<&ObjectData>) -> Result<Option<String>, EnvironmentError> {
        let optional = self.optional == Some(true);
        let Some(data) = object else {
            let kind = if self.kind == "Secret" { "secret" } else { "configmap" };
            return if optional {
                Ok(None)
            } else {
                Err(EnvironmentError::ObjectNotFound { kind, name: self.name.to_owned() })
            };
        };
        let Some(bytes) = data.get(self.key) else {
            return if optional {
                Ok(None)
            } else {
                Err(EnvironmentError::KeyNotFound {
                    kind: self.kind,
                    namespace: self.namespace.to_owned(),
                    name: self.name.to_owned(),
                    key: self.key.to_owned(),
                })
            };
        };
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => {
                Err(EnvironmentError::NotText { kind: self.kind, name: self.name.to_owned(), key: self.key.to_owned() })
            }
        }
    }
}

/// Replaces `$(NAME)` by what `lookup` has for it; `$$` becomes `$`.
pub fn expand<'v>(text: &str, lookup: impl Fn(&str) -> Option<&'v String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&rest[at..at + name.len() + 3]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn run(container: serde_json::Value, objects: &PodObjects) -> Result<Environment, EnvironmentError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [container.clone()]},
        }))
        .unwrap();
        let container = serde_json::from_value(container).unwrap();
        let facts = PodFacts {
            pod_ips: vec!["10.1.0.2".parse().unwrap()],
            host_ips: vec!["192.0.2.1".parse().unwrap()],
            node: NodeResources { cpu_milli: 2000, memory_bytes: 1 << 30, ephemeral_storage_bytes: 1 << 40 },
        };
        environment(&pod, &container, objects, &facts)
    }

    fn objects() -> PodObjects {
        let data = |pairs: &[(&str, &[u8])]| -> ObjectData {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), v.to_vec())).collect()
        };
        PodObjects {
            config_maps: BTreeMap::from([("c".into(), data(&[("A", b"1"), ("B=x", b"2"), ("bin", b"ok")]))]),
            secrets: BTreeMap::from([("s".into(), data(&[("pw", b"hunter2"), ("raw", b"\xff")]))]),
            tokens: vec![],
            service_env: vec![("DB_SERVICE_HOST".into(), "10.96.0.9".into()), ("A".into(), "service".into())],
        }
    }

    #[test]
    fn later_sources_win_and_references_see_what_is_before_them() {
        let environment = run(
            json!({
                "name": "c",
                "command": ["run", "$(A)", "$(LATE)", "$(NONE)", "$$(A)"],
                "args": ["--ip=$(IP)"],
                "envFrom": [{"configMapRef": {"name": "c"}, "prefix": "P_"}, {"secretRef": {"name": "gone", "optional": true}}],
                "env": [
                    {"name": "A", "value": "own"},
                    {"name": "URL", "value": "http://$(DB_SERVICE_HOST)/$(A)/$(LATE)"},
                    {"name": "LATE", "value": "l"},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                    {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "x", "optional": true}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "EMPTY"},
                ],
            }),
            &objects(),
        )
        .unwrap();
        let get = |name: &str| environment.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("P_A"), Some("1"));
        assert_eq!(get("A"), Some("own"));
        assert_eq!(get("URL"), Some("http://10.96.0.9/own/$(LATE)"));
        assert_eq!(get("IP"), Some("10.1.0.2"));
        assert_eq!(get("PW"), Some("hunter2"));
        assert_eq!(get("GONE"), None);
        assert_eq!(get("CPU"), Some("2"));
        assert_eq!(get("EMPTY"), Some(""));
        assert_eq!(get("DB_SERVICE_HOST"), Some("10.96.0.9"));
        assert_eq!(environment.command, ["run", "own", "l", "$(NONE)", "$(A)"]);
        assert_eq!(environment.args, ["--ip=10.1.0.2"]);
        assert_eq!(environment.skipped, [("ConfigMap c".to_owned(), vec!["P_B=x".to_owned()])]);
    }

    #[rstest]
    #[case(json!({"envFrom": [{"configMapRef": {"name": "x"}}]}), "configmap \"x\" not found")]
    #[case(json!({"env": [{"name": "V", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k"}}}]}), "secret \"x\" not found")]
    #[case(json!({"env": [{"name": "V", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
        "couldn't find key k in Secret shop/s")]
    #[case(json!({"env": [{"name": "V", "valueFrom": {"secretKeyRef": {"name": "s", "key": "raw"}}}]}),
        "key raw of Secret s is not UTF-8, which an environment variable must be")]
    #[case(json!({"env": [{"name": "V", "valueFrom": {"fieldRef": {"fieldPath": "spec.nope"}}}]}),
        "unsupported fieldPath: spec.nope")]
    fn what_is_missing_is_named(#[case] mut container: serde_json::Value, #[case] message: &str) {
        container["name"] = json!("c");
        assert_eq!(run(container, &objects()).unwrap_err().to_string(), message);
    }

    #[rstest]
    #[case("$(A)$(B)", "ab")]
    #[case("$", "$")]
    #[case("$$", "$")]
    #[case("$$$(A)", "$a")]
    #[case("$(A", "$(A")]
    #[case("$(X)", "$(X)")]
    #[case("$x", "$x")]
    #[case("é$(A)é", "éaé")]
    fn expands(#[case] text: &str, #[case] expected: &str) {
        let values = HashMap::from([("A", "a".to_owned()), ("B", "b".to_owned())]);
        assert_eq!(expand(text, |name| values.get(name)), expected);
    }

    proptest! {
        #[test]
        fn text_without_dollar_stays(text in "[^$]*") {
            prop_assert_eq!(expand(&text, |_| None), text);
        }

        #[test]
        fn never_panics(text in "[$()aé]*") {
            let value = "v".to_owned();
            expand(&text, |name| (name == "a").then_some(&value));
        }
    }
}
