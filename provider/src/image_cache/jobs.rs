//! The calls that the controller makes, each as one job: it runs beside the others and its outcome comes back as a value.

use std::sync::Arc;

use super::plan::{Version, id_of};
use super::retention::is_automatic;
use super::status::refresh;
use crate::agent::{AgentClient, AgentError, ImageCacheBuild, RegistryCredential};
use crate::cluster::objects::ObjectContent;
use crate::cluster::{ClusterError, ImageCacheApi};
use crate::custom_resource::{INSECURE_ANNOTATION, ImageCache, ImageCacheStatus, PLAIN_HTTP_ANNOTATION, SECRET_LABEL};

/// Reads the registry logins out of a Secret; the error says for people what is wrong with it.
pub type ReadLogins = fn(&ObjectContent) -> Result<Vec<RegistryCredential>, String>;

/// Which Secrets an object may name. The provider reads them with a right of its own, so it must not do so for everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretRule {
    /// Any: admission has asked whether the author may read them.
    CheckedAtAdmission,
    /// Those that bear [`SECRET_LABEL`]. An automatic cache names its pod's own, and serves only pods that have them too.
    Labelled,
}

/// What a host is told with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logins {
    pub(super) read: ReadLogins,
    pub(super) rule: SecretRule,
}

/// What a job is about. No two jobs about the same run at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Build { node: String, id: String },
    Forget { node: String, id: String },
    Status { name: String },
    Remove { name: String },
    Finalizers { name: String },
    Create { image_set: String },
}

/// What became of a job.
#[derive(Debug)]
pub(super) enum Outcome {
    /// `unusable` says which Secrets brought no login, and why.
    Built {
        of: Version,
        unusable: Vec<String>,
        result: Result<(), BuildError>,
    },
    Forgotten(Result<(), AgentError>),
    /// A status, with the one before it.
    Written {
        before: Box<ImageCacheStatus>,
        result: Result<Box<ImageCache>, ClusterError>,
    },
    Finalized(Result<Box<ImageCache>, ClusterError>),
    Removed(Result<(), ClusterError>),
    Created(Result<Box<ImageCache>, ClusterError>),
}

/// Why a host could not be told to build a cache.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl BuildError {
    /// The reason for the user when asking again would not help.
    pub(super) fn refusal(&self) -> Option<String> {
        match self {
            Self::Agent(error) if error.is_permanent() => Some(error.to_string()),
            Self::Agent(_) | Self::Cluster(_) => None,
        }
    }
}

/// Tells a host to build a cache, with the logins of the Secrets that the object names.
pub(super) async fn build(
    api: Arc<dyn ImageCacheApi>,
    agent: Arc<dyn AgentClient>,
    logins: Logins,
    cache: ImageCache,
) -> Outcome {
    let mut unusable = Vec::new();
    let result = tell(&*api, &*agent, logins, &cache, &mut unusable).await;
    Outcome::Built { of: Version::of(&cache), unusable, result }
}

async fn tell(
    api: &dyn ImageCacheApi,
    agent: &dyn AgentClient,
    logins: Logins,
    cache: &ImageCache,
    unusable: &mut Vec<String>,
) -> Result<(), BuildError> {
    let credentials = read_secrets(api, logins, cache, unusable).await?;
    let annotations = cache.metadata.annotations.clone().unwrap_or_default();
    let registries = |key: &str| -> Vec<String> {
        let listed = annotations.get(key).map(String::as_str).unwrap_or_default();
        listed.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned).collect()
    };
    let build = ImageCacheBuild {
        id: id_of(cache),
        name: cache.metadata.name.clone().unwrap_or_default(),
        images: cache.spec.images.clone(),
        credentials,
        plain_http_registries: registries(PLAIN_HTTP_ANNOTATION),
        insecure_registries: registries(INSECURE_ANNOTATION),
        size_limit_bytes: cache.spec.size_gib(&annotations) << 30,
        refresh: refresh(cache).to_owned(),
    };
    Ok(agent.build_image_cache(&build).await?)
}

/// A Secret that is missing, or holds no login, costs the cache no other login: the registry has the last word.
async fn read_secrets(
    api: &dyn ImageCacheApi,
    logins: Logins,
    cache: &ImageCache,
    unusable: &mut Vec<String>,
) -> Result<Vec<RegistryCredential>, ClusterError> {
    let needs_label = logins.rule == SecretRule::Labelled && !is_automatic(cache);
    let is_labelled = |secret: &ObjectContent| secret.labels.get(SECRET_LABEL).is_some_and(|value| value == "true");
    let mut found = Vec::new();
    for entry in &cache.spec.image_pull_secrets {
        let Some((namespace, name)) = entry.split_once(':') else { continue };
        let read = match api.read_secret(namespace, name).await? {
            Some(secret) if needs_label && !is_labelled(&secret) => {
                Err(format!("it is not labelled {SECRET_LABEL}=true, and no webhook checks who may name it"))
            }
            Some(secret) => (logins.read)(&secret),
            None => Err("it does not exist".to_owned()),
        };
        match read {
            Ok(logins) => found.extend(logins),
            Err(why) => {
                tracing::info!(image_cache = cache.metadata.name, secret = entry, why, "pull secret cannot be used");
                unusable.push(format!("pull secret {entry} cannot be used: {why}"));
            }
        }
    }
    Ok(found)
}

/// Makes an automatic cache, in the place of one that failed where there is one.
pub(super) async fn create(
    api: Arc<dyn ImageCacheApi>,
    cache: ImageCache,
    replaced: Option<(String, String)>,
) -> Outcome {
    if let Some((name, uid)) = replaced
        && let Err(error) = api.remove_image_cache(&name, &uid).await
    {
        return Outcome::Created(Err(error));
    }
    Outcome::Created(api.create_image_cache(&cache).await.map(Box::new))
}

/// Writes the status of an object.
pub(super) async fn write(
    api: Arc<dyn ImageCacheApi>,
    name: String,
    before: ImageCacheStatus,
    status: ImageCacheStatus,
) -> Outcome {
    let result = api.write_image_cache_status(&name, &status).await.map(Box::new);
    Outcome::Written { before: Box::new(before), result }
}

/// Gives an object our finalizer, or takes it away.
pub(super) async fn finalizers(api: Arc<dyn ImageCacheApi>, cache: ImageCache, finalizers: Vec<String>) -> Outcome {
    Outcome::Finalized(api.set_finalizers(&cache, &finalizers).await.map(Box::new))
}

/// Removes an object whose time is over.
pub(super) async fn remove(api: Arc<dyn ImageCacheApi>, name: String, uid: String) -> Outcome {
    Outcome::Removed(api.remove_image_cache(&name, &uid).await)
}

/// Tells a host to forget a cache.
pub(super) async fn forget(agent: Arc<dyn AgentClient>, id: String) -> Outcome {
    Outcome::Forgotten(agent.delete_image_cache(&id).await)
}
