//! Where things are: the root of the source tree, cargo's target folder, and the folder that `hack/up` keeps its state in.

use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the source tree that this program was built from.
#[must_use]
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// Cargo's target folder: `CARGO_TARGET_DIR` where it is set (relative to the root of the source tree), `target`
/// otherwise.
#[must_use]
pub fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from))
}

/// The folder below the target folder that holds a cluster's state, stores, and the programs it runs.
#[must_use]
pub fn state() -> PathBuf {
    target().join("larder")
}

/// Every Rust file below `folder`, in order of path. Build output is left out. A folder that is not there has none.
///
/// # Errors
/// When a folder cannot be read.
pub fn rust_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// cargo, in the root of the source tree, as if it were called from a shell: what `cargo run` tells the program that it
/// runs (`CARGO_MANIFEST_DIR` and the like) is taken away, because build scripts look at it and would build everything
/// anew.
#[must_use]
pub fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let of_a_package = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO_BIN_NAME"
        });
        if of_a_package || name == "LD_LIBRARY_PATH" {
            cargo.env_remove(name);
        }
    }
    cargo
}

#[cfg(test)]
mod tests {
    #[test]
    fn root_holds_the_workspace_manifest() {
        let manifest = std::fs::read_to_string(super::root().join("Cargo.toml")).expect("read the manifest");
        assert!(manifest.contains("[workspace]"));
    }
}
