//! The `larder-node-agent` binary.

use std::process::ExitCode;

use clap::Parser as _;
use larder_node_agent::{app, chain::Chain, config::Config, host::memory, telemetry};
use tracing::error;

fn main() -> anyhow::Result<ExitCode> {
    memory::keep_small();
    let config = Config::parse();
    telemetry::init(config.log_format)?;
    // An error says that one has been chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(app::run(config));
    // What is still running on blocking threads may wait for something that does not come.
    runtime.shutdown_background();
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            error!(error = %Chain(&error), "agent failed");
            Ok(ExitCode::FAILURE)
        }
    }
}
