//! What ECI's users can ask for by an annotation or a container's variable, and do not get here: said, never passed over.
//!
//! Where the pod would behave otherwise than was asked for, the policy `eci` refuses it; of the rest an event tells.
//!
//! Pure: no I/O, no clock, no randomness.

use k8s_openapi::api::core::v1::{Container, Pod};

/// Something that was asked for and is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhonoured {
    /// Where it stands: `spec.containers[0].env[1]`.
    pub field: String,
    /// What it is, with its key.
    pub what: String,
    /// What to do instead.
    pub remedy: &'static str,
    /// Whether the pod can run without.
    pub weight: Weight,
}

/// Whether a pod can run without what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It would behave otherwise: a Job would not end, or end otherwise.
    Decides,
    /// It runs all the same.
    Told,
}

/// Values that ask for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// Any.
    Any,
    /// `true`, in any case.
    True,
    /// This one.
    Only(&'static str),
    /// Any number but 0.
    NotZero,
}

/// One key of ECI's.
struct Key {
    key: &'static str,
    asks: Asks,
    weight: Weight,
    /// What happens in its place.
    instead: &'static str,
    remedy: &'static str,
}

/// Variables of a container.
const VARIABLES: [Key; 5] = [
    Key {
        key: "ECI_CONTAINER_TYPE",
        asks: Asks::Only("sidecar"),
        weight: Weight::Decides,
        instead: "the container would not be stopped when the others are done",
        remedy: "remove it, and have the container end by itself when the others are done",
    },
    Key {
        key: "ECI_CONTAINER_IGNORE_EXIT_CODE",
        asks: Asks::True,
        weight: Weight::Decides,
        instead: "the container's failure would be the pod's",
        remedy: "remove it, and have the command end with 0",
    },
    Key {
        key: "ECI_CONTAINER_IGNORE_READY",
        asks: Asks::True,
        weight: Weight::Told,
        instead: "every container counts for whether the pod is ready",
        remedy: "remove it, and put a container that need not be ready into a pod of its own",
    },
    Key {
        key: "ECI_CONTAINER_LAUNCH_PRIORITY",
        asks: Asks::NotZero,
        weight: Weight::Told,
        instead: "containers start side by side",
        remedy: "do in an init container what must be done first",
    },
    Key {
        key: "ECI_CONTAINER_EXIT_PRIORITY",
        asks: Asks::NotZero,
        weight: Weight::Told,
        instead: "containers are stopped side by side",
        remedy: "have the container wait for the others when it is told to end",
    },
];

