//! Reading the whole store again, and putting right what is wrong: derived files are made anew, layers and documents are
//! fetched again from where they came.
//!
//! What is damaged and cannot be fetched stays where it is as long as somebody uses it, and goes otherwise: a layer that is
//! not there is fetched when it is wanted, one that is wrong would be believed.

mod held;
mod repair;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::mpsc;

use self::{held::Held, repair::Repair};
use super::{documents::Documents, inventory::InventoryError, service::ImageService};
use crate::{
    chain::Chain,
    digest::Digest,
    snapshot::{Condition, Driver, ImageLayers, Mend, SnapshotError},
    store::{
        caches,
        index::{ImageRecord, LayerRecord},
    },
};

/// What was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A layer, by its diff id.
    Layer(Digest),
    /// A composed image, by its manifest.
    Image(Digest),
    /// A manifest, index or configuration.
    Document(Digest),
    /// The file of an image cache, by its id.
    Cache(String),
}

/// What became of something that was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it was only to be told.
    Told,
    /// It is as it should be.
    Repaired,
    /// It is gone; it comes again when it is wanted.
    Removed,
    /// It is as wrong as before.
    Left(String),
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub subject: Subject,
    /// In which way.
    pub why: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What is told while the store is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyStep {
    /// How much of the layers has been read.
    Read {
        /// Bytes.
        done_bytes: u64,
        /// Of so many.
        total_bytes: u64,
    },
    /// Something is wrong.
    Found(Finding),
}

/// What a verification has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verified {
    /// Layers that were read.
    pub layers: u64,
    /// Of these, layers kept as files by a version that took no digests of these: their content was not compared.
    pub unhashed_layers: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Composed images that were compared with their layers.
    pub images: u64,
    /// Documents that were read.
    pub documents: u64,
    /// Things that were wrong.
    pub wrong: u64,
    /// Of these, things that are no longer wrong: repaired, or gone.
    pub righted: u64,
}

/// Why the store is not verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is being done.
    #[error("the store is being verified already")]
    Busy,
    /// The store cannot be read.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
}

impl ImageService {
    /// Reads everything in the store again, and with [`Mend::Yes`] puts right what can be. Tells what it finds; who does
    /// not want to know any more ends it.
    ///
    /// # Errors
    /// When it is being done already, or the store cannot be read at all.
    pub async fn verify(
        self: &Arc<Self>,
        mend: Mend,
        steps: mpsc::Sender<VerifyStep>,
    ) -> Result<Verified, VerifyError> {
        let _once = self.verifying.try_lock().map_err(|_| VerifyError::Busy)?;
        let store = Arc::clone(&self.store);
        let documents = Documents(Arc::clone(&store));
        let list = move || Ok((store.layers()?, store.images()?, documents.all()?));
        let (layers, images, documents) = self.blocking(list).await?;
        let total_bytes = layers.iter().map(|layer| layer.size_bytes).sum();
        let mut run = Run { service: self, mend, steps, images, total_bytes, verified: Verified::default() };
        for layer in &layers {
            run.layer(layer).await?;
        }
        run.images().await?;
        run.documents(documents).await?;
        run.caches().await?;
        Ok(run.verified)
    }
}

struct Run<'a> {
    service: &'a Arc<ImageService>,
    mend: Mend,
    steps: mpsc::Sender<VerifyStep>,
    images: Vec<ImageRecord>,
    total_bytes: u64,
    verified: Verified,
}

