//! Lets in whom the API server names and allows, and nobody else. Answers are kept for a while, as the kubelet keeps them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use moka::future::Cache;
use sha2::{Digest as _, Sha256};

use super::attributes::{Needed, needed};
use crate::cluster::{AccessApi, ClusterError};

/// How long it is remembered whose a token is.
const TOKEN: Duration = Duration::from_secs(120);
/// How long it is remembered that somebody may do something.
const ALLOWED: Duration = Duration::from_secs(300);
/// How long it is remembered that somebody may not.
const DENIED: Duration = Duration::from_secs(30);
/// How many answers of each kind are remembered.
const REMEMBERED: u64 = 4096;

/// The user of a connection that showed a client certificate.
#[derive(Debug, Clone)]
pub(super) struct Peer(pub(super) Option<UserInfo>);

/// Remembers who may do what.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    node: Arc<str>,
    access: Arc<dyn AccessApi>,
    tokens: Cache<[u8; 32], UserInfo>,
    allowed: Cache<Question, ()>,
    denied: Cache<Question, ()>,
}

type Question = (String, Vec<String>, &'static str, &'static str);

/// Why somebody is not let in.
enum Refused {
    Unnamed,
    Forbidden(UserInfo, Needed),
    NoAnswer(ClusterError),
}

/// What of a request counts here.
struct Asked {
    peer: Option<UserInfo>,
    authorization: Option<String>,
    needed: Needed,
}

impl Asked {
    fn of(request: &Request) -> Self {
        let header = request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok());
        Self {
            peer: request.extensions().get::<Peer>().and_then(|Peer(user)| user.clone()),
            authorization: header.map(str::to_owned),
            needed: needed(request.method().as_str(), request.uri().path()),
        }
    }
}

impl Gate {
    pub(super) fn new(node: &str, access: Arc<dyn AccessApi>) -> Self {
        let cache = |life| Cache::builder().max_capacity(REMEMBERED).time_to_live(life).build();
        Self {
            node: node.into(),
            access,
            tokens: Cache::builder().max_capacity(REMEMBERED).time_to_live(TOKEN).build(),
            allowed: cache(ALLOWED),
            denied: cache(DENIED),
        }
    }

    async fn pass(&self, asked: Asked) -> Result<(), Refused> {
        let Asked { peer, authorization, needed } = asked;
        let user = match peer {
            Some(user) => user,
            None => self.bearer(authorization.as_deref().unwrap_or_default()).await?,
        };
        for subresource in needed.subresources {
            if self.may(&user, needed.verb, subresource).await.map_err(Refused::NoAnswer)? {
                return Ok(());
            }
        }
        Err(Refused::Forbidden(user, needed))
    }

    async fn bearer(&self, authorization: &str) -> Result<UserInfo, Refused> {
        let token = authorization.split_once(' ').filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
        let Some((_, token)) = token else { return Err(Refused::Unnamed) };
        // The token itself is not kept.
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(user) = self.tokens.get(&key).await {
            return Ok(user);
        }
        let user = self.access.review_token(token).await.map_err(Refused::NoAnswer)?.ok_or(Refused::Unnamed)?;
        self.tokens.insert(key, user.clone()).await;
        Ok(user)
    }

    async fn may(&self, user: &UserInfo, verb: &'static str, subresource: &'static str) -> Result<bool, ClusterError> {
        let name = user.username.clone().unwrap_or_default();
        let question = (name, user.groups.clone().unwrap_or_default(), verb, subresource);
        if self.allowed.get(&question).await.is_some() {
            return Ok(true);
        }
        if self.denied.get(&question).await.is_some() {
            return Ok(false);
        }
        let what = ResourceAttributes {
            verb: Some(verb.to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(subresource.to_owned()),
            name: Some(self.node.to_string()),
            group: Some(String::new()),
            version: Some("v1".to_owned()),
            ..ResourceAttributes::default()
        };
        let allowed = self.access.may(user, &what).await?;
        if allowed { &self.allowed } else { &self.denied }.insert(question, ()).await;
        Ok(allowed)
    }
}

/// The step before every route.
pub(super) async fn authorize(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    match gate.pass(Asked::of(&request)).await {
        Ok(()) => next.run(request).await,
        Err(Refused::Unnamed) => {
            (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], "Unauthorized\n").into_response()
        }
        Err(Refused::Forbidden(user, needed)) => {
            let text = format!(
                "Forbidden (user={}, verb={}, resource=nodes, subresource(s)={:?})\n",
                user.username.unwrap_or_default(),
                needed.verb,
                needed.subresources
            );
            (StatusCode::FORBIDDEN, text).into_response()
        }
        Err(Refused::NoAnswer(error)) => {
            tracing::warn!(%error, "cannot tell whether a caller of the kubelet API may");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
        }
    }
}
