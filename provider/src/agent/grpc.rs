//! The agent over gRPC: a Unix socket on one host, mutual TLS between hosts.
//!
//! The channel connects when it is first used and again after it broke; who calls decides when to call again. Every call
//! has a deadline, and HTTP/2 pings find a connection that has died without saying so.

mod convert;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use larder_proto::v1;
use larder_proto::v1::image_cache_service_client::ImageCacheServiceClient;
use larder_proto::v1::node_service_client::NodeServiceClient;
use larder_proto::v1::pod_service_client::PodServiceClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status};

use super::{
    AgentClient, AgentError, AgentStream, CacheChange, ImageCacheBuild, LogQuery, NodeFacts, NodeStats, PodChange,
    RunPod, Stopping,
};

/// A call that the agent answers from memory or after one write to tmpfs.
const CALL: Duration = Duration::from_secs(10);
/// Until the head of a stream is there.
const OPEN: Duration = Duration::from_secs(10);
/// Until a connection is made.
const CONNECT: Duration = Duration::from_secs(3);
/// Between HTTP/2 pings, and until one must be answered.
const PING: Duration = Duration::from_secs(4);
/// Room for the status of 250 pods with 20 containers each in one list.
const MESSAGE_LIMIT: usize = 64 << 20;

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be read.
    #[error("agent address {address:?} is neither unix:///PATH nor https://HOST:PORT")]
    Address {
        /// As given.
        address: String,
    },
    /// `https` without the files that it needs.
    #[error("agent address {address:?} needs --agent-tls-cert, --agent-tls-key and --agent-tls-ca")]
    TlsFilesMissing {
        /// As given.
        address: String,
    },
    /// A file of the TLS identity cannot be read.
    #[error("read {}", path.display())]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The TLS identity cannot be used.
    #[error("set up TLS for agent {address:?}")]
    Tls {
        /// As given.
        address: String,
        /// What the library said.
        source: tonic::transport::Error,
    },
}

/// The provider's own identity towards agents on other hosts, and the authority that signed theirs.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Client certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Authority of the agents' certificates, PEM.
    pub ca: PathBuf,
}

/// A client of one agent.
#[derive(Debug, Clone)]
pub struct GrpcAgent {
    address: String,
    channel: Channel,
}

impl GrpcAgent {
    /// A client for `address`; nothing is sent yet.
    ///
    /// # Errors
    /// When the address or the TLS files cannot be used.
    pub fn new(address: &str, tls: Option<&TlsFiles>) -> Result<Self, ConnectError> {
        let bad = || ConnectError::Address { address: address.to_owned() };
        let mut endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| bad())?;
        if address.starts_with("https://") {
            let files = tls.ok_or_else(|| ConnectError::TlsFilesMissing { address: address.to_owned() })?;
            endpoint = endpoint
                .tls_config(tls_config(files)?)
                .map_err(|source| ConnectError::Tls { address: address.to_owned(), source })?;
        } else if !address.starts_with("unix:///") {
            return Err(bad());
        }
        let channel = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .connect_lazy();
        Ok(Self { address: address.to_owned(), channel })
    }

    fn pods(&self) -> PodServiceClient<Channel> {
        PodServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    fn caches(&self) -> ImageCacheServiceClient<Channel> {
        ImageCacheServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }
}

fn tls_config(files: &TlsFiles) -> Result<ClientTlsConfig, ConnectError> {
    let read =
        |path: &PathBuf| std::fs::read(path).map_err(|source| ConnectError::TlsFile { path: path.clone(), source });
    let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
    Ok(ClientTlsConfig::new().identity(identity).ca_certificate(Certificate::from_pem(read(&files.ca)?)))
}

/// Sends one request with a deadline, at both ends.
async fn within<T>(
    call: &'static str,
    after: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(after, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(classify(call, &status)),
        Err(_) => Err(AgentError::Timeout { call, after }),
    }
}

fn classify(call: &'static str, status: &Status) -> AgentError {
    let message = with_causes(status);
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other code is a failure that may pass")]
    match status.code() {
        Code::Unavailable => AgentError::Unreachable { message },
        Code::DeadlineExceeded => AgentError::Timeout { call, after: CALL },
        Code::FailedPrecondition => AgentError::Refused { message },
        // tonic says so with an empty message.
        Code::Unimplemented => AgentError::Refused { message: format!("node agent does not offer {call}") },
        Code::InvalidArgument => AgentError::Invalid { message },
        Code::NotFound => AgentError::NotFound { message },
        _ => AgentError::Failed { call, message },
    }
}

