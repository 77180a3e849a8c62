//! What a manifest says, and which of its layers have to be moved.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::HashSet;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::digest::Digest;

/// The most layers of one image. Builders stop at 127 or 128; one mount has room for more.
const MAX_LAYERS: usize = 512;

/// The platform that images are chosen for, in Go's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: &'static str,
    /// `amd64`, `arm64`.
    pub architecture: &'static str,
    /// Variants that this host can run, the best first; the empty one is an entry without a variant.
    pub variants: &'static [&'static str],
}

impl Platform {
    /// The platform that this program was built for.
    pub fn host() -> Self {
        let (architecture, variants): (_, &[&str]) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", AMD64_VARIANTS[amd64_level().saturating_sub(1).min(3)]),
            "aarch64" => ("arm64", &["", "v8"]),
            "arm" => ("arm", &["v7", "v6", ""]),
            "x86" => ("386", &[""]),
            "powerpc64" => ("ppc64le", &[""]),
            "loongarch64" => ("loong64", &[""]),
            other => (other, &[""]),
        };
        Self { os: "linux", architecture, variants }
    }
}

/// Variants by the level of the processor. Where there is a plain image it is taken, as other engines do: which image a
/// name stands for does not depend on the host then.
const AMD64_VARIANTS: [&[&str]; 4] =
    [&["", "v1"], &["", "v1", "v2"], &["", "v1", "v3", "v2"], &["", "v1", "v4", "v3", "v2"]];

/// Which of the x86-64 psABI's levels this processor has.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> usize {
    macro_rules! has_all {
        ($($feature:tt),+) => { $(std::is_x86_feature_detected!($feature))&&+ };
    }
    // What else a level asks for has come with these in every processor.
    let levels = [
        has_all!("cmpxchg16b", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"),
        has_all!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"),
        has_all!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    ];
    1 + levels.iter().take_while(|has| **has).count()
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> usize {
    1
}

/// Content by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// sha256 of the bytes as they are transferred.
    pub digest: Digest,
    /// How many bytes that are.
    pub size: u64,
}

/// A manifest, as far as pulling goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The image configuration.
    pub config: Content,
    /// Layers, lowest first.
    pub layers: Vec<ManifestLayer>,
}

/// A layer, as a manifest has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestLayer {
    /// What a registry has of it.
    pub blob: Content,
    /// Who keeps it.
    pub keeper: LayerKeeper,
}

/// Who keeps a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKeeper {
    /// The registry of its image.
    Registry,
    /// Somebody whose content may not be spread; the registry may have it all the same.
    Foreign,
}

/// One entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The manifest, or an index again.
    pub digest: Digest,
    /// `os`, `architecture` and `variant`; none when the index does not say.
    pub platform: Option<(String, String, String)>,
}

/// What a registry has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image for each platform.
    Index(Vec<IndexEntry>),
    /// One image.
    Image(Manifest),
}

/// A layer and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedLayer {
    /// sha256 of the plain tar: the layer's name in the store.
    pub diff_id: Digest,
    /// What a registry has of it.
    pub blob: Content,
    /// Who keeps it.
    pub keeper: LayerKeeper,
}

impl PlannedLayer {
    /// What the plain tar takes at least: all that is known before it comes. A manifest tells the size as transferred, which
    /// is the plain one where a layer is not compressed, and below it where it is.
    pub fn plain_bytes_at_least(&self) -> u64 {
        self.blob.size
    }
}

/// What is to be done for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Layers that are not in the store, each once, the largest first: the last to end should be a small one.
    pub missing: Vec<PlannedLayer>,
    /// Bytes of these as transferred.
    pub missing_bytes: u64,
}

/// Why something is not an image that can be run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Not JSON, or a field is missing or senseless.
    #[error("manifest {digest} is malformed: {why}")]
    Malformed {
        /// Of which manifest.
        digest: Digest,
        /// What is wrong.
        why: String,
    },
    /// Docker's first format.
    #[error("manifest {0} has schema version 1, which is not supported: push the image again with a current tool")]
    SchemaOne(Digest),
    /// Something else that registries keep.
    #[error("{digest} is not a container image but {kind}")]
    NotAnImage {
        /// Of which manifest.
        digest: Digest,
        /// A media type.
        kind: String,
    },
    /// A layer that we cannot read.
    #[error("layer {digest} has media type {media_type}, which is not supported")]
    LayerType {
        /// Of the layer's blob.
        digest: Digest,
        /// As the manifest has it.
        media_type: String,
    },
    /// The index has no image for this host.
    #[error("no image for {wanted} in {digest}, only for {available}")]
    NoPlatform {
        /// Of the index.
        digest: Digest,
        /// `linux/amd64 (v1)`.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// An image for another platform, not chosen from an index.
    #[error("image {digest} is for {found}, this node runs {wanted}")]
    OtherPlatform {
        /// Of the manifest.
        digest: Digest,
        /// `linux/arm64`.
        found: String,
        /// `linux/amd64`.
        wanted: String,
    },
}

