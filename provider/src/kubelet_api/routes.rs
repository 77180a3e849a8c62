//! Which path is whose.

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, get};

use super::authorize::{Gate, authorize};
use super::{logs, metrics, pods, stats, streams};
use crate::agent::AgentClient;
use crate::pod::PodDirectory;

/// What the verbs work on.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: Arc<str>,
    pub(super) agent: Arc<dyn AgentClient>,
    pub(super) pods: PodDirectory,
}

pub(super) fn router(node: Node, gate: Gate) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/ping", get(|| async { "ok" }))
        .route("/pods", get(pods::pods))
        .route("/pods/", get(pods::pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::logs))
        .route("/stats/summary", get(stats::stats))
        .route("/metrics/resource", get(metrics::metrics))
        .route("/exec/{*rest}", any(streams::not_offered))
        .route("/attach/{*rest}", any(streams::not_offered))
        .route("/portForward/{*rest}", any(streams::not_offered))
        .route("/run/{*rest}", any(streams::not_offered))
        .with_state(node)
        // A path that is nobody's is refused to a stranger like any other.
        .fallback(|| async { (http::StatusCode::NOT_FOUND, "404 page not found\n") })
        .layer(axum::middleware::from_fn_with_state(gate, authorize))
}
