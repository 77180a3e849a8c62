//! Registry logins out of image pull Secrets.
//!
//! Both kinds are read, `kubernetes.io/dockerconfigjson` and the older `kubernetes.io/dockercfg`; whatever in them is no
//! login is passed over, as the kubelet does, since one broken entry must not cost a pod the others.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use crate::agent::RegistryCredential;
use crate::cluster::objects::ObjectContent;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// The logins of one Secret. The error says what is wrong with it, for people.
///
/// # Errors
/// When the Secret holds no list of logins at all.
pub fn credentials(secret: &ObjectContent) -> Result<Vec<RegistryCredential>, String> {
    let auths = match (secret.data.get(".dockerconfigjson"), secret.data.get(".dockercfg")) {
        (Some(json), _) => {
            serde_json::from_slice::<DockerConfig>(json)
                .map_err(|error| format!("key .dockerconfigjson is no docker configuration: {error}"))?
                .auths
        }
        (None, Some(json)) => serde_json::from_slice(json)
            .map_err(|error| format!("key .dockercfg is no docker configuration: {error}"))?,
        (None, None) => return Err("it has neither the key .dockerconfigjson nor .dockercfg".to_owned()),
    };
    Ok(auths.into_iter().filter_map(|(registry, entry)| login(registry, entry)).collect())
}

fn login(registry: String, entry: serde_json::Value) -> Option<RegistryCredential> {
    let entry: Entry = serde_json::from_value(entry).ok()?;
    let (mut username, mut password) = (entry.username.unwrap_or_default(), entry.password.unwrap_or_default());
    if let Some((user, secret)) = entry.auth.as_deref().and_then(decode) {
        (username, password) = (user, secret);
    }
    let credential = RegistryCredential {
        registry,
        username,
        password,
        identity_token: entry.identitytoken.unwrap_or_default(),
        registry_token: entry.registrytoken.unwrap_or_default(),
    };
    let empty = credential.username.is_empty()
        && credential.password.is_empty()
        && credential.identity_token.is_empty()
        && credential.registry_token.is_empty();
    (!empty).then_some(credential)
}

/// `user:password` in base64, with or without padding.
fn decode(auth: &str) -> Option<(String, String)> {
    let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn secret(key: &str, value: String) -> ObjectContent {
        ObjectContent { data: [(key.to_owned(), Bytes::from(value))].into(), ..ObjectContent::default() }
    }

    #[test]
    fn both_kinds_are_read() {
        let auths = json!({
            "a.example": {"auth": "dXNlcjpwYTpzcw=="},
            "b.example/team": {"username": "u", "password": "p"},
            "c.example": {"identitytoken": "t"},
            "d.example": {},
            "e.example": 7
        });
        for secret in
            [secret(".dockerconfigjson", json!({"auths": auths}).to_string()), secret(".dockercfg", auths.to_string())]
        {
            let found = credentials(&secret).unwrap();
            let names: Vec<_> = found.iter().map(|login| login.registry.as_str()).collect();
            assert_eq!(names, ["a.example", "b.example/team", "c.example"]);
            assert_eq!((found[0].username.as_str(), found[0].password.as_str()), ("user", "pa:ss"));
            assert_eq!(found[2].identity_token, "t");
        }
    }

    #[test]
    fn what_is_no_login_is_said() {
        assert!(credentials(&ObjectContent::default()).unwrap_err().contains(".dockerconfigjson"));
        assert!(credentials(&secret(".dockerconfigjson", "{".into())).is_err());
    }

    proptest! {
        #[test]
        fn nothing_a_user_writes_panics(text in ".*") {
            let _ = credentials(&secret(".dockerconfigjson", text.clone()));
            let _ = credentials(&secret(".dockerconfigjson", json!({"auths": {"r": {"auth": text}}}).to_string()));
        }
    }
}
