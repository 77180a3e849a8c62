//! What can go wrong with a registry, in words that help in `kubectl describe pod`, and what of it is worth another try.

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;

use crate::digest::Digest;

/// Why a registry did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// 401 or 403: nobody may have it with these logins.
    #[error("unauthorized: {method} {url}: {status}{}; {}{}", detail(.message), hint(*.logins), also(.notes))]
    Unauthorized {
        /// `GET` ...
        method: &'static str,
        /// What was asked for.
        url: String,
        /// `401 Unauthorized`.
        status: String,
        /// The registry's own words; may be empty.
        message: String,
        /// How many logins were tried.
        logins: usize,
        /// Why logins of the node's own may be missing.
        notes: Vec<String>,
    },
    /// 404: no such repository, tag or blob, or none that we may see.
    #[error("not found: {method} {url}: {status}{}", detail(.message))]
    NotFound {
        /// `GET` ...
        method: &'static str,
        /// What was asked for.
        url: String,
        /// `404 Not Found`.
        status: String,
        /// The registry's own words; may be empty.
        message: String,
    },
    /// Any other answer than the one hoped for.
    #[error("{method} {url}: {status}{}{}", detail(.message), wait(.retry_after))]
    Status {
        /// `GET` ...
        method: &'static str,
        /// What was asked for.
        url: String,
        /// `503 Service Unavailable`.
        status: String,
        /// Its number.
        code: u16,
        /// The registry's own words; may be empty.
        message: String,
        /// How long the registry asks us to wait.
        retry_after: Option<Duration>,
    },
    /// It has asked not to be asked yet, so it was not.
    #[error("{method} {url}: not asked, as {said} and wants to be asked again at {until}, not before")]
    Paused {
        /// `GET` ...
        method: &'static str,
        /// What was to be asked for.
        url: String,
        /// `registry.example.com said 429 Too Many Requests`; not the host of `url` where that redirects.
        said: String,
        /// When it may be asked.
        until: Timestamp,
        /// How long that is from now.
        left: Duration,
    },
    /// No connection, or it broke.
    #[error("{method} {url}: {cause}")]
    Connection {
        /// `GET` ...
        method: &'static str,
        /// What was asked for.
        url: String,
        /// The whole chain of causes, without the address.
        cause: String,
    },
    /// Nothing came for too long.
    #[error("{method} {url}: no data from the registry for {}", humantime::format_duration(*.after))]
    Stalled {
        /// `GET` ...
        method: &'static str,
        /// What was asked for.
        url: String,
        /// How long we waited.
        after: Duration,
    },
    /// A small document that did not come within its time, or a blob of which too little came in it.
    #[error("{what} from {url} is too slow: {got_bytes} bytes came in {}", humantime::format_duration(*.after))]
    TooSlow {
        /// `manifest`, `token`, or a digest.
        what: String,
        /// What was asked for.
        url: String,
        /// What came.
        got_bytes: u64,
        /// How long we waited.
        after: Duration,
    },
    /// The content ended too early.
    #[error("{digest} from {url} is truncated: {got_bytes} of {expected_bytes} bytes came")]
    Truncated {
        /// What was asked for.
        url: String,
        /// Its digest.
        digest: Digest,
        /// What came.
        got_bytes: u64,
        /// What its descriptor says.
        expected_bytes: u64,
    },
    /// There is more of it than there should be.
    #[error("{what} from {url} is longer than {limit_bytes} bytes")]
    TooLong {
        /// `manifest`, `token`, or a digest.
        what: String,
        /// What was asked for.
        url: String,
        /// Where reading stopped.
        limit_bytes: u64,
    },
    /// Another length is announced than there should be.
    #[error("{digest} from {url} has {announced_bytes} bytes, expected {expected_bytes}")]
    WrongLength {
        /// What was asked for.
        url: String,
        /// Its digest.
        digest: Digest,
        /// What the registry announces.
        announced_bytes: u64,
        /// What its descriptor says.
        expected_bytes: u64,
    },
    /// The content is not what it is said to be.
    #[error("content from {url} has digest {actual}, expected {expected}")]
    WrongDigest {
        /// What was asked for.
        url: String,
        /// What its digest should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// An answer that makes no sense.
    #[error("{url}: {why}")]
    Malformed {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// Docker's first format, which cannot be verified.
    #[error(
        "{url} is a manifest of schema version 1, which is not supported: push the image again with a current tool"
    )]
    SchemaOne {
        /// What was asked for.
        url: String,
    },
    /// The registry wants a login to be sent to somebody else.
    #[error("{registry} asks for a token from {realm}: refused, {why}")]
    Realm {
        /// The registry.
        registry: String,
        /// Where it wants the token to be fetched.
        realm: String,
        /// Which rule it breaks and what to do.
        why: &'static str,
    },
    /// A `hosts.toml` that cannot be used.
    #[error("registry configuration {}: {why}", .path.display())]
    HostsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate or key that cannot be used.
    #[error("certificate {}: {why}", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A proxy that cannot be used.
    #[error("the address of the proxy in {variable} cannot be read")]
    Proxy {
        /// The environment's variable.
        variable: &'static str,
    },
    /// This process is ending.
    #[error("not asked: the agent is ending")]
    Interrupted,
    /// No endpoint may be asked for this.
    #[error("no configured host of {registry} can {capability}")]
    NoEndpoint {
        /// The registry.
        registry: String,
        /// `resolve` or `pull`.
        capability: &'static str,
    },
    /// Every endpoint failed; the last one is the registry itself.
    #[error("{}", all_tried(.0))]
    AllFailed(Vec<RegistryError>),
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn also(notes: &[String]) -> String {
    notes.iter().fold(String::new(), |text, note| text + "; " + note)
}

