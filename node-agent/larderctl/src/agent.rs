//! The connection to the node agent.

use std::io;
use std::time::Duration;

use larder_proto::v1::image_cache_service_client::ImageCacheServiceClient;
use larder_proto::v1::pod_service_client::PodServiceClient;
use larder_proto::v1::pull_service_client::PullServiceClient;
use larder_proto::v1::store_service_client::StoreServiceClient;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Until the connection is made.
const CONNECT: Duration = Duration::from_secs(5);
/// Room for the status of 250 pods with 20 containers each in one list.
const MESSAGE_LIMIT: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    /// The address cannot be read.
    #[error("--agent {0:?} is not unix:///PATH")]
    Address(String),
    /// Nobody answers there.
    #[error(
        "no node agent answers at {address}: is larder-node-agent running, does its --listen say the same, and are you root?"
    )]
    Connect {
        /// Where.
        address: String,
        /// What the system said.
        source: tonic::transport::Error,
    },
    /// The agent is older than this program.
    #[error("the node agent does not know how to {doing}: it is older than this larderctl")]
    TooOld {
        /// What was asked of it.
        doing: &'static str,
    },
    /// The agent refused, or failed.
    #[error("{doing}: {message}")]
    Refused {
        /// What was asked of it.
        doing: &'static str,
        /// What it said.
        message: String,
    },
    /// There is no such thing.
    #[error("there is no image cache {0:?}")]
    NoCache(String),
    /// The stream ended before its last element.
    #[error("{0}: the node agent has ended in the middle")]
    CutShort(&'static str),
    /// No login can be read.
    #[error("read the password from standard input")]
    Password(#[source] io::Error),
    /// The answer cannot be written.
    #[error("write the answer")]
    Output(#[source] io::Error),
    /// This process cannot wait for anything.
    #[error("set up this program")]
    Runtime(#[source] io::Error),
}

/// A connection to the agent.
#[derive(Debug)]
pub(crate) struct Agent {
    channel: Channel,
}

impl Agent {
    pub(crate) async fn connect(address: &str) -> Result<Self, CtlError> {
        let bad = || CtlError::Address(address.to_owned());
        if !address.starts_with("unix:///") {
            return Err(bad());
        }
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| bad())?;
        let channel = endpoint.connect_timeout(CONNECT).connect().await;
        let channel = channel.map_err(|source| CtlError::Connect { address: address.to_owned(), source })?;
        Ok(Self { channel })
    }

    pub(crate) fn store(&self) -> StoreServiceClient<Channel> {
        StoreServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(crate) fn caches(&self) -> ImageCacheServiceClient<Channel> {
        ImageCacheServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(crate) fn pulls(&self) -> PullServiceClient<Channel> {
        PullServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(crate) fn pods(&self) -> PodServiceClient<Channel> {
        PodServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }
}

/// Puts the agent's refusal into words.
pub(crate) fn refused(doing: &'static str) -> impl Fn(Status) -> CtlError {
    move |status| {
        if status.code() == tonic::Code::Unimplemented {
            CtlError::TooOld { doing }
        } else {
            CtlError::Refused { doing, message: status.message().to_owned() }
        }
    }
}
