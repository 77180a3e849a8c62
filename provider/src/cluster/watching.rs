//! Watches that never end.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, future};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, utils::ResetTimerBackoff};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// What a watch says.
#[derive(Debug, Clone, PartialEq)]
pub enum Watched<K> {
    /// Everything that there is: at the start, and again after each break. What is missing in it is gone.
    All(Vec<K>),
    /// An object that is new or changed.
    Applied(K),
    /// An object that is gone.
    Deleted(K),
}

impl<K> Watched<K> {
    /// The object as the change leaves it, where one object alone is watched.
    pub fn only(self) -> Option<K> {
        match self {
            Self::All(all) => all.into_iter().next(),
            Self::Applied(object) => Some(object),
            Self::Deleted(_) => None,
        }
    }
}

/// A stream of changes that goes on until it is dropped.
pub type WatchStream<K> = BoxStream<'static, Watched<K>>;

/// Follows the objects of `api` that `config` selects. Breaks are logged and mended here.
pub(crate) fn follow<K>(what: String, api: Api<K>, config: watcher::Config) -> WatchStream<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let backoff = backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(3))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times();
    let backoff = watcher::ExponentialBackoff::from(backoff);
    let events = watcher::watcher(api, config).backoff(ResetTimerBackoff::new(backoff, Duration::from_secs(30)));
    let mended = events.filter_map(move |event| {
        let event = event.inspect_err(|error| {
            tracing::warn!(
                watch = what,
                error = super::with_causes(error),
                "watch of the API server broke, trying again"
            );
        });
        future::ready(event.ok())
    });
    gather(mended).boxed()
}

/// Follows the object of this name, whether it is there or not.
pub(crate) fn follow_one<K>(what: String, api: Api<K>, name: &str) -> WatchStream<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    follow(what, api, watcher::Config::default().fields(&format!("metadata.name={name}")))
}

/// Gathers the pieces of a list into one element.
fn gather<K: Send + 'static>(events: impl Stream<Item = Event<K>> + Send) -> impl Stream<Item = Watched<K>> + Send {
    let step = |pending: &mut Vec<K>, event| {
        let out = match event {
            Event::Init => {
                pending.clear();
                None
            }
            Event::InitApply(object) => {
                pending.push(object);
                None
            }
            Event::InitDone => Some(Watched::All(std::mem::take(pending))),
            Event::Apply(object) => Some(Watched::Applied(object)),
            Event::Delete(object) => Some(Watched::Deleted(object)),
        };
        future::ready(Some(out))
    };
    events.scan(Vec::new(), step).filter_map(future::ready)
}

/// Keeps the newest state of what a watch follows.
#[derive(Debug, Clone)]
pub struct Latest<K> {
    objects: BTreeMap<String, K>,
}

impl<K> Default for Latest<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new() }
    }
}

impl<K: Resource> Latest<K> {
    /// Takes in a change.
    pub fn take(&mut self, change: Watched<K>) {
        match change {
            Watched::All(objects) => self.objects = objects.into_iter().map(|object| (key(&object), object)).collect(),
            Watched::Applied(object) => {
                self.objects.insert(key(&object), object);
            }
            Watched::Deleted(object) => {
                self.objects.remove(&key(&object));
            }
        }
    }

    /// What there is, by namespace and name.
    pub fn values(&self) -> impl Iterator<Item = &K> {
        self.objects.values()
    }
}

fn key<K: Resource>(object: &K) -> String {
    let metadata = object.meta();
    format!("{}/{}", metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn a_list_is_one_element_and_a_broken_one_none() {
        let events = [
            Event::Init,
            Event::InitApply(1),
            Event::Init,
            Event::InitApply(2),
            Event::InitApply(3),
            Event::InitDone,
            Event::Apply(4),
            Event::Delete(2),
        ];
        let seen: Vec<_> = gather(stream::iter(events)).collect().await;
        assert_eq!(seen, [Watched::All(vec![2, 3]), Watched::Applied(4), Watched::Deleted(2)]);
    }
}
