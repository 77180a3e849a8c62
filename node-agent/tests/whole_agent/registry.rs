//! A registry on loopback with one image: a static busybox. It can be told to fail, and counts what it is asked.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::{StreamExt as _, stream};
use larder_node_agent::digest::Digest;
use tokio::task::JoinSet;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The layer is larger, the configuration is not.
const LARGE: usize = 64 << 10;
const COMMANDS: [&str; 14] =
    ["sh", "cat", "echo", "sleep", "true", "false", "hostname", "id", "ip", "wget", "httpd", "trap", "env", "ls"];

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    /// Held for its drop, which ends the server.
    _server: JoinSet<()>,
}

struct Shared {
    manifest: Vec<u8>,
    blobs: Vec<(Digest, Vec<u8>)>,
    broken: AtomicBool,
    requests: AtomicUsize,
    stalled: AtomicBool,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let layer = layer();
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
        })
        .to_string()
        .into_bytes();
        let descriptor = |media_type: &str, bytes: &[u8]| serde_json::json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let blobs = vec![(Digest::of(&config), config), (Digest::of(&layer), layer)];
        let shared = Arc::new(Shared {
            manifest: manifest.to_string().into_bytes(),
            blobs,
            broken: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            stalled: AtomicBool::new(false),
        });
        let router = Router::new()
            .route("/v2/", get(|| async { "{}" }))
            .route("/v2/test/busybox/manifests/{reference}", get(manifest_of))
            .route("/v2/test/busybox/blobs/{digest}", get(blob))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared, _server: server }
    }

    pub(crate) fn image(&self) -> String {
        format!("{}/test/busybox:1", self.address)
    }

    /// The same image under another reference.
    pub(crate) fn image_by_digest(&self) -> String {
        format!("{}/test/busybox@{}", self.address, Digest::of(&self.shared.manifest))
    }

    pub(crate) fn set_broken(&self, broken: bool) {
        self.shared.broken.store(broken, Ordering::SeqCst);
    }

    /// Layers do not come in full any more; who has half of one waits.
    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.shared.stalled.store(stalled, Ordering::SeqCst);
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

async fn manifest_of(State(shared): State<Arc<Shared>>, Path(reference): Path<String>) -> Response {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    if shared.broken.load(Ordering::SeqCst) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let digest = Digest::of(&shared.manifest).to_string();
    if reference != "1" && reference != digest {
        return StatusCode::NOT_FOUND.into_response();
    }
    (
        [(header::CONTENT_TYPE, MANIFEST_TYPE), (header::HeaderName::from_static("docker-content-digest"), &digest)],
        shared.manifest.clone(),
    )
        .into_response()
}

async fn blob(State(shared): State<Arc<Shared>>, Path(digest): Path<String>) -> Response {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let Some((_, bytes)) = shared.blobs.iter().find(|(other, _)| other.to_string() == digest) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if bytes.len() < LARGE || !shared.stalled.load(Ordering::SeqCst) {
        return bytes.clone().into_response();
    }
    let half = Ok::<_, Infallible>(bytes[..bytes.len() / 2].to_vec());
    let body = Body::from_stream(stream::iter([half]).chain(stream::pending()));
    ([(header::CONTENT_LENGTH, bytes.len())], body).into_response()
}

/// A plain tar: busybox, and links to it.
fn layer() -> Vec<u8> {
    let busybox = std::fs::read("/usr/bin/busybox").expect("read /usr/bin/busybox (Debian: busybox-static)");
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content).unwrap();
    };
    for folder in ["bin/", "etc/", "tmp/", "dev/", "proc/", "sys/", "var/"] {
        add(folder, tar::EntryType::Directory, 0o755, b"");
    }
    add("bin/busybox", tar::EntryType::Regular, 0o755, &busybox);
    for command in COMMANDS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{command}"), "busybox").unwrap();
    }
    tar.into_inner().unwrap()
}
