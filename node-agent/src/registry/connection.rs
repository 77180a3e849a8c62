//! Connections: one HTTP client for each way of speaking to an endpoint, kept while its settings stay the same.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use oci_distribution::{
    Client,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::OciDistributionError,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::sync::OnceCell;

use super::{Proxies, RegistryError, answer::transport, hosts::Endpoint};

/// Connection settings kept at once; more than a node has registries.
const MAX_CLIENTS: usize = 64;
/// Who we say that we are.
const USER_AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// The clients in use. Each has a pool of connections and the authorities of this host, so none is made for one pull.
#[derive(Debug)]
pub(super) struct Connections {
    settings: Settings,
    clients: Kept<ClientKey, reqwest::Client>,
    packages: Kept<PackageKey, Client>,
}

/// What all connections have in common.
#[derive(Debug, Clone)]
struct Settings {
    stall: Duration,
    proxies: Proxies,
}

/// What makes two endpoints need different connection settings. Certificates are read again when their file changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    skip_verify: bool,
    dial_timeout: Duration,
    files: Vec<(PathBuf, Option<SystemTime>)>,
}

/// What makes two endpoints need different clients of `oci-distribution`. One client shows each token to all repositories of
/// its registry, so each token has its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PackageKey {
    connection: ClientKey,
    plain: bool,
    token: Option<TokenFor>,
}

/// Where a token is shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenFor {
    /// `host/repository`.
    pub(super) repository: String,
    /// The token itself.
    pub(super) token: String,
}

impl fmt::Debug for TokenFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFor").field("repository", &self.repository).finish_non_exhaustive()
    }
}

impl Connections {
    pub(super) fn new(stall: Duration, proxies: Proxies) -> Self {
        Self { settings: Settings { stall, proxies }, clients: Kept::default(), packages: Kept::default() }
    }

    /// A client for this endpoint.
    pub(super) async fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        let key = ClientKey::of(endpoint).await;
        let (settings, endpoint) = (self.settings.clone(), endpoint.clone());
        self.clients.get(key, move || settings.client(&endpoint)).await
    }

    /// A client of `oci-distribution` with the same settings, for whoever has been given this token, or none.
    pub(super) async fn package(&self, endpoint: &Endpoint, token: Option<TokenFor>) -> Result<Client, RegistryError> {
        let key = PackageKey { connection: ClientKey::of(endpoint).await, plain: endpoint.plain, token };
        let (settings, endpoint) = (self.settings.clone(), endpoint.clone());
        self.packages.get(key, move || settings.package(&endpoint)).await
    }
}

/// Clients by what they are for.
struct Kept<K, C>(Mutex<HashMap<K, Arc<OnceCell<C>>>>);

impl<K, C> fmt::Debug for Kept<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

impl<K, C> Default for Kept<K, C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, C: Clone + Send + 'static> Kept<K, C> {
    /// The client for a key. It is made once for all who ask at the same time, on a thread for what blocks: it reads files.
    async fn get(
        &self,
        key: K,
        make: impl FnOnce() -> Result<C, RegistryError> + Send + 'static,
    ) -> Result<C, RegistryError> {
        let cell = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= MAX_CLIENTS && !kept.contains_key(&key) {
                kept.clear();
            }
            Arc::clone(kept.entry(key).or_default())
        };
        let made = cell.get_or_try_init(|| async move {
            tokio::task::spawn_blocking(make).await.unwrap_or(Err(RegistryError::Interrupted))
        });
        made.await.cloned()
    }
}

/// What is read and made here blocks.
impl Settings {
    fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(endpoint.dial_timeout)
            .read_timeout(self.stall)
            .tls_danger_accept_invalid_certs(endpoint.skip_verify)
            // They are followed by hand, so that nothing is carried to another host.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        for path in &endpoint.ca {
            let bundle = reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(|err| certificate(path, &err))?;
            builder = builder.tls_certs_merge(bundle);
        }
        if let Some((path, key)) = &endpoint.client {
            let mut pem = read(path)?;
            if let Some(key) = key {
                pem.extend_from_slice(b"\n");
                pem.extend_from_slice(&read(key)?);
            }
            builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(|err| certificate(path, &err))?);
        }
        for proxy in self.proxies.to_reqwest()? {
            builder = builder.proxy(proxy);
        }
        builder.build().map_err(|err| transport("GET", &endpoint.base(), err, self.stall))
    }

    fn package(&self, endpoint: &Endpoint) -> Result<Client, RegistryError> {
        // Its own error would show the address, which may hold a login.
        self.proxies.to_reqwest()?;
        let (https_proxy, http_proxy, no_proxy) = self.proxies.clone().by_scheme();
        let config = ClientConfig {
            protocol: if endpoint.plain { ClientProtocol::Http } else { ClientProtocol::Https },
            accept_invalid_certificates: endpoint.skip_verify,
            extra_root_certificates: authorities(endpoint)?,
            platform_resolver: None,
            read_timeout: Some(self.stall),
            connect_timeout: Some(endpoint.dial_timeout),
            user_agent: USER_AGENT,
            https_proxy,
            http_proxy,
            no_proxy,
            ..ClientConfig::default()
        };
        Client::try_from(config).map_err(|err| {
            if let OciDistributionError::RequestError(err) = err {
                return transport("GET", &endpoint.base(), err, self.stall);
            }
            RegistryError::Malformed { url: endpoint.base(), why: err.to_string() }
        })
    }
}

impl ClientKey {
    async fn of(endpoint: &Endpoint) -> Self {
        let mut paths = endpoint.ca.clone();
        if let Some((certificate, key)) = endpoint.client.clone() {
            paths.push(certificate);
            paths.extend(key);
        }
        let mut files = Vec::new();
        for path in paths {
            let modified = tokio::fs::metadata(&path).await.and_then(|meta| meta.modified()).ok();
            files.push((path, modified));
        }
        Self { skip_verify: endpoint.skip_verify, dial_timeout: endpoint.dial_timeout, files }
    }
}

fn authorities(endpoint: &Endpoint) -> Result<Vec<Certificate>, RegistryError> {
    let mut all = Vec::new();
    for path in &endpoint.ca {
        for one in CertificateDer::pem_slice_iter(&read(path)?) {
            let one = one.map_err(|err| certificate(path, &err))?;
            all.push(Certificate { encoding: CertificateEncoding::Der, data: one.to_vec() });
        }
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path).map_err(|err| certificate(path, &err))
}

fn certificate(path: &Path, err: &dyn std::error::Error) -> RegistryError {
    RegistryError::Certificate { path: path.to_owned(), why: err.to_string() }
}
