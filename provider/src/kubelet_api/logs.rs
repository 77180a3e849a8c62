//! `GET /containerLogs/{namespace}/{pod}/{container}`.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;

use super::log_options::{NoLog, has_log, options};
use super::routes::Node;
use crate::agent::{AgentError, LogQuery};

pub(super) async fn logs(
    State(node): State<Node>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    let query = match options(&query, Timestamp::now()) {
        Ok(query) => query,
        Err(none) => return none.into_response(),
    };
    let Some(pod) = node.pods.find(&namespace, &name).await else {
        return NoLog::NotFound(format!("pod {namespace}/{name} does not exist on node {}", node.name)).into_response();
    };
    if let Err(none) = has_log(&pod, &container, query.previous) {
        return none.into_response();
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    match node.agent.read_logs(&LogQuery { uid, container, ..query }).await {
        // Dropping the body, as when the caller hangs up, ends the stream at the agent.
        Ok(pieces) => ([(CONTENT_TYPE, "text/plain")], Body::from_stream(pieces)).into_response(),
        Err(error) => agent_failed(&error),
    }
}

impl IntoResponse for NoLog {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Bad(text) => (StatusCode::BAD_REQUEST, text),
            Self::NotFound(text) => (StatusCode::NOT_FOUND, text),
        };
        (status, text).into_response()
    }
}

/// An answer for a call that the agent did not fulfil.
pub(super) fn agent_failed(error: &AgentError) -> Response {
    let status = match error {
        AgentError::NotFound { .. } => StatusCode::NOT_FOUND,
        AgentError::Invalid { .. } => StatusCode::BAD_REQUEST,
        AgentError::Refused { .. } => StatusCode::NOT_IMPLEMENTED,
        AgentError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        AgentError::Unreachable { .. } | AgentError::Failed { .. } | AgentError::Malformed { .. } => {
            StatusCode::BAD_GATEWAY
        }
    };
    (status, format!("{error}\n")).into_response()
}
