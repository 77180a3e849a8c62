//! Follows the Selector objects for the keeper of the webhook's entry, shows which of them act, and tells their authors what
//! they must know.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::watch;

use crate::cluster::selectors::regarding_selector;
use crate::cluster::watching::Latest;
use crate::cluster::{EventNote, EventRecorder, Source, Watched};
use crate::custom_resource::selector::Selector;
use crate::selector::standing::Told;
use crate::selector::{Name, Rules, Standing};

/// The Selectors, as far as they have been seen.
#[derive(Debug)]
pub(super) struct SelectorKeeper {
    events: EventRecorder,
    latest: Latest<Selector>,
    is_listed: bool,
    /// Nothing until the entry has been seen, which keeps what the objects do not say.
    standing: Option<Standing>,
    shown: watch::Sender<Option<Arc<Rules>>>,
}

impl SelectorKeeper {
    pub(super) fn new(events: EventRecorder, shown: watch::Sender<Option<Arc<Rules>>>) -> Self {
        Self { events, latest: Latest::default(), is_listed: false, standing: None, shown }
    }

    /// Takes what an earlier life of this process has kept, once.
    pub(super) fn restore(&mut self, kept: Option<&str>) {
        if self.standing.is_none() {
            self.standing = Some(Standing::restored(kept));
            self.look();
        }
    }

    /// Takes in a change.
    pub(super) fn take(&mut self, change: Watched<Selector>) {
        self.is_listed = true;
        self.latest.take(change);
        self.look();
    }

    /// Whether it is known which Selectors there are.
    pub(super) fn is_known(&self) -> bool {
        self.is_listed && self.standing.is_some()
    }

    /// Those that act.
    pub(super) fn rules(&self) -> Arc<Rules> {
        self.standing.as_ref().map(Standing::rules).unwrap_or_default()
    }

    /// What the entry is to keep.
    pub(super) fn record(&self) -> String {
        self.standing.as_ref().map(Standing::record).unwrap_or_default()
    }

    /// The API server has them.
    pub(super) fn settle(&mut self) {
        if let Some(standing) = &mut self.standing {
            standing.settle();
        }
    }

    /// The API server refuses them. False when nothing of them is new.
    pub(super) fn give_up(&mut self, culprit: Option<&Name>, why: &str) -> bool {
        let Some(told) = self.standing.as_mut().and_then(|standing| standing.give_up(culprit, why)) else {
            return false;
        };
        self.tell(told);
        true
    }

    fn look(&mut self) {
        let Some(standing) = self.standing.as_mut().filter(|_| self.is_listed) else { return };
        let told = standing.take(self.latest.values());
        self.tell(told);
    }

    fn tell(&self, told: Vec<Told>) {
        self.shown.send_if_modified(|shown| {
            let now = Some(self.rules());
            let differs = *shown != now;
            *shown = now;
            differs
        });
        for Told { uid, reason, message } in told {
            let is_it = |selector: &&Selector| selector.metadata.uid.as_ref() == Some(&uid);
            let regarding: ObjectReference =
                self.latest.values().find(is_it).map(regarding_selector).unwrap_or_default();
            tracing::info!(selector = ?regarding.name, reason, message, "about a selector");
            let note = EventNote {
                regarding,
                source: Source::EciService,
                warning: true,
                reason: reason.to_owned(),
                message,
                time: None,
            };
            self.events.record(note);
        }
    }
}
