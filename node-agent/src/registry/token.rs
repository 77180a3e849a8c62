//! Bearer tokens: fetched with a login at the realm that a registry names, kept until shortly before they end.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Login, RegistryError,
    challenge::{Realm, RealmRefusal, realm_allowed},
    hosts::Endpoint,
    http::{Authorization, Http, Request, escape},
};

/// The longest answer with a token. Tokens of some registries are tens of kilobytes long.
const MAX_TOKEN_BODY: usize = 1 << 20;
/// How long a token lives that does not say, by the token specification.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// The longest that a token is used, whatever it says.
const LONGEST_LIFE: Duration = Duration::from_secs(3600);
/// Tokens kept at once.
const MAX_KEPT: usize = 1024;
/// The name under which we ask for tokens.
const CLIENT_ID: &str = "larder";

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    /// Address of the endpoint.
    pub(super) endpoint: String,
    /// The repository at that endpoint.
    pub(super) repository: String,
    /// Who asked for it. A token is never used for another login than its own.
    pub(super) login: Option<Login>,
}

/// Tokens in use.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    kept: Mutex<HashMap<TokenKey, (Authorization, Instant)>>,
}

impl Tokens {
    /// What is known to work, or is likely to.
    pub(super) fn get(&self, key: &TokenKey, now: Instant) -> Option<Authorization> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).filter(|(_, ends)| *ends > now).map(|(authorization, _)| authorization.clone())
    }

    /// Keeps what works.
    pub(super) fn put(&self, key: TokenKey, authorization: Authorization, ends: Instant, now: Instant) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (_, ends)| *ends > now);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(key, (authorization, ends));
        }
    }

    /// Forgets what has been refused.
    pub(super) fn forget(&self, key: &TokenKey) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Fetches a token for pulling from `repository`, and how long it may be used.
pub(super) async fn fetch(
    http: &Http,
    endpoint: &Endpoint,
    realm: &str,
    service: Option<&str>,
    repository: &str,
    login: Option<&Login>,
) -> Result<(String, Duration), RegistryError> {
    check_realm(endpoint, realm, login.is_some())?;
    let scope = format!("repository:{repository}:pull");
    let endpoint = &realm_endpoint(endpoint, realm);
    let response = match login {
        Some(Login::IdentityToken(refresh)) => {
            let mut form = vec![
                ("grant_type", "refresh_token"),
                ("refresh_token", refresh),
                ("client_id", CLIENT_ID),
                ("scope", &scope),
            ];
            form.extend(service.map(|service| ("service", service)));
            http.post_form(endpoint, realm, &form, login).await?
        }
        Some(Login::Basic { .. } | Login::RegistryToken(_)) | None => {
            let authorization = match login {
                Some(Login::Basic { username, password }) => Authorization::Basic(username.clone(), password.clone()),
                Some(Login::IdentityToken(_) | Login::RegistryToken(_)) | None => Authorization::Anonymous,
            };
            let url = token_url(realm, service, &scope);
            let request = Request {
                method: reqwest::Method::GET,
                endpoint,
                url,
                accept: None,
                range_from: None,
                authorization: &authorization,
                login,
            };
            http.send(request).await.map_err(|refusal| refusal.error)?
        }
    };
    let body = http.body(response, realm, "token", MAX_TOKEN_BODY).await?;
    let malformed = |why: &str| RegistryError::Malformed { url: realm.to_owned(), why: why.to_owned() };
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| malformed("the answer is not a token"))?;
    let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).filter(|t| !t.is_empty());
    let token = token.ok_or_else(|| malformed("the answer has no token"))?;
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(malformed("the token has characters that a header cannot carry"));
    }
    let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs).min(LONGEST_LIFE);
    // What is about to end is not worth keeping; half of a short life is.
    Ok((token, life.saturating_sub(Duration::from_secs(10)).max(life / 2)))
}

