//! The TLS side: certificate, key and client authority, read again when they change on disk.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

/// Files that change together are written one after the other.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two looks at files that cannot be watched.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read as PEM.
    #[error("read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls_pki_types::pem::Error,
    },
    /// A file holds nothing of use.
    #[error("{} holds no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// No certificate can be made.
    #[error("make a certificate")]
    Make(#[source] rcgen::Error),
    /// Certificate and key, or the authority, do not fit.
    #[error("use the certificates of the kubelet API")]
    Use(#[source] rustls::Error),
    /// The client authority cannot verify anybody.
    #[error("use {} to verify clients", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::server::VerifierBuilderError,
    },
    /// The files cannot be watched.
    #[error("watch {} for changes", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Where the certificates are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) pair: Option<(PathBuf, PathBuf)>,
    pub(super) client_ca: Option<PathBuf>,
    pub(super) node: String,
    pub(super) address: IpAddr,
}

/// The newest usable configuration.
pub(super) type Current = Arc<ArcSwap<ServerConfig>>;

/// Reads everything, or makes what is not given.
pub(super) fn load(files: &Files) -> Result<ServerConfig, CertificateError> {
    let (chain, key) = match &files.pair {
        Some((certificate, key)) => (certificates(certificate)?, private_key(key)?),
        None => self_signed(files)?,
    };
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier(files.client_ca.as_deref())?)
        .with_single_cert(chain, key)
        .map_err(CertificateError::Use)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let bad = |source| CertificateError::File { path: path.to_owned(), source };
    let found: Vec<_> = CertificateDer::pem_file_iter(path).map_err(bad)?.collect::<Result<_, _>>().map_err(bad)?;
    if found.is_empty() {
        return Err(CertificateError::Empty { path: path.to_owned() });
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| CertificateError::File { path: path.to_owned(), source })
}

/// A certificate is welcome and not demanded: who has none may have a token.
fn verifier(client_ca: Option<&Path>) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let Some(path) = client_ca else { return Ok(Arc::new(NoClientAuth)) };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(CertificateError::Use)?;
    }
    let builder = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated();
    let verifier = builder.build().map_err(|source| CertificateError::Verifier { path: path.to_owned(), source })?;
    Ok(verifier)
}

fn self_signed(files: &Files) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CertificateError> {
    let mut params = CertificateParams::new(vec![files.node.clone()]).map_err(CertificateError::Make)?;
    params.subject_alt_names.push(SanType::IpAddress(files.address));
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{}", files.node));
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    let key = KeyPair::generate().map_err(CertificateError::Make)?;
    let certificate = params.self_signed(&key).map_err(CertificateError::Make)?;
    Ok((vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
}

/// Puts a new configuration in place whenever the files change. Files that cannot be used leave the old one in place. While
/// they cannot be watched, they are looked at now and then. Never ends.
pub(super) async fn keep_current(files: Files, current: Current) {
    let folders = folders(&files);
    if folders.is_empty() {
        std::future::pending::<()>().await;
    }
    let mut taken = fingerprint(&files);
    let mut is_told = false;
    loop {
        let error = match watch(&folders) {
            Ok(mut changes) => {
                is_told = false;
                take(&files, &current, &mut taken);
                while changes.next().await.is_some() {
                    tokio::time::sleep(SETTLE).await;
                    take(&files, &current, &mut taken);
                }
                "the system ended the watch".to_owned()
            }
            Err(error) => error.to_string(),
        };
        if !is_told {
            tracing::warn!(error, every = ?LOOK_AGAIN, "certificates cannot be watched for changes, looking now and then");
            is_told = true;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        take(&files, &current, &mut taken);
    }
}

/// The folders that the files lie in.
fn folders(files: &Files) -> Vec<PathBuf> {
    let paths = files.pair.iter().flat_map(|(certificate, key)| [certificate, key]).chain(&files.client_ca);
    let folder = |path: &Path| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    let folders: BTreeSet<PathBuf> = paths.map(|path| folder(path)).collect();
    folders.into_iter().collect()
}

fn watch(folders: &[PathBuf]) -> Result<EventStream<[u8; 4096]>, CertificateError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CertificateError::Watch { path, source }
    };
    let inotify = Inotify::init().map_err(failed(&folders[0]))?;
    // Mounted Secrets change by a link that is moved, other files by being written or moved.
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE;
    for folder in folders {
        inotify.watches().add(folder, mask).map_err(failed(folder))?;
    }
    inotify.into_event_stream([0u8; 4096]).map_err(failed(&folders[0]))
}

/// Reads the files when they are others than those that were taken last.
fn take(files: &Files, current: &Current, taken: &mut [u8; 32]) {
    let seen = fingerprint(files);
    if seen == *taken {
        // Something else in the folder has changed.
        return;
    }
    match load(files) {
        Ok(config) => {
            current.store(Arc::new(config));
            *taken = seen;
            tracing::info!("read the certificates of the kubelet API again");
        }
        Err(error) => tracing::warn!(%error, "new certificates cannot be used, keeping the old ones"),
    }
}

/// What the files hold, in short.
fn fingerprint(files: &Files) -> [u8; 32] {
    let mut hash = Sha256::new();
    let pair = files.pair.iter().flat_map(|(certificate, key)| [certificate, key]);
    for path in pair.chain(&files.client_ca) {
        hash.update(std::fs::read(path).unwrap_or_default());
        hash.update([0]);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
