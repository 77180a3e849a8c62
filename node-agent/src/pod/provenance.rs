//! What a container carries with it so that a later life of the agent knows what it is a run of, and on what.
//!
//! Pure: no I/O, no clock, no randomness.

use std::{collections::BTreeMap, str::FromStr as _};

use super::lifecycle::Run;
use crate::{digest::Digest, image::PresentImage, runtime::Container};

const IMAGE: &str = "larder.image";
const IMAGE_ID: &str = "larder.image-id";
const MANIFEST: &str = "larder.manifest";

/// What a container on this image is given to carry.
pub(crate) fn annotations(image: &PresentImage) -> BTreeMap<String, String> {
    BTreeMap::from([
        (IMAGE.to_owned(), image.reference.clone()),
        (IMAGE_ID.to_owned(), image.image_id.clone()),
        (MANIFEST.to_owned(), image.manifest.to_string()),
    ])
}

/// What a container is a run of.
pub(crate) fn run_of(container: &Container) -> Run {
    let annotation = |key: &str| container.annotations.get(key).cloned().unwrap_or_default();
    Run {
        id: container.id.0.clone(),
        attempt: container.attempt,
        image: annotation(IMAGE),
        image_id: annotation(IMAGE_ID),
        user: container.user.clone(),
        exit: None,
    }
}

/// The reference and the manifest of the image that a container runs on.
pub(crate) fn image_of(container: &Container) -> Option<(String, Digest)> {
    let reference = container.annotations.get(IMAGE)?.clone();
    let manifest = Digest::from_str(container.annotations.get(MANIFEST)?).ok()?;
    Some((reference, manifest))
}
