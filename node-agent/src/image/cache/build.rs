//! Building a cache: resolve all its images, fetch what is missing, mount them.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{sync::mpsc, task::JoinError};

use super::{BuildCache, CachedImage, serving::Held};
use crate::{
    chain::Chain,
    digest::Digest,
    image::{
        mounts::Pin,
        pull_plan::Plan,
        pulls::{Moved, Pull, Waiter},
        resolve::ResolvedImage,
        service::{Engine, EngineError},
    },
    registry::{Entry, Reference, RegistryAccess, Repository, Resolve},
    store::pins::Holder,
};

/// Images of one cache that are pulled at once; their layers take turns as all layers of a registry do.
const IMAGES_AT_ONCE: usize = 4;

/// What a build tells while it runs.
#[derive(Debug)]
pub(super) enum Report {
    /// 0 to 99.
    Progress(u8),
    /// A step. The message names the image where it is about one.
    Event { name: String, reason: &'static str, message: String, warning: bool },
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error("couldn't parse image name {reference:?}: {why}")]
    Reference { reference: String, why: String },
    #[error("failed to pull image {reference:?}: {cause}")]
    Pull { reference: String, cause: String },
    #[error("the images take {} {when}, the cache's size is {}", gibibytes(*needed_bytes), gibibytes(*limit_bytes))]
    TooLarge { when: &'static str, needed_bytes: u64, limit_bytes: u64 },
    #[error("the build broke off by a fault of the node agent: {0}")]
    BrokeOff(JoinError),
}

fn gibibytes(bytes: u64) -> String {
    // Exact below 2^53 bytes, and what is shown has two places.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let gibibytes = bytes as f64 / f64::from(1 << 30);
    if gibibytes >= 0.1 { format!("{gibibytes:.2} GiB") } else { format!("{bytes} bytes") }
}

/// One image on its way.
struct Wanted {
    written: String,
    reference: Reference,
    repository: Arc<dyn Repository>,
    image: ResolvedImage,
    /// A login has let it in.
    is_private: bool,
    pin: Pin,
    plan: Plan,
    done: AtomicU64,
    /// Seen in the list of pulls until the image is mounted.
    pull: Pull,
}

/// A build.
pub(super) struct Build {
    pub(super) engine: Arc<Engine>,
    pub(super) wish: BuildCache,
    pub(super) reports: mpsc::Sender<Report>,
}

impl Build {
    /// Brings all images here. Dropping the future gives up; layers that are whole stay.
    pub(super) async fn run(self) -> Result<Vec<Held>, BuildError> {
        let references = self.references()?;
        // ECI's words, here and for what follows.
        self.event(&self.wish.name, "Started", "Successfully check image cache resource.".to_owned()).await;
        self.event(&self.wish.name, "Pulling", "start to pull images".to_owned()).await;
        let resolving = stream::iter(references).map(|(written, reference)| self.resolve(written, reference));
        // In order, so that the first failure in the user's order is the one that is told.
        let wanted: Vec<Wanted> = resolving.buffered(IMAGES_AT_ONCE).try_collect().await?;
        self.check_transfer(&wanted)?;
        let fetching: Vec<_> = wanted.iter().map(|one| self.fetch(one, &wanted)).collect();
        stream::iter(fetching).buffer_unordered(IMAGES_AT_ONCE).try_collect::<Vec<()>>().await?;
        let mut held = Vec::with_capacity(wanted.len());
        for one in wanted {
            held.push(self.hold(one).await?);
        }
        Ok(held)
    }

    /// What the user wrote and what it means; what means the same is there once.
    fn references(&self) -> Result<Vec<(String, Reference)>, BuildError> {
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for written in &self.wish.images {
            let reference: Reference = written
                .parse()
                .map_err(|err| BuildError::Reference { reference: written.clone(), why: format!("{err}") })?;
            if seen.insert(reference.clone()) {
                all.push((written.clone(), reference));
            }
        }
        Ok(all)
    }

    async fn resolve(&self, written: String, reference: Reference) -> Result<Wanted, BuildError> {
        self.event(&written, "Pulling", format!("Pulling image \"{written}\"")).await;
        let pull = self.engine.pulls.begin(&reference, Waiter::Cache(self.wish.name.clone()), jiff::Timestamp::now());
        let resolved = async {
            let repository = self.engine.registries.open(&reference, &self.wish.access).await?;
            let (image, entry) = self.engine.resolve(&reference, &repository).await?;
            let is_private = entry != Entry::Anybody;
            self.engine.note_pull(&reference, &self.wish.access, image.manifest, entry).await;
            let pin = self.engine.mounts.pin(Holder::Cache, &image.image_layers()).await?;
            let plan = self.engine.fetcher.plan(&image.layers).await;
            Ok::<_, EngineError>((repository, image, is_private, pin, plan))
        };
        let (repository, image, is_private, pin, plan) = match resolved.await {
            Ok(resolved) => resolved,
            Err(err) => return Err(self.failed(&written, err).await),
        };
        Ok(Wanted { written, reference, repository, image, is_private, pin, plan, done: AtomicU64::new(0), pull })
    }

