//! The registries of the world, as [`Registries`]: endpoints in order, logins in order, tokens, retries.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::Method;
use tokio::time::Instant;

use super::{
    BlobStream, Login, Reference, Registries, RegistryAccess, RegistryConfig, RegistryError, Repository, Resolve,
    Resolved,
    blob::{self, BlobClient},
    challenge::Challenge,
    credentials,
    hosts::{self, Endpoint},
    http::{Authorization, Http, Request, transport},
    retry,
    token::{self, TokenKey, Tokens},
};
use crate::digest::Digest;

/// The largest manifest or index, as other clients have it.
const MAX_MANIFEST: usize = 4 << 20;
/// How long a password that was taken is sent without being asked for.
const BASIC_LIFE: std::time::Duration = std::time::Duration::from_secs(3600);
/// What manifests we understand; the last one lets a registry send what it has, so that it can be refused by its name.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// Opens repositories at real registries.
#[derive(Debug)]
pub struct RegistryClient {
    hosts: Option<PathBuf>,
    http: Arc<Http>,
    tokens: Arc<Tokens>,
}

impl RegistryClient {
    /// A client. A process-wide provider of cryptography is chosen if there is none yet.
    pub fn new(config: RegistryConfig) -> Self {
        // An error says that one has been chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { hosts: config.hosts, http: Arc::new(Http::new(config.stall)), tokens: Arc::default() }
    }
}

impl Registries for RegistryClient {
    fn open(&self, reference: &Reference, access: &RegistryAccess) -> Result<Arc<dyn Repository>, RegistryError> {
        let named =
            |list: &[String]| list.iter().any(|host| host == reference.registry() || host == reference.api_host());
        let plain = named(&access.plain_http) || is_loopback(reference.api_host());
        let origin = Endpoint::origin(reference.api_host(), plain, named(&access.insecure));
        let endpoints = hosts::endpoints(self.hosts.as_deref(), reference.registry(), origin)?
            .into_iter()
            .map(|endpoint| {
                // A login is for the host that it names, so a mirror gets one only under its own name.
                let host = if endpoint.origin { reference.registry() } else { &endpoint.host };
                let fitting = credentials::matching(&access.credentials, host, reference.repository());
                let logins: Vec<_> = fitting.into_iter().cloned().map(Some).collect();
                let logins = if logins.is_empty() { vec![None] } else { logins };
                Access { endpoint, logins, chosen: Mutex::default(), blobs: Mutex::default() }
            })
            .collect();
        Ok(Arc::new(Session {
            http: Arc::clone(&self.http),
            tokens: Arc::clone(&self.tokens),
            name: reference.name(),
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            endpoints,
        }))
    }
}

/// Registries on this very host have no certificate as a rule; nobody can listen in between.
fn is_loopback(host: &str) -> bool {
    let name = if let Some(rest) = host.strip_prefix('[') {
        rest.split(']').next().unwrap_or(rest)
    } else {
        host.split(':').next().unwrap_or(host)
    };
    !host.ends_with(":443")
        && (name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()))
}

/// One endpoint and how we got in.
#[derive(Debug)]
struct Access {
    endpoint: Endpoint,
    /// Never empty; `None` is to go without a login.
    logins: Vec<Option<Login>>,
    /// The login that was let in last.
    chosen: Mutex<Option<usize>>,
    blobs: Mutex<Option<BlobClient>>,
}

impl Access {
    /// The logins, the one that works first.
    fn order(&self) -> Vec<usize> {
        let chosen = *self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut order: Vec<usize> = (0..self.logins.len()).collect();
        order.sort_by_key(|&index| Some(index) != chosen);
        order
    }

    fn choose(&self, index: usize) {
        *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(index);
    }
}

#[derive(Debug)]
struct Session {
    http: Arc<Http>,
    tokens: Arc<Tokens>,
    name: String,
    registry: String,
    repository: String,
    endpoints: Vec<Access>,
}

#[async_trait]
impl Repository for Session {
    fn name(&self) -> &str {
        &self.name
    }

    async fn resolve(&self, target: &str, how: Resolve) -> Result<Resolved, RegistryError> {
        let expected = target.parse::<Digest>().ok();
        self.patiently(target, expected.as_ref(), how).await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Bytes, RegistryError> {
        let target = digest.to_string();
        let resolved = self.patiently(&target, Some(digest), Resolve::WithContent).await?;
        resolved.content.ok_or_else(|| RegistryError::Malformed { url: target, why: "the answer is empty".to_owned() })
    }

    async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        without: &[usize],
    ) -> Result<BlobStream, RegistryError> {
        let mut tried = Vec::new();
        for (index, access) in self.endpoints.iter().enumerate() {
            if !access.endpoint.pull || without.contains(&index) {
                continue;
            }
            match self.open_blob(access, digest, offset).await {
                Ok((url, begins, bytes)) => return Ok(BlobStream { url, endpoint: index, offset: begins, bytes }),
                Err(err) => {
                    tracing::debug!(%digest, size, error = %err, "blob not served by endpoint");
                    tried.push(err);
                }
            }
        }
        if tried.is_empty() {
            return Err(RegistryError::NoEndpoint { registry: self.registry.clone(), capability: "pull" });
        }
        Err(RegistryError::from_tried(tried))
    }
}

