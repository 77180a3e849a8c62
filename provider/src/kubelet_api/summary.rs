//! The agent's figures in the forms of the kubelet: `stats/v1alpha1` Summary, and resource metrics.
//!
//! Pure: no I/O, no clock, no randomness.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::agent::{NodeStats, PodStats, Usage};

/// The Summary of a node.
pub(super) fn summary(node: &str, stats: &NodeStats) -> Value {
    let time = stats.time.unwrap_or(Timestamp::UNIX_EPOCH);
    let pods: Vec<Value> = stats.pods.iter().map(|pod| pod_summary(pod, time)).collect();
    let mut whole = usage(stats.usage, time);
    whole["nodeName"] = json!(node);
    json!({"node": whole, "pods": pods})
}

fn pod_summary(pod: &PodStats, time: Timestamp) -> Value {
    let containers: Vec<Value> = pod
        .containers
        .iter()
        .map(|container| {
            let mut value = usage(container.usage, time);
            value["name"] = json!(container.name);
            value["startTime"] = json!(container.started.map(whole_seconds));
            value
        })
        .collect();
    let mut value = usage(sum(pod), time);
    value["podRef"] = json!({"name": pod.name, "namespace": pod.namespace, "uid": pod.uid});
    value["startTime"] =
        json!(pod.containers.iter().filter_map(|container| container.started).min().map(whole_seconds));
    value["containers"] = json!(containers);
    value
}

fn whole_seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn sum(pod: &PodStats) -> Usage {
    pod.containers.iter().map(|container| container.usage).fold(Usage::default(), |total, one| Usage {
        cpu_core_nanoseconds: total.cpu_core_nanoseconds.saturating_add(one.cpu_core_nanoseconds),
        memory_usage_bytes: total.memory_usage_bytes.saturating_add(one.memory_usage_bytes),
        memory_working_set_bytes: total.memory_working_set_bytes.saturating_add(one.memory_working_set_bytes),
        memory_rss_bytes: total.memory_rss_bytes.saturating_add(one.memory_rss_bytes),
    })
}

fn usage(usage: Usage, time: Timestamp) -> Value {
    let time = whole_seconds(time);
    json!({
        "cpu": {"time": time, "usageCoreNanoSeconds": usage.cpu_core_nanoseconds},
        "memory": {
            "time": time,
            "usageBytes": usage.memory_usage_bytes,
            "workingSetBytes": usage.memory_working_set_bytes,
            "rssBytes": usage.memory_rss_bytes
        }
    })
}

/// One family of metrics: name, help, type.
struct Family(&'static str, &'static str, &'static str);

const CPU: &str = "counter";
const MEMORY: &str = "gauge";

/// The metrics that `kubectl top` and metrics-server live on.
pub(super) fn resource_metrics(stats: &NodeStats) -> String {
    let at = stats.time.map(|time| format!(" {}", time.as_millisecond())).unwrap_or_default();
    let mut text = String::new();
    let containers: Vec<(String, Usage, Option<Timestamp>)> = stats
        .pods
        .iter()
        .flat_map(|pod| {
            pod.containers.iter().map(move |container| {
                let labels =
                    format!(r#"{{container="{}",namespace="{}",pod="{}"}}"#, container.name, pod.namespace, pod.name);
                (labels, container.usage, container.started)
            })
        })
        .collect();
    let pods: Vec<(String, Usage)> = stats
        .pods
        .iter()
        .map(|pod| (format!(r#"{{namespace="{}",pod="{}"}}"#, pod.namespace, pod.name), sum(pod)))
        .collect();
    let node = [(String::new(), stats.usage)];
    let of_containers: Vec<_> = containers.iter().map(|(labels, usage, _)| (labels.clone(), *usage)).collect();
    for (scope, samples) in [("container", &of_containers[..]), ("pod", &pods), ("node", &node)] {
        let cpu = Family(scope, "Cumulative cpu time consumed in core-seconds", CPU);
        family(&mut text, &cpu, "cpu_usage_seconds_total", &at, samples, |usage| seconds(usage.cpu_core_nanoseconds));
        let memory = Family(scope, "Current working set in bytes", MEMORY);
        let bytes = |usage: Usage| usage.memory_working_set_bytes.to_string();
        family(&mut text, &memory, "memory_working_set_bytes", &at, samples, bytes);
    }
    let _ =
        writeln!(text, "# HELP container_start_time_seconds Start time of the container since unix epoch in seconds");
    let _ = writeln!(text, "# TYPE container_start_time_seconds gauge");
    for (labels, _, started) in &containers {
        if let Some(started) = started {
            let _ = writeln!(text, "container_start_time_seconds{labels} {}", started.as_second());
        }
    }
    text.push_str(
        "# HELP resource_scrape_error 1 if there was an error while getting container metrics, 0 otherwise\n",
    );
    text.push_str("# TYPE resource_scrape_error gauge\nresource_scrape_error 0\n");
    text
}

fn family(
    text: &mut String,
    Family(scope, help, kind): &Family,
    name: &str,
    at: &str,
    samples: &[(String, Usage)],
    value: impl Fn(Usage) -> String,
) {
    let _ = writeln!(text, "# HELP {scope}_{name} {help}\n# TYPE {scope}_{name} {kind}");
    for (labels, usage) in samples {
        let _ = writeln!(text, "{scope}_{name}{labels} {}{at}", value(*usage));
    }
}

/// Nanoseconds as seconds, exactly.
fn seconds(nanoseconds: u64) -> String {
    format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::ContainerStats;

    fn stats() -> NodeStats {
        let usage = Usage {
            cpu_core_nanoseconds: 1_500_000_000,
            memory_usage_bytes: 30,
            memory_working_set_bytes: 20,
            memory_rss_bytes: 10,
        };
        let container =
            |name: &str| ContainerStats { name: name.into(), started: Some(Timestamp::from_second(7).unwrap()), usage };
        NodeStats {
            time: Some(Timestamp::from_second(9).unwrap()),
            usage,
            pods: vec![PodStats {
                uid: "u".into(),
                namespace: "ns".into(),
                name: "p".into(),
                containers: vec![container("a"), container("b")],
            }],
        }
    }

    #[test]
    fn a_pod_is_the_sum_of_its_containers() {
        let summary = summary("n", &stats());
        assert_eq!(summary["node"]["nodeName"], "n");
        assert_eq!(summary["pods"][0]["podRef"]["uid"], "u");
        assert_eq!(summary["pods"][0]["memory"]["workingSetBytes"], 40);
        assert_eq!(summary["pods"][0]["containers"][1]["name"], "b");
        assert_eq!(summary["pods"][0]["startTime"], "1970-01-01T00:00:07Z");
    }

    #[test]
    fn metrics_are_prometheus_text() {
        let text = resource_metrics(&stats());
        for line in [
            r#"container_cpu_usage_seconds_total{container="a",namespace="ns",pod="p"} 1.500000000 9000"#,
            r#"pod_memory_working_set_bytes{namespace="ns",pod="p"} 40 9000"#,
            "node_cpu_usage_seconds_total 1.500000000 9000",
            r#"container_start_time_seconds{container="b",namespace="ns",pod="p"} 7"#,
            "resource_scrape_error 0",
            "# TYPE node_memory_working_set_bytes gauge",
        ] {
            assert!(text.lines().any(|there| there == line), "{line} is not in\n{text}");
        }
    }
}
