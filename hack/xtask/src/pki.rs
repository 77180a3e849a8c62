//! A certificate authority and what it signs, for clusters made here. Never part of a product: keys lie on disk and
//! certificates do not end.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// What can go wrong with a key or a certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A certificate could not be made.
    #[error("make certificate for {subject}")]
    Make {
        /// Whom it is for.
        subject: String,
        /// The cause.
        source: rcgen::Error,
    },
    /// A file could not be read or written.
    #[error("access {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// To prove who a client is.
    Client,
    /// To prove who a server is.
    Server,
    /// Both, as etcd asks of its peers.
    Both,
}

/// Whom a certificate is for.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Kubernetes' user name.
    pub common_name: String,
    /// Kubernetes' group. One is enough, and more cannot be written by the library.
    pub organization: Option<String>,
    /// DNS names and addresses of a server.
    pub names: Vec<String>,
    /// What it may be used for.
    pub usage: Usage,
}

impl Leaf {
    /// A client: a Kubernetes user and the user's group.
    #[must_use]
    pub fn client(user: &str, group: Option<&str>) -> Self {
        Self {
            common_name: user.to_owned(),
            organization: group.map(str::to_owned),
            names: Vec::new(),
            usage: Usage::Client,
        }
    }

    /// A server with its DNS names and addresses.
    #[must_use]
    pub fn server(name: &str, names: &[String]) -> Self {
        Self { common_name: name.to_owned(), organization: None, names: names.to_vec(), usage: Usage::Server }
    }
}

/// A certificate and its private key, as PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key, PKCS#8.
    pub key: String,
}

/// Where a pair lies.
#[derive(Debug, Clone)]
pub struct PairFiles {
    /// `STEM.crt`.
    pub certificate: PathBuf,
    /// `STEM.key`, readable by its owner only.
    pub key: PathBuf,
}

impl PairFiles {
    /// The names a pair has in a folder.
    #[must_use]
    pub fn named(dir: &Path, stem: &str) -> Self {
        Self { certificate: dir.join(format!("{stem}.crt")), key: dir.join(format!("{stem}.key")) }
    }

    /// Reads the pair; none when a file is missing.
    #[must_use]
    pub fn read(&self) -> Option<Pair> {
        let certificate = fs::read_to_string(&self.certificate).ok()?;
        Some(Pair { certificate, key: fs::read_to_string(&self.key).ok()? })
    }

    /// Writes the pair.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, pair: &Pair) -> Result<(), PkiError> {
        write_private(&self.key, pair.key.as_bytes())?;
        write_private(&self.certificate, pair.certificate.as_bytes())
    }
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    files: PairFiles,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority that lies in this folder under this name, made when it is not there.
    ///
    /// # Errors
    /// When it can neither be read nor made.
    pub fn open(dir: &Path, name: &str) -> Result<Self, PkiError> {
        let failed = |source| PkiError::Make { subject: name.to_owned(), source };
        let files = PairFiles::named(dir, name);
        if let Some(pair) = files.read() {
            let key = KeyPair::from_pem(&pair.key).map_err(failed)?;
            let issuer = Issuer::from_ca_cert_pem(&pair.certificate, key).map_err(failed)?;
            return Ok(Self { files, certificate: pair.certificate, issuer });
        }
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(Vec::<String>::new()).map_err(failed)?;
        params.distinguished_name = subject(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        files.write(&Pair { certificate: certificate.clone(), key: key.serialize_pem() })?;
        Ok(Self { files, certificate, issuer: Issuer::new(params, key) })
    }

    /// The authority's own certificate, as PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Where the authority's certificate and key lie.
    #[must_use]
    pub fn files(&self) -> &PairFiles {
        &self.files
    }

    /// Makes a key and signs a certificate for it.
    ///
    /// # Errors
    /// When a name is not a DNS name.
    pub fn sign(&self, leaf: &Leaf) -> Result<Pair, PkiError> {
        let failed = |source| PkiError::Make { subject: leaf.common_name.clone(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(leaf.names.clone()).map_err(failed)?;
        params.distinguished_name = subject(&leaf.common_name, leaf.organization.as_deref());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = match leaf.usage {
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Both => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        };
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }

    /// The pair that lies in this folder under this name, signed when it is not there. A pair that is there is kept
    /// whatever it was made for: names belong into the stem when they can change.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn sign_once(&self, dir: &Path, stem: &str, leaf: &Leaf) -> Result<PairFiles, PkiError> {
        let files = PairFiles::named(dir, stem);
        if files.read().is_none() {
            files.write(&self.sign(leaf)?)?;
        }
        Ok(files)
    }
}

/// A key for service account tokens: private and public half as `STEM.key` and `STEM.pub`, made when not there.
///
/// # Errors
/// When it cannot be made or written.
pub fn token_key(dir: &Path, stem: &str) -> Result<(PathBuf, PathBuf), PkiError> {
    let (private, public) = (dir.join(format!("{stem}.key")), dir.join(format!("{stem}.pub")));
    if !(private.exists() && public.exists()) {
        let key = KeyPair::generate().map_err(|source| PkiError::Make { subject: stem.to_owned(), source })?;
        write_private(&private, key.serialize_pem().as_bytes())?;
        write_private(&public, key.public_key_pem().as_bytes())?;
    }
    Ok((private, public))
}

/// Writes a file that only its owner can read, with the folders above it.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut file =
        fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(content).map_err(failed)
}

fn subject(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_the_same_after_reopening() {
        let dir = tempfile::tempdir().expect("make a folder");
        let made = Authority::open(dir.path(), "ca").expect("make");
        let opened = Authority::open(dir.path(), "ca").expect("open");
        assert_eq!(made.certificate(), opened.certificate());
        let leaf = Leaf::server("larder", &["127.0.0.1".to_owned(), "localhost".to_owned()]);
        let pair = opened.sign(&leaf).expect("sign");
        assert!(pair.certificate.starts_with("-----BEGIN CERTIFICATE"));
        assert!(pair.key.starts_with("-----BEGIN PRIVATE KEY"));
    }

    #[test]
    fn a_pair_is_signed_once_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("make a folder");
        let ca = Authority::open(dir.path(), "ca").expect("make");
        let leaf = Leaf::client("system:kube-scheduler", None);
        let first = ca.sign_once(dir.path(), "scheduler", &leaf).expect("sign").read().expect("read");
        let files = ca.sign_once(dir.path(), "scheduler", &leaf).expect("keep");
        assert_eq!(first.certificate, files.read().expect("read").certificate);
        let mode = fs::metadata(&files.key).expect("look at the key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
