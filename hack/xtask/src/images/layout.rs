//! An OCI image layout on disk: blobs by digest, and `index.json` that names the images.
//!
//! The layout is a folder `{oci-layout, index.json, blobs/sha256/}`. Each image's descriptor in `index.json` carries the
//! whole reference in `org.opencontainers.image.ref.name`, so `skopeo copy oci:DIR:REFERENCE ..` finds it. Blobs are
//! written under their names in one rename; `index.json` comes last.

use super::layer::Layer;
use super::recipe::{Architecture, PATH, Start};
use anyhow::{Context, Result};
use oci_spec::image::{
    ConfigBuilder, Descriptor, ImageConfigurationBuilder, ImageIndex, ImageIndexBuilder, ImageManifestBuilder,
    MediaType, Os, PlatformBuilder, RootFsBuilder, ToDockerV2S2,
};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The annotation that names an image within a layout.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The time that every sample image claims to be made at: theirs must not depend on the clock.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Which family of media types a manifest uses. Registries serve both, so both are among the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `application/vnd.oci.image.*`.
    Oci,
    /// `application/vnd.docker.*`, which knows gzip layers only.
    Docker,
}

impl Dialect {
    fn media_type(self, oci: MediaType) -> MediaType {
        match self {
            Self::Oci => oci,
            Self::Docker => match oci.to_docker_v2s2() {
                Ok(name) => MediaType::Other(name.to_owned()),
                Err(_) => oci,
            },
        }
    }
}

/// A layout being written or read.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout at `root`, made if it is not there.
    pub(super) fn create(root: &Path) -> Result<Self> {
        let layout = Self { root: root.to_owned() };
        fs::create_dir_all(layout.blobs()).with_context(|| format!("create {}", root.display()))?;
        fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(layout)
    }

    /// The layout at `root`, which must be there.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let layout = Self { root: root.to_owned() };
        layout.images()?;
        Ok(layout)
    }

    /// The folder of the blobs.
    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    /// The file of a blob.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> PathBuf {
        self.blobs().join(descriptor.digest().digest())
    }

    /// What `index.json` names, in its order.
    pub(super) fn images(&self) -> Result<Vec<(String, Descriptor)>> {
        let path = self.root.join("index.json");
        let index = ImageIndex::from_file(&path).with_context(|| format!("read {}", path.display()))?;
        let named = |descriptor: &Descriptor| {
            let name = descriptor.annotations().as_ref()?.get(REF_NAME)?.clone();
            Some((name, descriptor.clone()))
        };
        Ok(index.manifests().iter().filter_map(named).collect())
    }

    /// Replaces `index.json`.
    pub(super) fn name_images(&self, images: &[(String, Descriptor)]) -> Result<()> {
        let mut manifests = Vec::new();
        for (name, descriptor) in images {
            let mut descriptor = descriptor.clone();
            descriptor.set_annotations(Some(HashMap::from([(REF_NAME.to_owned(), name.clone())])));
            manifests.push(descriptor);
        }
        let index = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageIndex)
            .manifests(manifests)
            .build()?;
        let temporary = tempfile::NamedTempFile::new_in(&self.root)?;
        fs::write(temporary.path(), canonical(&index)?)?;
        readable(temporary.path())?;
        temporary.persist(self.root.join("index.json"))?;
        Ok(())
    }

    /// Writes config and manifest of a single-platform image.
    pub(super) fn manifest(
        &self,
        layers: &[Layer],
        architecture: Architecture,
        start: Start,
        dialect: Dialect,
    ) -> Result<Descriptor> {
        let mut config = ConfigBuilder::default()
            .env([PATH.to_owned()])
            .cmd(start.command.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        if !start.ports.is_empty() {
            config = config.exposed_ports(start.ports.iter().map(|&port| port.to_owned()).collect::<Vec<_>>());
        }
        if let Some(signal) = start.stop_signal {
            config = config.stop_signal(signal);
        }
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let configuration = ImageConfigurationBuilder::default()
            .created(CREATED)
            .architecture(architecture.oci())
            .os(Os::Linux)
            .config(config.build()?)
            .rootfs(RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build()?)
            .build()?;
        let configuration = self.write_json(&configuration, dialect.media_type(MediaType::ImageConfig))?;
        let mut descriptors = Vec::new();
        for layer in layers {
            let mut descriptor = layer.descriptor.clone();
            descriptor.set_media_type(dialect.media_type(descriptor.media_type().clone()));
            descriptors.push(descriptor);
        }
        let media_type = dialect.media_type(MediaType::ImageManifest);
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(media_type.clone())
            .config(configuration)
            .layers(descriptors)
            .build()?;
        self.write_json(&manifest, media_type)
    }

    /// Writes an index over single-platform images.
    pub(super) fn index(&self, manifests: &[(Architecture, Descriptor)]) -> Result<Descriptor> {
        let mut descriptors = Vec::new();
        for (architecture, descriptor) in manifests {
            let mut descriptor = descriptor.clone();
            let platform = PlatformBuilder::default().architecture(architecture.oci()).os(Os::Linux).build()?;
            descriptor.set_platform(Some(platform));
            descriptors.push(descriptor);
        }
        let index = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageIndex)
            .manifests(descriptors)
            .build()?;
        self.write_json(&index, MediaType::ImageIndex)
    }

    /// Removes blobs that nothing named in `index.json` refers to. Returns how many.
    pub(super) fn sweep(&self) -> Result<usize> {
        let mut kept = std::collections::BTreeSet::new();
        for (_, descriptor) in self.images()? {
            self.collect(&descriptor, &mut kept)?;
        }
        let mut removed = 0;
        for entry in fs::read_dir(self.blobs())? {
            let entry = entry?;
            if !kept.contains(&*entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn collect(&self, descriptor: &Descriptor, kept: &mut std::collections::BTreeSet<String>) -> Result<()> {
        kept.insert(descriptor.digest().digest().to_owned());
        for child in self.children(descriptor)? {
            self.collect(&child, kept)?;
        }
        Ok(())
    }

    /// What a manifest or an index refers to, config first. Empty for anything else.
    pub(super) fn children(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>> {
        match Kind::of(descriptor.media_type()) {
            Kind::Blob => Ok(Vec::new()),
            Kind::Index => {
                let index = ImageIndex::from_file(self.blob(descriptor))?;
                Ok(index.manifests().clone())
            }
            Kind::Manifest => {
                let manifest = oci_spec::image::ImageManifest::from_file(self.blob(descriptor))?;
                let mut children = vec![manifest.config().clone()];
                children.extend(manifest.layers().iter().cloned());
                Ok(children)
            }
        }
    }

    fn write_json(&self, value: &impl Serialize, media_type: MediaType) -> Result<Descriptor> {
        let bytes = canonical(value)?;
        let hex = hex::encode(Sha256::digest(&bytes));
        let temporary = tempfile::NamedTempFile::new_in(self.blobs())?;
        fs::write(temporary.path(), &bytes)?;
        readable(temporary.path())?;
        temporary.persist(self.blobs().join(&hex))?;
        let digest = oci_spec::image::Digest::from_str(&format!("sha256:{hex}"))?;
        Ok(Descriptor::new(media_type, bytes.len() as u64, digest))
    }
}

/// What kind of object a descriptor points to, by its media type in either dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A list of manifests.
    Index,
    /// A manifest.
    Manifest,
    /// A config or a layer.
    Blob,
}

impl Kind {
    /// Reads the media type.
    pub(super) fn of(media_type: &MediaType) -> Self {
        let name = media_type.to_string();
        let is = |oci: MediaType| name == oci.to_string() || oci.to_docker_v2s2().is_ok_and(|docker| docker == name);
        if is(MediaType::ImageIndex) {
            Self::Index
        } else if is(MediaType::ImageManifest) {
            Self::Manifest
        } else {
            Self::Blob
        }
    }
}

fn readable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o644))?)
}

