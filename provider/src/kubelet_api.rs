//! The kubelet's HTTP interface for one virtual node, one verb a file: what the API server calls for `kubectl logs`, what
//! metrics are scraped from.
//!
//! Nobody is let in unnamed: a caller shows a certificate of the client authority or a token that the API server knows,
//! and the API server says what they may do. It never changes anything.

mod attributes;
mod authorize;
mod caller;
mod certificates;
mod log_options;
mod logs;
mod metrics;
mod pods;
mod routes;
mod serving;
mod stats;
mod streams;
mod summary;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

pub use certificates::CertificateError;
pub use serving::Serving;

use crate::agent::AgentClient;
use crate::cluster::AccessApi;
use crate::pod::PodDirectory;

/// Why the interface cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("listen for the kubelet API on {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// What the interface of a node is made of.
#[derive(Debug)]
pub struct KubeletApi {
    /// Name of the node.
    pub node: String,
    /// Address of the node, for a certificate of our own making.
    pub address: IpAddr,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Certificate and key; `None` makes one.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Authority of client certificates.
    pub client_ca: Option<PathBuf>,
    /// Tells who a caller is and what they may do.
    pub access: Arc<dyn AccessApi>,
    /// The node's agent.
    pub agent: Arc<dyn AgentClient>,
    /// The node's pods.
    pub pods: PodDirectory,
}

impl KubeletApi {
    /// Listens, but answers nobody yet.
    ///
    /// # Errors
    /// When the address or the certificates cannot be used.
    pub async fn bind(self) -> Result<Serving, ServeError> {
        Serving::bind(self).await
    }
}
