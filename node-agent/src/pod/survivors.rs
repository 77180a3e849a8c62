//! The containers of a pod that an earlier life of this process, or a worker that broke off, left at work.

use std::sync::Arc;

use tracing::warn;

use super::{host::Host, last_words::LastWords, provenance, wish::PodWish};
use crate::{
    chain::Chain,
    image::PresentImage,
    runtime::{Container, ContainerState},
};

/// A container of an earlier life.
#[derive(Debug)]
pub(crate) struct Found {
    /// The container.
    pub(crate) container: Container,
    /// Where it stood when it was found; with its last words, if it had ended.
    pub(crate) state: ContainerState,
    /// What it runs on, held so that it does not go away below it; none when it has ended, or cannot be found.
    pub(crate) image: Option<PresentImage>,
}

/// Looks where the containers of a pod stand: the last words of those that have ended, and the images below those that
/// run, so that nobody takes them away.
pub(crate) async fn look_at(
    host: &Arc<Host>,
    wish: &PodWish,
    containers: impl IntoIterator<Item = Container>,
) -> Vec<Found> {
    let mut found = Vec::new();
    for container in containers {
        // What is decided upon and what is watched for must be the same state, so it is looked at once.
        let state = container.state.borrow().clone();
        let spec = wish.containers().find(|spec| spec.name == container.name);
        let (state, image) = match (state, spec) {
            (ContainerState::Exited(exit), Some(spec)) => {
                let words = LastWords::of(host, &container.pod, spec, container.attempt);
                (ContainerState::Exited(words.add_to(exit).await), None)
            }
            (state @ ContainerState::Exited(_), None) => (state, None),
            (state @ (ContainerState::Starting | ContainerState::Running { .. }), _) => {
                (state, hold_image(host, &container).await)
            }
        };
        found.push(Found { container, state, image });
    }
    found
}

async fn hold_image(host: &Host, container: &Container) -> Option<PresentImage> {
    let (reference, manifest) = provenance::image_of(container)?;
    match host.parts.images.adopt(&reference, &manifest).await {
        Ok(image) => Some(image),
        Err(error) => {
            warn!(pod_uid = container.pod.uid, error = %Chain(&error), "adopt image of running container");
            None
        }
    }
}