/// JSON with sorted keys and no white space: the types hold hash maps, whose order is not the same twice.
fn canonical(value: &impl Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&sorted(serde_json::to_value(value)?))?)
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            entries.sort_by(|left, right| left.0.cmp(&right.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::super::recipe::START_NGINX;
    use super::*;

    #[test]
    fn keys_are_sorted_at_every_depth() {
        let value = serde_json::json!({"b": {"z": 1, "a": [{"d": 1, "c": 2}]}, "a": null});
        assert_eq!(canonical(&value).unwrap(), br#"{"a":null,"b":{"a":[{"c":2,"d":1}],"z":1}}"#);
    }

    #[test]
    fn images_come_back_as_named_and_unreferenced_blobs_go() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let docker = layout.manifest(&[], Architecture::Amd64, START_NGINX, Dialect::Docker).unwrap();
        let oci = layout.manifest(&[], Architecture::Arm64, START_NGINX, Dialect::Oci).unwrap();
        let index = layout.index(&[(Architecture::Amd64, docker.clone()), (Architecture::Arm64, oci.clone())]).unwrap();
        assert_eq!(Kind::of(docker.media_type()), Kind::Manifest);
        assert_eq!(Kind::of(index.media_type()), Kind::Index);
        layout.name_images(&[("a/b:1".to_owned(), index.clone())]).unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        let images = layout.images().unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!((images[0].0.as_str(), images[0].1.digest()), ("a/b:1", index.digest()));
        assert_eq!(layout.children(&index).unwrap().len(), 2);
        fs::write(layout.blobs().join("00"), "left over").unwrap();
        assert_eq!(layout.sweep().unwrap(), 1);
        layout.name_images(&[("a:1".to_owned(), oci)]).unwrap();
        // The index, the Docker manifest and its config.
        assert_eq!(layout.sweep().unwrap(), 3);
    }
}
