//! Pure: no I/O, no clock, no randomness.
//!
//! Whom an image that lies here is given to without a word of its registry: the policies of KEP-2535, with the kubelet's
//! names, for image caches.
//!
//! An image that no matched cache holds is asked for at its registry with the pod's own logins in any case, so only caches
//! come into question. One that was made by hand is its maker's to give, as on ECI: it is *preloaded*. An automatic one was
//! made with one pod's logins: it gives a private image to another pod only when a login of that pod is known to pull it, or
//! proves it now with one request for the manifest. What anybody can pull is anybody's.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    registry::{Entry, Login, Reference},
    store::pulled::{LetIn, Pulled},
};

/// So many logins are known of one image and repository, as in the kubelet; the oldest go, and would be asked about again.
const MOST_LOGINS: usize = 100;

/// Which images are given to pods only when their logins have been verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// None.
    NeverVerify,
    /// Those of automatic caches.
    #[default]
    NeverVerifyPreloadedImages,
    /// All but those that the node's list names.
    NeverVerifyAllowlistedImages,
    /// All.
    AlwaysVerify,
}

/// How a cache came to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// Somebody made it, for every pod of the cluster.
    #[default]
    ByHand,
    /// It was made for a pod, with that pod's logins.
    Automatic,
}

/// The image cache that was chosen for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenCache {
    /// `imc-...`.
    pub id: String,
    /// How it came to be.
    pub origin: Origin,
    /// Its own policy; none for the node's.
    pub policy: Option<Policy>,
}

impl ChosenCache {
    /// One that was made by hand, without a policy of its own.
    pub fn by_hand(id: &str) -> Self {
        Self { id: id.to_owned(), origin: Origin::ByHand, policy: None }
    }
}

/// What holds on this node.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// For caches without a policy of their own.
    pub policy: Policy,
    /// What [`Policy::NeverVerifyAllowlistedImages`] lets pass.
    pub allowed: AllowList,
}

/// Images that are given to every pod: the patterns of the kubelet's `preloadedImagesVerificationAllowlist`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    /// Repositories in full.
    names: BTreeSet<String>,
    /// What the names of repositories begin with, `/` at the end.
    prefixes: Vec<String>,
}

/// Why a pattern of the list means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{pattern:?} is no pattern of --preloaded-images-verification-allowlist: {why}; it is a repository without tag and \
     digest, or the beginning of some with /* behind it"
)]
pub struct AllowListError {
    pattern: String,
    why: String,
}

impl AllowList {
    /// Reads the patterns: `registry.example.com/team/app`, `registry.example.com/team/*`.
    ///
    /// # Errors
    /// At the first that is none.
    pub fn read<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, AllowListError> {
        let mut list = Self::default();
        for pattern in patterns {
            list.add(pattern).map_err(|why| AllowListError { pattern: pattern.to_owned(), why })?;
        }
        Ok(list)
    }

    fn add(&mut self, pattern: &str) -> Result<(), String> {
        if pattern.contains(char::is_whitespace) {
            return Err("it has white space".to_owned());
        }
        let Some(prefix) = pattern.strip_suffix("/*") else {
            let reference: Reference = pattern.parse().map_err(|err| format!("{err}"))?;
            // A colon before the last slash is a port's.
            if pattern.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) {
                return Err("it has a tag or a digest".to_owned());
            }
            self.names.insert(reference.name());
            return Ok(());
        };
        if prefix.is_empty() || prefix.contains(['*', '@']) {
            return Err("only /* at the end is a wildcard, with a registry before it".to_owned());
        }
        self.prefixes.push(format!("{prefix}/"));
        Ok(())
    }

    /// Whether an image is on it.
    pub fn has(&self, reference: &Reference) -> bool {
        let name = reference.name();
        self.names.contains(&name) || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// A pod that wants an image which its cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// What holds for the cache.
    pub policy: Policy,
    /// How the cache came to be.
    pub origin: Origin,
    /// Whether the image is on the node's list.
    pub is_allowed: bool,
    /// Whether the registry may be asked: not with `imagePullPolicy: Never`.
    pub may_ask: bool,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The pod gets the image, and nobody is asked.
    Serve,
    /// It gets the image if its registry lets it have the manifest.
    Ask,
    /// It does not get it.
    Refuse,
}

impl Question {
    /// Whether it does not matter who was let in.
    pub fn is_moot(&self) -> bool {
        match self.policy {
            Policy::NeverVerify => true,
            Policy::NeverVerifyPreloadedImages => self.origin == Origin::ByHand,
            Policy::NeverVerifyAllowlistedImages => self.is_allowed,
            Policy::AlwaysVerify => false,
        }
    }

    /// Decides; `is_let_in` says whether a login of the pod, or anybody, is known to have been let in.
    pub fn decide(&self, is_let_in: bool) -> Verdict {
        if self.is_moot() || is_let_in {
            Verdict::Serve
        } else if self.may_ask {
            Verdict::Ask
        } else {
            Verdict::Refuse
        }
    }
}

/// Whether anybody was let in to pull an image from a repository, or one of these logins was. Which registry a login is
/// meant for does not matter: whoever has the same one can be let in with it.
pub fn is_let_in<'a>(pulled: &Pulled, repository: &str, logins: impl IntoIterator<Item = &'a Login>) -> bool {
    let Some(let_in) = pulled.repositories.get(repository) else { return false };
    let is_known = |login| let_in.logins.contains(&fingerprint(&pulled.salt, login));
    let_in.anybody || logins.into_iter().any(is_known)
}

/// Whether whoever was let in like this now was before, at this repository.
pub fn is_known(pulled: &Pulled, repository: &str, entry: &Entry) -> bool {
    let login = match entry {
        Entry::Anybody => None,
        Entry::Login(login) => Some(login),
    };
    is_let_in(pulled, repository, login)
}

/// The record with one entry more; none when it has that already. `salt` is for one that has none.
pub fn with_entry(pulled: &Pulled, repository: &str, entry: &Entry, salt: &str) -> Option<Pulled> {
    let mut pulled = pulled.clone();
    if pulled.salt.is_empty() {
        // Fingerprints without the salt that they were made with fit nothing.
        pulled = Pulled { salt: salt.to_owned(), ..Pulled::default() };
    }
    let let_in: &mut LetIn = pulled.repositories.entry(repository.to_owned()).or_default();
    match entry {
        Entry::Anybody if let_in.anybody => return None,
        Entry::Anybody => let_in.anybody = true,
        Entry::Login(login) => {
            let fingerprint = fingerprint(&pulled.salt, login);
            if let_in.logins.contains(&fingerprint) {
                return None;
            }
            let_in.logins.insert(0, fingerprint);
            let_in.logins.truncate(MOST_LOGINS);
        }
    }
    Some(pulled)
}

/// What stands for a login on disk. Each part goes in with its length, so that no two logins make the same text.
fn fingerprint(salt: &str, login: &Login) -> String {
    let parts: [&str; 3] = match login {
        Login::Basic { username, password } => ["basic", username, password],
        Login::IdentityToken(token) => ["identity", token, ""],
        Login::RegistryToken(token) => ["registry", token, ""],
    };
    let text: String = std::iter::once(salt).chain(parts).map(|part| format!("{}:{part}", part.len())).collect();
    Digest::of(text.as_bytes()).hex()
}

#[cfg(test)]
mod tests;
