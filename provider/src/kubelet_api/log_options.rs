//! The options of a request for logs, and what a container must be for it to have any.
//!
//! Pure: no I/O, no clock, no randomness.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::agent::LogQuery;

/// Why there is no log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoLog {
    /// The request is wrong, or comes too early.
    Bad(String),
    /// There is no such container.
    NotFound(String),
}

/// Reads the options of the query.
pub(super) fn options(query: &[(String, String)], now: Timestamp) -> Result<LogQuery, NoLog> {
    let mut options = LogQuery::default();
    let mut since_seconds = None;
    for (key, value) in query {
        match key.as_str() {
            "follow" => options.follow = truth(value),
            "previous" => options.previous = truth(value),
            "timestamps" => options.timestamps = truth(value),
            "tailLines" if value.is_empty() || value == "all" => {}
            "tailLines" => options.tail_lines = Some(number(key, value, 0)?),
            "limitBytes" => options.limit_bytes = Some(number(key, value, 1)?),
            "sinceSeconds" => since_seconds = Some(number(key, value, 1)?),
            "sinceTime" if value.is_empty() => {}
            "sinceTime" => {
                let time = value.parse::<Timestamp>();
                options.since = Some(time.map_err(|_| bad(key, value, "a time in the form of RFC 3339"))?);
            }
            "stream" if value.is_empty() || value == "All" => {}
            "stream" => return Err(bad(key, value, "All, the only stream that is offered")),
            // The kubelet passes over what it does not know, `container` and `pretty` among it.
            _ => {}
        }
    }
    match (since_seconds, options.since) {
        (Some(_), Some(_)) => Err(NoLog::Bad("at most one of sinceTime or sinceSeconds may be specified".to_owned())),
        (Some(seconds), None) => {
            let since = now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
            Ok(LogQuery { since: Some(since), ..options })
        }
        (None, _) => Ok(options),
    }
}

/// How the API server's own conversion reads a boolean of a query.
fn truth(value: &str) -> bool {
    !(value.eq_ignore_ascii_case("false") || value == "0")
}

fn number(key: &str, value: &str, least: i64) -> Result<i64, NoLog> {
    let number = value.parse::<i64>().ok().filter(|number| *number >= least);
    number.ok_or_else(|| bad(key, value, &format!("a whole number of at least {least}")))
}

fn bad(key: &str, value: &str, wanted: &str) -> NoLog {
    NoLog::Bad(format!("invalid {key} {value:?}: it must be {wanted}"))
}

/// Whether the container has the log that is asked for, in the kubelet's words.
pub(super) fn has_log(pod: &Pod, container: &str, previous: bool) -> Result<(), NoLog> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let plain = spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| &container.name);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
    if !plain.chain(ephemeral).any(|there| there == container) {
        return Err(NoLog::NotFound(format!("container {container:?} not found in pod {name:?}")));
    }
    let status = pod.status.clone().unwrap_or_default();
    let lists = [status.init_container_statuses, status.container_statuses, status.ephemeral_container_statuses];
    let status = lists.into_iter().flatten().flatten().find(|status| status.name == container);
    let Some(status) = status else {
        return Err(NoLog::Bad(format!("container {container:?} in pod {name:?} is not available")));
    };
    let ended_before = status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
    if previous && !ended_before {
        return Err(NoLog::Bad(format!("previous terminated container {container:?} in pod {name:?} not found")));
    }
    match waiting_for(&status) {
        // The log of the run before is there while the next one waits.
        Some(reason) if !ended_before => {
            Err(NoLog::Bad(format!("container {container:?} in pod {name:?} is waiting to start: {reason}")))
        }
        Some(_) | None => Ok(()),
    }
}

fn waiting_for(status: &ContainerStatus) -> Option<String> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    Some(waiting.reason.clone().unwrap_or_else(|| "ContainerCreating".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1000).unwrap()
    }

    fn read(query: &str) -> Result<LogQuery, NoLog> {
        let pairs: Vec<(String, String)> = query
            .split('&')
            .filter_map(|pair| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
            .collect();
        options(&pairs, now())
    }

    #[test]
    fn options_are_the_kubelets() {
        let read =
            read("follow=true&tailLines=5&sinceSeconds=60&timestamps=1&limitBytes=9&previous=false&pretty=x").unwrap();
        let wanted = LogQuery {
            follow: true,
            tail_lines: Some(5),
            since: Some(Timestamp::from_second(940).unwrap()),
            timestamps: true,
            limit_bytes: Some(9),
            ..LogQuery::default()
        };
        assert_eq!(read, wanted);
    }

    #[rstest]
    #[case("tailLines=-1")]
    #[case("tailLines=x")]
    #[case("limitBytes=0")]
    #[case("sinceSeconds=0")]
    #[case("sinceTime=yesterday")]
    #[case("sinceTime=2026-01-01T00:00:00Z&sinceSeconds=1")]
    #[case("stream=Stdout")]
    fn mistakes_are_refused(#[case] query: &str) {
        assert!(matches!(read(query), Err(NoLog::Bad(_))));
    }

    #[test]
    fn what_has_no_log_says_why() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]},
            "status": {"containerStatuses": [
                {"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"waiting": {"reason": "ErrImagePull"}}},
                {"name": "b", "image": "", "imageID": "", "ready": true, "restartCount": 1, "state": {"running": {}},
                 "lastState": {"terminated": {"exitCode": 1}}}
            ]}
        }))
        .unwrap();
        let text = |result: Result<(), NoLog>| match result {
            Ok(()) => "ok".to_owned(),
            Err(NoLog::Bad(text)) => format!("400 {text}"),
            Err(NoLog::NotFound(text)) => format!("404 {text}"),
        };
        assert_eq!(text(has_log(&pod, "x", false)), r#"404 container "x" not found in pod "p""#);
        assert_eq!(
            text(has_log(&pod, "a", false)),
            r#"400 container "a" in pod "p" is waiting to start: ErrImagePull"#
        );
        assert_eq!(text(has_log(&pod, "a", true)), r#"400 previous terminated container "a" in pod "p" not found"#);
        assert_eq!(text(has_log(&pod, "b", true)), "ok");
        assert_eq!(text(has_log(&pod, "c", false)), r#"400 container "c" in pod "p" is not available"#);
    }

    proptest! {
        #[test]
        fn no_query_panics(key in "follow|tailLines|limitBytes|sinceSeconds|sinceTime|stream", value in ".*") {
            let _ = options(&[(key, value)], now());
        }

        #[test]
        fn no_number_of_seconds_panics(seconds in any::<i64>()) {
            let _ = options(&[("sinceSeconds".into(), seconds.to_string())], now());
        }
    }
}
