//! Registries with certificates of their own: what is believed, what is shown, and to whom.

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};

use super::{
    elsewhere::{port, redirect},
    *,
};

/// A certificate authority, and client certificates signed by it, as PEM files.
pub(super) struct Certificates {
    pub(super) folder: tempfile::TempDir,
    authority: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// Whether a server lets in who shows no certificate.
#[derive(PartialEq)]
pub(super) enum Client {
    MayShowNone,
    MustShowOne,
}

impl Certificates {
    pub(super) fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        let made = Self { folder: tempfile::tempdir().unwrap(), authority, issuer: Issuer::new(params, key) };
        let (own, own_key) = made.signed(&["node"]);
        // A bundle, of which the first is of no use.
        let bundle = [own.pem(), made.authority.pem()].concat();
        for (file, pem) in [("ca.crt", bundle), ("client.crt", own.pem()), ("client.key", own_key.serialize_pem())] {
            std::fs::write(made.folder.path().join(file), pem).unwrap();
        }
        made
    }

    fn signed(&self, names: &[&str]) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        (CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// How a server of this authority speaks TLS.
    pub(super) fn server(&self, client: Client) -> rustls::ServerConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder(roots.into());
        let verifier = if client == Client::MayShowNone { verifier.allow_unauthenticated() } else { verifier };
        let (certificate, key) = self.signed(&["127.0.0.1", "localhost", "registry.invalid"]);
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap()
    }

    /// Where a file is, as hosts.toml has it.
    pub(super) fn quoted(&self, file: &str) -> String {
        format!("{:?}", self.folder.path().join(file).display().to_string())
    }
}

#[tokio::test]
async fn certificates_are_verified_as_the_configuration_says() {
    let certificates = Certificates::new();
    let registry = TestRegistry::start_tls(certificates.server(Client::MayShowNone)).await;
    let digest = registry.put_manifest("a", "v1", &manifest());
    let blob = registry.put_blob("abc");
    let path = |file: &str| certificates.folder.path().join(file).display().to_string();
    let host = registry.host();
    let pull = async |settings: &str| {
        // The server table and the host tables take the same settings; here it is the registry itself.
        let text = format!("server = \"https://{host}\"\n{settings}");
        let config = mirror_config("images.example.com", &text);
        let client = client(Some(config.path().to_owned()));
        let repository = client.open(&"images.example.com/a:v1".parse().unwrap(), &access(vec![])).await.unwrap();
        let found = repository.resolve("v1", Resolve::WithContent).await?.digest;
        assert_eq!(found, digest);
        read(open_blob(&repository, &blob, 3, 0).await?).await
    };
    let ca = format!("ca = {:?}\n", path("ca.crt"));
    assert_eq!(pull(&ca).await.unwrap(), b"abc");
    assert_eq!(pull("skip_verify = true\n").await.unwrap(), b"abc");
    let client = format!("{ca}client = [[{:?}, {:?}]]\n", path("client.crt"), path("client.key"));
    assert_eq!(pull(&client).await.unwrap(), b"abc");
    let text = pull("").await.unwrap_err().to_string();
    assert!(text.contains("certificate"), "{text}");
    let text = pull("ca = \"/none.crt\"\n").await.unwrap_err().to_string();
    assert!(text.starts_with("certificate /none.crt: No such file"), "{text}");
    // Asked for by the pod or the cache instead: it speaks TLS then, also on this very host.
    let insecure = RegistryAccess { insecure: vec![host.clone()], ..RegistryAccess::default() };
    let repository = self::client(None).open(&format!("{host}/a:v1").parse().unwrap(), &insecure).await.unwrap();
    assert_eq!(repository.resolve("v1", Resolve::WithContent).await.unwrap().digest, digest);
    let unasked = resolve(&self::client(None), &format!("{host}/a:v1"), &access(vec![])).await;
    assert!(unasked.is_err(), "{unasked:?}");
}

#[tokio::test]
async fn a_registry_may_want_a_client_certificate() {
    let certificates = Certificates::new();
    let registry = TestRegistry::start_tls(certificates.server(Client::MustShowOne)).await;
    registry.put_manifest("a", "v1", &manifest());
    let blob = registry.put_blob("abc");
    let text = format!(
        "[host.\"https://{}\"]\nca = \"ca.crt\"\nclient = [[\"client.crt\", \"client.key\"]]\n",
        registry.host()
    );
    let folder = certificates.folder.path().join("images.example.com");
    std::fs::create_dir(&folder).unwrap();
    for file in ["ca.crt", "client.crt", "client.key"] {
        std::fs::rename(certificates.folder.path().join(file), folder.join(file)).unwrap();
    }
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let client = client(Some(certificates.folder.path().to_owned()));
    let repository = client.open(&"images.example.com/a:v1".parse().unwrap(), &access(vec![])).await.unwrap();
    repository.resolve("v1", Resolve::WithContent).await.unwrap();
    assert_eq!(read(open_blob(&repository, &blob, 3, 0).await.unwrap()).await.unwrap(), b"abc");
}

/// Pulls a blob that `registry` keeps at `other`, with `settings` for the registry.
async fn pull_from(registry: &TestRegistry, other: &TestRegistry, settings: &str) -> Result<Vec<u8>, RegistryError> {
    let digest = other.put_blob("abc");
    registry.fault("blobs", 1, redirect(format!("https://localhost:{}/x/blobs/{digest}", port(other))));
    let config = mirror_config("images.example.com", &format!("server = \"https://{}\"\n{settings}", registry.host()));
    let client = client(Some(config.path().to_owned()));
    let repository = client.open(&"images.example.com/a:v1".parse().unwrap(), &access(vec![])).await.unwrap();
    read(open_blob(&repository, &digest, 3, 0).await?).await
}

#[tokio::test]
async fn a_client_certificate_is_not_shown_to_another_host() {
    let certificates = Certificates::new();
    let registry = TestRegistry::start_tls(certificates.server(Client::MayShowNone)).await;
    let quoted = |file| certificates.quoted(file);
    let pair = format!("client = [[{}, {}]]\n", quoted("client.crt"), quoted("client.key"));
    let settings = format!("ca = {}\n{pair}", quoted("ca.crt"));
    // Its authority is believed there, too: storage beside a registry is signed for by the same.
    let other = TestRegistry::start_tls(certificates.server(Client::MayShowNone)).await;
    assert_eq!(pull_from(&registry, &other, &settings).await.unwrap(), b"abc");
    let curious = TestRegistry::start_tls(certificates.server(Client::MustShowOne)).await;
    let text = pull_from(&registry, &curious, &settings).await.unwrap_err().to_string();
    assert!(text.contains("CertificateRequired"), "{text}");
}

#[tokio::test]
async fn another_hosts_certificate_is_verified() {
    let (own, others) = (Certificates::new(), Certificates::new());
    let registry = TestRegistry::start_tls(own.server(Client::MayShowNone)).await;
    let other = TestRegistry::start_tls(others.server(Client::MayShowNone)).await;
    let text = pull_from(&registry, &other, "skip_verify = true\n").await.unwrap_err().to_string();
    assert!(text.contains("certificate"), "{text}");
    let settings = format!("skip_verify = true\nca = {}\n", others.quoted("ca.crt"));
    assert_eq!(pull_from(&registry, &other, &settings).await.unwrap(), b"abc");
}
