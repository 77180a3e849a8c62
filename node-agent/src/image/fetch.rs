//! Fetching the layers of an image: only those that are missing, several at once, each once however many ask.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::task::TaskTracker;

use super::{
    pull::{self, PullError, Puller},
    pull_plan::{self, Plan, PlannedLayer},
    pulls::Moved,
    single_flight::{Flights, Passenger},
};
use crate::{
    digest::Digest,
    registry::{Reference, Repository},
    snapshot::Layer,
};

/// How often progress is told.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// Registries whose turns are kept apart.
const MAX_REGISTRIES: usize = 1024;

type Outcome = Result<Layer, Arc<PullError>>;

/// What came of a flight, and from which repository.
#[derive(Debug, Clone)]
struct Landed {
    from: String,
    outcome: Outcome,
}

/// Fetches layers.
#[derive(Debug)]
pub(super) struct Fetcher {
    puller: Puller,
    /// By registry and diff id. A layer that two registries claim to have is fetched from each: so one that is slow or lies
    /// does no harm to the pods of another.
    flights: Flights<(String, Digest), Landed>,
    /// How many layers come from one registry at once.
    turns: Mutex<HashMap<String, Arc<Semaphore>>>,
    parallel: usize,
    tasks: TaskTracker,
}

/// What a fetch was like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetched {
    /// When the first of the layers had its turn; none when nothing had to be fetched.
    pub(super) begun: Option<Instant>,
}

impl Fetcher {
    pub(super) fn new(puller: Puller, parallel: usize, tasks: TaskTracker) -> Self {
        let flights = Flights::new(tasks.clone());
        Self { puller, flights, turns: Mutex::default(), parallel: parallel.max(1), tasks }
    }

    /// What of these layers is not here.
    pub(super) async fn plan(&self, layers: &[PlannedLayer]) -> Plan {
        let (snapshotter, all) = (Arc::clone(&self.puller.snapshotter), layers.to_vec());
        let planned =
            self.tasks.spawn_blocking(move || pull_plan::plan(&all, |diff_id| snapshotter.layer(diff_id).is_some()));
        // A snapshotter that panics holds nothing.
        planned.await.unwrap_or_else(|_| pull_plan::plan(layers, |_| false))
    }

    /// Bytes of the plain tars of layers that are here, each counted once.
    pub(super) async fn unpacked_bytes(&self, layers: &[PlannedLayer]) -> u64 {
        let snapshotter = Arc::clone(&self.puller.snapshotter);
        let diff_ids: HashSet<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let counted = self.tasks.spawn_blocking(move || {
            diff_ids.iter().filter_map(|diff_id| snapshotter.layer(diff_id)).map(|layer| layer.size_bytes).sum()
        });
        counted.await.unwrap_or_default()
    }

    /// Brings the layers of a plan here. Dropping the future gives up the wish; layers that are whole stay.
    pub(super) async fn fetch(
        &self,
        reference: &Reference,
        repository: &Arc<dyn Repository>,
        plan: &Plan,
        mut report: impl FnMut(Moved),
    ) -> Result<Fetched, Arc<PullError>> {
        let total_bytes = plan.missing_bytes;
        let total_layers = u32::try_from(plan.missing.len()).unwrap_or(u32::MAX);
        let passengers: Vec<_> = plan.missing.iter().map(|layer| self.join(reference, repository, layer)).collect();
        let mut outcomes: FuturesUnordered<_> = passengers
            .iter()
            .zip(&plan.missing)
            .map(|(passenger, layer)| self.outcome(reference, repository, layer, passenger))
            .collect();
        let mut tick = tokio::time::interval(REPORT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut done_layers) = (None, 0);
        loop {
            tokio::select! {
                // The stream keeps its place when this arm is dropped.
                outcome = outcomes.next() => match outcome {
                    Some(outcome) => { outcome?; done_layers += 1; }
                    None => break,
                },
                // A tick that is dropped comes again.
                _ = tick.tick() => {
                    let done_bytes = passengers.iter().map(|one| one.progress().done()).sum();
                    let moved = Moved { done_bytes, total_bytes, done_layers, total_layers };
                    if last.replace(moved) != Some(moved) {
                        report(moved);
                    }
                }
            }
        }
        Ok(Fetched { begun: passengers.iter().filter_map(|one| one.progress().begun()).min() })
    }

    fn join(&self, reference: &Reference, repository: &Arc<dyn Repository>, layer: &PlannedLayer) -> Passenger<Landed> {
        let key = (reference.registry().to_owned(), layer.diff_id);
        self.flights.join(key, |progress| {
            let (puller, repository, layer) = (self.puller.clone(), Arc::clone(repository), *layer);
            let turns = self.turns(reference.registry());
            async move {
                let from = repository.name().to_owned();
                let Some(_turn) = pull::turn(&turns, &progress).await else {
                    return Landed { from, outcome: Err(Arc::new(PullError::Interrupted(layer.blob.digest))) };
                };
                let outcome = puller.layer(repository.as_ref(), &layer, &progress).await.map_err(Arc::new);
                Landed { from, outcome }
            }
        })
    }

    async fn outcome(
        &self,
        reference: &Reference,
        repository: &Arc<dyn Repository>,
        layer: &PlannedLayer,
        passenger: &Passenger<Landed>,
    ) -> Outcome {
        let interrupted = || Arc::new(PullError::Interrupted(layer.blob.digest));
        let landed = passenger.outcome().await.ok_or_else(interrupted)?;
        match landed.outcome {
            // What another repository or another login could not get, ours may.
            Err(err) if !passenger.is_first() && (landed.from != repository.name() || err.is_about_access()) => {
                let own = self.join(reference, repository, layer);
                own.outcome().await.ok_or_else(interrupted)?.outcome
            }
            outcome => outcome,
        }
    }

    fn turns(&self, registry: &str) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= MAX_REGISTRIES {
            turns.retain(|_, of_registry| Arc::strong_count(of_registry) > 1);
        }
        let new = || Arc::new(Semaphore::new(self.parallel));
        Arc::clone(turns.entry(registry.to_owned()).or_insert_with(new))
    }
}
