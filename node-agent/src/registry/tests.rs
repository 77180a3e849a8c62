//! The client against a registry that behaves, and against one that does not.

use futures::TryStreamExt as _;
use serde_json::json;

mod certificates;
mod elsewhere;
mod misbehaviour;
mod own_logins;

use super::{
    test_registry::{Door, Fault, TOKEN, TestRegistry},
    *,
};

fn client(hosts: Option<PathBuf>) -> RegistryClient {
    RegistryClient::new(RegistryConfig { hosts, stall: Duration::from_millis(400), ..RegistryConfig::default() })
}

fn login(registry: &str, user: &str) -> Credential {
    let login = Login::Basic { username: user.to_owned(), password: "secret".to_owned() };
    Credential { registry: registry.to_owned(), login }
}

fn access(credentials: Vec<Credential>) -> RegistryAccess {
    RegistryAccess { credentials, ..RegistryAccess::default() }
}

fn manifest() -> serde_json::Value {
    json!({"schemaVersion": 2, "config": {}, "layers": []})
}

async fn resolve(client: &RegistryClient, image: &str, access: &RegistryAccess) -> Result<Resolved, RegistryError> {
    client.open(&image.parse().unwrap(), access).await?.resolve("v1", Resolve::WithContent).await
}

/// Opens a blob at the first source that serves it.
async fn open_blob(
    repository: &Arc<dyn Repository>,
    digest: &Digest,
    size: u64,
    offset: u64,
) -> Result<BlobStream, RegistryError> {
    let mut tried = Vec::new();
    for source in repository.sources()? {
        match repository.blob(source, digest, size, offset).await {
            Ok(stream) => return Ok(stream),
            Err(err) => tried.push(err),
        }
    }
    Err(RegistryError::from_tried(tried))
}

async fn read(stream: BlobStream) -> Result<Vec<u8>, RegistryError> {
    Ok(stream.bytes.try_collect::<Vec<_>>().await?.concat())
}

#[tokio::test]
async fn pulls_without_a_login() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_manifest("a/b", "v1", &manifest());
    let blob = registry.put_blob(vec![7; 100_000]);
    let repository =
        client(None).open(&format!("{}/a/b:v1", registry.host()).parse().unwrap(), &access(vec![])).await.unwrap();
    let resolved = repository.resolve("v1", Resolve::WithContent).await.unwrap();
    assert_eq!((resolved.digest, resolved.content.is_some()), (digest, true));
    let resolved = repository.resolve("v1", Resolve::DigestOnly).await.unwrap();
    assert_eq!((resolved.digest, resolved.content), (digest, None));
    assert_eq!(Digest::of(&repository.manifest(&digest).await.unwrap()), digest);
    let stream = open_blob(&repository, &blob, 100_000, 99_999).await.unwrap();
    assert_eq!(stream.offset, 99_999);
    assert_eq!(read(stream).await.unwrap(), [7]);
    registry.fault("blobs", 1, Fault::NoRanges);
    let stream = open_blob(&repository, &blob, 100_000, 99_999).await.unwrap();
    assert_eq!(stream.offset, 0);
    assert_eq!(read(stream).await.unwrap().len(), 100_000);
}

#[tokio::test]
async fn logs_in_with_a_password_or_a_token_and_does_so_once() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("a", "v1", &manifest());
    let blob = registry.put_blob("abc");
    for door in [Door::Basic("me:secret".into()), Door::Bearer("me:secret".into(), None)] {
        registry.set_door(door.clone());
        let client = client(None);
        let access = access(vec![login(&registry.host(), "me")]);
        let image: Reference = format!("{}/a:v1", registry.host()).parse().unwrap();
        for _ in 0..2 {
            let repository = client.open(&image, &access).await.unwrap();
            for how in [Resolve::WithContent, Resolve::DigestOnly] {
                let found = repository.resolve("v1", how).await.unwrap();
                assert_eq!(found.entry, Entry::Login(login(&registry.host(), "me").login), "{door:?}");
            }
            let stream = open_blob(&repository, &blob, 3, 0).await.unwrap();
            assert_eq!(read(stream).await.unwrap(), b"abc", "{door:?}");
        }
        // The first request has nothing to show yet; after that nobody is asked again.
        let unauthorized = registry.seen().iter().filter(|seen| seen.authorization.is_none()).count();
        assert_eq!((unauthorized, registry.count("GET", "/v2/a/blobs")), (1, 2), "{door:?}: {:?}", registry.seen());
        if door != Door::Basic("me:secret".into()) {
            assert_eq!(registry.count("GET", "/token?scope=repository%3Aa%3Apull&service=test"), 1);
            assert!(registry.seen().iter().any(|seen| seen.authorization == Some(format!("Bearer {TOKEN}"))));
        }
        registry.forget_seen();
    }
}

