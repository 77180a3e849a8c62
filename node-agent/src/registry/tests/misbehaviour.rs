//! Registries that lie, drip, loop and never end.

use super::*;

/// How long a test of something endless may take before it counts as endless itself.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_error_body_without_end_is_cut() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("a", "v1", &manifest());
    let blob = registry.put_blob("abc");
    let host = registry.host();
    let image = format!("{host}/a:v1").parse().unwrap();
    let repository = client(None).open(&image, &access(vec![])).await.unwrap();
    for status in [401, 404, 500, 302] {
        registry.fault("", 1000, Fault::Endless(status));
        let asking =
            async { (repository.resolve("v1", Resolve::WithContent).await, open_blob(&repository, &blob, 3, 0).await) };
        let (resolved, opened) = tokio::time::timeout(PATIENCE, asking).await.unwrap();
        let says = |err: RegistryError| {
            let text = err.to_string();
            assert!(text.len() < 400, "{text}");
            (text.contains(&format!(": {status} ")), text)
        };
        let (named, text) = says(resolved.unwrap_err());
        assert!(named, "{text}");
        // A redirect to nowhere is read by `oci-distribution` until it is too much, in size or in time.
        let (named, text) = says(opened.map(|stream| stream.url).unwrap_err());
        assert!(named || status == 302 && text.contains("no data from the registry for 400ms"), "{text}");
        registry.heal();
    }
    repository.resolve("v1", Resolve::WithContent).await.unwrap();
}

#[tokio::test]
async fn what_is_asked_for_by_its_digest_is_that_or_nothing() {
    let (liar, registry) = (TestRegistry::start().await, TestRegistry::start().await);
    let wanted = registry.put_manifest("a", "v1", &manifest());
    let other = liar.put_manifest("a", "other", &json!({"schemaVersion": 2, "config": {}, "layers": [], "x": 1}));
    liar.alias_manifest("a", "other", &wanted.to_string());
    let by_digest = async |client: RegistryClient, image: String| {
        let repository = client.open(&image.parse().unwrap(), &access(vec![])).await.unwrap();
        repository.resolve(&wanted.to_string(), Resolve::DigestOnly).await
    };
    let err = by_digest(client(None), format!("{}/a@{wanted}", liar.host())).await.unwrap_err();
    let is_a_lie =
        matches!(err, RegistryError::WrongDigest { expected, actual, .. } if (expected, actual) == (wanted, other));
    assert!(is_a_lie, "{err}");
    // A mirror that lies is passed over.
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", registry.host(), liar.host());
    let config = mirror_config("images.example.com", &hosts);
    let resolved = by_digest(client(Some(config.path().to_owned())), format!("images.example.com/a@{wanted}")).await;
    assert_eq!((resolved.unwrap().digest, liar.count("HEAD", "manifests")), (wanted, 2));
    // One that says no digest may be anybody, and has to show the content.
    registry.forget_seen();
    registry.fault("manifests", 1, Fault::Status(200, vec![], ""));
    let resolved = by_digest(client(None), format!("{}/a@{wanted}", registry.host())).await.unwrap();
    assert_eq!((resolved.digest, resolved.content.is_some(), registry.seen().len()), (wanted, true, 2));
}

#[tokio::test]
async fn a_manifest_is_bounded_in_size_and_time() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_manifest("a", "v1", &manifest());
    let image = format!("{}/a:v1", registry.host());
    registry.fault("manifests", 1, Fault::Huge(20 << 20));
    let text = resolve(&client(None), &image, &access(vec![])).await.unwrap_err().to_string();
    let url = format!("http://{}/v2/a/manifests/v1", registry.host());
    assert_eq!(text, format!("manifest from {url} is longer than 4194304 bytes"));
    // Each byte comes in time, all of them together do not.
    registry.fault("manifests", 9, Fault::Drip(Duration::from_millis(150)));
    let text = resolve(&client(None), &image, &access(vec![])).await.unwrap_err().to_string();
    assert!(text.starts_with(&format!("manifest from {url} is too slow: ")), "{text}");
    registry.heal();
    // A body that breaks off is another thing, and worth another try.
    registry.fault("manifests", 2, Fault::Cut(5));
    assert_eq!(resolve(&client(None), &image, &access(vec![])).await.unwrap().digest, digest);
}

#[tokio::test]
async fn a_registry_that_is_never_content_with_a_login_is_asked_twice() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("a", "v1", &manifest());
    let image = format!("{}/a:v1", registry.host());
    let challenge = |text: String| Fault::Status(401, vec![("www-authenticate", text)], "no");
    registry.set_door(Door::Bearer("me:secret".into(), None));
    let bearer = format!("Bearer realm=\"http://{}/token\",service=\"test\"", registry.host());
    for challenged in [bearer, "Basic realm=\"x\"".to_owned()] {
        registry.forget_seen();
        registry.fault("manifests", 1000, challenge(challenged.clone()));
        let text = resolve(&client(None), &image, &access(vec![login(&registry.host(), "me")])).await.unwrap_err();
        assert!(text.to_string().contains("the login was refused"), "{text}");
        assert_eq!(registry.count("GET", "manifests"), 2, "{challenged}");
        registry.heal();
    }
    // The token server has a loop of its own.
    registry.forget_seen();
    let again = format!("Bearer realm=\"http://{}/token\"", registry.host());
    registry.fault("token", 1000, challenge(again));
    let text = resolve(&client(None), &image, &access(vec![login(&registry.host(), "me")])).await.unwrap_err();
    assert!(text.to_string().contains("/token?scope="), "{text}");
    assert_eq!((registry.count("GET", "manifests"), registry.count("GET", "token")), (1, 1));
}

