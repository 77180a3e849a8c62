//! Pure: no I/O, no clock, no randomness.
//!
//! Which containers have been killed for want of memory since the status that the API server has: ECI tells of each in an
//! event of its own.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

/// Reason and text of the event.
pub(super) const EVENT: (&str, &str) = ("OOMKilled", "Out of memory");

/// Whether one was killed that `before` does not tell of.
pub(super) fn is_new(before: Option<&PodStatus>, after: &PodStatus) -> bool {
    let told: BTreeSet<String> = before.map(killed).unwrap_or_default();
    killed(after).iter().any(|container| !told.contains(container))
}

/// The ids of containers that were killed so.
fn killed(status: &PodStatus) -> BTreeSet<String> {
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let containers = lists.into_iter().flat_map(|list| list.iter().flatten());
    containers.flat_map(of_container).collect()
}

fn of_container(container: &ContainerStatus) -> impl Iterator<Item = String> {
    let states = [&container.state, &container.last_state].into_iter().flatten();
    let ended = states.filter_map(|state| state.terminated.as_ref());
    let killed = ended.filter(|ended| ended.reason.as_deref() == Some(EVENT.0));
    killed.filter_map(|ended| ended.container_id.clone())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn status(state: Value, last: Value) -> PodStatus {
        let container = json!({
            "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state, "lastState": last
        });
        serde_json::from_value(json!({"containerStatuses": [container]})).unwrap()
    }

    fn ended(reason: &str, id: &str) -> Value {
        json!({"terminated": {"exitCode": 137, "reason": reason, "containerID": id}})
    }

    #[rstest]
    #[case::now(json!({}), json!({}), ended("OOMKilled", "1"), json!({}), true)]
    #[case::restarted(json!({}), json!({}), json!({"running": {}}), ended("OOMKilled", "1"), true)]
    #[case::told(ended("OOMKilled", "1"), json!({}), json!({"running": {}}), ended("OOMKilled", "1"), false)]
    #[case::again(json!({}), ended("OOMKilled", "1"), json!({}), ended("OOMKilled", "2"), true)]
    #[case::otherwise(json!({}), json!({}), ended("Error", "1"), json!({}), false)]
    fn each_kill_is_new_once(
        #[case] state: Value,
        #[case] last: Value,
        #[case] state_after: Value,
        #[case] last_after: Value,
        #[case] new: bool,
    ) {
        assert_eq!(is_new(Some(&status(state, last)), &status(state_after, last_after)), new);
    }
}
