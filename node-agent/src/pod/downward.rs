//! The downward API: what a pod may be told of itself, in variables and in files
//! (`pkg/fieldpath`, `pkg/api/v1/resource/helpers.go` of Kubernetes).
//!
//! Pure: no I/O, no clock, no randomness.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{Pod, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity as WireQuantity,
};

use super::quantity::Quantity;

/// What the node can give: a container without limits is told these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeResources {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of scratch space.
    pub ephemeral_storage_bytes: u64,
}

/// Why there is no value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DownwardError {
    /// No such field, or not in this place.
    #[error("unsupported fieldPath: {0}")]
    UnsupportedField(String),
    /// No such resource.
    #[error("unsupported container resource : {0}")]
    UnsupportedResource(String),
    /// No such container.
    #[error("container {0} not found")]
    ContainerNotFound(String),
    /// A quantity that cannot be read.
    #[error(transparent)]
    Quantity(#[from] super::quantity::ParseQuantityError),
}

/// A field for a variable.
///
/// # Errors
/// When there is no such field.
pub fn env_field(pod: &Pod, path: &str, pod_ips: &[IpAddr], host_ips: &[IpAddr]) -> Result<String, DownwardError> {
    let spec = pod.spec.as_ref();
    let joined = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    match path {
        "spec.nodeName" => Ok(spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default()),
        "spec.serviceAccountName" => Ok(spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()),
        "status.podIP" => Ok(first(pod_ips)),
        "status.podIPs" => Ok(joined(pod_ips)),
        "status.hostIP" => Ok(first(host_ips)),
        "status.hostIPs" => Ok(joined(host_ips)),
        // Whole maps are for files only.
        "metadata.labels" | "metadata.annotations" => Err(DownwardError::UnsupportedField(path.to_owned())),
        _ => metadata_field(pod, path),
    }
}

/// A field for a file.
///
/// # Errors
/// When there is no such field.
pub fn metadata_field(pod: &Pod, path: &str) -> Result<String, DownwardError> {
    let metadata = &pod.metadata;
    let unsupported = || DownwardError::UnsupportedField(path.to_owned());
    match path {
        "metadata.name" => Ok(metadata.name.clone().unwrap_or_default()),
        "metadata.namespace" => Ok(metadata.namespace.clone().unwrap_or_default()),
        "metadata.uid" => Ok(metadata.uid.clone().unwrap_or_default()),
        "metadata.labels" => Ok(format_map(metadata.labels.as_ref())),
        "metadata.annotations" => Ok(format_map(metadata.annotations.as_ref())),
        _ => {
            let (map, key) = path.strip_suffix("']").and_then(|rest| rest.split_once("['")).ok_or_else(unsupported)?;
            let values = match map {
                "metadata.labels" => metadata.labels.as_ref(),
                "metadata.annotations" => metadata.annotations.as_ref(),
                _ => return Err(unsupported()),
            };
            Ok(values.and_then(|values| values.get(key)).cloned().unwrap_or_default())
        }
    }
}

/// `key="value"` a line, sorted, the value quoted as Go's `%q` does.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value)));
    lines.collect::<Vec<_>>().join("\n")
}

fn quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() && u32::from(c) < 0x80 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A resource of a container, in units of the selector's divisor, rounded up.
///
/// # Errors
/// When the container or the resource does not exist, or a quantity cannot be read.
pub fn resource(
    pod: &Pod,
    own_container: &str,
    selector: &ResourceFieldSelector,
    node: &NodeResources,
) -> Result<String, DownwardError> {
    let name = selector.container_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(own_container);
    let spec = pod.spec.as_ref();
    let mut containers =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let container = containers
        .find(|container| container.name == name)
        .ok_or_else(|| DownwardError::ContainerNotFound(name.to_owned()))?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let (list, kind) = match selector.resource.split_once('.') {
        Some(("limits", kind)) => (limits, kind),
        Some(("requests", kind)) => (requests, kind),
        Some(_) | None => return Err(DownwardError::UnsupportedResource(selector.resource.clone())),
    };
    let is_limit = selector.resource.starts_with("limits.");
    let asked = match list.and_then(|list| list.get(kind)) {
        Some(WireQuantity(text)) => Some(text.parse()?),
        None => None,
    };
    let fallback = || if is_limit { node_amount(kind, node) } else { Quantity::default() };
    if !matches!(kind, "cpu" | "memory" | "ephemeral-storage") && !kind.starts_with("hugepages-") {
        return Err(DownwardError::UnsupportedResource(selector.resource.clone()));
    }
    // A limit of zero is no limit, for the kubelet too.
    let amount = asked.filter(|amount| *amount != Quantity::default()).unwrap_or_else(fallback);
    let divisor = match &selector.divisor {
        Some(WireQuantity(text)) if text != "0" => text.parse()?,
        Some(_) | None => Quantity::of(1),
    };
    Ok(amount.in_parts_of(divisor).to_string())
}

