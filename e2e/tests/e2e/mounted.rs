//! What containers stand on.

use anyhow::{Context as _, Result, ensure};
use larder_e2e::cluster::{BUSYBOX, Cluster, NGINX};
use larder_e2e::scene::{Scene, at};
use larder_e2e::unpacked::{self, SampleImage};
use serde_json::json;

/// A mounted image is, file for file, what another unpacker makes of its layers.
pub(crate) async fn images_are_what_umoci_unpacks(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "mounted", &[]).await?;
    for (name, image, entries_at_least) in [("busybox", BUSYBOX, 100), ("nginx", NGINX, 1000)] {
        let mut container = json!({"name": "main", "image": image});
        if image == BUSYBOX {
            container["command"] = json!(["sleep", "1000"]);
        }
        scene.pod(name, json!({"containers": [container]})).await?;
        let pod = scene.wait_ready(name).await?;
        let id = at(&pod, "/status/containerStatuses/0/imageID");
        let digest = id.as_str().and_then(|id| id.rsplit_once('@')).context("an image id with a digest")?.1.to_owned();
        let compared = tokio::task::spawn_blocking(move || compare(&digest)).await??;
        ensure!(compared >= entries_at_least, "{name}: {compared} entries are not all of it");
    }
    Ok(())
}

fn compare(digest: &str) -> Result<usize> {
    let image = SampleImage::find(digest)?;
    let folder = tempfile::tempdir()?;
    let unpacked = image.unpack(folder.path())?;
    unpacked::same(&unpacked, &mount_point(image.hex()?)?, folder.path())
}

/// Where the image of this manifest is mounted; the agent names the mount after it.
fn mount_point(hex: &str) -> Result<std::path::PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let newest = points.rfind(|point| point.ends_with(hex));
    newest.map(Into::into).with_context(|| format!("image {hex} is not mounted"))
}
