//! What an answer that is not the one hoped for means, and a registry's own words about it.

use std::time::Duration;

use super::RegistryError;

/// Of a registry's own words, more does not fit into an event.
const MAX_MESSAGE: usize = 300;

/// An error from an HTTP status.
pub(super) fn status_error(
    method: &'static str,
    url: String,
    status: reqwest::StatusCode,
    message: String,
    retry_after: Option<Duration>,
) -> RegistryError {
    let code = status.as_u16();
    let status = status.to_string();
    match code {
        401 | 403 => RegistryError::Unauthorized { method, url, status, message, logins: 0, notes: Vec::new() },
        404 => RegistryError::NotFound { method, url, status, message },
        _ => RegistryError::Status { method, url, status, code, message, retry_after },
    }
}

/// An error from the status of a host that the registry has sent us to. That host knows no logins, so whatever it says is
/// not about them.
pub(super) fn redirected_error(
    method: &'static str,
    url: String,
    to: &str,
    status: reqwest::StatusCode,
    message: String,
    retry_after: Option<Duration>,
) -> RegistryError {
    let code = status.as_u16();
    let status = format!("{status} from {to}, where it redirects to");
    RegistryError::Status { method, url, status, code, message, retry_after }
}

/// An error from below HTTP.
pub(super) fn transport(method: &'static str, url: &str, err: reqwest::Error, stall: Duration) -> RegistryError {
    if err.is_timeout() && !err.is_connect() {
        return RegistryError::Stalled { method, url: url.to_owned(), after: stall };
    }
    let err = err.without_url();
    // The outermost text says "error sending request"; what is below it says why.
    let mut cause = String::new();
    let mut next = std::error::Error::source(&err);
    while let Some(source) = next {
        let text = source.to_string();
        if !cause.ends_with(&text) {
            if !cause.is_empty() {
                cause.push_str(": ");
            }
            cause.push_str(&text);
        }
        next = source.source();
    }
    if cause.is_empty() {
        cause = err.to_string();
    }
    RegistryError::Connection { method, url: url.to_owned(), cause }
}

/// The messages of an error body in the form of the distribution specification. Any other body is not shown: it may come
/// from anywhere that a redirect leads to.
pub(super) fn registry_words(body: &[u8]) -> String {
    let Ok(serde_json::Value::Object(body)) = serde_json::from_slice(body) else { return String::new() };
    let words: Vec<&str> = match body.get("errors").and_then(serde_json::Value::as_array) {
        Some(errors) => errors
            .iter()
            .filter_map(|error| {
                let field = |name| error.get(name).and_then(serde_json::Value::as_str).filter(|text| !text.is_empty());
                field("message").or_else(|| field("code"))
            })
            .collect(),
        None => body.get("details").and_then(serde_json::Value::as_str).into_iter().collect(),
    };
    words.join(", ").chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_words_of_registries_and_nothing_else() {
        for (body, words) in [
            (r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#, "manifest unknown"),
            (r#"{"errors":[{"code":"DENIED","message":""},{"code":"X","message":"y"}]}"#, "DENIED, y"),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            ("<html>secret</html>", ""),
            (r#"{"errors":"no list"}"#, ""),
            ("", ""),
        ] {
            assert_eq!(registry_words(body.as_bytes()), words, "{body}");
        }
    }
}
