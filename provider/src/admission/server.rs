//! The webhooks' HTTPS server. It answers reviews and nothing else, and holds no state but the profile and the Selectors. Of
//! pods it asks nobody; of an ImageCache it asks the API server what the author may do.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::image_cache_review::entries;
use super::registration::{EFFECTS_PATH, IMAGE_CACHE_PATH, PATH};
use super::review::{Placement, Review, review, review_bound, review_selected};
use super::selector_review::review_ruled;
use crate::cluster::AccessApi;
use crate::custom_resource::ImageCache;
use crate::first_request::FirstRequest;
use crate::profile::{Profile, selection};
use crate::selector::Rules;

/// The largest review: etcd takes objects of 1.5 MiB.
const LARGEST_BODY: usize = 4 << 20;
/// The most connections at once. API servers keep one or two each.
const MOST_CONNECTIONS: usize = 256;
/// Until a connection has been set up, and until its headers have come.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a pod waits for the Selectors to be known. The API server waits for us 5 seconds.
const RULES_PATIENCE: Duration = Duration::from_secs(4);
/// After a failed `accept`, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The key that the server shows; it can be changed while it runs.
#[derive(Debug)]
pub(super) struct ServingKey(ArcSwap<CertifiedKey>);

impl ServingKey {
    pub(super) fn new(key: Arc<CertifiedKey>) -> Arc<Self> {
        Arc::new(Self(ArcSwap::new(key)))
    }

    pub(super) fn change(&self, key: Arc<CertifiedKey>) {
        self.0.store(key);
    }
}

impl ResolvesServerCert for ServingKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// What reviews are answered with. The profile can be changed while it serves.
#[derive(Debug)]
pub(super) struct Desk {
    placement: Placement,
    /// The profile that holds, and the one before it: the API server goes on calling for that one a moment.
    profiles: ArcSwap<[Arc<Profile>; 2]>,
    /// The Selectors that act, and those before.
    rules: ArcSwap<[Arc<Rules>; 2]>,
    /// Whether it is known which act.
    are_rules_known: watch::Sender<bool>,
}

impl Desk {
    pub(super) fn new(placement: Placement) -> Arc<Self> {
        Arc::new(Self {
            placement,
            profiles: ArcSwap::default(),
            rules: ArcSwap::default(),
            are_rules_known: watch::Sender::new(false),
        })
    }

    /// From now on this profile holds.
    pub(super) fn hold(&self, profile: Arc<Profile>) {
        replace(&self.profiles, profile);
    }

    /// From now on these Selectors act.
    pub(super) fn hold_rules(&self, rules: Arc<Rules>) {
        replace(&self.rules, rules);
        self.are_rules_known.send_replace(true);
    }

    /// Just after our own start the entry calls for Selectors that have not been listed yet.
    async fn wait_for_rules(&self) {
        let mut known = self.are_rules_known.subscribe();
        // Without them the pod is left as it is.
        let _ = tokio::time::timeout(RULES_PATIENCE, known.wait_for(|known| *known)).await;
    }
}

/// Keeps what held until now as what held before.
fn replace<T: PartialEq>(held: &ArcSwap<[Arc<T>; 2]>, newest: Arc<T>) {
    let [now, _] = &**held.load();
    if **now != *newest {
        held.store(Arc::new([newest, Arc::clone(now)]));
    }
}