#[tokio::test]
async fn another_length_is_seen_before_the_bytes_are_taken() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_blob(vec![7; 1000]);
    let image = format!("{}/a:v1", registry.host()).parse().unwrap();
    let repository = client(None).open(&image, &access(vec![])).await.unwrap();
    for (size, offset, announced) in [(999, 0, 1000), (1001, 0, 1000), (1001, 7, 1000)] {
        let text = open_blob(&repository, &digest, size, offset).await.unwrap_err().to_string();
        assert!(text.ends_with(&format!(" has {announced} bytes, expected {size}")), "{text}");
    }
    registry.fault("blobs", 1, Fault::Announce(5));
    let text = open_blob(&repository, &digest, 1000, 0).await.unwrap_err().to_string();
    assert!(text.ends_with(" has 1005 bytes, expected 1000"), "{text}");
    let err = open_blob(&repository, &digest, 2000, 1500).await.unwrap_err();
    assert!(err.is_wrong_content(), "{err}");
    assert!(err.to_string().contains("416 Range Not Satisfiable: there is less of it"), "{err}");
}

#[tokio::test]
async fn the_first_format_is_refused_by_its_name() {
    let registry = TestRegistry::start().await;
    let host = registry.host();
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let digest = registry.put_manifest("a", "v1", &json!({"schemaVersion": 1, "mediaType": media_type}));
    for target in ["v1".to_owned(), digest.to_string()] {
        let repository = client(None).open(&format!("{host}/a:v1").parse().unwrap(), &access(vec![])).await.unwrap();
        let text = repository.resolve(&target, Resolve::WithContent).await.unwrap_err().to_string();
        assert!(text.contains("schema version 1") && text.contains("push the image again"), "{text}");
    }
}

#[tokio::test]
async fn waits_until_the_date_that_it_is_asked_to() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("a", "v1", &manifest());
    let until = jiff::Timestamp::now() + Duration::from_secs(90);
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&until).unwrap();
    registry.fault("manifests", 9, Fault::Status(503, vec![("retry-after", date)], "down"));
    let err = resolve(&client(None), &format!("{}/a:v1", registry.host()), &access(vec![])).await.unwrap_err();
    let asked = err.retry_after().unwrap().as_secs();
    assert!((80..=90).contains(&asked), "{asked}: {err}");
    assert_eq!(registry.count("GET", "manifests"), 1, "so long a wait is the pod's");
}

#[tokio::test]
async fn a_registry_that_wants_its_peace_is_not_asked_by_the_next_try_either() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("a", "v1", &manifest());
    let blob = registry.put_blob("abc");
    let (client, image) = (client(None), format!("{}/a:v1", registry.host()));
    let asked = |seconds: &str| Fault::Status(429, vec![("retry-after", seconds.to_owned())], "slow down");
    registry.fault("manifests", 1, asked("90"));
    resolve(&client, &image, &access(vec![])).await.unwrap_err();
    let repository = client.open(&image.parse().unwrap(), &access(vec![])).await.unwrap();
    let again = repository.resolve("v1", Resolve::WithContent).await.unwrap_err();
    let text = again.to_string();
    for words in ["429 Too Many Requests", "127.0.0.1", "asked again at 2"] {
        assert!(text.contains(words), "{words} is not in: {text}");
    }
    assert!(again.is_transient() && again.retry_after().unwrap() > Duration::from_secs(80), "{text}");
    let text = open_blob(&repository, &blob, 3, 0).await.unwrap_err().to_string();
    assert!(text.contains("not asked"), "{text}");
    assert_eq!(registry.seen().len(), 1);
    // Whoever has a login of his own has a limit of his own.
    resolve(&client, &image, &access(vec![login(&registry.host(), "me")])).await.unwrap();
    assert_eq!(registry.seen().len(), 2);
    // And its time passes.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(91)).await;
    tokio::time::resume();
    repository.resolve("v1", Resolve::WithContent).await.unwrap();
    assert_eq!(read(open_blob(&repository, &blob, 3, 0).await.unwrap()).await.unwrap(), b"abc");
}

#[tokio::test]
async fn a_mirror_that_may_recover_is_asked_again_though_the_registry_has_nothing() {
    let (mirror, origin) = (TestRegistry::start().await, TestRegistry::start().await);
    let digest = mirror.put_manifest("a", "v1", &manifest());
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", origin.host(), mirror.host());
    let config = mirror_config("images.example.com", &hosts);
    mirror.fault("manifests", 1, Fault::Status(503, vec![], ""));
    let resolved = resolve(&client(Some(config.path().to_owned())), "images.example.com/a:v1", &access(vec![])).await;
    assert_eq!((resolved.unwrap().digest, origin.count("GET", "manifests")), (digest, 1));
}
