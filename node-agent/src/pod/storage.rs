//! What a pod may take of the host's disk, and what is said when it takes more: the rules and words of the kubelet's local
//! storage eviction (`eviction_manager.go`).
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, EmptyDirVolumeSource, Pod, PodSpec, Volume},
    apimachinery::pkg::api::resource::Quantity as WireQuantity,
};

use super::quantity::Quantity;

const RESOURCE: &str = "ephemeral-storage";

/// What a pod takes of the disk, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Its volumes on disk, by name.
    pub volumes: BTreeMap<String, u64>,
    /// Its containers by name: what they have written to their roots, and their logs.
    pub containers: BTreeMap<String, u64>,
    /// What else is there.
    pub other: u64,
}

impl DiskUse {
    fn total(&self) -> u64 {
        self.volumes.values().chain(self.containers.values()).fold(self.other, |sum, part| sum.saturating_add(*part))
    }
}

/// Which limit is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overuse {
    /// The `sizeLimit` of an emptyDir, by its place in `spec.volumes`.
    Volume(usize),
    /// That of all containers together.
    Pod,
    /// That of a container, by its place in `spec.containers`.
    Container(usize),
}

/// Whether the pod has a limit that has to be measured.
pub fn is_limited(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    pod_limit(spec).is_some() || spec.volumes.iter().flatten().any(|volume| volume_limit(volume).is_some())
}

/// The first limit that is exceeded, in the kubelet's order.
pub fn overuse(pod: &Pod, used: &DiskUse) -> Option<Overuse> {
    let spec = pod.spec.as_ref()?;
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let used = used.volumes.get(&volume.name).copied().unwrap_or_default();
        if volume_limit(volume).is_some_and(|limit| Quantity::of(used) > limit) {
            return Some(Overuse::Volume(index));
        }
    }
    if pod_limit(spec).is_some_and(|limit| Quantity::of(used.total()) > limit) {
        return Some(Overuse::Pod);
    }
    let exceeded = spec.containers.iter().position(|container| {
        let used = used.containers.get(&container.name).copied().unwrap_or_default();
        let limit = container_limit(container).filter(|limit| limit.value() != 0);
        limit.is_some_and(|limit| Quantity::of(used) > limit)
    });
    exceeded.map(Overuse::Container)
}

/// The kubelet's words. The space at the end is its, too.
pub fn message(pod: &Pod, overuse: Overuse) -> String {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    match overuse {
        Overuse::Volume(index) => {
            let volume = spec.volumes.iter().flatten().nth(index);
            let limit = volume.and_then(size_limit).map_or("", |limit| &limit.0);
            let name = volume.map_or("", |volume| &volume.name);
            format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". ")
        }
        Overuse::Pod => {
            let limit = pod_limit(spec).unwrap_or_default();
            let text = written(spec, limit).unwrap_or_else(|| limit.to_string());
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {text}. ")
        }
        Overuse::Container(index) => {
            let container = spec.containers.get(index);
            let limit = container.and_then(wire_limit).map_or("", |limit| &limit.0);
            let name = container.map_or("", |container| &container.name);
            format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". ")
        }
    }
}

/// An emptyDir in memory cannot exceed its limit: it is the size of its file system.
fn volume_limit(volume: &Volume) -> Option<Quantity> {
    let limit = size_limit(volume)?.0.parse::<Quantity>().ok()?;
    (limit > Quantity::default()).then_some(limit)
}

fn size_limit(volume: &Volume) -> Option<&WireQuantity> {
    let on_disk = |source: &&EmptyDirVolumeSource| source.medium.as_deref().unwrap_or_default().is_empty();
    volume.empty_dir.as_ref().filter(on_disk)?.size_limit.as_ref()
}

/// The sum of the containers that run side by side, or the largest init container, whatever is more.
fn pod_limit(spec: &PodSpec) -> Option<Quantity> {
    let together = spec.containers.iter().filter_map(container_limit).reduce(|a, b| a + b);
    let init = spec.init_containers.iter().flatten().filter_map(container_limit).max();
    together.max(init)
}

