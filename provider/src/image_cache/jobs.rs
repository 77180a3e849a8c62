//! The calls that the controller makes, each as one job: it runs beside the others and its outcome comes back as a value.

use std::sync::Arc;

use super::plan::id_of;
use crate::agent::{AgentClient, AgentError, ImageCacheBuild, RegistryCredential};
use crate::cluster::objects::ObjectContent;
use crate::cluster::{ClusterError, ImageCacheApi};
use crate::custom_resource::{INSECURE_ANNOTATION, ImageCache, ImageCacheStatus, PLAIN_HTTP_ANNOTATION};

/// Reads the registry logins out of a Secret; the error says for people what is wrong with it.
pub type ReadLogins = fn(&ObjectContent) -> Result<Vec<RegistryCredential>, String>;

/// What a job is about. No two jobs about the same run at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Build { node: String, id: String },
    Forget { node: String, id: String },
    Status { name: String },
    Remove { name: String },
    Create { image_set: String },
}

/// What became of a job.
#[derive(Debug)]
pub(super) enum Outcome {
    Built { generation: Option<i64>, result: Result<(), BuildError> },
    Forgotten(Result<(), AgentError>),
    Written(Result<Box<ImageCache>, ClusterError>),
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
    read_logins: ReadLogins,
    cache: ImageCache,
) -> Outcome {
    let result = tell(&*api, &*agent, read_logins, &cache).await;
    Outcome::Built { generation: cache.metadata.generation, result }
}

async fn tell(
    api: &dyn ImageCacheApi,
    agent: &dyn AgentClient,
    read_logins: ReadLogins,
    cache: &ImageCache,
) -> Result<(), BuildError> {
    let credentials = logins(api, read_logins, cache).await?;
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
    };
    Ok(agent.build_image_cache(&build).await?)
}

/// A Secret that is missing, or holds no login, costs the cache no other login: the registry has the last word.
async fn logins(
    api: &dyn ImageCacheApi,
    read_logins: ReadLogins,
    cache: &ImageCache,
) -> Result<Vec<RegistryCredential>, ClusterError> {
    let mut found = Vec::new();
    for entry in &cache.spec.image_pull_secrets {
        let Some((namespace, name)) = entry.split_once(':') else { continue };
        let read = match api.read_secret(namespace, name).await? {
            Some(secret) => read_logins(&secret),
            None => Err("it does not exist".to_owned()),
        };
        match read {
            Ok(logins) => found.extend(logins),
            Err(why) => {
                tracing::warn!(image_cache = cache.metadata.name, secret = entry, why, "pull secret cannot be used");
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
pub(super) async fn write(api: Arc<dyn ImageCacheApi>, name: String, status: ImageCacheStatus) -> Outcome {
    Outcome::Written(api.write_image_cache_status(&name, &status).await.map(Box::new))
}

/// Removes an object whose time is over.
pub(super) async fn remove(api: Arc<dyn ImageCacheApi>, name: String, uid: String) -> Outcome {
    Outcome::Removed(api.remove_image_cache(&name, &uid).await)
}

/// Tells a host to forget a cache.
pub(super) async fn forget(agent: Arc<dyn AgentClient>, id: String) -> Outcome {
    Outcome::Forgotten(agent.delete_image_cache(&id).await)
}
