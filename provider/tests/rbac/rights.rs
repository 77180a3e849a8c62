//! The ClusterRole grants what the provider does at the API server, and nothing else.
//!
//! Every call of `provider::cluster` is made against an API server that only writes down what it is asked. What it was asked
//! is compared with `hack/deploy/rbac.yaml`, both ways. A call that this test does not make is found in the source.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use http::{Method, Request, Response};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::client::Body;
use larder_provider::admission::{Placement, registration};
use larder_provider::cluster::objects::TokenWish;
use larder_provider::cluster::pods::{PodMarks, PodName};
use larder_provider::cluster::{
    AccessApi, DefinitionApi, EventApi, ImageCacheApi, KubeCluster, NodeApi, ObjectApi, ObjectKey, ObjectKind, PodApi,
    ProfileApi, SelectorApi, WatchStream, WebhookApi,
};
use larder_provider::custom_resource::{ImageCache, ImageCacheStatus, definition, selector};
use larder_provider::profile::Profile;
use larder_provider::selector::Rules;
use serde_json::{Value, json};

/// Group, resource with its subresource, verb, and the name where the role names one.
type Right = (String, String, String, Option<String>);

/// Names that the role limits a right to.
const LIMITED: [&str; 4] = [registration::NAME, registration::IMAGE_CACHE_NAME, DEFINITIONS[0], DEFINITIONS[1]];
/// The definitions that the provider installs.
const DEFINITIONS: [&str; 2] = ["imagecaches.eci.alibabacloud.com", "selectors.eci.aliyun.com"];

fn rights_of(request: &Request<Body>) -> Vec<Right> {
    let path = request.uri().path().trim_start_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", _version, rest @ ..] => ("", rest),
        ["apis", group, _version, rest @ ..] => (*group, rest),
        // Open to everybody who has a name: `system:public-info-viewer`.
        ["version"] => return vec![],
        other => panic!("not a path of the API: {other:?}"),
    };
    let rest = match rest {
        ["namespaces", _namespace, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let query = request.uri().query().unwrap_or_default();
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (resource, name) = match rest {
        [resource] => ((*resource).to_owned(), None),
        [resource, name] => ((*resource).to_owned(), Some((*name).to_owned())),
        [resource, name, subresource] => (format!("{resource}/{subresource}"), Some((*name).to_owned())),
        other => panic!("not a resource: {other:?}"),
    };
    let selected = query.split('&').find_map(|part| part.strip_prefix("fieldSelector=metadata.name%3D"));
    let name = name.or_else(|| selected.map(str::to_owned)).filter(|name| LIMITED.contains(&name.as_str()));
    let verbs: &[&str] = match *request.method() {
        Method::GET if query.contains("watch=true") => &["watch"],
        Method::GET if rest.len() == 1 => &["list"],
        Method::GET => &["get"],
        Method::POST => &["create"],
        Method::PUT => &["update"],
        // An apply makes what is not there.
        Method::PATCH if header("content-type").contains("apply") => &["patch", "create"],
        Method::PATCH => &["patch"],
        Method::DELETE => &["delete"],
        ref other => panic!("{other}"),
    };
    verbs.iter().map(|verb| (group.to_owned(), resource.clone(), (*verb).to_owned(), name.clone())).collect()
}

/// Lists are empty, watches are silent, and everything else is refused: it was asked, that is enough.
fn answer(request: &Request<Body>) -> (u16, Value) {
    let query = request.uri().query().unwrap_or_default();
    if request.method() == Method::GET && query.contains("limit=") {
        return (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": []}));
    }
    (
        422,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422, "reason": "Invalid", "message": "no"}),
    )
}

fn recording() -> (KubeCluster, Arc<Mutex<BTreeSet<Right>>>) {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let record = Arc::clone(&seen);
    let service = tower::service_fn(move |request: Request<Body>| {
        record.lock().unwrap().extend(rights_of(&request));
        let is_watch = request.uri().query().unwrap_or_default().contains("watch=true");
        let (status, body) = answer(&request);
        async move {
            if is_watch {
                std::future::pending::<()>().await;
            }
            let body = Body::from(serde_json::to_vec(&body).unwrap());
            Ok::<_, std::convert::Infallible>(Response::builder().status(status).body(body).unwrap())
        }
    });
    (KubeCluster::new(kube::Client::new(service, "default")), seen)
}

/// Polls a watch until it has listed, and a moment longer, so that it begins to watch.
async fn watch<K>(mut stream: WatchStream<K>) {
    stream.next().await.expect("a watch never ends");
    let more = tokio::time::timeout(Duration::from_millis(50), stream.next()).await;
    assert!(more.is_err(), "nothing follows an empty list");
}

