//! The agent's own log: to standard error, as text or as one JSON object a line. `RUST_LOG` says how much.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::LogFormat;

/// What is wrong with the log's settings.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A filter that cannot be read.
    #[error("read RUST_LOG")]
    Filter(#[from] tracing_subscriber::filter::FromEnvError),
    /// A second call.
    #[error("set up the log")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up the log of this process. To be called once.
///
/// # Errors
/// When `RUST_LOG` cannot be read.
pub fn init(format: LogFormat) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env()?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(false)).try_init()?,
        LogFormat::Json => {
            let json = fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
            registry.with(json.with_writer(std::io::stderr)).try_init()?;
        }
    }
    Ok(())
}
