//! Connections: one HTTP client for each way of speaking to an endpoint, kept while its settings stay the same.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use oci_distribution::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{Proxies, RegistryError, answer::transport, hosts::Endpoint};

/// Connection settings kept at once; more than a node has registries.
const MAX_CLIENTS: usize = 64;
/// Who we say that we are.
const USER_AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// The clients in use.
#[derive(Debug)]
pub(super) struct Connections {
    stall: Duration,
    proxies: Proxies,
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
}

/// What makes two endpoints need different connection settings. Certificates are read again when their file changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    skip_verify: bool,
    dial_timeout: Duration,
    files: Vec<(PathBuf, Option<SystemTime>)>,
}

impl Connections {
    pub(super) fn new(stall: Duration, proxies: Proxies) -> Self {
        Self { stall, proxies, clients: Mutex::default() }
    }

    /// A client for this endpoint.
    pub(super) fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        let key = ClientKey::of(endpoint);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = self.new_client(endpoint)?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }

    /// The same settings for `oci-distribution`, which makes a client of its own of them.
    pub(super) fn package_config(&self, endpoint: &Endpoint) -> Result<ClientConfig, RegistryError> {
        // Its own error would show the address, which may hold a login.
        self.proxies.to_reqwest()?;
        let (https_proxy, http_proxy, no_proxy) = self.proxies.clone().by_scheme();
        Ok(ClientConfig {
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
        })
    }

    fn new_client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
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
}

impl ClientKey {
    fn of(endpoint: &Endpoint) -> Self {
        let certificate = endpoint.client.iter().flat_map(|(certificate, key)| [Some(certificate), key.as_ref()]);
        let files = endpoint
            .ca
            .iter()
            .chain(certificate.flatten())
            .map(|file| (file.clone(), std::fs::metadata(file).and_then(|meta| meta.modified()).ok()))
            .collect();
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
