//! Pure: no I/O, no clock, no randomness.
//!
//! The status of an ImageCache object, from what the hosts say. A cache is Ready as soon as the first host holds it; the
//! other hosts go on. A host that is away does not unmake what it holds, but nobody waits for what it was making: a cache
//! that no other host makes has failed until that host is back.
//!
//! Times are whole seconds, because that is what comes back from the API server: a status that is written must read back
//! as the same.

mod event_list;
mod host_list;
mod settings;

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub use self::settings::{refresh, settings};
use super::hosts::serves;
use super::reference::Reference;
use super::retention;
use crate::agent::{CachePhase, CacheState};
use crate::custom_resource::{ImageCache, ImageCacheStatus, Phase};

/// The most hosts that a reason names one by one.
const MOST_NAMED: usize = 5;

/// What one host says of one cache.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// The virtual node of the host.
    pub node: &'a str,
    /// Whether the host's caches are known at all.
    pub is_known: bool,
    /// Whether the host has not answered for so long that nobody counts on it.
    pub is_away: bool,
    /// What the host says; nothing when it has no such cache.
    pub state: Option<&'a CacheState>,
    /// Whether the host has been told of the object as it is now, so that what it says is about that.
    pub is_told: bool,
    /// Why the host refused to build it.
    pub refusal: Option<&'a str>,
}

/// What a status is made from, beside the object.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// The cache's id.
    pub id: &'a str,
    /// What the hosts say that are to hold it.
    pub reports: &'a [Report<'a>],
    /// Why no host is told of it.
    pub obstacle: Option<&'a str>,
    /// Which Secrets brought no login when hosts were told of it; nothing while none has been told.
    pub unusable: Option<&'a [String]>,
    /// When a pod last used it.
    pub last_matched: Option<Timestamp>,
    /// The time.
    pub now: Timestamp,
}

/// The status to be written for a cache.
pub fn status(cache: &ImageCache, around: &Around<'_>) -> ImageCacheStatus {
    let Around { id, reports, now, .. } = *around;
    let previous = cache.status.clone().unwrap_or_default();
    let last_matched = around.last_matched.max(previous.last_matched_time.as_ref().map(|time| time.0));
    let annotations = cache.metadata.annotations.clone().unwrap_or_default();
    let standing = match around.obstacle {
        Some(obstacle) => Standing::kept_from(obstacle, reports),
        None => Standing::of(cache, &previous, reports),
    };
    let states = || reports.iter().filter_map(|report| report.state);
    let started = states().filter_map(|state| state.started).min().map(whole_second);
    // A failure of which no host has a record happens now.
    let newly_failed = (standing.phase == Phase::Failed && previous.phase != Phase::Failed).then_some(now);
    let updated = states().filter_map(|state| state.last_updated).max().or(newly_failed).map(whole_second);
    let updated = updated.or(previous.last_updated_time.as_ref().map(|time| time.0));
    // What only waits has not failed for good, and must be there when it can go on.
    let has_failed = standing.phase == Phase::Failed && standing.about != About::NoOutcome;
    let (observed_generation, observed_settings) = match standing.about {
        About::Current => (cache.metadata.generation, settings(cache)),
        About::Older => (previous.observed_generation, previous.observed_settings.clone()),
        About::NoOutcome => (None, None),
    };
    let events = event_list::events(cache, &previous.events, around);
    ImageCacheStatus {
        image_cache_id: Some(id.to_owned()),
        phase: standing.phase,
        reason: event_list::with_secrets(standing.reason, &events),
        progress: format!("{}%", standing.progress),
        image_cache_size: i64::try_from(cache.spec.size_gib(&annotations)).ok(),
        start_time: previous.start_time.or(started.map(Time)),
        last_updated_time: updated.map(Time),
        expire_date_time: retention::expires(cache, has_failed, updated, last_matched).map(whole_second).map(Time),
        last_matched_time: last_matched.map(whole_second).map(Time),
        observed_generation,
        observed_settings,
        ready_hosts: host_list::ready_hosts(reports),
        hosts: host_list::host_list(reports),
        events,
    }
}

/// What a standing speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// The object as it is now.
    Current,
    /// The object as it was.
    Older,
    /// Nothing that is over: it may be another thing in a moment, though nobody changes the object.
    NoOutcome,
}

impl About {
    fn current_if(is_current: bool) -> Self {
        if is_current { Self::Current } else { Self::Older }
    }
}

struct Standing {
    phase: Phase,
    progress: u32,
    reason: String,
    about: About,
}

