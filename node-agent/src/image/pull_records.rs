//! Who was let in to pull which image: [`crate::store::pulled`], with what was read of it last in memory, so that a pod that
//! starts from a cache waits for no disk.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::task::TaskTracker;

use super::verification;
use crate::{
    chain::Chain,
    digest::Digest,
    registry::{Entry, Reference},
    store::{
        Store, StoreError,
        pulled::{self, Pulled},
    },
};

/// Images of which it is remembered; above that all are read again.
const MAX_REMEMBERED: usize = 4096;

type Read = HashMap<Digest, Arc<Pulled>>;

/// The records of this host.
#[derive(Debug)]
pub(super) struct PullRecords {
    store: Arc<Store>,
    tasks: TaskTracker,
    read: Arc<Mutex<Read>>,
    /// Held from reading a file to writing it again.
    writing: Arc<Mutex<()>>,
}

impl PullRecords {
    pub(super) fn new(store: Arc<Store>, tasks: TaskTracker) -> Self {
        Self { store, tasks, read: Arc::default(), writing: Arc::default() }
    }

    /// What is known of an image.
    pub(super) async fn of(&self, manifest: Digest) -> Arc<Pulled> {
        let known = self.read.lock().unwrap_or_else(PoisonError::into_inner).get(&manifest).cloned();
        if let Some(known) = known {
            return known;
        }
        let store = Arc::clone(&self.store);
        let read = self.tasks.spawn_blocking(move || pulled::of(store.layout(), &manifest)).await;
        // A task that broke off has read nothing, as one that found nothing: the registry is asked.
        let Ok(read) = read else { return Arc::default() };
        let mut all = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has written meanwhile knows more.
        Arc::clone(bounded(&mut all).entry(manifest).or_insert_with(|| Arc::new(read)))
    }

    /// Notes that a registry has let somebody pull an image. Where that cannot be written, it is not known: the registry is
    /// asked again.
    pub(super) async fn note(&self, reference: &Reference, manifest: Digest, entry: Entry) {
        let (store, repository) = (Arc::clone(&self.store), reference.name());
        let (read, writing) = (Arc::clone(&self.read), Arc::clone(&self.writing));
        let noted = self.tasks.spawn_blocking(move || {
            let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
            // Not from memory: the file may have gone with the image meanwhile.
            let mut known = pulled::of(store.layout(), &manifest);
            let salt = format!("{:032x}", rand::random::<u128>());
            if let Some(more) = verification::with_entry(&known, &repository, &entry, &salt) {
                pulled::put(store.layout(), &manifest, &more)?;
                known = more;
            }
            let mut all = read.lock().unwrap_or_else(PoisonError::into_inner);
            bounded(&mut all).insert(manifest, Arc::new(known));
            Ok::<_, StoreError>(())
        });
        if let Ok(Err(err)) = noted.await {
            tracing::warn!(%manifest, error = %Chain(&err), "note who was let in to pull an image");
        }
    }
}

fn bounded(all: &mut Read) -> &mut Read {
    if all.len() >= MAX_REMEMBERED {
        all.clear();
    }
    all
}
