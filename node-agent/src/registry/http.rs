//! Requests that decide about access: manifests, challenges, tokens. Every body is bounded, every wait has an end.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};

use super::{RegistryError, challenge, challenge::Challenge, hosts::Endpoint, retry};

/// Of an error body, more is of no use.
const MAX_ERROR_BODY: usize = 16 << 10;
/// Of a registry's own words, more does not fit into an event.
const MAX_MESSAGE: usize = 300;
/// Redirects of one request.
const MAX_REDIRECTS: usize = 10;
/// Connection settings kept at once; more than a node has registries.
const MAX_CLIENTS: usize = 64;

/// What the requests go out with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Authorization {
    /// Nothing.
    Anonymous,
    /// User name and password.
    Basic(String, String),
    /// A token.
    Bearer(String),
}

/// One request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: reqwest::Method,
    pub(super) endpoint: &'a Endpoint,
    pub(super) url: String,
    pub(super) accept: Option<&'a str>,
    pub(super) range_from: Option<u64>,
    pub(super) authorization: &'a Authorization,
}

/// An answer that is not the one hoped for.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: RegistryError,
    /// What the registry wants to see, when it says so.
    pub(super) challenge: Option<Challenge>,
}

/// Makes requests. Connections are kept for each way of speaking TLS.
#[derive(Debug)]
pub(super) struct Http {
    stall: Duration,
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
}

/// What makes two endpoints need different connection settings. Certificates are read again when their file changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    skip_verify: bool,
    dial_timeout: Duration,
    files: Vec<(PathBuf, Option<SystemTime>)>,
}

impl Http {
    pub(super) fn new(stall: Duration) -> Self {
        Self { stall, clients: Mutex::default() }
    }

    /// How long nothing may come before a request counts as stalled.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// Sends the request. An answer other than 2xx is a [`Refusal`].
    pub(super) async fn send(&self, request: Request<'_>) -> Result<reqwest::Response, Refusal> {
        let method = method_name(&request.method);
        let url = request.url.clone();
        let plain_refusal = |error| Refusal { error, challenge: None };
        let client = self.client(request.endpoint).map_err(plain_refusal)?;
        let built = build(&client, request);
        let answer = tokio::time::timeout(self.stall, built.send()).await;
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(err)) => return Err(plain_refusal(transport(method, &url, err, self.stall))),
            Err(_) => return Err(plain_refusal(RegistryError::Stalled { method, url, after: self.stall })),
        };
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(method, url, response).await)
    }

    /// Posts a form, as the OAuth2 flow wants it.
    pub(super) async fn post_form(
        &self,
        endpoint: &Endpoint,
        url: &str,
        form: &[(&str, &str)],
    ) -> Result<reqwest::Response, RegistryError> {
        let body = encode_form(form);
        let request = self
            .client(endpoint)?
            .post(url)
            .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body);
        match tokio::time::timeout(self.stall, request.send()).await {
            Ok(Ok(response)) if response.status().is_success() => Ok(response),
            Ok(Ok(response)) => Err(self.refusal("POST", url.to_owned(), response).await.error),
            Ok(Err(err)) => Err(transport("POST", url, err, self.stall)),
            Err(_) => Err(RegistryError::Stalled { method: "POST", url: url.to_owned(), after: self.stall }),
        }
    }

    /// The whole body, of at most `limit` bytes.
    pub(super) async fn body(
        &self,
        mut response: reqwest::Response,
        url: &str,
        what: &str,
        limit: usize,
    ) -> Result<Bytes, RegistryError> {
        let mut body = BytesMut::new();
        loop {
            let chunk = match tokio::time::timeout(self.stall, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(body.freeze()),
                Ok(Err(err)) => return Err(transport("GET", url, err, self.stall)),
                Err(_) => return Err(RegistryError::Stalled { method: "GET", url: url.to_owned(), after: self.stall }),
            };
            if body.len() + chunk.len() > limit {
                let limit_bytes = u64::try_from(limit).unwrap_or(u64::MAX);
                return Err(RegistryError::TooLong { what: what.to_owned(), url: url.to_owned(), limit_bytes });
            }
            body.extend_from_slice(&chunk);
        }
    }

    async fn refusal(&self, method: &'static str, url: String, response: reqwest::Response) -> Refusal {
        let status = response.status();
        let headers = response.headers();
        let challenge =
            challenge::parse(headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()));
        let retry_after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(retry::retry_after);
        let message = self.error_message(response).await;
        Refusal { error: status_error(method, url, status, message, retry_after), challenge }
    }

    /// The registry's words, when it speaks as the distribution specification says. Any other body is not shown: it may
    /// come from anywhere that a redirect leads to.
    async fn error_message(&self, mut response: reqwest::Response) -> String {
        let mut body = BytesMut::new();
        while body.len() < MAX_ERROR_BODY {
            match tokio::time::timeout(self.stall, response.chunk()).await {
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                Ok(Ok(None) | Err(_)) | Err(_) => break,
            }
        }
        registry_words(&body)
    }

    fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        let key = ClientKey::of(endpoint);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = new_client(endpoint, self.stall)?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
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

