//! The task behind the webhooks: serves them, keeps their entries at the API server, the one for pods as the profile and the
//! Selectors want it, and renews the certificates in time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::ConfigMap;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::certificates::{CertificateError, Certificates};
use super::late;
use super::registration::{
    Called, IMAGE_CACHE_NAME, NAME, Target, Wanted, at_fault, brief, called_for, entry, image_cache_entry, is_current,
    kept_profile, kept_selectors,
};
use super::review::Placement;
use super::selected::Selected;
use super::selector_keeper::SelectorKeeper;
use super::server::{Desk, ServingKey, router, serve};
use crate::cluster::profile::regarding_profile;
use crate::cluster::{
    AccessApi, ClusterError, EventNote, EventRecorder, ProfileApi, SelectorApi, Source, WatchStream, WebhookApi,
};
use crate::custom_resource::selector::Selector;
use crate::parts::{PartError, Parts};
use crate::profile::{Profile, Standing, Told};
use crate::selector::Rules;

/// Between two writes of the entry: the API server may be away, or somebody keeps changing it.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the entry waits, once it has been seen, for the profile and the Selectors to be known. Who may not read them gets
/// it all the same, with what it was made for before.
const PATIENCE: Duration = Duration::from_secs(5);
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

/// What the webhook works with.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The entries at the API server.
    pub entries: Arc<dyn WebhookApi>,
    /// The profile there.
    pub profiles: Arc<dyn ProfileApi>,
    /// The Selectors there.
    pub selectors: Arc<dyn SelectorApi>,
    /// Who may do what there.
    pub access: Arc<dyn AccessApi>,
    /// Takes events about the profile and the Selectors.
    pub events: EventRecorder,
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
    around: Surroundings,
    config: WebhookConfig,
    listener: TcpListener,
    address: SocketAddr,
    certificates: Certificates,
    registered: watch::Sender<bool>,
    selected: watch::Sender<Option<Arc<Rules>>>,
}

impl Webhook {
    /// Takes the address and makes the certificates.
    ///
    /// # Errors
    /// When the address cannot be had, or the target's name does not fit into a certificate.
    pub async fn bind(around: Surroundings, config: WebhookConfig) -> Result<Self, WebhookError> {
        let listen = |source| WebhookError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let certificates = Certificates::make(&config.target.certificate_name(), Timestamp::now())?;
        let (registered, selected) = (watch::Sender::new(false), watch::Sender::new(None));
        Ok(Self { around, config, listener, address, certificates, registered, selected })
    }

