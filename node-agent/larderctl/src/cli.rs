//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Looks into a host that runs Larder's node agent, and looks after its store.
#[derive(Debug, Parser)]
#[command(name = "larderctl", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Where the node agent listens: unix:///PATH.
    #[arg(
        long,
        global = true,
        env = "LARDERCTL_AGENT",
        default_value = "unix:///run/larder/agent.sock",
        value_name = "URL"
    )]
    pub(crate) agent: String,
    /// How the answer is written.
    #[arg(short, long, global = true, default_value = "table", value_name = "FORMAT")]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Images whose layers are all here
    Images,
    /// Image caches, and how their builds go
    #[command(visible_alias = "caches")]
    Cache(Cache),
    /// Pods that the agent runs
    Pods,
    /// Bring an image's layers here
    ///
    /// They stay as long as there is room: only an image cache pins them, and only an image cache makes an image "already
    /// present" for a pod.
    Pull(Pull),
    /// Pulls that go on: how far they are, how fast, and who waits for them
    Pulls(Pulls),
    /// What lies on the disk
    #[command(subcommand)]
    Store(StoreCommand),
    /// Write a completion script: source <(larderctl completions bash)
    Completions {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Cache {
    #[command(subcommand)]
    pub(crate) command: Option<CacheCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// All of them; the same as no word at all
    Ls,
    /// One of them: its images, and the steps of its newest build
    Show {
        /// Its id (`imc-...`) or its name
        cache: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// The image, as in a pod
    pub(crate) reference: String,
    /// Speak plain http to this registry, HOST or HOST:PORT; may be given more than once
    #[arg(long, value_name = "REGISTRY")]
    pub(crate) plain_http: Vec<String>,
    /// Do not verify this registry's certificate; may be given more than once
    #[arg(long, value_name = "REGISTRY")]
    pub(crate) insecure: Vec<String>,
    /// Log in with this name; the password is read from standard input
    #[arg(long, value_name = "NAME")]
    pub(crate) username: Option<String>,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Pulls {
    /// Go on telling until it is interrupted: on a terminal in place, else line by line, with `-o json` a list a line
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum StoreCommand {
    /// Layers, the largest first
    Ls,
    /// What takes how much room
    Du,
    /// Remove every image and layer that no pod, image cache or pull uses
    Prune {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Read everything again and compare it with its digest; fails when something is wrong
    Verify {
        /// Put right what is wrong: make derived files anew, fetch layers again from where they came
        #[arg(long)]
        repair: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_whole() {
        Cli::command().debug_assert();
    }

    #[test]
    fn caches_are_listed_where_nothing_else_is_said() {
        for words in [&["larderctl", "cache"][..], &["larderctl", "caches"], &["larderctl", "cache", "ls"]] {
            let cli = Cli::try_parse_from(words).expect("is understood");
            let Command::Cache(Cache { command }) = cli.command else { panic!("{words:?}") };
            assert!(matches!(command, None | Some(CacheCommand::Ls)), "{words:?}");
        }
    }

    #[test]
    fn pulls_are_followed_at_a_word() {
        for (words, expected) in [
            (&["larderctl", "pulls"][..], false),
            (&["larderctl", "pulls", "-w"], true),
            (&["larderctl", "pulls", "--watch"], true),
        ] {
            let cli = Cli::try_parse_from(words).expect("is understood");
            assert!(matches!(cli.command, Command::Pulls(Pulls { watch }) if watch == expected), "{words:?}");
        }
    }

    #[test]
    fn flags_may_come_after_the_command() {
        let cli =
            Cli::try_parse_from(["larderctl", "store", "verify", "--repair", "-o", "json"]).expect("is understood");
        assert_eq!(cli.output, Format::Json);
        assert!(matches!(cli.command, Command::Store(StoreCommand::Verify { repair: true })));
    }
}
