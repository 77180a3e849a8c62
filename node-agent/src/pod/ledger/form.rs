//! The JSON of the ledger's files, and the way from and to it.
//!
//! Pure: no I/O, no clock, no randomness.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde::{Deserialize, Serialize, de::Error as _};

use super::Record;
use crate::{
    image::{
        ChosenCache, Credential, Login, RegistryAccess,
        verification::{Origin, Policy},
    },
    pod::{
        lifecycle::{Cause, Node, Phase, Retry, Run, Stage, Then},
        objects::{ObjectData, PodObjects, ServiceAccountToken},
        restart::BackOff,
        storage::Overuse,
        wish::PodWish,
    },
    runtime::{ContainerExit, users::ProcessUser},
};

type ObjectsForm = BTreeMap<String, BTreeMap<String, String>>;

#[derive(Serialize, Deserialize)]
struct WishForm {
    pod: Pod,
    config_maps: ObjectsForm,
    secrets: ObjectsForm,
    tokens: Vec<(String, i64, String)>,
    service_env: Vec<(String, String)>,
    credentials: Vec<CredentialForm>,
    plain_http: Vec<String>,
    insecure: Vec<String>,
    cache: Option<String>,
    // An agent of before has written neither, for a cache that served every pod it was chosen for.
    #[serde(default)]
    cache_origin: Origin,
    #[serde(default)]
    cache_policy: Option<Policy>,
}

#[derive(Serialize, Deserialize)]
struct CredentialForm {
    registry: String,
    login: LoginForm,
}

#[derive(Serialize, Deserialize)]
enum LoginForm {
    Basic { username: String, password: String },
    IdentityToken(String),
    RegistryToken(String),
}

pub(super) fn wish_to_json(wish: &PodWish) -> serde_json::Result<Vec<u8>> {
    let credentials = wish.access.credentials.iter().map(|credential| CredentialForm {
        registry: credential.registry.clone(),
        login: match credential.login.clone() {
            Login::Basic { username, password } => LoginForm::Basic { username, password },
            Login::IdentityToken(token) => LoginForm::IdentityToken(token),
            Login::RegistryToken(token) => LoginForm::RegistryToken(token),
        },
    });
    let tokens = wish.objects.tokens.iter();
    serde_json::to_vec(&WishForm {
        pod: wish.pod.clone(),
        config_maps: encode(&wish.objects.config_maps),
        secrets: encode(&wish.objects.secrets),
        tokens: tokens.map(|t| (t.audience.clone(), t.expiration_seconds, t.token.clone())).collect(),
        service_env: wish.objects.service_env.clone(),
        credentials: credentials.collect(),
        plain_http: wish.access.plain_http.clone(),
        insecure: wish.access.insecure.clone(),
        cache: wish.cache.as_ref().map(|cache| cache.id.clone()),
        cache_origin: wish.cache.as_ref().map(|cache| cache.origin).unwrap_or_default(),
        cache_policy: wish.cache.as_ref().and_then(|cache| cache.policy),
    })
}

pub(super) fn wish_from_json(bytes: &[u8]) -> serde_json::Result<PodWish> {
    let form: WishForm = serde_json::from_slice(bytes)?;
    let tokens = form.tokens.into_iter().map(|(audience, expiration_seconds, token)| ServiceAccountToken {
        audience,
        expiration_seconds,
        token,
    });
    let credentials = form.credentials.into_iter().map(|credential| Credential {
        registry: credential.registry,
        login: match credential.login {
            LoginForm::Basic { username, password } => Login::Basic { username, password },
            LoginForm::IdentityToken(token) => Login::IdentityToken(token),
            LoginForm::RegistryToken(token) => Login::RegistryToken(token),
        },
    });
    Ok(PodWish {
        pod: form.pod,
        objects: PodObjects {
            config_maps: decode(form.config_maps)?,
            secrets: decode(form.secrets)?,
            tokens: tokens.collect(),
            service_env: form.service_env,
        },
        access: RegistryAccess {
            credentials: credentials.collect(),
            plain_http: form.plain_http,
            insecure: form.insecure,
        },
        cache: form.cache.map(|id| ChosenCache { id, origin: form.cache_origin, policy: form.cache_policy }),
    })
}

