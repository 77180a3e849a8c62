//! Requests to registries. Every body but a blob's is bounded in size and time, every wait has an end, and what is for the
//! registry goes nowhere else.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::{
    Response, Url,
    header::{AUTHORIZATION, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE},
};
use tokio::time::Instant;

use super::{
    Login, Proxies, RegistryError,
    answer::{redirected_error, registry_words, status_error, transport},
    challenge::{self, Challenge},
    connection::{Connections, TokenFor},
    hosts::Endpoint,
    pauses::{Asked, Pauses},
    redirect::{self, MAX_REDIRECTS},
    retry,
};

/// Of an error body, more is of no use.
const MAX_ERROR_BODY: usize = 16 << 10;
/// How many times the longest silence a small document may take to come, and over which the rate of a blob is taken: what
/// drips must not be waited for for ever.
const SILENCES: u32 = 4;

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
    /// As whom it is asked.
    pub(super) login: Option<&'a Login>,
}

/// An answer that is not the one hoped for.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: RegistryError,
    /// What the registry wants to see, when it says so.
    pub(super) challenge: Option<Challenge>,
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        Self { error, challenge: None }
    }
}

/// Makes requests.
#[derive(Debug)]
pub(super) struct Http {
    stall: Duration,
    connections: Connections,
    pauses: Pauses,
}

impl Http {
    pub(super) fn new(stall: Duration, proxies: Proxies) -> Self {
        Self { stall, connections: Connections::new(stall, proxies), pauses: Pauses::default() }
    }

    /// How long nothing may come before a request counts as stalled.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// How long something may drip.
    pub(super) fn patience(&self) -> Duration {
        self.stall.saturating_mul(SILENCES)
    }

    /// A client of `oci-distribution` that speaks to an endpoint as this does.
    pub(super) async fn package(
        &self,
        endpoint: &Endpoint,
        token: Option<TokenFor>,
    ) -> Result<oci_distribution::Client, RegistryError> {
        self.connections.package(endpoint, token).await
    }

    /// Sends the request, and goes where it is sent. An answer other than 2xx is a [`Refusal`].
    pub(super) async fn send(&self, request: Request<'_>) -> Result<Response, Refusal> {
        let method = method_name(&request.method);
        let malformed = |why: &str| RegistryError::Malformed { url: request.url.clone(), why: why.to_owned() };
        let mut client = self.connections.client(request.endpoint).await?;
        let registry = Url::parse(&request.url).map_err(|_| malformed("it is not an address"))?;
        let (mut at, mut home) = (registry.clone(), true);
        for _ in 0..=MAX_REDIRECTS {
            // Once away from the registry, nothing is carried any more, also where a later redirect leads back.
            home &= redirect::same_host(&registry, &at);
            if !home {
                // A client certificate is a login, too.
                client = self.connections.client(&request.endpoint.elsewhere(&at)).await?;
            }
            let asked = Asked::at(&at, request.login.filter(|_| home));
            self.heed_pause(method, &request.url, &at, &asked)?;
            let built = build(&client, &request, at.clone(), if home { Carried::All } else { Carried::Nothing });
            let response = self.one_answer(method, &request.url, built).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            match redirect::target(&at, response.status(), location) {
                Ok(Some(next)) => at = next,
                Ok(None) => {
                    let refusal = if home {
                        self.refusal(method, request.url, response).await
                    } else {
                        let to = at.host_str().unwrap_or_default().to_owned();
                        self.refusal_elsewhere(method, request.url, &to, response).await.into()
                    };
                    self.note_pause(asked, &refusal.error);
                    return Err(refusal);
                }
                Err(why) => return Err(malformed(why.as_str()).into()),
            }
        }
        Err(malformed("it redirects without end").into())
    }

    /// Says no where a host has asked to be left alone and that time has not passed; `url` is for messages.
    fn heed_pause(&self, method: &'static str, url: &str, at: &Url, asked: &Asked) -> Result<(), RegistryError> {
        let now = Instant::now();
        let Some(pause) = self.pauses.of(asked, now) else { return Ok(()) };
        let left = pause.until.saturating_duration_since(now);
        let said = format!("{} said {}", at.host_str().unwrap_or_default(), pause.status);
        let until = jiff::Timestamp::now().saturating_add(left).unwrap_or(jiff::Timestamp::MAX);
        // An event that says the same each time is shown once.
        let until = until.round(jiff::Unit::Second).unwrap_or(until);
        Err(RegistryError::Paused { method, url: url.to_owned(), said, until, left })
    }

    /// The same for an address that is asked by somebody else than this.
    pub(super) fn may_be_asked(&self, url: &str, login: Option<&Login>) -> Result<(), RegistryError> {
        match Url::parse(url) {
            Ok(at) => self.heed_pause("GET", url, &at, &Asked::at(&at, login)),
            // Whoever asks will say so.
            Err(_) => Ok(()),
        }
    }

