//! Putting right what a verification has found: fetching it again from where its image came.

use std::{path::Path, sync::Arc};

use super::Outcome;
use crate::{
    chain::Chain,
    digest::Digest,
    image::{
        RegistryAccess,
        service::{EngineError, ImageService},
    },
    registry::Reference,
    snapshot::{Driver, SnapshotError},
    store::{
        Store, durable,
        index::ImageRecord,
        layout::LayerPaths,
        note,
        sources::{self, Source},
    },
};

/// A repair.
pub(super) struct Repair {
    pub(super) service: Arc<ImageService>,
    /// All composed images.
    pub(super) images: Vec<ImageRecord>,
}

impl Repair {
    /// Puts a damaged layer out of the way and fetches it from where one of its images came.
    pub(super) async fn layer(&self, diff_id: Digest) -> Outcome {
        let in_use = self.service.engine.mounts.manifests();
        let mut users = self.images.iter().filter(|image| image.diff_ids.contains(&diff_id));
        let is_used = users.any(|image| in_use.contains(&image.manifest));
        if is_used && self.service.snapshotter.driver() == Driver::Directory {
            // Its files would go from under the containers.
            return Outcome::Left("pods or image caches use its files: delete these, then verify again".to_owned());
        }
        let (store, snapshotter) = (Arc::clone(&self.service.store), Arc::clone(&self.service.snapshotter));
        let hide = move || {
            note(store.index().remove_layer(&diff_id));
            Ok(snapshotter.hide_layer(&diff_id)?)
        };
        let hidden = match self.service.blocking(hide).await {
            Ok(Some(hidden)) => hidden,
            Ok(None) => return Outcome::Removed,
            Err(error) => return Outcome::Left(Chain(&error).to_string()),
        };
        let fetched = self.fetch_layer(diff_id).await;
        let (store, has_come) = (Arc::clone(&self.service.store), fetched.is_ok());
        let put_away = move || Ok(put_away(&store, diff_id, &hidden, has_come, is_used)?);
        match (fetched, self.service.blocking(put_away).await) {
            (Ok(()), Ok(_)) => Outcome::Repaired,
            (Err(_), Ok(Away::Removed)) => Outcome::Removed,
            (Err(why), Ok(Away::PutBack)) => Outcome::Left(why),
            (_, Err(error)) => Outcome::Left(Chain(&error).to_string()),
        }
    }

    async fn fetch_layer(&self, diff_id: Digest) -> Result<(), String> {
        let mut why = "it is not known where its image came from".to_owned();
        for image in self.images.iter().filter(|image| image.diff_ids.contains(&diff_id)) {
            for source in sources::of(self.service.store.layout(), &image.manifest) {
                match self.fetch_from(&source, image.manifest, diff_id).await {
                    Ok(()) if self.is_here(diff_id).await => return Ok(()),
                    Ok(()) => why = format!("{} does not have it", source.reference),
                    Err(error) => why = format!("fetch it from {}: {}", source.reference, Chain(&error)),
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
        let image = engine.resolver.at_registry(&reference, &repository).await?;
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

/// Where a damaged layer has gone.
enum Away {
    Removed,
    PutBack,
}

/// Removes a damaged layer that is out of the way. Mounts that are there go on reading the old tar: it is made right in
/// place. One that has not come anew, and is used, goes back: less of it would be no better for anybody.
fn put_away(
    store: &Store,
    diff_id: Digest,
    hidden: &Path,
    has_come: bool,
    is_used: bool,
) -> Result<Away, SnapshotError> {
    let place = store.layout().layer(&diff_id);
    let io = |action| move |error| SnapshotError::io(action, hidden, 0, error);
    if !has_come && is_used {
        durable::rename(hidden, place.directory()).map_err(io("put back"))?;
        if let Some(layer) = store.layer_on_disk(&diff_id) {
            note(store.index().put_layer(&layer));
        }
        return Ok(Away::PutBack);
    }
    let (old, new) = (LayerPaths::at(hidden).tar(), place.tar());
    if is_used && old.exists() && new.exists() {
        durable::overwrite(&new, &old).map_err(io("repair"))?;
    }
    durable::remove(hidden).map_err(io("remove"))?;
    Ok(Away::Removed)
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
