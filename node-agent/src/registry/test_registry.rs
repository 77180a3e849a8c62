//! A registry for tests, with logins, ranges, and every way of going wrong that real ones have shown.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
    serve::ListenerExt as _,
};
use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use serde_json::json;
use tokio::task::JoinSet;

use crate::digest::Digest;

/// How one is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Door {
    /// Anybody is.
    Open,
    /// With `user:password`.
    Basic(String),
    /// With a token, which `user:password` gets at the realm; without one, the registry's own `/token` is the realm.
    Bearer(String, Option<String>),
}

/// A way of going wrong.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// An answer with this status, these headers and this message.
    Status(u16, Vec<(&'static str, String)>, &'static str),
    /// The body ends after so many bytes, and the connection with it.
    Cut(usize),
    /// Other bytes than asked for, of the same length.
    Corrupt,
    /// More bytes than asked for.
    Longer,
    /// So many more bytes are announced than there are, and come.
    Announce(usize),
    /// A range is ignored.
    NoRanges,
    /// The bytes come one by one, with such a pause before each.
    Drip(Duration),
    /// An answer with this status and a body that does not end.
    Endless(u16),
    /// A document of so many bytes in place of a manifest.
    Huge(usize),
    /// So many bytes come, then nothing.
    Stall(usize),
    /// Every request waits that long.
    Slow(Duration),
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
    /// How many of its headers have the value `secret`.
    pub(crate) secrets: usize,
}

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    door: Mutex<Door>,
    /// Manifests by `repository:reference`, blobs by digest.
    manifests: Mutex<HashMap<String, (String, Bytes)>>,
    blobs: Mutex<HashMap<String, Bytes>>,
    /// Each for requests whose path contains the text, so many times.
    faults: Mutex<Vec<(String, usize, Fault)>>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    token_seconds: AtomicU64,
}

/// A running registry; it ends with its last clone.
#[derive(Debug, Clone)]
pub(crate) struct TestRegistry {
    inner: Arc<Inner>,
    _server: Arc<Mutex<JoinSet<()>>>,
}

/// Connections whose handshake has succeeded.
struct TlsListener {
    tcp: tokio::net::TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let Ok((stream, from)) = self.tcp.accept().await else { continue };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// The token that `/token` gives out.
pub(crate) const TOKEN: &str = "a-token.with_graphic-characters";

impl TestRegistry {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self::serve(address, listener)
    }

    /// One that speaks TLS.
    pub(crate) async fn start_tls(config: rustls::ServerConfig) -> Self {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        Self::serve(address, TlsListener { tcp, acceptor: Arc::new(config).into() })
    }

    fn serve<L>(address: SocketAddr, listener: L) -> Self
    where
        L: axum::serve::Listener,
        L::Addr: std::fmt::Debug,
    {
        let inner = Arc::new(Inner {
            address,
            door: Mutex::new(Door::Open),
            manifests: Mutex::default(),
            blobs: Mutex::default(),
            faults: Mutex::default(),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            token_seconds: AtomicU64::new(300),
        });
        let counted = Arc::clone(&inner);
        let listener = listener.tap_io(move |_| {
            counted.connections.fetch_add(1, Ordering::SeqCst);
        });
        let app = Router::new().fallback(handle).with_state(Arc::clone(&inner));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { inner, _server: Arc::new(Mutex::new(server)) }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.inner.address.to_string()
    }

    pub(crate) fn set_door(&self, door: Door) {
        *self.inner.door.lock().unwrap() = door;
    }

    /// How long tokens live that are given out from now on.
    pub(crate) fn set_token_seconds(&self, seconds: u64) {
        self.inner.token_seconds.store(seconds, Ordering::SeqCst);
    }

    pub(crate) fn fault(&self, path: &str, times: usize, fault: Fault) {
        self.inner.faults.lock().unwrap().push((path.to_owned(), times, fault));
    }

    pub(crate) fn heal(&self) {
        self.inner.faults.lock().unwrap().clear();
    }

