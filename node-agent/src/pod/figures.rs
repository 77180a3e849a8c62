//! The figures of all pods: which containers run, and what each of them uses.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use crate::{
    runtime::{ContainerState, PodIdentity, Runtime, RuntimeError},
    stats::{Stats, StatsError, Usage},
};

/// A pod's figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFigures {
    /// Whose.
    pub pod: PodIdentity,
    /// Its running containers.
    pub containers: Vec<ContainerFigures>,
}

/// A container's figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFigures {
    /// Its name in the pod.
    pub name: String,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// What it uses.
    pub usage: Usage,
}

/// Figures cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum FiguresError {
    /// The containers cannot be listed.
    #[error("list containers")]
    Runtime(#[from] RuntimeError),
    /// A figure cannot be read.
    #[error("read figures")]
    Stats(#[from] StatsError),
}

/// Tells figures.
#[derive(Debug, Clone)]
pub struct FigureSource {
    runtime: Arc<dyn Runtime>,
    stats: Stats,
}

impl FigureSource {
    /// For the containers of `runtime`.
    pub fn new(runtime: Arc<dyn Runtime>, stats: Stats) -> Self {
        Self { runtime, stats }
    }

    /// The figures at this moment: the node's, and those of every pod with a running container.
    ///
    /// # Errors
    /// When the host does not tell.
    pub async fn read(&self) -> Result<(Usage, Vec<PodFigures>), FiguresError> {
        let containers = self.runtime.list().await?;
        let stats = self.stats.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut pods: BTreeMap<String, PodFigures> = BTreeMap::new();
            for container in containers {
                let ContainerState::Running { started_at, .. } = *container.state.borrow() else { continue };
                // One that has ended since is left out.
                let Some(usage) = stats.container(&container.pod.uid, &container.id.0)? else { continue };
                let pod = pods
                    .entry(container.pod.uid.clone())
                    .or_insert_with(|| PodFigures { pod: container.pod.clone(), containers: Vec::new() });
                pod.containers.push(ContainerFigures { name: container.name.clone(), started_at, usage });
            }
            Ok((stats.node()?, pods.into_values().collect()))
        });
        match read.await {
            Ok(figures) => figures,
            // Nobody aborts it, so it panicked; that is the caller's panic.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
