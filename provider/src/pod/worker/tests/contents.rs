//! What pods refer to goes along, and follows changes.

use bytes::Bytes;

use super::*;
use crate::cluster::objects::ObjectContent;
use crate::cluster::{ObjectKey, ObjectKind};

fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: "ns".into(), name: name.into() }
}

fn content(value: &str) -> ObjectContent {
    ObjectContent { data: [("k".to_owned(), Bytes::from(value.to_owned()))].into(), ..ObjectContent::default() }
}

fn referring() -> Pod {
    let mut pod = pod("p", "u1");
    let spec = json!({
        "nodeName": NODE,
        "serviceAccountName": "sa",
        "imagePullSecrets": [{"name": "pull"}],
        "volumes": [
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 600}}]}},
            {"name": "m", "configMap": {"name": "map"}}
        ],
        "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "secret"}}]}]
    });
    pod.spec = serde_json::from_value(spec).unwrap();
    pod
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_refers_to_goes_along_and_follows_changes() {
    let mut bench = Bench::new();
    let login = json!({"auths": {"r.example": {"username": "u", "password": "p"}}}).to_string();
    let pull = ObjectContent {
        data: [(".dockerconfigjson".to_owned(), Bytes::from(login))].into(),
        ..ObjectContent::default()
    };
    bench.cluster.put_object(key(ObjectKind::ConfigMap, "map"), Some(content("1")));
    bench.cluster.put_object(key(ObjectKind::Secret, "pull"), Some(pull));
    bench.start();
    bench.cluster.put_pod(referring());
    bench.ran(1).await;
    bench.agent.see(|record| {
        let run = &record.runs[0];
        assert_eq!(run.config_maps[0].data["k"], "1");
        // Missing is not our failure: the agent says what it means for the container.
        assert!(run.secrets.is_empty());
        assert_eq!(run.credentials[0].registry, "r.example");
        assert_eq!((run.tokens[0].token.as_str(), run.tokens[0].expiration_seconds), ("sa//1", 600));
    });
    bench.cluster.put_object(key(ObjectKind::Secret, "secret"), Some(content("s")));
    bench.ran(2).await;
    assert_eq!(bench.agent.see(|record| record.runs[1].secrets[0].data["k"].clone()), "s");
    bench.cluster.put_object(key(ObjectKind::ConfigMap, "map"), None);
    bench.ran(3).await;
    bench.agent.see(|record| {
        assert!(record.runs[2].config_maps.is_empty());
        // A token that is young enough is kept.
        assert_eq!(record.runs[2].tokens[0].token, "sa//1");
    });
}

#[tokio::test(start_paused = true)]
async fn tokens_are_renewed_before_they_end() {
    let mut bench = Bench::new();
    bench.cluster.set(|record| record.token_life = Duration::from_secs(500));
    bench.start();
    bench.cluster.put_pod(referring());
    let began = Instant::now();
    bench.ran(1).await;
    bench.ran(2).await;
    let after = began.elapsed().as_secs();
    assert!((380..=410).contains(&after), "renewed after {after} s");
    assert_eq!(bench.agent.see(|record| record.runs[1].tokens[0].token.clone()), "sa//2");
}
