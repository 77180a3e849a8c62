//! What is drawn in place on a terminal, and hidden where there is none.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of bytes, on standard error.
pub(crate) fn bar() -> ProgressBar {
    styled(ProgressBar::new(0), "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}")
}

/// Lines that are drawn over those before, on standard output.
pub(crate) fn board() -> ProgressBar {
    styled(ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout()), "{msg}")
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    // A template that cannot be read leaves the bar as it is.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
