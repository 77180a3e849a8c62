//! Sample images as another unpacker has them, and the comparison of two trees in everything that a container could see.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use larder_dev::workspace;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// An image of this machine's platform, from the layout that the sample images are kept in.
#[derive(Debug)]
pub struct SampleImage {
    layout: PathBuf,
    manifest: Value,
}

impl SampleImage {
    /// The image of this digest, which may be an index's.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(digest: &str) -> Result<Self> {
        let layout = workspace::state().join("images/layout");
        let mut digest = digest.to_owned();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        loop {
            let hex = digest.strip_prefix("sha256:").context("a sha256 digest")?;
            let path = layout.join("blobs/sha256").join(hex);
            let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let document: Value = serde_json::from_slice(&content).context("read a manifest")?;
            let Some(manifests) = document["manifests"].as_array() else {
                let media_type = document["mediaType"].clone();
                let manifest = json!({"mediaType": media_type, "digest": digest, "size": content.len()});
                return Ok(Self { layout, manifest });
            };
            let ours = manifests.iter().find(|one| one["platform"]["architecture"] == architecture);
            digest = ours.and_then(|one| one["digest"].as_str()).context("an image of this platform")?.to_owned();
        }
    }

    /// The digits of its manifest's digest.
    ///
    /// # Errors
    /// Never: it has been found by it.
    pub fn hex(&self) -> Result<&str> {
        self.manifest["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).context("a sha256 digest")
    }

    /// Unpacks it with umoci below this folder; gives the root of its tree.
    ///
    /// # Errors
    /// What umoci says.
    pub fn unpack(&self, folder: &Path) -> Result<PathBuf> {
        // A layout of this image alone, under a name that umoci takes.
        let layout = folder.join("layout");
        fs::create_dir(&layout)?;
        symlink(self.layout.join("blobs"), layout.join("blobs"))?;
        fs::copy(self.layout.join("oci-layout"), layout.join("oci-layout"))?;
        let mut manifest = self.manifest.clone();
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "image"});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(layout.join("index.json"), index.to_string())?;
        let bundle = folder.join("bundle");
        let image = format!("{}:image", layout.display());
        let output = Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle).output();
        let output = output.context("run umoci")?;
        ensure!(output.status.success(), "umoci: {}", String::from_utf8_lossy(&output.stderr));
        Ok(bundle.join("rootfs"))
    }
}

/// Fails with the first entries that differ: in kind, mode, owner, time, attributes, links or content. The roots themselves
/// are not compared: no layer of the samples states one.
///
/// # Errors
/// When they differ, or GNU tar cannot read one.
pub fn same(expected: &Path, found: &Path, scratch: &Path) -> Result<usize> {
    let (expected, mut found) = (entries(expected, &scratch.join("1"))?, entries(found, &scratch.join("2"))?);
    let count = expected.len();
    let mut differences = Vec::new();
    for (path, expected) in expected {
        match found.remove(&path) {
            Some(found) if found == expected => {}
            Some(found) => differences.push(format!("{path}: {found:?} instead of {expected:?}")),
            None => differences.push(format!("{path} is missing")),
        }
    }
    differences.extend(found.keys().map(|path| format!("{path} should not be there")));
    if !differences.is_empty() {
        bail!("{} differences, among them\n{}", differences.len(), differences[..differences.len().min(20)].join("\n"));
    }
    Ok(count)
}

/// All that is compared of one entry.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kind: tar::EntryType,
    mode: u32,
    owner: (u64, u64),
    link: Option<Vec<u8>>,
    device: (Option<u32>, Option<u32>),
    /// Times with their fractions, attributes.
    extensions: BTreeMap<String, Vec<u8>>,
    mtime: u64,
    content: String,
}

/// What GNU tar makes of a tree, sorted, so that of the names of a file the same one is the first.
fn entries(root: &Path, scratch: &Path) -> Result<BTreeMap<String, Entry>> {
    let mut command = Command::new("tar");
    command.args(["--format=pax", "--sort=name", "--xattrs", "--xattrs-include=*", "--numeric-owner"]);
    command.args(["--pax-option=delete=atime,delete=ctime", "-c", "-C"]).arg(root).arg(".");
    let status = command.stdout(Stdio::from(File::create(scratch)?)).status().context("run tar")?;
    ensure!(status.success(), "tar of {}: {status}", root.display());
    let mut archive = tar::Archive::new(File::open(scratch)?);
    let mut all = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if path == "./" {
            continue;
        }
        let mut extensions = BTreeMap::new();
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            extensions.insert(extension.key()?.to_owned(), extension.value_bytes().to_vec());
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        let link = entry.link_name_bytes().map(|link| link.into_owned());
        let header = entry.header();
        let entry = Entry {
            kind: header.entry_type(),
            mode: header.mode()?,
            owner: (header.uid()?, header.gid()?),
            link,
            device: (header.device_major()?, header.device_minor()?),
            extensions,
            mtime: header.mtime()?,
            content: hex::encode(Sha256::digest(content)),
        };
        all.insert(path, entry);
    }
    fs::remove_file(scratch)?;
    Ok(all)
}
