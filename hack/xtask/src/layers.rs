//! `cargo xtask layers`: checks that modules name only what `hack/layers.toml` lets them name.
//!
//! Rust keeps direction between crates, but not between the modules of one crate; this does. The rules are in
//! `layers/rules.rs`, the reading of source text in `source.rs`; here files are found and read.

mod rules;

use crate::source::Source;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use rules::{File, Rules};
use std::fs;
use std::path::Path;

/// No options.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the check; an error names every arrow that is not allowed.
///
/// # Errors
/// When a module names what it may not, or a source file cannot be read.
pub fn run(_args: &Args) -> Result<()> {
    let faults = check(&workspace::root())?;
    ensure!(faults.is_empty(), "{} breaches of hack/layers.toml:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

/// Every breach in the tree at `root`, one line each.
fn check(root: &Path) -> Result<Vec<String>> {
    let path = root.join("hack/layers.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let rules = Rules::parse(&text).with_context(|| format!("read {}", path.display()))?;
    let mut files = Vec::new();
    for folder in rules.folders() {
        for path in workspace::rust_files(&root.join(folder))? {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.push(File { name, source: Source::read(&text) });
        }
    }
    Ok(rules.check(&files))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"
        folders = ["agent/src"]
        pure_forbids = ["std::fs"]
        [[crate]]
        folder = "agent/src"
        library = "agent"
        rows = [["app"], ["image"], ["host"]]
    "#;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_tree_that_keeps_to_the_rules_passes() {
        let root = tree(&[
            ("hack/layers.toml", RULES),
            ("agent/src/lib.rs", "//! It.\nmod app; mod image; mod host;"),
            ("agent/src/app.rs", "//! It.\nuse crate::image::Pull;"),
            ("agent/src/image.rs", "//! It.\nmod plan; use crate::host;"),
            ("agent/src/image/plan.rs", "//! Pure: no I/O, no clock, no randomness.\nuse super::Pull;"),
            ("agent/src/host.rs", "//! It."),
        ]);
        assert_eq!(check(root.path()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_up_and_an_impure_file_are_named() {
        let root = tree(&[
            ("hack/layers.toml", RULES),
            ("agent/src/lib.rs", "//! It.\nmod image; mod host;"),
            ("agent/src/image.rs", "//! It."),
            ("agent/src/image/plan.rs", "//! Pure: no I/O, no clock, no randomness.\nuse std::fs::File;"),
            ("agent/src/host/mount.rs", "//! It.\n\nuse crate::image::Pull;"),
        ]);
        let faults = check(root.path()).unwrap();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("agent/src/host/mount.rs:3: host names crate::image::Pull"), "{faults:?}");
        assert!(faults[1].starts_with("agent/src/image/plan.rs:2: a pure file names std::fs::File"), "{faults:?}");
    }
}