    /// A public image may have been asked for with a login. Whether it is public is found out now, so that no pod that
    /// starts from the cache has to.
    async fn note_if_public(&self, one: &Wanted) {
        if !one.is_private {
            return;
        }
        let (reference, image) = (&one.reference, &one.image);
        let access = RegistryAccess { credentials: Vec::new(), ..self.wish.access.clone() };
        let Ok(repository) = self.engine.registries.open(reference, &access).await else { return };
        match repository.resolve(&image.top.to_string(), Resolve::WithContent).await {
            Ok(found) => self.engine.records.note(reference, image.manifest, found.entry).await,
            // Whatever the reason: pods are asked for their own logins then.
            Err(err) => tracing::debug!(%reference, error = %Chain(&err), "not for everybody"),
        }
    }

    async fn fetch(&self, one: &Wanted, all: &[Wanted]) -> Result<(), BuildError> {
        let total: u64 = all.iter().map(|wanted| wanted.plan.missing_bytes).sum();
        let report = |moved: Moved| {
            one.pull.moved(moved);
            one.done.store(moved.done_bytes, Ordering::Relaxed);
            let done: u64 = all.iter().map(|wanted| wanted.done.load(Ordering::Relaxed)).sum();
            // What is not read in time is out of date.
            let _ = self.reports.try_send(Report::Progress(percent(done, total)));
        };
        let fetch = self.engine.fetcher.fetch(&one.reference, &one.repository, &one.plan, report);
        // Beside the transfer: a registry that lets nobody in without a login may take its time to say so.
        let (fetched, ()) = tokio::join!(fetch, self.note_if_public(one));
        if let Err(err) = fetched {
            return Err(self.failed(&one.written, EngineError::Pull(err)).await);
        }
        one.done.store(one.plan.missing_bytes, Ordering::Relaxed);
        self.check_unpacked(all).await?;
        self.event(&one.written, "Pulled", format!("Successfully pulled image {}", one.written)).await;
        Ok(())
    }

    async fn hold(&self, one: Wanted) -> Result<Held, BuildError> {
        if let Err(err) = self.engine.mounts.mount(&one.pin).await {
            return Err(self.failed(&one.written, EngineError::Mount(err)).await);
        }
        let size_bytes = self.engine.fetcher.unpacked_bytes(&one.image.layers).await;
        let index = Some(one.image.top).filter(|top| *top != one.image.manifest);
        let cached = CachedImage { reference: one.written, manifest: one.image.manifest, index, size_bytes };
        Ok(Held { cached, reference: one.reference, image: Arc::new(one.image), pin: one.pin })
    }

    /// What is transferred is smaller than what is unpacked: when that is too much already, nothing need be moved.
    fn check_transfer(&self, wanted: &[Wanted]) -> Result<(), BuildError> {
        let mut seen = HashSet::new();
        let layers = wanted.iter().flat_map(|one| &one.image.layers);
        let bytes = layers.filter(|layer| seen.insert(layer.blob.digest)).map(|layer| layer.blob.size);
        self.check_size("before unpacking", bytes.fold(0, u64::saturating_add))
    }

    /// The unpacked size of what is here so far, each layer counted once.
    async fn check_unpacked(&self, wanted: &[Wanted]) -> Result<(), BuildError> {
        let mut seen: HashSet<Digest> = HashSet::new();
        let layers = wanted.iter().flat_map(|one| &one.image.layers);
        let distinct: Vec<_> = layers.filter(|layer| seen.insert(layer.diff_id)).copied().collect();
        self.check_size("unpacked", self.engine.fetcher.unpacked_bytes(&distinct).await)
    }

    fn check_size(&self, when: &'static str, needed_bytes: u64) -> Result<(), BuildError> {
        let limit_bytes = self.wish.size_limit_bytes;
        if limit_bytes > 0 && needed_bytes > limit_bytes {
            return Err(BuildError::TooLarge { when, needed_bytes, limit_bytes });
        }
        Ok(())
    }

    async fn failed(&self, reference: &str, err: EngineError) -> BuildError {
        let err = self.engine.with_shortage(err).await;
        let err = BuildError::Pull { reference: reference.to_owned(), cause: Chain(&err).to_string() };
        let (name, message) = (reference.to_owned(), err.to_string());
        self.report(Report::Event { name, reason: "Failed", message, warning: true }).await;
        err
    }

    async fn event(&self, name: &str, reason: &'static str, message: String) {
        self.report(Report::Event { name: name.to_owned(), reason, message, warning: false }).await;
    }

    async fn report(&self, report: Report) {
        // The keeper reads until it ends, and then nobody wants to know.
        let _ = self.reports.send(report).await;
    }
}

/// How much of `total` is done. A hundred is for what is durable.
fn percent(done: u64, total: u64) -> u8 {
    let of_hundred = done.saturating_mul(100).checked_div(total).unwrap_or(0);
    u8::try_from(of_hundred.min(99)).unwrap_or(99)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_both_sizes() {
        let err = BuildError::TooLarge { when: "unpacked", needed_bytes: 23_085_449_216, limit_bytes: 20 << 30 };
        assert_eq!(err.to_string(), "the images take 21.50 GiB unpacked, the cache's size is 20.00 GiB");
        assert_eq!(gibibytes(12), "12 bytes");
    }

    #[test]
    fn a_percent_is_never_a_hundred() {
        assert_eq!([percent(0, 0), percent(1, 3), percent(3, 3), percent(u64::MAX, 1)], [0, 33, 99, 99]);
    }
}
