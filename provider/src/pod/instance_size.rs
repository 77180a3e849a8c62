//! Pure: no I/O, no clock, no randomness.
//!
//! The size of the instance that ECI would have given to a pod. Nothing is reserved by it here, a pod has what its
//! containers' requests and limits give; it is what users read in the pod's annotations and events.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

/// Sizes to try, in order: `2-4Gi` or an instance type, separated by commas.
const USE_SPECS: &str = "k8s.aliyun.com/eci-use-specs";
/// Older ways to say it.
const INSTANCE_TYPE: &str = "k8s.aliyun.com/eci-instance-type";
const CPU: &str = "k8s.aliyun.com/eci-cpu";
const MEMORY: &str = "k8s.aliyun.com/eci-memory";
/// On a container that does not count.
const IGNORE: &str = "__ECI_RESOURCE_IGNORE__";

const GIB: u64 = 1 << 30;

/// ECI's sizes: thousandths of a processor, and the GiB (times ten) that go with it.
const SIZES: [(u64, &[u64]); 12] = [
    (250, &[5, 10]),
    (500, &[10, 20]),
    (1_000, &[20, 40, 80]),
    (2_000, &[10, 20, 40, 80, 160]),
    (4_000, &[20, 40, 80, 160, 320]),
    (8_000, &[40, 80, 160, 320, 640]),
    (12_000, &[120, 240, 480, 960]),
    (16_000, &[160, 320, 640, 1_280]),
    (24_000, &[240, 480, 960, 1_920]),
    (32_000, &[320, 640, 1_280, 2_560]),
    (52_000, &[960, 1_920, 3_840]),
    (64_000, &[1_280, 2_560, 5_120]),
];

/// The size of a pod that asks for nothing.
const DEFAULT: Amount = Amount { milli_cpu: 2_000, bytes: 4 * GIB };

/// The size of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceSize {
    /// Processors and memory.
    Amount(Amount),
    /// An instance type by its name.
    Type(String),
}

/// Processors and memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Thousandths of a processor.
    pub milli_cpu: u64,
    /// Memory in bytes.
    pub bytes: u64,
}

impl InstanceSize {
    /// As ECI writes it: `2.0-4.0Gi`, or the name of the type.
    pub fn spec(&self) -> String {
        match self {
            Self::Amount(amount) => format!("{}-{}Gi", amount.cpu(), amount.gib()),
            Self::Type(name) => name.clone(),
        }
    }
}

impl Amount {
    /// Processors, with a decimal point at least: `2.0`, `0.25`.
    pub fn cpu(&self) -> String {
        decimal(self.milli_cpu, 1_000)
    }

