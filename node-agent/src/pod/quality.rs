//! Quality of service: a pod's class, and what the kernel is told to kill first.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as WireQuantity,
};

use super::quantity::Quantity;

/// `oom_score_adj` of a Guaranteed pod's containers (`kubelet/qos/policy.go`).
const GUARANTEED_OOM_SCORE: i32 = -997;
/// `oom_score_adj` of a BestEffort pod's containers.
const BEST_EFFORT_OOM_SCORE: i32 = 1000;

/// `BestEffort`, `Burstable` or `Guaranteed`. The API server's word counts; without it the kubelet's rules do.
pub fn class(pod: &Pod) -> &'static str {
    match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => return "Guaranteed",
        Some("Burstable") => return "Burstable",
        Some("BestEffort") => return "BestEffort",
        _ => {}
    }
    let Some(spec) = &pod.spec else { return "BestEffort" };
    if let Some(resources) = &spec.resources {
        return class_of(Some(resources));
    }
    let mut classes =
        spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| class_of(c.resources.as_ref()));
    let Some(first) = classes.next() else { return "BestEffort" };
    if classes.all(|class| class == first) { first } else { "Burstable" }
}

fn class_of(resources: Option<&ResourceRequirements>) -> &'static str {
    let Some(resources) = resources else { return "BestEffort" };
    let classes = ["cpu", "memory"].map(|name| {
        let request = positive(resources.requests.as_ref(), name);
        let limit = positive(resources.limits.as_ref(), name);
        match (request, limit) {
            (None, None) => "BestEffort",
            (Some(request), Some(limit)) if request == limit => "Guaranteed",
            _ => "Burstable",
        }
    });
    if classes[0] == classes[1] { classes[0] } else { "Burstable" }
}

fn positive(list: Option<&BTreeMap<String, WireQuantity>>, name: &str) -> Option<Quantity> {
    quantity_of(list, name).filter(|quantity| quantity.milli() > 0)
}

/// The kubelet's `oom_score_adj` for a container on a host with so much memory.
pub fn oom_score_adj(pod: &Pod, container: &Container, host_memory_bytes: u64) -> i32 {
    match class(pod) {
        "Guaranteed" => return GUARANTEED_OOM_SCORE,
        "BestEffort" => return BEST_EFFORT_OOM_SCORE,
        _ => {}
    }
    let request = container.resources.as_ref().and_then(|resources| quantity_of(resources.requests.as_ref(), "memory"));
    let request = request.map_or(0, Quantity::value);
    let share = 1000 * u128::from(request) / u128::from(host_memory_bytes.max(1));
    let score = 1000 - i32::try_from(share.min(1000)).unwrap_or(1000);
    // Never as safe as a Guaranteed pod, never as exposed as a BestEffort one.
    score.clamp(1000 + GUARANTEED_OOM_SCORE, BEST_EFFORT_OOM_SCORE - 1)
}

/// A named quantity of a list, if it is there and can be read.
pub fn quantity_of(list: Option<&BTreeMap<String, WireQuantity>>, name: &str) -> Option<Quantity> {
    list.and_then(|list| list.get(name)).and_then(|quantity| quantity.0.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: &serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({ "spec": { "containers": containers } })).unwrap()
    }

    #[test]
    fn classes_are_the_kubelets() {
        let equal =
            serde_json::json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}});
        let some = serde_json::json!({"requests": {"cpu": "1"}});
        for (containers, class_, score) in [
            (serde_json::json!([{"name": "a"}]), "BestEffort", 1000),
            (serde_json::json!([{"name": "a", "resources": equal}]), "Guaranteed", -997),
            (serde_json::json!([{"name": "a", "resources": some}]), "Burstable", 999),
            (serde_json::json!([{"name": "a", "resources": equal}, {"name": "b"}]), "Burstable", 938),
        ] {
            let pod = pod(&containers);
            assert_eq!(class(&pod), class_, "{containers}");
            let container = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(oom_score_adj(&pod, container, 16 << 30), score, "{containers}");
        }
    }
}