impl Session {
    /// Asks the endpoints for a manifest in order, and all of them again after a wait while that may help.
    async fn patiently(
        &self,
        target: &str,
        expected: Option<&Digest>,
        how: Resolve,
    ) -> Result<Resolved, RegistryError> {
        let mut failures = 0;
        loop {
            let mut tried = Vec::new();
            for access in &self.endpoints {
                let capable = if expected.is_some() { access.endpoint.pull } else { access.endpoint.resolve };
                if !capable {
                    continue;
                }
                match self.ask(access, target, expected, how).await {
                    Ok(answer) => return Ok(answer),
                    Err(err) => tried.push(err),
                }
            }
            if tried.is_empty() {
                let capability = if expected.is_some() { "pull" } else { "resolve" };
                return Err(RegistryError::NoEndpoint { registry: self.registry.clone(), capability });
            }
            let err = RegistryError::from_tried(tried);
            failures += 1;
            match retry::wait(failures, err.retry_after(), rand::random()).filter(|_| err.is_transient()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(err),
            }
        }
    }

    async fn ask(
        &self,
        access: &Access,
        target: &str,
        expected: Option<&Digest>,
        how: Resolve,
    ) -> Result<Resolved, RegistryError> {
        if how == Resolve::DigestOnly
            && let Some(digest) = self.head_manifest(access, target).await?
        {
            return Ok(Resolved { digest, content: None });
        }
        let (digest, content) = self.get_manifest(access, target, expected).await?;
        Ok(Resolved { digest, content: Some(content) })
    }

    fn url(&self, endpoint: &Endpoint, kind: &str, target: &str) -> String {
        // Mirrors of several registries are told which one is meant, as containerd does.
        let namespace = if endpoint.origin { String::new() } else { format!("?ns={}", self.registry) };
        format!("{}/{}/{kind}/{target}{namespace}", endpoint.base(), self.repository)
    }

