//! Finds Rust files that no crate is made of: a file that no `mod` names is never compiled, and its tests never run.

use crate::source::Source;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `cargo metadata` says, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    src_path: PathBuf,
}

/// Fails when there is such a file in the workspace, and names all of them.
pub(super) fn run() -> Result<()> {
    let mut packages = metadata("Cargo.toml")?.packages;
    packages.extend(metadata("node-agent/fuzz/Cargo.toml")?.packages);
    let folders = packages.iter().filter_map(|package| package.manifest_path.parent().map(Path::to_path_buf));
    let roots = packages.iter().flat_map(|package| &package.targets).map(|target| target.src_path.clone());
    let orphans = find(&folders.collect::<Vec<_>>(), roots.collect())?;
    let names: Vec<String> = orphans.iter().map(|path| path.display().to_string()).collect();
    ensure!(orphans.is_empty(), "no `mod` names these files, so nothing in them is compiled:\n{}", names.join("\n"));
    Ok(())
}

/// The packages of a workspace.
fn metadata(manifest: &str) -> Result<Metadata> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path", manifest])
        .current_dir(workspace::root())
        .output()
        .context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata {manifest}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("read what cargo metadata wrote")
}

/// Every Rust file below `folders` that is neither a crate root nor declared by a file that is part of a crate.
fn find(folders: &[PathBuf], roots: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<(PathBuf, bool)> = roots.into_iter().map(|root| (root, true)).collect();
    while let Some((file, is_root)) = open.pop() {
        if !reached.insert(file.clone()) {
            continue;
        }
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        for declared in Source::read(&text).declared {
            let candidates = candidates(&file, is_root, &declared.inside, &declared.name, declared.path.as_deref());
            open.extend(candidates.into_iter().find(|path| path.exists()).map(|path| (path, false)));
        }
    }
    let mut orphans = BTreeSet::new();
    for folder in folders {
        orphans.extend(workspace::rust_files(folder)?.into_iter().filter(|file| !reached.contains(file)));
    }
    Ok(orphans.into_iter().collect())
}

/// Where the module `name`, declared in `file` inside the inline modules `inside`, may lie.
fn candidates(file: &Path, is_root: bool, inside: &[String], name: &str, path: Option<&str>) -> Vec<PathBuf> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let owns_folder = is_root || file.file_name().is_some_and(|name| name == "mod.rs");
    let mut below = if owns_folder { folder.to_path_buf() } else { file.with_extension("") };
    if let (Some(path), true) = (path, inside.is_empty()) {
        return vec![folder.join(path)];
    }
    below.extend(inside);
    match path {
        Some(path) => vec![below.join(path)],
        None => vec![below.join(format!("{name}.rs")), below.join(name).join("mod.rs")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_no_module_names_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (name, text) in [
            ("src/lib.rs", "mod a; mod inline { mod c; } #[path = \"odd/place.rs\"] mod d;"),
            ("src/a.rs", "// mod commented;\nmod b;"),
            ("src/a/b.rs", ""),
            ("src/a/commented.rs", ""),
            ("src/inline/c.rs", ""),
            ("src/odd/place.rs", "mod e;"),
            ("src/odd/place/e.rs", ""),
            ("src/left.rs", ""),
            ("tests/suite.rs", "mod support;"),
            ("tests/support/mod.rs", "mod deep;"),
            ("tests/support/deep.rs", ""),
            ("tests/support/forgotten.rs", ""),
            ("target/debug/build.rs", ""),
        ] {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let roots = vec![root.join("src/lib.rs"), root.join("tests/suite.rs")];
        let found = find(&[root.to_path_buf()], roots).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.strip_prefix(root).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["src/a/commented.rs", "src/left.rs", "tests/support/forgotten.rs"]);
    }
}
