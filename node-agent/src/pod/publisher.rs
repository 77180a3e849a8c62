//! Hands the newest status of each pod, and its events, to whoever watches.
//!
//! A slow reader costs a bounded amount: of a pod only the newest state waits for it, and of events only the newest
//! [`EVENTS_KEPT`]. Events that nobody watches for wait here for the next reader, under the same bound.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::PodStatus;
use tokio::sync::Notify;

use super::events::PodEvent;
use crate::runtime::PodIdentity;

/// How many events wait for a reader at most.
const EVENTS_KEPT: usize = 1000;

/// What the agent knows of a pod at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct PodSnapshot {
    /// Whose.
    pub identity: PodIdentity,
    /// Grows with each snapshot of this pod.
    pub generation: u64,
    /// As the API server shall see it.
    pub status: PodStatus,
    /// No process is left and none will come.
    pub terminated: bool,
}

/// One thing that a watcher is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A pod is new or changed.
    Changed(Arc<PodSnapshot>),
    /// A pod is gone; this was its last state.
    Gone(Arc<PodSnapshot>),
    /// A Kubernetes event.
    Event(Arc<PodEvent>),
}

/// The publishing side; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Publisher {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    pods: BTreeMap<String, Arc<PodSnapshot>>,
    mailboxes: Vec<Arc<Mailbox>>,
    unread: VecDeque<Arc<PodEvent>>,
}

#[derive(Debug, Default)]
struct Mailbox {
    letters: Mutex<Letters>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Letters {
    /// Which pods have changed, in the order of their first unread change.
    order: VecDeque<String>,
    changes: HashMap<String, Change>,
    events: VecDeque<Arc<PodEvent>>,
}

/// The reading side: first [`Subscription::list`], then [`Subscription::next`].
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Mutex<Shared>>,
    mailbox: Arc<Mailbox>,
    /// All pods at the moment of the subscription.
    pub list: Vec<Arc<PodSnapshot>>,
}

impl Publisher {
    /// Puts a pod into the list without telling those who watch already.
    pub fn introduce(&self, snapshot: PodSnapshot) {
        let uid = snapshot.identity.uid.clone();
        lock(&self.shared).pods.entry(uid).or_insert_with(|| Arc::new(snapshot));
    }

    /// Tells the newest state of a pod.
    pub fn changed(&self, snapshot: PodSnapshot) {
        let (uid, snapshot) = (snapshot.identity.uid.clone(), Arc::new(snapshot));
        let mut shared = lock(&self.shared);
        shared.pods.insert(uid.clone(), Arc::clone(&snapshot));
        shared.tell(&uid, &Change::Changed(snapshot));
    }

    /// Tells that a pod is gone.
    pub fn gone(&self, snapshot: PodSnapshot) {
        let (uid, snapshot) = (snapshot.identity.uid.clone(), Arc::new(snapshot));
        let mut shared = lock(&self.shared);
        shared.pods.remove(&uid);
        shared.tell(&uid, &Change::Gone(snapshot));
    }

    /// Tells an event.
    pub fn event(&self, event: PodEvent) {
        let event = Arc::new(event);
        let mut shared = lock(&self.shared);
        if shared.mailboxes.is_empty() {
            push_bounded(&mut shared.unread, event);
            return;
        }
        for mailbox in &shared.mailboxes {
            push_bounded(&mut lock(&mailbox.letters).events, Arc::clone(&event));
            mailbox.arrived.notify_one();
        }
    }

    /// All pods at this moment, by UID.
    pub fn list(&self) -> Vec<Arc<PodSnapshot>> {
        lock(&self.shared).pods.values().cloned().collect()
    }

    /// The newest state of one pod.
    pub fn get(&self, uid: &str) -> Option<Arc<PodSnapshot>> {
        lock(&self.shared).pods.get(uid).cloned()
    }