fn new_client(endpoint: &Endpoint, stall: Duration) -> Result<reqwest::Client, RegistryError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(endpoint.dial_timeout)
        .read_timeout(stall)
        .tls_danger_accept_invalid_certs(endpoint.skip_verify)
        .redirect(reqwest::redirect::Policy::custom(redirect));
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
    builder.build().map_err(|err| transport("GET", &endpoint.base(), err, stall))
}

/// Never from TLS to the clear.
fn redirect(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    if attempt.url().scheme() != "https" && attempt.previous().last().is_some_and(|from| from.scheme() == "https") {
        return attempt.error("redirect from https to http");
    }
    attempt.follow()
}

fn build(client: &reqwest::Client, request: Request<'_>) -> reqwest::RequestBuilder {
    let mut built = client.request(request.method, &request.url);
    for (name, value) in &request.endpoint.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            built = built.header(name, value);
        }
    }
    if let Some(accept) = request.accept {
        built = built.header(reqwest::header::ACCEPT, accept);
    }
    if let Some(offset) = request.range_from {
        built = built.header(reqwest::header::RANGE, format!("bytes={offset}-"));
    }
    match request.authorization {
        Authorization::Anonymous => built,
        Authorization::Basic(username, password) => built.basic_auth(username, Some(password)),
        Authorization::Bearer(token) => match HeaderValue::try_from(format!("Bearer {token}")) {
            Ok(mut value) => {
                value.set_sensitive(true);
                built.header(AUTHORIZATION, value)
            }
            Err(_) => built,
        },
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path).map_err(|err| certificate(path, &err))
}

fn certificate(path: &Path, err: &dyn std::error::Error) -> RegistryError {
    RegistryError::Certificate { path: path.to_owned(), why: err.to_string() }
}

fn method_name(method: &reqwest::Method) -> &'static str {
    match method.as_str() {
        "HEAD" => "HEAD",
        "POST" => "POST",
        _ => "GET",
    }
}

/// An error from an HTTP status.
pub(super) fn status_error(
    method: &'static str,
    url: String,
    status: reqwest::StatusCode,
    message: String,
    retry_after: Option<Duration>,
) -> RegistryError {
    let code = status.as_u16();
    let status = status.to_string();
    match code {
        401 | 403 => RegistryError::Unauthorized { method, url, status, message, logins: 0 },
        404 => RegistryError::NotFound { method, url, status, message },
        _ => RegistryError::Status { method, url, status, code, message, retry_after },
    }
}

/// An error from below HTTP.
pub(super) fn transport(method: &'static str, url: &str, err: reqwest::Error, stall: Duration) -> RegistryError {
    if err.is_timeout() && !err.is_connect() {
        return RegistryError::Stalled { method, url: url.to_owned(), after: stall };
    }
    let err = err.without_url();
    // The outermost text says "error sending request"; what is below it says why.
    let mut cause = String::new();
    let mut next = std::error::Error::source(&err);
    while let Some(source) = next {
        let text = source.to_string();
        if !cause.ends_with(&text) {
            if !cause.is_empty() {
                cause.push_str(": ");
            }
            cause.push_str(&text);
        }
        next = source.source();
    }
    if cause.is_empty() {
        cause = err.to_string();
    }
    RegistryError::Connection { method, url: url.to_owned(), cause }
}

/// The messages of an error body in the form of the distribution specification.
pub(super) fn registry_words(body: &[u8]) -> String {
    let Ok(serde_json::Value::Object(body)) = serde_json::from_slice(body) else { return String::new() };
    let words: Vec<&str> = match body.get("errors").and_then(serde_json::Value::as_array) {
        Some(errors) => errors
            .iter()
            .filter_map(|error| {
                let field = |name| error.get(name).and_then(serde_json::Value::as_str).filter(|text| !text.is_empty());
                field("message").or_else(|| field("code"))
            })
            .collect(),
        None => body.get("details").and_then(serde_json::Value::as_str).into_iter().collect(),
    };
    words.join(", ").chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}

fn encode_form(form: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = form.iter().map(|(name, value)| format!("{}={}", escape(name), escape(value))).collect();
    pairs.join("&")
}

/// Percent-encodes a value of a form or a query.
pub(super) fn escape(text: &str) -> String {
    use std::fmt::Write as _;

    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_words_of_registries_and_nothing_else() {
        for (body, words) in [
            (r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#, "manifest unknown"),
            (r#"{"errors":[{"code":"DENIED","message":""},{"code":"X","message":"y"}]}"#, "DENIED, y"),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            ("<html>secret</html>", ""),
            (r#"{"errors":"no list"}"#, ""),
            ("", ""),
        ] {
            assert_eq!(registry_words(body.as_bytes()), words, "{body}");
        }
    }

    #[test]
    fn escapes_forms() {
        assert_eq!(
            encode_form(&[("a b", "c&d=é"), ("x", "repository:a/b:pull")]),
            "a%20b=c%26d%3D%C3%A9&x=repository%3Aa%2Fb%3Apull"
        );
    }
}
