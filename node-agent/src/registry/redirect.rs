//! Where an answer sends us, and what may be taken along: nothing that is for the registry goes to another host.

use reqwest::{StatusCode, Url};

/// Redirects of one request.
pub(super) const MAX_REDIRECTS: usize = 10;

/// Why a redirect is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The registry is spoken to over TLS, the other address is not.
    InTheClear,
    /// Not an address.
    Senseless,
}

impl Refused {
    /// In words.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::InTheClear => "it redirects from https to http, which is refused",
            Self::Senseless => "it redirects to something that is no http or https address",
        }
    }
}

/// The address that an answer of `from` sends us to; none when it is not a redirect.
pub(super) fn target(from: &Url, status: StatusCode, location: Option<&str>) -> Result<Option<Url>, Refused> {
    let is_redirect = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(location) = location.filter(|_| is_redirect) else { return Ok(None) };
    let mut to = from.join(location).map_err(|_| Refused::Senseless)?;
    if !matches!(to.scheme(), "http" | "https") || to.host_str().is_none() {
        return Err(Refused::Senseless);
    }
    if from.scheme() == "https" && to.scheme() != "https" {
        return Err(Refused::InTheClear);
    }
    // A login in an address would be sent to whoever the registry likes.
    let _ = (to.set_username(""), to.set_password(None));
    to.set_fragment(None);
    Ok(Some(to))
}

/// Whether both are the same host, at the same port.
pub(super) fn same_host(a: &Url, b: &Url) -> bool {
    a.host_str() == b.host_str() && a.port_or_known_default() == b.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn follows_what_is_a_redirect_and_nothing_into_the_clear() {
        let from = url("https://reg.example.com/v2/a/blobs/x");
        for (status, location, expected) in [
            (307, Some("https://cdn.example.com/x?sign=1"), Ok(Some("https://cdn.example.com/x?sign=1"))),
            (302, Some("/elsewhere"), Ok(Some("https://reg.example.com/elsewhere"))),
            (308, Some("//cdn.example.com/x#part"), Ok(Some("https://cdn.example.com/x"))),
            (301, Some("https://user:secret@cdn.example.com/"), Ok(Some("https://cdn.example.com/"))),
            (303, Some("http://cdn.example.com/"), Err(Refused::InTheClear)),
            (307, Some("file:///etc/passwd"), Err(Refused::Senseless)),
            (307, Some("https://["), Err(Refused::Senseless)),
            (307, None, Ok(None)),
            (304, Some("https://cdn.example.com/"), Ok(None)),
            (200, Some("https://cdn.example.com/"), Ok(None)),
        ] {
            let found = target(&from, StatusCode::from_u16(status).unwrap(), location);
            assert_eq!(
                found.as_ref().map(|to| to.as_ref().map(Url::as_str)),
                expected.as_ref().map(|e| *e),
                "{location:?}"
            );
        }
        let plain = url("http://reg.example.com/");
        assert!(target(&plain, StatusCode::FOUND, Some("http://cdn.example.com/")).unwrap().is_some());
    }

    #[test]
    fn another_port_is_another_host() {
        assert!(same_host(&url("https://a/x"), &url("https://a:443/y")));
        assert!(!same_host(&url("http://a/"), &url("https://a/")));
        assert!(!same_host(&url("http://a:1/"), &url("http://a:2/")));
        assert!(!same_host(&url("http://a/"), &url("http://b/")));
    }
}