/// The registry's own headers are not for its token server. A client certificate is for it where it has the registry's
/// name: one machine, whatever the port.
fn realm_endpoint(endpoint: &Endpoint, realm: &str) -> Endpoint {
    let Ok(url) = reqwest::Url::parse(realm) else { return endpoint.clone() };
    let client = endpoint.client.clone().filter(|_| endpoint.is_named_as(&url));
    Endpoint { client, ..endpoint.elsewhere(&url) }
}

fn token_url(realm: &str, service: Option<&str>, scope: &str) -> String {
    let mut url = format!("{realm}{}scope={}", if realm.contains('?') { '&' } else { '?' }, escape(scope));
    if let Some(service) = service {
        url.push_str("&service=");
        url.push_str(&escape(service));
    }
    url
}

fn check_realm(endpoint: &Endpoint, realm: &str, with_login: bool) -> Result<(), RegistryError> {
    let refuse = |why| RegistryError::Realm { registry: endpoint.base(), realm: realm.to_owned(), why };
    let registry = endpoint.base();
    let (Ok(realm_url), Ok(registry_url)) = (reqwest::Url::parse(realm), reqwest::Url::parse(&registry)) else {
        return Err(refuse("it is not an address"));
    };
    let (Some(asked), Some(own)) = (as_realm(&realm_url), as_realm(&registry_url)) else {
        return Err(refuse("it is not an http or https address"));
    };
    if !realm_url.username().is_empty() || realm_url.password().is_some() {
        return Err(refuse("the address carries a login"));
    }
    realm_allowed(asked, own, &endpoint.token_hosts, with_login).map_err(|refusal| match refusal {
        RealmRefusal::InTheClear => refuse("it is http, the registry is https"),
        RealmRefusal::OtherHost => {
            refuse("a login goes only to its own registry; to allow it, add the host to token_hosts in hosts.toml")
        }
    })
}

fn as_realm(url: &reqwest::Url) -> Option<Realm<'_>> {
    let scheme = url.scheme();
    (scheme == "http" || scheme == "https").then_some(())?;
    Some(Realm { scheme, host: url.host_str()?, port: url.port_or_known_default()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_with_scope_and_service() {
        assert_eq!(
            token_url("https://a/t", Some("s x"), "repository:a/b:pull"),
            "https://a/t?scope=repository%3Aa%2Fb%3Apull&service=s%20x"
        );
        assert_eq!(token_url("https://a/t?x=1", None, "s"), "https://a/t?x=1&scope=s");
    }

    #[test]
    fn refuses_realms_that_are_none() {
        let endpoint = Endpoint::origin("reg.example.com", false, false);
        for realm in ["", "x", "ftp://reg.example.com/t", "https://u:p@reg.example.com/t", "http://reg.example.com/t"] {
            assert!(check_realm(&endpoint, realm, true).is_err(), "{realm}");
        }
        assert!(check_realm(&endpoint, "https://auth.example.com/t", true).is_ok());
    }

    #[test]
    fn another_hosts_token_server_is_shown_no_certificate() {
        let client = Some(("c".into(), None));
        let own = |host| Endpoint { client: client.clone(), ..Endpoint::origin(host, false, true) };
        for (host, realm, is_own) in [
            ("a.local:5000", "https://a.local/token", true),
            ("[::1]:5000", "https://[::1]/token", true),
            ("a.local", "https://auth.a.local/token", false),
        ] {
            let found = realm_endpoint(&own(host), realm);
            assert_eq!((found.client.is_some(), found.skip_verify), (is_own, is_own), "{realm}");
        }
    }

    #[test]
    fn forgets_tokens_when_they_end() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let key = |login: Option<Login>| TokenKey { endpoint: "e".into(), repository: "r".into(), login };
        let ends = now + Duration::from_secs(5);
        tokens.put(key(None), Authorization::Bearer("t".into()), ends, now);
        assert_eq!(tokens.get(&key(None), now), Some(Authorization::Bearer("t".into())));
        assert_eq!(tokens.get(&key(Some(Login::RegistryToken("x".into()))), now), None);
        assert_eq!(tokens.get(&key(None), ends), None);
        tokens.forget(&key(None));
        assert_eq!(tokens.get(&key(None), now), None);
    }
}