async fn make_every_call(cluster: &KubeCluster) {
    let pod = PodName { namespace: "ns".to_owned(), name: "p".to_owned(), uid: "u".to_owned() };
    let marks = PodMarks { annotations: [("a".to_owned(), "b".to_owned())].into(), ..PodMarks::default() };
    watch(cluster.watch_pods("n")).await;
    drop(cluster.patch_pod_status(&pod, json!({"status": {}})).await);
    drop(cluster.annotate_pod(&pod, &marks).await);
    drop(cluster.remove_pod(&pod).await);

    let mut lease = Lease::default();
    lease.metadata.name = Some("n".to_owned());
    watch(cluster.watch_node("n")).await;
    drop(cluster.create_node(&Node::default()).await);
    drop(cluster.patch_node("n", json!({})).await);
    drop(cluster.patch_node_status("n", json!({})).await);
    drop(cluster.lease("n").await);
    drop(cluster.create_lease(&lease).await);
    drop(cluster.replace_lease(&lease).await);

    for kind in [ObjectKind::ConfigMap, ObjectKind::Secret] {
        watch(cluster.watch_object(&ObjectKey { kind, namespace: "ns".to_owned(), name: "o".to_owned() })).await;
    }
    watch(cluster.watch_services()).await;
    let wish = TokenWish { audience: String::new(), expiration_seconds: 3600 };
    drop(cluster.request_token(&pod, "default", &wish).await);

    drop(cluster.create_event(&Event::default()).await);
    drop(cluster.count_event("ns", "e", 2, Timestamp::UNIX_EPOCH).await);

    drop(cluster.review_token("t").await);
    drop(cluster.may(&UserInfo::default(), &ResourceAttributes::default()).await);

    watch(cluster.watch_image_caches()).await;
    drop(cluster.create_image_cache(&ImageCache::new("c", Default::default())).await);
    drop(cluster.write_image_cache_status("c", &ImageCacheStatus::default()).await);
    drop(cluster.remove_image_cache("c", "u").await);
    drop(cluster.set_finalizers(&ImageCache::new("c", Default::default()), &[]).await);
    drop(cluster.read_secret("ns", "s").await);

    watch(cluster.watch_profile()).await;
    let (target, profile, placement) = ("https://h".parse().unwrap(), Profile::default(), Placement::new(vec![]));
    let entry = registration::entry(&registration::Wanted {
        target: &target,
        ca_bundle: "",
        profile: &profile,
        record: "",
        rules: &Rules::default(),
        earlier_rules: &[],
        rules_record: "",
        placement: &placement,
    });
    watch(cluster.watch_webhook(registration::NAME)).await;
    drop(cluster.apply_webhook(&entry).await);
    let entry = registration::image_cache_entry(&"https://h".parse().unwrap(), "");
    watch(cluster.watch_validating_webhook(registration::IMAGE_CACHE_NAME)).await;
    drop(cluster.apply_validating_webhook(&entry).await);

    watch(cluster.watch_selectors()).await;
    watch(cluster.watch_unbound_pods()).await;
    drop(cluster.write_tolerations(&Pod::default(), &[]).await);

    for (definition, name) in [(definition(), DEFINITIONS[0]), (selector::definition(), DEFINITIONS[1])] {
        drop(cluster.apply_definition(&definition).await);
        watch(cluster.watch_definition(name)).await;
    }
}

fn granted() -> BTreeSet<Right> {
    let text = std::fs::read_to_string(manifest("../hack/deploy/rbac.yaml")).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let role = documents.into_iter().find(|document| document["kind"] == "ClusterRole").expect("a ClusterRole");
    let role: ClusterRole = serde_json::from_value(role).unwrap();
    let mut granted = BTreeSet::new();
    for rule in role.rules.unwrap() {
        let names: Vec<Option<String>> = match rule.resource_names {
            Some(names) => names.into_iter().map(Some).collect(),
            None => vec![None],
        };
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    for name in &names {
                        let right = (group.clone(), resource.clone(), verb.clone(), name.clone());
                        assert!(granted.insert(right.clone()), "{right:?} is granted twice");
                    }
                }
            }
        }
    }
    granted
}

fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[tokio::test]
async fn the_role_grants_what_is_used_and_nothing_else() {
    let (cluster, seen) = recording();
    make_every_call(&cluster).await;
    let used = seen.lock().unwrap().clone();
    let granted = granted();
    let missing: Vec<_> = used.difference(&granted).collect();
    let unused: Vec<_> = granted.difference(&used).collect();
    assert!(
        missing.is_empty() && unused.is_empty(),
        "hack/deploy/rbac.yaml lacks {missing:#?}, and has for nothing {unused:#?}"
    );
}

/// The functions of every `impl ... for KubeCluster` below `src/cluster`.
fn calls_in_source(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            calls_in_source(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let blocks = text.split("\nimpl ").skip(1).filter(|block| {
            let head = block.lines().next().unwrap_or_default();
            head.ends_with("for KubeCluster {") && !head.starts_with("std::")
        });
        for block in blocks {
            let body = block.split("\n}").next().unwrap_or_default();
            for line in body.lines().filter(|line| line.starts_with("    fn ") || line.starts_with("    async fn ")) {
                let name = line.split("fn ").nth(1).and_then(|rest| rest.split(['(', '<']).next()).unwrap();
                found.insert(name.to_owned());
            }
        }
    }
}

#[test]
fn no_call_is_forgotten_here() {
    let mut calls = BTreeSet::new();
    calls_in_source(&manifest("src/cluster"), &mut calls);
    assert!(calls.len() > 20, "the source has another shape than this test thinks: {calls:?}");
    let here = std::fs::read_to_string(manifest("tests/rbac/rights.rs")).unwrap();
    for call in calls {
        assert!(here.contains(&format!("cluster.{call}(")), "{call} is missing in make_every_call");
    }
}
