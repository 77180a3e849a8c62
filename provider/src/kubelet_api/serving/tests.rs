//! The interface as a caller sees it: real TLS on a real socket, an agent and an API server in memory.

use std::net::{Ipv4Addr, SocketAddr};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::agent::PodState;
use crate::agent::fake::FakeAgent;
use crate::cluster::fake::FakeCluster;
use crate::cluster::{EventRecorder, ObjectStore};
use crate::meters::Meters;
use crate::pod::cache_choice::NoCaches;
use crate::pod::{PodController, PodServices};

const NODE: &str = "virtual-node-eci-0";

struct Bench {
    cluster: Arc<FakeCluster>,
    agent: Arc<FakeAgent>,
    address: SocketAddr,
    authority: CertifiedIssuer<'static, KeyPair>,
    _folder: tempfile::TempDir,
    _tasks: JoinSet<Result<(), PartError>>,
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "clients");
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

async fn bench() -> Bench {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (cluster, agent) = (Arc::new(FakeCluster::default()), Arc::new(FakeAgent::default()));
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let client_ca = folder.path().join("ca.crt");
    std::fs::write(&client_ca, authority.pem()).unwrap();
    let (events, _) = EventRecorder::new(cluster.clone());
    let (store, store_task) = ObjectStore::new(cluster.clone());
    let services = PodServices {
        pods: cluster.clone(),
        objects: cluster.clone(),
        store,
        events,
        caches: Arc::new(NoCaches),
        meters: Meters::default(),
    };
    let (controller, pods) = PodController::new(NODE, None, agent.clone(), services);
    let serving = KubeletApi {
        node: NODE.into(),
        address: Ipv4Addr::LOCALHOST.into(),
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        tls: None,
        client_ca: Some(client_ca),
        access: cluster.clone(),
        agent: agent.clone(),
        pods,
    };
    let serving = serving.bind().await.unwrap();
    let address = (Ipv4Addr::LOCALHOST, serving.port()).into();
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    tasks.spawn(store_task.run(stop.clone()));
    tasks.spawn(controller.run(stop.clone()));
    tasks.spawn(serving.run(stop));
    Bench { cluster, agent, address, authority, _folder: folder, _tasks: tasks }
}

/// Takes any certificate: what is tested is the other side.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

enum As<'a> {
    Nobody,
    Token(&'a str),
    Certificate(&'a CertifiedIssuer<'static, KeyPair>, &'a str),
}

/// A connection that has agreed on TLS and one of these versions of HTTP; none where it is refused.
async fn connect(bench: &Bench, who: &As<'_>, versions: &[&str]) -> Option<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match who {
        As::Nobody | As::Token(_) => builder.with_no_client_auth(),
        As::Certificate(issuer, name) => {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.distinguished_name.push(DnType::CommonName, *name);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, *issuer).unwrap();
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
        }
    };
    config.alpn_protocols = versions.iter().map(|version| version.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(bench.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
}

async fn get(bench: &Bench, who: As<'_>, path: &str) -> (StatusCode, Bytes) {
    let Some(stream) = connect(bench, &who, &[]).await else {
        return (StatusCode::IM_A_TEAPOT, Bytes::from("no TLS"));
    };
    let Ok((mut sender, connection)) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await else {
        return (StatusCode::IM_A_TEAPOT, Bytes::from("no TLS"));
    };
    let mut request = Request::get(path).header("host", "localhost");
    if let As::Token(token) = who {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = async {
        let response = sender.send_request(request.body(Body::empty()).unwrap()).await.ok()?;
        let status = response.status();
        Some((status, response.into_body().collect().await.ok()?.to_bytes()))
    };
    tokio::select! {
        answer = answer => answer.unwrap_or((StatusCode::IM_A_TEAPOT, Bytes::from("no TLS"))),
        _ = connection => (StatusCode::IM_A_TEAPOT, Bytes::from("no TLS")),
    }
}

fn allow(bench: &Bench, rights: &[&str]) {
    bench.cluster.set(|record| {
        let user = UserInfo { username: Some("bob".into()), ..UserInfo::default() };
        record.users.insert("good".into(), user);
        record.rights = rights.iter().map(|right| format!("{right} {NODE}")).collect();
    });
}

#[tokio::test]
async fn nobody_unnamed_gets_in_and_nobody_without_the_right() {
    let bench = bench().await;
    allow(&bench, &["bob get proxy"]);
    assert_eq!(get(&bench, As::Nobody, "/healthz").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&bench, As::Nobody, "/nothing").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&bench, As::Token("bad"), "/healthz").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&bench, As::Token("good"), "/healthz").await, (StatusCode::OK, "ok".into()));
    assert_eq!(get(&bench, As::Token("good"), "/stats/summary").await.0, StatusCode::FORBIDDEN);
    let asked = bench.cluster.see(|record| record.reviews);
    assert_eq!(get(&bench, As::Token("good"), "/healthz").await.0, StatusCode::OK);
    assert_eq!(bench.cluster.see(|record| record.reviews), asked, "answers are remembered");
}