#[tokio::test]
async fn the_next_pull_finds_the_connections_of_the_last_one() {
    let registry = TestRegistry::start().await;
    let blob = registry.put_blob("abc");
    for repository in ["a", "b"] {
        registry.put_manifest(repository, "v1", &manifest());
    }
    for door in [Door::Open, Door::Bearer(String::new(), None)] {
        registry.set_door(door.clone());
        let (client, before) = (client(None), registry.connections());
        let mut used = Vec::new();
        // Twice each: a token is a repository's.
        for repository in ["a", "a", "b", "b"] {
            let image = format!("{}/{repository}:v1", registry.host());
            let repository = client.open(&image.parse().unwrap(), &access(vec![])).await.unwrap();
            repository.resolve("v1", Resolve::WithContent).await.unwrap();
            assert_eq!(read(open_blob(&repository, &blob, 3, 0).await.unwrap()).await.unwrap(), b"abc");
            used.push(registry.connections() - before);
        }
        // One for manifests and tokens, one for blobs, which a client of its own brings.
        let expected = if door == Door::Open { [2, 2, 2, 2] } else { [2, 2, 3, 3] };
        assert_eq!(used, expected, "{door:?}");
    }
}

#[tokio::test]
async fn a_blob_that_takes_longer_than_its_token_goes_on_with_a_new_one() {
    let registry = TestRegistry::start().await;
    let blob = registry.put_blob(vec![7; 1000]);
    let image: Reference = format!("{}/a:v1", registry.host()).parse().unwrap();
    for (door, credentials) in [
        (Door::Bearer("me:secret".into(), None), vec![login(&registry.host(), "me")]),
        (Door::Bearer(String::new(), None), vec![]),
    ] {
        registry.set_door(door.clone());
        registry.set_token_seconds(1);
        registry.forget_seen();
        let repository = client(None).open(&image, &access(credentials)).await.unwrap();
        registry.fault("blobs", 3, Fault::Cut(500));
        let begun = open_blob(&repository, &blob, 1000, 0).await.unwrap();
        assert!(read(begun).await.is_err(), "{door:?}");
        registry.heal();
        assert_eq!(registry.count("GET", "/token"), 1, "{door:?}");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        let rest = open_blob(&repository, &blob, 1000, 500).await.unwrap();
        assert_eq!((rest.offset, read(rest).await.unwrap().len()), (500, 500), "{door:?}");
        assert_eq!(registry.count("GET", "/token"), 2, "{door:?}");
        // Whoever lives longer is used longer.
        registry.set_token_seconds(300);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        for offset in [0, 1] {
            read(open_blob(&repository, &blob, 1000, offset).await.unwrap()).await.unwrap();
        }
        assert_eq!(registry.count("GET", "/token"), 3, "{door:?}");
    }
}

#[tokio::test]
async fn a_blob_may_be_asked_for_first() {
    let registry = TestRegistry::start().await;
    let blob = registry.put_blob("abc");
    registry.set_door(Door::Bearer("me:secret".into(), None));
    let image = format!("{}/a:v1", registry.host()).parse().unwrap();
    let repository = client(None).open(&image, &access(vec![login(&registry.host(), "me")])).await.unwrap();
    assert_eq!(read(open_blob(&repository, &blob, 3, 0).await.unwrap()).await.unwrap(), b"abc");
}

#[tokio::test]
async fn tries_logins_in_order_and_says_how_many_were_refused() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("a", "v1", &manifest());
    registry.set_door(Door::Bearer("second:secret".into(), None));
    let host = registry.host();
    let image = format!("{host}/a:v1");
    let all = access(vec![login("elsewhere.org", "x"), login(&host, "first"), login(&host, "second")]);
    let found = resolve(&client(None), &image, &all).await.unwrap();
    assert_eq!(found.entry, Entry::Login(login(&host, "second").login));
    let wrong = access(vec![login(&host, "first"), login(&host, "third")]);
    let text = resolve(&client(None), &image, &wrong).await.unwrap_err().to_string();
    assert!(text.contains("401 Unauthorized: incorrect username or password; all 2 logins were refused"), "{text}");
    let text = resolve(&client(None), &image, &access(vec![])).await.unwrap_err().to_string();
    assert!(text.starts_with(&format!("unauthorized: GET http://{host}/")), "{text}");
    assert!(text.ends_with("no login fits this registry, check imagePullSecrets"), "{text}");
}

