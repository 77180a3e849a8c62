//! The agent's gRPC services: convert, call, convert back. The only part that names the wire types.
//!
//! Over a Unix socket whoever may open the socket may call: it is made with mode 0600, for root. Over TCP both sides show
//! certificates.

mod convert;
mod image_cache_service;
mod listen;
mod node_service;
mod pod_service;
mod pull_service;
mod reading;
mod store_service;

use std::{sync::Arc, time::Duration};

use larder_proto::v1;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Router};

use self::{
    image_cache_service::ImageCacheApi, node_service::NodeApi, pod_service::PodApi, pull_service::PullApi,
    store_service::StoreApi,
};
pub use self::{
    listen::{ListenError, Listening, listen},
    node_service::NodeReport,
};
use crate::{
    image::ImageService,
    pod::{figures::FigureSource, logs::LogSource, supervisor::Pods, support::Policy},
};

/// How long a call may take until its answer, or a stream's first message, begins.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How often an idle connection is asked whether the other side is there, and how long it may take to say so.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(5);
/// The largest pod with its objects: a ConfigMap or Secret has 1 MiB at most, a pod a handful of them.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What the services call.
#[derive(Debug, Clone)]
pub struct Services {
    /// The pods.
    pub pods: Pods,
    /// Their logs.
    pub logs: LogSource,
    /// What they use.
    pub figures: FigureSource,
    /// The images and image caches.
    pub images: Arc<ImageService>,
    /// What is refused.
    pub policy: Policy,
    /// The node.
    pub node: NodeReport,
    /// Ends all streams.
    pub stop: CancellationToken,
}

/// Why the services ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The transport.
    #[error("serve gRPC")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves until [`Services::stop`], then until the calls under way have ended.
///
/// # Errors
/// When the transport fails.
pub async fn serve(listening: Listening, services: Services) -> Result<(), ServeError> {
    let stop = services.stop.clone().cancelled_owned();
    let mut server = Server::builder()
        .timeout(CALL_LIMIT)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_LIMIT));
    match listening {
        Listening::Unix(incoming) => {
            routes(&mut server, services).await.serve_with_incoming_shutdown(incoming, stop).await?;
        }
        Listening::Https(incoming, tls) => {
            let mut server = server.tls_config(*tls)?;
            routes(&mut server, services).await.serve_with_incoming_shutdown(incoming, stop).await?;
        }
    }
    Ok(())
}

async fn routes(server: &mut Server, services: Services) -> Router {
    let (health, health_service) = tonic_health::server::health_reporter();
    let pods = v1::pod_service_server::PodServiceServer::new(PodApi::new(&services))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let node = v1::node_service_server::NodeServiceServer::new(NodeApi::new(&services));
    let caches = v1::image_cache_service_server::ImageCacheServiceServer::new(ImageCacheApi::new(&services));
    let pulls = v1::pull_service_server::PullServiceServer::new(PullApi::new(&services));
    health.set_serving::<v1::pull_service_server::PullServiceServer<PullApi>>().await;
    let store = v1::store_service_server::StoreServiceServer::new(StoreApi::new(&services));
    health.set_serving::<v1::image_cache_service_server::ImageCacheServiceServer<ImageCacheApi>>().await;
    health.set_serving::<v1::pod_service_server::PodServiceServer<PodApi>>().await;
    health.set_serving::<v1::node_service_server::NodeServiceServer<NodeApi>>().await;
    health.set_serving::<v1::store_service_server::StoreServiceServer<StoreApi>>().await;
    server
        .add_service(health_service)
        .add_service(pods)
        .add_service(node)
        .add_service(caches)
        .add_service(pulls)
        .add_service(store)
}
