//! One repository at its endpoints: logins in order, tokens, and a few tries for what is small. Blobs are tried once: their
//! reader knows how far it has come.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use oci_distribution::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName},
};
use tokio::time::Instant;

use super::{
    BlobStream, Entry, Login, RegistryError, Repository, Resolve, Resolved,
    answer::transport,
    blob::{self, Answer, BlobClient},
    challenge::Challenge,
    hosts::Endpoint,
    http::{Authorization, Http, Request},
    pace,
    range::{self, BadPromise, Promise},
    retry,
    token::{self, TokenKey, Tokens},
};
use crate::digest::Digest;

/// The largest manifest or index, as other clients have it.
const MAX_MANIFEST: usize = 4 << 20;
/// How long a password that was taken is sent without being asked for.
const BASIC_LIFE: Duration = Duration::from_secs(3600);
/// What manifests we understand; the last one lets a registry send what it has, so that it can be refused by its name.
const ACCEPT: [&str; 5] = [
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
    "*/*;q=0.1",
];

/// How the media types of Docker's first format begin.
const SCHEMA_ONE: &str = "application/vnd.docker.distribution.manifest.v1+";

/// The logins for one endpoint, in the order in which they are tried.
#[derive(Debug)]
pub(super) struct Logins {
    /// Never empty; `None` is to go without a login.
    all: Vec<Option<Login>>,
    /// So many of them came with whoever asks; the others are the node's own.
    brought: usize,
}

impl Logins {
    pub(super) fn new(brought: Vec<Login>, own: Vec<Login>) -> Self {
        let own: Vec<Login> = own.into_iter().filter(|login| !brought.contains(login)).collect();
        let count = brought.len();
        let all: Vec<Option<Login>> = brought.into_iter().chain(own).map(Some).collect();
        Self { all: if all.is_empty() { vec![None] } else { all }, brought: count }
    }

    /// What a request was let in with that was sent with the login at this place.
    fn entry(&self, index: usize) -> Entry {
        let brought = self.all.get(index).filter(|_| index < self.brought).cloned().flatten();
        brought.map_or(Entry::Anybody, Entry::Login)
    }
}

/// One endpoint and how we got in.
#[derive(Debug)]
pub(super) struct Access {
    endpoint: Endpoint,
    logins: Logins,
    /// The login that was let in last.
    chosen: Mutex<Option<usize>>,
    blobs: Mutex<Option<BlobClient>>,
    /// The last blob that was asked for through `oci-distribution` did not come, and none has come since.
    refuses: AtomicBool,
}

impl Access {
    pub(super) fn new(endpoint: Endpoint, logins: Logins) -> Self {
        Self { endpoint, logins, chosen: Mutex::default(), blobs: Mutex::default(), refuses: AtomicBool::new(false) }
    }

    /// The login that is shown first.
    fn first_login(&self) -> Option<&Login> {
        self.order().first().and_then(|&index| self.logins.all.get(index)).and_then(Option::as_ref)
    }

    /// The logins, the one that works first.
    fn order(&self) -> Vec<usize> {
        let chosen = *self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut order: Vec<usize> = (0..self.logins.all.len()).collect();
        order.sort_by_key(|&index| Some(index) != chosen);
        order
    }

    fn choose(&self, index: usize) {
        *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(index);
    }
}

