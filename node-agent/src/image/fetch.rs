//! Fetching the layers of an image: only those that are missing, several at once, each once however many ask.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::TaskTracker;

use super::{
    pull::{PullError, Puller},
    pull_plan::{self, Plan, PlannedLayer},
    pulls::Moved,
    single_flight::{Flights, Passenger},
    turns::Turns,
};
use crate::{
    digest::Digest,
    registry::{Reference, Repository},
    snapshot::Layer,
};

/// How often progress is told.
const REPORT_EVERY: Duration = Duration::from_millis(500);

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
    turns: Turns,
    tasks: TaskTracker,
}

/// What a fetch was like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetched {
    /// When the first of the layers had its turn; none when nothing had to be fetched.
    pub(super) begun: Option<Instant>,
}

impl Fetcher {
    pub(super) fn new(puller: Puller, turns: Turns, tasks: TaskTracker) -> Self {
        let flights = Flights::new(tasks.clone());
        Self { puller, flights, turns, tasks }
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
            // Here and not in the task: tasks run in any order, and the largest is to come first.
            let place = self.turns.queue(reference.registry());
            async move {
                let from = repository.name().to_owned();
                let Some(_turn) = place.turn().await else {
                    return Landed { from, outcome: Err(Arc::new(PullError::Interrupted(layer.blob.digest))) };
                };
                progress.begin(Instant::now());
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
}