/// Annotations of a pod. Keys that only choose among what Alibaba Cloud sells (networks, zones, prices) are not here: there
/// is nothing that they could change.
const ANNOTATIONS: [Key; 15] = [
    Key {
        key: "k8s.aliyun.com/eci-custom-hosts",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "the pod's /etc/hosts does without",
        remedy: "use spec.hostAliases",
    },
    Key {
        key: "k8s.aliyun.com/eci-extra-ephemeral-storage",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "pods share the disk of their host, and no more is added",
        remedy: "request what the pod needs as ephemeral-storage in its containers' resources",
    },
    Key {
        key: "k8s.aliyun.com/acr-instance-ids",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "images are pulled with the logins of the pod and of the node",
        remedy: "name a Secret in spec.imagePullSecrets",
    },
    Key {
        key: "k8s.aliyun.com/acr-service-arns",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "images are pulled with the logins of the pod and of the node",
        remedy: "name a Secret in spec.imagePullSecrets",
    },
    Key {
        key: "k8s.aliyun.com/acr-user-arns",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "images are pulled with the logins of the pod and of the node",
        remedy: "name a Secret in spec.imagePullSecrets",
    },
    Key {
        key: "k8s.aliyun.com/eci-data-cache-bucket",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "there are no data caches",
        remedy: "have the data in an image, or fetch it in an init container",
    },
    Key {
        key: "k8s.aliyun.com/eci-data-cache-pl",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "there are no data caches",
        remedy: "have the data in an image, or fetch it in an init container",
    },
    Key {
        key: "k8s.aliyun.com/eci-data-cache-provisionedIops",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "there are no data caches",
        remedy: "have the data in an image, or fetch it in an init container",
    },
    Key {
        key: "k8s.aliyun.com/eci-ephemeral-storage-options",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "the pod writes to the disk of its host as that is",
        remedy: "have the host's disk encrypted",
    },
    Key {
        key: "k8s.aliyun.com/eci-data-cache-burstingEnabled",
        asks: Asks::True,
        weight: Weight::Told,
        instead: "there are no data caches",
        remedy: "have the data in an image, or fetch it in an init container",
    },
    Key {
        key: "k8s.aliyun.com/eci-eviction-enable",
        asks: Asks::True,
        weight: Weight::Told,
        instead: "a pod is evicted when it exceeds a limit of its own",
        remedy: "limit ephemeral-storage in its containers' resources",
    },
    Key {
        key: "k8s.aliyun.com/eci-max-pending-minute",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "the pod stays Pending until it can start",
        remedy: "use progressDeadlineSeconds of a Deployment, or activeDeadlineSeconds of a Job",
    },
    Key {
        key: "k8s.aliyun.com/eci-fail-strategy",
        asks: Asks::Only("fail-fast"),
        weight: Weight::Told,
        instead: "the pod stays Pending and is tried again",
        remedy: "use progressDeadlineSeconds of a Deployment, or activeDeadlineSeconds of a Job",
    },
    Key {
        key: "kubernetes.io/ingress-bandwidth",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "the pod's traffic is not limited",
        remedy: "limit it in the application",
    },
    Key {
        key: "kubernetes.io/egress-bandwidth",
        asks: Asks::Any,
        weight: Weight::Told,
        instead: "the pod's traffic is not limited",
        remedy: "limit it in the application",
    },
];

/// What a pod asks for and does not get, in the order of its fields.
pub fn unhonoured(pod: &Pod) -> Vec<Unhonoured> {
    let written = pod.metadata.annotations.iter().flatten();
    let annotations = written.filter_map(|(key, value)| {
        let field = format!("metadata.annotations[{key}]");
        find(&ANNOTATIONS, key, value).map(|key| key.unhonoured(field, value))
    });
    let mut found: Vec<Unhonoured> = annotations.collect();
    if let Some(spec) = &pod.spec {
        found.extend(variables("spec.initContainers", spec.init_containers.as_deref().unwrap_or_default()));
        found.extend(variables("spec.containers", &spec.containers));
    }
    found
}

fn variables(field: &str, containers: &[Container]) -> Vec<Unhonoured> {
    let mut found = Vec::new();
    for (at, container) in containers.iter().enumerate() {
        for (env_at, variable) in container.env.iter().flatten().enumerate() {
            let value = variable.value.as_deref().unwrap_or_default();
            if let Some(key) = find(&VARIABLES, &variable.name, value) {
                found.push(key.unhonoured(format!("{field}[{at}].env[{env_at}]"), value));
            }
        }
    }
    found
}

fn find<'a>(table: &'a [Key], key: &str, value: &str) -> Option<&'a Key> {
    table.iter().find(|known| known.key == key && known.asks.by(value))
}

impl Asks {
    fn by(self, value: &str) -> bool {
        let value = value.trim();
        match self {
            Self::Any => !value.is_empty(),
            Self::True => value.eq_ignore_ascii_case("true"),
            Self::Only(one) => value.eq_ignore_ascii_case(one),
            Self::NotZero => !value.is_empty() && value.parse() != Ok(0_i64),
        }
    }
}

