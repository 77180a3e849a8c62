//! Writes kubeconfig files: one cluster, one user, everything embedded, readable by its owner only.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::pki::{self, Pair};

/// How the user of a kubeconfig proves who they are.
#[derive(Debug, Clone)]
pub enum Identity {
    /// With a client certificate.
    Certificate(Pair),
    /// With a bearer token.
    Token(String),
}

/// Writes a kubeconfig.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, server: &str, authority: &str, identity: &Identity) -> Result<(), pki::PkiError> {
    // JSON is YAML; kubectl writes it back as YAML when it changes the file.
    pki::write_private(path, format!("{:#}\n", document(server, authority, identity)).as_bytes())
}

fn document(server: &str, authority: &str, identity: &Identity) -> Value {
    let user = match identity {
        Identity::Certificate(pair) => json!({
            "client-certificate-data": STANDARD.encode(&pair.certificate),
            "client-key-data": STANDARD.encode(&pair.key),
        }),
        Identity::Token(token) => json!({ "token": token }),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "larder",
        "clusters": [{
            "name": "larder",
            "cluster": { "server": server, "certificate-authority-data": STANDARD.encode(authority) },
        }],
        "users": [{ "name": "larder", "user": user }],
        "contexts": [{ "name": "larder", "context": { "cluster": "larder", "user": "larder" } }],
    })
}
