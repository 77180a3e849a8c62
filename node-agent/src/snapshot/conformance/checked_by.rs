//! What EROFS's own programs say of our images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::NamedTempFile;

use crate::digest::Digest;
use crate::snapshot::ImageLayers;
use crate::store::layout::Layout;

/// Before this version the programs know one block size only, that of a page: they cannot read images of 512-byte blocks,
/// which those over tars are. `cargo xtask check` puts newer ones in front of a host's that are older.
const SMALL_BLOCKS_SINCE: (u32, u32) = (1, 6);

/// `fsck.erofs` and `dump.erofs` accept the index of every layer, and of the image.
pub(super) fn erofs_utils(layout: &Layout, image: &ImageLayers) {
    let tar = |diff_id: &Digest| layout.layer(diff_id).tar();
    for diff_id in &image.diff_ids {
        accepted(&layout.layer(diff_id).index(), &[tar(diff_id)]);
    }
    accepted(&layout.image_index(&image.manifest), &image.diff_ids.iter().map(tar).collect::<Vec<_>>());
}

/// Up to 1.8.6 `fsck.erofs` takes the checksum of blocks below 1 KiB over more than there is, and crashes. The kernel checks
/// it at each mount, so here it is left out.
fn without_checksum(index: &Path) -> NamedTempFile {
    let mut image = fs::read(index).expect("an index");
    image[1024 + 8] &= !1;
    let file = NamedTempFile::new().expect("temporary file");
    fs::write(file.path(), image).expect("write");
    file
}

fn accepted(index: &Path, devices: &[PathBuf]) {
    let index = without_checksum(index);
    let index = index.path();
    for program in ["fsck.erofs", "dump.erofs"] {
        let mut command = Command::new(program);
        command.args(devices.iter().map(|device| format!("--device={}", device.display())));
        let output = command.arg(index).output().expect("erofs-utils are installed");
        let said = said(&output);
        if version() >= SMALL_BLOCKS_SINCE {
            let accepted = output.status.success() && !said.contains("<E>");
            assert!(accepted, "{program} {}: {}: {said}", index.display(), output.status);
        } else {
            assert!(said.contains("failed to read superblock"), "{program}: {said}");
        }
    }
}

/// The installed version, from a line like `fsck.erofs 1.5`.
fn version() -> (u32, u32) {
    let output = Command::new("fsck.erofs").arg("-V").output().expect("erofs-utils are installed");
    let said = said(&output);
    let numbers = said.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| {
        let (major, rest) = word.split_once('.')?;
        Some((major.parse().ok()?, rest.split('.').next()?.parse().ok()?))
    });
    numbers.unwrap_or_else(|| panic!("no version in {said:?}"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
