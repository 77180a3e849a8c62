//! Pure: no I/O, no clock, no randomness.
//!
//! Image references under Docker's rules: `nginx` means `docker.io/library/nginx:latest`. Only what matching needs: the
//! repository, and the tag or the digest under which an image is asked for. It never decides where an image is pulled
//! from; that is the host's business.

use std::fmt;

/// The most that a whole reference may measure, in bytes: a repository of 255, a tag of 128 and a digest fit with room.
const MAX_LENGTH: usize = 1024;

/// The longest tag, by the OCI distribution specification.
const MAX_TAG: usize = 128;

/// The longest repository name (host included), by the OCI distribution specification.
const MAX_REPOSITORY: usize = 255;

/// An image reference with nothing left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Registry and path: `docker.io/library/nginx`.
    pub repository: String,
    /// What of the repository is meant.
    pub version: Version,
}

/// The part of a reference after the repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// A tag; `latest` where the user wrote none.
    Tag(String),
    /// A digest, `sha256:...`. Where a reference has both, the tag is a comment: the digest alone says what runs.
    Digest(String),
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("image reference is empty")]
    Empty,
    /// Longer than any registry takes.
    #[error("image reference is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// The repository has a character or a shape that registries refuse.
    #[error("image reference {reference:?} has an invalid repository {repository:?}")]
    Repository {
        /// The whole text.
        reference: String,
        /// The part that is wrong.
        repository: String,
    },
    /// The tag has a character that registries refuse, or is too long.
    #[error("image reference {reference:?} has an invalid tag {tag:?}")]
    Tag {
        /// The whole text.
        reference: String,
        /// The part that is wrong.
        tag: String,
    },
    /// The digest is not `algorithm:hex`.
    #[error("image reference {reference:?} has an invalid digest {digest:?}")]
    Digest {
        /// The whole text.
        reference: String,
        /// The part that is wrong.
        digest: String,
    },
}

impl Reference {
    /// Reads a reference as a user writes it.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > MAX_LENGTH {
            return Err(ReferenceError::TooLong);
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (text, None),
        };
        let (name, tag) = split_tag(named);
        let repository = qualify(name);
        if !is_repository(&repository) {
            return Err(ReferenceError::Repository { reference: text.to_owned(), repository: name.to_owned() });
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag { reference: text.to_owned(), tag: tag.to_owned() });
        }
        let version = match digest {
            Some(digest) if is_digest(digest) => Version::Digest(digest.to_owned()),
            Some(digest) => {
                return Err(ReferenceError::Digest { reference: text.to_owned(), digest: digest.to_owned() });
            }
            None => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { repository, version })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Version::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

/// Splits off the tag: the part after a colon that no slash follows (a colon before a slash belongs to a port).
fn split_tag(named: &str) -> (&str, Option<&str>) {
    match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (named, None),
    }
}

/// Adds what Docker adds: the registry `docker.io`, and its folder `library` for the official images.
fn qualify(name: &str) -> String {
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest),
        _ => ("docker.io", name),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    if host == "docker.io" && !path.contains('/') {
        return format!("{host}/library/{path}");
    }
    format!("{host}/{path}")
}

/// Whether the first part of a name is a registry and not a folder of Docker Hub.
fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.chars().any(|c| c.is_ascii_uppercase())
}

fn is_repository(repository: &str) -> bool {
    let Some((host, path)) = repository.split_once('/') else { return false };
    let host_fits = !host.is_empty()
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']' | '_'));
    repository.len() <= MAX_REPOSITORY && host_fits && path.split('/').all(is_path_part)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, read a little more widely: separators inside, letters and digits at both ends.
fn is_path_part(part: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(is_word)
        && part.ends_with(is_word)
        && part.chars().all(|c| is_word(c) || matches!(c, '.' | '_' | '-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= MAX_TAG && tag.starts_with(is_word) && tag.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    !algorithm.is_empty()
        && algorithm.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '.' | '_' | '-'))
        && hex.len() >= 32
        && hex.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[rstest]
    #[case("nginx", "docker.io/library/nginx:latest")]
    #[case("nginx:1.14.2", "docker.io/library/nginx:1.14.2")]
    #[case("library/nginx", "docker.io/library/nginx:latest")]
    #[case("docker.io/nginx", "docker.io/library/nginx:latest")]
    #[case("index.docker.io/library/nginx", "docker.io/library/nginx:latest")]
    #[case("team/app:v1", "docker.io/team/app:v1")]
    #[case("localhost/app", "localhost/app:latest")]
    #[case("localhost:5000/app", "localhost:5000/app:latest")]
    #[case("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c:x")]
    #[case(
        "registry.cn-shanghai.aliyuncs.com/eci_open/nginx:1.14.2",
        "registry.cn-shanghai.aliyuncs.com/eci_open/nginx:1.14.2"
    )]
    fn tags(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(Reference::parse(text).unwrap().to_string(), expected);
    }

    #[test]
    fn a_digest_makes_the_tag_a_comment() {
        let reference = Reference::parse(&format!("nginx:1.14.2@{DIGEST}")).unwrap();
        assert_eq!(reference.repository, "docker.io/library/nginx");
        assert_eq!(reference.version, Version::Digest(DIGEST.to_owned()));
    }

    #[rstest]
    #[case("")]
    #[case("nginx:")]
    #[case("nginx:a b")]
    #[case("Nginx")]
    #[case("a//b")]
    #[case("/nginx")]
    #[case("nginx@sha256:1234")]
    #[case("nginx@nothing")]
    #[case("https://nginx")]
    #[case(" nginx")]
    fn refused(#[case] text: &str) {
        assert!(Reference::parse(text).is_err(), "{text:?} was taken");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,80}") {
            let _ = Reference::parse(&text);
        }

        #[test]
        fn reading_what_was_written_changes_nothing(text in "[a-z]{1,8}(/[a-z]{1,8}){0,2}(:[a-z0-9]{1,8})?") {
            let reference = Reference::parse(&text).unwrap();
            prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
        }
    }
}
