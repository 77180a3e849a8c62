//! Stands between an agent and the registry, passes every byte on, and notes when the registry's last one went by.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes that are passed on at a time.
const PIECE: usize = 64 * 1024;

/// The proxy. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    address: SocketAddr,
    last_byte: Arc<Mutex<Option<Instant>>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port of loopback for what is meant for `registry`.
    pub(super) async fn start(registry: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen as a proxy")?;
        let (address, last_byte) = (listener.local_addr()?, Arc::<Mutex<Option<Instant>>>::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, registry, Arc::clone(&last_byte)));
        Ok(Self { address, last_byte, _tasks: tasks })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// When the registry's last byte so far was read from it.
    pub(super) fn last_byte(&self) -> Option<Instant> {
        *self.last_byte.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, registry: SocketAddr, last_byte: Arc<Mutex<Option<Instant>>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let last_byte = Arc::clone(&last_byte);
        // One that breaks is the agent's to notice.
        connections.spawn(async move { drop(pass(client, registry, &last_byte).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(client: TcpStream, registry: SocketAddr, last_byte: &Mutex<Option<Instant>>) -> std::io::Result<()> {
    let server = TcpStream::connect(registry).await?;
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let requests = async {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let answers = async {
        let mut piece = vec![0; PIECE];
        loop {
            let read = from_server.read(&mut piece).await?;
            if read == 0 {
                return to_client.shutdown().await;
            }
            // Before it is written: a slow reader's time is the reader's.
            *last_byte.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            to_client.write_all(piece.get(..read).unwrap_or_default()).await?;
        }
    };
    tokio::try_join!(requests, answers).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_and_the_last_is_noted() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
        assert_eq!(proxy.last_byte(), None);
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_all(b"question").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut text = [0; 8];
        server.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"question");
        assert_eq!(proxy.last_byte(), None);
        let before = Instant::now();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        assert!(proxy.last_byte().unwrap() >= before);
    }
}
