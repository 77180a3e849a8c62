//! Blobs through `oci-distribution`: the bulk of what a pull moves.
//!
//! The crate gets its authorization from us and never goes to a realm itself, is never given a descriptor's own addresses
//! (they would lead it anywhere), and its stream is not trusted: the reader verifies.

use std::{io, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use oci_distribution::{
    Client, Reference, RegistryOperation,
    client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciEnvelope, OciErrorCode},
    secrets::RegistryAuth,
    token_cache::RegistryTokenType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    RegistryError,
    hosts::Endpoint,
    http::{Authorization, status_error, transport},
};
use crate::digest::Digest;

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

/// Whether the crate can speak to this endpoint: it knows no client certificates, no further headers, and puts `/v2` where
/// it likes.
pub(super) fn can_serve(endpoint: &Endpoint) -> bool {
    endpoint.client.is_none() && endpoint.headers.is_empty() && split_prefix(&endpoint.prefix).is_some()
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
        endpoint: &Endpoint,
        registry: &str,
        repository: &str,
        authorization: Authorization,
        stall: Duration,
    ) -> Result<Self, RegistryError> {
        let (before, after) = split_prefix(&endpoint.prefix).unwrap_or(("", ""));
        let host = format!("{}{before}", endpoint.host);
        let repository = if after.is_empty() { repository.to_owned() } else { format!("{after}/{repository}") };
        let mut reference = if endpoint.origin {
            Reference::with_tag(host.clone(), repository, "latest".to_owned())
        } else {
            Reference::with_tag(registry.to_owned(), repository, "latest".to_owned())
        };
        if !endpoint.origin {
            reference.set_mirror_registry(host.clone());
        }
        let config = ClientConfig {
            protocol: if endpoint.plain { ClientProtocol::Http } else { ClientProtocol::Https },
            accept_invalid_certificates: endpoint.skip_verify,
            extra_root_certificates: certificates(endpoint)?,
            platform_resolver: None,
            read_timeout: Some(stall),
            connect_timeout: Some(endpoint.dial_timeout),
            user_agent: concat!("larder/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let base = endpoint.base();
        let client = Client::try_from(config).map_err(|err| to_error(err, &base, stall))?;
        match &authorization {
            Authorization::Anonymous => {}
            Authorization::Bearer(token) => {
                client.store_auth_if_needed(&host, &RegistryAuth::Bearer(token.clone())).await;
            }
            // Left to itself, the crate would ask the registry where to send the password.
            Authorization::Basic(username, password) => {
                client.store_auth_if_needed(&host, &RegistryAuth::Anonymous).await;
                let token = RegistryTokenType::Basic(username.clone(), password.clone());
                client.tokens.insert(&reference, RegistryOperation::Pull, token).await;
            }
        }
        Ok(Self { client, reference, authorization, stall })
    }

    /// What it authorizes itself with.
    pub(super) fn authorization(&self) -> &Authorization {
        &self.authorization
    }

    /// Opens a blob. Returns where the stream begins: at `offset`, or at 0.
    pub(super) async fn open(
        &self,
        digest: &Digest,
        offset: u64,
        url: &str,
    ) -> Result<(u64, BoxStream<'static, Result<Bytes, RegistryError>>), RegistryError> {
        let digest = digest.to_string();
        let asking = self.client.pull_blob_stream_partial(&self.reference, digest.as_str(), offset, None);
        let response = match tokio::time::timeout(self.stall, asking).await {
            Ok(response) => response.map_err(|err| to_error(err, url, self.stall))?,
            Err(_) => return Err(RegistryError::Stalled { method: "GET", url: url.to_owned(), after: self.stall }),
        };
        let (begins, sized) = match response {
            BlobResponse::Full(sized) => (0, sized),
            BlobResponse::Partial(sized) => (offset, sized),
        };
        let (url, stall) = (url.to_owned(), self.stall);
        let bytes = sized.stream.map(move |chunk| chunk.map_err(|err| stream_error(err, &url, stall)));
        Ok((begins, bytes.boxed()))
    }
}

fn certificates(endpoint: &Endpoint) -> Result<Vec<Certificate>, RegistryError> {
    let mut all = Vec::new();
    for path in &endpoint.ca {
        let wrong = |why: String| RegistryError::Certificate { path: path.clone(), why };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|err| wrong(err.to_string()))? {
            let certificate = certificate.map_err(|err| wrong(err.to_string()))?;
            all.push(Certificate { encoding: CertificateEncoding::Der, data: certificate.to_vec() });
        }
    }
    Ok(all)
}

