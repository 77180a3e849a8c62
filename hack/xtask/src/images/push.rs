//! Pushes a layout's images to a registry over HTTP, moving only what the registry does not have.

use super::layout::{Kind, Layout};
use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream};
use oci_distribution::client::{ClientConfig, ClientProtocol};
use oci_distribution::errors::OciDistributionError;
use oci_distribution::secrets::RegistryAuth;
use oci_distribution::{Client, Reference};
use oci_spec::image::Descriptor;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// How much of a blob is in memory at a time.
const CHUNK: usize = 1 << 20;

/// The media types that a question for a manifest accepts.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// A registry to push to.
pub(super) struct Registry {
    client: Client,
    /// `host:port`.
    address: String,
}

impl Registry {
    /// `url` is `http://host:port` or `https://host`.
    pub(super) fn new(url: &str) -> Result<Self> {
        // Whoever was first has set the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (protocol, address) = match url.split_once("://") {
            Some(("http", address)) => (ClientProtocol::Http, address),
            Some(("https", address)) => (ClientProtocol::Https, address),
            _ => bail!("a registry is given as http://HOST:PORT or https://HOST, not {url}"),
        };
        let config = ClientConfig {
            protocol,
            use_monolithic_push: true,
            connect_timeout: Some(Duration::from_secs(10)),
            read_timeout: Some(Duration::from_secs(120)),
            ..ClientConfig::default()
        };
        Ok(Self { client: Client::new(config), address: address.trim_end_matches('/').to_owned() })
    }

    /// Pushes one image of `layout`. Returns whether anything had to be sent.
    pub(super) async fn push(&self, layout: &Layout, name: &str, descriptor: &Descriptor) -> Result<bool> {
        let (repository, tag) = repository_and_tag(name);
        let target: Reference =
            format!("{}/{repository}:{tag}", self.address).parse().context("read the image's name")?;
        let wanted = descriptor.digest().to_string();
        match self.client.fetch_manifest_digest(&target, &RegistryAuth::Anonymous).await {
            Ok(digest) if digest == wanted => return Ok(false),
            // Not there, or another image: it is pushed. Trouble shows on the way.
            Ok(_) | Err(_) => {}
        }
        for (child, target) in self.plan(layout, descriptor, &target)? {
            match Kind::of(child.media_type()) {
                Kind::Blob => self.push_blob(layout, &child, &target).await?,
                Kind::Index | Kind::Manifest => self.push_manifest(layout, &child, &target).await?,
            }
        }
        Ok(true)
    }

    /// Everything an image needs, what is referred to before what refers to it.
    fn plan(&self, layout: &Layout, root: &Descriptor, target: &Reference) -> Result<Vec<(Descriptor, Reference)>> {
        let mut plan = Vec::new();
        for child in layout.children(root)? {
            let digest = child.digest().to_string();
            let by_digest = Reference::with_digest(self.address.clone(), target.repository().to_owned(), digest);
            plan.extend(self.plan(layout, &child, &by_digest)?);
        }
        plan.push((root.clone(), target.clone()));
        Ok(plan)
    }

    async fn push_blob(&self, layout: &Layout, blob: &Descriptor, target: &Reference) -> Result<()> {
        let digest = blob.digest().to_string();
        if self.client.blob_exists(target, &digest).await.with_context(|| format!("ask {} for a blob", self.address))? {
            return Ok(());
        }
        let path = layout.blob(blob);
        let file = tokio::fs::File::open(&path).await.with_context(|| format!("open {}", path.display()))?;
        let chunks = stream::try_unfold(file, async |mut file| {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await?;
            Ok::<_, OciDistributionError>((read > 0).then(|| (chunk.into(), file)))
        });
        self.client
            .push_blob_stream(target, chunks.boxed(), &digest, Some(blob.size()))
            .await
            .with_context(|| format!("push {digest} to {}", self.address))?;
        Ok(())
    }

    async fn push_manifest(&self, layout: &Layout, manifest: &Descriptor, target: &Reference) -> Result<()> {
        let bytes = tokio::fs::read(layout.blob(manifest)).await?;
        let media_type = manifest.media_type().to_string();
        debug_assert!(MANIFESTS.contains(&media_type.as_str()));
        self.client
            .push_manifest_raw(target, bytes, media_type.parse().context("a media type that is no header value")?)
            .await
            .with_context(|| format!("push the manifest of {target}"))?;
        Ok(())
    }
}

/// The repository and tag under which a registry holds an image: the name without its registry host. A mirror of that host
/// is asked for the same repository.
pub(super) fn repository_and_tag(name: &str) -> (&str, &str) {
    let path = match name.split_once('/') {
        Some((host, rest)) if host.contains('.') || host.contains(':') || host == "localhost" => rest,
        _ => name,
    };
    path.rsplit_once(':').unwrap_or((path, "latest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_loses_its_registry_only() {
        for (name, wanted) in [
            ("registry.example.com/a/b:1.2", ("a/b", "1.2")),
            ("samples/large:zstd", ("samples/large", "zstd")),
            ("127.0.0.1:5000/x:1", ("x", "1")),
            ("localhost/x", ("x", "latest")),
        ] {
            assert_eq!(repository_and_tag(name), wanted, "{name}");
        }
    }

    #[test]
    fn only_http_addresses_are_registries() {
        assert!(Registry::new("127.0.0.1:5000").is_err());
        assert!(Registry::new("http://127.0.0.1:5000/").is_ok_and(|registry| registry.address == "127.0.0.1:5000"));
    }
}
