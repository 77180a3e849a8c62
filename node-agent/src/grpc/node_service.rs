//! The host as a node, as the provider asks for it.

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use larder_proto::v1;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::{Services, reading};
use crate::{
    chain::Chain,
    image::{CacheList, ImageService, NodeImage},
    node::{self, HostFacts, Pressure},
    pod::figures::FigureSource,
};

/// The beat by which the provider knows that the agent lives.
const BEAT: Duration = Duration::from_secs(3);

/// What is told of the node, and does not change while the agent runs.
#[derive(Debug, Clone)]
pub struct NodeReport {
    /// The host.
    pub host: Arc<HostFacts>,
    /// The store's folder, whose file system is watched.
    pub root: PathBuf,
    /// `crun://1.8.1`.
    pub runtime_version: String,
    /// How many pods it takes.
    pub max_pods: u32,
    /// Addresses of its pods.
    pub pod_cidr: String,
    /// `erofs` or `directory`.
    pub snapshotter: &'static str,
    /// Where the images of the caches are known.
    pub images: Arc<ImageService>,
}

fn image(image: NodeImage) -> v1::NodeImage {
    v1::NodeImage { names: image.names, size_bytes: image.size_bytes }
}

impl NodeReport {
    /// The facts at this moment.
    async fn facts(&self) -> v1::NodeFacts {
        let root = self.root.clone();
        let pressure = match tokio::task::spawn_blocking(move || node::pressure(&root)).await {
            Ok(Ok(pressure)) => pressure,
            Ok(Err(error)) => {
                warn!(error = %Chain(&error), "look for pressure");
                Pressure::default()
            }
            // The process ends.
            Err(_) => Pressure::default(),
        };
        let host = &self.host;
        v1::NodeFacts {
            hostname: host.hostname.clone(),
            machine_id: host.machine_id.clone(),
            system_uuid: host.system_uuid.clone(),
            boot_id: host.boot_id.clone(),
            kernel_version: host.kernel_version.clone(),
            os_image: host.os_image.clone(),
            operating_system: "linux".to_owned(),
            architecture: host.architecture.clone(),
            container_runtime_version: self.runtime_version.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu_milli: host.cpu_milli,
            memory_bytes: host.memory_bytes,
            ephemeral_storage_bytes: host.storage_bytes,
            max_pods: self.max_pods,
            pod_cidr: self.pod_cidr.clone(),
            images: self.images.node_images().into_iter().map(image).collect(),
            disk_pressure: pressure.disk.unwrap_or_default(),
            memory_pressure: pressure.memory.unwrap_or_default(),
            snapshotter: self.snapshotter.to_owned(),
            not_ready: String::new(),
        }
    }
}

#[derive(Debug)]
pub(super) struct NodeApi {
    node: NodeReport,
    figures: FigureSource,
    stop: CancellationToken,
}

impl NodeApi {
    pub(super) fn new(services: &Services) -> Self {
        Self { node: services.node.clone(), figures: services.figures.clone(), stop: services.stop.clone() }
    }
}

/// Tells the facts at every beat, and when the caches have changed.
struct Watcher {
    beat: Interval,
    caches: watch::Receiver<CacheList>,
    node: NodeReport,
}

impl Watcher {
    async fn next(&mut self) -> v1::NodeFacts {
        tokio::select! {
            // Neither loses anything by being dropped: a beat that was not taken comes again, a change stays one.
            _ = self.beat.tick() => {}
            Ok(()) = self.caches.changed() => {}
        }
        self.node.facts().await
    }
}

#[tonic::async_trait]
impl v1::node_service_server::NodeService for NodeApi {
    type WatchNodeStream = Pin<Box<dyn Stream<Item = Result<v1::NodeFacts, Status>> + Send>>;

    async fn get_node(&self, _: Request<v1::GetNodeRequest>) -> Result<Response<v1::NodeFacts>, Status> {
        Ok(Response::new(self.node.facts().await))
    }

    async fn watch_node(&self, _: Request<v1::WatchNodeRequest>) -> Result<Response<Self::WatchNodeStream>, Status> {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watcher = Watcher { beat, caches: self.node.images.watch_caches(), node: self.node.clone() };
        let beats = stream::unfold(watcher, |mut watcher| async move { Some((Ok(watcher.next().await), watcher)) });
        Ok(Response::new(Box::pin(beats.take_until(self.stop.clone().cancelled_owned()))))
    }

    async fn get_stats(&self, _: Request<v1::GetStatsRequest>) -> Result<Response<v1::NodeStats>, Status> {
        reading::figures(&self.figures, Timestamp::now()).await.map(Response::new)
    }
}