/// An open repository.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) http: Arc<Http>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) name: String,
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) endpoints: Vec<Access>,
    /// Why logins of the node's own may be missing, for when they are.
    pub(super) notes: Vec<String>,
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

    fn sources(&self) -> Result<Vec<usize>, RegistryError> {
        let all = self.endpoints.iter().enumerate();
        let sources: Vec<usize> = all.filter(|(_, access)| access.endpoint.pull).map(|(index, _)| index).collect();
        if sources.is_empty() { Err(self.no_endpoint("pull")) } else { Ok(sources) }
    }

    async fn blob(&self, source: usize, digest: &Digest, size: u64, offset: u64) -> Result<BlobStream, RegistryError> {
        let access = self.endpoints.get(source).ok_or_else(|| self.no_endpoint("pull"))?;
        let url = self.url(&access.endpoint, "blobs", &digest.to_string());
        let bad_promise = |bad| match bad {
            BadPromise::Length(announced_bytes) => {
                RegistryError::WrongLength { url: url.clone(), digest: *digest, announced_bytes, expected_bytes: size }
            }
            BadPromise::Range => {
                let why = format!("the answer is not the range from {offset} on that was asked for");
                RegistryError::Malformed { url: url.clone(), why }
            }
        };
        if let Some(client) = self.blob_client(access).await? {
            self.http.may_be_asked(&url, access.first_login())?;
            if let Answer::Content(promise, bytes) = client.open(&digest.to_string(), offset, &url).await? {
                let offset = range::begin(promise, offset, size).map_err(bad_promise)?;
                return Ok(self.stream(url, digest, offset, bytes));
            }
            access.refuses.store(true, Ordering::Relaxed);
        }
        let (response, _) = self.request(access, Method::GET, &url, Some(offset).filter(|&offset| offset > 0)).await?;
        access.refuses.store(false, Ordering::Relaxed);
        let begins = range::begin(promise(&response), offset, size).map_err(bad_promise)?;
        let (address, stall) = (url.clone(), self.http.stall());
        let bytes =
            response.bytes_stream().map(move |chunk| chunk.map_err(|err| transport("GET", &address, err, stall)));
        Ok(self.stream(url, digest, begins, bytes.boxed()))
    }
}

fn promise(response: &Response) -> Promise<'_> {
    let text = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    Promise {
        partial: response.status() == StatusCode::PARTIAL_CONTENT,
        content_range: text(CONTENT_RANGE),
        content_length: text(CONTENT_LENGTH).and_then(|length| length.parse().ok()),
    }
}

impl Session {
    fn no_endpoint(&self, capability: &'static str) -> RegistryError {
        RegistryError::NoEndpoint { registry: self.registry.clone(), capability }
    }

    fn stream(
        &self,
        url: String,
        digest: &Digest,
        offset: u64,
        bytes: BoxStream<'static, Result<Bytes, RegistryError>>,
    ) -> BlobStream {
        let bytes = pace::watched(bytes, url.clone(), digest.to_string(), self.http.patience());
        BlobStream { url, offset, bytes }
    }

    /// The client for blobs, with the authorization that was let in last; none where that is a secret, or where
    /// `oci-distribution` cannot speak to the endpoint, nor where the last answer was an error: what it is has to be asked
    /// again, and to ask twice each time is too much for a registry that has too much to do.
    async fn blob_client(&self, access: &Access) -> Result<Option<BlobClient>, RegistryError> {
        if access.refuses.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(authorization) = self.open_authorization(access).filter(|_| blob::can_serve(&access.endpoint)) else {
            return Ok(None);
        };
        let made = access.blobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(made) = made.filter(|made| *made.authorization() == authorization) {
            return Ok(Some(made));
        }
        let names = (&*self.registry, &*self.repository);
        let made = BlobClient::new(&self.http, &access.endpoint, names, authorization).await?;
        *access.blobs.lock().unwrap_or_else(PoisonError::into_inner) = Some(made.clone());
        Ok(Some(made))
    }

