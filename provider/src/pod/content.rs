//! Gathers what a pod refers to: objects are watched, tokens asked for, logins decoded.
//!
//! What is missing is left out and not an error: the agent decides what a container can do without, and reports it as a
//! kubelet would. What cannot be told yet, because the API server does not answer, is one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use tokio::sync::watch;
use tokio::time::Instant;

use super::objects::References;
use super::pull_credentials::credentials;
use super::service_env::service_env;
use super::status::Failure;
use crate::agent::{RegistryCredential, ResolvedObject, ServiceAccountToken};
use crate::cluster::objects::{IssuedToken, Known, KnownServices, SharedContent, TokenWish};
use crate::cluster::pods::PodName;
use crate::cluster::{ObjectApi, ObjectKey, ObjectKind, ObjectStore};

/// Until every object must be known, be it as missing.
const RESOLVE: Duration = Duration::from_secs(10);
/// The part of a token's life after which it is renewed.
const TOKEN_AGE: f64 = 0.8;

/// Objects that were handed over, by key; `None` for one that is missing.
pub(super) type Contents = BTreeMap<ObjectKey, Option<SharedContent>>;

/// What a pod refers to, ready to be handed over.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) config_maps: Vec<ResolvedObject>,
    pub(super) secrets: Vec<ResolvedObject>,
    pub(super) tokens: Vec<ServiceAccountToken>,
    pub(super) service_env: Vec<(String, String)>,
    pub(super) credentials: Vec<RegistryCredential>,
    /// Pull Secrets that give no login, with the reason.
    pub(super) unusable_pull_secrets: Vec<(String, String)>,
    /// What was read, to tell later whether it has changed.
    pub(super) contents: Contents,
}

/// Keeps watch over what one pod refers to.
#[derive(Debug)]
pub(super) struct ContentWatch {
    api: Arc<dyn ObjectApi>,
    store: ObjectStore,
    followed: BTreeMap<ObjectKey, watch::Receiver<Known>>,
    services: watch::Receiver<KnownServices>,
    tokens: BTreeMap<TokenWish, HeldToken>,
}

#[derive(Debug)]
struct HeldToken {
    token: String,
    renew_at: Instant,
}

impl ContentWatch {
    pub(super) fn new(api: Arc<dyn ObjectApi>, store: ObjectStore) -> Self {
        let services = store.services();
        Self { api, store, followed: BTreeMap::new(), services, tokens: BTreeMap::new() }
    }

    /// When the first token is to be renewed.
    pub(super) fn renew_at(&self) -> Option<Instant> {
        self.tokens.values().map(|token| token.renew_at).min()
    }

    /// What is known now of the objects that are followed.
    pub(super) fn contents(&mut self) -> Contents {
        let known = self
            .followed
            .iter_mut()
            .map(|(key, receiver)| (key.clone(), receiver.borrow_and_update().clone().flatten()));
        known.collect()
    }

    /// Waits until one of the objects changes.
    pub(super) async fn changed(&mut self) {
        let changes: Vec<_> = self
            .followed
            .values_mut()
            .map(|receiver| {
                Box::pin(async move {
                    if receiver.changed().await.is_err() {
                        // The store has ended; that is a shutdown, which the worker hears of elsewhere.
                        future::pending::<()>().await;
                    }
                })
            })
            .collect();
        if changes.is_empty() {
            future::pending::<()>().await;
        }
        future::select_all(changes).await;
    }

    /// Gathers everything that the pod refers to.
    pub(super) async fn gather(&mut self, pod: &Pod) -> Result<Gathered, Failure> {
        let references = References::of(pod);
        let name = PodName::of(pod);
        let (api, held) = (self.api.clone(), std::mem::take(&mut self.tokens));
        let tokens = fresh_tokens(api, &name, &references, held);
        let followed = async {
            self.follow(&name.namespace, &references).await?;
            tokio::time::timeout(RESOLVE, all_known(&mut self.followed, &mut self.services))
                .await
                .map_err(|_| unresolved(&self.followed))
        };
        let (followed, (tokens, refused)) = tokio::join!(followed, tokens);
        self.tokens = tokens;
        let services = followed?;
        match refused {
            Some(failure) => Err(failure),
            None => Ok(self.collect(pod, &name.namespace, &references, &services)),
        }
    }