fn encode(objects: &BTreeMap<String, ObjectData>) -> ObjectsForm {
    let encode_data = |data: &ObjectData| -> BTreeMap<String, String> {
        data.iter().map(|(key, bytes)| (key.clone(), BASE64_STANDARD.encode(bytes))).collect()
    };
    objects.iter().map(|(name, data)| (name.clone(), encode_data(data))).collect()
}

fn decode(form: ObjectsForm) -> serde_json::Result<BTreeMap<String, ObjectData>> {
    let mut objects = BTreeMap::new();
    for (name, encoded) in form {
        let mut data = ObjectData::new();
        for (key, text) in encoded {
            data.insert(key, BASE64_STANDARD.decode(text).map_err(serde_json::Error::custom)?);
        }
        objects.insert(name, data);
    }
    Ok(objects)
}

#[derive(Serialize, Deserialize)]
struct RecordForm {
    generation: u64,
    started_at: Timestamp,
    status: PodStatus,
    stage: StageForm,
    nodes: Vec<NodeForm>,
}

#[derive(Serialize, Deserialize)]
enum StageForm {
    Active,
    Stopping { kill_at: Timestamp, then: ThenForm },
    Terminal(CauseForm),
    Removing,
}

#[derive(Serialize, Deserialize)]
enum ThenForm {
    Keep(CauseForm),
    Remove,
}

#[derive(Serialize, Deserialize)]
enum CauseForm {
    Finished,
    DeadlineExceeded,
    Evicted(OveruseForm),
}

#[derive(Serialize, Deserialize)]
enum OveruseForm {
    Volume(usize),
    Pod,
    Container(usize),
}

#[derive(Serialize, Deserialize)]
struct NodeForm {
    phase: PhaseForm,
    current: Option<RunForm>,
    previous: Option<RunForm>,
    back_off: Option<(Duration, Timestamp)>,
    replaced: Option<Timestamp>,
}

/// What is not kept is found again by looking at the containers.
#[derive(Serialize, Deserialize)]
enum PhaseForm {
    Waiting,
    Begun,
    BackOff { at: Timestamp, delay: Duration },
    Ended,
}

#[derive(Serialize, Deserialize)]
struct RunForm {
    id: String,
    attempt: u32,
    image: String,
    image_id: String,
    #[serde(default)]
    user: Option<UserForm>,
    exit: Option<ExitForm>,
}

#[derive(Serialize, Deserialize)]
struct UserForm {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct ExitForm {
    exit_code: i32,
    signal: Option<i32>,
    reason: String,
    message: String,
    started_at: Option<Timestamp>,
    finished_at: Timestamp,
}

pub(super) fn record_to_json(record: &Record) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&RecordForm {
        generation: record.generation,
        started_at: record.started_at,
        status: record.status.clone(),
        stage: stage_to_form(record.stage),
        nodes: record.nodes.iter().map(node_to_form).collect(),
    })
}

pub(super) fn record_from_json(bytes: &[u8]) -> serde_json::Result<Record> {
    let form: RecordForm = serde_json::from_slice(bytes)?;
    Ok(Record {
        generation: form.generation,
        started_at: form.started_at,
        status: form.status,
        stage: stage_from_form(&form.stage),
        nodes: form.nodes.into_iter().map(node_from_form).collect(),
    })
}

fn stage_to_form(stage: Stage) -> StageForm {
    match stage {
        Stage::Active => StageForm::Active,
        Stage::Stopping { kill_at, then: Then::Remove } => StageForm::Stopping { kill_at, then: ThenForm::Remove },
        Stage::Stopping { kill_at, then: Then::Keep(cause) } => {
            StageForm::Stopping { kill_at, then: ThenForm::Keep(cause_to_form(cause)) }
        }
        Stage::Terminal(cause) => StageForm::Terminal(cause_to_form(cause)),
        Stage::Removing | Stage::Gone => StageForm::Removing,
    }
}