    /// Memory in GiB, with a decimal point at least: `4.0`, `0.5`.
    pub fn gib(&self) -> String {
        decimal(self.bytes, GIB)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            milli_cpu: self.milli_cpu.saturating_add(other.milli_cpu),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn or_more(self, other: Self) -> Self {
        Self { milli_cpu: self.milli_cpu.max(other.milli_cpu), bytes: self.bytes.max(other.bytes) }
    }

    /// The smallest of ECI's sizes that has as much of both; the amount itself where none has.
    fn rounded_up(self) -> Self {
        for (milli_cpu, memories) in SIZES.iter().filter(|(milli_cpu, _)| *milli_cpu >= self.milli_cpu) {
            let bytes = memories.iter().map(|tenths| tenths * GIB / 10).find(|bytes| *bytes >= self.bytes);
            if let Some(bytes) = bytes {
                return Self { milli_cpu: *milli_cpu, bytes };
            }
        }
        self
    }
}

/// The size for a pod. `eci-use-specs` comes before the older annotations, these before limits, limits before requests.
pub fn of(pod: &Pod) -> InstanceSize {
    let empty = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    annotated(annotations).unwrap_or_else(|| InstanceSize::Amount(asked(pod)))
}

fn annotated(annotations: &BTreeMap<String, String>) -> Option<InstanceSize> {
    let first = annotations.get(USE_SPECS).into_iter().flat_map(|specs| specs.split(',')).find_map(read_spec);
    let by_type = || annotations.get(INSTANCE_TYPE).and_then(|types| types.split(',').find_map(read_spec));
    first.or_else(by_type).or_else(|| {
        let milli_cpu = annotations.get(CPU).and_then(|value| quantity::thousandths(value))?;
        let bytes = annotations.get(MEMORY).and_then(|value| read_memory(value))?;
        Some(InstanceSize::Amount(Amount { milli_cpu, bytes }.rounded_up()))
    })
}

/// `2-4Gi`, or the name of an instance type; nothing for what is neither.
fn read_spec(text: &str) -> Option<InstanceSize> {
    let text = text.trim();
    if text.starts_with("ecs.") {
        return Some(InstanceSize::Type(text.to_owned()));
    }
    let (cpu, memory) = text.split_once('-')?;
    let amount = Amount { milli_cpu: quantity::thousandths(cpu)?, bytes: read_memory(memory)? };
    (amount.milli_cpu > 0 && amount.bytes > 0).then(|| InstanceSize::Amount(amount.rounded_up()))
}

/// `4Gi`; a number without unit means GiB, as in ECI's annotations.
fn read_memory(text: &str) -> Option<u64> {
    let text = text.trim();
    if text.ends_with(|c: char| c.is_ascii_digit()) {
        quantity::whole(&format!("{text}Gi"))
    } else {
        quantity::whole(text)
    }
}

fn asked(pod: &Pod) -> Amount {
    let Some(spec) = &pod.spec else { return DEFAULT };
    let counted = |container: &&Container| !is_ignored(container);
    let running = spec.containers.iter().filter(counted).map(container_amount).fold(Amount::default(), Amount::plus);
    let init = spec.init_containers.iter().flatten().filter(counted).map(container_amount);
    let whole = init.fold(running, Amount::or_more);
    if whole == Amount::default() { DEFAULT } else { whole.rounded_up() }
}

fn is_ignored(container: &Container) -> bool {
    let is_set = |value: &Option<String>| value.as_deref().is_some_and(|value| value.eq_ignore_ascii_case("true"));
    container.env.iter().flatten().any(|env| env.name == IGNORE && is_set(&env.value))
}

fn container_amount(container: &Container) -> Amount {
    let Some(resources) = &container.resources else { return Amount::default() };
    let named = |name: &str| {
        let of = |map: &Option<BTreeMap<String, Quantity>>| map.as_ref().and_then(|map| map.get(name)).cloned();
        of(&resources.limits).or_else(|| of(&resources.requests))
    };
    Amount {
        milli_cpu: named("cpu").and_then(|value| quantity::thousandths(&value.0)).unwrap_or_default(),
        bytes: named("memory").and_then(|value| quantity::whole(&value.0)).unwrap_or_default(),
    }
}

/// `part / whole` in decimals, to the thousandth, with one place at least.
fn decimal(part: u64, whole: u64) -> String {
    let thousandths = u128::from(part) * 1_000 / u128::from(whole.max(1));
    let text = format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000);
    let trimmed = text.trim_end_matches('0');
    if trimmed.ends_with('.') { format!("{trimmed}0") } else { trimmed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn pod(annotations: Value, containers: Value, init: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"annotations": annotations},
            "spec": {"containers": containers, "initContainers": init},
        }))
        .unwrap()
    }

    fn container(limits: Value, requests: Value) -> Value {
        json!({"name": "c", "image": "nginx", "resources": {"limits": limits, "requests": requests}})
    }

    #[rstest]
    #[case(json!([container(json!({}), json!({}))]), "2.0-4.0Gi")]
    #[case(json!([container(json!({"cpu": "2", "memory": "4Gi"}), json!({"cpu": "1"}))]), "2.0-4.0Gi")]
    #[case(json!([container(json!({}), json!({"cpu": "250m", "memory": "512Mi"}))]), "0.25-0.5Gi")]
    #[case(json!([container(json!({"cpu": "100m"}), json!({}))]), "0.25-0.5Gi")]
    #[case(json!([container(json!({"memory": "3Gi"}), json!({}))]), "1.0-4.0Gi")]
    #[case(json!([container(json!({"cpu": "3", "memory": "5Gi"}), json!({}))]), "4.0-8.0Gi")]
    #[case(json!([container(json!({"cpu": "0.5"}), json!({})), container(json!({"cpu": "500m"}), json!({}))]), "1.0-2.0Gi")]
    #[case(json!([container(json!({"cpu": "1", "memory": "100Gi"}), json!({}))]), "16.0-128.0Gi")]
    #[case(json!([container(json!({"cpu": "100", "memory": "1Gi"}), json!({}))]), "100.0-1.0Gi")]
    fn from_resources(#[case] containers: Value, #[case] expected: &str) {
        assert_eq!(of(&pod(json!({}), containers, json!([]))).spec(), expected);
    }

    #[rstest]
    #[case(json!({USE_SPECS: "2-4Gi"}), "2.0-4.0Gi")]
    #[case(json!({USE_SPECS: "4-8Gi,2-4Gi"}), "4.0-8.0Gi")]
    #[case(json!({USE_SPECS: "ecs.c6.xlarge,2-4Gi"}), "ecs.c6.xlarge")]
    #[case(json!({USE_SPECS: "nonsense, 2-4Gi"}), "2.0-4.0Gi")]
    #[case(json!({USE_SPECS: "nonsense"}), "8.0-16.0Gi")]
    #[case(json!({INSTANCE_TYPE: "ecs.g6.large"}), "ecs.g6.large")]
    #[case(json!({CPU: "1", MEMORY: "2"}), "1.0-2.0Gi")]
    #[case(json!({USE_SPECS: "3-5Gi", CPU: "1", MEMORY: "2Gi"}), "4.0-8.0Gi")]
    fn from_annotations(#[case] annotations: Value, #[case] expected: &str) {
        let containers = json!([container(json!({"cpu": "8", "memory": "16Gi"}), json!({}))]);
        assert_eq!(of(&pod(annotations, containers, json!([]))).spec(), expected);
    }

    #[test]
    fn init_containers_raise_the_size_and_ignored_ones_do_not_count() {
        let small = container(json!({"cpu": "1", "memory": "2Gi"}), json!({}));
        let large = container(json!({"cpu": "4", "memory": "8Gi"}), json!({}));
        let mut ignored = large.clone();
        ignored["env"] = json!([{"name": IGNORE, "value": "TRUE"}]);
        assert_eq!(of(&pod(json!({}), json!([small.clone()]), json!([large]))).spec(), "4.0-8.0Gi");
        assert_eq!(of(&pod(json!({}), json!([small, ignored]), json!([]))).spec(), "1.0-2.0Gi");
    }

    proptest! {
        #[test]
        fn rounding_never_takes_away(milli_cpu in 0..200_000_u64, mib in 0..1_000_000_u64) {
            let wanted = Amount { milli_cpu, bytes: mib << 20 };
            let given = wanted.rounded_up();
            prop_assert!(given.milli_cpu >= wanted.milli_cpu && given.bytes >= wanted.bytes);
            prop_assert_eq!(given.rounded_up(), given);
        }

        #[test]
        fn nothing_panics(text in ".{0,12}") {
            let _ = read_spec(&text);
        }
    }
}
