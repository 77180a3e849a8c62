//! A registry on loopback with images of one layer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use larder_node_agent::digest::Digest;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) struct Registry {
    address: SocketAddr,
    /// Held for its drop, which ends the server.
    _server: JoinSet<()>,
}

/// What there is, by digest; manifests by their image's name as well.
type Contents = Arc<HashMap<String, Bytes>>;

impl Registry {
    /// With these blobs as the layers of images of these names.
    pub(crate) async fn of(layers: &[(&str, Bytes)]) -> Self {
        let mut contents = HashMap::new();
        for (name, layer) in layers {
            let diff_id = Digest::of(name.as_bytes()).to_string();
            let rootfs = json!({"type": "layers", "diff_ids": [diff_id]});
            let config = bytes(&json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs}));
            let manifest = bytes(&json!({
                "schemaVersion": 2, "mediaType": MANIFEST,
                "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
                "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer)],
            }));
            contents.insert((*name).to_owned(), manifest.clone());
            contents.extend([manifest, config, layer.clone()].map(|held| (Digest::of(&held).to_string(), held)));
        }
        let router = Router::new()
            .route("/v2/{name}/manifests/{reference}", get(manifest))
            .route("/v2/{name}/blobs/{digest}", get(blob))
            .with_state(Arc::new(contents));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { address, _server: server }
    }

    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}:1", self.address)
    }
}

fn bytes(document: &Value) -> Bytes {
    document.to_string().into()
}

fn descriptor(media_type: &str, content: &Bytes) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len()})
}

async fn manifest(State(contents): State<Contents>, Path((name, reference)): Path<(String, String)>) -> Response {
    match contents.get(&reference).or_else(|| contents.get(&name)) {
        Some(content) => ([(header::CONTENT_TYPE, MANIFEST)], content.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn blob(State(contents): State<Contents>, Path((_, digest)): Path<(String, String)>) -> Response {
    contents.get(&digest).map_or_else(|| StatusCode::NOT_FOUND.into_response(), |blob| blob.clone().into_response())
}
