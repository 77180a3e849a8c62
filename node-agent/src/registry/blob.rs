//! Blobs through `oci-distribution`: the bulk of what pulls move.
//!
//! The crate gets the requests that carry nothing secret, and of their answers those that are content. The rest goes over
//! [`super::http`], for these reasons:
//! - It follows redirects by itself, and a header that is taken off at the first hop to another host is back at the second
//!   one there. So it never sees a login, nor a token that a login was shown for.
//! - Where one host's certificate is not verified, it verifies none of those that it is sent to either.
//! - It knows no client certificates and no further headers, and puts `/v2` where it likes.
//! - It would read the body of an error whole, and keeps the challenge and `Retry-After` to itself.
//!
//! It is never given a descriptor's own addresses, which would lead it anywhere, and its stream is not trusted: the reader
//! verifies. Where a registry knows no ranges, the crate hashes the whole answer as well, and cannot be told not to: that takes
//! the processor a second time, and its verdict is not used.

use std::{future::ready, io, pin::pin, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use oci_distribution::{
    Client, Reference,
    client::{BlobResponse, LayerDescriptor},
    errors::{DigestError, OciDistributionError},
    secrets::RegistryAuth,
};

use super::{
    RegistryError,
    answer::transport,
    connection::TokenFor,
    hosts::Endpoint,
    http::{Authorization, Http},
    range::Promise,
};
use crate::host::memory;

/// By how much the whole process may grow while it waits for the crate to say what an answer is.
const MAX_GROWTH: u64 = 64 << 20;
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A client for the blobs of one repository at one endpoint, with one authorization.
#[derive(Clone)]
pub(super) struct BlobClient {
    client: Client,
    reference: Reference,
    authorization: Authorization,
    stall: Duration,
}

impl std::fmt::Debug for BlobClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobClient").field("reference", &self.reference).finish_non_exhaustive()
    }
}

/// An answer to a request for a blob.
pub(super) enum Answer {
    Content(Promise<'static>, BoxStream<'static, Result<Bytes, RegistryError>>),
    /// Anything else. What it is has to be asked again, over our own path.
    Other,
}

/// Whether the crate can speak to this endpoint.
pub(super) fn can_serve(endpoint: &Endpoint) -> bool {
    let has_own = endpoint.client.is_some() || endpoint.skip_verify || !endpoint.headers.is_empty();
    !has_own && split_prefix(&endpoint.prefix).is_some()
}

/// What stands before `/v2` and after it.
fn split_prefix(prefix: &str) -> Option<(&str, &str)> {
    let end = prefix.len();
    let at =
        prefix.match_indices("/v2").map(|(at, _)| at).find(|at| at + 3 == end || prefix[at + 3..].starts_with('/'))?;
    Some((&prefix[..at], prefix[at + 3..].trim_start_matches('/')))
}

impl BlobClient {
    /// A client for `repository` of `registry` at `endpoint`, for which [`can_serve`] holds.
    pub(super) async fn new(
        http: &Http,
        endpoint: &Endpoint,
        (registry, repository): (&str, &str),
        authorization: Authorization,
    ) -> Result<Self, RegistryError> {
        let (before, after) = split_prefix(&endpoint.prefix).unwrap_or(("", ""));
        let host = format!("{}{before}", endpoint.host);
        let repository = if after.is_empty() { repository.to_owned() } else { format!("{after}/{repository}") };
        let token = match &authorization {
            Authorization::Bearer(token) => Some(token.clone()),
            Authorization::Anonymous | Authorization::Basic(..) => None,
        };
        let of_repository = |token| TokenFor { repository: format!("{host}/{repository}"), token };
        let client = http.package(endpoint, token.clone().map(of_repository)).await?;
        if let Some(token) = token {
            client.store_auth_if_needed(&host, &RegistryAuth::Bearer(token)).await;
        }
        let at = if endpoint.origin { host.clone() } else { registry.to_owned() };
        let mut reference = Reference::with_tag(at, repository, "latest".to_owned());
        if !endpoint.origin {
            reference.set_mirror_registry(host);
        }
        Ok(Self { client, reference, authorization, stall: http.stall() })
    }

