//! The registry with the sample images, and the mirror that sends the documented names there.

use super::layout::{Layout, MIRRORED_REGISTRY};
use crate::console::{blocking_step, step};
use crate::images::{Set, build, push};
use crate::{prerequisites, registry};
use anyhow::Context;

/// Makes the images, starts the registry and pushes what it does not have.
pub(super) async fn serve(layout: &Layout) -> anyhow::Result<()> {
    let out = layout.images();
    blocking_step("make the sample images", move || build(&out, Set::Small, &mut |_| ())).await?;
    step("start the registry with the sample images", async {
        let address = layout.registry_address();
        let config = registry::Config {
            dir: layout.run(),
            storage: layout.registry_storage(),
            listen: address,
            program: prerequisites::find("docker-registry").context("find docker-registry")?,
        };
        registry::start(&config).await?;
        push(&layout.images(), &format!("http://{address}"), Set::Small, &mut |_| ()).await?;
        registry::write_mirror(&layout.registries(), MIRRORED_REGISTRY, address)
    })
    .await
}
