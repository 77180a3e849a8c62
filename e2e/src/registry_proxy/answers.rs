//! Answers of the proxy's own, in place of those of the registry behind it.

use super::Body;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderValue, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use std::io;
use std::net::SocketAddr;

/// Where the proxy gives out tokens.
pub(super) const TOKEN_PATH: &str = "/token";

/// A body that is this text.
pub(super) fn text(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

/// An answer of our own, as a registry gives it.
pub(super) fn refuse(status: StatusCode) -> Response<Body> {
    let code = match status {
        StatusCode::UNAUTHORIZED => "UNAUTHORIZED",
        StatusCode::FORBIDDEN => "DENIED",
        StatusCode::NOT_FOUND => "MANIFEST_UNKNOWN",
        StatusCode::TOO_MANY_REQUESTS => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"the proxy was told to answer {status}"}}]}}"#);
    let mut response = Response::new(text(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"registry proxy\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// A status with a body that does not end.
pub(super) fn endless(status: StatusCode) -> Response<Body> {
    let piece = || Ok::<_, io::Error>(Frame::data(Bytes::from_static(&[b' '; 16 << 10])));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(stream::repeat_with(piece))));
    *response.status_mut() = status;
    response
}

/// A document, as it is.
pub(super) fn document(content: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(content).map_err(|never| match never {}).boxed());
    let kind = HeaderValue::from_static("application/vnd.oci.image.index.v1+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The way to the same path at another host.
pub(super) fn redirect(to: &str, asked: &Uri) -> Response<Body> {
    let mut response = refuse(StatusCode::TEMPORARY_REDIRECT);
    let path = asked.path_and_query().map_or("/", |path| path.as_str());
    // What a request asked for can stand in a header.
    if let Ok(location) = HeaderValue::try_from(format!("{to}{path}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A challenge whose realm is the proxy itself.
pub(super) fn challenge(proxy: SocketAddr) -> Response<Body> {
    let mut response = refuse(StatusCode::UNAUTHORIZED);
    if let Ok(challenge) = HeaderValue::try_from(format!("Bearer realm=\"http://{proxy}{TOKEN_PATH}\"")) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// A token.
pub(super) fn token() -> Response<Body> {
    let mut response = Response::new(text(r#"{"token":"never-good-enough","expires_in":300}"#.to_owned()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer with more bytes than there are.
pub(super) fn longer(response: Response<Body>, by: u64) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = length {
        parts.headers.insert(header::CONTENT_LENGTH, (length + by).into());
    }
    let more = usize::try_from(by).unwrap_or(usize::MAX).min(1 << 20);
    let more = stream::once(async move { Ok(Bytes::from(vec![0; more])) });
    let pieces = body.into_data_stream().chain(more).map(|piece| piece.map(Frame::data));
    Response::from_parts(parts, BodyExt::boxed(StreamBody::new(pieces)))
}
