//! Logins in the form of docker's `config.json`.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose};
use serde::Deserialize;

use super::{Credential, Login};

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// The logins of a `config.json`. Helper programs that it names are not run: that is what credential providers are for.
///
/// # Errors
/// In words, when it is not such a file.
pub(super) fn read(json: &[u8]) -> Result<Vec<Credential>, String> {
    // The error of the parser would show what it read, which may be a password.
    let config: DockerConfig = serde_json::from_slice(json)
        .map_err(|err| format!("line {}, column {}: not a docker configuration", err.line(), err.column()))?;
    let logins = config.auths.into_iter().filter_map(|(registry, entry)| Some((registry, login(entry)?)));
    Ok(logins.map(|(registry, login)| Credential { registry, login }).collect())
}

/// The most powerful of what an entry holds; none when it is empty.
fn login(entry: Entry) -> Option<Login> {
    if !entry.registrytoken.is_empty() {
        return Some(Login::RegistryToken(entry.registrytoken));
    }
    if !entry.identitytoken.is_empty() {
        return Some(Login::IdentityToken(entry.identitytoken));
    }
    let (username, password) = decode(&entry.auth).unwrap_or((entry.username, entry.password));
    (!username.is_empty()).then_some(Login::Basic { username, password })
}

/// `user:password` in base64, with or without padding.
fn decode(auth: &str) -> Option<(String, String)> {
    let engines = [general_purpose::STANDARD, general_purpose::STANDARD_NO_PAD];
    let bytes = engines.iter().find_map(|engine| engine.decode(auth).ok())?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_every_kind_of_login() {
        let config = json!({
            "auths": {
                "a.io": {"auth": general_purpose::STANDARD.encode("me:s:ecret")},
                "b.io": {"username": "you", "password": "secret"},
                "c.io": {"auth": general_purpose::STANDARD_NO_PAD.encode("me:x"), "identitytoken": "refresh"},
                "d.io": {"registrytoken": "bearer"},
                "e.io": {},
                "f.io": {"auth": "///"},
            },
            "credsStore": "desktop",
        });
        let read = read(config.to_string().as_bytes()).unwrap();
        let basic = |username: &str, password: &str| Login::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        };
        let expected = [
            ("a.io", basic("me", "s:ecret")),
            ("b.io", basic("you", "secret")),
            ("c.io", Login::IdentityToken("refresh".to_owned())),
            ("d.io", Login::RegistryToken("bearer".to_owned())),
        ];
        let found: Vec<_> = read.iter().map(|one| (one.registry.as_str(), one.login.clone())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_mistake_is_placed_and_not_shown() {
        let text = read(br#"{"auths": {"a": {"password": 12345}}}"#).unwrap_err();
        assert!(text.contains("line 1, column") && !text.contains("12345"), "{text}");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,60}") {
            let _ = read(text.as_bytes());
            let _ = read(json!({"auths": {"r": {"auth": text}}}).to_string().as_bytes());
        }
    }
}