/// The status' own message and what lies beneath it: "transport error" alone tells nobody that a socket is missing.
fn with_causes(status: &Status) -> String {
    let mut message = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            let _ = write!(message, ": {text}");
        }
        cause = error.source();
    }
    message
}

/// Converts a stream, leaving out what this version does not know.
fn converted<W, T, F>(
    call: &'static str,
    stream: impl Stream<Item = Result<W, Status>> + Send + 'static,
    convert: F,
) -> AgentStream<T>
where
    W: Send + 'static,
    T: Send + 'static,
    F: Fn(W) -> Result<Option<T>, AgentError> + Send + 'static,
{
    stream
        .filter_map(move |item| {
            let value = match item {
                Ok(wire) => convert(wire).transpose(),
                Err(status) => Some(Err(classify(call, &status))),
            };
            futures::future::ready(value)
        })
        .boxed()
}

/// A request that tells the agent how long the answer is waited for.
fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL);
    request
}

#[async_trait]
impl AgentClient for GrpcAgent {
    fn address(&self) -> &str {
        &self.address
    }

    async fn run_pod(&self, pod: &RunPod) -> Result<(), AgentError> {
        let message = convert::run_pod(pod)?;
        within("RunPod", CALL, self.pods().run_pod(request(message))).await.map(drop)
    }

    async fn stop_pod(&self, uid: &str, grace: Option<Duration>) -> Result<Stopping, AgentError> {
        let grace_period = grace.and_then(|grace| prost_types::Duration::try_from(grace).ok());
        let message = v1::StopPodRequest { uid: uid.to_owned(), grace_period };
        let answer = within("StopPod", CALL, self.pods().stop_pod(request(message))).await?;
        Ok(if answer.known { Stopping::Begun } else { Stopping::Unknown })
    }

    async fn watch_pods(&self) -> Result<AgentStream<PodChange>, AgentError> {
        let mut client = self.pods();
        let stream = within("WatchPods", OPEN, client.watch_pods(v1::WatchPodsRequest {})).await?;
        Ok(converted("WatchPods", stream, convert::pod_change))
    }

    async fn read_logs(&self, query: &LogQuery) -> Result<AgentStream<bytes::Bytes>, AgentError> {
        let mut client = self.pods();
        let stream = within("ReadLogs", OPEN, client.read_logs(convert::log_query(query))).await?;
        Ok(converted("ReadLogs", stream, |piece: v1::ReadLogsResponse| Ok(Some(piece.data))))
    }

    async fn node_facts(&self) -> Result<NodeFacts, AgentError> {
        within("GetNode", CALL, self.node().get_node(request(v1::GetNodeRequest {}))).await.map(convert::facts)
    }

    async fn watch_node(&self) -> Result<AgentStream<NodeFacts>, AgentError> {
        let mut client = self.node();
        let stream = within("WatchNode", OPEN, client.watch_node(v1::WatchNodeRequest {})).await?;
        Ok(converted("WatchNode", stream, |facts| Ok(Some(convert::facts(facts)))))
    }

    async fn stats(&self) -> Result<NodeStats, AgentError> {
        within("GetStats", CALL, self.node().get_stats(request(v1::GetStatsRequest {}))).await.map(convert::stats)
    }

    async fn build_image_cache(&self, build: &ImageCacheBuild) -> Result<(), AgentError> {
        let message = convert::build(build);
        within("BuildImageCache", CALL, self.caches().build_image_cache(request(message))).await.map(drop)
    }

    async fn delete_image_cache(&self, id: &str) -> Result<(), AgentError> {
        let message = v1::DeleteImageCacheRequest { id: id.to_owned() };
        within("DeleteImageCache", CALL, self.caches().delete_image_cache(request(message))).await.map(drop)
    }

    async fn watch_image_caches(&self) -> Result<AgentStream<CacheChange>, AgentError> {
        let mut client = self.caches();
        let stream =
            within("WatchImageCaches", OPEN, client.watch_image_caches(v1::WatchImageCachesRequest {})).await?;
        Ok(converted("WatchImageCaches", stream, |change| Ok(convert::cache_change(change))))
    }
}

#[cfg(test)]
mod tests;
