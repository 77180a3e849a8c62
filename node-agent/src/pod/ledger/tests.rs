use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _, time::Duration};

use super::*;
use crate::{
    image::{
        ChosenCache, Credential, Login, RegistryAccess,
        verification::{Origin, Policy},
    },
    pod::{
        lifecycle::{Cause, Phase, Retry, Run, Then},
        objects::{PodObjects, ServiceAccountToken},
        restart::BackOff,
        storage::Overuse,
    },
    runtime::{ContainerExit, users::ProcessUser},
};

fn wish() -> PodWish {
    let data = BTreeMap::from([("key".to_owned(), vec![0, 159, 146, 150])]);
    let credential = |login| Credential { registry: "*.example.com".into(), login };
    PodWish {
        pod: serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1"},
            "spec": {"containers": [{"name": "app", "image": "nginx"}]},
        }))
        .unwrap(),
        objects: PodObjects {
            config_maps: BTreeMap::from([("c".to_owned(), data.clone())]),
            secrets: BTreeMap::from([("s".to_owned(), data)]),
            tokens: vec![ServiceAccountToken { audience: "a".into(), expiration_seconds: 600, token: "t".into() }],
            service_env: vec![("A".into(), "1".into())],
        },
        access: RegistryAccess {
            credentials: vec![
                credential(Login::Basic { username: "u".into(), password: "p".into() }),
                credential(Login::IdentityToken("i".into())),
                credential(Login::RegistryToken("r".into())),
            ],
            plain_http: vec!["localhost:5000".into()],
            insecure: vec!["bad.example".into()],
        },
        cache: Some(ChosenCache { id: "imc-1".into(), origin: Origin::Automatic, policy: Some(Policy::AlwaysVerify) }),
    }
}

fn record(stage: Stage) -> Record {
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    let exit = ContainerExit {
        exit_code: 3,
        signal: Some(9),
        reason: "Error".into(),
        message: "m".into(),
        started_at: Some(now),
        finished_at: now,
    };
    let run = Run {
        id: "i".into(),
        attempt: 4,
        image: "x".into(),
        image_id: "y".into(),
        user: Some(ProcessUser { uid: 1, gid: 2, additional_gids: vec![2, 3] }),
        exit: Some(exit),
    };
    let node = |phase| Node {
        phase,
        current: Some(run.clone()),
        previous: Some(Run { exit: None, ..run.clone() }),
        back_off: Some(BackOff { delay: Duration::from_secs(20), since: now }),
        replaced: Some(now),
    };
    let retry = Retry { at: now, delay: Duration::from_secs(20) };
    Record {
        generation: 7,
        started_at: now,
        status: PodStatus { phase: Some("Running".into()), ..PodStatus::default() },
        stage,
        nodes: vec![
            node(Phase::Waiting),
            node(Phase::Launched),
            node(Phase::BackOff { retry, error_shows_until: None }),
            node(Phase::Ended),
        ],
    }
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path().join("pods"));
    assert_eq!(ledger.uids().unwrap(), Vec::<String>::new());
    assert!(ledger.read("u1").unwrap().is_none());
    ledger.write_wish("u1", &wish()).unwrap();
    assert_eq!(ledger.uids().unwrap(), ["u1"]);
    let now = Timestamp::from_second(1).unwrap();
    for stage in [
        Stage::Active,
        Stage::Stopping { kill_at: now, then: Then::Remove },
        Stage::Stopping { kill_at: now, then: Then::Keep(Cause::DeadlineExceeded) },
        Stage::Terminal(Cause::Finished),
        Stage::Terminal(Cause::Evicted(Overuse::Pod)),
        Stage::Terminal(Cause::Evicted(Overuse::Volume(1))),
        Stage::Stopping { kill_at: now, then: Then::Keep(Cause::Evicted(Overuse::Container(2))) },
        Stage::Removing,
    ] {
        ledger.write_record("u1", &record(stage)).unwrap();
        let entry = ledger.read("u1").unwrap().unwrap();
        assert_eq!(entry.wish, wish());
        assert_eq!(entry.record, Some(record(stage)));
    }
    ledger.remove("u1").unwrap();
    ledger.remove("u1").unwrap();
    assert!(ledger.read("u1").unwrap().is_none());
}

#[test]
fn secrets_are_for_root_alone() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path().join("pods"));
    ledger.write_wish("u1", &wish()).unwrap();
    let mode = |path: &str| fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("pods/u1"), 0o700);
    assert_eq!(mode("pods/u1/pod.json"), 0o600);
}

#[test]
fn a_spoilt_record_counts_as_absent_and_a_spoilt_wish_as_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path().to_owned());
    ledger.write_wish("u1", &wish()).unwrap();
    fs::write(folder.path().join("u1/state.json"), "{").unwrap();
    assert!(ledger.read("u1").unwrap().unwrap().record.is_none());
    fs::write(folder.path().join("u1/pod.json"), "{").unwrap();
    assert!(matches!(ledger.read("u1"), Err(LedgerError::Malformed { .. })));
}
