//! What a pod worker does next, from what the API server and the agent say and from what has been done.
//!
//! ```text
//!   API server:   not listed   absent        there, wanted        there, over        being deleted
//!   agent:
//!   not listed    rest         rest          rest                 rest               rest
//!   absent        rest         forget        hand over            rest               make sure, remove
//!   has it        rest         stop          status, hand over    stop, status       stop, status
//!   gone          rest         forget        status               status             status, remove
//! ```
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

/// A time, counted from when the worker began.
pub(super) type Moment = Duration;

/// How long after the end of its grace period a pod's end is asked for again, should nothing have been heard.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The pod at the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ApiView {
    /// The list of pods is not there yet.
    Unlisted,
    /// There is no such object (any more).
    Absent,
    /// There is.
    Present(ApiPod),
}

/// What counts of a pod at the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ApiPod {
    /// The grace period, when it is being deleted.
    pub(super) deletion: Option<Duration>,
    /// Its phase is Succeeded or Failed.
    pub(super) terminal: bool,
    /// It had containers, the host has lost them, and they must not be started again.
    pub(super) lost: bool,
}

/// The pod at the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AgentView {
    /// The agent is not connected, or has not listed its pods yet.
    Unlisted,
    /// The agent does not have it.
    Absent,
    /// The agent has it.
    Present {
        /// Its containers have ended for good.
        over: bool,
    },
    /// The agent has ended and forgotten it.
    Gone,
}

/// Whether the agent has the newest of what the pod is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing has been handed over in this worker's life.
    NeverSent,
    /// It has, and wants fresh tokens at this time.
    Current {
        /// When the tokens are to be renewed.
        renew_at: Option<Moment>,
    },
    /// The pod or something that it refers to has changed since.
    Changed,
}

/// The request to stop that was sent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StopSent {
    /// The grace period; `None` is the pod's own.
    pub(super) grace: Option<Duration>,
    /// When.
    pub(super) at: Moment,
}

/// Until when each kind of action is not tried again, after it failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Blocked {
    pub(super) hand_over: Option<Moment>,
    pub(super) stop: Option<Moment>,
    pub(super) write_status: Option<Moment>,
    pub(super) annotate: Option<Moment>,
    pub(super) remove: Option<Moment>,
}

/// What the worker has done and knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) content: Content,
    pub(super) stop: Option<StopSent>,
    /// The agent has said, after the last hand-over, that it has nothing of this pod.
    pub(super) nothing_runs: bool,
    /// The API server's status is not what it should be.
    pub(super) status_differs: bool,
    /// Labels or annotations of ours are to be written.
    pub(super) marks_missing: bool,
    /// The API server has accepted the removal.
    pub(super) removed: bool,
    pub(super) blocked: Blocked,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing, until something changes or this time has come.
    Rest {
        /// When to look again.
        until: Option<Moment>,
    },
    /// Hand the pod, or what is new of it, to the agent.
    HandOver,
    /// Ask the agent to end it.
    Stop {
        /// `None` is the pod's own grace period.
        grace: Option<Duration>,
    },
    /// Bring the API server's status up to date.
    WriteStatus,
    /// Write our labels and annotations.
    Annotate,
    /// Remove the API object.
    Remove,
    /// End the worker.
    Forget,
}

/// Decides.
pub(super) fn next_action(api: ApiView, agent: AgentView, done: &Done, now: Moment) -> Action {
    let mut plan = Plan { now, until: None };
    let action = match (api, agent) {
        (ApiView::Unlisted, _) | (ApiView::Absent | ApiView::Present(_), AgentView::Unlisted) => None,
        (ApiView::Absent, AgentView::Absent | AgentView::Gone) => Some(Action::Forget),
        (ApiView::Absent, AgentView::Present { .. }) => plan.stop(None, done),
        (ApiView::Present(pod), agent) => match pod.deletion {
            Some(grace) => deleting(&mut plan, agent, grace, done),
            None if pod.terminal => over(&mut plan, agent, done),
            None => wanted(&mut plan, agent, pod.lost, done),
        },
    };
    action.unwrap_or(Action::Rest { until: plan.until })
}

