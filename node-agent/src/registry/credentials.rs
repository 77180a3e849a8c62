//! Which logins fit an image: the kubelet's rules for the keys of a pull secret.
//!
//! Pure: no I/O, no clock, no randomness.

use std::fmt;

use crate::registry::{Credential, Login};

/// The logins that may be sent to `host` for `repository`, in the kubelet's order: the more particular key first, and of
/// the same key those that were given first.
///
/// A key is `host[:port][/path]`, with or without a scheme; each part of the host may be a glob (`*.example.com`), the port
/// must be the same, and the path must be a prefix of the repository's.
pub fn matching<'a>(credentials: &'a [Credential], host: &str, repository: &str) -> Vec<&'a Login> {
    let mut fitting: Vec<(String, &Login)> = credentials
        .iter()
        .filter(|credential| fits(&credential.registry, host, repository))
        .map(|credential| (Key::of(&credential.registry).to_string(), &credential.login))
        .collect();
    // The kubelet sorts the keys backwards as texts, so that a longer one comes before its own beginning.
    fitting.sort_by(|(a, _), (b, _)| b.cmp(a));
    fitting.into_iter().map(|(_, login)| login).collect()
}

/// Whether a key of a pull secret, or an entry of `matchImages`, fits an image.
pub(super) fn fits(key: &str, host: &str, repository: &str) -> bool {
    let key = Key::of(key);
    host_names(host).iter().any(|name| key.fits(name, repository))
}

/// The names under which a pull secret may know a host. Docker Hub has three.
fn host_names(host: &str) -> Vec<&str> {
    const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    if HUB.contains(&host) { HUB.to_vec() } else { vec![host] }
}

/// A key of a pull secret, taken apart.
struct Key<'a> {
    host: &'a str,
    port: Option<&'a str>,
    path: &'a str,
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

impl<'a> Key<'a> {
    fn of(text: &'a str) -> Self {
        let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (authority, path) = match text.find('/') {
            Some(slash) => text.split_at(slash),
            None => (text, ""),
        };
        // Old tools wrote the API's version into the key: `https://index.docker.io/v1/`.
        let path = path
            .strip_prefix("/v1")
            .or_else(|| path.strip_prefix("/v2"))
            .filter(|rest| rest.starts_with('/') || rest.is_empty())
            .unwrap_or(path);
        let (host, port) = split_port(authority);
        Self { host, port, path: path.trim_start_matches('/') }
    }

    fn fits(&self, target: &str, repository: &str) -> bool {
        let (host, port) = split_port(target);
        if self.port != port || !repository.starts_with(self.path) {
            return false;
        }
        let (globs, parts) = (self.host.split('.'), host.split('.'));
        globs.clone().count() == parts.clone().count() && globs.zip(parts).all(|(glob, part)| glob_fits(glob, part))
    }
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    if authority.ends_with(']') {
        return (authority, None);
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    }
}

/// `*` stands for any run of characters, `?` for one; host names have no case.
fn glob_fits(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                last_star = Some((g, t));
                g += 1;
            }
            Some(&b) if b == b'?' || b.eq_ignore_ascii_case(&text[t]) => {
                g += 1;
                t += 1;
            }
            Some(_) | None => {
                let Some((star, from)) = last_star else { return false };
                last_star = Some((star, from + 1));
                g = star + 1;
                t = from + 1;
            }
        }
    }
    glob[g..].iter().all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_the_keys_that_the_kubelet_takes() {
        for (key, host, repository) in [
            ("quay.io", "quay.io", "a/b"),
            ("https://quay.io", "quay.io", "a/b"),
            ("https://quay.io/v2/", "quay.io", "a/b"),
            ("https://index.docker.io/v1/", "docker.io", "library/nginx"),
            ("docker.io", "registry-1.docker.io", "library/nginx"),
            ("*.example.com", "reg.example.com", "a"),
            ("*.*.example.com", "a.b.example.com", "a"),
            ("re?.example.com", "reg.example.com", "a"),
            ("pre*fix.example.com", "pre-and-fix.example.com", "a"),
            ("quay.io/team", "quay.io", "team/app"),
            ("localhost:5000", "localhost:5000", "a"),
            ("[::1]:5000", "[::1]:5000", "a"),
            ("[::1]", "[::1]", "a"),
        ] {
            assert!(fits(key, host, repository), "{key} for {host}/{repository}");
        }
    }

    #[test]
    fn sends_nothing_elsewhere() {
        for (key, host, repository) in [
            ("quay.io", "quay.io.evil.com", "a"),
            ("quay.io", "evil-quay.io", "a"),
            ("*.example.com", "example.com", "a"),
            ("*.example.com", "a.b.example.com", "a"),
            ("*", "example.com", "a"),
            ("quay.io", "quay.io:5000", "a"),
            ("quay.io:5000", "quay.io", "a"),
            ("quay.io/team", "quay.io", "other/app"),
            ("", "quay.io", "a"),
        ] {
            assert!(!fits(key, host, repository), "{key} for {host}/{repository}");
        }
    }

    fn token(login: &Login) -> &str {
        let Login::RegistryToken(token) = login else { panic!("the test made no other") };
        token
    }

    #[test]
    fn the_more_particular_key_comes_first() {
        let keys = ["*.io", "quay.io", "other.io", "https://quay.io/v2/", "quay.io/a/b", "quay.io/a", "quay.io"];
        let of = |(number, key): (usize, &&str)| Credential {
            registry: (*key).to_owned(),
            login: Login::RegistryToken(number.to_string()),
        };
        let all: Vec<_> = keys.iter().enumerate().map(of).collect();
        let order: Vec<_> = matching(&all, "quay.io", "a/b").into_iter().map(token).collect();
        assert_eq!(order, ["4", "5", "1", "3", "6", "0"]);
    }

    proptest! {
        #[test]
        fn a_glob_of_stars_fits_all_and_nothing_panics(glob in "[a-c*?]{0,8}", text in "[a-c]{0,8}") {
            let _ = glob_fits(&glob, &text);
            prop_assert!(glob_fits("*", &text));
            prop_assert!(glob_fits(&text, &text));
        }

        #[test]
        fn a_longer_path_comes_before_its_beginning(keys in proptest::collection::vec("q(/a){0,3}", 1..6)) {
            let of = |key: &String| Credential { registry: key.clone(), login: Login::RegistryToken(key.clone()) };
            let all: Vec<_> = keys.iter().map(of).collect();
            let found = matching(&all, "q", "a/a/a");
            prop_assert_eq!(found.len(), keys.len());
            let lengths: Vec<usize> = found.into_iter().map(|login| token(login).len()).collect();
            prop_assert!(lengths.is_sorted_by(|a, b| a >= b), "{:?}", lengths);
        }
    }
}
