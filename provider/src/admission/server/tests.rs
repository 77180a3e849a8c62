//! Reviews over a real connection, with the webhook's own certificates.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Taint;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::admission::certificates::Certificates;
use crate::admission::registration::rule_path;
use crate::admission::webhook::{Surroundings, Webhook, WebhookConfig};
use crate::cluster::EventRecorder;
use crate::cluster::fake::FakeCluster;
use crate::parts::PartError;
use crate::selector::{Name, rule};

fn placement() -> Placement {
    let taint =
        Taint { key: "k".to_owned(), value: Some("v".to_owned()), effect: "NoSchedule".to_owned(), ..Taint::default() };
    Placement::new(vec![taint])
}

fn body(labels: &Value, dry_run: bool) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "the-uid", "operation": "CREATE", "dryRun": dry_run, "namespace": "ns", "userInfo": {},
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "x-", "labels": labels},
                "spec": {"containers": [{"name": "c", "image": "nginx"}]}},
        }
    })
}

/// Connects as an API server would, trusting `bundle` alone, to speak this version of HTTP.
async fn connect(address: SocketAddr, bundle: &str, version: &str) -> Option<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![version.as_bytes().to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::from(address.ip());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
}

/// Sends one request.
async fn send(address: SocketAddr, bundle: &str, path: &str, body: String) -> Option<(u16, Bytes)> {
    let stream = connect(address, bundle, "h2").await?;
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let request = hyper::Request::post(format!("https://{address}{path}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    Some((status, response.into_body().collect().await.unwrap().to_bytes()))
}

fn around(cluster: &Arc<FakeCluster>) -> Surroundings {
    let (events, _) = EventRecorder::new(cluster.clone());
    let (entries, profiles, selectors, access) = (cluster.clone(), cluster.clone(), cluster.clone(), cluster.clone());
    Surroundings { entries, profiles, selectors, access, events }
}

async fn bound(cluster: &Arc<FakeCluster>) -> Webhook {
    let target = "https://127.0.0.1:9443".parse().unwrap();
    let config = WebhookConfig { listen: ([127, 0, 0, 1], 0).into(), target, placement: placement() };
    Webhook::bind(around(cluster), config).await.unwrap()
}

/// A webhook that runs and is registered.
struct Running {
    cluster: Arc<FakeCluster>,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), PartError>>,
}

impl Running {
    async fn start() -> Self {
        Self::on(Arc::new(FakeCluster::default())).await
    }

    async fn on(cluster: Arc<FakeCluster>) -> Self {
        let webhook = bound(&cluster).await;
        let (address, mut registered, stop) = (webhook.address(), webhook.registered(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(webhook.run(stop.clone()));
        registered.wait_for(|registered| *registered).await.unwrap();
        Self { cluster, address, stop, tasks }
    }

    /// The registered authority.
    fn bundle(&self) -> String {
        let webhook = self.cluster.see(|record| record.webhook.clone().unwrap());
        String::from_utf8(webhook.webhooks.unwrap()[0].client_config.ca_bundle.clone().unwrap().0).unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.join_all().await;
    }
}

#[tokio::test]
async fn a_review_is_answered_under_the_registered_authority() {
    let running = Running::start().await;
    let (address, bundle) = (running.address, running.bundle());

    for dry_run in [false, true] {
        let (status, answer) =
            send(address, &bundle, PATH, body(&json!({"alibabacloud.com/eci": "true"}), dry_run).to_string())
                .await
                .unwrap();
        assert_eq!(status, 200);
        let answer: AdmissionReview<Pod> = serde_json::from_slice(&answer).unwrap();
        let response = answer.response.unwrap();
        assert!(response.allowed);
        assert_eq!(response.uid, "the-uid");
        let patch: json_patch::Patch = serde_json::from_slice(&response.patch.unwrap()).unwrap();
        let mut pod = body(&json!({}), false)["request"]["object"].clone();
        json_patch::patch(&mut pod, &patch).unwrap();
        assert_eq!(pod["spec"]["nodeSelector"]["type"], "virtual-kubelet");
    }
    let (_, answer) =
        send(address, &bundle, PATH, body(&json!({"alibabacloud.com/eci": "no"}), false).to_string()).await.unwrap();
    let answer: AdmissionReview<Pod> = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer.response.map(|response| (response.allowed, response.patch)), Some((true, None)));
    for (path, text, expected) in [(PATH, "{}", 400..=499), (PATH, "nonsense", 400..=499), ("/other", "{}", 404..=404)]
    {
        let (status, _) = send(address, &bundle, path, text.to_owned()).await.unwrap();
        assert!(expected.contains(&status), "{path} {text} {status}");
    }
    let other = Certificates::make("127.0.0.1", Timestamp::now()).unwrap();
    assert!(send(address, &other.bundle(), PATH, String::new()).await.is_none());

    running.end().await;
    assert!(TcpStream::connect(address).await.is_err());
}

const PROFILE: &str = r#"[
    {"name": "own", "objectSelector": {"matchLabels": {"app": "x"}}, "effect": {"annotations": {"a": "own"}}},
    {"name": "all", "effect": {"annotations": {"a": "all", "b": "all"}, "labels": {"l": "all"}}}
]"#;

/// The pod of [`body`] with these labels and this much more, after one review.
async fn reviewed(
    address: std::net::SocketAddr,
    bundle: &str,
    path: &str,
    labels: Value,
    spec: &[(&str, Value)],
) -> Value {
    let mut review = body(&labels, false);
    for (field, value) in spec {
        review["request"]["object"]["spec"][field] = value.clone();
    }
    let (status, answer) = send(address, bundle, path, review.to_string()).await.unwrap();
    assert_eq!(status, 200, "{path}");
    let response = serde_json::from_slice::<AdmissionReview<Pod>>(&answer).unwrap().response.unwrap();
    assert!(response.allowed);
    let mut pod = review["request"]["object"].clone();
    if let Some(patch) = response.patch {
        json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
    }
    pod
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_the_selectors_while_nobody_says_which_there_are() {
    let (desk, cluster) = (Desk::new(placement()), Arc::new(FakeCluster::default()));
    let spec = serde_json::from_value(json!({"objectLabels": {}})).unwrap();
    let rule = rule::read(Name::default(), &spec).unwrap();
    let path = rule_path(&rule);
    // Whether the pod has been given anything.
    let ask = async || {
        let request = hyper::Request::post(&path).header("content-type", "application/json");
        let request = request.body(axum::body::Body::from(body(&json!({}), false).to_string())).unwrap();
        let mut router = router(Arc::clone(&desk), cluster.clone());
        let response = tower::Service::call(&mut router, request).await.unwrap();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8_lossy(&text).contains("\"patch\"")
    };
    let begun = Instant::now();
    assert!(!ask().await);
    assert_eq!(begun.elapsed().as_secs(), 4);
    let listing = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        desk.hold_rules(Arc::new(Rules::ranked(vec![rule.clone()]).0));
    };
    assert!(tokio::join!(ask(), listing).0);
    assert!(ask().await);
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn what_a_selector_selects_goes_to_the_virtual_nodes_with_its_effect() {
    let cluster = Arc::new(FakeCluster::default());
    cluster.put_profile(Some(&[("selectors", PROFILE)]));
    let running = Running::on(Arc::clone(&cluster)).await;
    let address = running.address;
    let path_of = |record: &crate::cluster::fake::Record| {
        let first = record.webhook.as_ref()?.webhooks.as_ref()?.first()?.clone();
        Some(first.client_config.url?.strip_prefix("https://127.0.0.1:9443")?.to_owned())
            .filter(|path| path.starts_with("/mutate/profile/0/"))
    };
    cluster.wait("the selector's webhook", |record| path_of(record).is_some()).await;
    let (path, bundle) = (cluster.see(path_of).unwrap(), running.bundle());

    let pod = reviewed(address, &bundle, &path, json!({"app": "x"}), &[]).await;
    assert_eq!(pod["spec"]["nodeSelector"]["type"], "virtual-kubelet");
    assert_eq!(pod["metadata"]["annotations"], json!({"a": "own"}));
    // The pod's own word is no.
    let pod = reviewed(address, &bundle, &path, json!({"app": "x", "alibabacloud.com/eci": "false"}), &[]).await;
    assert_eq!((&pod["spec"]["nodeSelector"], &pod["metadata"]["annotations"]), (&Value::Null, &Value::Null));
    // Somebody has settled its node already.
    let elsewhere = [("nodeName", json!("other"))];
    let pod = reviewed(address, &bundle, &path, json!({"app": "x"}), &elsewhere).await;
    assert_eq!(pod["metadata"]["annotations"], Value::Null);

    let there = [("nodeSelector", json!({"type": "virtual-kubelet"}))];
    let pod = reviewed(address, &bundle, "/mutate/effects", json!({"l": "own"}), &there).await;
    assert_eq!(pod["metadata"]["annotations"], json!({"a": "all", "b": "all"}));
    assert_eq!(pod["metadata"]["labels"], json!({"l": "own"}));
    let pod = reviewed(address, &bundle, "/mutate/effects", json!({}), &[]).await;
    assert_eq!(pod["metadata"]["annotations"], Value::Null);

    // The API server may go on calling for the profile that has just been replaced, and no longer.
    cluster.put_profile(Some(&[("selectors", "")]));
    cluster.wait("no such webhook", |record| record.webhook.is_some() && path_of(record).is_none()).await;
    let pod = reviewed(address, &bundle, &path, json!({"app": "x"}), &[]).await;
    assert_eq!(pod["metadata"]["annotations"], json!({"a": "own"}));
    let pod = reviewed(address, &bundle, "/mutate/profile/0/0000", json!({"app": "x"}), &[]).await;
    assert_eq!((&pod["spec"]["nodeSelector"], &pod["metadata"]["annotations"]), (&Value::Null, &Value::Null));
    running.end().await;
}

#[tokio::test]
async fn what_a_selector_object_selects_is_marked_and_given_what_its_policy_says() {
    let cluster = Arc::new(FakeCluster::default());
    let put = |priority: i32, policy: Value| {
        let spec = json!({"objectLabels": {"matchLabels": {"app": "x"}}, "priority": priority, "policy": policy,
            "effect": {"annotations": {"a": "own"}}});
        cluster.put_selector(&format!("s{priority}"), Some(serde_json::from_value(spec).unwrap()));
    };
    put(1, json!({"fair": {}}));
    put(0, json!({}));
    let running = Running::on(Arc::clone(&cluster)).await;
    let paths = |record: &crate::cluster::fake::Record| -> Vec<String> {
        let urls = record.webhook.iter().flat_map(|entry| entry.webhooks.iter().flatten());
        let urls = urls.filter_map(|webhook| webhook.client_config.url.clone());
        let paths = urls.filter_map(|url| url.strip_prefix("https://127.0.0.1:9443").map(str::to_owned));
        paths.filter(|path| path.starts_with("/mutate/selector/")).collect()
    };
    cluster.wait("both webhooks", |record| paths(record).len() == 2).await;
    let (both, bundle) = (cluster.see(paths), running.bundle());
    let ask = async |path: &str| reviewed(running.address, &bundle, path, json!({"app": "x"}), &[]).await;

    let first = ask(&both[0]).await;
    assert_eq!(first["metadata"]["annotations"], json!({"eci.alibabacloud.com/selector": "ns/s1"}));
    assert_eq!(first["spec"]["tolerations"][0]["key"], "k");
    assert_eq!(first["spec"]["nodeSelector"], Value::Null);
    // By itself the other one would act.
    assert_eq!(ask(&both[1]).await["metadata"]["annotations"]["a"], "own");
    // The API server may go on calling for what has just been replaced, and no longer.
    put(1, json!({"normalNodeOnly": {}}));
    cluster.wait("another webhook", |record| paths(record).first() != Some(&both[0])).await;
    assert_eq!(ask(&both[0]).await, first);
    assert_eq!(ask("/mutate/selector/0000").await["metadata"]["annotations"], Value::Null);
    running.end().await;
}

#[tokio::test]
async fn a_caller_that_keeps_silent_is_let_go() {
    let running = Running::start().await;
    let (address, bundle) = (running.address, running.bundle());
    for (version, words) in [("http/1.1", ""), ("http/1.1", "POST /"), ("h2", ""), ("h2", "PRI * HTTP/2.0")] {
        let begun = Instant::now();
        let mut stream = connect(address, &bundle, version).await.unwrap();
        stream.write_all(words.as_bytes()).await.unwrap();
        // From here on time passes where nobody has anything to do.
        tokio::time::pause();
        let mut answer = Vec::new();
        // How it is let go is of no account.
        let let_go = async { drop(stream.read_to_end(&mut answer).await) };
        let ended = tokio::time::timeout(4 * HANDSHAKE, let_go).await;
        let waited = begun.elapsed();
        tokio::time::resume();
        assert!(ended.is_ok() && waited >= HANDSHAKE, "{version} {words:?}: {ended:?} after {waited:?}");
    }
    running.end().await;
}

#[tokio::test]
async fn an_image_cache_is_taken_from_those_who_may_read_its_secrets() {
    let running = Running::start().await;
    let (address, bundle, cluster) = (running.address, running.bundle(), Arc::clone(&running.cluster));
    assert!(cluster.see(|record| record.validating_webhook.is_some()));
    let cache = |secrets: Value| {
        json!({"apiVersion": "eci.alibabacloud.com/v1", "kind": "ImageCache", "metadata": {"name": "c"},
            "spec": {"images": ["nginx"], "imagePullSecrets": secrets}})
    };
    let review = async |secrets: Value, before: Option<Value>| {
        let request = json!({
            "uid": "the-uid", "operation": if before.is_some() { "UPDATE" } else { "CREATE" },
            "userInfo": {"username": "jane"},
            "kind": {"group": "eci.alibabacloud.com", "version": "v1", "kind": "ImageCache"},
            "resource": {"group": "eci.alibabacloud.com", "version": "v1", "resource": "imagecaches"},
            "object": cache(secrets), "oldObject": before.map(cache),
        });
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        let (status, answer) = send(address, &bundle, IMAGE_CACHE_PATH, body.to_string()).await.unwrap();
        assert_eq!(status, 200, "{answer:?}");
        let answer: AdmissionReview<ImageCache> = serde_json::from_slice(&answer).unwrap();
        let response = answer.response.unwrap();
        assert_eq!(response.uid, "the-uid");
        (response.allowed, response.result.message)
    };
    assert!(review(json!([]), None).await.0);
    let (allowed, message) = review(json!(["ns:s"]), None).await;
    assert!(!allowed && message.contains("\"jane\"") && message.contains("ns:s"), "{message}");
    assert!(review(json!(["ns:s"]), Some(json!(["ns:s"]))).await.0);
    cluster.set(|record| record.rights.push("jane get  s".to_owned()));
    assert!(review(json!(["ns:s"]), None).await.0);
    assert!(!review(json!(["ns:s", "ns:t"]), Some(json!(["ns:s"]))).await.0);
    // What cannot be checked is not taken.
    cluster.go_offline();
    let (allowed, message) = review(json!(["ns:s"]), None).await;
    assert!(!allowed && message.contains("try again"), "{message}");
    running.end().await;
}

#[tokio::test]
async fn an_entry_that_somebody_changes_is_made_right_again() {
    let running = Running::start().await;
    let cluster = Arc::clone(&running.cluster);
    let ours = cluster.see(|record| record.webhook.clone().unwrap());

    cluster.put_webhook(None);
    cluster.wait("entry again", |record| record.webhook.is_some() && record.webhook_applies == 2).await;
    let mut broken = ours.clone();
    broken.webhooks.as_mut().unwrap().truncate(1);
    cluster.put_webhook(Some(broken));
    cluster.wait("entry right again", |record| record.webhook_applies == 3).await;
    assert_eq!(cluster.see(|record| record.webhook.clone().unwrap().webhooks), ours.webhooks);
    running.end().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_that_names_it() {
    let cluster = Arc::new(FakeCluster::default());
    let first = bound(&cluster).await;
    let config =
        WebhookConfig { listen: first.address(), target: "https://127.0.0.1".parse().unwrap(), placement: placement() };
    let error = Webhook::bind(around(&cluster), config).await.unwrap_err().to_string();
    assert_eq!(error, format!("listen for the webhook at {}", first.address()));
}
