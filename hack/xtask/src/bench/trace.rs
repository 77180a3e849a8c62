//! The steps of a pod's start, as the agent logs them: one JSON line a pod, with the target `larder::start` and one field
//! `<step>_ms` for each step.
//! Pure: no I/O, no clock, no randomness.

use serde_json::Value;
use std::collections::BTreeMap;

use crate::larder::Agent;

/// The target of the agent's lines.
const TARGET: &str = "larder::start";

/// The agent as a bench starts it: it logs the steps of each start, in the form that [`steps`] reads.
pub(super) fn logging_steps(mut agent: Agent) -> Agent {
    agent.extra.extend(["--log-format".to_owned(), "json".to_owned()]);
    agent.env.push(("RUST_LOG".to_owned(), format!("info,{TARGET}=debug")));
    agent
}

/// Samples of each step in milliseconds, by the step's name.
pub(super) fn steps(log: &str) -> BTreeMap<String, Vec<f64>> {
    let mut steps: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(TARGET)) {
        let Ok(Value::Object(line)) = serde_json::from_str(line) else { continue };
        if line.get("target").and_then(Value::as_str) != Some(TARGET) {
            continue;
        }
        let fields = line.get("fields").and_then(Value::as_object).unwrap_or(&line);
        for (name, value) in fields {
            let Some(step) = name.strip_suffix("_ms") else { continue };
            let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
            if let Some(number) = number {
                steps.entry(step.replace('_', " ")).or_default().push(number);
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_lines_of_either_form() {
        let log = r#"
            ready
            {"level":"INFO","fields":{"message":"started","sandbox_ms":0.8,"event_to_run_ms":"12.5"},"target":"larder::start"}
            {"level":"INFO","message":"started","sandbox_ms":1.2,"pod_uid":"x","target":"larder::start"}
            {"level":"INFO","fields":{"sandbox_ms":9},"target":"larder::startup"}
            {"target":"larder::start"
        "#;
        let steps = steps(log);
        assert_eq!(steps["sandbox"], [0.8, 1.2]);
        assert_eq!(steps["event to run"], [12.5]);
        assert_eq!(steps.len(), 2);
    }
}