fn hint(logins: usize) -> String {
    match logins {
        0 => "no login fits this registry, check imagePullSecrets".to_owned(),
        1 => "the login was refused, check imagePullSecrets".to_owned(),
        n => format!("all {n} logins were refused, check imagePullSecrets"),
    }
}

fn wait(retry_after: &Option<Duration>) -> String {
    match retry_after {
        Some(after) => format!("; the registry asks to wait {}", humantime::format_duration(*after)),
        None => String::new(),
    }
}

fn all_tried(errors: &[RegistryError]) -> String {
    let Some((last, mirrors)) = errors.split_last() else { return "nothing was tried".to_owned() };
    let mut text = last.to_string();
    for mirror in mirrors {
        text.push_str("; before that, mirror ");
        text.push_str(&mirror.to_string());
    }
    text
}

impl RegistryError {
    /// Whether asking the same host again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { code, .. } => matches!(code, 408 | 429 | 500..=599),
            Self::Connection { .. }
            | Self::Paused { .. }
            | Self::Stalled { .. }
            | Self::TooSlow { .. }
            | Self::Truncated { .. } => true,
            Self::AllFailed(errors) => errors.iter().any(Self::is_transient),
            Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::TooLong { .. }
            | Self::WrongLength { .. }
            | Self::WrongDigest { .. }
            | Self::Malformed { .. }
            | Self::SchemaOne { .. }
            | Self::Realm { .. }
            | Self::HostsFile { .. }
            | Self::Certificate { .. }
            | Self::Proxy { .. }
            | Self::Interrupted
            | Self::NoEndpoint { .. } => false,
        }
    }

    /// Whether a host gave something else than what was asked for. Another host may have the right thing. 416 is one that
    /// has less of it than we have already.
    pub fn is_wrong_content(&self) -> bool {
        matches!(self, Self::WrongDigest { .. } | Self::TooLong { .. } | Self::Status { code: 416, .. })
    }

    /// Whether another login may be allowed what this one was not. Registries hide what one may not see behind 404.
    pub fn is_about_access(&self) -> bool {
        if let Self::AllFailed(errors) = self {
            return errors.iter().any(Self::is_about_access);
        }
        matches!(self, Self::Unauthorized { .. } | Self::NotFound { .. })
    }

    /// Whether somebody who was asked does not have it.
    pub(crate) fn is_not_found(&self) -> bool {
        if let Self::AllFailed(errors) = self {
            return errors.iter().any(Self::is_not_found);
        }
        matches!(self, Self::NotFound { .. })
    }

    /// How long the registry asks us to wait; none when somebody who failed has not asked for it.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Paused { left, .. } => Some(*left),
            Self::AllFailed(errors) => Self::soonest(errors),
            Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::Connection { .. }
            | Self::Stalled { .. }
            | Self::TooSlow { .. }
            | Self::Truncated { .. }
            | Self::TooLong { .. }
            | Self::WrongLength { .. }
            | Self::WrongDigest { .. }
            | Self::Malformed { .. }
            | Self::SchemaOne { .. }
            | Self::Realm { .. }
            | Self::HostsFile { .. }
            | Self::Certificate { .. }
            | Self::Proxy { .. }
            | Self::Interrupted
            | Self::NoEndpoint { .. } => None,
        }
    }

    /// How long it takes until the first of those that may get over their failure may be asked; none when one of them may
    /// be asked at any time.
    pub(crate) fn soonest<'a>(errors: impl IntoIterator<Item = &'a Self>) -> Option<Duration> {
        let transient = errors.into_iter().filter(|err| err.is_transient());
        let waits: Option<Vec<Duration>> = transient.map(Self::retry_after).collect();
        waits?.into_iter().min()
    }

    /// One error from those of the endpoints in the order of trial, of which there is at least one.
    pub(crate) fn from_tried(mut errors: Vec<Self>) -> Self {
        match errors.len() {
            1 => errors.remove(0),
            _ => Self::AllFailed(errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, retry_after: Option<u64>) -> RegistryError {
        let (url, status, message) = ("u".to_owned(), code.to_string(), String::new());
        let retry_after = retry_after.map(Duration::from_secs);
        RegistryError::Status { method: "GET", url, status, code, message, retry_after }
    }

    fn not_found() -> RegistryError {
        RegistryError::NotFound { method: "GET", url: "u".into(), status: "404".into(), message: String::new() }
    }

    #[test]
    fn it_may_pass_where_it_may_pass_at_one_endpoint() {
        for (errors, expected) in [
            (vec![status(503, None), not_found()], (true, None)),
            (vec![status(503, Some(60)), not_found()], (true, Some(60))),
            (vec![status(503, Some(60)), status(429, Some(7))], (true, Some(7))),
            // The second may be asked at any time, and the first is known to want its peace.
            (vec![status(503, Some(60)), status(500, None)], (true, None)),
            (vec![status(400, Some(60)), not_found()], (false, None)),
            (vec![not_found(), not_found()], (false, None)),
        ] {
            let all = RegistryError::from_tried(errors);
            assert_eq!((all.is_transient(), all.retry_after().map(|wait| wait.as_secs())), expected, "{all}");
        }
    }
}
