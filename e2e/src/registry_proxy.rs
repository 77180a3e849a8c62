//! A registry that misbehaves on demand: an HTTP proxy in front of a real one.
//!
//! Tests give rules for a repository and a kind of request; the first rule that fits decides what goes wrong. What no rule
//! fits is passed on as it is. Every request is noted, so a test can say that there was none. Never changes what the real
//! registry holds.

mod answers;
mod spoil;

use self::answers::{refuse, text};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// One bit of the byte at this offset is turned over: the content no longer has its digest.
    FlipByte {
        /// Offset in the answer's body.
        at: u64,
    },
    /// The connection is closed after this many bytes, though the answer promised more.
    Truncate {
        /// Bytes that still arrive.
        after: u64,
    },
    /// The connection is reset after this many bytes of the body; at once for 0.
    Reset {
        /// Bytes that still arrive.
        after: u64,
    },
    /// The body arrives in pieces with pauses between them.
    Drip {
        /// Bytes in a piece.
        piece: usize,
        /// The pause before each piece.
        pause: Duration,
    },
    /// No answer, until the client goes away or the proxy stops.
    Silence,
    /// This status and a registry's error body. 401 comes with a challenge.
    Status(StatusCode),
    /// This status, and a body that does not end.
    Endless(StatusCode),
    /// This document in place of the one asked for.
    Replace(Bytes),
    /// So many bytes more are announced, and come.
    Longer {
        /// Bytes behind the last one.
        by: u64,
    },
    /// 307 to the same path at another host.
    Redirect {
        /// `http://host:port`.
        to: String,
    },
    /// 401 with a challenge, and a token server that gives out tokens which are never good enough.
    TokenLoop,
    /// 429 with `Retry-After`.
    TooManyRequests {
        /// The seconds asked for.
        retry_after: u64,
    },
    /// 401 with a challenge, unless the request has these credentials, as HTTP basic authentication.
    Credentials {
        /// The user name.
        username: String,
        /// The password.
        password: String,
    },
}

/// What kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `/v2/`.
    Ping,
    /// A manifest or an index.
    Manifest,
    /// A config or a layer.
    Blob,
    /// Anything else.
    Other,
}

/// When a fault happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Of this kind of request, or of every kind.
    pub kind: Option<Kind>,
    /// For this tag or digest, or for every one.
    pub reference: Option<String>,
    /// What goes wrong.
    pub fault: Fault,
    /// This many times, or until the repository is healed.
    pub times: Option<u32>,
}

impl Rule {
    /// A fault of every request of a kind.
    #[must_use]
    pub fn every(kind: Kind, fault: Fault) -> Self {
        Self { kind: Some(kind), reference: None, fault, times: None }
    }

    /// The same, but only so many times.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// The same, but only for this tag or digest.
    #[must_use]
    pub fn of(mut self, reference: &str) -> Self {
        self.reference = Some(reference.to_owned());
        self
    }
}

/// A request that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// GET, HEAD ...
    pub method: Method,
    /// What it asked for.
    pub kind: Kind,
    /// The repository; empty for [`Kind::Ping`].
    pub repository: String,
    /// The tag or digest; empty where there is none.
    pub reference: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// Whether it carried credentials.
    pub authorized: bool,
    /// The fault that it met.
    pub fault: Option<Fault>,
}

/// The proxy. It stops when it is dropped.
#[derive(Debug)]
pub struct RegistryProxy {
    address: SocketAddr,
    state: Arc<State>,
    seen: watch::Receiver<Vec<Seen>>,
    /// The accepting task, which owns the connections.
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    /// The proxy's own.
    address: SocketAddr,
    upstream: SocketAddr,
    /// Connections to the real registry.
    upstream_connections: TaskTracker,
    /// Rules by repository, in the order they were given.
    rules: Mutex<Vec<(String, Rule)>>,
    seen: watch::Sender<Vec<Seen>>,
}

type Body = BoxBody<Bytes, io::Error>;

impl RegistryProxy {
    /// Starts a proxy on a free loopback port, in front of the registry at `upstream`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen for the proxy")?;
        let address = listener.local_addr()?;
        let (sender, seen) = watch::channel(Vec::new());
        let state = Arc::new(State {
            address,
            upstream,
            upstream_connections: TaskTracker::new(),
            rules: Mutex::new(Vec::new()),
            seen: sender,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, state.clone()));
        Ok(Self { address, state, seen, _tasks: tasks })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a rule for a repository (a name as in a URL: `eci_open/nginx`). Earlier rules come first.
    pub fn add(&self, repository: &str, rule: Rule) {
        self.state.rules().push((repository.to_owned(), rule));
    }

    /// Removes a repository's rules.
    pub fn heal(&self, repository: &str) {
        self.state.rules().retain(|(name, _)| name != repository);
    }

    /// Every request since the start or the last [`Self::forget`].
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    /// How many of them were of a kind, for a repository.
    #[must_use]
    pub fn count(&self, repository: &str, kind: Kind) -> usize {
        self.seen.borrow().iter().filter(|seen| seen.repository == repository && seen.kind == kind).count()
    }

    /// Forgets what was seen.
    pub fn forget(&self) {
        self.state.seen.send_modify(Vec::clear);
    }

    /// Waits until what was seen satisfies `wanted`.
    ///
    /// # Errors
    /// When it does not within `at_most`; the error shows what was seen.
    pub async fn wait_for(&self, at_most: Duration, mut wanted: impl FnMut(&[Seen]) -> bool) -> Result<()> {
        let mut seen = self.seen.clone();
        let waited = tokio::time::timeout(at_most, seen.wait_for(|seen| wanted(seen))).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                bail!("the registry did not see what was expected within {at_most:?}: {:#?}", self.seen())
            }
        }
    }
}

