//! What a person sees while a command works: one line a step, with its time, and a sign of life while it takes long.

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "this is where commands talk to people")]

use std::future::Future;
use std::io::{IsTerminal, stderr};
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::{AnsiColors, OwoColorize};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// How often a step that takes long says so where there is no terminal.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// Runs one step: its title is shown while it works, with the time it took when it is done.
///
/// # Errors
/// The step's own, with the title as context.
pub async fn step<T>(title: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let start = Instant::now();
    let result = if stderr().is_terminal() { with_spinner(title, work).await } else { with_lines(title, work).await };
    let took = format!("{:.1} s", start.elapsed().as_secs_f64());
    let (word, colour) = if result.is_ok() { ("ok", AnsiColors::Green) } else { ("failed", AnsiColors::Red) };
    if stderr().is_terminal() {
        eprintln!("{} {title} {}", word.color(colour), took.dimmed());
    } else {
        eprintln!("{word} {title} {took}");
    }
    result.with_context(|| title.to_owned())
}

/// Runs one step that blocks: a build, a file copy.
///
/// # Errors
/// The step's own, with the title as context.
pub async fn blocking_step<T: Send + 'static>(
    title: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    step(title, async { tokio::task::spawn_blocking(work).await.context("the step panicked")? }).await
}

/// Prints a line of the command's result.
pub fn say(line: &str) {
    println!("{line}");
}

/// Prints a line beside the result: a warning, a hint.
pub fn note(line: &str) {
    eprintln!("{line}");
}

async fn with_spinner<T>(title: &str, work: impl Future<Output = T>) -> T {
    let style =
        ProgressStyle::with_template("{spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let spinner = ProgressBar::new_spinner().with_style(style).with_message(title.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    let result = work.await;
    spinner.finish_and_clear();
    result
}

async fn with_lines<T>(title: &str, work: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let mut ticks = interval_at(start + SIGN_OF_LIFE, SIGN_OF_LIFE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            // Polled again in the next round, never dropped before its end.
            result = &mut work => return result,
            // A tick that is lost says a line less.
            _ = ticks.tick() => eprintln!(".. {title} ({} s so far)", start.elapsed().as_secs()),
        }
    }
}
