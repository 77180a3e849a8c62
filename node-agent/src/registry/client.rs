//! The registries of the world, as [`Registries`]: which endpoints a repository has, and who may log in where.

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    Login, Reference, Registries, RegistryAccess, RegistryConfig, RegistryError, Repository, credentials,
    hosts::{self, Endpoint, is_loopback},
    http::Http,
    node_logins::NodeLogins,
    session::{Access, Logins, Session},
    token::Tokens,
};

/// Opens repositories at real registries.
#[derive(Debug)]
pub struct RegistryClient {
    hosts: Option<std::path::PathBuf>,
    node_logins: NodeLogins,
    http: Arc<Http>,
    tokens: Arc<Tokens>,
}

impl RegistryClient {
    /// A client. A process-wide provider of cryptography is chosen if there is none yet.
    pub fn new(config: RegistryConfig) -> Self {
        // An error says that one has been chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            hosts: config.hosts,
            node_logins: NodeLogins::new(config.auth_file, config.credential_providers),
            http: Arc::new(Http::new(config.stall, config.proxies)),
            tokens: Arc::default(),
        }
    }

    /// The logins for one endpoint: those of whoever asks, then the node's own.
    async fn logins(&self, access: &RegistryAccess, host: &str, repository: &str, notes: &mut Vec<String>) -> Logins {
        let brought: Vec<Login> =
            credentials::matching(&access.credentials, host, repository).into_iter().cloned().collect();
        Logins::new(brought, self.node_logins.matching(host, repository, notes).await)
    }
}

#[async_trait]
impl Registries for RegistryClient {
    async fn open(&self, reference: &Reference, access: &RegistryAccess) -> Result<Arc<dyn Repository>, RegistryError> {
        let named =
            |list: &[String]| list.iter().any(|host| host == reference.registry() || host == reference.api_host());
        // Who asks for a certificate not to be verified means that there is one.
        let plain = named(&access.plain_http) || speaks_plainly(reference.api_host()) && !named(&access.insecure);
        let origin = Endpoint::origin(reference.api_host(), plain, named(&access.insecure));
        let (dir, registry) = (self.hosts.clone(), reference.registry().to_owned());
        let found = tokio::task::spawn_blocking(move || hosts::endpoints(dir.as_deref(), &registry, origin)).await;
        let (mut endpoints, mut notes) = (Vec::new(), Vec::new());
        for endpoint in found.unwrap_or(Err(RegistryError::Interrupted))? {
            // A login is for the host that it names, so a mirror gets one only under its own name.
            let host = if endpoint.origin { reference.registry() } else { &endpoint.host };
            let logins = self.logins(access, host, reference.repository(), &mut notes).await;
            endpoints.push(Access::new(endpoint, logins));
        }
        notes.sort();
        notes.dedup();
        Ok(Arc::new(Session {
            http: Arc::clone(&self.http),
            tokens: Arc::clone(&self.tokens),
            name: reference.name(),
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            endpoints,
            notes,
        }))
    }
}

/// Whether a registry has no certificate though nobody says so.
fn speaks_plainly(host: &str) -> bool {
    is_loopback(host) && !host.ends_with(":443")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_in_the_clear_to_this_host_only() {
        for (host, plain) in
            [("localhost:5000", true), ("127.0.0.1", true), ("localhost:443", false), ("a:5000", false)]
        {
            assert_eq!(speaks_plainly(host), plain, "{host}");
        }
    }
}
