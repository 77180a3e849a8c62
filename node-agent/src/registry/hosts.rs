//! Where to ask for a registry's content: containerd's `hosts.toml` layout.
//!
//! `DIR/<host[:port]>/hosts.toml`, else `DIR/_default/hosts.toml`. The file names mirrors in order; the registry itself
//! comes last. It is read at each use, so that a change needs no restart.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use url::Url;

use crate::registry::RegistryError;

/// How long a connection may take to be made when the file does not say.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// One place that serves a registry's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether the connection is in the clear.
    pub plain: bool,
    /// `host` or `host:port`.
    pub host: String,
    /// What stands before `/<repository>/manifests/...`: `/v2`, or what a mirror put in its place.
    pub prefix: String,
    /// Whether it is the registry itself.
    pub origin: bool,
    /// May turn a tag into a digest.
    pub resolve: bool,
    /// May serve content by digest.
    pub pull: bool,
    /// Further certificate authorities, in PEM files.
    pub ca: Vec<PathBuf>,
    /// Client certificate and key, in PEM files; the key may be in the certificate's file.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
    /// Take any certificate.
    pub skip_verify: bool,
    /// Sent with each request.
    pub headers: Vec<(String, String)>,
    /// For making a connection.
    pub dial_timeout: Duration,
    /// Hosts beside its own that may be sent its credentials in exchange for a token.
    pub token_hosts: Vec<String>,
}

impl Endpoint {
    /// The registry itself, as it is spoken to without any configuration.
    pub fn origin(host: &str, plain: bool, skip_verify: bool) -> Self {
        Self {
            plain,
            host: host.to_owned(),
            prefix: "/v2".to_owned(),
            origin: true,
            resolve: true,
            pull: true,
            ca: Vec::new(),
            client: None,
            skip_verify,
            headers: Vec::new(),
            dial_timeout: DIAL_TIMEOUT,
            token_hosts: Vec::new(),
        }
    }

    /// How another host is spoken to on this one's behalf: what this one is shown, and what it is forgiven, is not for
    /// that one. Its authorities may well have signed for both.
    pub(super) fn elsewhere(&self, to: &Url) -> Self {
        let host = to.host_str().unwrap_or_default();
        let host = to.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        // One machine has one certificate, whatever the port.
        let skip_verify = self.skip_verify && self.is_named_as(to);
        Self { plain: to.scheme() == "http", host, client: None, skip_verify, headers: Vec::new(), ..self.clone() }
    }

    /// Whether an address has the name of this host, at whatever port.
    pub(super) fn is_named_as(&self, address: &Url) -> bool {
        Url::parse(&self.base()).is_ok_and(|own| own.host_str() == address.host_str())
    }

    /// `https://host/v2`, for messages and as the start of every address.
    pub fn base(&self) -> String {
        let scheme = if self.plain { "http" } else { "https" };
        format!("{scheme}://{}{}", self.host, self.prefix)
    }
}

/// Whether this is the very host that we run on. Registries there have no certificate as a rule, and nobody can listen in
/// between.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = if let Some(rest) = host.strip_prefix('[') {
        rest.split(']').next().unwrap_or(rest)
    } else {
        host.split(':').next().unwrap_or(host)
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The endpoints for `registry`, in the order in which they are to be tried; `origin` is how the registry itself is spoken
/// to when the file says nothing of it. Blocks.
///
/// # Errors
/// When a file is there that cannot be read or has mistakes: to go round a configured mirror in silence would be worse.
pub fn endpoints(config_dir: Option<&Path>, registry: &str, origin: Endpoint) -> Result<Vec<Endpoint>, RegistryError> {
    let Some(dir) = config_dir else { return Ok(vec![origin]) };
    for folder in folder_names(registry) {
        let path = dir.join(folder).join("hosts.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                return parse(&text, path.parent().unwrap_or(dir), origin)
                    .map_err(|why| RegistryError::HostsFile { path, why });
            }
            Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(err) => return Err(RegistryError::HostsFile { path, why: err.to_string() }),
        }
    }
    Ok(vec![origin])
}

/// The folders that may speak of a registry. The one with underscores is for file systems that do not take a colon.
fn folder_names(registry: &str) -> Vec<String> {
    let mut names = vec![registry.to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':').filter(|_| !registry.ends_with(']')) {
        names.push(format!("{host}_{port}_"));
    }
    names.push("_default".to_owned());
    names
}

#[derive(Debug, Deserialize)]
struct HostsFile {
    server: Option<String>,
    /// A table has no order, so each key remembers where in the file it stands.
    #[serde(default)]
    host: BTreeMap<toml::Spanned<String>, HostSettings>,
}