    /// What the next request would be sent with, where that is no secret: nothing, or a token that anybody is given.
    fn open_authorization(&self, access: &Access) -> Option<Authorization> {
        let login = access.first_login();
        let known = self.tokens.get(&self.token_key(access, login), Instant::now());
        let authorization = known.unwrap_or_else(|| first_authorization(login));
        (login.is_none() || authorization == Authorization::Anonymous).then_some(authorization)
    }

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
                return Err(self.no_endpoint(capability));
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
            && let Some((digest, entry)) = self.head_manifest(access, target, expected).await?
        {
            return Ok(Resolved { digest, entry, content: None });
        }
        self.get_manifest(access, target, expected).await
    }

    fn url(&self, endpoint: &Endpoint, kind: &str, target: &str) -> String {
        // Mirrors of several registries are told which one is meant, as containerd does.
        let namespace = if endpoint.origin { String::new() } else { format!("?ns={}", self.registry) };
        format!("{}/{}/{kind}/{target}{namespace}", endpoint.base(), self.repository)
    }

    /// The digest from a request without a body; none when the registry does not say it, or gives an error that it would
    /// explain only in a body. An answer that names no digest may come from anybody, also where one digest was asked for.
    async fn head_manifest(
        &self,
        access: &Access,
        target: &str,
        expected: Option<&Digest>,
    ) -> Result<Option<(Digest, Entry)>, RegistryError> {
        let url = self.url(&access.endpoint, "manifests", target);
        let (response, entry) = match self.request(access, Method::HEAD, &url, None).await {
            Ok(answered) => answered,
            Err(err) if err.is_transient() => return Err(err),
            Err(_) => return Ok(None),
        };
        match (expected, promised_digest(&response)) {
            (Some(&expected), Some(actual)) if actual != expected => {
                Err(RegistryError::WrongDigest { url, expected, actual })
            }
            (Some(_) | None, told) => Ok(told.map(|digest| (digest, entry))),
        }
    }

    async fn get_manifest(
        &self,
        access: &Access,
        target: &str,
        expected: Option<&Digest>,
    ) -> Result<Resolved, RegistryError> {
        let url = self.url(&access.endpoint, "manifests", target);
        let (response, entry) = self.request(access, Method::GET, &url, None).await?;
        let promised = promised_digest(&response);
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        // Its digest leaves out the signatures that it carries, so it would look like a lie.
        let is_schema_one = media_type.is_some_and(|kind| kind.starts_with(SCHEMA_ONE));
        if is_schema_one {
            return Err(RegistryError::SchemaOne { url });
        }
        let content = self.http.body(response, &url, "manifest", MAX_MANIFEST).await?;
        let actual = Digest::of(&content);
        match expected.or(promised.as_ref()) {
            Some(&expected) if expected != actual => Err(RegistryError::WrongDigest { url, expected, actual }),
            Some(_) | None => Ok(Resolved { digest: actual, entry, content: Some(content) }),
        }
    }

    /// Sends a request with each login until one is let in; says which.
    async fn request(
        &self,
        access: &Access,
        method: Method,
        url: &str,
        range_from: Option<u64>,
    ) -> Result<(Response, Entry), RegistryError> {
        let mut first = None;
        for index in access.order() {
            let Some(login) = access.logins.all.get(index) else { continue };
            match self.request_as(access, login.as_ref(), method.clone(), url, range_from).await {
                Ok((response, Shown::Nothing)) => {
                    access.choose(index);
                    return Ok((response, Entry::Anybody));
                }
                Ok((response, Shown::Login)) => {
                    access.choose(index);
                    return Ok((response, access.logins.entry(index)));
                }
                Err(err) if err.is_about_access() => first = Some(first.unwrap_or(err)),
                Err(err) => return Err(err),
            }
        }
        let count = access.logins.all.iter().flatten().count();
        Err(match first {
            Some(RegistryError::Unauthorized { method, url, status, message, .. }) => {
                let notes = self.notes.clone();
                RegistryError::Unauthorized { method, url, status, message, logins: count, notes }
            }
            Some(other) => other,
            None => self.no_endpoint("pull"),
        })
    }

    async fn request_as(
        &self,
        access: &Access,
        login: Option<&Login>,
        method: Method,
        url: &str,
        range_from: Option<u64>,
    ) -> Result<(Response, Shown), RegistryError> {
        let key = self.token_key(access, login);
        let known = self.tokens.get(&key, Instant::now());
        let authorization = known.unwrap_or_else(|| first_authorization(login));
        let accept = ACCEPT.join(", ");
        let request = |authorization| Request {
            method: method.clone(),
            endpoint: &access.endpoint,
            url: url.to_owned(),
            accept: Some(&accept),
            range_from,
            authorization,
            login,
        };
        let refusal = match self.http.send(request(&authorization)).await {
            Ok(response) => return Ok((response, Shown::of(&authorization))),
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
        let shown = Shown::of(&authorization);
        self.tokens.put(key, authorization, now + life, now);
        Ok((response, shown))
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
    ) -> Result<Option<(Authorization, Duration)>, RegistryError> {
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
}

/// What a request carried that was let in.
#[derive(Debug, Clone, Copy)]
enum Shown {
    /// Nothing: the registry did not ask.
    Nothing,
    /// The login that it was sent with, or a token that was given for it.
    Login,
}

impl Shown {
    fn of(authorization: &Authorization) -> Self {
        match authorization {
            Authorization::Anonymous => Self::Nothing,
            Authorization::Basic(..) | Authorization::Bearer(_) => Self::Login,
        }
    }
}

/// The digest that a registry says a manifest has.
fn promised_digest(response: &Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
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
