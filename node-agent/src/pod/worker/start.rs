//! Starting one container: its turn, its environment and its mounts, then the runtime.

use std::{net::IpAddr, sync::Arc};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::outcome::{Launched, Outcome};
use crate::{
    chain::Chain,
    image::PresentImage,
    pod::{
        container_spec::{self, Parts},
        environment::{self, PodFacts},
        files::ReadyFiles,
        host::Host,
        lifecycle::Failure,
        network_files, provenance, quality,
        wish::PodWish,
    },
    runtime::{ContainerId, ContainerSpec, PodIdentity, RuntimeError},
    sandbox::Sandbox,
};

/// Keys of `envFrom` sources that are no names for variables, by source.
pub(super) type SkippedKeys = Vec<(String, Vec<String>)>;

/// Everything that is needed to start a container.
pub(super) struct Start {
    pub(super) host: Arc<Host>,
    pub(super) wish: Arc<PodWish>,
    pub(super) identity: PodIdentity,
    pub(super) index: usize,
    pub(super) attempt: u32,
    pub(super) sandbox: Sandbox,
    pub(super) files: Arc<dyn ReadyFiles>,
    pub(super) image: PresentImage,
}

impl Start {
    pub(super) async fn run(self, cancelled: CancellationToken) -> Outcome {
        let (index, asked) = (self.index, Instant::now());
        let permit = tokio::select! {
            // A permit that is not waited for any more goes to the next in the queue.
            permit = Arc::clone(&self.host.starts).acquire_owned() => permit,
            () = cancelled.cancelled() => return Outcome::StartCancelled(index),
        };
        let Ok(permit) = permit else { return Outcome::StartCancelled(index) };
        let permitted = Instant::now();
        let start = Arc::new(self);
        let preparing = Arc::clone(&start);
        let prepared = tokio::task::spawn_blocking(move || preparing.prepare()).await;
        let (spec, skipped) = match prepared {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(failure)) => return Outcome::StartFailed(index, failure),
            Err(error) => {
                let failure = failure("CreateContainerError", Chain(&error).to_string());
                return Outcome::StartFailed(index, failure);
            }
        };
        let annotations = provenance::annotations(&start.image);
        match start.host.parts.runtime.start(spec, annotations).await {
            Ok(container) => Outcome::Launched(Box::new(Launched {
                index,
                run: provenance::run_of(&container),
                image: start.image.clone(),
                container,
                permit,
                asked,
                permitted,
                skipped,
            })),
            Err(RuntimeError::InvalidSpec { reason, message }) => Outcome::StartFailed(index, failure(reason, message)),
            Err(error @ (RuntimeError::NotFound(_) | RuntimeError::Io { .. })) => {
                Outcome::StartFailed(index, failure("CreateContainerError", Chain(&error).to_string()))
            }
        }
    }

    /// Puts the container together; blocks.
    fn prepare(&self) -> Result<(ContainerSpec, SkippedKeys), Failure> {
        let settings = &self.host.settings;
        let Some(container) = self.wish.container(self.index) else {
            return Err(failure("CreateContainerError", "the pod has no such container".to_owned()));
        };
        let ips: &[IpAddr] = &self.sandbox.ips;
        let facts = PodFacts {
            pod_ips: ips.to_vec(),
            // A pod is its own host; see the status.
            host_ips: ips.to_vec(),
            node: settings.node,
        };
        let config_error =
            |error: &(dyn std::error::Error + 'static)| failure("CreateContainerConfigError", Chain(error).to_string());
        let mut environment = environment::environment(&self.wish.pod, container, &self.wish.objects, &facts)
            .map_err(|error| config_error(&error))?;
        let mounts = self.files.mounts_for(&self.wish, container, self.attempt, ips);
        let mounts = mounts.map_err(|error| config_error(&error))?;
        let skipped = std::mem::take(&mut environment.skipped);
        let parts = Parts {
            id: ContainerId::random(),
            identity: self.identity.clone(),
            attempt: self.attempt,
            image: &self.image,
            environment,
            mounts,
            sandbox: &self.sandbox,
            hostname: network_files::names(&self.wish.pod, &settings.dns).hostname,
            log_root: &settings.log_root,
            oom_score_adj: quality::oom_score_adj(&self.wish.pod, container, settings.node.memory_bytes),
        };
        Ok((container_spec::container_spec(&self.wish.pod, container, parts), skipped))
    }
}

pub(super) fn failure(reason: &str, message: String) -> Failure {
    Failure { reason: reason.to_owned(), message }
}
