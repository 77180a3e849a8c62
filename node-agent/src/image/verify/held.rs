//! A layer that is kept while it is read.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::{
    digest::Digest,
    image::inventory::InventoryError,
    store::{
        Store,
        pins::{Holder, Pin, Pins},
    },
};

/// Keeps a layer while it lives. To give a pin back waits while layers are being removed, so that is done on a blocking
/// thread, wherever this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pin: Option<Pin>,
    tasks: TaskTracker,
    runtime: Handle,
}

impl Held {
    /// Keeps a layer; what is found of it afterwards stays.
    pub(super) async fn layer(
        store: &Arc<Store>,
        tasks: &TaskTracker,
        diff_id: Digest,
    ) -> Result<Self, InventoryError> {
        let pins = store.pins().clone();
        let pinned = tasks.spawn_blocking(move || pins.pin(Holder::Pod, &[diff_id])).await;
        let pin = Some(pinned.map_err(|_| InventoryError::Closed)?);
        Ok(Self { pin, tasks: tasks.clone(), runtime: Handle::current() })
    }

    /// Runs `act` where nobody else keeps the layer; nobody can begin to meanwhile. It blocks.
    pub(super) fn while_alone<T>(&self, pins: &Pins, act: impl FnOnce() -> T) -> Option<T> {
        self.pin.as_ref().and_then(|pin| pins.while_alone(pin, act))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let pin = self.pin.take();
        // It is joined with all tasks of the service.
        self.tasks.spawn_blocking_on(move || drop(pin), &self.runtime);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    #[tokio::test]
    async fn who_gives_it_back_does_not_wait_for_a_removal() {
        let folder = tempfile::tempdir().unwrap();
        let (store, tasks) = (Arc::new(Store::open(folder.path()).unwrap()), TaskTracker::new());
        let held = Held::layer(&store, &tasks, Digest::of(b"a")).await.unwrap();
        let (begun, has_begun) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let pins = store.pins().clone();
        let removal = std::thread::spawn(move || {
            let remove = |_: &_| {
                begun.send(()).unwrap();
                goes_on.recv_timeout(Duration::from_secs(10)).is_ok()
            };
            pins.while_unchanged(remove)
        });
        has_begun.recv().unwrap();
        drop(held);
        go_on.send(()).unwrap();
        assert_eq!(removal.join().unwrap(), Some(true), "it was given back only after the removal");
        tasks.close();
        tasks.wait().await;
        assert!(store.pins().pinned().is_empty());
    }
}
