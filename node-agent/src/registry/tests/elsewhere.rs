//! Redirects and proxies: what leads to other hosts, and what must not go with it.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
};

use super::{
    certificates::{Certificates, Client},
    *,
};

pub(super) fn port(registry: &TestRegistry) -> String {
    registry.host().rsplit_once(':').unwrap().1.to_owned()
}

/// The same server under another name: another host, as far as logins go.
fn other_name(registry: &TestRegistry) -> String {
    format!("localhost:{}", port(registry))
}

pub(super) fn redirect(to: String) -> Fault {
    Fault::Status(307, vec![("location", to)], "")
}

#[tokio::test]
async fn nothing_that_is_for_the_registry_goes_along_with_a_redirect() {
    let (registry, other) = (TestRegistry::start().await, TestRegistry::start().await);
    registry.set_door(Door::Basic("me:secret".into()));
    let digest = other.put_blob(vec![7; 1000]);
    let host = format!("\"http://{}\"", registry.host());
    let config = mirror_config(
        "images.example.com",
        &format!("[host.{host}]\n[host.{host}.header]\nx-api-key = \"secret\"\ncookie = \"secret\"\n"),
    );
    let secret = access(vec![login(&registry.host(), "me")]);
    let client = client(Some(config.path().to_owned()));
    let repository = client.open(&"images.example.com/a:v1".parse().unwrap(), &secret).await.unwrap();
    // There and back again: what was left behind stays behind.
    other.fault("first", 1, redirect(format!("http://{}/second/blobs/{digest}", registry.host())));
    registry.fault("second", 1, redirect(format!("http://{}/third/blobs/{digest}", other_name(&other))));
    registry.fault("/v2/a/blobs", 1, redirect(format!("http://{}/first", other_name(&other))));
    // The challenge comes first.
    registry.put_manifest("a", "v1", &manifest());
    repository.resolve("v1", Resolve::WithContent).await.unwrap();
    registry.forget_seen();
    let stream = open_blob(&repository, &digest, 1000, 990).await.unwrap();
    assert_eq!((stream.offset, read(stream).await.unwrap().len()), (990, 10));
    let seen = |registry: &TestRegistry| -> Vec<_> {
        registry
            .seen()
            .into_iter()
            .map(|seen| (seen.authorization.is_some(), seen.secrets, seen.range.unwrap()))
            .collect()
    };
    let range = || "bytes=990-".to_owned();
    assert_eq!(seen(&registry), [(true, 2, range()), (false, 0, range())]);
    assert_eq!(seen(&other), [(false, 0, range()), (false, 0, range())]);
}

/// Whether each request for a blob went through `oci-distribution`, which asks for a range also where it is the whole.
fn through_the_package(registry: &TestRegistry) -> Vec<bool> {
    let seen = registry.seen().into_iter().filter(|seen| seen.path.contains("/blobs/"));
    seen.map(|seen| seen.range == Some("bytes=0-".to_owned())).collect()
}

#[tokio::test]
async fn blobs_travel_through_the_package_where_no_secret_goes_along() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("a", "v1", &manifest());
    let digest = registry.put_blob(vec![7; 1000]);
    let image = format!("{}/a:v1", registry.host()).parse().unwrap();
    let mine = || access(vec![login(&registry.host(), "me")]);
    for (door, access, package) in [
        (Door::Open, access(vec![]), true),
        (Door::Bearer(String::new(), None), access(vec![]), true),
        (Door::Bearer("me:secret".to_owned(), None), mine(), false),
        (Door::Basic("me:secret".to_owned()), mine(), false),
        (Door::Open, mine(), true),
    ] {
        registry.set_door(door.clone());
        let repository = client(None).open(&image, &access).await.unwrap();
        repository.resolve("v1", Resolve::WithContent).await.unwrap();
        registry.forget_seen();
        let stream = open_blob(&repository, &digest, 1000, 0).await.unwrap();
        assert_eq!(read(stream).await.unwrap().len(), 1000);
        assert_eq!(through_the_package(&registry), [package], "{door:?}");
        let stream = open_blob(&repository, &digest, 1000, 10).await.unwrap();
        assert_eq!((stream.offset, read(stream).await.unwrap().len()), (10, 990), "{door:?}");
    }
}

