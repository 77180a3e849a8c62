//! Hosts that have asked not to be asked for a while, by `Retry-After`. The other layers of a pull and the next try of a pod
//! keep to it as well as the request that was told so.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use reqwest::Url;
use tokio::time::Instant;

use super::Login;

/// The longest that a host is left alone, whatever it says: some put a date where seconds belong.
const LONGEST: Duration = Duration::from_secs(3600);
/// Pauses kept at once.
const MAX_KEPT: usize = 1024;

/// Who is not to be asked, and as whom: limits are an account's as a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    host: String,
    login: Option<Login>,
}

impl Asked {
    /// The host of an address, asked with a login.
    pub(super) fn at(address: &Url, login: Option<&Login>) -> Self {
        let port = address.port_or_known_default().unwrap_or_default();
        Self { host: format!("{}:{port}", address.host_str().unwrap_or_default()), login: login.cloned() }
    }
}

/// The pauses under way.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    kept: Mutex<HashMap<Asked, Pause>>,
}

/// One pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pause {
    /// When it ends.
    pub(super) until: Instant,
    /// What the host has answered, `429 Too Many Requests`.
    pub(super) status: String,
}

impl Pauses {
    /// Notes that a host wants to be left alone from now on.
    pub(super) fn note(&self, asked: Asked, wait: Duration, status: &str, now: Instant) {
        let pause = Pause { until: now + wait.min(LONGEST), status: status.to_owned() };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, pause| pause.until > now);
        }
        if kept.len() < MAX_KEPT && kept.get(&asked).is_none_or(|known| known.until < pause.until) {
            kept.insert(asked, pause);
        }
    }

    /// The pause that a host has asked for, while it lasts.
    pub(super) fn of(&self, asked: &Asked, now: Instant) -> Option<Pause> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(asked).filter(|pause| pause.until > now).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(address: &str, login: Option<&str>) -> Asked {
        let login = login.map(|token| Login::RegistryToken(token.to_owned()));
        Asked::at(&address.parse().unwrap(), login.as_ref())
    }

    #[test]
    fn a_pause_is_a_hosts_and_a_logins_and_ends() {
        let (pauses, now, minute) = (Pauses::default(), Instant::now(), Duration::from_secs(60));
        pauses.note(asked("https://a/x", Some("me")), minute, "429", now);
        let left = |address, login, at| pauses.of(&asked(address, login), at).map(|pause| pause.until - at);
        assert_eq!(left("https://a:443/y", Some("me"), now + minute / 2), Some(minute / 2));
        assert_eq!(left("https://a/x", Some("me"), now + minute), None);
        assert_eq!(left("https://a/x", None, now), None);
        assert_eq!(left("https://a:444/x", Some("me"), now), None);
        // A shorter one that comes later does not end it, and no one lasts for ever.
        pauses.note(asked("https://a/x", Some("me")), minute / 4, "429", now);
        assert_eq!(left("https://a/x", Some("me"), now), Some(minute));
        pauses.note(asked("https://b/x", None), Duration::MAX, "503", now);
        assert_eq!(left("https://b/x", None, now), Some(LONGEST));
    }

    #[test]
    fn only_so_many_are_kept() {
        let (pauses, now) = (Pauses::default(), Instant::now());
        for port in 0..2000 {
            pauses.note(asked(&format!("http://a:{port}/"), None), LONGEST, "429", now);
        }
        assert_eq!(pauses.kept.lock().unwrap().len(), MAX_KEPT);
        pauses.note(asked("http://b/", None), LONGEST, "429", now + LONGEST);
        assert_eq!(pauses.kept.lock().unwrap().len(), 1);
    }
}