    /// The digest from a request without a body; none when the registry does not say it, or gives an error that it would
    /// explain only in a body.
    async fn head_manifest(&self, access: &Access, target: &str) -> Result<Option<Digest>, RegistryError> {
        let url = self.url(&access.endpoint, "manifests", target);
        match self.request(access, Method::HEAD, &url, None).await {
            Ok(response) => Ok(response
                .headers()
                .get("docker-content-digest")
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.parse().ok())),
            Err(err) if err.is_transient() => Err(err),
            Err(_) => Ok(None),
        }
    }

    async fn get_manifest(
        &self,
        access: &Access,
        target: &str,
        expected: Option<&Digest>,
    ) -> Result<(Digest, Bytes), RegistryError> {
        let url = self.url(&access.endpoint, "manifests", target);
        let response = self.request(access, Method::GET, &url, None).await?;
        let promised = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let promised = promised.and_then(|value| value.parse::<Digest>().ok());
        let content = self.http.body(response, &url, "manifest", MAX_MANIFEST).await?;
        let actual = Digest::of(&content);
        match expected.or(promised.as_ref()) {
            Some(&expected) if expected != actual => Err(RegistryError::WrongDigest { url, expected, actual }),
            Some(_) | None => Ok((actual, content)),
        }
    }

    /// Sends a request with each login until one is let in.
    async fn request(
        &self,
        access: &Access,
        method: Method,
        url: &str,
        range_from: Option<u64>,
    ) -> Result<reqwest::Response, RegistryError> {
        let mut first = None;
        for index in access.order() {
            let Some(login) = access.logins.get(index) else { continue };
            match self.request_as(access, login.as_ref(), method.clone(), url, range_from).await {
                Ok(response) => {
                    access.choose(index);
                    return Ok(response);
                }
                Err(err) if err.is_about_access() => first = Some(first.unwrap_or(err)),
                Err(err) => return Err(err),
            }
        }
        let count = access.logins.iter().flatten().count();
        Err(match first {
            Some(RegistryError::Unauthorized { method, url, status, message, .. }) => {
                RegistryError::Unauthorized { method, url, status, message, logins: count }
            }
            Some(other) => other,
            None => RegistryError::NoEndpoint { registry: self.registry.clone(), capability: "pull" },
        })
    }

    async fn request_as(
        &self,
        access: &Access,
        login: Option<&Login>,
        method: Method,
        url: &str,
        range_from: Option<u64>,
    ) -> Result<reqwest::Response, RegistryError> {
        let key = self.token_key(access, login);
        let known = self.tokens.get(&key, Instant::now());
        let authorization = known.unwrap_or_else(|| first_authorization(login));
        let request = |authorization| Request {
            method: method.clone(),
            endpoint: &access.endpoint,
            url: url.to_owned(),
            accept: Some(ACCEPT),
            range_from,
            authorization,
        };
        let refusal = match self.http.send(request(&authorization)).await {
            Ok(response) => return Ok(response),
            Err(refusal) => refusal,
        };
        let (RegistryError::Unauthorized { .. }, Some(challenge)) = (&refusal.error, refusal.challenge) else {
            return Err(refusal.error);
        };
        self.tokens.forget(&key);
        let Some((authorization, life)) = self.authorize(access, login, &challenge).await? else {
            return Err(refusal.error);
        };
        let response = self.http.send(request(&authorization)).await.map_err(|refusal| refusal.error)?;
        let now = Instant::now();
        self.tokens.put(key, authorization, now + life, now);
        Ok(response)
    }

    fn token_key(&self, access: &Access, login: Option<&Login>) -> TokenKey {
        TokenKey { endpoint: access.endpoint.base(), repository: self.repository.clone(), login: login.cloned() }
    }

    /// Answers a challenge; none when this login cannot.
    async fn authorize(
        &self,
        access: &Access,
        login: Option<&Login>,
        challenge: &Challenge,
    ) -> Result<Option<(Authorization, std::time::Duration)>, RegistryError> {
        match (challenge, login) {
            (Challenge::Basic, Some(Login::Basic { username, password })) => {
                Ok(Some((Authorization::Basic(username.clone(), password.clone()), BASIC_LIFE)))
            }
            (Challenge::Basic, Some(Login::IdentityToken(_) | Login::RegistryToken(_)) | None)
            | (Challenge::Bearer { .. }, Some(Login::RegistryToken(_))) => Ok(None),
            (Challenge::Bearer { realm, service }, Some(Login::Basic { .. } | Login::IdentityToken(_)) | None) => {
                let service = service.as_deref();
                let fetched =
                    token::fetch(&self.http, &access.endpoint, realm, service, &self.repository, login).await?;
                Ok(Some((Authorization::Bearer(fetched.0), fetched.1)))
            }
        }
    }

    async fn open_blob(
        &self,
        access: &Access,
        digest: &Digest,
        offset: u64,
    ) -> Result<(String, u64, futures::stream::BoxStream<'static, Result<Bytes, RegistryError>>), RegistryError> {
        let url = self.url(&access.endpoint, "blobs", &digest.to_string());
        if !blob::can_serve(&access.endpoint) {
            return self.open_blob_over_http(access, url, offset).await;
        }
        let client = self.blob_client(access).await?;
        let err = match client.open(digest, offset, &url).await {
            Ok((begins, bytes)) => return Ok((url, begins, bytes)),
            Err(err) => err,
        };
        let has_status = matches!(
            err,
            RegistryError::Unauthorized { .. } | RegistryError::NotFound { .. } | RegistryError::Status { .. }
        );
        if !has_status {
            return Err(err);
        }
        // Asked over our own path, the registry's challenge is answered, and an error has its words and `Retry-After`.
        self.open_blob_over_http(access, url, offset).await
    }

    /// The client for blobs, with the authorization that was let in last.
    async fn blob_client(&self, access: &Access) -> Result<BlobClient, RegistryError> {
        let login = access.order().first().and_then(|&index| access.logins.get(index)).and_then(Option::as_ref);
        let known = self.tokens.get(&self.token_key(access, login), Instant::now());
        let authorization = known.unwrap_or_else(|| first_authorization(login));
        let made = access.blobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(made) = made.filter(|made| *made.authorization() == authorization) {
            return Ok(made);
        }
        let stall = self.http.stall();
        let made = BlobClient::new(&access.endpoint, &self.registry, &self.repository, authorization, stall).await?;
        *access.blobs.lock().unwrap_or_else(PoisonError::into_inner) = Some(made.clone());
        Ok(made)
    }

    async fn open_blob_over_http(
        &self,
        access: &Access,
        url: String,
        offset: u64,
    ) -> Result<(String, u64, futures::stream::BoxStream<'static, Result<Bytes, RegistryError>>), RegistryError> {
        let response = self.request(access, Method::GET, &url, Some(offset).filter(|&offset| offset > 0)).await?;
        let begins = if response.status() == reqwest::StatusCode::PARTIAL_CONTENT { offset } else { 0 };
        let (address, stall) = (url.clone(), self.http.stall());
        let bytes =
            response.bytes_stream().map(move |chunk| chunk.map_err(|err| transport("GET", &address, err, stall)));
        Ok((url, begins, bytes.boxed()))
    }
}

/// What a login can send before it is asked.
fn first_authorization(login: Option<&Login>) -> Authorization {
    match login {
        Some(Login::RegistryToken(token)) if token.bytes().all(|b| b.is_ascii_graphic()) => {
            Authorization::Bearer(token.clone())
        }
        Some(Login::RegistryToken(_) | Login::Basic { .. } | Login::IdentityToken(_)) | None => {
            Authorization::Anonymous
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_in_the_clear_to_this_host_only() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "127.9.9.9"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost:443", "registry-1.docker.io", "localhost.evil.org", "10.0.0.1:5000", "[fe80::1]"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
