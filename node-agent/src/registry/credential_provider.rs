//! Programs that are asked for registry logins, by the kubelet's protocol: a `CredentialProviderRequest` on their standard
//! input, a `CredentialProviderResponse` on their standard output.
//!
//! A program is run once for an image however many ask at that moment, for a minute at most, and what it says is bounded.

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::Instant,
};

use super::{
    Credential, credentials,
    provider_config::{self, Answer, CacheKeyType, Provider},
};

/// How long a program may take, as the kubelet has it.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// The longest answer.
const MAX_ANSWER: u64 = 1 << 20;
/// Of what a program says on its standard error, more does not fit into an event.
const MAX_WORDS: u64 = 300;
/// Answers kept at once by one program.
const MAX_KEPT: usize = 1024;

/// Why the programs cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ProviderConfigError {
    /// The configuration.
    #[error("credential provider configuration {}: {why}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A program that is not there.
    #[error("credential provider {}", .path.display())]
    Program {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a program gave no logins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProviderError {
    #[error("credential provider {name} cannot be run: {why}")]
    Run { name: String, why: String },
    #[error("credential provider {name} failed with {status}{words}")]
    Failed { name: String, status: ExitStatus, words: String },
    #[error("credential provider {name} did not answer within {}", humantime::format_duration(TIME_LIMIT))]
    TimedOut { name: String },
    #[error("credential provider {name}: {why}")]
    Answer { name: String, why: &'static str },
}

/// All programs, in the order of their configuration. Clones share what is kept.
#[derive(Debug, Clone, Default)]
pub struct CredentialProviders {
    all: Arc<Vec<Plugin>>,
}

type Outcome = Result<Arc<Answer>, ProviderError>;
type Run = BoxFuture<'static, Outcome>;

/// One program and what it has answered.
struct Plugin {
    provider: Arc<Provider>,
    program: PathBuf,
    kept: Mutex<HashMap<String, (Arc<Answer>, Instant)>>,
    under_way: Mutex<HashMap<String, WeakShared<Run>>>,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("program", &self.program).finish_non_exhaustive()
    }
}

impl CredentialProviders {
    /// Reads a `CredentialProviderConfig`; the programs lie in `programs`. Blocks.
    ///
    /// # Errors
    /// When the configuration is wrong, or a program is not there.
    pub fn load(config: &Path, programs: &Path) -> Result<Self, ProviderConfigError> {
        let wrong = |why: String| ProviderConfigError::Config { path: config.to_owned(), why };
        let text = std::fs::read_to_string(config).map_err(|err| wrong(err.to_string()))?;
        let mut all = Vec::new();
        for provider in provider_config::read(&text).map_err(wrong)? {
            let program = programs.join(&provider.name);
            rustix::fs::access(&program, rustix::fs::Access::EXEC_OK)
                .map_err(|err| ProviderConfigError::Program { path: program.clone(), source: err.into() })?;
            all.push(Plugin {
                provider: Arc::new(provider),
                program,
                kept: Mutex::default(),
                under_way: Mutex::default(),
            });
        }
        Ok(Self { all: Arc::new(all) })
    }

    /// What the programs that are for this image say.
    pub(super) async fn ask(&self, host: &str, repository: &str) -> Vec<Result<Vec<Credential>, ProviderError>> {
        let mut answers = Vec::new();
        for plugin in self.all.iter() {
            if plugin.provider.match_images.iter().any(|pattern| credentials::fits(pattern, host, repository)) {
                let answer = plugin.ask(host, repository).await;
                answers.push(answer.map(|answer| answer.credentials.clone()));
            }
        }
        answers
    }
}

impl Plugin {
    async fn ask(&self, host: &str, repository: &str) -> Outcome {
        let image = format!("{host}/{repository}");
        if let Some(known) = self.known(&image, host) {
            return Ok(known);
        }
        let answer = self.run_once(&image).await?;
        self.keep(&image, host, &answer);
        Ok(answer)
    }

    /// An answer that still holds for the image.
    fn known(&self, image: &str, host: &str) -> Option<Arc<Answer>> {
        let (kept, now) = (self.kept.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let keys = [CacheKeyType::Image, CacheKeyType::Registry, CacheKeyType::Global];
        let found = keys.into_iter().filter_map(|kind| kept.get(&cache_key(kind, image, host)));
        found.filter(|(_, ends)| *ends > now).map(|(answer, _)| Arc::clone(answer)).next()
    }

    fn keep(&self, image: &str, host: &str, answer: &Arc<Answer>) {
        let now = Instant::now();
        let Some(ends) = now.checked_add(answer.cache_duration).filter(|ends| *ends > now) else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (_, ends)| *ends > now);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(cache_key(answer.cache_key_type, image, host), (Arc::clone(answer), ends));
        }
    }

    /// Joins the run for this image that is under way, or begins one. It ends when nobody waits for it any more.
    fn run_once(&self, image: &str) -> Shared<Run> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = under_way.get(image).and_then(WeakShared::upgrade) {
            return run;
        }
        under_way.retain(|_, run| run.upgrade().is_some());
        let run = run(Arc::clone(&self.provider), self.program.clone(), image.to_owned()).boxed().shared();
        under_way.extend(run.downgrade().map(|weak| (image.to_owned(), weak)));
        run
    }
}

/// The text before the image keeps the three kinds of keys apart.
fn cache_key(kind: CacheKeyType, image: &str, host: &str) -> String {
    match kind {
        CacheKeyType::Image => format!("image {image}"),
        CacheKeyType::Registry => format!("registry {host}"),
        CacheKeyType::Global => "global".to_owned(),
    }
}

async fn run(provider: Arc<Provider>, program: PathBuf, image: String) -> Outcome {
    let name = || provider.name.clone();
    let running = converse(&provider, &program, &image);
    let (status, answer, words) = match tokio::time::timeout(TIME_LIMIT, running).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(err)) => return Err(ProviderError::Run { name: name(), why: err.to_string() }),
        Err(_) => return Err(ProviderError::TimedOut { name: name() }),
    };
    if !status.success() {
        let words = String::from_utf8_lossy(&words);
        let words = words.trim().replace(char::is_control, " ");
        let words = if words.is_empty() { words } else { format!(": {words}") };
        return Err(ProviderError::Failed { name: name(), status, words });
    }
    let answer = provider_config::answer(&provider, &answer);
    answer.map(Arc::new).map_err(|why| ProviderError::Answer { name: name(), why })
}

/// Runs the program to its end. It is killed when this future is dropped.
async fn converse(provider: &Provider, program: &Path, image: &str) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let mut child = Command::new(program)
        .args(&provider.args)
        .envs(provider.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ask = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its question may still know the answer.
            let _ = stdin.write_all(&provider_config::question(provider, image)).await;
        }
    };
    let (status, (), answer, words) =
        tokio::join!(child.wait(), ask, read_start(stdout, MAX_ANSWER), read_start(stderr, MAX_WORDS));
    Ok((status?, answer?, words?))
}

/// The beginning of what comes, and takes in the rest so that the other side can go on.
async fn read_start(from: Option<impl AsyncRead + Unpin>, limit: u64) -> io::Result<Vec<u8>> {
    let (Some(mut from), mut start) = (from, Vec::new()) else { return Ok(Vec::new()) };
    (&mut from).take(limit).read_to_end(&mut start).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(start)
}

#[cfg(test)]
mod tests;
