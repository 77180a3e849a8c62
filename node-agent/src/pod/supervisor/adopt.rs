//! Taking up the pods of an earlier life of this process, and removing what belongs to none.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tracing::{error, info, warn};

use super::Supervisor;
use crate::{
    chain::Chain,
    pod::{
        files::FilesError,
        ledger::{Entry, LedgerError},
        survivors,
        worker::Worker,
    },
    runtime::{Container, RuntimeError},
    sandbox::{Sandbox, SandboxError},
};

/// Why the pods of an earlier life could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The ledger.
    #[error("list pods on record")]
    Ledger(#[from] LedgerError),
    /// The containers.
    #[error("list containers")]
    Runtime(#[from] RuntimeError),
    /// The sandboxes.
    #[error("list sandboxes")]
    Sandboxes(#[from] SandboxError),
}

impl Supervisor {
    /// Takes up the pods that an earlier life of this process ran, and removes what belongs to no pod. To be called once,
    /// before [`Supervisor::run`].
    ///
    /// # Errors
    /// When it cannot be found out what is there; nothing is removed then.
    pub async fn adopt(&mut self) -> Result<(), AdoptError> {
        let parts = self.host.parts.clone();
        let uids = parts.ledger.uids()?;
        let mut containers: HashMap<String, Vec<Container>> = HashMap::new();
        for container in parts.runtime.list().await? {
            containers.entry(container.pod.uid.clone()).or_default().push(container);
        }
        let mut sandboxes = parts.sandboxes.list().await?;
        let mut known = HashSet::new();
        for uid in uids {
            let Some(entry) = self.read_entry(&uid) else { continue };
            let containers = containers.remove(&uid).unwrap_or_default();
            let found = survivors::look_at(&self.host, &entry.wish, containers).await;
            info!(pod_uid = uid, containers = found.len(), "adopt pod");
            let life = Worker::adopted(Arc::clone(&self.host), entry, found, sandboxes.remove(&uid));
            self.spawn(&uid, Some(life));
            known.insert(uid);
        }
        self.clean(containers, sandboxes, &known).await;
        Ok(())
    }

    /// A pod whose wish cannot be read is as good as unknown: what is there of it is removed.
    fn read_entry(&self, uid: &str) -> Option<Entry> {
        match self.host.parts.ledger.read(uid) {
            Ok(entry) => entry,
            Err(error) => {
                error!(pod_uid = uid, error = %Chain(&error), "read pod on record, it is given up");
                None
            }
        }
    }

    /// Removes what belongs to no pod. What cannot be removed now is found again at the next start.
    async fn clean(
        &self,
        containers: HashMap<String, Vec<Container>>,
        sandboxes: HashMap<String, Sandbox>,
        known: &HashSet<String>,
    ) {
        let parts = &self.host.parts;
        for container in containers.into_values().flatten() {
            warn!(pod_uid = container.pod.uid, container = container.id.0, "remove container of unknown pod");
            if let Err(error) = parts.runtime.remove(&container.id).await {
                warn!(container = container.id.0, error = %Chain(&error), "remove container of unknown pod failed");
            }
        }
        for uid in sandboxes.into_keys() {
            warn!(pod_uid = uid, "remove sandbox of unknown pod");
            if let Err(error) = parts.sandboxes.remove(&uid).await {
                warn!(pod_uid = uid, error = %Chain(&error), "remove sandbox of unknown pod failed");
            }
        }
        for uid in parts.ledger.uids().unwrap_or_default() {
            if !known.contains(&uid) {
                self.remove_files(uid).await;
            }
        }
    }

    async fn remove_files(&self, uid: String) {
        let parts = self.host.parts.clone();
        let name = uid.clone();
        let removed = tokio::task::spawn_blocking(move || {
            parts.files.tear_down(&uid).map_err(|error: FilesError| Chain(&error).to_string())?;
            parts.ledger.remove(&uid).map_err(|error| Chain(&error).to_string())
        });
        if let Ok(Err(error)) = removed.await {
            warn!(pod_uid = name, error, "remove files of unknown pod failed");
        }
    }
}