fn stream_error(err: io::Error, url: &str, stall: Duration) -> RegistryError {
    let kind = err.kind();
    match err.into_inner().map(|inner| inner.downcast::<reqwest::Error>()) {
        Some(Ok(inner)) => transport("GET", url, *inner, stall),
        Some(Err(inner)) => match inner.downcast::<oci_distribution::errors::DigestError>() {
            Ok(inner) => digest_error(*inner, url),
            Err(inner) => RegistryError::Connection { method: "GET", url: url.to_owned(), cause: inner.to_string() },
        },
        None => RegistryError::Connection { method: "GET", url: url.to_owned(), cause: kind.to_string() },
    }
}

fn digest_error(err: oci_distribution::errors::DigestError, url: &str) -> RegistryError {
    use oci_distribution::errors::DigestError;

    let malformed = |why: String| RegistryError::Malformed { url: url.to_owned(), why };
    match err {
        DigestError::VerificationError { expected, actual } => match (expected.parse(), actual.parse()) {
            (Ok(expected), Ok(actual)) => RegistryError::WrongDigest { url: url.to_owned(), expected, actual },
            _ => malformed(format!("content has digest {actual}, expected {expected}")),
        },
        DigestError::InvalidHeader(_) | DigestError::UnsupportedAlgorithm(_) | DigestError::MissingAlgorithm => {
            malformed(err.to_string())
        }
    }
}

/// The crate keeps the status of some answers only; for the others it follows from the specification's error codes.
fn to_error(err: OciDistributionError, url: &str, stall: Duration) -> RegistryError {
    let status = |code: u16, message: String| {
        let status = reqwest::StatusCode::from_u16(code).unwrap_or(reqwest::StatusCode::BAD_REQUEST);
        status_error("GET", url.to_owned(), status, message, None)
    };
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest are errors of pushing, or say all in their text")]
    match err {
        OciDistributionError::RequestError(err) => transport("GET", url, err, stall),
        OciDistributionError::UnauthorizedError { .. } => status(401, String::new()),
        OciDistributionError::ServerError { code, .. } => status(code, String::new()),
        OciDistributionError::RegistryError { envelope, .. } => status(code_of(&envelope), words_of(&envelope)),
        OciDistributionError::DigestError(err) => digest_error(err, url),
        OciDistributionError::IoError(err) => stream_error(err, url, stall),
        other => RegistryError::Malformed { url: url.to_owned(), why: other.to_string() },
    }
}

fn code_of(envelope: &OciEnvelope) -> u16 {
    match envelope.errors.first().map(|error| &error.code) {
        Some(
            OciErrorCode::BlobUnknown
            | OciErrorCode::ManifestUnknown
            | OciErrorCode::ManifestBlobUnknown
            | OciErrorCode::NameUnknown
            | OciErrorCode::NotFound,
        ) => 404,
        Some(OciErrorCode::Unauthorized) => 401,
        Some(OciErrorCode::Denied) => 403,
        Some(OciErrorCode::Toomanyrequests) => 429,
        _ => 400,
    }
}

fn words_of(envelope: &OciEnvelope) -> String {
    serde_json::to_vec(envelope).map(|body| super::http::registry_words(&body)).unwrap_or_default()
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
}