#[tokio::test]
async fn who_needs_no_login_is_anybody() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("a", "v1", &manifest());
    let image = format!("{}/a:v1", registry.host());
    let with = access(vec![login(&registry.host(), "me")]);
    let without = access(vec![login("elsewhere.org", "me")]);
    // The login is not asked for; and a token that everybody is given is nobody's.
    for (door, access) in [(Door::Open, &with), (Door::Open, &without), (Door::Bearer(String::new(), None), &without)] {
        registry.set_door(door.clone());
        assert_eq!(resolve(&client(None), &image, access).await.unwrap().entry, Entry::Anybody, "{door:?}");
    }
}

#[tokio::test]
async fn a_login_never_reaches_another_host() {
    let (registry, thief) = (TestRegistry::start().await, TestRegistry::start().await);
    registry.put_manifest("a", "v1", &manifest());
    let realm = format!("http://localhost:{}/token", thief.host().rsplit_once(':').unwrap().1);
    registry.set_door(Door::Bearer("me:secret".into(), Some(realm)));
    thief.set_door(Door::Bearer("me:secret".into(), None));
    let image = format!("{}/a:v1", registry.host());
    let err = resolve(&client(None), &image, &access(vec![login(&registry.host(), "me")])).await.unwrap_err();
    assert!(matches!(err, RegistryError::Realm { .. }), "{err}");
    assert!(err.to_string().contains("token_hosts"), "{err}");
    assert_eq!(thief.seen(), []);
    // A redirect of a blob to another host goes there without the login.
    registry.set_door(Door::Basic("me:secret".into()));
    let blob = thief.put_blob("abc");
    thief.set_door(Door::Open);
    let location = format!("http://localhost:{}/blobs/{blob}", thief.host().rsplit_once(':').unwrap().1);
    let repository =
        client(None).open(&image.parse().unwrap(), &access(vec![login(&registry.host(), "me")])).await.unwrap();
    repository.resolve("v1", Resolve::WithContent).await.unwrap();
    registry.fault("blobs", 1, Fault::Status(307, vec![("location", location)], ""));
    assert_eq!(read(open_blob(&repository, &blob, 3, 0).await.unwrap()).await.unwrap(), b"abc");
    assert_eq!(thief.seen().iter().map(|seen| seen.authorization.clone()).collect::<Vec<_>>(), [None]);
}

#[tokio::test]
async fn waits_as_it_is_asked_to_and_gives_up_in_the_end() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("a", "v1", &manifest());
    let image = format!("{}/a:v1", registry.host());
    let asked = |seconds: &str| Fault::Status(429, vec![("retry-after", seconds.to_owned())], "slow down");
    registry.fault("manifests", 1, asked("1"));
    registry.fault("manifests", 1, Fault::Status(503, vec![], ""));
    let begun = tokio::time::Instant::now();
    resolve(&client(None), &image, &access(vec![])).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    registry.fault("manifests", 9, asked("90"));
    let text = resolve(&client(None), &image, &access(vec![])).await.unwrap_err().to_string();
    assert!(text.ends_with("429 Too Many Requests: slow down; the registry asks to wait 1m 30s"), "{text}");
    registry.heal();
    registry.fault("blobs", 9, asked("7"));
    let repository = client(None).open(&image.parse().unwrap(), &access(vec![])).await.unwrap();
    let blob = registry.put_blob("abc");
    let err = open_blob(&repository, &blob, 3, 0).await.unwrap_err();
    assert_eq!(err.retry_after(), Some(Duration::from_secs(7)), "{err}");
}

#[tokio::test]
async fn names_what_is_wrong() {
    let registry = TestRegistry::start().await;
    let host = registry.host();
    registry.put_manifest("a", "v1", &manifest());
    let image = format!("{host}/a:v1");
    let text = resolve(&client(None), &format!("{host}/none:v1"), &access(vec![])).await.unwrap_err().to_string();
    assert_eq!(text, format!("not found: GET http://{host}/v2/none/manifests/v1: 404 Not Found: manifest unknown"));
    registry.fault("manifests", 1, Fault::Corrupt);
    let err = resolve(&client(None), &image, &access(vec![])).await.unwrap_err();
    assert!(matches!(err, RegistryError::WrongDigest { .. }), "{err}");
    registry.fault("manifests", 9, Fault::Slow(Duration::from_secs(30)));
    let err = resolve(&client(None), &image, &access(vec![])).await.unwrap_err();
    assert!(err.to_string().ends_with("no data from the registry for 400ms"), "{err}");
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let text = resolve(&client(None), &format!("{closed}/a:v1"), &access(vec![])).await.unwrap_err().to_string();
    assert!(text.contains("Connection refused"), "{text}");
}