#[derive(Debug, Default, Clone, Deserialize)]
struct HostSettings {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<toml::Value>,
    skip_verify: Option<bool>,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    dial_timeout: Option<String>,
    #[serde(default)]
    token_hosts: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Reads a `hosts.toml`. File names in it are relative to `dir`; the order of the host tables is the order of trial.
fn parse(text: &str, dir: &Path, origin: Endpoint) -> Result<Vec<Endpoint>, String> {
    let file: HostsFile = toml::from_str(text).map_err(|err| err.to_string())?;
    // What stands at the top, beside `server`, is of the registry itself.
    let own: HostSettings = toml::from_str(text).map_err(|err| err.to_string())?;
    let mut hosts: Vec<_> = file.host.into_iter().collect();
    hosts.sort_by_key(|(address, _)| address.span().start);
    let mut endpoints = Vec::new();
    for (address, settings) in hosts {
        endpoints.push(endpoint(address.get_ref(), settings, dir, None)?);
    }
    let last = match &file.server {
        Some(address) => endpoint(address, own, dir, Some(&origin))?,
        None => endpoint_settings(origin, own, dir)?,
    };
    endpoints.push(last);
    Ok(endpoints)
}

/// An endpoint from its address and settings. `origin` is set when it is the registry's own entry.
fn endpoint(address: &str, settings: HostSettings, dir: &Path, origin: Option<&Endpoint>) -> Result<Endpoint, String> {
    let (plain, rest) = match (address.strip_prefix("http://"), address.strip_prefix("https://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => (false, address),
    };
    let (host, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    if host.is_empty() || host.contains(['@', '?', '#', ' ']) {
        return Err(format!("{address:?} is not an address"));
    }
    let path = path.trim_end_matches('/');
    // An empty path, too, stands for itself where it is overridden, as containerd has it.
    let prefix = if settings.override_path || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
    let mut made = Endpoint::origin(host, plain, origin.is_some_and(|o| o.skip_verify && o.host == host));
    made.origin = origin.is_some();
    made.prefix = prefix;
    endpoint_settings(made, settings, dir)
}

fn endpoint_settings(mut made: Endpoint, settings: HostSettings, dir: &Path) -> Result<Endpoint, String> {
    // None at all are all of them, as containerd has it.
    if let Some(capabilities) = settings.capabilities.filter(|all| !all.is_empty()) {
        (made.pull, made.resolve) = (false, false);
        for capability in capabilities {
            match capability.to_ascii_lowercase().as_str() {
                "pull" => made.pull = true,
                "resolve" => made.resolve = true,
                // Nothing is pushed from here.
                "push" => {}
                _ => return Err(format!("{capability:?} is no capability: pull, resolve or push")),
            }
        }
    }
    if let Some(ca) = settings.ca {
        made.ca = ca.into_vec().into_iter().map(|file| dir.join(file)).collect();
    }
    if let Some(client) = settings.client {
        made.client = client_pair(&client, dir)?;
    }
    if let Some(skip_verify) = settings.skip_verify {
        made.skip_verify = skip_verify;
    }
    if let Some(text) = settings.dial_timeout {
        made.dial_timeout = humantime::parse_duration(&text).map_err(|err| format!("dial_timeout {text:?}: {err}"))?;
    }
    made.headers = settings
        .header
        .into_iter()
        .flat_map(|(name, values)| values.into_vec().into_iter().map(move |value| (name.clone(), value)))
        .collect();
    made.token_hosts = settings.token_hosts;
    Ok(made)
}

/// `"file"`, `["file"]` or `[["certificate", "key"]]`. More than one is refused: containerd shows the one whose authority the
/// host names, which the client used here cannot, and to show the wrong one in silence would be worse.
fn client_pair(value: &toml::Value, dir: &Path) -> Result<Option<(PathBuf, Option<PathBuf>)>, String> {
    let wrong = || "client is a file, or a list of [certificate, key] pairs".to_owned();
    let first = match value {
        toml::Value::String(file) => return Ok(Some((dir.join(file), None))),
        toml::Value::Array(list) => match list.as_slice() {
            [] => return Ok(None),
            [first] => first,
            [_, ..] => return Err(format!("client has {} certificates, but only one can be used", list.len())),
        },
        toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_)
        | toml::Value::Table(_) => return Err(wrong()),
    };
    if let Some(file) = first.as_str() {
        return Ok(Some((dir.join(file), None)));
    }
    let pair: Vec<&str> = first
        .as_array()
        .ok_or_else(wrong)?
        .iter()
        .map(|part| part.as_str().ok_or_else(wrong))
        .collect::<Result<_, _>>()?;
    match pair.as_slice() {
        [certificate] | [certificate, ""] => Ok(Some((dir.join(certificate), None))),
        [certificate, key] => Ok(Some((dir.join(certificate), Some(dir.join(key))))),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Endpoint> {
        parse(text, Path::new("/etc/r"), Endpoint::origin("registry.example.com", false, false)).unwrap()
    }

    #[test]
    fn takes_mirrors_in_the_order_of_the_file_and_the_registry_last() {
        let all = read(
            r#"
            server = "https://registry.example.com"
            [host."http://z.local:5000"]
              capabilities = ["pull", "resolve"]
            [host."https://a.local"]
              capabilities = ["pull"]
              ca = "a.crt"
              skip_verify = true
            "#,
        );
        let bases: Vec<_> = all.iter().map(Endpoint::base).collect();
        assert_eq!(bases, ["http://z.local:5000/v2", "https://a.local/v2", "https://registry.example.com/v2"]);
        assert_eq!(
            all.iter().map(|e| (e.resolve, e.pull, e.origin)).collect::<Vec<_>>(),
            [(true, true, false), (false, true, false), (true, true, true)]
        );
        assert_eq!(all[1].ca, [PathBuf::from("/etc/r/a.crt")]);
        assert!(all[1].skip_verify && !all[0].skip_verify);
    }

    #[test]
    fn puts_v2_after_a_path_unless_the_path_is_overridden() {
        let all = read(
            r#"
            [host."https://one.local/cache"]
            [host."https://two.local/v2/hub-proxy/"]
              override_path = true
            [host."https://three.local/x/v2"]
            [host."https://four.local"]
              override_path = true
            [host."https://five.local/"]
            "#,
        );
        let bases: Vec<_> = all.iter().map(Endpoint::base).collect();
        assert_eq!(
            bases,
            [
                "https://one.local/cache/v2",
                "https://two.local/v2/hub-proxy",
                "https://three.local/x/v2",
                "https://four.local",
                "https://five.local/v2",
                "https://registry.example.com/v2"
            ]
        );
    }

    #[test]
    fn a_host_can_do_what_the_file_says_and_all_where_it_does_not() {
        for (text, expected) in [
            ("", (true, true)),
            ("capabilities = []", (true, true)),
            (r#"capabilities = ["pull", "push"]"#, (true, false)),
            (r#"capabilities = ["Resolve"]"#, (false, true)),
            (r#"capabilities = ["push"]"#, (false, false)),
        ] {
            let all = read(&format!("[host.\"https://a.local\"]\n{text}"));
            assert_eq!((all[0].pull, all[0].resolve), expected, "{text}");
        }
    }

    #[test]
    fn reads_every_form_of_a_client_certificate() {
        for (text, expected) in [
            (r#""a.pem""#, Some(("a.pem", None))),
            (r#"["a.pem"]"#, Some(("a.pem", None))),
            (r#"[["a.crt", "a.key"]]"#, Some(("a.crt", Some("a.key")))),
            (r#"[["a.pem", ""]]"#, Some(("a.pem", None))),
            ("[]", None),
        ] {
            let all = read(&format!("[host.\"https://a.local\"]\nclient = {text}"));
            let expected = expected.map(|(crt, key): (&str, Option<&str>)| {
                (Path::new("/etc/r").join(crt), key.map(|key| Path::new("/etc/r").join(key)))
            });
            assert_eq!(all[0].client, expected, "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong_with_a_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("_default")).unwrap();
        let origin = || Endpoint::origin("a.local:1", false, false);
        for text in [
            "server = 1",
            "x = [",
            "[host.\"https://\"]",
            "[host.\"https://a\"]\ndial_timeout = \"soon\"",
            "[host.\"https://a\"]\nclient = 1",
            "[host.\"https://a\"]\nclient = [[\"a\", \"b\"], [\"c\", \"d\"]]",
            "[host.\"https://a\"]\ncapabilities = [\"fly\"]",
        ] {
            std::fs::write(dir.path().join("_default/hosts.toml"), text).unwrap();
            let found = endpoints(Some(dir.path()), "a.local:1", origin());
            assert!(matches!(found, Err(RegistryError::HostsFile { .. })), "{text}: {found:?}");
        }
    }

    #[test]
    fn another_host_is_shown_and_forgiven_nothing() {
        let pair = Some((PathBuf::from("c"), None));
        let headers = vec![("x-key".to_owned(), "secret".to_owned())];
        for (host, to, skip_verify) in [
            ("a.local:5000", "https://b.local/x", false),
            ("a.local:5000", "http://a.local.b.local:5000/x", false),
            ("a.local:5000", "https://a.local/x", true),
            ("[::1]:5000", "https://[::1]:5001/x", true),
            ("[::1]:5000", "https://[::2]:5000/x", false),
        ] {
            let own =
                Endpoint { client: pair.clone(), headers: headers.clone(), ..Endpoint::origin(host, false, true) };
            let found = own.elsewhere(&to.parse().unwrap());
            assert_eq!((found.client, found.headers, found.skip_verify), (None, vec![], skip_verify), "{host} {to}");
            assert!(
                to.starts_with(&format!("{}://{}/", if found.plain { "http" } else { "https" }, found.host)),
                "{to}"
            );
        }
    }

    #[test]
    fn knows_this_very_host() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "127.9.9.9"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["registry-1.docker.io", "localhost.evil.org", "10.0.0.1:5000", "[fe80::1]"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn finds_the_folder_of_a_registry_before_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let write = |folder: &str, host: &str| {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
            std::fs::write(dir.path().join(folder).join("hosts.toml"), format!("[host.\"https://{host}\"]\n")).unwrap();
        };
        let first = || {
            endpoints(Some(dir.path()), "a.local:1", Endpoint::origin("a.local:1", false, false)).unwrap()[0]
                .host
                .clone()
        };
        assert_eq!(first(), "a.local:1");
        write("_default", "default");
        assert_eq!(first(), "default");
        write("a.local_1_", "underscores");
        assert_eq!(first(), "underscores");
        write("a.local:1", "colon");
        assert_eq!(first(), "colon");
    }
}
