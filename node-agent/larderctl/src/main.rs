//! `larderctl`: what a host's node agent has and does, and the few things that one may ask of it.
//!
//! It speaks to the agent over the socket that the provider uses, and knows nothing but what the agent tells. Output is for
//! people, or JSON for programs; progress and errors go to standard error.

mod agent;
mod caches;
mod cli;
mod figures;
mod images;
mod output;
mod pods;
mod progress;
mod pull;
mod pulls;
mod store;
mod transfer;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use clap_complete::Shell;

use self::agent::{Agent, CtlError};
use self::cli::{Cache, CacheCommand, Cli, Command, Pulls, StoreCommand};
use self::output::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "larderctl: {}", output::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, CtlError> {
    if let Command::Completions { shell } = cli.command {
        return complete(shell);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CtlError::Runtime)?;
    runtime.block_on(ask(cli))
}

async fn ask(cli: Cli) -> Result<ExitCode, CtlError> {
    let (agent, output) = (Agent::connect(&cli.agent).await?, Output::new(cli.output));
    match cli.command {
        Command::Images => images::list(&agent, output).await?,
        Command::Cache(Cache { command: None | Some(CacheCommand::Ls) }) => caches::list(&agent, output).await?,
        Command::Cache(Cache { command: Some(CacheCommand::Show { cache }) }) => {
            caches::show(&agent, output, &cache).await?;
        }
        Command::Pods => pods::list(&agent, output).await?,
        Command::Pulls(Pulls { watch: false }) => pulls::list(&agent, output).await?,
        Command::Pulls(Pulls { watch: true }) => pulls::follow(&agent, output).await?,
        Command::Pull(wish) => pull::pull(&agent, output, wish).await?,
        Command::Store(StoreCommand::Ls) => store::list(&agent, output).await?,
        Command::Store(StoreCommand::Du) => store::usage(&agent, output).await?,
        Command::Store(StoreCommand::Prune { dry_run }) => store::prune(&agent, output, dry_run).await?,
        Command::Store(StoreCommand::Verify { repair }) => return store::verify(&agent, output, repair).await,
        Command::Completions { shell } => return complete(shell),
    }
    Ok(ExitCode::SUCCESS)
}

fn complete(shell: Shell) -> Result<ExitCode, CtlError> {
    // Written at once: who reads a part of it and goes is no error.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "larderctl", &mut script);
    io::stdout().write_all(&script).map_err(CtlError::Output)?;
    Ok(ExitCode::SUCCESS)
}
