//! Serves our own figures over plain http, to whoever reaches the address.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::meters::Meters;

/// The text format of OpenMetrics.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An address that is listened on.
#[derive(Debug)]
pub(super) struct MetricsServer {
    listener: TcpListener,
    meters: Meters,
}

impl MetricsServer {
    pub(super) async fn bind(listen: SocketAddr, meters: Meters) -> std::io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(listen).await?, meters })
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let meters = self.meters;
        let answer = move || {
            let mut text = String::new();
            let written = meters.write(&mut text).map(|()| ([(CONTENT_TYPE, TEXT)], text));
            async move { written.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR) }
        };
        let serving = axum::serve(self.listener, Router::new().route("/metrics", get(answer)));
        if let Err(error) = serving.with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::warn!(%error, "figures are not served any more");
        }
    }
}