#[tokio::test]
async fn a_login_left_behind_at_the_first_hop_is_not_back_at_the_second() {
    let (registry, other) = (TestRegistry::start().await, TestRegistry::start().await);
    registry.put_manifest("a", "v1", &manifest());
    let digest = other.put_blob(vec![7; 1000]);
    let image = format!("{}/a:v1", registry.host()).parse().unwrap();
    for door in [Door::Bearer("me:secret".to_owned(), None), Door::Basic("me:secret".to_owned())] {
        registry.set_door(door);
        let repository = client(None).open(&image, &access(vec![login(&registry.host(), "me")])).await.unwrap();
        repository.resolve("v1", Resolve::WithContent).await.unwrap();
        registry.fault("blobs", 1, redirect(format!("http://{}/first", other_name(&other))));
        other.fault("first", 1, redirect(format!("/second/blobs/{digest}")));
        assert_eq!(read(open_blob(&repository, &digest, 1000, 0).await.unwrap()).await.unwrap().len(), 1000);
    }
    assert_eq!(other.seen().into_iter().map(|seen| seen.authorization).collect::<Vec<_>>(), [None, None, None, None]);
}

#[tokio::test]
async fn what_goes_wrong_elsewhere_is_not_about_the_login() {
    let (registry, other) = (TestRegistry::start().await, TestRegistry::start().await);
    let digest = Digest::of(b"abc");
    let image = format!("{}/a:v1", registry.host()).parse().unwrap();
    let open = async || client(None).open(&image, &access(vec![login(&registry.host(), "me")])).await.unwrap();
    let there = format!("http://{}/x?signature=secret", other_name(&other));
    for (fault, words) in [
        (Fault::Status(403, vec![], "expired"), "403 Forbidden from localhost, where it redirects to: expired"),
        (
            Fault::Status(401, vec![("www-authenticate", "Basic realm=\"x\"".to_owned())], ""),
            "401 Unauthorized from localhost, where it redirects to",
        ),
        (redirect(format!("http://{}/y", other_name(&other))), "404 Not Found from localhost"),
        (redirect("ftp://localhost/".to_owned()), "redirects to something that is no http or https address"),
    ] {
        // Asked again for what it says.
        registry.fault("blobs", 2, redirect(there.clone()));
        other.fault("/x", 2, fault);
        let err = open_blob(&open().await, &digest, 3, 0).await.unwrap_err();
        let text = err.to_string();
        assert!(text.contains(words) && text.contains(&format!("{}/v2/a/blobs", registry.host())), "{text}");
        assert!(!err.is_about_access() && !text.contains("secret"), "{text}");
    }
    assert!(other.seen().iter().all(|seen| seen.authorization.is_none()), "{:?}", other.seen());
    registry.fault("blobs", 100, redirect(format!("http://{}/v2/a/blobs/again", registry.host())));
    let text = open_blob(&open().await, &digest, 3, 0).await.unwrap_err().to_string();
    assert!(text.ends_with("it redirects without end"), "{text}");
}

#[tokio::test]
async fn a_token_is_not_posted_to_another_host() {
    let (registry, other) = (TestRegistry::start().await, TestRegistry::start().await);
    registry.put_manifest("a", "v1", &manifest());
    registry.set_door(Door::Bearer("me:secret".into(), None));
    registry.fault("token", 1, redirect(format!("http://{}/token", other_name(&other))));
    let refresh = Credential { registry: registry.host(), login: Login::IdentityToken("refresh".to_owned()) };
    let err = resolve(&client(None), &format!("{}/a:v1", registry.host()), &access(vec![refresh])).await.unwrap_err();
    assert!(err.to_string().contains("307 Temporary Redirect"), "{err}");
    assert_eq!((registry.count("POST", "token"), other.seen().len()), (1, 0));
}

#[tokio::test]
async fn the_environments_proxies_are_used_but_not_for_this_host() {
    let (proxy, local) = (TestRegistry::start().await, TestRegistry::start().await);
    let digest = proxy.put_manifest("a", "v1", &manifest());
    let address = Some(format!("http://{}", proxy.host()));
    let proxied = |proxies: Proxies| {
        RegistryClient::new(RegistryConfig { proxies, stall: Duration::from_millis(400), ..RegistryConfig::default() })
    };
    let plain = RegistryAccess { plain_http: vec!["registry.invalid".to_owned()], ..RegistryAccess::default() };
    let through = proxied(Proxies { http: address.clone(), ..Proxies::default() });
    assert_eq!(resolve(&through, "registry.invalid/a:v1", &plain).await.unwrap().digest, digest);
    let blob = proxy.put_blob("abc");
    let repository = through.open(&"registry.invalid/a:v1".parse().unwrap(), &plain).await.unwrap();
    assert_eq!(read(open_blob(&repository, &blob, 3, 0).await.unwrap()).await.unwrap(), b"abc");
    assert_eq!(through_the_package(&proxy), [true]);
    // Over TLS the proxy is asked for a tunnel; this one makes none.
    let through = proxied(Proxies { all: address.clone(), ..Proxies::default() });
    assert!(resolve(&through, "registry.invalid/a:v1", &access(vec![])).await.is_err());
    assert_eq!(proxy.seen().last().unwrap().method, "CONNECT");
    proxy.forget_seen();
    let direct = proxied(Proxies { http: address.clone(), none: Some(".invalid".to_owned()), ..Proxies::default() });
    assert!(resolve(&direct, "registry.invalid/a:v1", &plain).await.is_err());
    let repository = direct.open(&"registry.invalid/a:v1".parse().unwrap(), &plain).await.unwrap();
    assert!(open_blob(&repository, &blob, 3, 0).await.is_err());
    local.put_manifest("a", "v1", &manifest());
    local.put_blob("abc");
    resolve(&through, &format!("{}/a:v1", local.host()), &access(vec![])).await.unwrap();
    let repository = through.open(&format!("{}/a:v1", local.host()).parse().unwrap(), &access(vec![])).await.unwrap();
    assert_eq!(read(open_blob(&repository, &blob, 3, 0).await.unwrap()).await.unwrap(), b"abc");
    assert_eq!(proxy.seen(), []);
}

