//! `cargo xtask test fuzz`: libFuzzer on the targets of `node-agent/fuzz`, with the pinned toolchain.
//!
//! The coverage that libFuzzer steers by comes from a pass of LLVM that the stable compiler has too; sanitizers, which it
//! has not, are of little use where `unsafe` is as rare as here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::console::note;
use crate::{prerequisites, workspace};

/// The names of all targets.
const TARGETS: [&str; 5] = ["layer", "erofs", "manifest", "reference", "hosts_toml"];

/// What the compiler adds for libFuzzer.
const COVERAGE: [&str; 8] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cforce-frame-pointers=yes",
];

/// Which targets, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Only this target
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = SECONDS, value_name = "SECONDS")]
    seconds: u32,
}

/// As long as every change is worth; who looks for something asks for more.
const SECONDS: u32 = 5;

impl Default for Args {
    fn default() -> Self {
        Self { target: None, seconds: SECONDS }
    }
}

/// Builds the targets and runs each for its time.
///
/// # Errors
/// When they do not build, or an input is found on which one fails: the message says where it lies.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prerequisites::ensure_for_fuzzing()?;
    let programs = build()?;
    for target in TARGETS.iter().filter(|target| args.target.as_deref().is_none_or(|only| only == **target)) {
        fuzz(&programs, target, args.seconds)?;
    }
    Ok(())
}

/// Gives the folder of the programs.
fn build() -> anyhow::Result<PathBuf> {
    let (folder, target) = (workspace::root().join("node-agent/fuzz"), workspace::target().join("fuzz"));
    // The versions that everything else is built with; cargo adds what only this workspace has.
    let (ours, theirs) = (workspace::root().join("Cargo.lock"), folder.join("Cargo.lock"));
    fs::copy(&ours, &theirs).with_context(|| format!("copy {} to {}", ours.display(), theirs.display()))?;
    let host = host()?;
    let mut cargo = workspace::cargo();
    // With a target named, the flags are not for build scripts and macros.
    cargo.args(["build", "--release", "--target", &host, "--manifest-path"]).arg(folder.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(&target).env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\u{1f}"));
    let status = cargo.status().context("run cargo")?;
    ensure!(status.success(), "build node-agent/fuzz: {status}");
    Ok(target.join(host).join("release"))
}

/// The platform that the compiler runs on.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("run rustc -vV")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(host) => Ok(host.to_owned()),
        None => bail!("rustc -vV does not say its host"),
    }
}

fn fuzz(programs: &Path, target: &str, seconds: u32) -> anyhow::Result<()> {
    note(&format!(".. fuzz {target} for {seconds} s"));
    let found = workspace::target().join("fuzz/corpus").join(target);
    let failures = workspace::target().join("fuzz/failures").join(target);
    for folder in [&found, &failures] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let before = files(&failures)?;
    let status = Command::new(programs.join(target))
        // What is new goes to the first folder.
        .arg(&found)
        .arg(workspace::root().join("node-agent/fuzz/corpus").join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", failures.display()))
        .args(["-max_len=65536", "-timeout=10", "-rss_limit_mb=2048", "-verbosity=0", "-print_final_stats=1"])
        .status()
        .with_context(|| format!("run {}", programs.join(target).display()))?;
    if status.success() {
        return Ok(());
    }
    // The newest run's alone: those of earlier ones may lie there still.
    let inputs: Vec<String> = files(&failures)?.difference(&before).map(|path| path.display().to_string()).collect();
    let again = programs.join(target);
    bail!(
        "fuzzing {target} found what fails ({status}): {}\nagain: {} INPUT; once mended, keep the input in \
         node-agent/fuzz/corpus/{target}",
        if inputs.is_empty() {
            format!("an input that was found before, in {}", failures.display())
        } else {
            inputs.join(" ")
        },
        again.display(),
    )
}

fn files(folder: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let read = || fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>();
    read().with_context(|| format!("read {}", folder.display()))
}