    /// Begins to watch. Nothing between the list and the first change is lost.
    pub fn subscribe(&self) -> Subscription {
        let mut shared = lock(&self.shared);
        let mailbox = Arc::new(Mailbox::default());
        let unread = std::mem::take(&mut shared.unread);
        if !unread.is_empty() {
            lock(&mailbox.letters).events = unread;
            mailbox.arrived.notify_one();
        }
        shared.mailboxes.push(Arc::clone(&mailbox));
        let list = shared.pods.values().cloned().collect();
        Subscription { shared: Arc::clone(&self.shared), mailbox, list }
    }
}

impl Shared {
    fn tell(&self, uid: &str, change: &Change) {
        for mailbox in &self.mailboxes {
            let mut letters = lock(&mailbox.letters);
            if letters.changes.insert(uid.to_owned(), change.clone()).is_none() {
                letters.order.push_back(uid.to_owned());
            }
            drop(letters);
            mailbox.arrived.notify_one();
        }
    }
}

impl Subscription {
    /// The next thing to tell. Dropping the future loses nothing.
    pub async fn next(&self) -> Change {
        loop {
            if let Some(change) = self.take() {
                return change;
            }
            self.mailbox.arrived.notified().await;
        }
    }

    /// Statuses before events: a status is what others wait for.
    fn take(&self) -> Option<Change> {
        let mut letters = lock(&self.mailbox.letters);
        if let Some(uid) = letters.order.pop_front() {
            return letters.changes.remove(&uid);
        }
        letters.events.pop_front().map(Change::Event)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.mailboxes.retain(|mailbox| !Arc::ptr_eq(mailbox, &self.mailbox));
        if shared.mailboxes.is_empty() {
            let events = std::mem::take(&mut lock(&self.mailbox.letters).events);
            for event in events {
                push_bounded(&mut shared.unread, event);
            }
        }
    }
}

fn push_bounded(events: &mut VecDeque<Arc<PodEvent>>, event: Arc<PodEvent>) {
    if events.len() == EVENTS_KEPT {
        events.pop_front();
    }
    events.push_back(event);
}

/// What is behind these locks is whole after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::pod::events;

    fn snapshot(uid: &str, generation: u64) -> PodSnapshot {
        let identity = PodIdentity { uid: uid.into(), namespace: "ns".into(), name: uid.into() };
        PodSnapshot { identity, generation, status: PodStatus::default(), terminated: false }
    }

    fn event(number: usize) -> PodEvent {
        PodEvent {
            uid: "a".into(),
            namespace: "ns".into(),
            name: "a".into(),
            field_path: String::new(),
            notice: events::failed(&number.to_string()),
            time: Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn a_slow_reader_gets_only_the_newest_state() {
        let publisher = Publisher::default();
        publisher.changed(snapshot("a", 1));
        let subscription = publisher.subscribe();
        assert_eq!(subscription.list, [Arc::new(snapshot("a", 1))]);
        publisher.changed(snapshot("a", 2));
        publisher.changed(snapshot("b", 1));
        publisher.changed(snapshot("a", 3));
        publisher.gone(snapshot("b", 2));
        assert_eq!(subscription.next().await, Change::Changed(Arc::new(snapshot("a", 3))));
        assert_eq!(subscription.next().await, Change::Gone(Arc::new(snapshot("b", 2))));
        assert_eq!(publisher.list(), [Arc::new(snapshot("a", 3))]);
    }

    #[tokio::test]
    async fn events_wait_for_a_reader_under_a_bound() {
        let publisher = Publisher::default();
        (0..EVENTS_KEPT + 5).for_each(|number| publisher.event(event(number)));
        let first = publisher.subscribe();
        assert_eq!(first.next().await, Change::Event(Arc::new(event(5))));
        // What a reader leaves unread waits for the next one.
        drop(first);
        let second = publisher.subscribe();
        assert_eq!(second.next().await, Change::Event(Arc::new(event(6))));
    }
}