impl PlanError {
    /// Whether it is an image, or an index of images, that some other host can run.
    pub fn is_for_others(&self) -> bool {
        match self {
            Self::NoPlatform { .. } | Self::OtherPlatform { .. } => true,
            Self::Malformed { .. } | Self::SchemaOne(_) | Self::NotAnImage { .. } | Self::LayerType { .. } => false,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const IMAGE_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// The last one was written by the first tools that knew Docker's second format.
const CONFIG_TYPES: [&str; 3] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
];
/// The compression is told by the first bytes, as all engines do, since media types have been wrong in practice.
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
const FOREIGN_LAYER_TYPES: [&str; 5] = [
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Reads what a registry has sent. `digest` is that of `bytes`.
///
/// # Errors
/// When it is not an image or an index of images.
pub fn read_document(bytes: &[u8], digest: Digest) -> Result<Document, PlanError> {
    let malformed = |why: String| PlanError::Malformed { digest, why };
    let raw: Raw = serde_json::from_slice(bytes).map_err(|err| malformed(err.to_string()))?;
    if raw.schema_version == Some(1) {
        return Err(PlanError::SchemaOne(digest));
    }
    if raw.schema_version != Some(2) {
        return Err(malformed("it has no schemaVersion 2".to_owned()));
    }
    let of = |types: &[&str]| raw.media_type.as_deref().is_none_or(|media_type| types.contains(&media_type));
    match (raw.manifests, raw.config, raw.layers) {
        // One that is both could be read one way by a scanner and another way by us.
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            Err(malformed("it is an image and an index at once".to_owned()))
        }
        (Some(entries), None, None) if of(&INDEX_TYPES) => {
            let entries = entries.into_iter().map(|entry| index_entry(entry, digest)).collect::<Result<_, _>>()?;
            Ok(Document::Index(entries))
        }
        (None, Some(config), Some(layers)) if of(&IMAGE_TYPES) => {
            if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
                let kind = raw.artifact_type.unwrap_or(config.media_type);
                return Err(PlanError::NotAnImage { digest, kind });
            }
            manifest(config, layers, digest).map(Document::Image)
        }
        (Some(_), None, None) | (None, Some(_), Some(_)) => {
            Err(PlanError::NotAnImage { digest, kind: raw.media_type.unwrap_or_default() })
        }
        (None, _, _) => match raw.media_type.filter(|_| !of_any_known(&raw.artifact_type)) {
            Some(kind) if !IMAGE_TYPES.contains(&kind.as_str()) && !INDEX_TYPES.contains(&kind.as_str()) => {
                Err(PlanError::NotAnImage { digest, kind })
            }
            Some(_) | None => Err(malformed("it has no config or no layers".to_owned())),
        },
    }
}

fn of_any_known(artifact_type: &Option<String>) -> bool {
    artifact_type.as_deref().is_some_and(|kind| CONFIG_TYPES.contains(&kind))
}

fn index_entry(raw: RawDescriptor, index: Digest) -> Result<IndexEntry, PlanError> {
    let platform = raw.platform.map(|p| (p.os, p.architecture, p.variant));
    Ok(IndexEntry { digest: parse_digest(&raw.digest, index)?, platform })
}

fn parse_digest(text: &str, document: Digest) -> Result<Digest, PlanError> {
    text.parse().map_err(|err| PlanError::Malformed { digest: document, why: format!("{err}") })
}

fn manifest(config: RawDescriptor, layers: Vec<RawDescriptor>, digest: Digest) -> Result<Manifest, PlanError> {
    if layers.len() > MAX_LAYERS {
        let why = format!("it has {} layers, {MAX_LAYERS} is the most", layers.len());
        return Err(PlanError::Malformed { digest, why });
    }
    let content = |raw: &RawDescriptor| Ok(Content { digest: parse_digest(&raw.digest, digest)?, size: raw.size });
    let config = content(&config)?;
    let mut found = Vec::with_capacity(layers.len());
    for layer in layers {
        let (blob, media_type) = (content(&layer)?, layer.media_type);
        let keeper = if LAYER_TYPES.contains(&media_type.as_str()) {
            LayerKeeper::Registry
        } else if FOREIGN_LAYER_TYPES.contains(&media_type.as_str()) {
            LayerKeeper::Foreign
        } else {
            return Err(PlanError::LayerType { digest: blob.digest, media_type });
        };
        found.push(ManifestLayer { blob, keeper });
    }
    Ok(Manifest { config, layers: found })
}

/// The entries of an index for `platform`, the best first. Those that do not say what they are for come last: what is behind
/// them has to be looked at.
///
/// # Errors
/// When there is none.
pub fn choose(entries: &[IndexEntry], platform: &Platform, index: Digest) -> Result<Vec<Digest>, PlanError> {
    let rank = |entry: &IndexEntry| match &entry.platform {
        Some((os, architecture, variant)) if os == platform.os && architecture == platform.architecture => {
            platform.variants.iter().position(|known| known == variant)
        }
        Some(_) => None,
        // An index of one platform only need not say which.
        None => Some(usize::MAX),
    };
    let mut ranked: Vec<_> = entries.iter().filter_map(|entry| rank(entry).map(|rank| (rank, entry.digest))).collect();
    // The first of several that are as good.
    ranked.sort_by_key(|(rank, _)| *rank);
    if ranked.is_empty() {
        let (wanted, available) = (wanted(platform), available(entries));
        return Err(PlanError::NoPlatform { digest: index, wanted, available });
    }
    Ok(ranked.into_iter().map(|(_, digest)| digest).collect())
}

/// `linux/arm64 (v8)`: an entry without a variant would do, too.
fn wanted(platform: &Platform) -> String {
    let mut variants: Vec<_> = platform.variants.iter().copied().filter(|variant| !variant.is_empty()).collect();
    variants.sort_unstable();
    let plain = format!("{}/{}", platform.os, platform.architecture);
    if variants.is_empty() { plain } else { format!("{plain} ({})", variants.join(", ")) }
}

fn available(entries: &[IndexEntry]) -> String {
    let mut names: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        // Attestations are entries of an unknown platform.
        .filter(|(os, _, _)| os != "unknown")
        .map(|(os, architecture, variant)| match variant.as_str() {
            "" => format!("{os}/{architecture}"),
            variant => format!("{os}/{architecture}/{variant}"),
        })
        .collect();
    names.sort();
    names.dedup();
    names.truncate(20);
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// Puts the layers of a manifest and the names that the configuration has for them together.
///
/// # Errors
/// When the two do not fit, or the image is for another platform.
pub fn layers(
    manifest: &Manifest,
    config: &ImageConfiguration,
    platform: &Platform,
    digest: Digest,
) -> Result<Vec<PlannedLayer>, PlanError> {
    let malformed = |why: String| PlanError::Malformed { digest, why };
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    if os != platform.os || architecture != platform.architecture {
        let found = format!("{os}/{architecture}");
        return Err(PlanError::OtherPlatform { digest, found, wanted: wanted(platform) });
    }
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers.len() {
        let why = format!("it has {} layers, its configuration {}", manifest.layers.len(), diff_ids.len());
        return Err(malformed(why));
    }
    let pairs = diff_ids.iter().zip(&manifest.layers);
    let planned = |(diff_id, &ManifestLayer { blob, keeper }): (&String, &ManifestLayer)| {
        Ok(PlannedLayer { diff_id: parse_digest(diff_id, digest)?, blob, keeper })
    };
    pairs.map(planned).collect()
}

/// What has to be moved. `has` says whether the store holds a layer.
pub fn plan(layers: &[PlannedLayer], has: impl Fn(&Digest) -> bool) -> Plan {
    let mut seen = HashSet::new();
    let mut missing: Vec<PlannedLayer> =
        layers.iter().filter(|layer| seen.insert(layer.diff_id) && !has(&layer.diff_id)).copied().collect();
    missing.sort_by_key(|layer| std::cmp::Reverse(layer.blob.size));
    let missing_bytes = missing.iter().map(|layer| layer.blob.size).fold(0, u64::saturating_add);
    Plan { missing, missing_bytes }
}

#[cfg(test)]
mod tests;
