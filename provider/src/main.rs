//! The `larder-provider` binary.

use anyhow::Context as _;
use clap::Parser as _;
use larder_provider::config::{Args, Config};
use larder_provider::{app, telemetry};

fn main() -> anyhow::Result<()> {
    let config = Config::try_from(Args::parse())?;
    telemetry::init(config.args.log_format)?;
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().map_err(|_| anyhow::anyhow!("choose the cryptography: one is chosen already"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let ended = runtime.block_on(app::run(config));
    // Everything of ours has been joined; what the libraries still do on threads of their own is of no use any more.
    runtime.shutdown_background();
    Ok(ended?)
}
