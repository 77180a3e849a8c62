//! Pure: no I/O, no clock, no randomness.
//!
//! What a status says of each host by itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Report, progress, whole_second};
use crate::agent::{CachePhase, CacheState};
use crate::custom_resource::{HostStatus, Phase};
use crate::image_cache::hosts::serves;

/// The most hosts that a status lists.
const MOST_HOSTS: usize = 100;
/// The longest reason of one host, in characters.
const LONGEST_REASON: usize = 256;

/// On how many hosts pods can start from the cache at this moment, of how many: `2/3`. Nothing without hosts.
pub(super) fn ready_hosts(reports: &[Report<'_>]) -> String {
    if reports.is_empty() {
        return String::new();
    }
    let is_ready = |report: &&Report<'_>| !report.is_away && report.state.is_some_and(|state| serves(state.phase));
    format!("{}/{}", reports.iter().filter(is_ready).count(), reports.len())
}

/// Every host, in the order of the reports; those beyond the limit are only counted.
pub(super) fn host_list(reports: &[Report<'_>]) -> Vec<HostStatus> {
    reports.iter().take(MOST_HOSTS).map(host_status).collect()
}

fn host_status(report: &Report<'_>) -> HostStatus {
    let (phase, percent) = match report.state {
        Some(state) => (phase(state, report.refusal), shown_percent(state)),
        None if report.refusal.is_some() => (Phase::Failed, 0),
        None => (Phase::Pending, 0),
    };
    let said = report.state.map(|state| state.reason.as_str()).filter(|reason| !reason.is_empty());
    let reason = if report.is_away { "the host is away" } else { report.refusal.or(said).unwrap_or_default() };
    let updated = report.state.and_then(|state| state.last_updated);
    HostStatus {
        node: report.node.to_owned(),
        phase,
        progress: format!("{percent}%"),
        reason: reason.chars().take(LONGEST_REASON).collect(),
        last_updated_time: updated.map(whole_second).map(Time),
    }
}

/// An interrupted build goes on in a moment, unless the host refuses it.
fn phase(state: &CacheState, refusal: Option<&str>) -> Phase {
    match state.phase {
        CachePhase::Interrupted if refusal.is_some() => Phase::Failed,
        CachePhase::UpdateInterrupted if refusal.is_some() => Phase::UpdateFailed,
        CachePhase::Creating | CachePhase::Interrupted => Phase::Creating,
        CachePhase::Ready => Phase::Ready,
        CachePhase::Failed => Phase::Failed,
        CachePhase::Updating | CachePhase::UpdateInterrupted => Phase::Updating,
        CachePhase::UpdateFailed => Phase::UpdateFailed,
    }
}

fn shown_percent(state: &CacheState) -> u32 {
    match state.phase {
        CachePhase::Ready => 100,
        CachePhase::Failed | CachePhase::UpdateFailed => 0,
        CachePhase::Creating | CachePhase::Updating | CachePhase::Interrupted | CachePhase::UpdateInterrupted => {
            progress(state)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn report<'a>(node: &'a str, state: Option<&'a CacheState>) -> Report<'a> {
        Report { node, is_known: true, is_away: false, state, is_told: true, refusal: None }
    }

    #[test]
    fn each_host_speaks_for_itself() {
        let state = |phase, reason: &str| CacheState {
            phase,
            progress_percent: 40,
            reason: reason.to_owned(),
            last_updated: Some(Timestamp::from_millisecond(7_900).unwrap()),
            ..CacheState::default()
        };
        let (ready, failed) = (state(CachePhase::Ready, ""), state(CachePhase::Failed, "no room"));
        let (creating, interrupted) = (state(CachePhase::Creating, ""), state(CachePhase::Interrupted, "restart"));
        let reports = [
            report("a", Some(&ready)),
            report("b", Some(&failed)),
            report("c", Some(&creating)),
            report("d", None),
            Report { is_away: true, ..report("e", Some(&ready)) },
            Report { refusal: Some("no"), ..report("f", Some(&interrupted)) },
            Report { refusal: Some("no"), ..report("g", None) },
        ];
        assert_eq!(ready_hosts(&reports), "1/7");
        let list = host_list(&reports);
        let brief: Vec<_> = list
            .iter()
            .map(|host| (host.node.as_str(), host.phase, host.progress.as_str(), host.reason.as_str()))
            .collect();
        assert_eq!(
            brief,
            [
                ("a", Phase::Ready, "100%", ""),
                ("b", Phase::Failed, "0%", "no room"),
                ("c", Phase::Creating, "40%", ""),
                ("d", Phase::Pending, "0%", ""),
                ("e", Phase::Ready, "100%", "the host is away"),
                ("f", Phase::Failed, "40%", "no"),
                ("g", Phase::Failed, "0%", "no"),
            ]
        );
        assert_eq!(list[0].last_updated_time.as_ref().unwrap().0.as_millisecond(), 7_000);
    }

    #[test]
    fn a_list_has_an_end_and_no_hosts_are_no_fraction() {
        let reports = vec![report("n", None); 150];
        assert_eq!((host_list(&reports).len(), ready_hosts(&reports).as_str()), (100, "0/150"));
        assert_eq!(ready_hosts(&[]), "");
    }
}