impl State {
    fn rules(&self) -> std::sync::MutexGuard<'_, Vec<(String, Rule)>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault that a request meets; uses up one of its times.
    fn fault(&self, seen: &Seen, headers: &HeaderMap) -> Option<Fault> {
        let mut rules = self.rules();
        let at = rules.iter().position(|(repository, rule)| {
            *repository == seen.repository
                && rule.kind.is_none_or(|kind| kind == seen.kind)
                && rule.reference.as_ref().is_none_or(|reference| *reference == seen.reference)
                && !satisfies(&rule.fault, headers)
        })?;
        let rule = &mut rules[at].1;
        let fault = rule.fault.clone();
        if let Some(times) = &mut rule.times {
            *times = times.saturating_sub(1);
            if *times == 0 {
                rules.remove(at);
            }
        }
        Some(fault)
    }
}

/// Whether a request has the credentials that a rule asks for.
fn satisfies(fault: &Fault, headers: &HeaderMap) -> bool {
    let Fault::Credentials { username, password } = fault else { return false };
    let wanted = format!("Basic {}", BASE64.encode(format!("{username}:{password}")));
    headers.get(header::AUTHORIZATION).is_some_and(|given| given.as_bytes() == wanted.as_bytes())
}

/// Takes connections until it is dropped, and drops them with it.
async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Dropping `accept` loses no connection: one that was taken has been returned.
            taken = listener.accept() => {
                let Ok((stream, _)) = taken else { continue };
                connections.spawn(serve(stream, state.clone()));
            }
            // Dropping `join_next` loses nothing: what has ended is returned the next time.
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let socket = Arc::new(socket);
    let service = service_fn(|request| {
        let (state, socket) = (state.clone(), socket.clone());
        async move { Ok::<_, Infallible>(answer(&state, &socket, request).await) }
    });
    // Its errors are the faults: clients that are cut off, and clients that give up.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(state: &State, socket: &Arc<OwnedFd>, request: Request<Incoming>) -> Response<Body> {
    let mut seen = describe(&request);
    seen.fault = state.fault(&seen, request.headers());
    if request.uri().path() == answers::TOKEN_PATH {
        return answers::token();
    }
    let fault = seen.fault.clone();
    state.seen.send_modify(|all| all.push(seen));
    match fault {
        None => pass_on(state, request).await,
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Status(status)) => refuse(status),
        Some(Fault::Credentials { .. }) => refuse(StatusCode::UNAUTHORIZED),
        Some(Fault::Endless(status)) => answers::endless(status),
        Some(Fault::Replace(document)) => answers::document(document),
        Some(Fault::Redirect { to }) => answers::redirect(&to, request.uri()),
        Some(Fault::TokenLoop) => answers::challenge(state.address),
        Some(Fault::TooManyRequests { retry_after }) => {
            let mut response = refuse(StatusCode::TOO_MANY_REQUESTS);
            response.headers_mut().insert(header::RETRY_AFTER, retry_after.into());
            response
        }
        Some(Fault::Longer { by }) => answers::longer(pass_on(state, request).await, by),
        Some(fault @ (Fault::FlipByte { .. } | Fault::Truncate { .. } | Fault::Reset { .. } | Fault::Drip { .. })) => {
            let (parts, body) = pass_on(state, request).await.into_parts();
            Response::from_parts(parts, spoil::spoil(body, fault, socket.clone()))
        }
    }
}

/// Reads what a request is about from its path: `/v2/<repository>/(manifests|blobs)/<reference>`.
fn describe(request: &Request<Incoming>) -> Seen {
    let (kind, repository, reference) = parse(request.uri().path());
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Seen {
        method: request.method().clone(),
        kind,
        repository,
        reference,
        range: text(header::RANGE),
        authorized: request.headers().contains_key(header::AUTHORIZATION),
        fault: None,
    }
}

fn parse(path: &str) -> (Kind, String, String) {
    let Some(rest) = path.strip_prefix("/v2/").or_else(|| (path == "/v2").then_some("")) else {
        return (Kind::Other, String::new(), String::new());
    };
    if rest.is_empty() {
        return (Kind::Ping, String::new(), String::new());
    }
    for (middle, kind) in [("/manifests/", Kind::Manifest), ("/blobs/", Kind::Blob)] {
        if let Some((repository, reference)) = rest.rsplit_once(middle) {
            return (kind, repository.to_owned(), reference.to_owned());
        }
    }
    (Kind::Other, rest.to_owned(), String::new())
}

async fn pass_on(state: &State, request: Request<Incoming>) -> Response<Body> {
    match ask_upstream(state, request).await {
        Ok(response) => response,
        Err(error) => {
            let mut response = refuse(StatusCode::BAD_GATEWAY);
            *response.body_mut() = text(format!("{error:#}"));
            response
        }
    }
}

/// Sends a request to the real registry, on a connection of its own.
async fn ask_upstream(state: &State, mut request: Request<Incoming>) -> Result<Response<Body>> {
    let stream = TcpStream::connect(state.upstream).await.context("connect to the registry behind the proxy")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends when the answer's body is read or dropped.
    state.upstream_connections.spawn(async move { drop(connection.await) });
    // The credentials were for the proxy.
    request.headers_mut().remove(header::AUTHORIZATION);
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| body.map_err(io::Error::other).boxed()))
}

#[cfg(test)]
mod tests;
