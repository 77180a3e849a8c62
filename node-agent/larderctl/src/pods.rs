//! `larderctl pods`.

use jiff::Timestamp;
use larder_proto::v1;
use serde::Serialize;
use serde_json::Value;

use crate::agent::{Agent, CtlError, refused};
use crate::figures;
use crate::output::{Output, Row};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    namespace: String,
    name: String,
    uid: String,
    /// The pod's core/v1 PodStatus.
    status: Value,
}

impl Pod {
    fn text(&self, field: &str) -> String {
        self.status.get(field).and_then(Value::as_str).unwrap_or("-").to_owned()
    }

    fn containers(&self) -> &[Value] {
        self.status.get("containerStatuses").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

impl Row for Pod {
    const COLUMNS: &'static [&'static str] = &["NAMESPACE", "NAME", "READY", "PHASE", "RESTARTS", "IP", "AGE", "UID"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let is_ready = |container: &&Value| container.get("ready").and_then(Value::as_bool).unwrap_or(false);
        let ready = self.containers().iter().filter(is_ready).count();
        let restarts = |container: &Value| container.get("restartCount").and_then(Value::as_u64);
        let restarts: u64 = self.containers().iter().filter_map(restarts).sum();
        let started = self.status.get("startTime").and_then(Value::as_str).and_then(|time| time.parse().ok());
        vec![
            self.namespace.clone(),
            self.name.clone(),
            format!("{ready}/{}", self.containers().len()),
            self.text("phase"),
            restarts.to_string(),
            self.text("podIP"),
            figures::age(started, now),
            self.uid.clone(),
        ]
    }
}

pub(crate) async fn list(agent: &Agent, output: Output) -> Result<(), CtlError> {
    let answer = agent.pods().list_pods(v1::ListPodsRequest {}).await.map_err(refused("list pods"))?;
    let pod = |pod: v1::PodState| Pod {
        namespace: pod.namespace,
        name: pod.name,
        uid: pod.uid,
        // An agent writes JSON; one that does not has nothing to show.
        status: serde_json::from_slice(&pod.status_json).unwrap_or_default(),
    };
    let mut pods: Vec<Pod> = answer.into_inner().pods.into_iter().map(pod).collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    output.list(&pods, "No pods.")
}