    pub(crate) fn put_blob(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.inner.blobs.lock().unwrap().insert(digest.to_string(), bytes);
        digest
    }

    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, manifest: &serde_json::Value) -> Digest {
        let bytes = Bytes::from(serde_json::to_vec(manifest).unwrap());
        let digest = Digest::of(&bytes);
        let media_type = manifest["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let mut manifests = self.inner.manifests.lock().unwrap();
        for target in [tag.to_owned(), digest.to_string()] {
            manifests.insert(format!("{repository}:{target}"), (media_type.to_owned(), bytes.clone()));
        }
        digest
    }

    /// What is under a tag.
    pub(crate) fn manifest(&self, repository: &str, tag: &str) -> serde_json::Value {
        let manifests = self.inner.manifests.lock().unwrap();
        serde_json::from_slice(&manifests[&format!("{repository}:{tag}")].1).unwrap()
    }

    /// Gives the same under another name.
    pub(crate) fn alias_manifest(&self, repository: &str, is: &str, also: &str) {
        let mut manifests = self.inner.manifests.lock().unwrap();
        let same = manifests[&format!("{repository}:{is}")].clone();
        manifests.insert(format!("{repository}:{also}"), same);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    pub(crate) fn forget_seen(&self) {
        self.inner.seen.lock().unwrap().clear();
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// How many requests had this method and a path with this text.
    pub(crate) fn count(&self, method: &str, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method && seen.path.contains(path)).count()
    }
}

async fn handle(State(inner): State<Arc<Inner>>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let path = uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let (authorization, range) = (text(header::AUTHORIZATION), text(header::RANGE));
    inner.seen.lock().unwrap().push(Seen {
        method: method.to_string(),
        path: path.clone(),
        authorization: authorization.clone(),
        range: range.clone(),
        secrets: headers.values().filter(|value| value.as_bytes() == b"secret").count(),
    });
    let fault = inner.take_fault(&path);
    if let Some(Fault::Slow(wait)) = &fault {
        tokio::time::sleep(*wait).await;
    }
    if let Some(Fault::Status(status, headers, message)) = fault {
        let mut response = error(StatusCode::from_u16(status).unwrap(), message);
        for (name, value) in headers {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        return response;
    }
    if let Some(Fault::Endless(status)) = fault {
        let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 4096])));
        return (StatusCode::from_u16(status).unwrap(), Body::from_stream(endless)).into_response();
    }
    if path.starts_with("/token") {
        return inner.token(authorization.as_deref());
    }
    if let Some(refusal) = inner.refuse(authorization.as_deref()) {
        return refusal;
    }
    let without_query = uri.path();
    if let Some((repository, target)) = without_query.strip_prefix("/v2/").and_then(|p| p.rsplit_once("/manifests/")) {
        return inner.manifest(repository, target, &method, fault.as_ref());
    }
    if let Some((_, digest)) = without_query.rsplit_once("/blobs/") {
        return inner.blob(digest, &method, range.as_deref(), fault);
    }
    error(StatusCode::NOT_FOUND, "no such path")
}

fn error(status: StatusCode, message: &str) -> Response {
    let body = json!({"errors": [{"code": "TEST", "message": message}]}).to_string();
    (status, body).into_response()
}

impl Inner {
    fn take_fault(&self, path: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let (_, times, fault) =
            faults.iter_mut().find(|(text, times, _)| *times > 0 && path.contains(text.as_str()))?;
        *times -= 1;
        Some(fault.clone())
    }

