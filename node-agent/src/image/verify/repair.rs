//! Putting right what a verification has found: fetching it again from where its image came.

use std::sync::Arc;

use super::{Outcome, held::Held};
use crate::{
    chain::Chain,
    digest::Digest,
    image::{
        RegistryAccess,
        service::{EngineError, ImageService},
    },
    registry::Reference,
    snapshot::Driver,
    store::{
        aside::{self, Settled},
        durable,
        index::ImageRecord,
        note,
        sources::{self, Source},
    },
};

/// Why files stay as they are.
pub(super) const IN_USE: &str = "pods or image caches use its files: delete these, then verify again";
/// Added to what a registry says that does not let us in.
const NO_LOGIN: &str = " (a repair has the logins of this node alone: those of pods and image caches are not kept; give the \
     node one, or delete what uses the layer and let it be pulled again)";

/// A repair.
pub(super) struct Repair {
    pub(super) service: Arc<ImageService>,
    /// All composed images.
    pub(super) images: Vec<ImageRecord>,
}

impl Repair {
    /// Fetches a damaged layer again from where one of its images came.
    pub(super) async fn layer(&self, diff_id: Digest, held: Arc<Held>) -> Outcome {
        let (store, snapshotter) = (Arc::clone(&self.service.store), Arc::clone(&self.service.snapshotter));
        let remove = move || {
            note(store.index().remove_layer(&diff_id));
            snapshotter.remove_layer(&diff_id)
        };
        // `held` itself lives until the end: what has been fetched again does not go before its users have it.
        let (pins, alone) = (self.service.store.pins().clone(), Arc::clone(&held));
        let removed = self.service.blocking(move || Ok(alone.while_alone(&pins, remove).transpose()?)).await;
        match (removed, self.service.snapshotter.driver()) {
            (Ok(Some(())), _) => self.removed_layer(diff_id).await,
            (Ok(None), Driver::Erofs) => self.used_layer(diff_id).await,
            // Its files would go from under the containers.
            (Ok(None), Driver::Directory) => Outcome::Left(IN_USE.to_owned()),
            (Err(error), _) => Outcome::Left(Chain(&error).to_string()),
        }
    }

    async fn removed_layer(&self, diff_id: Digest) -> Outcome {
        match self.fetch_layer(diff_id).await {
            Ok(()) => Outcome::Repaired,
            Err(why) => {
                tracing::info!(%diff_id, why, "a damaged layer that nobody uses does not come again for now");
                Outcome::Removed
            }
        }
    }

    /// Mounts that are there get the right bytes too.
    async fn used_layer(&self, diff_id: Digest) -> Outcome {
        let store = Arc::clone(&self.service.store);
        let set_aside = move || {
            note(store.index().remove_layer(&diff_id));
            Ok(aside::set_aside(store.layout(), &diff_id)?)
        };
        let set_aside = self.service.blocking(set_aside).await;
        let fetched = match set_aside {
            Ok(()) => self.fetch_layer(diff_id).await,
            Err(error) => return Outcome::Left(Chain(&error).to_string()),
        };
        let store = Arc::clone(&self.service.store);
        let settle = move || {
            let settled = aside::settle(store.layout(), &diff_id)?;
            if let Some(layer) = store.layer_on_disk(&diff_id) {
                note(store.index().put_layer(&layer));
            }
            Ok(settled)
        };
        match (self.service.blocking(settle).await, fetched) {
            (Ok(Settled::Replaced), _) => Outcome::Repaired,
            (Ok(Settled::PutBack), Err(why)) => Outcome::Left(why),
            (Ok(Settled::PutBack), Ok(())) => Outcome::Left("it has come and gone again".to_owned()),
            (Err(error), _) => Outcome::Left(Chain(&error).to_string()),
        }
    }

    async fn fetch_layer(&self, diff_id: Digest) -> Result<(), String> {
        let mut why = "it is not known where its image came from".to_owned();
        for image in self.images.iter().filter(|image| image.diff_ids.contains(&diff_id)) {
            for source in sources::of(self.service.store.layout(), &image.manifest) {
                match self.fetch_from(&source, image.manifest, diff_id).await {
                    Ok(()) if self.is_here(diff_id).await => return Ok(()),
                    Ok(()) => why = format!("{} does not have it", source.reference),
                    Err(error) => {
                        let hint = if error.is_about_access() { NO_LOGIN } else { "" };
                        why = format!("fetch it from {}: {}{hint}", source.reference, Chain(&error));
                    }
                }
            }
        }
        Err(why)
    }

    async fn is_here(&self, diff_id: Digest) -> bool {
        let snapshotter = Arc::clone(&self.service.snapshotter);
        self.service.blocking(move || Ok(snapshotter.layer(&diff_id).is_some())).await.unwrap_or(false)
    }

    async fn fetch_from(&self, source: &Source, manifest: Digest, diff_id: Digest) -> Result<(), EngineError> {
        let engine = &self.service.engine;
        let Some((reference, access)) = by_digest(source, manifest) else { return Ok(()) };
        let repository = engine.registries.open(&reference, &access).await?;
        let (image, _) = engine.resolver.at_registry(&reference, &repository).await?;
        let wanted: Vec<_> = image.layers.iter().filter(|layer| layer.diff_id == diff_id).take(1).copied().collect();
        let plan = engine.fetcher.plan(&wanted).await;
        engine.fetcher.fetch(&reference, &repository, &plan, |_| ()).await.map_err(EngineError::Pull)?;
        Ok(())
    }

    /// Removes a damaged document, and fetches all documents of the image that it may belong to.
    pub(super) async fn document(&self, digest: Digest) -> Outcome {
        let path = self.service.store.layout().manifest(&digest);
        if let Err(error) = durable::remove(&path) {
            return Outcome::Left(error.to_string());
        }
        for image in &self.images {
            for source in sources::of(self.service.store.layout(), &image.manifest) {
                let Some((reference, access)) = by_digest(&source, image.manifest) else { continue };
                let Ok(repository) = self.service.engine.registries.open(&reference, &access).await else { continue };
                // What is whole is not fetched; so this asks for what is missing.
                let _ = self.service.engine.resolver.at_registry(&reference, &repository).await;
                if path.exists() {
                    return Outcome::Repaired;
                }
            }
        }
        Outcome::Removed
    }
}

/// The same image at its source, whatever its tag leads to by now.
fn by_digest(source: &Source, manifest: Digest) -> Option<(Reference, RegistryAccess)> {
    let written: Reference = source.reference.parse().ok()?;
    let registry = || vec![written.registry().to_owned()];
    let access = RegistryAccess {
        credentials: Vec::new(),
        plain_http: if source.plain_http { registry() } else { Vec::new() },
        insecure: if source.insecure { registry() } else { Vec::new() },
    };
    Some((format!("{}@{manifest}", written.name()).parse().ok()?, access))
}