/// The limit in the words of the container that has just this one.
fn written(spec: &PodSpec, limit: Quantity) -> Option<String> {
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers
        .find(|container| container_limit(container) == Some(limit))
        .and_then(wire_limit)
        .map(|text| text.0.clone())
}

fn container_limit(container: &Container) -> Option<Quantity> {
    wire_limit(container)?.0.parse().ok()
}

fn wire_limit(container: &Container) -> Option<&WireQuantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    const GI: u64 = 1 << 30;

    fn limit(name: &str, limit: &str) -> Value {
        json!({"name": name, "resources": {"limits": {RESOURCE: limit}}})
    }

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "spec": spec })).unwrap()
    }

    fn used(volumes: &[(&str, u64)], containers: &[(&str, u64)], other: u64) -> DiskUse {
        let map = |parts: &[(&str, u64)]| parts.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        DiskUse { volumes: map(volumes), containers: map(containers), other }
    }

    #[rstest]
    #[case::just_enough(used(&[("v", GI)], &[], 0), None)]
    #[case::a_volume(used(&[("v", GI + 1)], &[], 0), Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Gi\". "))]
    #[case::a_volume_without_a_limit(used(&[("w", 2 * GI)], &[], 0), None)]
    #[case::a_container(
        used(&[], &[("b", 2 * GI + 1)], 0),
        Some("Container b exceeded its local ephemeral storage limit \"2Gi\". ")
    )]
    #[case::all_together(
        used(&[("v", GI), ("w", 1)], &[("a", GI), ("b", GI)], 1),
        Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Gi. ")
    )]
    #[case::a_container_without_a_limit(
        used(&[], &[("c", 4 * GI)], 0),
        Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Gi. ")
    )]
    fn what_is_exceeded_is_said(#[case] used: DiskUse, #[case] expected: Option<&str>) {
        let pod = pod(json!({
            "containers": [limit("a", "1Gi"), limit("b", "2Gi"), {"name": "c"}],
            "volumes": [
                {"name": "v", "emptyDir": {"sizeLimit": "1Gi"}},
                {"name": "w", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1"}},
            ],
        }));
        assert!(is_limited(&pod));
        let said = overuse(&pod, &used).map(|overuse| message(&pod, overuse));
        assert_eq!(said.as_deref(), expected);
    }

    #[test]
    fn the_largest_init_container_may_have_as_much_alone() {
        let pod =
            pod(json!({"initContainers": [limit("i", "4G")], "containers": [limit("a", "1Gi"), limit("b", "1Gi")]}));
        assert_eq!(overuse(&pod, &used(&[], &[("i", 4_000_000_000)], 0)), None);
        let over = overuse(&pod, &used(&[], &[("i", 4_000_000_001)], 0)).unwrap();
        assert_eq!(message(&pod, over), "Pod ephemeral local storage usage exceeds the total limit of containers 4G. ");
    }

    #[rstest]
    #[case(json!({"containers": [{"name": "a"}]}))]
    #[case(json!({"containers": [{"name": "a", "resources": {"limits": {"memory": "1Gi"}}}]}))]
    #[case(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}]}))]
    #[case(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "0"}}]}))]
    fn most_pods_are_not_measured(#[case] spec: Value) {
        let pod = pod(spec);
        assert!(!is_limited(&pod));
        assert_eq!(overuse(&pod, &used(&[("v", u64::MAX)], &[("a", u64::MAX)], u64::MAX)), None);
    }

    proptest! {
        /// More is never better, and whoever is within its limits is left alone.
        #[test]
        fn only_overuse_is_overuse(a in 0..3 * GI, b in 0..3 * GI, v in 0..3 * GI, other in 0..GI, more in 0..GI) {
            let pod = pod(json!({
                "containers": [limit("a", "1Gi"), limit("b", "2Gi")],
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}],
            }));
            let now = used(&[("v", v)], &[("a", a), ("b", b)], other);
            let within = v <= GI && a <= GI && b <= 2 * GI && a + b + v + other <= 3 * GI;
            prop_assert_eq!(overuse(&pod, &now).is_none(), within);
            let later = used(&[("v", v + more)], &[("a", a), ("b", b)], other);
            prop_assert!(within || overuse(&pod, &later).is_some());
        }
    }
}