    fn refuse(&self, authorization: Option<&str>) -> Option<Response> {
        let basic = |login: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login));
        let (wanted, challenge) = match &*self.door.lock().unwrap() {
            Door::Open => return None,
            Door::Basic(login) => (basic(login), "Basic realm=\"test\"".to_owned()),
            Door::Bearer(_, realm) => {
                let own = format!("http://{}/token", self.address);
                let realm = realm.as_ref().unwrap_or(&own);
                (format!("Bearer {TOKEN}"), format!("Bearer realm=\"{realm}\",service=\"test\""))
            }
        };
        if authorization == Some(wanted.as_str()) {
            return None;
        }
        let mut response = error(StatusCode::UNAUTHORIZED, "authentication required");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
        Some(response)
    }

    fn token(&self, authorization: Option<&str>) -> Response {
        let Door::Bearer(login, _) = &*self.door.lock().unwrap() else {
            return error(StatusCode::NOT_FOUND, "no tokens here");
        };
        let wanted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login));
        if !login.is_empty() && authorization != Some(wanted.as_str()) {
            return error(StatusCode::UNAUTHORIZED, "incorrect username or password");
        }
        let expires_in = self.token_seconds.load(Ordering::SeqCst);
        axum::Json(json!({"token": TOKEN, "expires_in": expires_in})).into_response()
    }

    fn manifest(&self, repository: &str, target: &str, method: &Method, fault: Option<&Fault>) -> Response {
        let manifests = self.manifests.lock().unwrap();
        let Some((media_type, bytes)) = manifests.get(&format!("{repository}:{target}")) else {
            return error(StatusCode::NOT_FOUND, "manifest unknown");
        };
        let mut response = Response::builder()
            .header(header::CONTENT_TYPE, media_type)
            .header("docker-content-digest", Digest::of(bytes).to_string());
        if method == Method::HEAD {
            response = response.header(header::CONTENT_LENGTH, bytes.len());
            return response.body(Body::empty()).unwrap();
        }
        match fault {
            Some(Fault::Corrupt) => response.body(Body::from(corrupt(bytes))).unwrap(),
            Some(Fault::Huge(size)) => response.body(Body::from(vec![b' '; *size])).unwrap(),
            Some(Fault::Drip(_) | Fault::Cut(_) | Fault::Stall(_)) => {
                response.body(faulty_body(bytes.clone(), fault.cloned())).unwrap()
            }
            _ => response.body(Body::from(bytes.clone())).unwrap(),
        }
    }

    fn blob(&self, digest: &str, method: &Method, range: Option<&str>, fault: Option<Fault>) -> Response {
        let Some(bytes) = self.blobs.lock().unwrap().get(digest).cloned() else {
            return error(StatusCode::NOT_FOUND, "blob unknown");
        };
        let offset = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let offset = offset.filter(|_| !matches!(fault, Some(Fault::NoRanges)));
        let total = bytes.len();
        if offset.is_some_and(|offset| offset >= total) {
            return error(StatusCode::RANGE_NOT_SATISFIABLE, "there is less of it");
        }
        let bytes = bytes.slice(offset.unwrap_or(0)..);
        let response = match offset {
            Some(offset) => Response::builder()
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {offset}-{}/{total}", total - 1)),
            None => Response::builder(),
        };
        if method == Method::HEAD {
            return response.header(header::CONTENT_LENGTH, bytes.len()).body(Body::empty()).unwrap();
        }
        let response = match &fault {
            // Without a length a cut is not seen by HTTP.
            Some(Fault::Longer) => response,
            Some(Fault::Announce(more)) => response.header(header::CONTENT_LENGTH, bytes.len() + more),
            _ => response.header(header::CONTENT_LENGTH, bytes.len()),
        };
        response.body(faulty_body(bytes, fault)).unwrap()
    }
}

fn corrupt(bytes: &Bytes) -> Bytes {
    let mut wrong = bytes.to_vec();
    if let Some(last) = wrong.last_mut() {
        *last ^= 0xff;
    }
    wrong.into()
}

fn faulty_body(bytes: Bytes, fault: Option<Fault>) -> Body {
    use futures::{StreamExt as _, stream};

    let broken = || Err(std::io::Error::other("cut by the test"));
    match fault {
        Some(Fault::Cut(at)) => {
            let kept = bytes.slice(..at.min(bytes.len()));
            Body::from_stream(stream::iter([Ok(kept)]).chain(stream::once(async move {
                // The bytes before the cut are to arrive.
                tokio::time::sleep(Duration::from_millis(20)).await;
                broken()
            })))
        }
        Some(Fault::Stall(at)) => {
            let kept = bytes.slice(..at.min(bytes.len()));
            Body::from_stream(stream::iter([Ok::<_, std::io::Error>(kept)]).chain(stream::pending()))
        }
        Some(Fault::Corrupt) => Body::from(corrupt(&bytes)),
        Some(Fault::Longer) => Body::from([&bytes[..], b"more"].concat()),
        Some(Fault::Announce(more)) => Body::from([&bytes[..], &vec![0; more]].concat()),
        Some(Fault::Drip(pause)) => Body::from_stream(stream::iter(0..bytes.len()).then(move |at| {
            let piece = bytes.slice(at..=at);
            async move {
                tokio::time::sleep(pause).await;
                Ok::<_, std::io::Error>(piece)
            }
        })),
        Some(Fault::Status(..) | Fault::NoRanges | Fault::Slow(_) | Fault::Endless(_) | Fault::Huge(_)) | None => {
            // In pieces, as a network gives them.
            let pieces: Vec<_> =
                bytes.chunks(64 << 10).map(|piece| Ok::<_, std::io::Error>(bytes.slice_ref(piece))).collect();
            Body::from_stream(stream::iter(pieces))
        }
    }
}