    fn note_pause(&self, asked: Asked, error: &RegistryError) {
        if let RegistryError::Status { retry_after: Some(wait), status, .. } = error
            && error.is_transient()
        {
            self.pauses.note(asked, *wait, status, Instant::now());
        }
    }

    /// Posts a form, as the OAuth2 flow wants it. A redirect is not followed: the form is a login.
    pub(super) async fn post_form(
        &self,
        endpoint: &Endpoint,
        url: &str,
        form: &[(&str, &str)],
        login: Option<&Login>,
    ) -> Result<Response, RegistryError> {
        let at = Url::parse(url)
            .map_err(|_| RegistryError::Malformed { url: url.to_owned(), why: "it is not an address".to_owned() })?;
        let asked = Asked::at(&at, login);
        self.heed_pause("POST", url, &at, &asked)?;
        let request = self
            .connections
            .client(endpoint)
            .await?
            .post(url)
            .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(encode_form(form));
        let response = self.one_answer("POST", url, request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let error = self.refusal("POST", url.to_owned(), response).await.error;
        self.note_pause(asked, &error);
        Err(error)
    }

    /// The whole body, of at most `limit` bytes, within a bounded time.
    pub(super) async fn body(
        &self,
        response: Response,
        url: &str,
        what: &str,
        limit: usize,
    ) -> Result<Bytes, RegistryError> {
        let mut body = BytesMut::new();
        let after = self.patience();
        let read = tokio::time::timeout(after, read_up_to(response, &mut body, limit)).await;
        match read {
            Ok(Ok(Extent::Whole)) => Ok(body.freeze()),
            Ok(Ok(Extent::Cut)) => {
                let limit_bytes = u64::try_from(limit).unwrap_or(u64::MAX);
                Err(RegistryError::TooLong { what: what.to_owned(), url: url.to_owned(), limit_bytes })
            }
            Ok(Err(err)) => Err(transport("GET", url, err, self.stall)),
            Err(_) => {
                let got_bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
                Err(RegistryError::TooSlow { what: what.to_owned(), url: url.to_owned(), got_bytes, after })
            }
        }
    }

    async fn one_answer(
        &self,
        method: &'static str,
        url: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, RegistryError> {
        match tokio::time::timeout(self.stall, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(err)) => Err(transport(method, url, err, self.stall)),
            Err(_) => Err(RegistryError::Stalled { method, url: url.to_owned(), after: self.stall }),
        }
    }

    async fn refusal(&self, method: &'static str, url: String, response: Response) -> Refusal {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenge::parse(challenges.iter().filter_map(|value| value.to_str().ok()));
        let (status, retry_after) = (response.status(), retry_after(&response));
        let message = self.error_message(response).await;
        Refusal { error: status_error(method, url, status, message, retry_after), challenge }
    }

    async fn refusal_elsewhere(
        &self,
        method: &'static str,
        url: String,
        to: &str,
        response: Response,
    ) -> RegistryError {
        let (status, retry_after) = (response.status(), retry_after(&response));
        let message = self.error_message(response).await;
        redirected_error(method, url, to, status, message, retry_after)
    }

    /// The registry's words, as far as they come in time.
    async fn error_message(&self, response: Response) -> String {
        let mut body = BytesMut::new();
        // However it ends, what has come is all that there is to show.
        let _ = tokio::time::timeout(self.stall, read_up_to(response, &mut body, MAX_ERROR_BODY)).await;
        registry_words(&body)
    }
}

/// Whether a body was read to its end.
enum Extent {
    Whole,
    Cut,
}

/// Reads until there is no more, or more than `limit` bytes.
async fn read_up_to(mut response: Response, body: &mut BytesMut, limit: usize) -> reqwest::Result<Extent> {
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Ok(Extent::Cut);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Extent::Whole)
}

fn retry_after(response: &Response) -> Option<Duration> {
    let header = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    retry::retry_after(header, jiff::Timestamp::now())
}

/// What of a request is for the registry alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carried {
    All,
    Nothing,
}

fn build(client: &reqwest::Client, request: &Request<'_>, to: Url, carried: Carried) -> reqwest::RequestBuilder {
    let mut built = client.request(request.method.clone(), to);
    if let Some(accept) = request.accept {
        built = built.header(reqwest::header::ACCEPT, accept);
    }
    if let Some(offset) = request.range_from {
        built = built.header(reqwest::header::RANGE, format!("bytes={offset}-"));
    }
    if carried == Carried::Nothing {
        return built;
    }
    for (name, value) in &request.endpoint.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            built = built.header(name, value);
        }
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

fn method_name(method: &reqwest::Method) -> &'static str {
    match method.as_str() {
        "HEAD" => "HEAD",
        "POST" => "POST",
        _ => "GET",
    }
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
    fn escapes_forms() {
        assert_eq!(
            encode_form(&[("a b", "c&d=é"), ("x", "repository:a/b:pull")]),
            "a%20b=c%26d%3D%C3%A9&x=repository%3Aa%2Fb%3Apull"
        );
    }
}
