//! `exec`, `attach` and `portForward`: not offered yet, and said so.

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

pub(super) async fn not_offered(request: Request) -> Response {
    let verb = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default().to_owned();
    let text =
        format!("{verb} is not offered by this version of Larder; a later release has it. kubectl logs works.\n");
    (StatusCode::NOT_IMPLEMENTED, text).into_response()
}