impl Standing {
    /// Nobody is told of it, or of what it has become; what hosts hold goes on serving.
    fn kept_from(obstacle: &str, reports: &[Report<'_>]) -> Self {
        let is_held = reports.iter().filter_map(|report| report.state).any(|state| serves(state.phase));
        let phase = if is_held { Phase::UpdateFailed } else { Phase::Failed };
        Self { phase, progress: 0, reason: obstacle.to_owned(), about: About::NoOutcome }
    }

    fn of(cache: &ImageCache, previous: &ImageCacheStatus, reports: &[Report<'_>]) -> Self {
        let wanted = image_set(cache.spec.images.iter().map(String::as_str));
        let states = || reports.iter().filter_map(|report| report.state);
        let refresh = refresh(cache);
        let holds_it =
            |state: &CacheState| state.phase == CachePhase::Ready && holds(state, &wanted) && state.refresh == refresh;
        if states().any(holds_it) {
            return Self { phase: Phase::Ready, progress: 100, reason: String::new(), about: About::Current };
        }
        // A host that has not been heard since we started may hold what others do not.
        let all_known = reports.iter().all(|report| report.is_known);
        if !all_known && is_serving(previous.phase) {
            let progress = previous.progress.trim_end_matches('%').parse().unwrap_or_default();
            let (phase, reason) = (previous.phase, previous.reason.clone());
            return Self { phase, progress, reason, about: About::Older };
        }
        if states().any(|state| serves(state.phase)) {
            return Self::of_serving(reports);
        }
        Self::of_first_build(cache, previous, reports)
    }

    /// Somebody holds other images, and serves them.
    fn of_serving(reports: &[Report<'_>]) -> Self {
        let building = || reports.iter().filter(|report| report.is_building()).filter_map(|report| report.state);
        let is_outdated =
            |report: &Report<'_>| !report.is_away && report.state.is_some_and(|state| state.phase == CachePhase::Ready);
        let updating = building().any(|state| serves(state.phase)) || reports.iter().any(is_outdated);
        let progress = building().map(progress).max().unwrap_or_default();
        match (failure(reports), absence(reports)) {
            (Some(reason), _) if !updating => {
                let about = About::current_if(is_told(reports));
                Self { phase: Phase::UpdateFailed, progress, reason, about }
            }
            (None, Some(reason)) if !updating => {
                Self { phase: Phase::UpdateFailed, progress, reason, about: About::NoOutcome }
            }
            _ => {
                let about = About::current_if(!updating && is_told(reports));
                Self { phase: Phase::Updating, progress, reason: String::new(), about }
            }
        }
    }

    /// Nobody holds anything yet.
    fn of_first_build(cache: &ImageCache, previous: &ImageCacheStatus, reports: &[Report<'_>]) -> Self {
        let building = reports.iter().filter(|report| report.is_building()).filter_map(|report| report.state);
        if let Some(progress) = building.map(progress).max() {
            return Self { phase: Phase::Creating, progress, reason: String::new(), about: About::Current };
        }
        let failed = |reason, about| Self { phase: Phase::Failed, progress: 0, reason, about };
        match failure(reports) {
            Some(reason) if !is_awaited(reports) => failed(reason, About::current_if(is_told(reports))),
            // Nobody builds it any more once it has failed: see `plan`.
            _ if has_failed(cache) => failed(previous.reason.clone(), About::Current),
            _ => match absence(reports) {
                Some(reason) => failed(reason, About::NoOutcome),
                None => Self { phase: Phase::Pending, progress: 0, reason: String::new(), about: About::Older },
            },
        }
    }
}

/// What a build that is under way shows: a hundred is for what is complete.
fn progress(state: &CacheState) -> u32 {
    state.progress_percent.min(99)
}

/// Whether a host has yet to begin.
fn is_awaited(reports: &[Report<'_>]) -> bool {
    reports.iter().any(|report| !report.is_away && report.state.is_none() && report.refusal.is_none())
}

/// The hosts that are away, when nothing else keeps the cache from being made.
fn absence(reports: &[Report<'_>]) -> Option<String> {
    if is_awaited(reports) || reports.iter().any(Report::is_building) {
        return None;
    }
    let away: Vec<&str> = reports.iter().filter(|report| report.is_away).map(|report| report.node).collect();
    match away.as_slice() {
        [] => None,
        [node] => Some(format!("host {node} is away")),
        [first, .., last] if away.len() > MOST_NAMED => {
            Some(format!("{} hosts are away, {first} to {last}", away.len()))
        }
        nodes => Some(format!("hosts {} are away", nodes.join(", "))),
    }
}

/// Whether the object, as it is now, has failed for good.
pub fn has_failed(cache: &ImageCache) -> bool {
    is_observed(cache) && cache.status.as_ref().is_some_and(|status| status.phase == Phase::Failed)
}

/// Whether the outcome that is on record is about the object as it is now.
pub fn is_observed(cache: &ImageCache) -> bool {
    let Some(status) = &cache.status else { return false };
    status.observed_generation.is_some()
        && status.observed_generation == cache.metadata.generation
        && status.observed_settings == settings(cache)
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
    reports.iter().filter(|report| report.state.is_some() && !report.is_away).all(|report| report.is_told)
}

impl Report<'_> {
    /// Whether a build is under way that can be counted on, or was interrupted and will be asked for again.
    fn is_building(&self) -> bool {
        !self.is_away
            && self.state.is_some_and(|state| match state.phase {
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

fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests;
