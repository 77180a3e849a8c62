//! The large image, where the benches pull it from.

use crate::console::{blocking_step, step};
use crate::images::{self, Set};
use crate::up::layout::Layout;
use anyhow::Result;
use std::net::SocketAddr;

/// Makes it in all its variants.
pub(super) async fn make(layout: &Layout) -> Result<()> {
    let out = layout.images();
    blocking_step("make the large image (minutes, once)", move || images::build(&out, Set::WithLarge, &mut |_| ()))
        .await
        .map(drop)
}

/// Pushes it to a registry that runs.
pub(super) async fn push(layout: &Layout, registry: SocketAddr) -> Result<()> {
    let url = format!("http://{registry}");
    step("push it to the registry", images::push(&layout.images(), &url, Set::WithLarge, &mut |_| ())).await.map(drop)
}
