//! The proxy in front of a registry that knows one blob.

use super::*;
use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CONTENT: &[u8] = b"twenty-four bytes of it.";

/// A registry that knows one blob, and a proxy in front of it.
async fn proxy(tasks: &mut JoinSet<()>) -> RegistryProxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let router = Router::new().route("/v2/a/b/blobs/{digest}", get(async || CONTENT));
    tasks.spawn(async move { drop(axum::serve(listener, router).await) });
    RegistryProxy::start(upstream).await.unwrap()
}

/// Everything that arrives for a GET, and how the connection ended.
async fn fetch(proxy: &RegistryProxy, path: &str, more: &str) -> (String, io::Result<()>) {
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: registry\r\nconnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap();
    (String::from_utf8_lossy(&answer).into_owned(), ended.map(drop))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn what_no_rule_fits_is_passed_on_and_counted() {
    let mut tasks = JoinSet::new();
    let proxy = proxy(&mut tasks).await;
    proxy.add("other", Rule::every(Kind::Blob, Fault::Status(StatusCode::NOT_FOUND)));
    proxy.add("a/b", Rule::every(Kind::Manifest, Fault::Status(StatusCode::NOT_FOUND)));
    proxy.add("a/b", Rule::every(Kind::Blob, Fault::Status(StatusCode::NOT_FOUND)).of("sha256:2"));
    let (answer, _) = fetch(&proxy, "/v2/a/b/blobs/sha256:1", "range: bytes=0-\r\n").await;
    assert_eq!(body(&answer).as_bytes(), CONTENT);
    assert_eq!((proxy.count("a/b", Kind::Blob), proxy.count("a/b", Kind::Manifest)), (1, 0));
    let seen = proxy.seen();
    assert_eq!((seen[0].reference.as_str(), seen[0].range.as_deref()), ("sha256:1", Some("bytes=0-")));
    proxy.wait_for(Duration::from_secs(1), |seen| seen.len() == 1).await.unwrap();
    proxy.forget();
    assert!(proxy.seen().is_empty());
    assert!(proxy.wait_for(Duration::from_millis(10), |seen| !seen.is_empty()).await.is_err());
}

#[tokio::test]
async fn bodies_are_spoiled_as_told() {
    let mut tasks = JoinSet::new();
    let proxy = proxy(&mut tasks).await;
    let slow = Fault::Drip { piece: 7, pause: Duration::from_millis(1) };
    for (fault, wanted, clean) in [
        (Fault::FlipByte { at: 0 }, &b"uwenty-four bytes of it."[..], true),
        (Fault::FlipByte { at: 23 }, &b"twenty-four bytes of it/"[..], true),
        (Fault::Truncate { after: 6 }, &b"twenty"[..], true),
        (slow, CONTENT, true),
        (Fault::Reset { after: 0 }, &b""[..], false),
    ] {
        proxy.add("a/b", Rule::every(Kind::Blob, fault.clone()));
        let (answer, ended) = fetch(&proxy, "/v2/a/b/blobs/sha256:1", "").await;
        assert_eq!(body(&answer).as_bytes(), wanted, "{fault:?}");
        assert_eq!(ended.is_ok(), clean, "{fault:?}: {ended:?}");
        if clean {
            assert!(answer.contains("content-length: 24"), "{fault:?}: {answer}");
        }
        proxy.heal("a/b");
    }
    let (answer, _) = fetch(&proxy, "/v2/a/b/blobs/sha256:1", "").await;
    assert_eq!(body(&answer).as_bytes(), CONTENT);
}

#[tokio::test]
async fn refusals_come_in_order_and_run_out() {
    let mut tasks = JoinSet::new();
    let proxy = proxy(&mut tasks).await;
    proxy.add("a/b", Rule::every(Kind::Blob, Fault::TooManyRequests { retry_after: 3 }).times(1));
    proxy.add("a/b", Rule::every(Kind::Blob, Fault::Status(StatusCode::BAD_GATEWAY)).times(1));
    let credentials = Fault::Credentials { username: "u".to_owned(), password: "p".to_owned() };
    proxy.add("a/b", Rule::every(Kind::Blob, credentials));
    let mut answers = Vec::new();
    for more in ["", "", "", "authorization: Basic dTpw\r\n"] {
        answers.push(fetch(&proxy, "/v2/a/b/blobs/sha256:1", more).await.0);
    }
    assert!(answers[0].starts_with("HTTP/1.1 429") && answers[0].contains("retry-after: 3"), "{}", answers[0]);
    assert!(answers[1].starts_with("HTTP/1.1 502"), "{}", answers[1]);
    assert!(answers[2].starts_with("HTTP/1.1 401") && answers[2].contains("www-authenticate"), "{}", answers[2]);
    assert_eq!(body(&answers[3]).as_bytes(), CONTENT);
    let faults: Vec<bool> = proxy.seen().iter().map(|seen| seen.fault.is_some()).collect();
    assert_eq!(faults, [true, true, true, false]);
}

#[tokio::test]
async fn answers_of_its_own_are_given_as_told() {
    let mut tasks = JoinSet::new();
    let proxy = proxy(&mut tasks).await;
    let realm = format!("www-authenticate: Bearer realm=\"http://{}/token\"", proxy.address());
    for (fault, status, words) in [
        (Fault::Replace("another document".into()), "200", "another document"),
        (Fault::Longer { by: 3 }, "200", "content-length: 27\r\n"),
        (Fault::Longer { by: 3 }, "200", "bytes of it.\0\0\0"),
        (Fault::Redirect { to: "http://b:1".to_owned() }, "307", "location: http://b:1/v2/a/b/blobs/sha256:1?x=y\r\n"),
        (Fault::TokenLoop, "401", realm.as_str()),
    ] {
        proxy.add("a/b", Rule::every(Kind::Blob, fault.clone()));
        let (answer, _) = fetch(&proxy, "/v2/a/b/blobs/sha256:1?x=y", "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(words), "{fault:?}: {answer}");
        proxy.heal("a/b");
    }
    assert!(fetch(&proxy, "/token?scope=x", "").await.0.contains("never-good-enough"));
}

#[tokio::test]
async fn an_endless_body_comes_until_the_client_has_enough() {
    let mut tasks = JoinSet::new();
    let proxy = proxy(&mut tasks).await;
    proxy.add("a/b", Rule::every(Kind::Blob, Fault::Endless(StatusCode::NOT_FOUND)));
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    stream.write_all(b"GET /v2/a/b/blobs/sha256:1 HTTP/1.1\r\nhost: registry\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4 << 20];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 404"));
}

#[test]
fn paths_are_read() {
    for (path, kind, repository, reference) in [
        ("/v2/", Kind::Ping, "", ""),
        ("/v2/eci_open/nginx/manifests/1.14.2", Kind::Manifest, "eci_open/nginx", "1.14.2"),
        ("/v2/manifests/blobs/sha256:1", Kind::Blob, "manifests", "sha256:1"),
        ("/v2/a/tags/list", Kind::Other, "a/tags/list", ""),
        ("/metrics", Kind::Other, "", ""),
    ] {
        assert_eq!(parse(path), (kind, repository.to_owned(), reference.to_owned()), "{path}");
    }
}
