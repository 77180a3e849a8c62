//! Pure: no I/O, no clock, no randomness.
//!
//! The status of an ImageCache object, from what the hosts say. A cache is Ready as soon as the first host holds it; the
//! other hosts go on. While no host can be heard, the status stays as it was.
//!
//! Times are whole seconds, because that is what comes back from the API server: a status that is written must read back
//! as the same.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::hosts::serves;
use super::reference::Reference;
use super::retention;
use crate::agent::{CachePhase, CacheState};
use crate::custom_resource::{BuildEvent, ImageCache, ImageCacheStatus, Phase};

/// The most events that a status keeps.
const MOST_EVENTS: usize = 50;
/// The longest message of an event, in characters.
const LONGEST_MESSAGE: usize = 1024;

/// What one host says of one cache.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// The virtual node of the host.
    pub node: &'a str,
    /// Whether the host's caches are known at all.
    pub is_known: bool,
    /// What the host says; nothing when it has no such cache.
    pub state: Option<&'a CacheState>,
    /// Whether the host has been told of the object as it is now, so that what it says is about that.
    pub is_told: bool,
    /// Why the host refused to build it.
    pub refusal: Option<&'a str>,
}

/// The status to be written for a cache.
pub fn status(
    cache: &ImageCache,
    id: &str,
    reports: &[Report<'_>],
    last_matched: Option<Timestamp>,
) -> ImageCacheStatus {
    let previous = cache.status.clone().unwrap_or_default();
    let last_matched = last_matched.max(previous.last_matched_time.as_ref().map(|time| time.0));
    let annotations = cache.metadata.annotations.clone().unwrap_or_default();
    let standing = Standing::of(cache, &previous, reports);
    let states = || reports.iter().filter_map(|report| report.state);
    let started = states().filter_map(|state| state.started).min().map(whole_second);
    let updated = states().filter_map(|state| state.last_updated).max().map(whole_second);
    let updated = updated.max(previous.last_updated_time.as_ref().map(|time| time.0));
    let events = events(reports);
    ImageCacheStatus {
        image_cache_id: Some(id.to_owned()),
        phase: standing.phase,
        reason: standing.reason,
        progress: format!("{}%", standing.progress),
        image_cache_size: i64::try_from(cache.spec.size_gib(&annotations)).ok(),
        start_time: previous.start_time.or(started.map(Time)),
        last_updated_time: updated.map(Time),
        expire_date_time: retention::expires(cache, standing.phase, updated, last_matched).map(whole_second).map(Time),
        last_matched_time: last_matched.map(whole_second).map(Time),
        observed_generation: if standing.is_current { cache.metadata.generation } else { previous.observed_generation },
        events: if events.is_empty() { previous.events } else { events },
    }
}

struct Standing {
    phase: Phase,
    progress: u32,
    reason: String,
    /// Whether it speaks of the object as it is now.
    is_current: bool,
}

impl Standing {
    fn of(cache: &ImageCache, previous: &ImageCacheStatus, reports: &[Report<'_>]) -> Self {
        let wanted = image_set(cache.spec.images.iter().map(String::as_str));
        let states = || reports.iter().filter_map(|report| report.state);
        let building = || reports.iter().filter(|report| report.is_building()).filter_map(|report| report.state);
        let progress = || building().map(|state| state.progress_percent.min(99)).max();
        let is_outdated = |state: &CacheState| state.phase == CachePhase::Ready && !holds(state, &wanted);
        if states().any(|state| state.phase == CachePhase::Ready && !is_outdated(state)) {
            return Self { phase: Phase::Ready, progress: 100, reason: String::new(), is_current: true };
        }
        // A host that has not been heard since we started may hold what others do not.
        let all_known = reports.iter().all(|report| report.is_known);
        if !all_known && is_serving(previous.phase) {
            let progress = previous.progress.trim_end_matches('%').parse().unwrap_or_default();
            return Self { phase: previous.phase, progress, reason: previous.reason.clone(), is_current: false };
        }
        let failure = failure(reports);
        if states().any(|state| serves(state.phase)) {
            let updating = building().any(|state| serves(state.phase)) || states().any(is_outdated);
            let (phase, reason) = match failure {
                Some(reason) if !updating => (Phase::UpdateFailed, reason),
                _ => (Phase::Updating, String::new()),
            };
            let is_current = !updating && is_told(reports);
            return Self { phase, progress: progress().unwrap_or_default(), reason, is_current };
        }
        if let Some(progress) = progress() {
            return Self { phase: Phase::Creating, progress, reason: String::new(), is_current: true };
        }
        let waiting =
            reports.iter().any(|report| report.is_known && report.state.is_none() && report.refusal.is_none());
        match failure {
            Some(reason) if !waiting => {
                Self { phase: Phase::Failed, progress: 0, reason, is_current: is_told(reports) }
            }
            // Nobody builds it any more once it has failed: see `plan`.
            _ if has_failed(cache) => {
                Self { phase: Phase::Failed, progress: 0, reason: previous.reason.clone(), is_current: true }
            }
            _ => Self { phase: Phase::Pending, progress: 0, reason: String::new(), is_current: false },
        }
    }
}

/// Whether the object, as it is now, has failed for good.
pub fn has_failed(cache: &ImageCache) -> bool {
    let status = cache.status.as_ref();
    status
        .is_some_and(|status| status.phase == Phase::Failed && status.observed_generation == cache.metadata.generation)
}

/// The normalised set of references; what is none stands for itself.
pub fn image_set<'a>(images: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let normalised =
        |text: &str| Reference::parse(text).map_or_else(|_| text.to_owned(), |reference| reference.to_string());
    images.into_iter().map(normalised).collect()
}

/// Whether a host's cache holds exactly these images.
pub fn holds(state: &CacheState, wanted: &BTreeSet<String>) -> bool {
    image_set(state.images.iter().map(|image| image.reference.as_str())) == *wanted
}

/// Whether every host that says something has been told of the object as it is now. A failure that is older than an edit
/// must not count as the outcome of the edit, else nobody would try again.
fn is_told(reports: &[Report<'_>]) -> bool {
    reports.iter().filter(|report| report.state.is_some()).all(|report| report.is_told)
}

impl Report<'_> {
    /// Whether a build is under way, or was interrupted and will be asked for again.
    fn is_building(&self) -> bool {
        self.state.is_some_and(|state| match state.phase {
            CachePhase::Creating | CachePhase::Updating => true,
            CachePhase::Interrupted | CachePhase::UpdateInterrupted => self.refusal.is_none(),
            CachePhase::Ready | CachePhase::Failed | CachePhase::UpdateFailed => false,
        })
    }
}

fn is_serving(phase: Phase) -> bool {
    match phase {
        Phase::Ready | Phase::Updating | Phase::UpdateFailed => true,
        Phase::Pending | Phase::Creating | Phase::Failed => false,
    }
}

/// The first reason why a host could not build it; with the host's name where there are several hosts.
fn failure(reports: &[Report<'_>]) -> Option<String> {
    reports.iter().find_map(|report| {
        let failed = |state: &&CacheState| matches!(state.phase, CachePhase::Failed | CachePhase::UpdateFailed);
        let by_build = report.state.filter(failed).map(|state| state.reason.as_str());
        let reason = by_build.or(report.refusal)?;
        Some(if reports.len() > 1 { format!("{}: {reason}", report.node) } else { reason.to_owned() })
    })
}

/// The newest events of all hosts, oldest first.
fn events(reports: &[Report<'_>]) -> Vec<BuildEvent> {
    let mut all: Vec<_> = reports
        .iter()
        .flat_map(|report| report.state.iter().flat_map(|state| &state.events).map(|event| (report.node, event)))
        .collect();
    // Stable: events of one host that share a moment stay in their order.
    all.sort_by_key(|(_, event)| event.time);
    let newest = all.split_off(all.len().saturating_sub(MOST_EVENTS));
    let written = newest.into_iter().map(|(node, event)| BuildEvent {
        name: event.name.clone(),
        message: event.message.chars().take(LONGEST_MESSAGE).collect(),
        kind: if event.warning { "Warning" } else { "Normal" }.to_owned(),
        timestamp: event.time.map(whole_second).map(Time),
        reason: event.reason.clone(),
        host: node.to_owned(),
    });
    written.collect()
}

fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests;
