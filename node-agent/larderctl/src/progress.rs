//! A bar that shows how far something is, where standard error is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of bytes.
pub(crate) fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    // A template that cannot be read leaves the bar as it is.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}") {
        bar.set_style(style);
    }
    bar
}