fn deleting(plan: &mut Plan, agent: AgentView, grace: Duration, done: &Done) -> Option<Action> {
    match agent {
        AgentView::Unlisted => None,
        AgentView::Present { .. } => plan.stop(Some(grace), done).or_else(|| plan.status(done)),
        AgentView::Absent if !done.nothing_runs => {
            plan.unless_blocked(done.blocked.stop, Action::Stop { grace: Some(grace) })
        }
        // The last status is what controllers count by, so it is there before the object goes.
        AgentView::Absent | AgentView::Gone if done.status_differs => plan.status(done),
        AgentView::Absent | AgentView::Gone if done.removed => None,
        AgentView::Absent | AgentView::Gone => plan.unless_blocked(done.blocked.remove, Action::Remove),
    }
}

fn over(plan: &mut Plan, agent: AgentView, done: &Done) -> Option<Action> {
    match agent {
        AgentView::Unlisted => None,
        // Somebody else has declared the pod failed.
        AgentView::Present { over: false } => plan.stop(None, done).or_else(|| plan.status(done)),
        // One that ran for a moment has its marks yet to come.
        AgentView::Present { over: true } | AgentView::Gone => plan.status(done).or_else(|| plan.annotate(done)),
        AgentView::Absent => None,
    }
}

fn wanted(plan: &mut Plan, agent: AgentView, lost: bool, done: &Done) -> Option<Action> {
    let status = plan.status(done);
    match agent {
        AgentView::Unlisted => None,
        AgentView::Gone => status,
        AgentView::Absent if lost => status,
        AgentView::Absent => status.or_else(|| plan.unless_blocked(done.blocked.hand_over, Action::HandOver)),
        AgentView::Present { .. } => status.or_else(|| plan.hand_over(done)).or_else(|| plan.annotate(done)),
    }
}

/// Collects the earliest time at which something that is blocked now may be done.
struct Plan {
    now: Moment,
    until: Option<Moment>,
}

impl Plan {
    fn unless_blocked(&mut self, until: Option<Moment>, action: Action) -> Option<Action> {
        match until {
            Some(until) if until > self.now => {
                self.wake(until);
                None
            }
            Some(_) | None => Some(action),
        }
    }

    fn wake(&mut self, at: Moment) {
        self.until = Some(self.until.map_or(at, |until| until.min(at)));
    }

    fn status(&mut self, done: &Done) -> Option<Action> {
        if done.status_differs { self.unless_blocked(done.blocked.write_status, Action::WriteStatus) } else { None }
    }

    fn annotate(&mut self, done: &Done) -> Option<Action> {
        if done.marks_missing { self.unless_blocked(done.blocked.annotate, Action::Annotate) } else { None }
    }

    fn hand_over(&mut self, done: &Done) -> Option<Action> {
        if let Content::Current { renew_at } = done.content {
            let renew_at = renew_at?;
            if renew_at > self.now {
                self.wake(renew_at);
                return None;
            }
        }
        self.unless_blocked(done.blocked.hand_over, Action::HandOver)
    }