#[tokio::test]
async fn who_a_redirect_leads_to_decides_about_the_proxy() {
    let (proxy, local) = (TestRegistry::start().await, TestRegistry::start().await);
    let digest = proxy.put_blob("abc");
    let proxies = Proxies { http: Some(format!("http://{}", proxy.host())), ..Proxies::default() };
    let client = RegistryClient::new(RegistryConfig { proxies, ..RegistryConfig::default() });
    let image = format!("{}/a:v1", local.host()).parse().unwrap();
    local.set_door(Door::Basic("me:secret".into()));
    local.put_manifest("a", "v1", &manifest());
    for door in [Door::Open, Door::Basic("me:secret".into())] {
        local.set_door(door);
        let repository = client.open(&image, &access(vec![login(&local.host(), "me")])).await.unwrap();
        repository.resolve("v1", Resolve::WithContent).await.unwrap();
        local.fault("blobs", 1, redirect(format!("http://storage.invalid/x/blobs/{digest}")));
        assert_eq!(read(open_blob(&repository, &digest, 3, 0).await.unwrap()).await.unwrap(), b"abc");
    }
    assert_eq!((proxy.count("GET", "/x/blobs/"), through_the_package(&proxy)), (2, vec![true, false]));
}

/// A proxy that makes tunnels, all of them to one server; how many it has made.
async fn tunnels_to(server: String) -> (String, JoinSet<()>, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (mut tasks, made) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&made);
    tasks.spawn(async move {
        let mut tunnels = JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let (server, counted) = (server.clone(), Arc::clone(&counted));
            tunnels.spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(client.read_u8().await.unwrap());
                }
                assert!(request.starts_with(b"CONNECT registry.invalid:443 HTTP/1.1\r\n"));
                counted.fetch_add(1, Ordering::SeqCst);
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
                // Either side may go without a word.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, tasks, made)
}

#[tokio::test]
async fn a_registry_behind_a_proxy_is_spoken_to_through_a_tunnel() {
    let certificates = Certificates::new();
    let registry = TestRegistry::start_tls(certificates.server(Client::MayShowNone)).await;
    let digest = registry.put_manifest("a", "v1", &manifest());
    let blob = registry.put_blob("abc");
    let (proxy, _tasks, tunnels) = tunnels_to(registry.host()).await;
    let config = mirror_config("registry.invalid", &format!("ca = {}\n", certificates.quoted("ca.crt")));
    let proxies = Proxies { https: Some(proxy), ..Proxies::default() };
    let hosts = Some(config.path().to_owned());
    let client = RegistryClient::new(RegistryConfig { hosts, proxies, ..RegistryConfig::default() });
    let repository = client.open(&"registry.invalid/a:v1".parse().unwrap(), &access(vec![])).await.unwrap();
    assert_eq!(repository.resolve("v1", Resolve::WithContent).await.unwrap().digest, digest);
    assert_eq!(read(open_blob(&repository, &blob, 3, 0).await.unwrap()).await.unwrap(), b"abc");
    // One for each of the two clients.
    assert_eq!((tunnels.load(Ordering::SeqCst), through_the_package(&registry)), (2, vec![true]));
}

#[tokio::test]
async fn a_pod_may_ask_for_plain_http_by_either_name() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("library/a", "v1", &manifest());
    let proxies = Proxies { http: Some(format!("http://{}", registry.host())), ..Proxies::default() };
    let client = RegistryClient::new(RegistryConfig { proxies, ..RegistryConfig::default() });
    for name in ["docker.io", "registry-1.docker.io"] {
        let plain = RegistryAccess { plain_http: vec![name.to_owned()], ..RegistryAccess::default() };
        resolve(&client, "docker.io/library/a:v1", &plain).await.unwrap();
    }
    assert_eq!(registry.count("GET", "/v2/library/a/manifests/v1"), 2);
}
