//! Listens, makes TLS of each connection, and hands its requests to the routes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::authorize::{Gate, Peer};
use super::certificates::{self, Current, Files};
use super::routes::{self, Node};
use super::{KubeletApi, ServeError, caller};
use crate::first_request::FirstRequest;
use crate::parts::{PartError, Parts};

/// Until TLS must be agreed on.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a caller may be silent: until the headers of its first request have come, or of its next one. Clients in Go keep
/// a connection for so long, and the kubelet lets them.
const SILENCE: Duration = Duration::from_secs(90);
/// Between two looks whether the caller at the other end of an HTTP/2 connection is still there.
const PING: Duration = Duration::from_secs(30);
/// How many connections are served at once; more wait to be accepted.
const CONNECTIONS: usize = 512;
/// After an accept that failed, as when file descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);
/// How long requests have to end at shutdown.
const DRAIN: Duration = Duration::from_secs(2);

/// An interface that listens.
#[derive(Debug)]
pub struct Serving {
    listener: TcpListener,
    port: u16,
    router: Router,
    files: Files,
    current: Current,
}

impl Serving {
    pub(super) async fn bind(api: KubeletApi) -> Result<Self, ServeError> {
        let listen = api.listen;
        let failed = |source| ServeError::Listen { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let files = Files { pair: api.tls, client_ca: api.client_ca, node: api.node.clone(), address: api.address };
        let current = Arc::new(ArcSwap::from_pointee(certificates::load(&files)?));
        let gate = Gate::new(&api.node, api.access);
        let router = routes::router(Node { name: api.node.into(), agent: api.agent, pods: api.pods }, gate);
        Ok(Self { listener, port, router, files, current })
    }

    /// The port, which the system may have chosen.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// When it lacks one of its parts.
    pub async fn run(self, stop: CancellationToken) -> Result<(), PartError> {
        let mut parts = Parts::default();
        let keeper = certificates::keep_current(self.files.clone(), self.current.clone());
        parts.spawn("the watch over the certificates", keeper);
        let mut connections = JoinSet::new();
        let ended = self.accept(&mut parts, &mut connections, &stop).await;
        parts.shutdown().await;
        if ended.is_ok() {
            let drained = async { while connections.join_next().await.is_some() {} };
            // Who takes longer is cut off.
            let _ = tokio::time::timeout(DRAIN, drained).await;
        }
        connections.shutdown().await;
        ended
    }

    async fn accept(
        &self,
        parts: &mut Parts,
        connections: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<(), PartError> {
        loop {
            // A connection that is not accepted waits in the kernel's queue, and sets keep their tasks.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                missing = parts.missing(stop) => return Err(missing),
                Some(ended) = connections.join_next() => if let Err(error) = ended {
                    // The caller sees its connection break; the next one is none the worse.
                    tracing::error!(%error, "a connection to the kubelet API broke by our fault");
                },
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, self.current.load_full(), self.router.clone(), stop.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept a connection to the kubelet API");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
    }
}

async fn serve(stream: TcpStream, config: Arc<rustls::ServerConfig>, router: Router, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let accepted = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await;
    let Ok(Ok(stream)) = accepted else {
        tracing::debug!("a caller of the kubelet API does not agree on TLS");
        return;
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = Peer(shown.and_then(caller::from_certificate));
    let (router, first_request) = FirstRequest::of(router.layer(Extension(peer)));
    let service = TowerToHyperService::new(router);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(SILENCE);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // The connection is pinned outside, so an end that is asked for is one that it comes to by itself.
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = first_request.is_late(SILENCE) => {
            tracing::debug!("a caller of the kubelet API asks nothing");
            return;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, "a connection to the kubelet API broke");
    }
}

#[cfg(test)]
mod tests;
