//! Small images for a test alone: one layer with a file that no other image has, above the sample busybox.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use sha2::{Digest as _, Sha256};

const BASE: &str = "eci_open/busybox";
const BASE_TAG: &str = "1.30";
/// Bytes of the file, enough for a transfer to be cut in its middle.
const FILE_BYTES: usize = 1 << 20;

/// Pushes `repository:1`.
pub(crate) async fn push(registry: SocketAddr, repository: &str) -> Result<()> {
    let registry = Registry { base: format!("http://{registry}") };
    let index: ImageIndex = serde_json::from_slice(&registry.manifest(BASE, BASE_TAG).await?)?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let wanted = |one: &&Descriptor| {
        one.platform().as_ref().is_some_and(|platform| platform.architecture().to_string() == architecture)
    };
    let base = index.manifests().iter().find(wanted).context("the sample busybox is not for this machine")?;
    let mut manifest: ImageManifest = serde_json::from_slice(&registry.manifest(BASE, base.digest().as_ref()).await?)?;
    for layer in manifest.layers() {
        registry.copy(BASE, repository, layer.digest().as_ref()).await?;
    }
    let config = registry.blob(BASE, manifest.config().digest().as_ref()).await?;
    let mut config: ImageConfiguration = serde_json::from_slice(&config)?;
    let layer = layer(repository)?;
    let mut root = config.rootfs().clone();
    let mut diff_ids = root.diff_ids().clone();
    diff_ids.push(digest(&layer));
    root.set_diff_ids(diff_ids);
    config.set_rootfs(root);
    // Only what a runtime reads: a history that does not fit the layers would be worse than none.
    config.set_history(None);
    let mut layers = manifest.layers().clone();
    layers.push(registry.upload(repository, layer, MediaType::ImageLayer).await?);
    manifest.set_layers(layers);
    let config = serde_json::to_vec(&config)?;
    manifest.set_config(registry.upload(repository, config, MediaType::ImageConfig).await?);
    registry.put_manifest(repository, "1", serde_json::to_vec(&manifest)?).await
}

/// A layer with one file that is called and filled like the repository, so that its digest is its own.
fn layer(repository: &str) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let content: Vec<u8> = repository.bytes().cycle().take(FILE_BYTES).collect();
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(content.len())?);
    header.set_mode(0o644);
    tar.append_data(&mut header, "own-image", content.as_slice())?;
    Ok(tar.into_inner()?)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The registry's HTTP API, as much of it as is needed here.
struct Registry {
    base: String,
}

impl Registry {
    async fn manifest(&self, repository: &str, reference: &str) -> Result<Bytes> {
        let accept = format!("{}, {}", MediaType::ImageIndex, MediaType::ImageManifest);
        let request = Request::get(format!("{}/v2/{repository}/manifests/{reference}", self.base));
        let request = request.header(header::ACCEPT, accept).body(Full::default())?;
        Ok(send(request, StatusCode::OK).await?.1)
    }

    async fn blob(&self, repository: &str, digest: &str) -> Result<Bytes> {
        let request = Request::get(format!("{}/v2/{repository}/blobs/{digest}", self.base)).body(Full::default())?;
        Ok(send(request, StatusCode::OK).await?.1)
    }

    async fn copy(&self, from: &str, to: &str, digest: &str) -> Result<()> {
        let path = format!("{}/v2/{to}/blobs/uploads/?mount={digest}&from={from}", self.base);
        send(Request::post(path).body(Full::default())?, StatusCode::CREATED).await?;
        Ok(())
    }

    async fn upload(&self, repository: &str, content: Vec<u8>, kind: MediaType) -> Result<Descriptor> {
        let begin = Request::post(format!("{}/v2/{repository}/blobs/uploads/", self.base)).body(Full::default())?;
        let (headers, _) = send(begin, StatusCode::ACCEPTED).await?;
        let location = headers.get(header::LOCATION).context("no place to upload to")?.to_str()?;
        let (digest, size) = (digest(&content), u64::try_from(content.len())?);
        let separator = if location.contains('?') { '&' } else { '?' };
        let request = Request::put(format!("{location}{separator}digest={digest}"))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(Full::new(content.into()))?;
        send(request, StatusCode::CREATED).await?;
        let digest: oci_spec::image::Digest = digest.parse()?;
        Ok(Descriptor::new(kind, size, digest))
    }

    async fn put_manifest(&self, repository: &str, tag: &str, manifest: Vec<u8>) -> Result<()> {
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("{}/v2/{repository}/manifests/{tag}", self.base))
            .header(header::CONTENT_TYPE, MediaType::ImageManifest.to_string())
            .body(Full::new(manifest.into()))?;
        send(request, StatusCode::CREATED).await?;
        Ok(())
    }
}

async fn send(request: Request<Full<Bytes>>, wanted: StatusCode) -> Result<(http::HeaderMap, Bytes)> {
    let what = format!("{} {}", request.method(), request.uri());
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.with_context(|| what.clone())?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    ensure!(parts.status == wanted, "{what}: {} {}", parts.status, String::from_utf8_lossy(&body));
    Ok((parts.headers, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_repository_has_a_layer_of_its_own() {
        assert_eq!(layer("a").unwrap(), layer("a").unwrap());
        assert_ne!(digest(&layer("a").unwrap()), digest(&layer("b").unwrap()));
    }
}