    /// Stops, unless that has been asked for with no longer a grace period and may still come true.
    fn stop(&mut self, grace: Option<Duration>, done: &Done) -> Option<Action> {
        if let Some(sent) = done.stop {
            let shorter = match (grace, sent.grace) {
                (Some(grace), Some(sent)) => grace < sent,
                (Some(_), None) => true,
                (None, _) => false,
            };
            let again = sent.at.saturating_add(sent.grace.unwrap_or_default()).saturating_add(ASK_AGAIN);
            if !shorter && again > self.now {
                self.wake(again);
                return None;
            }
        }
        self.unless_blocked(done.blocked.stop, Action::Stop { grace })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WANTED: ApiPod = ApiPod { deletion: None, terminal: false, lost: false };
    const HAS: AgentView = AgentView::Present { over: false };

    fn fresh() -> Done {
        Done {
            content: Content::NeverSent,
            stop: None,
            nothing_runs: false,
            status_differs: false,
            marks_missing: false,
            removed: false,
            blocked: Blocked::default(),
        }
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_new_pod_is_handed_over_and_then_left_alone() {
        let api = ApiView::Present(WANTED);
        assert_eq!(next_action(api, AgentView::Absent, &fresh(), secs(0)), Action::HandOver);
        let mut done = Done { content: Content::Current { renew_at: Some(secs(100)) }, ..fresh() };
        assert_eq!(next_action(api, HAS, &done, secs(1)), Action::Rest { until: Some(secs(100)) });
        assert_eq!(next_action(api, HAS, &done, secs(100)), Action::HandOver);
        done.status_differs = true;
        assert_eq!(next_action(api, HAS, &done, secs(1)), Action::WriteStatus);
        done.content = Content::Changed;
        done.status_differs = false;
        assert_eq!(next_action(api, HAS, &done, secs(1)), Action::HandOver);
    }

    #[test]
    fn a_hand_over_that_failed_waits_for_its_time_but_the_status_does_not() {
        let mut done = fresh();
        done.blocked.hand_over = Some(secs(9));
        let api = ApiView::Present(WANTED);
        assert_eq!(next_action(api, AgentView::Absent, &done, secs(1)), Action::Rest { until: Some(secs(9)) });
        done.status_differs = true;
        assert_eq!(next_action(api, AgentView::Absent, &done, secs(1)), Action::WriteStatus);
        done.status_differs = false;
        assert_eq!(next_action(api, AgentView::Absent, &done, secs(9)), Action::HandOver);
    }

    #[test]
    fn the_object_goes_only_after_the_processes() {
        let api = ApiView::Present(ApiPod { deletion: Some(secs(30)), ..WANTED });
        let mut done = fresh();
        assert_eq!(next_action(api, HAS, &done, secs(0)), Action::Stop { grace: Some(secs(30)) });
        done.stop = Some(StopSent { grace: Some(secs(30)), at: secs(0) });
        assert_eq!(next_action(api, HAS, &done, secs(1)), Action::Rest { until: Some(secs(90)) });
        assert_eq!(next_action(api, AgentView::Unlisted, &done, secs(1)), Action::Rest { until: None });
        done.status_differs = true;
        assert_eq!(next_action(api, AgentView::Gone, &done, secs(1)), Action::WriteStatus);
        done.status_differs = false;
        assert_eq!(next_action(api, AgentView::Gone, &done, secs(1)), Action::Remove);
        done.removed = true;
        assert_eq!(next_action(api, AgentView::Gone, &done, secs(1)), Action::Rest { until: None });
        assert_eq!(next_action(ApiView::Absent, AgentView::Gone, &done, secs(1)), Action::Forget);
    }

    #[test]
    fn an_agent_that_seems_not_to_have_it_is_asked_before_the_object_goes() {
        let api = ApiView::Present(ApiPod { deletion: Some(secs(0)), ..WANTED });
        let mut done = fresh();
        assert_eq!(next_action(api, AgentView::Absent, &done, secs(0)), Action::Stop { grace: Some(secs(0)) });
        done.nothing_runs = true;
        assert_eq!(next_action(api, AgentView::Absent, &done, secs(0)), Action::Remove);
    }

    #[test]
    fn a_shorter_grace_period_is_passed_on_and_a_longer_is_not() {
        let done = Done { stop: Some(StopSent { grace: Some(secs(30)), at: secs(0) }), ..fresh() };
        let api = |grace| ApiView::Present(ApiPod { deletion: Some(secs(grace)), ..WANTED });
        assert_eq!(next_action(api(1), HAS, &done, secs(2)), Action::Stop { grace: Some(secs(1)) });
        assert!(matches!(next_action(api(60), HAS, &done, secs(2)), Action::Rest { .. }));
    }

    #[test]
    fn what_is_over_never_runs_again() {
        let api = ApiView::Present(ApiPod { terminal: true, ..WANTED });
        assert_eq!(next_action(api, AgentView::Absent, &fresh(), secs(0)), Action::Rest { until: None });
        assert_eq!(next_action(api, HAS, &fresh(), secs(0)), Action::Stop { grace: None });
        let ended = AgentView::Present { over: true };
        assert_eq!(next_action(api, ended, &fresh(), secs(0)), Action::Rest { until: None });
    }

    #[test]
    fn lost_containers_are_not_started_again() {
        let api = ApiView::Present(ApiPod { lost: true, ..WANTED });
        let mut done = Done { status_differs: true, ..fresh() };
        assert_eq!(next_action(api, AgentView::Absent, &done, secs(0)), Action::WriteStatus);
        done.blocked.write_status = Some(secs(5));
        assert_eq!(next_action(api, AgentView::Absent, &done, secs(0)), Action::Rest { until: Some(secs(5)) });
    }

    #[test]
    fn orphans_are_ended() {
        assert_eq!(next_action(ApiView::Absent, HAS, &fresh(), secs(0)), Action::Stop { grace: None });
        assert_eq!(next_action(ApiView::Unlisted, HAS, &fresh(), secs(0)), Action::Rest { until: None });
    }

    fn moment() -> impl Strategy<Value = Option<Moment>> {
        proptest::option::of((0u64..200).prop_map(secs))
    }

    fn apis() -> impl Strategy<Value = ApiView> {
        let pod = (proptest::option::of((0u64..60).prop_map(secs)), any::<bool>(), any::<bool>());
        prop_oneof![
            Just(ApiView::Unlisted),
            Just(ApiView::Absent),
            pod.prop_map(|(deletion, terminal, lost)| ApiView::Present(ApiPod { deletion, terminal, lost })),
        ]
    }

    fn agents() -> impl Strategy<Value = AgentView> {
        prop_oneof![
            Just(AgentView::Unlisted),
            Just(AgentView::Absent),
            Just(AgentView::Gone),
            any::<bool>().prop_map(|over| AgentView::Present { over }),
        ]
    }

    prop_compose! {
        fn dones()(
            content in prop_oneof![
                Just(Content::NeverSent), Just(Content::Changed),
                moment().prop_map(|renew_at| Content::Current { renew_at }),
            ],
            stop in proptest::option::of((moment(), 0u64..200)),
            flags in any::<[bool; 4]>(),
            blocked in [moment(), moment(), moment(), moment(), moment()],
        ) -> Done {
            let [nothing_runs, status_differs, marks_missing, removed] = flags;
            let [hand_over, stop_at, write_status, annotate, remove] = blocked;
            Done {
                content, nothing_runs, status_differs, marks_missing, removed,
                stop: stop.map(|(grace, at)| StopSent { grace, at: secs(at) }),
                blocked: Blocked { hand_over, stop: stop_at, write_status, annotate, remove },
            }
        }
    }

    proptest! {
        #[test]
        fn rules(api in apis(), agent in agents(), done in dones(), now in 0u64..200) {
            let action = next_action(api, agent, &done, secs(now));
            prop_assert_eq!(action, next_action(api, agent, &done, secs(now)));
            let blind = api == ApiView::Unlisted || agent == AgentView::Unlisted;
            let rests = action == Action::Rest { until: None };
            prop_assert!(!blind || rests);
            match action {
                Action::HandOver => match api {
                    ApiView::Present(pod) => prop_assert!(pod.deletion.is_none() && !pod.terminal),
                    ApiView::Unlisted | ApiView::Absent => prop_assert!(false, "handed over what is not there"),
                },
                Action::Remove => {
                    let ended = agent == AgentView::Gone || (agent == AgentView::Absent && done.nothing_runs);
                    let deleting = matches!(api, ApiView::Present(ApiPod { deletion: Some(_), .. }));
                    prop_assert!(ended && deleting);
                }
                Action::Forget => prop_assert_eq!(api, ApiView::Absent),
                Action::Rest { until } => prop_assert!(until.is_none_or(|until| until > secs(now))),
                Action::Stop { .. } | Action::WriteStatus | Action::Annotate => {}
            }
        }

        /// However the agent takes its time, a deleted pod reaches its end when each action works.
        #[test]
        fn deletion_ends(mut done in dones(), agent in agents(), grace in 0u64..60) {
            done.blocked = Blocked::default();
            done.removed = false;
            let mut api = ApiView::Present(ApiPod { deletion: Some(secs(grace)), terminal: false, lost: false });
            let mut agent = if agent == AgentView::Unlisted { AgentView::Absent } else { agent };
            let mut now = secs(0);
            for _ in 0..12 {
                match next_action(api, agent, &done, now) {
                    Action::Rest { until } => match (until, agent) {
                        (Some(until), _) => now = until,
                        (None, other) => prop_assert!(false, "stuck with {other:?}"),
                    },
                    Action::Stop { grace } => {
                        done.stop = Some(StopSent { grace, at: now });
                        match agent {
                            AgentView::Present { .. } => agent = AgentView::Gone,
                            AgentView::Absent | AgentView::Gone | AgentView::Unlisted => done.nothing_runs = true,
                        }
                    }
                    Action::WriteStatus => done.status_differs = false,
                    Action::Remove => api = ApiView::Absent,
                    Action::Forget => return Ok(()),
                    Action::HandOver | Action::Annotate => prop_assert!(false),
                }
            }
            prop_assert!(false, "never forgotten");
        }
    }
}
