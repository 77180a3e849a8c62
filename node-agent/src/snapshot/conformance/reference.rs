//! The same layers unpacked by programs that share nothing with ours.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::fixture::Layers;
use crate::digest::Digest;
use crate::store::durable;

/// GNU tar, layer by layer. What a layer's whiteouts hide is removed before the layer is unpacked, as they concern the
/// layers below only; so is a directory that a file takes the place of, which tar would not dare.
pub(super) fn tar(layers: &Layers, root: &Path) -> PathBuf {
    for tar in layers.tars() {
        let file = root.with_extension("tar");
        fs::write(&file, tar).expect("write");
        prepare(tar, root);
        let output = Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "--exclude=.wh.*", "-x", "-f"])
            .arg(&file)
            .arg("-C")
            .arg(root)
            .output()
            .expect("GNU tar is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    root.to_owned()
}

fn prepare(tar: &[u8], root: &Path) {
    let mut archive = tar::Archive::new(tar);
    let mut own = HashSet::new();
    let mut hidden = Vec::new();
    let mut replaced = Vec::new();
    for entry in archive.entries().expect("entries") {
        let entry = entry.expect("entry");
        let path = entry.path().expect("path").into_owned();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name == ".wh..wh..opq" {
            let directory = root.join(path.parent().expect("parent"));
            hidden.extend(fs::read_dir(directory).into_iter().flatten().map(|entry| entry.expect("entry").path()));
        } else if let Some(name) = name.strip_prefix(".wh.") {
            hidden.push(root.join(path.with_file_name(name)));
        } else if entry.header().entry_type() != tar::EntryType::Directory {
            replaced.push(root.join(&path));
        }
        own.insert(path);
    }
    for path in hidden {
        durable::remove(&path).expect("remove");
    }
    for path in replaced {
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            durable::remove(&path).expect("remove");
        }
    }
}

/// `umoci unpack` of an OCI layout that is made of the layers.
pub(super) fn umoci(layers: &Layers, directory: &Path) -> PathBuf {
    let layout = directory.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("mkdir");
    let put = |bytes: &[u8], kind: &str| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).expect("write");
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    };
    let blob_of = |tar: &Vec<u8>| put(tar, "application/vnd.oci.image.layer.v1.tar");
    let descriptors: Vec<_> = layers.tars().iter().map(blob_of).collect();
    let diff_ids: Vec<String> = layers.image().diff_ids.iter().map(ToString::to_string).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [],
    });
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": descriptors});
    let mut manifest = put(manifest.to_string().as_bytes(), kind);
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "x"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).expect("write");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
    let bundle = directory.join("bundle");
    let output = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:x", layout.display()))
        .arg(&bundle)
        .output()
        .expect("umoci is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bundle.join("rootfs")
}
