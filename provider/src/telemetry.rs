//! The log.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// What is logged when `RUST_LOG` does not say: our own news, and of the libraries what is wrong. A request to the API
/// server that failed is logged by whoever made it.
const DEFAULT_FILTER: &str =
    "info,kube_client=warn,kube_client::client::builder=off,kube_runtime=off,h2=warn,hyper=warn,rustls=warn,tower=warn";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `RUST_LOG` cannot be read.
    #[error("read the filter in RUST_LOG")]
    Filter(#[source] tracing_subscriber::filter::FromEnvError),
    /// There is a log already.
    #[error("set up the log")]
    Taken(#[source] tracing_subscriber::util::TryInitError),
}

/// Begins to log to standard error.
///
/// # Errors
/// When `RUST_LOG` cannot be read, or there is a log already.
pub fn init(format: LogFormat) -> Result<(), TelemetryError> {
    use tracing_subscriber::util::SubscriberInitExt as _;
    let filter = match std::env::var_os("RUST_LOG") {
        Some(_) => EnvFilter::try_from_default_env().map_err(TelemetryError::Filter)?,
        None => EnvFilter::new(DEFAULT_FILTER),
    };
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match format {
        LogFormat::Text => builder.finish().try_init(),
        LogFormat::Json => builder.json().finish().try_init(),
    }
    .map_err(TelemetryError::Taken)
}
