//! `cargo xtask COMMAND`: Larder's own commands. This file only reads the command line; the work is in the library.

use clap::{Parser, Subcommand};
use larder_dev::{bench, check, controlplane_program, down, images, layers, test, up};

/// Larder's own commands; `hack/up`, `hack/down`, `hack/test` and the others call them.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring a cluster up: control plane, registry, agents, provider, sample
    Up(up::Args),
    /// End what `up` started and remove what it left on the machine
    Down(down::Args),
    /// Run every test there is, or a part of them
    Test(test::Args),
    /// Build the control plane's program, if it is not current
    Controlplane,
    /// Check the whole workspace: format, lints, layers, documentation, unit tests
    Check(check::Args),
    /// Check that modules name only what hack/layers.toml lets them name
    Layers(layers::Args),
    /// Build the sample images as OCI layouts, or push them to a registry
    Images(images::Args),
    /// Measure, and print a table or one JSON array
    Bench(bench::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Up(args) => up::run(args).await,
        Command::Down(args) => down::run(args).await,
        Command::Test(args) => test::run(args).await,
        Command::Controlplane => controlplane_program::build(&controlplane_program::folder()),
        Command::Check(args) => check::run(&args),
        Command::Layers(args) => layers::run(&args),
        Command::Images(args) => images::run(args).await,
        Command::Bench(args) => bench::run(args).await,
    }
}