impl Run<'_> {
    async fn layer(&mut self, layer: &LayerRecord) -> Result<(), VerifyError> {
        let diff_id = layer.diff_id;
        // While it is read it is not to be removed.
        let held = Arc::new(Held::layer(&self.service.store, &self.service.tasks, diff_id).await?);
        let condition = match self.check_layer(diff_id).await? {
            Ok(condition) => condition,
            // It went before it was pinned.
            Err(_) if self.service.snapshotter.layer(&diff_id).is_none() => return Ok(()),
            Err(error) => Condition::Damaged(Chain(&error).to_string()),
        };
        self.verified.layers += 1;
        self.verified.unhashed_layers += u64::from(condition == Condition::Unhashed);
        match condition {
            Condition::Sound | Condition::Unhashed => Ok(()),
            Condition::Derived { why, mended } => {
                self.found(Subject::Layer(diff_id), why, derived(mended)).await;
                Ok(())
            }
            Condition::Damaged(why) => {
                let outcome = match self.mend {
                    Mend::Yes => self.repair(|repair| async move { repair.layer(diff_id, held).await }).await,
                    Mend::No => Outcome::Told,
                };
                self.found(Subject::Layer(diff_id), why, outcome).await;
                Ok(())
            }
        }
    }

    async fn check_layer(&mut self, diff_id: Digest) -> Result<Result<Condition, SnapshotError>, VerifyError> {
        let (snapshotter, mend, steps) = (Arc::clone(&self.service.snapshotter), self.mend, self.steps.clone());
        let (before, total_bytes) = (self.verified.bytes, self.total_bytes);
        let read_bytes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&read_bytes);
        let check = move || {
            let mut read = |more: u64| {
                let done_bytes = before + counted.fetch_add(more, Ordering::Relaxed) + more;
                // What is not taken in time is out of date.
                let _ = steps.try_send(VerifyStep::Read { done_bytes, total_bytes });
            };
            Ok(snapshotter.check_layer(&diff_id, mend, &mut read))
        };
        let checked = self.service.blocking(check).await?;
        self.verified.bytes += read_bytes.load(Ordering::Relaxed);
        Ok(checked)
    }

    async fn images(&mut self) -> Result<(), VerifyError> {
        for image in self.images.clone() {
            let layers = ImageLayers { manifest: image.manifest, diff_ids: image.diff_ids };
            let subject = Subject::Image(layers.manifest);
            // What a container's overlay stands on is not taken from under it.
            let only_unused = self.mend == Mend::Yes && self.service.snapshotter.driver() == Driver::Directory;
            let looked = if only_unused { Mend::No } else { self.mend };
            let (snapshotter, image) = (Arc::clone(&self.service.snapshotter), layers.clone());
            let condition = self.service.blocking(move || Ok(snapshotter.check_image(&image, looked))).await?;
            self.verified.images += 1;
            match condition {
                Ok(Condition::Sound | Condition::Unhashed) => {}
                Ok(Condition::Derived { why, .. }) if only_unused => {
                    let outcome = self.mend_unused(layers).await;
                    self.found(subject, why, outcome).await;
                }
                Ok(Condition::Derived { why, mended }) => self.found(subject, why, derived(mended)).await,
                Ok(Condition::Damaged(why)) => self.found(subject, why, Outcome::Told).await,
                // It went, or a layer of it is gone or wrong and has been told of.
                Err(SnapshotError::MissingLayer(_) | SnapshotError::CorruptIndex { .. }) => {}
                Err(error) => {
                    let why = Chain(&error).to_string();
                    self.found(subject, why, Outcome::Told).await;
                }
            }
        }
        Ok(())
    }

    async fn mend_unused(&self, image: ImageLayers) -> Outcome {
        let snapshotter = Arc::clone(&self.service.snapshotter);
        let manifest = image.manifest;
        let mend = move || snapshotter.check_image(&image, Mend::Yes);
        match self.service.engine.mounts.while_unused(&manifest, mend).await {
            Ok(Some(Condition::Sound | Condition::Unhashed | Condition::Derived { mended: true, .. })) => {
                Outcome::Repaired
            }
            Ok(Some(Condition::Damaged(why) | Condition::Derived { why, mended: false })) => Outcome::Left(why),
            Ok(None) => Outcome::Left(repair::IN_USE.to_owned()),
            Err(error) => Outcome::Left(Chain(&error).to_string()),
        }
    }

    async fn documents(&mut self, all: Vec<Digest>) -> Result<(), VerifyError> {
        for digest in all {
            let documents = Documents(Arc::clone(&self.service.store));
            let is_whole = self.service.blocking(move || Ok(documents.get(&digest).is_some())).await?;
            self.verified.documents += 1;
            if is_whole {
                continue;
            }
            let outcome = match self.mend {
                Mend::Yes => self.repair(|repair| async move { repair.document(digest).await }).await,
                Mend::No => Outcome::Told,
            };
            self.found(Subject::Document(digest), "its content has another digest".to_owned(), outcome).await;
        }
        Ok(())
    }

    async fn caches(&mut self) -> Result<(), VerifyError> {
        let known = self.service.watch_caches().borrow().clone();
        let store = Arc::clone(&self.service.store);
        let list = move || Ok(caches::list::<serde::de::IgnoredAny>(store.layout())?);
        let readable = self.service.blocking(list).await?;
        for id in known.keys().filter(|id| !readable.iter().any(|(readable, _)| readable == *id)) {
            let why = "its file is gone or cannot be read".to_owned();
            self.found(Subject::Cache(id.clone()), why, Outcome::Told).await;
        }
        Ok(())
    }

    /// A repair is done to its end, also when whoever asked for it has gone in the middle.
    async fn repair<F>(&self, act: impl FnOnce(Repair) -> F) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let repair = Repair { service: Arc::clone(self.service), images: self.images.clone() };
        let repaired = self.service.tasks.spawn(act(repair)).await;
        repaired.unwrap_or_else(|_| Outcome::Left("the node agent is ending".to_owned()))
    }

    async fn found(&mut self, subject: Subject, why: String, outcome: Outcome) {
        tracing::warn!(?subject, why, ?outcome, "store verification found something");
        self.verified.wrong += 1;
        self.verified.righted += u64::from(matches!(outcome, Outcome::Repaired | Outcome::Removed));
        // Who has gone does not want to know.
        let _ = self.steps.send(VerifyStep::Found(Finding { subject, why, outcome })).await;
    }
}

fn derived(mended: bool) -> Outcome {
    if mended { Outcome::Repaired } else { Outcome::Told }
}
