//! Pure: no I/O, no clock, no randomness.
//!
//! The events that a status keeps: the newest steps of the hosts' builds, and our own words about the object's annotations.
//! Ours bear no host. They stay for as long as they are true, so that nothing is told twice.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Around, Report, whole_second};
use crate::custom_resource::{BuildEvent, ImageCache};
use crate::image_cache::annotations::{Notice, UNUSABLE_SECRET, notices};

/// The most events that a status keeps.
const MOST_EVENTS: usize = 50;
/// The longest message of an event, in characters.
const LONGEST_MESSAGE: usize = 1024;

/// All events, oldest first. While no host says anything, what was said before stays.
pub(super) fn events(cache: &ImageCache, previous: &[BuildEvent], around: &Around<'_>) -> Vec<BuildEvent> {
    let ours = own_events(cache, previous, around);
    let mut steps = build_events(around.reports);
    if steps.is_empty() {
        steps = previous.iter().filter(|event| !event.host.is_empty()).cloned().collect();
    }
    let room = MOST_EVENTS.saturating_sub(ours.len());
    let mut all = steps.split_off(steps.len().saturating_sub(room));
    all.extend(ours);
    // Stable: events of one host that share a moment stay in their order.
    all.sort_by_key(|event| event.timestamp.as_ref().map(|time| time.0));
    all
}

/// Why a build failed, with the Secrets that were of no use to it, unless it names them already.
pub(super) fn with_secrets(mut reason: String, events: &[BuildEvent]) -> String {
    if reason.is_empty() {
        return reason;
    }
    for event in events.iter().filter(|event| is_about_secret(event)) {
        if !reason.contains(&event.message) {
            reason = format!("{reason}; {}", event.message);
        }
    }
    reason
}

/// Whether it says that a Secret brought no login.
fn is_about_secret(event: &BuildEvent) -> bool {
    event.host.is_empty() && event.reason == UNUSABLE_SECRET
}

fn own_events(cache: &ImageCache, previous: &[BuildEvent], around: &Around<'_>) -> Vec<BuildEvent> {
    let secret = |message: &String| Notice { reason: UNUSABLE_SECRET, message: message.clone() };
    let secrets: Vec<Notice> = match around.unusable {
        Some(texts) => texts.iter().map(secret).collect(),
        // What was said before a restart of ours holds until somebody is told again.
        None => {
            let known = previous.iter().filter(|event| is_about_secret(event));
            known.map(|event| secret(&event.message)).collect()
        }
    };
    let event = |notice: Notice| {
        let known = |event: &&BuildEvent| event.host.is_empty() && event.message == notice.message;
        previous.iter().find(known).cloned().unwrap_or_else(|| BuildEvent {
            name: cache.metadata.name.clone().unwrap_or_default(),
            message: notice.message.clone(),
            kind: "Warning".to_owned(),
            timestamp: Some(Time(whole_second(around.now))),
            reason: notice.reason.to_owned(),
            host: String::new(),
        })
    };
    let shortened = |mut notice: Notice| {
        notice.message = shortened(&notice.message);
        notice
    };
    notices(cache).into_iter().chain(secrets).map(shortened).map(event).take(MOST_EVENTS).collect()
}

/// The newest events of all hosts, oldest first.
fn build_events(reports: &[Report<'_>]) -> Vec<BuildEvent> {
    let mut all: Vec<_> = reports
        .iter()
        .flat_map(|report| report.state.iter().flat_map(|state| &state.events).map(|event| (report.node, event)))
        .collect();
    all.sort_by_key(|(_, event)| event.time);
    let newest = all.split_off(all.len().saturating_sub(MOST_EVENTS));
    let written = newest.into_iter().map(|(node, event)| BuildEvent {
        name: event.name.clone(),
        message: shortened(&event.message),
        kind: if event.warning { "Warning" } else { "Normal" }.to_owned(),
        timestamp: event.time.map(whole_second).map(Time),
        reason: event.reason.clone(),
        host: node.to_owned(),
    });
    written.collect()
}

fn shortened(message: &str) -> String {
    message.chars().take(LONGEST_MESSAGE).collect()
}
