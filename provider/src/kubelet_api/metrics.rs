//! `GET /metrics/resource`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;

use super::logs::agent_failed;
use super::routes::Node;
use super::summary::resource_metrics;

/// The Prometheus text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(State(node): State<Node>) -> Response {
    match node.agent.stats().await {
        Ok(stats) => ([(CONTENT_TYPE, TEXT)], resource_metrics(&stats)).into_response(),
        Err(error) => agent_failed(&error),
    }
}
