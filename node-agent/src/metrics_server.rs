//! Serves the agent's figures over plain HTTP at `/metrics`, and `/healthz`, where `--metrics-listen` asks for it.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use hyper::{Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{chain::Chain, meters::Meters};

/// How long a caller may take to ask, and how long a whole connection may last.
const HEADER_LIMIT: Duration = Duration::from_secs(5);
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// How many connections are served at the same time; more wait.
const CONNECTIONS: usize = 16;

/// The figures' server, bound to its address.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    meters: Meters,
}

impl MetricsServer {
    /// Binds the address.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn bind(address: SocketAddr, meters: Meters) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, meters })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the host does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                // Nothing is lost by dropping these: who has not been accepted waits, a set keeps its tasks.
                () = stop.cancelled() => return,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(serve(stream, self.meters.clone()))),
                    Err(error) => debug!(error = %Chain(&error), "accept caller of metrics"),
                },
            }
        }
    }
}

async fn serve(stream: TcpStream, meters: Meters) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let answer = respond(request.uri().path(), &meters);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    let connection = builder.serve_connection(TokioIo::new(stream), answer);
    // A caller that breaks off or takes too long is its own loss.
    let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
}

fn respond(path: &str, meters: &Meters) -> Response<String> {
    let (status, kind, body) = match path {
        "/metrics" => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", meters.text()),
        "/healthz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn figures_are_served() {
        let server = MetricsServer::bind(([127, 0, 0, 1], 0).into(), Meters::default()).await.unwrap();
        let (address, stop) = (server.address().unwrap(), CancellationToken::new());
        let mut running = JoinSet::new();
        running.spawn(server.run(stop.clone()));
        for (path, status) in [("/metrics", "HTTP/1.1 200"), ("/healthz", "HTTP/1.1 200"), ("/", "HTTP/1.1 404")] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(status), "{path}: {answer}");
        }
        stop.cancel();
        running.join_next().await.unwrap().unwrap();
    }
}