fn stage_from_form(form: &StageForm) -> Stage {
    match form {
        StageForm::Active => Stage::Active,
        StageForm::Stopping { kill_at, then } => {
            let then = match then {
                ThenForm::Keep(cause) => Then::Keep(cause_from_form(cause)),
                ThenForm::Remove => Then::Remove,
            };
            Stage::Stopping { kill_at: *kill_at, then }
        }
        StageForm::Terminal(cause) => Stage::Terminal(cause_from_form(cause)),
        StageForm::Removing => Stage::Removing,
    }
}

fn cause_to_form(cause: Cause) -> CauseForm {
    match cause {
        Cause::Finished => CauseForm::Finished,
        Cause::DeadlineExceeded => CauseForm::DeadlineExceeded,
        Cause::Evicted(Overuse::Volume(index)) => CauseForm::Evicted(OveruseForm::Volume(index)),
        Cause::Evicted(Overuse::Pod) => CauseForm::Evicted(OveruseForm::Pod),
        Cause::Evicted(Overuse::Container(index)) => CauseForm::Evicted(OveruseForm::Container(index)),
    }
}

fn cause_from_form(form: &CauseForm) -> Cause {
    match form {
        CauseForm::Finished => Cause::Finished,
        CauseForm::DeadlineExceeded => Cause::DeadlineExceeded,
        CauseForm::Evicted(OveruseForm::Volume(index)) => Cause::Evicted(Overuse::Volume(*index)),
        CauseForm::Evicted(OveruseForm::Pod) => Cause::Evicted(Overuse::Pod),
        CauseForm::Evicted(OveruseForm::Container(index)) => Cause::Evicted(Overuse::Container(*index)),
    }
}

fn node_to_form(node: &Node) -> NodeForm {
    NodeForm {
        phase: match node.phase {
            Phase::Waiting | Phase::Starting | Phase::StartFailed { .. } => PhaseForm::Waiting,
            Phase::Launched | Phase::Running { .. } => PhaseForm::Begun,
            Phase::BackOff { retry, .. } => PhaseForm::BackOff { at: retry.at, delay: retry.delay },
            Phase::Ended => PhaseForm::Ended,
        },
        current: node.current.as_ref().map(run_to_form),
        previous: node.previous.as_ref().map(run_to_form),
        back_off: node.back_off.map(|back_off| (back_off.delay, back_off.since)),
        replaced: node.replaced,
    }
}

fn node_from_form(form: NodeForm) -> Node {
    Node {
        phase: match form.phase {
            PhaseForm::Waiting => Phase::Waiting,
            PhaseForm::Begun => Phase::Launched,
            PhaseForm::BackOff { at, delay } => Phase::BackOff { retry: Retry { at, delay }, error_shows_until: None },
            PhaseForm::Ended => Phase::Ended,
        },
        current: form.current.map(run_from_form),
        previous: form.previous.map(run_from_form),
        back_off: form.back_off.map(|(delay, since)| BackOff { delay, since }),
        replaced: form.replaced,
    }
}

fn run_to_form(run: &Run) -> RunForm {
    RunForm {
        id: run.id.clone(),
        attempt: run.attempt,
        image: run.image.clone(),
        image_id: run.image_id.clone(),
        user: run.user.clone().map(|ProcessUser { uid, gid, additional_gids }| UserForm { uid, gid, additional_gids }),
        exit: run.exit.as_ref().map(|exit| ExitForm {
            exit_code: exit.exit_code,
            signal: exit.signal,
            reason: exit.reason.clone(),
            message: exit.message.clone(),
            started_at: exit.started_at,
            finished_at: exit.finished_at,
        }),
    }
}

fn run_from_form(form: RunForm) -> Run {
    Run {
        id: form.id,
        attempt: form.attempt,
        image: form.image,
        image_id: form.image_id,
        user: form.user.map(|UserForm { uid, gid, additional_gids }| ProcessUser { uid, gid, additional_gids }),
        exit: form.exit.map(|exit| ContainerExit {
            exit_code: exit.exit_code,
            signal: exit.signal,
            reason: exit.reason,
            message: exit.message,
            started_at: exit.started_at,
            finished_at: exit.finished_at,
        }),
    }
}