    /// What it authorizes itself with.
    pub(super) fn authorization(&self) -> &Authorization {
        &self.authorization
    }

    /// Asks for a blob from `offset` on; `url` is for messages. An error is one below HTTP.
    pub(super) async fn open(&self, digest: &str, offset: u64, url: &str) -> Result<Answer, RegistryError> {
        // No address at all: after an error the crate turns to the further addresses before it reads the body, and gives up.
        let nowhere = Some(vec![String::new()]);
        let layer = LayerDescriptor { digest, urls: &nowhere };
        let asking = self.client.pull_blob_stream_partial(&self.reference, &layer, offset, None);
        let stall = self.stall;
        let answer = tokio::time::timeout(stall, while_small(asking)).await;
        let (partial, sized) = match answer {
            Err(_) => return Err(RegistryError::Stalled { method: "GET", url: url.to_owned(), after: stall }),
            Ok(Some(Ok(BlobResponse::Full(sized)))) => (false, sized),
            Ok(Some(Ok(BlobResponse::Partial(sized)))) => (true, sized),
            Ok(Some(Err(OciDistributionError::RequestError(err)))) if err.is_connect() || err.is_timeout() => {
                return Err(transport("GET", url, err, stall));
            }
            Ok(Some(Err(_)) | None) => return Ok(Answer::Other),
        };
        // The crate does not show `Content-Range`. Bytes of another range are found out when they are verified.
        let promise = Promise { partial, content_range: None, content_length: sized.content_length };
        let url = url.to_owned();
        let bytes = sized
            .stream
            // Its verdict on the whole is the reader's to give, who knows what was before `offset`.
            .take_while(|chunk| ready(!matches!(chunk, Err(err) if is_verdict(err))))
            .map(move |chunk| chunk.map_err(|err| stream_error(err, &url, stall)));
        Ok(Answer::Content(promise, bytes.boxed()))
    }
}

/// Waits for an answer; none when this process has grown too much meanwhile. The body of an answer that is neither content
/// nor an error, such as a redirect to nowhere, is read whole by the crate before it says so, and may have no end.
async fn while_small<T>(asking: impl Future<Output = T>) -> Option<T> {
    let most = memory::resident_bytes().saturating_add(MAX_GROWTH);
    let (mut looks, mut asking) = (tokio::time::interval(LOOK), pin!(asking));
    loop {
        tokio::select! {
            // A body that is always there would use up the turn that the interval needs.
            biased;
            // Safe to drop: it is asked again.
            _ = looks.tick() => {
                if memory::resident_bytes() > most {
                    return None;
                }
            }
            // Not dropped but with this function, and that closes the connection.
            answer = &mut asking => return Some(answer),
        }
    }
}

fn is_verdict(err: &io::Error) -> bool {
    err.get_ref().is_some_and(|inner| inner.is::<DigestError>())
}

fn stream_error(err: io::Error, url: &str, stall: Duration) -> RegistryError {
    let kind = err.kind();
    match err.into_inner().map(|inner| inner.downcast::<reqwest::Error>()) {
        Some(Ok(inner)) => transport("GET", url, *inner, stall),
        Some(Err(inner)) => RegistryError::Connection { method: "GET", url: url.to_owned(), cause: inner.to_string() },
        None => RegistryError::Connection { method: "GET", url: url.to_owned(), cause: kind.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_v2_in_a_prefix() {
        for (prefix, expected) in [
            ("/v2", Some(("", ""))),
            ("/cache/v2", Some(("/cache", ""))),
            ("/v2/hub/proxy", Some(("", "hub/proxy"))),
            ("/v2x/v2", Some(("/v2x", ""))),
            ("/hub", None),
            ("/v2x", None),
        ] {
            assert_eq!(split_prefix(prefix), expected, "{prefix}");
        }
    }

    #[tokio::test]
    async fn what_makes_the_process_grow_is_not_waited_for() {
        let mut taken = Vec::new();
        let greedy = async {
            loop {
                // Written to, or it would take no memory.
                taken.push(vec![1_u8; 1 << 20]);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert_eq!(tokio::time::timeout(Duration::from_secs(60), while_small::<()>(greedy)).await.unwrap(), None);
        assert_eq!(while_small(ready(7)).await, Some(7));
    }
}
