//! The logins of the node's own: a file in docker's form, and the programs of the kubelet's `CredentialProviderConfig`.
//!
//! One that cannot be had stops no pull: the image may be public. Why it is missing is a note, for when it is missed.

use std::{io, path::PathBuf};

use super::{CredentialProviders, Login, credentials, docker_config};

/// The largest file of logins.
const MAX_FILE: u64 = 4 << 20;

/// Where the node's own logins come from.
#[derive(Debug)]
pub(super) struct NodeLogins {
    file: Option<PathBuf>,
    providers: CredentialProviders,
}

impl NodeLogins {
    pub(super) fn new(file: Option<PathBuf>, providers: CredentialProviders) -> Self {
        Self { file, providers }
    }

    /// The logins for a repository, those of the file first, as the kubelet has it.
    pub(super) async fn matching(&self, host: &str, repository: &str, notes: &mut Vec<String>) -> Vec<Login> {
        let mut logins = Vec::new();
        match self.read_file().await {
            Ok(all) => logins.extend(credentials::matching(&all, host, repository).into_iter().cloned()),
            Err(why) => {
                tracing::warn!(why, "the node's own registry logins cannot be read");
                notes.push(why);
            }
        }
        for answer in self.providers.ask(host, repository).await {
            match answer {
                Ok(all) => logins.extend(credentials::matching(&all, host, repository).into_iter().cloned()),
                Err(err) => {
                    tracing::warn!(error = %err, "credential provider gives no logins");
                    notes.push(err.to_string());
                }
            }
        }
        logins
    }

    async fn read_file(&self) -> Result<Vec<super::Credential>, String> {
        let Some(path) = &self.file else { return Ok(Vec::new()) };
        let refuse = |why: &dyn std::fmt::Display| format!("registry logins {}: {why}", path.display());
        match tokio::fs::metadata(path).await {
            Ok(meta) if meta.len() > MAX_FILE => return Err(refuse(&"the file is too large")),
            Ok(_) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(err) => return Err(refuse(&err)),
        }
        let content = tokio::fs::read(path).await.map_err(|err| refuse(&err))?;
        docker_config::read(&content).map_err(|why| refuse(&why))
    }
}
