//! Image references, read by Docker's rules: `nginx` is `docker.io/library/nginx:latest`.
//!
//! Pure: no I/O, no clock, no randomness.

use std::{fmt, str::FromStr};

use crate::digest::Digest;

/// The registry that a reference without one means.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where the default registry's API is served.
const DEFAULT_REGISTRY_API: &str = "registry-1.docker.io";
/// The longest `registry/repository`, as the distribution project has it.
const MAX_NAME: usize = 255;
/// The longest tag, as the distribution specification has it.
const MAX_TAG: usize = 128;

/// A reference in full.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseReferenceError(String);

impl Reference {
    /// `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Host and port at which the registry's API is served.
    pub fn api_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_API } else { &self.registry }
    }

    /// `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, when there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when there is one. It decides over the tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What a registry is asked for: the digest, else the tag.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: &str| ParseReferenceError(why.to_owned());
        if text.is_empty() {
            return Err(refuse("it is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|err| ParseReferenceError(format!("{err}")))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        let (registry, repository) = split_registry(name);
        check_registry(&registry)?;
        check_repository(&repository)?;
        if registry == DEFAULT_REGISTRY && is_image_id(name) {
            return Err(refuse("it is an image id, a name is needed"));
        }
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(refuse("the name is longer than 255 characters"));
        }
        let tag = match tag {
            Some(tag) => Some(check_tag(tag)?),
            None if digest.is_none() => Some("latest".to_owned()),
            None => None,
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

/// A colon after the last slash begins a tag; one before it belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let path_start = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[path_start..].find(':') {
        Some(colon) => (&text[..path_start + colon], Some(&text[path_start + colon + 1..])),
        None => (text, None),
    }
}

/// The first part is a registry when it looks like a host: it has a dot, a port, an upper-case letter, or is `localhost`.
fn split_registry(name: &str) -> (String, String) {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        Some(_) | None => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let path =
        if registry == DEFAULT_REGISTRY && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    (registry.to_owned(), path)
}

fn looks_like_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':', '[']) || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_image_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn check_registry(registry: &str) -> Result<(), ParseReferenceError> {
    let refuse = || ParseReferenceError(format!("{registry:?} is not a registry host"));
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(refuse)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| refuse())?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':').ok_or_else(refuse)?),
            };
            ("", port)
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return Err(refuse());
    }
    let in_brackets = registry.starts_with('[');
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if in_brackets || host.split('.').all(label_ok) { Ok(()) } else { Err(refuse()) }
}

fn check_repository(repository: &str) -> Result<(), ParseReferenceError> {
    if repository.split('/').all(is_path_component) {
        return Ok(());
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ParseReferenceError("repository name must be lowercase".to_owned()));
    }
    Err(ParseReferenceError(format!("{repository:?} is not a repository name")))
}

/// Lower-case letters and digits, parted by one dot, one or two underscores, or any number of dashes.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes
        .split(|&b| alphanumeric(b))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-'))
}

fn check_tag(tag: &str) -> Result<String, ParseReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if ok { Ok(tag.to_owned()) } else { Err(ParseReferenceError(format!("{tag:?} is not a tag"))) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn fills_in_what_docker_fills_in() {
        let digest = format!("sha256:{HEX}");
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.14.2", "docker.io/library/nginx:1.14.2".to_owned()),
            ("bitnami/nginx", "docker.io/bitnami/nginx:latest".to_owned()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/nginx", "localhost/nginx:latest".to_owned()),
            ("localhost:5000/a/b/c:v1", "localhost:5000/a/b/c:v1".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
            ("Registry/nginx", "Registry/nginx:latest".to_owned()),
            (
                "registry.cn-shanghai.aliyuncs.com/eci_open/nginx:1.14.2",
                "registry.cn-shanghai.aliyuncs.com/eci_open/nginx:1.14.2".to_owned(),
            ),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1@{digest}"), format!("docker.io/library/nginx:1@{digest}")),
            ("a__b/c---d/e.f_g", "docker.io/a__b/c---d/e.f_g:latest".to_owned()),
        ] {
            assert_eq!(text.parse::<Reference>().map(|r| r.to_string()), Ok(full), "{text}");
        }
    }

    #[test]
    fn asks_for_the_digest_before_the_tag() {
        let both: Reference = format!("nginx:1@sha256:{HEX}").parse().unwrap();
        assert_eq!(both.target(), format!("sha256:{HEX}"));
        assert_eq!("nginx".parse::<Reference>().unwrap().target(), "latest");
        assert_eq!("nginx".parse::<Reference>().unwrap().api_host(), "registry-1.docker.io");
        assert_eq!("quay.io/a".parse::<Reference>().unwrap().api_host(), "quay.io");
    }

    #[test]
    fn refuses_what_docker_refuses() {
        for text in [
            "",
            " ",
            "nginx:",
            "nginx@",
            "Nginx",
            "nginx:a b",
            "nginx@sha256:00",
            "nginx@md5:00",
            "/nginx",
            "a//b",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:b:c",
            "host:port/a",
            "host:70000/a",
            "a.-b.c/d",
            "[::1/a",
            "[zz]/a",
            ":1",
            "nginx:-x",
            "../../etc/passwd",
            "nginx:1/../2",
            "http://a.b/c",
            HEX,
            "a.b/C",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was taken");
        }
        assert!("a".repeat(256).parse::<Reference>().is_err());
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn what_it_prints_it_reads_as_the_same(
            host in "[a-z]{1,8}(\\.[a-z]{2,4}){0,2}(:[1-9][0-9]{1,3})?/",
            path in "[a-z0-9]{1,6}([._-][a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,2}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}"),
            pinned: bool,
        ) {
            let mut text = format!("{host}{path}");
            if let Some(tag) = tag {
                text = format!("{text}:{tag}");
            }
            if pinned {
                text = format!("{text}@sha256:{HEX}");
            }
            let once: Reference = text.parse().unwrap();
            prop_assert_eq!(once.to_string().parse::<Reference>().unwrap(), once);
        }
    }
}
