//! The proxies that the environment names: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in either case.

use super::RegistryError;

/// Every host there is, as a list of what is asked directly.
const EVERYBODY: &str = "*, 0.0.0.0/0, ::/0";
/// A proxy that is never asked, for use with [`EVERYBODY`].
const NOBODY: &str = "http://127.0.0.1:9";
/// This host. As Go's clients have it, what is here is never asked through a proxy.
const OURSELVES: &str = "localhost, 127.0.0.0/8, ::1";

/// Which requests go through which proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For https addresses.
    pub https: Option<String>,
    /// For http addresses.
    pub http: Option<String>,
    /// For those of both for which none is named.
    pub all: Option<String>,
    /// Hosts, domains, addresses and networks, parted by commas, that are asked directly; `*` for all.
    pub none: Option<String>,
}

impl Proxies {
    /// What `variable` says; an empty value is none. The name in lower case is looked at where the other is not set.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            [name.to_owned(), name.to_ascii_lowercase()]
                .iter()
                .filter_map(|name| variable(name))
                .map(|value| value.trim().to_owned())
                .find(|value| !value.is_empty())
        };
        Self {
            https: either("HTTPS_PROXY"),
            http: either("HTTP_PROXY"),
            all: either("ALL_PROXY"),
            none: either("NO_PROXY"),
        }
    }

    pub(super) fn to_reqwest(&self) -> Result<Vec<reqwest::Proxy>, RegistryError> {
        // By the host that a request goes to, which after a redirect is not the registry.
        let direct = || reqwest::NoProxy::from_string(&self.direct());
        let made = [
            ("HTTPS_PROXY", self.https.as_deref().map(reqwest::Proxy::https)),
            ("HTTP_PROXY", self.http.as_deref().map(reqwest::Proxy::http)),
            // Behind the others, as the first that fits is taken.
            ("ALL_PROXY", self.all.as_deref().map(reqwest::Proxy::all)),
        ];
        let mut proxies = Vec::new();
        for (variable, proxy) in made {
            let Some(proxy) = proxy else { continue };
            // The address may hold a login, so it is not shown.
            let proxy = proxy.map_err(|_| RegistryError::Proxy { variable })?;
            proxies.push(proxy.no_proxy(direct()));
        }
        Ok(proxies)
    }

    /// The proxies for https and http and what is asked directly, for a client that looks into the environment by itself
    /// when it is given neither proxy.
    pub(super) fn by_scheme(self) -> (Option<String>, Option<String>, Option<String>) {
        let direct = self.direct();
        let (https, http) = (self.https.or_else(|| self.all.clone()), self.http.or(self.all));
        if https.is_none() && http.is_none() {
            return (Some(NOBODY.to_owned()), None, Some(EVERYBODY.to_owned()));
        }
        (https, http, Some(direct))
    }

    /// What is asked directly.
    fn direct(&self) -> String {
        self.none.iter().map(String::as_str).chain([OURSELVES]).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_either_case_and_no_empty_values() {
        let environment =
            [("HTTPS_PROXY", " "), ("https_proxy", "http://p:1"), ("HTTP_PROXY", "http://q"), ("no_proxy", "a,b")];
        let variable =
            |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let owned = |text: &str| Some(text.to_owned());
        let expected = Proxies { https: owned("http://p:1"), http: owned("http://q"), all: None, none: owned("a,b") };
        assert_eq!(Proxies::from_environment(variable), expected);
        assert_eq!(Proxies::from_environment(|_| None), Proxies::default());
    }

    #[test]
    fn where_none_is_named_the_environment_is_not_asked_again() {
        let (https, http, none) = Proxies::default().by_scheme();
        assert!(https.is_some() && http.is_none());
        let everybody = reqwest::NoProxy::from_string(&none.unwrap());
        assert!(everybody.is_some());
        let owned = |text: &str| Some(text.to_owned());
        let all = Proxies { all: owned("http://a"), http: owned("http://h"), none: owned("x"), https: None };
        assert_eq!(all.by_scheme(), (owned("http://a"), owned("http://h"), Some(format!("x, {OURSELVES}"))));
    }

    #[test]
    fn an_address_that_is_none_is_named_by_its_variable_only() {
        let secret = Proxies { https: Some("http://user:secret@[".to_owned()), ..Proxies::default() };
        let text = secret.to_reqwest().unwrap_err().to_string();
        assert!(text.contains("HTTPS_PROXY") && !text.contains("secret"), "{text}");
    }
}
