//! What there is now, how long the pods took to start, and what to try next.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use super::cluster::Cluster;
use super::layout::{Layout, Settings};
use super::sample::Namespaces;
use super::stopwatch::Stopwatch;
use crate::console::say;
use crate::prerequisites;

/// The kubectl to use: the one built with the control plane, or the machine's.
pub(super) fn kubectl(layout: &Layout) -> Option<PathBuf> {
    let built = layout.programs().join("kubectl");
    if built.exists() { Some(built) } else { prerequisites::find("kubectl") }
}

/// Prints the report.
pub(super) async fn show(
    layout: &Layout,
    settings: &Settings,
    cluster: &Cluster,
    stopwatch: Option<&Stopwatch>,
) -> anyhow::Result<()> {
    say("");
    let program = kubectl(layout).context("find kubectl")?;
    let status = Command::new(program)
        .arg("--kubeconfig")
        .arg(layout.kubeconfig())
        .args(["get", "nodes,pods,imagecaches", "--all-namespaces", "--output", "wide"])
        .status()
        .context("run kubectl")?;
    ensure!(status.success(), "kubectl get: {status}");
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let mut sample = pods.list(&ListParams::default().labels("app=nginx")).await.context("list pods")?.items;
    let Namespaces { automatic, pinned } = Namespaces::of(settings);
    sample.retain(|pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none() && [automatic, pinned].contains(&namespace)
    });
    if let Some(stopwatch) = stopwatch {
        say("\nTIME FROM CREATION TO READY");
        say(&start_times(&sample, stopwatch).to_string());
    }
    say("\nTRY NEXT");
    for line in hints(&sample, automatic) {
        say(&format!("  {line}"));
    }
    Ok(())
}

/// One row a pod: to the millisecond where it was watched, else from the whole seconds that its object carries.
fn start_times(pods: &[Pod], stopwatch: &Stopwatch) -> Table {
    let starts = stopwatch.starts();
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["NAMESPACE", "POD", "READY AFTER"]);
    for pod in pods {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let watched = starts.iter().find(|start| start.namespace == namespace && start.name == name);
        let took = match watched.and_then(|start| start.took()) {
            Some(took) => format!("{} ms", took.as_millis()),
            None => {
                recorded(pod).map_or_else(|| "not yet".to_owned(), |seconds| format!("{seconds} s (whole seconds)"))
            }
        };
        table.add_row([namespace, name, took]);
    }
    table
}

/// From the object's creation to its condition Ready, in seconds.
fn recorded(pod: &Pod) -> Option<i64> {
    let created = pod.metadata.creation_timestamp.as_ref()?;
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|one| one.type_ == "Ready" && one.status == "True")?;
    Some(ready.last_transition_time.as_ref()?.0.duration_since(created.0).as_secs())
}

fn hints(sample: &[Pod], namespace: &str) -> [String; 4] {
    let kubectl = if namespace == "default" {
        "hack/kubectl".to_owned()
    } else {
        format!("hack/kubectl --namespace {namespace}")
    };
    let address = sample.iter().find_map(|pod| pod.status.as_ref()?.pod_ip.clone());
    let [logs, curl] = match (&address, sample.first()) {
        (Some(address), Some(_)) => {
            [format!("{kubectl} logs deployment/test --container nginx"), format!("curl http://{address}/")]
        }
        _ => [
            format!("{kubectl} apply -f hack/deploy/sample/automatic.yaml"),
            "hack/kubectl get events --all-namespaces".to_owned(),
        ],
    };
    let scale = format!("{kubectl} scale deployment/test --replicas 10 && {kubectl} get pods --watch");
    [curl, logs, scale, "hack/larderctl images".to_owned()]
}
