//! Registries: from a reference to a manifest and to the bytes of a blob.
//!
//! [`Registries`] opens a [`Repository`]; behind it are the mirrors in order, logins, tokens and retries. Every manifest is
//! verified before it is returned. A blob is a stream that its reader verifies, as only the reader knows when it is whole.
//!
//! Layer and configuration blobs travel through `oci-distribution` ([`blob`]) where no secret goes with the request. What
//! decides about access, and manifests, go over [`http`]: such answers have to be bounded in size and time, `Retry-After` and
//! the media type have to be seen, and a login has to be kept from a realm or a redirect that it is not for, none of which
//! the crate does. It never stores anything.

mod answer;
mod blob;
mod challenge;
mod client;
mod connection;
mod credential_provider;
pub mod credentials;
mod docker_config;
mod error;
pub mod hosts;
mod http;
mod node_logins;
mod pace;
mod pauses;
mod provider_config;
mod proxies;
mod range;
mod redirect;
pub mod reference;
pub mod retry;
mod session;
#[cfg(test)]
pub(crate) mod test_registry;
#[cfg(test)]
mod tests;
mod token;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use self::{
    client::RegistryClient,
    credential_provider::{CredentialProviders, ProviderConfigError},
    error::RegistryError,
    proxies::Proxies,
    reference::Reference,
};
use crate::digest::Digest;

/// A registry login, tried in the order given when its registry pattern fits.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The key of the entry in the pull secret, as written.
    pub registry: String,
    /// What to log in with.
    pub login: Login,
}

/// What a credential holds.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Login {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token, `identitytoken` in a docker configuration.
    IdentityToken(String),
    /// A bearer token sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
}

/// How registries are to be spoken to for one pod or cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryAccess {
    /// Logins in order.
    pub credentials: Vec<Credential>,
    /// Hosts (`host` or `host:port`) spoken to over plain http.
    pub plain_http: Vec<String>,
    /// Hosts whose certificate is not verified.
    pub insecure: Vec<String>,
}

/// What all registries have in common.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Folder of `hosts.toml` files.
    pub hosts: Option<PathBuf>,
    /// Logins of the node's own, in the form of docker's `config.json`; read at each use.
    pub auth_file: Option<PathBuf>,
    /// Programs that are asked for logins.
    pub credential_providers: CredentialProviders,
    /// The proxies on the way out.
    pub proxies: Proxies,
    /// How long nothing may come before a request counts as stalled.
    pub stall: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            hosts: None,
            auth_file: None,
            credential_providers: CredentialProviders::default(),
            proxies: Proxies::default(),
            stall: Duration::from_secs(30),
        }
    }
}

/// Opens repositories.
#[async_trait]
pub trait Registries: Send + Sync + fmt::Debug {
    /// The repository of `reference`, with the logins of `access` and of the node. No registry is asked yet.
    ///
    /// # Errors
    /// When the registry's configuration cannot be used.
    async fn open(&self, reference: &Reference, access: &RegistryAccess) -> Result<Arc<dyn Repository>, RegistryError>;
}

/// How a reference is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// Bring the manifest at once.
    WithContent,
    /// Ask for the digest only: the content is likely here already. Registries count such requests less or not at all.
    DigestOnly,
}

/// What a registry has let a request in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Nothing, or what the node itself has: every pod of this host is let in likewise.
    Anybody,
    /// This login of whoever asked.
    Login(Login),
}

/// What a reference stands for at this moment.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Digest of the manifest or index.
    pub digest: Digest,
    /// What the request was let in with.
    pub entry: Entry,
    /// Its bytes, verified, where they came with the answer.
    pub content: Option<Bytes>,
}

/// A blob, coming.
pub struct BlobStream {
    /// Where it comes from, for messages.
    pub url: String,
    /// Where in the blob the stream begins: what was asked for, or 0 when the registry does not do ranges.
    pub offset: u64,
    /// The bytes.
    pub bytes: BoxStream<'static, Result<Bytes, RegistryError>>,
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream").field("url", &self.url).field("offset", &self.offset).finish_non_exhaustive()
    }
}

/// One repository at its endpoints, for one set of logins.
#[async_trait]
pub trait Repository: Send + Sync + fmt::Debug {
    /// `docker.io/library/nginx`.
    fn name(&self) -> &str;

    /// What the reference `target` (a tag or a digest) stands for.
    ///
    /// # Errors
    /// After a few tries at each endpoint.
    async fn resolve(&self, target: &str, how: Resolve) -> Result<Resolved, RegistryError>;

    /// A manifest or index by its digest, verified.
    ///
    /// # Errors
    /// After a few tries at each endpoint.
    async fn manifest(&self, digest: &Digest) -> Result<Bytes, RegistryError>;

    /// The endpoints that serve blobs, in the order in which they are to be tried. There is at least one.
    ///
    /// # Errors
    /// When none does.
    fn sources(&self) -> Result<Vec<usize>, RegistryError>;

    /// Opens a blob of `size` bytes at `offset`, at one of [`Repository::sources`]. It is tried once: the reader knows how
    /// far it has come, so it decides about another try and another source.
    ///
    /// # Errors
    /// When the endpoint does not serve it, or announces another length.
    async fn blob(&self, source: usize, digest: &Digest, size: u64, offset: u64) -> Result<BlobStream, RegistryError>;
}
