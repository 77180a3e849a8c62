//! `GET /stats/summary`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::logs::agent_failed;
use super::routes::Node;
use super::summary::summary;

pub(super) async fn stats(State(node): State<Node>) -> Response {
    match node.agent.stats().await {
        Ok(stats) => Json(summary(&node.name, &stats)).into_response(),
        Err(error) => agent_failed(&error),
    }
}
