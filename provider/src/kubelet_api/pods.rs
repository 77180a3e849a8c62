//! `GET /pods`.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::routes::Node;

pub(super) async fn pods(State(node): State<Node>) -> Json<Value> {
    let items: Vec<_> = node.pods.all().await.into_iter().map(|pod| json!(&*pod)).collect();
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}