    /// Says which Selectors act, while it works.
    pub fn selected(&self) -> Selected {
        Selected::new(self.selected.subscribe())
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
        let desk = Desk::new(self.config.placement.clone());
        let router = router(Arc::clone(&desk), Arc::clone(&self.around.access));
        let mut parts = Parts::default();
        parts.spawn("the server of the webhook", serve(self.listener, Arc::clone(&key), router, stop.clone()));
        let (selectors, taints) = (Arc::clone(&self.around.selectors), self.config.placement.taints.clone());
        let helping = late::help(Arc::clone(&selectors), Selected::new(self.selected.subscribe()), taints);
        // It writes one pod at a time, and can be left anywhere.
        parts.spawn("the helper of pods that no node takes", stop.clone().run_until_cancelled_owned(helping).map(drop));
        let keeper = Keeper {
            selector_changes: selectors.watch_selectors(),
            selectors: SelectorKeeper::new(self.around.events.clone(), self.selected),
            earlier_rules: vec![],
            entries: self.around.entries.watch_webhook(NAME),
            checks: self.around.entries.watch_validating_webhook(IMAGE_CACHE_NAME),
            profiles: self.around.profiles.watch_profile(),
            around: self.around,
            config: self.config,
            certificates: self.certificates,
            key,
            desk,
            standing: None,
            config_map: Seen::NotYet,
            has_new_key: false,
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

/// The ConfigMap of the profile, as far as it has been seen.
enum Seen {
    NotYet,
    /// Nobody says in time whether it is there: what was kept holds until somebody does.
    Unknown,
    Known(Option<Box<ConfigMap>>),
}

/// Keeps the entry and the certificates.
struct Keeper {
    selector_changes: WatchStream<Selector>,
    selectors: SelectorKeeper,
    /// The Selectors that the entry called for when it was first seen. They hold until it is known which there are.
    earlier_rules: Vec<Called>,
    around: Surroundings,
    entries: WatchStream<MutatingWebhookConfiguration>,
    checks: WatchStream<ValidatingWebhookConfiguration>,
    profiles: WatchStream<ConfigMap>,
    config: WebhookConfig,
    certificates: Certificates,
    key: Arc<ServingKey>,
    desk: Arc<Desk>,
    /// Nothing until the entry has been seen, which keeps what an earlier life of this process went by.
    standing: Option<Standing>,
    config_map: Seen,
    /// Whether the server still shows the key of the certificates before these.
    has_new_key: bool,
    registered: watch::Sender<bool>,
}

/// What has become of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// It was as it should be.
    Already,
    /// It is now.
    Written,
    /// The API server does not take it.
    Not,
}

impl Keeper {
    /// Works until it lacks a part.
    async fn run(mut self) -> PartError {
        let mut there = None;
        // The outer nothing: it is not known yet.
        let mut check_there = None;
        let mut renewal = self.certificates.renewal();
        // It begins when the API server answers.
        let (mut patience, mut is_patient) = (None, true);
        let mut again = None;
        loop {
            self.look_at_profile();
            let is_ready = self.knows_the_profile() && (self.selectors.is_known() || !is_patient);
            if let (Some(check_there), true) = (&check_there, is_ready) {
                let kept = [self.keep(there.as_ref()).await, self.keep_check(Option::as_ref(check_there)).await];
                let is_taken = !kept.contains(&Kept::Not);
                if kept.contains(&Kept::Written) || (is_taken && self.has_new_key) {
                    // Whoever changes an entry over and over again is not answered at once, and a new authority must be
                    // trusted before its certificate is shown.
                    tokio::time::sleep(PAUSE).await;
                }
                if is_taken {
                    self.show_new_key();
                    self.registered.send_replace(true);
                }
                // What is looked at meanwhile may be what mends it.
                again = (!is_taken).then(|| Instant::now() + PAUSE);
            }
            let left: Duration = renewal.duration_since(Timestamp::now()).try_into().unwrap_or_default();
            // The streams keep what is not taken, and a sleep can be begun again.
            tokio::select! {
                change = self.entries.next() => {
                    let Some(change) = change else { return PartError::ended("the watch of the webhook's entry") };
                    there = change.only();
                    if self.standing.is_none() {
                        patience = Some(Instant::now() + PATIENCE);
                        self.earlier_rules = there.as_ref().map(called_for).unwrap_or_default();
                    }
                    let kept = || Standing::restored(there.as_ref().and_then(kept_profile));
                    // What the API server calls for is what an earlier life of this process went by.
                    self.desk.hold(self.standing.get_or_insert_with(kept).profile());
                    self.selectors.restore(there.as_ref().and_then(kept_selectors));
                }
                change = self.checks.next() => match change {
                    Some(change) => check_there = Some(change.only()),
                    None => return PartError::ended("the watch of the entry for image caches"),
                },
                change = self.profiles.next() => {
                    let Some(change) = change else { return PartError::ended("the watch of the profile") };
                    self.config_map = Seen::Known(change.only().map(Box::new));
                }
                change = self.selector_changes.next() => match change {
                    Some(change) => self.selectors.take(change),
                    None => return PartError::ended("the watch of the selectors"),
                },
                () = until(patience), if is_patient => {
                    is_patient = false;
                    if matches!(self.config_map, Seen::NotYet) {
                        self.config_map = Seen::Unknown;
                    }
                }
                () = until(again) => {}
                () = tokio::time::sleep(left.min(LONGEST_SLEEP)) => renewal = self.renew(renewal),
            }
        }
    }

    /// Takes in what the ConfigMap says, and tells its user what is to be told.
    fn look_at_profile(&mut self) {
        let (Some(standing), Seen::Known(config_map)) = (&mut self.standing, &self.config_map) else { return };
        let data = config_map.as_ref().and_then(|config_map| config_map.data.clone()).unwrap_or_default();
        for told in standing.take(data) {
            tell(&self.around.events, config_map.as_deref(), told);
        }
    }

    fn knows_the_profile(&self) -> bool {
        self.standing.is_some() && !matches!(self.config_map, Seen::NotYet)
    }

    /// Makes the entry what it should be. Where the API server finds fault with it, what is new in it is given up first.
    async fn keep(&mut self, there: Option<&MutatingWebhookConfiguration>) -> Kept {
        loop {
            let Some(standing) = &mut self.standing else { return Kept::Not };
            let (profile, record) = (standing.profile(), standing.record());
            let (rules, rules_record) = (self.selectors.rules(), self.selectors.record());
            let are_rules_known = self.selectors.is_known();
            let wanted = entry(&Wanted {
                target: &self.config.target,
                ca_bundle: &self.certificates.bundle(),
                profile: &profile,
                record: &record,
                rules: &rules,
                earlier_rules: if are_rules_known { &[] } else { &self.earlier_rules },
                rules_record: &rules_record,
                placement: &self.config.placement,
            });
            // Before the first call for it can come.
            self.desk.hold(Arc::clone(&profile));
            if are_rules_known {
                self.desk.hold_rules(Arc::clone(&rules));
            }
            let is_there = there.is_some_and(|there| is_current(there, &wanted));
            let written = if is_there { Ok(()) } else { self.around.entries.apply_webhook(&wanted).await };
            let Err(error) = written else {
                standing.settle();
                self.selectors.settle();
                if is_there {
                    return Kept::Already;
                }
                tracing::info!(target = %self.config.target, "webhook is registered");
                return Kept::Written;
            };
            if let Some(message) = fault_of(&error)
                && self.give_up(message, &profile, &rules)
            {
                continue;
            }
            tracing::warn!(%error, "webhook is not registered, trying again");
            return Kept::Not;
        }
    }

    /// The API server refuses the entry: what is at fault goes back to what was taken last. False when nothing is new.
    fn give_up(&mut self, message: &str, profile: &Profile, rules: &Rules) -> bool {
        let (culprit, message) = (at_fault(message, profile, rules), &*brief(message));
        if culprit.is_some() && self.selectors.give_up(culprit.as_ref(), message) {
            return true;
        }
        let Some(told) = self.standing.as_mut().and_then(|standing| standing.give_up(message)) else {
            return self.selectors.give_up(None, message);
        };
        if let Seen::Known(config_map) = &self.config_map {
            tell(&self.around.events, config_map.as_deref(), told);
        }
        true
    }

    /// The same for the entry for image caches.
    async fn keep_check(&mut self, there: Option<&ValidatingWebhookConfiguration>) -> Kept {
        let wanted = image_cache_entry(&self.config.target, &self.certificates.bundle());
        if there.is_some_and(|there| there.webhooks == wanted.webhooks) {
            return Kept::Already;
        }
        if let Err(error) = self.around.entries.apply_validating_webhook(&wanted).await {
            tracing::warn!(%error, "webhook for image caches is not registered, trying again");
            return Kept::Not;
        }
        tracing::info!(target = %self.config.target, "webhook for image caches is registered");
        Kept::Written
    }

    /// The API server trusts the authority of the newest certificates: they are shown.
    fn show_new_key(&mut self) {
        if std::mem::take(&mut self.has_new_key) {
            self.key.change(self.certificates.key());
            tracing::info!("certificates of the webhook are renewed");
        }
    }

    /// Renews the certificates when that is due, and says when it is due next.
    fn renew(&mut self, due: Timestamp) -> Timestamp {
        let now = Timestamp::now();
        if now < due {
            return due;
        }
        match self.certificates.renewed(now) {
            Ok(renewed) => {
                (self.certificates, self.has_new_key) = (renewed, true);
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

/// What the API server says of an entry that it finds fault with. It may also refuse us, whatever the entry says.
fn fault_of(error: &ClusterError) -> Option<&str> {
    match error {
        ClusterError::Refused { code: 400 | 413 | 422, message, .. } => Some(message),
        ClusterError::Refused { .. }
        | ClusterError::NotFound { .. }
        | ClusterError::Conflict { .. }
        | ClusterError::Unavailable { .. } => None,
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn tell(events: &EventRecorder, config_map: Option<&ConfigMap>, told: Told) {
    tracing::info!(reason = told.reason, message = told.message, "about the profile");
    events.record(EventNote {
        regarding: regarding_profile(config_map),
        source: Source::EciService,
        warning: told.warning,
        reason: told.reason.to_owned(),
        message: told.message,
        time: None,
    });
}

#[cfg(test)]
mod tests;