fn mirror_config(registry: &str, text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(registry)).unwrap();
    std::fs::write(dir.path().join(registry).join("hosts.toml"), text).unwrap();
    dir
}

#[tokio::test]
async fn mirrors_come_first_and_the_registry_last() {
    let (first, second, origin) =
        (TestRegistry::start().await, TestRegistry::start().await, TestRegistry::start().await);
    let config = mirror_config(
        "images.example.com",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
            origin.host(),
            first.host(),
            second.host()
        ),
    );
    let client = client(Some(config.path().to_owned()));
    let secret = access(vec![login("images.example.com", "me")]);
    // In none of them.
    let text = resolve(&client, "images.example.com/a:v1", &secret).await.unwrap_err().to_string();
    assert!(text.starts_with(&format!("not found: GET http://{}/v2/a/manifests/v1: 404", origin.host())), "{text}");
    assert!(
        text.contains(&format!(
            "mirror not found: GET http://{}/v2/a/manifests/v1?ns=images.example.com",
            first.host()
        )),
        "{text}"
    );
    assert_eq!(second.seen(), []);
    // In the registry only.
    let digest = origin.put_manifest("a", "v1", &manifest());
    let repository = client.open(&"images.example.com/a:v1".parse().unwrap(), &secret).await.unwrap();
    assert_eq!(repository.resolve("v1", Resolve::WithContent).await.unwrap().digest, digest);
    // A mirror that may only pull serves by digest.
    second.put_manifest("a", "v1", &manifest());
    origin.forget_seen();
    repository.manifest(&digest).await.unwrap();
    assert_eq!((second.count("GET", "manifests"), origin.seen().len()), (1, 0));
    // And blobs, the first time round.
    let blob = second.put_blob("abc");
    assert_eq!(repository.sources().unwrap(), [0, 1, 2]);
    let stream = open_blob(&repository, &blob, 3, 0).await.unwrap();
    assert!(stream.url.contains(&second.host()), "{}", stream.url);
    assert_eq!(read(stream).await.unwrap(), b"abc");
    assert_eq!(second.count("GET", "?ns=images.example.com"), 2);
    assert!(repository.blob(2, &blob, 3, 0).await.is_err());
    assert!(repository.blob(3, &blob, 3, 0).await.is_err());
    let sent: Vec<_> =
        [first, second].iter().flat_map(TestRegistry::seen).filter_map(|seen| seen.authorization).collect();
    assert_eq!(sent, Vec::<String>::new(), "a mirror was sent the registry's login");
}

#[tokio::test]
async fn a_mirror_may_have_a_path_headers_and_a_login_of_its_own() {
    let mirror = TestRegistry::start().await;
    mirror.set_door(Door::Basic("m:secret".into()));
    let digest = mirror.put_manifest("proxy/a", "v1", &manifest());
    let blob = mirror.put_blob("abc");
    let secret = access(vec![login(&mirror.host(), "m")]);
    for more in ["", "[host.HOST.header]\nx-test = \"1\"\n"] {
        let host = format!("\"http://{}/v2/proxy\"", mirror.host());
        let text = format!("[host.{host}]\noverride_path = true\n{}", more.replace("HOST", &host));
        let config = mirror_config("images.example.com", &text);
        let client = client(Some(config.path().to_owned()));
        let repository = client.open(&"images.example.com/a:v1".parse().unwrap(), &secret).await.unwrap();
        assert_eq!(repository.resolve("v1", Resolve::WithContent).await.unwrap().digest, digest);
        assert_eq!(read(open_blob(&repository, &blob, 3, 0).await.unwrap()).await.unwrap(), b"abc", "{text}");
        assert_eq!(read(open_blob(&repository, &blob, 3, 2).await.unwrap()).await.unwrap(), b"c", "{text}");
    }
    assert_eq!(mirror.count("GET", "/v2/proxy/a/blobs/"), 4);
}
