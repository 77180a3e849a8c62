//! `cargo xtask test`: every test there is, from a fresh clone.

use anyhow::{Context, ensure};

use crate::console::{blocking_step, note};
use crate::images::{Set, build};
use crate::{check, controlplane_program, fuzz, prerequisites, up, workspace};

/// Which tests.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Part {
    /// Format, lints, layers, documentation and all tests that need no cluster
    Unit,
    /// Tests against a real control plane, a real registry and real containers
    E2e {
        /// Only tests whose name contains this
        name: Option<String>,
    },
    /// libFuzzer on what comes from outside: layers, indexes, manifests, references, hosts.toml
    Fuzz(fuzz::Args),
    /// The store through many kills at random
    Soak {
        /// How many
        #[arg(long, default_value_t = 1000)]
        kills: u32,
    },
}

/// Runs them; the first part that fails ends it.
///
/// # Errors
/// When a test fails or cannot be run.
pub async fn run(args: Args) -> anyhow::Result<()> {
    blocking_step("look for the programs that are needed", prerequisites::ensure_for_tests).await?;
    match args.part {
        Some(Part::Unit) => check::run(&check::Args::default()),
        Some(Part::Fuzz(args)) => fuzz::run(&args),
        Some(Part::E2e { name }) => e2e(name.as_deref()).await,
        Some(Part::Soak { kills }) => soak(kills),
        None => {
            check::run(&check::Args::default())?;
            fuzz::run(&fuzz::Args::default())?;
            e2e(None).await
        }
    }
}

/// A layer that is longer than 32 bits can count.
const LARGE_LAYER_BYTES: u64 = 5 << 30;

/// The store's own soak, which every run of the tests does a little of, for longer; and a layer of a length that is too much
/// for every run.
fn soak(kills: u32) -> anyhow::Result<()> {
    note(&format!(".. kill a process that works in a store {kills} times"));
    let mut cargo = workspace::cargo();
    // The whole workspace has the features that every other run of the tests has built already; one package has others.
    cargo.args(["test", "--workspace", "--exclude", "larder-e2e", "--lib"]);
    cargo.args(["--", "--nocapture", "image::crash_tests::soak", "a_long_layer"]);
    cargo.env("LARDER_LARGE_LAYER_BYTES", LARGE_LAYER_BYTES.to_string());
    let status = cargo.env("LARDER_SOAK_KILLS", kills.to_string()).status().context("run cargo")?;
    ensure!(status.success(), "cargo test image::crash_tests::soak: {status}");
    Ok(())
}

/// Builds what the end-to-end tests run, then runs them.
async fn e2e(name: Option<&str>) -> anyhow::Result<()> {
    let programs = controlplane_program::folder();
    blocking_step("build the control plane", move || controlplane_program::build(&programs)).await?;
    blocking_step("build larder-provider, larder-node-agent, larder-monitor and larderctl", up::build_larder).await?;
    let out = workspace::state().join("images");
    blocking_step("make the sample images", move || build(&out, Set::Small, &mut |_| ())).await?;
    note(".. run the end-to-end tests");
    let mut cargo = workspace::cargo();
    cargo.args(["test", "-p", "larder-e2e", "--"]);
    // Each has a cluster's worth of processes; more at once than cores makes them late, not fast.
    cargo.arg("--test-threads=2").args(name);
    let status = cargo.status().context("run cargo")?;
    ensure!(status.success(), "cargo test -p larder-e2e: {status}");
    Ok(())
}
