//! The task behind the webhooks: serves them, keeps their entries at the API server, and renews its certificates in time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certificates::{CertificateError, Certificates};
use super::registration::{IMAGE_CACHE_NAME, NAME, Target, entry, image_cache_entry, is_current};
use super::review::Placement;
use super::server::{ServingKey, router, serve};
use crate::cluster::{AccessApi, ClusterError, WatchStream, WebhookApi};
use crate::parts::{PartError, Parts};

/// Between two writes of the entry: the API server may be away, or somebody keeps changing it.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a timer runs at most, so that a clock that was set is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// How the webhook is reached, and what it brings pods to.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the API server finds it.
    pub target: Target,
    /// What it brings pods to.
    pub placement: Placement,
}

/// Why the webhook cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The address is taken, or not ours.
    #[error("listen for the webhook at {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What is wrong.
        source: std::io::Error,
    },
    /// Its certificates cannot be made.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
}

/// The webhook, ready to run.
#[derive(Debug)]
pub struct Webhook {
    api: Arc<dyn WebhookApi>,
    access: Arc<dyn AccessApi>,
    config: WebhookConfig,
    listener: TcpListener,
    address: SocketAddr,
    certificates: Certificates,
    registered: watch::Sender<bool>,
}

impl Webhook {
    /// Takes the address and makes the certificates.
    ///
    /// # Errors
    /// When the address cannot be had, or the target's name does not fit into a certificate.
    pub async fn bind(
        api: Arc<dyn WebhookApi>,
        access: Arc<dyn AccessApi>,
        config: WebhookConfig,
    ) -> Result<Self, WebhookError> {
        let listen = |source| WebhookError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let certificates = Certificates::make(&config.target.certificate_name(), Timestamp::now())?;
        Ok(Self { api, access, config, listener, address, certificates, registered: watch::Sender::new(false) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Becomes true once the API server has the entries.
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.registered.subscribe()
    }

    /// Works until `stop`.
    ///
    /// # Errors
    /// When it lacks one of its parts.
    pub async fn run(self, stop: CancellationToken) -> Result<(), PartError> {
        let key = ServingKey::new(self.certificates.key());
        let router = router(Arc::new(self.config.placement), self.access);
        let mut parts = Parts::default();
        parts.spawn("the server of the webhook", serve(self.listener, Arc::clone(&key), router, stop.clone()));
        let keeper = Keeper {
            entries: self.api.watch_webhook(NAME),
            checks: self.api.watch_validating_webhook(IMAGE_CACHE_NAME),
            api: self.api,
            target: self.config.target,
            certificates: self.certificates,
            key,
            registered: self.registered,
        };
        // The keeper writes whole entries only, so it can be left anywhere.
        let ended = tokio::select! {
            missing = keeper.run() => Err(missing),
            missing = parts.missing(&stop) => Err(missing),
            () = stop.cancelled() => Ok(()),
        };
        match ended {
            // The server lets its answers under way end.
            Ok(()) => parts.join().await,
            Err(missing) => {
                parts.shutdown().await;
                Err(missing)
            }
        }
    }
}

/// Keeps the entry and the certificates.
struct Keeper {
    api: Arc<dyn WebhookApi>,
    entries: WatchStream<MutatingWebhookConfiguration>,
    checks: WatchStream<ValidatingWebhookConfiguration>,
    target: Target,
    certificates: Certificates,
    key: Arc<ServingKey>,
    registered: watch::Sender<bool>,
}

impl Keeper {
    /// Works until it lacks a part.
    async fn run(mut self) -> PartError {
        // The outer nothing: it is not known yet.
        let (mut there, mut check_there) = (None, None);
        let mut renewal = self.certificates.renewal();
        loop {
            if let (Some(there), Some(check_there)) = (&there, &check_there) {
                let is_written = self.keep(Option::as_ref(there)).await;
                let is_check_written = self.keep_check(Option::as_ref(check_there)).await;
                self.registered.send_replace(true);
                if is_written || is_check_written {
                    // Whoever changes an entry over and over again is not answered at once.
                    tokio::time::sleep(PAUSE).await;
                }
            }
            let left: Duration = renewal.duration_since(Timestamp::now()).try_into().unwrap_or_default();
            // The stream keeps what is not taken, and a sleep can be begun again.
            tokio::select! {
                change = self.entries.next() => match change {
                    Some(change) => there = Some(change.only()),
                    None => return PartError::ended("the watch of the webhook's entry"),
                },
                change = self.checks.next() => match change {
                    Some(change) => check_there = Some(change.only()),
                    None => return PartError::ended("the watch of the entry for image caches"),
                },
                () = tokio::time::sleep(left.min(LONGEST_SLEEP)) => renewal = self.renew(renewal).await,
            }
        }
    }

    /// Makes the entry what it should be. True when it was not.
    async fn keep(&mut self, there: Option<&MutatingWebhookConfiguration>) -> bool {
        let wanted = entry(&self.target, &self.certificates.bundle());
        if there.is_some_and(|there| is_current(there, &wanted)) {
            return false;
        }
        register("webhook", &self.target, || self.api.apply_webhook(&wanted)).await;
        true
    }

    /// The same for the entry for image caches.
    async fn keep_check(&mut self, there: Option<&ValidatingWebhookConfiguration>) -> bool {
        let wanted = image_cache_entry(&self.target, &self.certificates.bundle());
        if there.is_some_and(|there| there.webhooks == wanted.webhooks) {
            return false;
        }
        register("webhook for image caches", &self.target, || self.api.apply_validating_webhook(&wanted)).await;
        true
    }

    /// Renews the certificates when that is due, and says when it is due next.
    async fn renew(&mut self, due: Timestamp) -> Timestamp {
        let now = Timestamp::now();
        if now < due {
            return due;
        }
        match self.certificates.renewed(now) {
            Ok(renewed) => {
                self.certificates = renewed;
                // The new authority must be trusted before its certificate is shown.
                self.keep(None).await;
                self.keep_check(None).await;
                tokio::time::sleep(PAUSE).await;
                self.key.change(self.certificates.key());
                tracing::info!("certificates of the webhook are renewed");
                self.certificates.renewal()
            }
            // The entry is kept meanwhile, and the old certificates are good for months.
            Err(error) => {
                tracing::error!(%error, "certificates of the webhook cannot be renewed, trying again in an hour");
                now + LONGEST_SLEEP
            }
        }
    }
}

/// Writes an entry, however often that has to be tried.
async fn register<W: Future<Output = Result<(), ClusterError>>>(what: &str, target: &Target, write: impl Fn() -> W) {
    while let Err(error) = write().await {
        tracing::warn!(%error, "{what} is not registered, trying again");
        tokio::time::sleep(PAUSE).await;
    }
    tracing::info!(%target, "{what} is registered");
}
