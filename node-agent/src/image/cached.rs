//! Whether a pod gets an image that its cache holds, where that is a question: [`super::verification`], carried out.

use tokio::sync::mpsc;

use super::{
    ChosenCache, EnsureImage, ImageProgress, ImageService, PresentImage, PullPolicy,
    cache::Held,
    service::EngineError,
    verification::{self, Question, Verdict},
};
use crate::{
    chain::Chain,
    registry::{Entry, Reference, RegistryAccess, RegistryError, Resolve},
};

impl ImageService {
    /// Decides by what is known here. Nobody is asked, and for a cache that serves everybody nothing is read.
    pub(super) async fn verdict(
        &self,
        reference: &Reference,
        cache: &ChosenCache,
        held: &Held,
        wish: &EnsureImage,
    ) -> Verdict {
        let question = Question {
            policy: cache.policy.unwrap_or(self.rules.policy),
            origin: cache.origin,
            is_allowed: self.rules.allowed.has(reference),
            may_ask: wish.policy != PullPolicy::Never,
        };
        if question.is_moot() {
            return question.decide(false);
        }
        let pulled = self.engine.records.of(held.image.manifest).await;
        let logins = wish.access.credentials.iter().map(|credential| &credential.login);
        question.decide(verification::is_let_in(&pulled, &reference.name(), logins))
    }

    /// Asks the registry for the manifest with the pod's logins, and takes the image from the cache when it is given.
    /// Otherwise the pod has to pull the image as if it were not here.
    pub(super) async fn ensure_after_asking(
        &self,
        reference: &Reference,
        (cache, held): (&ChosenCache, &Held),
        wish: &EnsureImage,
        progress: &mpsc::Sender<ImageProgress>,
    ) -> Result<PresentImage, EngineError> {
        let unverified =
            |err: &EngineError| EngineError::Unverified { cause: Chain(err).to_string(), cache: cache.id.clone() };
        match self.ask(reference, held, &wish.access).await {
            Ok(entry) => {
                let noted = self.engine.records.note(reference, held.image.manifest, entry);
                let (present, ()) = tokio::join!(self.ensure_from_cache(reference, held, progress), noted);
                present
            }
            // It has been asked with patience already.
            Err(err) if err.is_transient() => Err(unverified(&err.into())),
            Err(err) => {
                tracing::debug!(%reference, cache = cache.id, error = %Chain(&err), "not given to a pod");
                let pulled = self.ensure_from_registry(reference, wish, progress).await;
                // What else a pull may fail of another login does not help.
                pulled.map_err(|err| if err.is_about_access() { unverified(&err) } else { err })
            }
        }
    }

    /// Asks for what the cache holds, by its digest: the tag may lead elsewhere now. The content is what proves that it was
    /// the registry that answered, and not somebody in front of it who answers everything.
    async fn ask(&self, reference: &Reference, held: &Held, access: &RegistryAccess) -> Result<Entry, RegistryError> {
        let repository = self.engine.registries.open(reference, access).await?;
        let found = repository.resolve(&held.image.top.to_string(), Resolve::WithContent).await?;
        Ok(found.entry)
    }
}

#[cfg(test)]
mod tests;