#[tokio::test]
async fn a_certificate_of_the_authority_names_its_holder() {
    let bench = bench().await;
    allow(&bench, &["kube-apiserver get healthz", "kube-apiserver get stats"]);
    let ours = As::Certificate(&bench.authority, "kube-apiserver");
    assert_eq!(get(&bench, ours, "/healthz").await.0, StatusCode::OK);
    let stats = get(&bench, As::Certificate(&bench.authority, "kube-apiserver"), "/stats/summary").await;
    assert_eq!(stats.0, StatusCode::OK);
    let other = As::Certificate(&bench.authority, "mallory");
    assert_eq!(get(&bench, other, "/healthz").await.0, StatusCode::FORBIDDEN);
    let foreign = authority();
    let (status, _) = get(&bench, As::Certificate(&foreign, "kube-apiserver"), "/healthz").await;
    assert_eq!(status, StatusCode::IM_A_TEAPOT, "a foreign certificate ends the handshake");
}

#[tokio::test]
async fn an_api_server_that_is_away_lets_nobody_in() {
    let bench = bench().await;
    allow(&bench, &["bob get proxy"]);
    bench.cluster.go_offline();
    assert_eq!(get(&bench, As::Token("good"), "/healthz").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_caller_that_keeps_silent_is_let_go() {
    let bench = bench().await;
    allow(&bench, &["bob get proxy"]);
    let asked = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer good\r\n\r\n";
    for (version, words) in [
        ("http/1.1", String::new()),
        ("http/1.1", "GET /healthz HTTP/1.1\r\nhost: ".to_owned()),
        ("http/1.1", asked.to_owned()),
        ("http/1.1", format!("{asked}GET /hea")),
        ("h2", String::new()),
        ("h2", "PRI * HTTP/2.0".to_owned()),
    ] {
        let begun = Instant::now();
        let mut stream = connect(&bench, &As::Nobody, &[version]).await.unwrap();
        stream.write_all(words.as_bytes()).await.unwrap();
        // From here on time passes where nobody has anything to do.
        tokio::time::pause();
        let mut answer = Vec::new();
        // How it is let go is of no account.
        let let_go = async { drop(stream.read_to_end(&mut answer).await) };
        let ended = tokio::time::timeout(2 * SILENCE, let_go).await;
        let waited = begun.elapsed();
        tokio::time::resume();
        assert!(ended.is_ok() && waited >= SILENCE, "{version} {words:?}: {ended:?} after {waited:?}");
        assert_eq!(answer.starts_with(b"HTTP/1.1 200"), words.contains(asked), "{version} {words:?}");
    }
}

fn running() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u1"},
        "spec": {"nodeName": NODE, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}
        }]}
    }))
    .unwrap()
}

#[tokio::test]
async fn logs_come_from_the_agent_with_their_options() {
    let bench = bench().await;
    allow(&bench, &["bob get proxy"]);
    bench.agent.set(|record| {
        record.log = vec![Bytes::from("one\n"), Bytes::from("two\n")];
        let state = PodState {
            uid: "u1".into(),
            namespace: "ns".into(),
            name: "p".into(),
            generation: 1,
            status: running().status.unwrap(),
            terminated: false,
        };
        record.pods.insert("u1".into(), state);
    });
    bench.cluster.put_pod(running());
    bench.agent.wait("hand-over", |record| !record.runs.is_empty()).await;
    let token = || As::Token("good");
    let (status, body) = get(&bench, token(), "/containerLogs/ns/p/c?tailLines=7&timestamps=true").await;
    assert_eq!((status, body), (StatusCode::OK, "one\ntwo\n".into()));
    let query = bench.agent.see(|record| record.log_queries[0].clone());
    assert_eq!((query.uid.as_str(), query.tail_lines, query.timestamps), ("u1", Some(7), true));
    assert_eq!(get(&bench, token(), "/containerLogs/ns/p/c?tailLines=x").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(get(&bench, token(), "/containerLogs/ns/p/nope").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&bench, token(), "/containerLogs/ns/nope/c").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&bench, token(), "/containerLogs/ns/p/c?previous=true").await.0, StatusCode::BAD_REQUEST);
    let (status, text) = get(&bench, token(), "/exec/ns/p/c?command=sh").await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert!(String::from_utf8_lossy(&text).contains("a later release"));
    let (status, list) = get(&bench, token(), "/pods").await;
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(
        (status, &list["kind"], &list["items"][0]["metadata"]["name"]),
        (StatusCode::OK, &json!("PodList"), &json!("p"))
    );
}