    /// Begins to follow what is new, and lets go of what the pod no longer names.
    async fn follow(&mut self, namespace: &str, references: &References) -> Result<(), Failure> {
        let key = |kind, name: &String| ObjectKey { kind, namespace: namespace.to_owned(), name: name.clone() };
        let maps = references.config_maps.iter().map(|name| key(ObjectKind::ConfigMap, name));
        let secrets = references.secrets.iter().chain(&references.pull_secrets);
        let wanted: BTreeSet<_> = maps.chain(secrets.map(|name| key(ObjectKind::Secret, name))).collect();
        self.followed.retain(|key, _| wanted.contains(key));
        for key in wanted {
            if !self.followed.contains_key(&key) {
                let receiver = self.store.follow(&key).await.ok_or_else(|| passing("the provider is shutting down"))?;
                self.followed.insert(key, receiver);
            }
        }
        Ok(())
    }

    fn collect(&mut self, pod: &Pod, namespace: &str, references: &References, services: &[Service]) -> Gathered {
        let contents = self.contents();
        let find = |kind, name: &String| {
            let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.clone() };
            contents.get(&key).cloned().flatten()
        };
        let resolve = |kind, names: &BTreeSet<String>| -> Vec<ResolvedObject> {
            let found = names.iter().filter_map(|name| find(kind, name).map(|content| (name, content)));
            found.map(|(name, content)| ResolvedObject { name: name.clone(), data: content.data.clone() }).collect()
        };
        let (mut logins, mut unusable) = (vec![], vec![]);
        for name in &references.pull_secrets {
            match find(ObjectKind::Secret, name).map(|secret| credentials(&secret)) {
                Some(Ok(found)) => logins.extend(found),
                Some(Err(why)) => unusable.push((name.clone(), why)),
                None => unusable.push((name.clone(), "it does not exist".to_owned())),
            }
        }
        Gathered {
            config_maps: resolve(ObjectKind::ConfigMap, &references.config_maps),
            secrets: resolve(ObjectKind::Secret, &references.secrets),
            tokens: self
                .tokens
                .iter()
                .map(|(wish, held)| ServiceAccountToken {
                    audience: wish.audience.clone(),
                    expiration_seconds: wish.expiration_seconds,
                    token: held.token.clone(),
                })
                .collect(),
            service_env: service_env(pod, services),
            credentials: logins,
            unusable_pull_secrets: unusable,
            contents,
        }
    }
}

/// Keeps the tokens that are young enough, and asks for the others.
async fn fresh_tokens(
    api: Arc<dyn ObjectApi>,
    pod: &PodName,
    references: &References,
    mut held: BTreeMap<TokenWish, HeldToken>,
) -> (BTreeMap<TokenWish, HeldToken>, Option<Failure>) {
    let now = Instant::now();
    held.retain(|wish, token| references.tokens.contains(wish) && token.renew_at > now);
    let missing = references.tokens.iter().filter(|wish| !held.contains_key(*wish));
    let asked = missing.map(|wish| {
        let api = &api;
        async move { (wish, api.request_token(pod, &references.service_account, wish).await) }
    });
    let mut refused = None;
    for (wish, answer) in future::join_all(asked).await {
        match answer {
            Ok(issued) => {
                held.insert(wish.clone(), hold(issued, now));
            }
            Err(error) => refused = Some(passing(&format!("failed to fetch token: {error}"))),
        }
    }
    (held, refused)
}

fn hold(issued: IssuedToken, now: Instant) -> HeldToken {
    let life = issued.expires.duration_since(Timestamp::now()).as_secs_f64().max(0.0) * TOKEN_AGE;
    // A day at most, as the kubelet; a minute at least, lest a clock that is wrong make us ask without end.
    HeldToken { token: issued.token, renew_at: now + Duration::from_secs_f64(life.clamp(60.0, 86_400.0)) }
}

async fn all_known(
    followed: &mut BTreeMap<ObjectKey, watch::Receiver<Known>>,
    services: &mut watch::Receiver<KnownServices>,
) -> Arc<Vec<Service>> {
    for receiver in followed.values_mut() {
        if receiver.wait_for(Option::is_some).await.is_err() {
            future::pending::<()>().await;
        }
    }
    let known = services.wait_for(Option::is_some).await.map(|services| services.clone());
    match known {
        Ok(services) => services.unwrap_or_default(),
        Err(_) => future::pending().await,
    }
}

fn unresolved(followed: &BTreeMap<ObjectKey, watch::Receiver<Known>>) -> Failure {
    let unknown = followed.iter().filter(|(_, receiver)| receiver.borrow().is_none());
    let names: Vec<String> = unknown.map(|(key, _)| format!("{:?} {}", key.kind, key.name)).collect();
    if names.is_empty() {
        return passing("the API server has not listed the Services yet");
    }
    passing(&format!("the API server does not say whether there is {}", names.join(", ")))
}

fn passing(message: &str) -> Failure {
    Failure { reason: super::PROVIDER_FAILED.to_owned(), message: message.to_owned(), permanent: false }
}