/// Which webhook of the entry a review is for.
#[derive(Debug, Clone, Copy)]
enum Asked<'a> {
    /// One of those for labels.
    Labelled,
    /// The one for the selector of this digest.
    Selected(&'a str),
    /// The one for the Selector object of this digest.
    Ruled(&'a str),
    /// The one for all pods that go to the virtual nodes.
    Bound,
}

/// What is answered at which path.
pub(super) fn router(desk: Arc<Desk>, access: Arc<dyn AccessApi>) -> Router {
    let labelled = |State(desk): State<Arc<Desk>>, Json(body): Json<AdmissionReview<Pod>>| async move {
        mutate(&desk, Asked::Labelled, body)
    };
    let selected = |State(desk): State<Arc<Desk>>, UrlPath((_, digest)): UrlPath<(usize, String)>, Json(body)| async move {
        mutate(&desk, Asked::Selected(&digest), body)
    };
    let ruled = |State(desk): State<Arc<Desk>>, UrlPath(digest): UrlPath<String>, Json(body)| async move {
        desk.wait_for_rules().await;
        mutate(&desk, Asked::Ruled(&digest), body)
    };
    let bound = |State(desk): State<Arc<Desk>>, Json(body): Json<AdmissionReview<Pod>>| async move {
        mutate(&desk, Asked::Bound, body)
    };
    let pods = Router::new()
        .route(PATH, post(labelled))
        .route("/mutate/profile/{at}/{digest}", post(selected))
        .route("/mutate/selector/{digest}", post(ruled))
        .route(EFFECTS_PATH, post(bound))
        .with_state(desk);
    let image_caches = Router::new().route(IMAGE_CACHE_PATH, post(validate_image_cache)).with_state(access);
    pods.merge(image_caches).layer(DefaultBodyLimit::max(LARGEST_BODY))
}

/// Serves until `stop`; then lets the answers under way end.
pub(super) async fn serve(listener: TcpListener, key: Arc<ServingKey>, router: Router, stop: CancellationToken) {
    let acceptor = TlsAcceptor::from(Arc::new(tls(key)));
    let (connections, room) = (TaskTracker::new(), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
        // A connection that is not accepted now stays in the kernel's queue.
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match stream {
            Ok((stream, _)) => {
                let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
                connections.spawn(connection(stream, acceptor, router, stop, permit));
            }
            Err(error) => {
                tracing::warn!(%error, "webhook cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

fn tls(key: Arc<ServingKey>) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(key);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
) {
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            // The API server has not heard of a new authority yet, or somebody else knocks.
            tracing::debug!(%error, "webhook connection fails its handshake");
            return;
        }
        Err(_) => return,
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    let (router, first_request) = FirstRequest::of(router);
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = std::pin::pin!(serving);
    // All arms only poll what lives outside, so nothing is lost whichever comes first.
    let outcome = tokio::select! {
        outcome = serving.as_mut() => outcome,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(HANDSHAKE, serving).await.unwrap_or(Ok(()))
        }
        () = first_request.is_late(HANDSHAKE) => return,
    };
    if let Err(error) = outcome {
        tracing::debug!(error, "webhook connection broke");
    }
}

fn mutate(desk: &Desk, asked: Asked<'_>, body: AdmissionReview<Pod>) -> Response {
    let request: AdmissionRequest<Pod> = match body.try_into() {
        Ok(request) => request,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("read admission review: {error}")).into_response(),
    };
    Json(answer(&request, desk, asked)).into_response()
}

/// Always allows; what cannot be patched is left as it is.
fn answer(request: &AdmissionRequest<Pod>, desk: &Desk, asked: Asked<'_>) -> AdmissionReview<DynamicObject> {
    let is_new_pod = request.operation == Operation::Create && request.sub_resource.is_none();
    let pod = request.object.as_ref().filter(|_| is_new_pod);
    let Review { patch, warnings } = pod.map(|pod| look(pod, desk, asked)).unwrap_or_default();
    let mut response = AdmissionResponse::from(request);
    if !patch.0.is_empty() {
        response = response.with_patch(patch).unwrap_or_else(|error| {
            tracing::warn!(%error, "patch of a pod cannot be written");
            AdmissionResponse::from(request)
        });
    }
    response.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
    response.into_review()
}

fn look(pod: &Pod, desk: &Desk, asked: Asked<'_>) -> Review {
    let (profiles, placement) = (desk.profiles.load(), &desk.placement);
    match asked {
        Asked::Labelled => review(pod, placement),
        Asked::Selected(digest) => {
            let effects = profiles.iter().find_map(|profile| selection::of_selector(profile, digest));
            // A selector that nobody knows any more brings nothing anywhere.
            effects.map(|effects| review_selected(pod, placement, effects)).unwrap_or_default()
        }
        Asked::Ruled(digest) => {
            let rules = desk.rules.load();
            let rules = rules.iter().find(|rules| rules.knows(digest));
            rules.map(|rules| review_ruled(pod, placement, rules, digest)).unwrap_or_default()
        }
        Asked::Bound => review_bound(pod, placement, selection::of_all(&profiles[0])),
    }
}

async fn validate_image_cache(
    State(access): State<Arc<dyn AccessApi>>,
    Json(body): Json<AdmissionReview<ImageCache>>,
) -> Response {
    let request: AdmissionRequest<ImageCache> = match body.try_into() {
        Ok(request) => request,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("read admission review: {error}")).into_response(),
    };
    let response = AdmissionResponse::from(&request);
    let response = match may_name_its_secrets(&*access, &request).await {
        Ok(()) => response,
        Err(why) => response.deny(why),
    };
    Json(response.into_review()).into_response()
}

/// The error says for the author why the object is refused.
async fn may_name_its_secrets(access: &dyn AccessApi, request: &AdmissionRequest<ImageCache>) -> Result<(), String> {
    let Some(cache) = &request.object else { return Ok(()) };
    let user = &request.user_info;
    for entry in entries(cache, request.old_object.as_ref()) {
        match access.may(user, &entry.right()).await {
            Ok(true) => {}
            Ok(false) => return Err(entry.refusal(user.username.as_deref().unwrap_or_default())),
            Err(error) => return Err(format!("spec.imagePullSecrets cannot be checked, try again: {error}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
