//! Where calls come in: a Unix socket for root alone, or TCP with mutual TLS.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::config::{Listen, TlsFiles};

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listening {
    /// Unix.
    Unix(UnixListenerStream),
    /// TCP with mutual TLS.
    Https(TcpListenerStream, Box<ServerTlsConfig>),
}

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another agent answers there.
    #[error("another agent listens on {0}: end it, or give this one another --listen and --run-dir")]
    InUse(PathBuf),
    /// The host refused.
    #[error("{action} {path}")]
    Io {
        /// `listen on` ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host refused.
    #[error("listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// https without its files; the command line is checked for that.
    #[error("https needs certificates")]
    NoTls,
}

/// Listens. A socket that an agent left behind is replaced; one that is answered on is not.
///
/// # Errors
/// See [`ListenError`].
pub async fn listen(listen: &Listen, tls: Option<&TlsFiles>) -> Result<Listening, ListenError> {
    match listen {
        Listen::Unix(path) => Ok(Listening::Unix(listen_unix(path)?)),
        Listen::Https(address) => {
            let tls = Box::new(server_tls(tls.ok_or(ListenError::NoTls)?)?);
            let listener =
                TcpListener::bind(address).await.map_err(|source| ListenError::Tcp { address: *address, source })?;
            Ok(Listening::Https(TcpListenerStream::new(listener), tls))
        }
    }
}

fn listen_unix(path: &Path) -> Result<UnixListenerStream, ListenError> {
    let error = |action| {
        let path = path.to_owned();
        move |source| ListenError::Io { action, path, source }
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(error("create the folder of"))?;
    }
    if path.exists() {
        if UnixStream::connect(path).is_ok() {
            return Err(ListenError::InUse(path.to_owned()));
        }
        fs::remove_file(path).map_err(error("replace"))?;
    }
    // Made under another name and then renamed, so that at no moment others may open it.
    let unfinished = path.with_extension("unfinished");
    let _ = fs::remove_file(&unfinished);
    let listener = UnixListener::bind(&unfinished).map_err(error("listen on"))?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600)).map_err(error("set the mode of"))?;
    fs::rename(&unfinished, path).map_err(error("listen on"))?;
    Ok(UnixListenerStream::new(listener))
}

fn server_tls(files: &TlsFiles) -> Result<ServerTlsConfig, ListenError> {
    let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
    Ok(ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(read(&files.client_ca)?)))
}

fn read(path: &Path) -> Result<Vec<u8>, ListenError> {
    fs::read(path).map_err(|source| ListenError::Io { action: "read", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.sock");
        let first = listen(&Listen::Unix(path.clone()), None).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(listen(&Listen::Unix(path.clone()), None).await, Err(ListenError::InUse(_))));
        drop(first);
        assert!(path.exists());
        listen(&Listen::Unix(path), None).await.unwrap();
    }
}
