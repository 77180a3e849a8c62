//! The kubelet's `CredentialProviderConfig`, and what the programs that it names are asked and answer.
//!
//! Pure: no I/O, no clock, no randomness.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Credential, Login};

/// The versions of the protocol that we speak; they do not differ in what we use.
const PROTOCOLS: [&str; 2] = ["credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1"];
/// The versions of the configuration.
const CONFIGS: [&str; 2] = ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1"];

/// One program that gives out logins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Provider {
    /// The program's file name.
    pub(super) name: String,
    /// For which images it is asked.
    pub(super) match_images: Vec<String>,
    /// How long an answer is kept that does not say.
    pub(super) default_cache_duration: Duration,
    /// The version of the protocol that it speaks.
    pub(super) api_version: String,
    pub(super) args: Vec<String>,
    /// Put on top of our own environment.
    pub(super) env: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Vec<RawProvider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProvider {
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<RawVariable>,
    token_attributes: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct RawVariable {
    name: String,
    #[serde(default)]
    value: String,
}

/// Reads a configuration, YAML or JSON.
///
/// # Errors
/// In words that name the field.
pub(super) fn read(text: &str) -> Result<Vec<Provider>, String> {
    let raw: RawConfig = serde_saphyr::from_str(text).map_err(|err| err.to_string())?;
    if raw.kind != "CredentialProviderConfig" || !CONFIGS.contains(&raw.api_version.as_str()) {
        let found = format!("{} of {}", raw.kind, raw.api_version);
        return Err(format!("it is {found}, not CredentialProviderConfig of {}", CONFIGS.join(" or ")));
    }
    if raw.providers.is_empty() {
        return Err("providers is empty".to_owned());
    }
    let mut providers: Vec<Provider> = Vec::with_capacity(raw.providers.len());
    for (index, one) in raw.providers.into_iter().enumerate() {
        let checked = provider(one).map_err(|why| format!("providers[{index}]{why}"))?;
        if providers.iter().any(|other| other.name == checked.name) {
            return Err(format!("providers[{index}].name: {:?} is there twice", checked.name));
        }
        providers.push(checked);
    }
    Ok(providers)
}

fn provider(raw: RawProvider) -> Result<Provider, String> {
    let name_ok = !raw.name.is_empty() && !matches!(raw.name.as_str(), "." | "..") && !raw.name.contains(['/', ' ']);
    if !name_ok {
        return Err(format!(".name: {:?} is not the name of a program", raw.name));
    }
    if !PROTOCOLS.contains(&raw.api_version.as_str()) {
        return Err(format!(".apiVersion: {:?} is not {}", raw.api_version, PROTOCOLS.join(" or ")));
    }
    if raw.match_images.is_empty() {
        return Err(".matchImages is empty".to_owned());
    }
    if raw.token_attributes.is_some() {
        return Err(".tokenAttributes: service account tokens are not given to credential providers".to_owned());
    }
    let text = raw.default_cache_duration.ok_or(".defaultCacheDuration is missing")?;
    let default_cache_duration = go_duration(&text)
        .ok_or_else(|| format!(".defaultCacheDuration: {text:?} is no duration, like 10m or 1h30m"))?;
    Ok(Provider {
        name: raw.name,
        match_images: raw.match_images,
        default_cache_duration,
        api_version: raw.api_version,
        args: raw.args,
        env: raw.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    api_version: &'a str,
    kind: &'static str,
    image: &'a str,
}

/// What a program is asked on its standard input.
pub(super) fn question(provider: &Provider, image: &str) -> Vec<u8> {
    let question = Question { api_version: &provider.api_version, kind: "CredentialProviderRequest", image };
    // Three texts always make a JSON object.
    serde_json::to_vec(&question).unwrap_or_default()
}

/// For which other images an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum CacheKeyType {
    /// This one only.
    Image,
    /// All of its registry.
    Registry,
    /// All that the program is asked for.
    Global,
}

/// What a program has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) credentials: Vec<Credential>,
    pub(super) cache_key_type: CacheKeyType,
    /// Zero: it is good for this once.
    pub(super) cache_duration: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawAnswer {
    api_version: String,
    kind: String,
    cache_key_type: CacheKeyType,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, RawAuth>>,
}

#[derive(Deserialize)]
struct RawAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Reads an answer.
///
/// # Errors
/// In words that hold nothing of the answer's logins.
pub(super) fn answer(provider: &Provider, json: &[u8]) -> Result<Answer, &'static str> {
    let raw: RawAnswer = serde_json::from_slice(json).map_err(|_| "its answer is not a CredentialProviderResponse")?;
    if raw.kind != "CredentialProviderResponse" || raw.api_version != provider.api_version {
        return Err("its answer is of another kind or version than it was asked in");
    }
    let cache_duration = match raw.cache_duration {
        Some(text) => go_duration(&text).ok_or("the cacheDuration of its answer is no duration")?,
        None => provider.default_cache_duration,
    };
    let auth = raw.auth.unwrap_or_default().into_iter();
    let credentials = auth.map(|(registry, RawAuth { username, password })| Credential {
        registry,
        login: Login::Basic { username, password },
    });
    Ok(Answer { credentials: credentials.collect(), cache_key_type: raw.cache_key_type, cache_duration })
}

/// A duration as Go writes it (`1h30m`, `1.5h`, `10m0s`, `0`), never a negative one.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut total, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = next;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: &str = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: acr-credential-provider
  matchImages: ["*.azurecr.io", "registry.example.com/team"]
  defaultCacheDuration: "1h30m"
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: [get-credentials]
  env:
  - {name: REGION, value: cn-shanghai}
"#;

    #[test]
    fn reads_the_kubelets_file() {
        let providers = read(CONFIG).unwrap();
        let [provider] = &providers[..] else { panic!("{providers:?}") };
        assert_eq!(provider.name, "acr-credential-provider");
        assert_eq!(provider.match_images, ["*.azurecr.io", "registry.example.com/team"]);
        assert_eq!(provider.default_cache_duration, Duration::from_secs(5400));
        assert_eq!(provider.env, [("REGION".to_owned(), "cn-shanghai".to_owned())]);
        let asked = String::from_utf8(question(provider, "a.azurecr.io/b")).unwrap();
        let expected = r#"{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"a.azurecr.io/b"}"#;
        assert_eq!(asked, expected);
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        for (from, to, words) in [
            ("CredentialProviderConfig", "Pod", "it is Pod of kubelet.config.k8s.io/v1"),
            ("acr-credential-provider", "../../bin/sh", "providers[0].name: \"../../bin/sh\""),
            ("defaultCacheDuration: \"1h30m\"", "", "providers[0].defaultCacheDuration is missing"),
            ("1h30m", "soon", "providers[0].defaultCacheDuration: \"soon\" is no duration"),
            ("credentialprovider.kubelet.k8s.io/v1", "v2", "providers[0].apiVersion: \"v2\""),
            (r#"["*.azurecr.io", "registry.example.com/team"]"#, "[]", "providers[0].matchImages is empty"),
            ("args: [get-credentials]", "tokenAttributes: {}", "providers[0].tokenAttributes: service account tokens"),
        ] {
            let text = CONFIG.replace(from, to);
            assert_ne!(text, CONFIG, "{from}");
            let why = read(&text).unwrap_err();
            assert!(why.contains(words), "{words}: {why}");
        }
        let twice = format!("{CONFIG}{}", &CONFIG[CONFIG.find("- name: acr").unwrap()..]);
        assert!(read(&twice).unwrap_err().contains("is there twice"));
    }

    #[test]
    fn reads_answers() {
        let provider = &read(CONFIG).unwrap()[0];
        let answered = |more: &str| {
            let json = format!(
                r#"{{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse",{more}}}"#
            );
            answer(provider, json.as_bytes())
        };
        let full = answered(
            r#""cacheKeyType":"Registry","cacheDuration":"10m0s","auth":{"*.azurecr.io":{"username":"u","password":"p"}}"#,
        );
        let full = full.unwrap();
        assert_eq!((full.cache_key_type, full.cache_duration), (CacheKeyType::Registry, Duration::from_secs(600)));
        assert_eq!(full.credentials[0].registry, "*.azurecr.io");
        let login = Login::Basic { username: "u".to_owned(), password: "p".to_owned() };
        assert!(full.credentials[0].login == login);
        let short = answered(r#""cacheKeyType":"Global""#).unwrap();
        assert_eq!((short.credentials.len(), short.cache_duration), (0, Duration::from_secs(5400)));
        for wrong in [r#""cacheKeyType":"Planet""#, r#""cacheKeyType":"Image","cacheDuration":"soon""#, r#""auth":{}"#]
        {
            assert!(answered(wrong).is_err(), "{wrong}");
        }
        let other = r#"{"apiVersion":"credentialprovider.kubelet.k8s.io/v2","kind":"CredentialProviderResponse","cacheKeyType":"Image"}"#;
        assert!(answer(provider, other.as_bytes()).is_err());
    }

    #[test]
    fn reads_durations_as_go_writes_them() {
        for (text, millis) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("10m0s", Some(600_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5h", Some(5_400_000)),
            ("250ms", Some(250)),
            ("12h", Some(43_200_000)),
            ("", None),
            ("10", None),
            ("m", None),
            ("-5m", None),
            ("1d", None),
            ("1.2.3s", None),
        ] {
            assert_eq!(go_duration(text).map(|found| found.as_millis()), millis, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,60}", duration in "[0-9.]{0,30}[hms]{0,2}[0-9]{0,3}[a-z]?") {
            let _ = read(&text);
            let _ = go_duration(&duration);
        }
    }
}
