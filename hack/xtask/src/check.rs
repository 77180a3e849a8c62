//! `cargo xtask check`: everything a change must pass, in one command.

mod orphans;

use crate::{erofs_utils, workspace};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use std::process::Stdio;
use tokio::time::Instant;

/// Which checks; all of them when none is named.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Checks to run, in this order (default: all)
    #[arg(value_enum)]
    checks: Vec<Check>,
}

/// One check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    /// Every file is formatted
    Fmt,
    /// No lint fires, in tests neither
    Clippy,
    /// Modules name only what hack/layers.toml lets them name
    Layers,
    /// Every Rust file is part of a crate
    Orphans,
    /// The documentation builds without a warning
    Doc,
    /// Licences, banned crates and sources, if cargo-deny is installed
    Deny,
    /// Every test but the end-to-end tests, which need a cluster
    Test,
}

/// Runs each check in turn and stops at the first that fails.
///
/// # Errors
/// When a check fails; the message names its command.
pub fn run(args: &Args) -> Result<()> {
    let checks = if args.checks.is_empty() { Check::value_variants() } else { &args.checks };
    for check in checks {
        let name = check.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        say(&format!("check {name}"));
        let start = Instant::now();
        check.run().with_context(|| format!("check {name} failed"))?;
        say(&format!("check {name}: ok, {:.1} s", start.elapsed().as_secs_f64()));
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the command's progress")]
fn say(line: &str) {
    eprintln!("{line}");
}

impl Check {
    fn run(self) -> Result<()> {
        match self {
            Self::Fmt => {
                cargo(&["fmt", "--all", "--check"], None)?;
                cargo(&["fmt", "--manifest-path", "node-agent/fuzz/Cargo.toml", "--", "--check"], None)
            }
            Self::Clippy => cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], None),
            Self::Layers => crate::layers::run(&crate::layers::Args {}),
            Self::Orphans => orphans::run(),
            Self::Doc => {
                // Private items are documented too, so a link to one leads somewhere.
                let own = "-D warnings -A rustdoc::private_intra_doc_links";
                let flags = format!("{} {own}", std::env::var("RUSTDOCFLAGS").unwrap_or_default());
                let doc = ["doc", "--workspace", "--no-deps", "--document-private-items"];
                cargo(&doc, Some(("RUSTDOCFLAGS", flags.trim())))
            }
            Self::Deny => deny(),
            Self::Test => {
                let path = erofs_utils::before_path();
                let test = ["test", "--workspace", "--exclude", "larder-e2e"];
                cargo(&test, path.as_deref().map(|path| ("PATH", path)))
            }
        }
    }
}

/// Licences, bans and sources stop a change. An advisory does not: it may appear overnight, in no relation to the change.
fn deny() -> Result<()> {
    let installed = workspace::cargo().args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !installed.is_ok_and(|status| status.success()) {
        say("check deny: left out, cargo-deny is not installed (cargo install cargo-deny --locked)");
        return Ok(());
    }
    cargo(&["deny", "check", "bans", "licenses", "sources"], None)?;
    if cargo(&["deny", "check", "advisories"], None).is_err() {
        say("check deny: there are advisories; see above");
    }
    Ok(())
}

fn cargo(args: &[&str], variable: Option<(&str, &str)>) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(args);
    if let Some((name, value)) = variable {
        command.env(name, value);
    }
    let status = command.status().context("run cargo")?;
    ensure!(status.success(), "cargo {}: {status}", args.join(" "));
    Ok(())
}