impl Key {
    fn unhonoured(&self, field: String, value: &str) -> Unhonoured {
        // The value is the user's, and the text must keep its remedy.
        let value: String = value.chars().take(64).collect();
        Unhonoured {
            field,
            what: format!("{}={value} is not honoured: {}", self.key, self.instead),
            remedy: self.remedy,
            weight: self.weight,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: Value, env: Value) -> Pod {
        let container = json!({"name": "c", "image": "i", "env": env});
        serde_json::from_value(json!({"metadata": {"annotations": annotations}, "spec": {"containers": [container]}}))
            .unwrap()
    }

    #[rstest]
    #[case("ECI_CONTAINER_TYPE", "sidecar", "normal", Weight::Decides)]
    #[case("ECI_CONTAINER_IGNORE_EXIT_CODE", "true", "false", Weight::Decides)]
    #[case("ECI_CONTAINER_IGNORE_READY", "True", "", Weight::Told)]
    #[case("ECI_CONTAINER_LAUNCH_PRIORITY", "-1000", "0", Weight::Told)]
    #[case("ECI_CONTAINER_EXIT_PRIORITY", "1", "0", Weight::Told)]
    fn a_variable(#[case] name: &str, #[case] asks: &str, #[case] default: &str, #[case] weight: Weight) {
        let found = unhonoured(&pod(json!({}), json!([{"name": "A", "value": "b"}, {"name": name, "value": asks}])));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].field.as_str(), found[0].weight), ("spec.containers[0].env[1]", weight));
        assert!(found[0].what.starts_with(&format!("{name}={asks} is not honoured: ")), "{}", found[0].what);
        assert_eq!(unhonoured(&pod(json!({}), json!([{"name": name, "value": default}]))), []);
        let from = json!([{"name": name, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
        assert_eq!(unhonoured(&pod(json!({}), from)), []);
    }

    #[rstest]
    #[case("k8s.aliyun.com/eci-custom-hosts", "[]", "")]
    #[case("k8s.aliyun.com/eci-extra-ephemeral-storage", "50Gi", "")]
    #[case("k8s.aliyun.com/acr-instance-ids", "cri-xxx", "")]
    #[case("k8s.aliyun.com/acr-service-arns", "acs:ram::1:role/a", "")]
    #[case("k8s.aliyun.com/acr-user-arns", "acs:ram::1:role/b", "")]
    #[case("k8s.aliyun.com/eci-data-cache-bucket", "default", "")]
    #[case("k8s.aliyun.com/eci-data-cache-pl", "PL1", "")]
    #[case("k8s.aliyun.com/eci-data-cache-provisionedIops", "40000", "")]
    #[case("k8s.aliyun.com/eci-data-cache-burstingEnabled", "true", "false")]
    #[case("k8s.aliyun.com/eci-ephemeral-storage-options", "{\"encrypted\":\"true\"}", "")]
    #[case("k8s.aliyun.com/eci-eviction-enable", "true", "false")]
    #[case("k8s.aliyun.com/eci-max-pending-minute", "10", "")]
    #[case("k8s.aliyun.com/eci-fail-strategy", "fail-fast", "fail-back")]
    #[case("k8s.aliyun.com/eci-fail-strategy", "fail-fast", "fail-over")]
    #[case("kubernetes.io/ingress-bandwidth", "10M", "")]
    #[case("kubernetes.io/egress-bandwidth", "10M", "")]
    fn an_annotation(#[case] key: &str, #[case] asks: &str, #[case] default: &str) {
        let found = unhonoured(&pod(json!({key: asks}), json!([])));
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0].field, found[0].weight), (&format!("metadata.annotations[{key}]"), Weight::Told));
        assert_eq!(unhonoured(&pod(json!({key: default}), json!([]))), []);
    }

    #[test]
    fn init_containers_are_looked_at_and_keys_that_mean_nothing_here_are_not() {
        let env = json!([{"name": "ECI_CONTAINER_TYPE", "value": "sidecar"}]);
        let mut pod = pod(json!({"k8s.aliyun.com/eci-vswitch": "vsw-1"}), json!([]));
        assert_eq!(unhonoured(&pod), []);
        pod.spec.as_mut().unwrap().init_containers =
            serde_json::from_value(json!([{"name": "i", "image": "i", "env": env}])).unwrap();
        assert_eq!(unhonoured(&pod)[0].field, "spec.initContainers[0].env[0]");
    }

    #[test]
    fn every_text_fits_an_event() {
        for key in VARIABLES.iter().chain(&ANNOTATIONS) {
            let found = key.unhonoured(String::new(), &"x".repeat(5000));
            assert!(found.what.len() + found.remedy.len() < 512, "{}", key.key);
        }
    }
}
