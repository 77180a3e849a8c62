//! What a registry asks for: the `WWW-Authenticate` header, and where a token may be fetched with a login.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::HashMap;

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from somewhere.
    Bearer {
        /// Where tokens are given out.
        realm: String,
        /// For whom the token is.
        service: Option<String>,
    },
}

/// Reads the headers, of which there may be several, each with several challenges. A bearer token is preferred.
pub(super) fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = false;
    for header in headers {
        for (scheme, parameters) in challenges(header) {
            match scheme.to_ascii_lowercase().as_str() {
                "bearer" => {
                    if let Some(realm) = parameters.get("realm") {
                        let service = parameters.get("service").filter(|s| !s.is_empty()).cloned();
                        return Some(Challenge::Bearer { realm: realm.clone(), service });
                    }
                }
                "basic" => basic = true,
                _ => {}
            }
        }
    }
    basic.then_some(Challenge::Basic)
}

/// Splits `Bearer realm="..",service="..", Basic realm=".."` into schemes with their parameters.
fn challenges(header: &str) -> Vec<(&str, HashMap<String, String>)> {
    let mut found: Vec<(&str, HashMap<String, String>)> = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if let Some(value_text) = after.trim_start().strip_prefix('=') {
            let (value, after_value) = quoted(value_text.trim_start());
            if let Some((_, parameters)) = found.last_mut() {
                parameters.insert(word.to_ascii_lowercase(), value);
            }
            rest = after_value;
        } else {
            if !word.is_empty() {
                found.push((word, HashMap::new()));
            }
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
        // A stray `=` would otherwise be looked at for ever.
        rest = rest.strip_prefix('=').unwrap_or(rest);
    }
    found
}

/// A token or a quoted string at the start of `text`, and what follows it.
fn quoted(text: &str) -> (String, &str) {
    let Some(body) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &body[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(c),
        }
    }
    (value, "")
}

/// Where a token is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Realm<'a> {
    /// `https`, or `http`.
    pub(super) scheme: &'a str,
    /// Without the port.
    pub(super) host: &'a str,
    /// The port, given or meant.
    pub(super) port: u16,
}

/// Why a realm is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RealmRefusal {
    /// The registry is spoken to over TLS, its realm is in the clear.
    InTheClear,
    /// The login is for another host.
    OtherHost,
}

/// Whether `realm` may be asked, with a login when `with_login`.
///
/// A login goes only to the registry's own host, to a host under the same parent domain (`auth.docker.io` for
/// `registry-1.docker.io`), or to one that the registry's configuration names. Anonymous requests go anywhere, but never
/// from TLS to the clear.
pub(super) fn realm_allowed(
    realm: Realm<'_>,
    registry: Realm<'_>,
    configured: &[String],
    with_login: bool,
) -> Result<(), RealmRefusal> {
    let named = configured.iter().any(|host| host == realm.host || *host == format!("{}:{}", realm.host, realm.port));
    if realm.scheme != "https" && registry.scheme == "https" {
        return Err(RealmRefusal::InTheClear);
    }
    if !with_login || named || realm == registry {
        return Ok(());
    }
    let same_host = realm.host == registry.host;
    if same_host || realm.scheme == "https" && share_parent(realm.host, registry.host) {
        return Ok(());
    }
    Err(RealmRefusal::OtherHost)
}

/// Whether two names have their last two labels in common. Addresses never do.
fn share_parent(a: &str, b: &str) -> bool {
    let is_address = |host: &str| host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
    if is_address(a) || is_address(b) {
        return false;
    }
    let parent = |host: &str| {
        let mut labels = host.rsplit('.').map(str::to_ascii_lowercase);
        let (top, second) = (labels.next()?, labels.next()?);
        Some((top, second))
    };
    parent(a).is_some() && parent(a) == parent(b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
    }

    #[test]
    fn reads_what_registries_send() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull""#,
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (r#"bearer Realm="https://a/t?x=1,2", service="""#, bearer("https://a/t?x=1,2", None)),
            (r#"Bearer realm=https://a/t"#, bearer("https://a/t", None)),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            (r#"Basic realm="x", Bearer realm="https://a/t""#, bearer("https://a/t", None)),
            (r#"Bearer realm="a\"b""#, bearer("a\"b", None)),
            ("Negotiate", None),
            ("", None),
            ("Bearer", None),
        ] {
            assert_eq!(parse([header]), expected, "{header}");
        }
        assert_eq!(parse(["Negotiate", "Basic realm=x"]), Some(Challenge::Basic));
    }

    #[test]
    fn sends_a_login_only_to_its_own_registry() {
        let at = |url: &'static str| {
            let (scheme, rest) = url.split_once("://").unwrap();
            let (host, port) = rest.rsplit_once(':').unwrap();
            Realm { scheme, host, port: port.parse().unwrap() }
        };
        let hub = at("https://registry-1.docker.io:443");
        let plain = at("http://10.0.0.1:5000");
        let named = ["auth.other.org".to_owned()];
        for (realm, registry, with_login, expected) in [
            ("https://auth.docker.io:443", hub, true, Ok(())),
            ("https://registry-1.docker.io:8443", hub, true, Ok(())),
            ("https://auth.other.org:443", hub, true, Ok(())),
            ("https://evil.org:443", hub, false, Ok(())),
            ("https://evil.org:443", hub, true, Err(RealmRefusal::OtherHost)),
            ("https://docker.io.evil.org:443", hub, true, Err(RealmRefusal::OtherHost)),
            ("http://auth.docker.io:80", hub, true, Err(RealmRefusal::InTheClear)),
            ("http://auth.docker.io:80", hub, false, Err(RealmRefusal::InTheClear)),
            ("http://10.0.0.1:5001", plain, true, Ok(())),
            ("http://10.0.0.2:5000", plain, true, Err(RealmRefusal::OtherHost)),
            ("http://169.254.169.254:80", plain, true, Err(RealmRefusal::OtherHost)),
        ] {
            assert_eq!(realm_allowed(at(realm), registry, &named, with_login), expected, "{realm}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_ends(header in "\\PC{0,60}", other in "[a-zA-Z=,\" \\\\]{0,40}") {
            let _ = parse([header.as_str(), other.as_str()]);
        }
    }
}