fn node_amount(kind: &str, node: &NodeResources) -> Quantity {
    match kind {
        "cpu" => Quantity::of_milli(node.cpu_milli),
        "memory" => Quantity::of(node.memory_bytes),
        "ephemeral-storage" => Quantity::of(node.ephemeral_storage_bytes),
        _ => Quantity::default(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u1",
                "labels": {"app": "web", "tier": "front"},
                "annotations": {"note": "a \"quoted\"\nline"},
            },
            "spec": {
                "nodeName": "n1", "serviceAccountName": "sa",
                "containers": [{"name": "c", "resources": {
                    "limits": {"memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"},
                }}],
                "initContainers": [{"name": "i", "resources": {"limits": {"cpu": "3"}}}],
            },
        }))
        .unwrap()
    }

    #[rstest]
    #[case("metadata.name", "web")]
    #[case("metadata.namespace", "shop")]
    #[case("metadata.uid", "u1")]
    #[case("metadata.labels['app']", "web")]
    #[case("metadata.labels['none']", "")]
    #[case("spec.nodeName", "n1")]
    #[case("spec.serviceAccountName", "sa")]
    #[case("status.podIP", "10.1.0.2")]
    #[case("status.podIPs", "10.1.0.2,fd00::2")]
    #[case("status.hostIP", "192.0.2.1")]
    fn fields_for_variables(#[case] path: &str, #[case] expected: &str) {
        let pod_ips = ["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let host_ips = ["192.0.2.1".parse().unwrap()];
        assert_eq!(env_field(&pod(), path, &pod_ips, &host_ips).as_deref(), Ok(expected));
    }

    #[test]
    fn maps_are_for_files_only() {
        assert_eq!(metadata_field(&pod(), "metadata.labels").as_deref(), Ok("app=\"web\"\ntier=\"front\""));
        let annotations = metadata_field(&pod(), "metadata.annotations");
        assert_eq!(annotations.as_deref(), Ok("note=\"a \\\"quoted\\\"\\nline\""));
        assert!(env_field(&pod(), "metadata.labels", &[], &[]).is_err());
    }

    #[rstest]
    #[case("c", "limits.memory", "", "67108864")]
    #[case("c", "limits.memory", "1Mi", "64")]
    #[case("c", "limits.cpu", "", "2")]
    #[case("c", "limits.cpu", "1m", "2000")]
    #[case("c", "requests.cpu", "", "1")]
    #[case("c", "requests.cpu", "1m", "250")]
    #[case("i", "limits.cpu", "0", "3")]
    #[case("c", "requests.ephemeral-storage", "", "0")]
    fn resources(#[case] container: &str, #[case] what: &str, #[case] divisor: &str, #[case] expected: &str) {
        let node = NodeResources { cpu_milli: 2000, memory_bytes: 1 << 30, ephemeral_storage_bytes: 0 };
        let selector = ResourceFieldSelector {
            container_name: Some(container.into()),
            divisor: (!divisor.is_empty()).then(|| WireQuantity(divisor.into())),
            resource: what.into(),
        };
        assert_eq!(resource(&pod(), "c", &selector, &node).as_deref(), Ok(expected));
    }
}
