//! The keeper of the entry against an API server in memory, with time paused.

use k8s_openapi::api::core::v1::{Event, Pod, Taint};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;
use crate::admission::registration::PROFILE_ANNOTATION;
use crate::cluster::fake::{FakeCluster, Record};
use crate::profile::standing::{IGNORED, INVALID};
use crate::selector::mark::SELECTOR;
use crate::selector::standing::{INVALID as INVALID_SELECTOR, NOT_HONOURED};

const PODS: &str =
    r#"[{"name": "pods", "objectSelector": {"matchLabels": {"app": "x"}}, "effect": {"labels": {"a": "b"}}}]"#;
const OTHER: &str = r#"[{"name": "other", "namespaceSelector": {"matchLabels": {"team": "y"}}}]"#;
const BROKEN: &str = "[{\"name\": \"pods\",\n  \"policy\": {}}]";

struct Bench {
    cluster: Arc<FakeCluster>,
    tasks: JoinSet<Result<(), PartError>>,
    stop: CancellationToken,
}

impl Bench {
    async fn start(cluster: Arc<FakeCluster>) -> Self {
        let (events, writer) = EventRecorder::new(cluster.clone());
        let (entries, profiles, selectors, access) =
            (cluster.clone(), cluster.clone(), cluster.clone(), cluster.clone());
        let around = Surroundings { entries, profiles, selectors, access, events };
        let target = "https://127.0.0.1:9443".parse().unwrap();
        let taint = Taint { key: "k".to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        let placement = Placement::new(vec![taint]);
        let config = WebhookConfig { listen: ([127, 0, 0, 1], 0).into(), target, placement };
        let webhook = Webhook::bind(around, config).await.unwrap();
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(webhook.run(stop.clone()));
        tasks.spawn(writer.run(stop.clone()));
        Self { cluster, tasks, stop }
    }

    async fn end(mut self) -> Arc<FakeCluster> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.cluster
    }

    /// Waits until the entry has these webhooks for selectors of the profile.
    async fn calls_for(&self, wanted: &[&str]) {
        self.cluster.wait(&format!("{wanted:?}"), |record| selectors(record).as_deref() == Some(wanted)).await;
    }

    async fn told(&self, reason: &str) -> String {
        let event = self.event(reason).await;
        let about = (event.involved_object.kind.as_deref(), event.involved_object.name.as_deref());
        assert_eq!(about, (Some("ConfigMap"), Some("eci-profile")));
        assert_eq!(event.metadata.namespace.as_deref(), Some("kube-system"));
        event.message.unwrap()
    }

    /// Until nothing is written any more: the keeper hears of its own writes one after the other.
    async fn settled(&self) {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }

    /// The newest event with this reason.
    async fn event(&self, reason: &str) -> Event {
        let of = |record: &Record| {
            let is_it = |event: &&Event| event.reason.as_deref() == Some(reason);
            record.events.iter().rev().find(is_it).cloned()
        };
        self.cluster.wait(reason, |record| of(record).is_some()).await;
        self.cluster.see(of).unwrap()
    }

    /// The message of the newest event with this reason, which is about this Selector.
    async fn told_of(&self, selector: &str, reason: &str) -> String {
        let event = self.event(reason).await;
        let about = event.involved_object;
        let kind = (about.api_version.as_deref(), about.kind.as_deref());
        assert_eq!(kind, (Some("eci.aliyun.com/v1"), Some("Selector")));
        assert_eq!((about.name.as_deref(), event.metadata.namespace.as_deref()), (Some(selector), Some("ns")));
        event.message.unwrap()
    }

    /// Writes a Selector of pods with `app: <app>`.
    fn select(&self, name: &str, app: &str, priority: i32, policy: Value) {
        let spec = json!({"objectLabels": {"matchLabels": {"app": app}}, "priority": priority, "policy": policy});
        self.cluster.put_selector(name, Some(serde_json::from_value(spec).unwrap()));
    }

    /// Waits until the entry has webhooks of Selectors for these values of `app`, in this order.
    async fn selects(&self, wanted: &[&str]) {
        let apps = |record: &Record| -> Option<Vec<String>> {
            let webhooks = record.webhook.as_ref()?.webhooks.as_ref()?.iter();
            let of_selectors = webhooks.filter(|webhook| webhook.name.starts_with("selector-"));
            of_selectors.map(|one| one.object_selector.clone()?.match_labels?.get("app").cloned()).collect()
        };
        let is_so = |record: &Record| apps(record).is_some_and(|apps| apps == wanted);
        self.cluster.wait(&format!("{wanted:?}"), is_so).await;
    }
}

/// The selectors of the profile that the entry calls for, by the label that each looks at.
fn selectors(record: &Record) -> Option<Vec<&'static str>> {
    let webhooks = record.webhook.as_ref()?.webhooks.as_ref()?;
    let of_profile = webhooks.iter().filter(|webhook| webhook.name.starts_with("profile-"));
    let label = |webhook: &k8s_openapi::api::admissionregistration::v1::MutatingWebhook| {
        let has_labels = webhook.object_selector.as_ref().is_some_and(|selector| selector.match_labels.is_some());
        if has_labels { "pods" } else { "other" }
    };
    Some(of_profile.map(label).collect())
}

#[tokio::test(start_paused = true)]
async fn the_entry_follows_the_profile_and_the_last_good_one_holds() {
    let bench = Bench::start(Arc::new(FakeCluster::default())).await;
    bench.calls_for(&[]).await;
    bench.cluster.put_profile(Some(&[("selectors", PODS)]));
    bench.calls_for(&["pods"]).await;
    bench.cluster.put_profile(Some(&[("selectors", BROKEN)]));
    let message = bench.told(INVALID).await;
    assert!(message.starts_with("selectors, line 2, column "), "{message}");
    assert!(message.contains("unknown field `policy`"), "{message}");
    bench.calls_for(&["pods"]).await;

    // It also holds for the next life of this process, for as long as nobody mends the ConfigMap.
    let bench = Bench::start(bench.end().await).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.calls_for(&["pods"]).await;
    bench.cluster.put_profile(Some(&[("selectors", OTHER)]));
    bench.calls_for(&["other"]).await;
    bench.cluster.put_profile(None);
    bench.calls_for(&[]).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn keys_that_mean_nothing_here_are_told_once() {
    let bench = Bench::start(Arc::new(FakeCluster::default())).await;
    bench.cluster.put_profile(Some(&[("vSwitchIds", "vsw-1"), ("securityGroupId", "sg-1")]));
    assert_eq!(bench.told(IGNORED).await, "securityGroupId, vSwitchIds mean nothing here and are passed over");
    let is_kept = |record: &Record| {
        let annotations = record.webhook.as_ref().and_then(|entry| entry.metadata.annotations.as_ref());
        annotations.is_some_and(|annotations| annotations[PROFILE_ANNOTATION].contains("vSwitchIds"))
    };
    bench.cluster.wait("the record", is_kept).await;
    let bench = Bench::start(bench.end().await).await;
    bench.cluster.put_profile(Some(&[("vSwitchIds", "vsw-2"), ("selectors", PODS)]));
    bench.calls_for(&["pods"]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let told = bench
        .cluster
        .see(|record| record.events.iter().filter(|event| event.reason.as_deref() == Some(IGNORED)).count());
    assert_eq!(told, 1);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_profile_that_the_api_server_refuses_is_told_and_given_up() {
    let bench = Bench::start(Arc::new(FakeCluster::default())).await;
    bench.cluster.put_profile(Some(&[("selectors", PODS)]));
    bench.calls_for(&["pods"]).await;
    bench.settled().await;
    bench.cluster.set(|record| record.webhook_refusal = Some("selector: invalid".to_owned()));
    bench.cluster.put_profile(Some(&[("selectors", OTHER)]));
    let message = bench.told(INVALID).await;
    assert_eq!(message, "selector: invalid; the profile before this one still holds");
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.calls_for(&["pods"]).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_the_api_server_will_not_take_is_mended_by_what_changes_next() {
    let bench = Bench::start(Arc::new(FakeCluster::default())).await;
    bench.cluster.put_profile(Some(&[("selectors", PODS)]));
    bench.calls_for(&["pods"]).await;
    // The next life has a new authority, so it has to write; and what it goes by is what has been taken before.
    let cluster = bench.end().await;
    cluster.set(|record| record.webhook_refused_with = Some(r#"{"app":"x"}"#.to_owned()));
    let bench = Bench::start(cluster).await;
    bench.settled().await;
    bench.cluster.put_profile(Some(&[("selectors", OTHER)]));
    bench.calls_for(&["other"]).await;
    // Where nothing changes, it is tried again all the same.
    bench.cluster.set(|record| record.webhook_refused_with = Some("profile-0".to_owned()));
    let bench = Bench::start(bench.end().await).await;
    bench.settled().await;
    let before = bench.cluster.see(|record| record.webhook_applies);
    bench.cluster.set(|record| record.webhook_refused_with = None);
    bench.cluster.wait("the entry", |record| record.webhook_applies > before).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_entry_for_pods_is_kept_while_the_one_for_image_caches_is_refused() {
    let cluster = Arc::new(FakeCluster::default());
    cluster.set(|record| record.validating_webhook_refusal = Some(403));
    let bench = Bench::start(cluster).await;
    bench.calls_for(&[]).await;
    bench.cluster.put_profile(Some(&[("selectors", PODS)]));
    bench.calls_for(&["pods"]).await;
    bench.select("a", "a", 0, json!({}));
    bench.selects(&["a"]).await;
    bench.cluster.set(|record| record.validating_webhook_refusal = None);
    bench.cluster.wait("the other entry", |record| record.validating_webhook.is_some()).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_entry_follows_the_selectors_and_the_last_good_state_of_each_holds() {
    let bench = Bench::start(Arc::new(FakeCluster::default())).await;
    bench.cluster.put_profile(Some(&[("selectors", PODS)]));
    bench.select("low", "l", 0, json!({"fair": {}}));
    bench.select("high", "h", 1, json!({}));
    bench.selects(&["h", "l"]).await;
    bench.calls_for(&["pods"]).await;
    bench.select("low", "l", 2, json!({"normalNodePrefer": {"cpuRatio": 1}}));
    bench.selects(&["l", "h"]).await;
    let message = bench.told_of("low", NOT_HONOURED).await;
    assert!(message.starts_with("spec.policy.normalNodePrefer.cpuRatio: 1 is not honoured"), "{message}");
    bench.select("high", "not a value", 3, json!({}));
    let message = bench.told_of("high", INVALID_SELECTOR).await;
    assert!(message.starts_with("spec.objectLabels.matchLabels[app]: "), "{message}");
    assert!(message.ends_with("; what it said before still holds"), "{message}");
    bench.select("other", "o", 0, json!({}));
    bench.selects(&["l", "h", "o"]).await;

    // Also for the next life of this process; and nothing is told again.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let told = bench.cluster.see(|record| record.events.len());
    let bench = Bench::start(bench.end().await).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.selects(&["l", "h", "o"]).await;
    assert_eq!(bench.cluster.see(|record| record.events.len()), told);
    bench.cluster.put_selector("low", None);
    bench.selects(&["h", "o"]).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_is_slow_to_reach_the_api_server_takes_no_selector_out_of_the_entry() {
    let mut bench = Bench::start(Arc::new(FakeCluster::default())).await;
    bench.select("a", "a", 0, json!({}));
    bench.selects(&["a"]).await;
    bench.settled().await;
    let webhook = |record: &Record| {
        let webhooks = record.webhook.clone()?.webhooks?;
        webhooks.into_iter().find(|webhook| webhook.name.starts_with("selector-")).map(|webhook| webhook.client_config)
    };
    let before = bench.cluster.see(webhook).unwrap();
    // The entry comes late, and the Selectors a little later; or they do not come at all for long.
    for (entry, selectors) in [(8, 9), (0, 60)] {
        let cluster = bench.end().await;
        cluster.set(|record| {
            (record.webhook_delay, record.selector_delay) =
                (Duration::from_secs(entry), Duration::from_secs(selectors));
        });
        bench = Bench::start(cluster).await;
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(70) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(bench.cluster.see(webhook).is_some(), "after {:?}", begun.elapsed());
        }
        let now = bench.cluster.see(webhook).unwrap();
        assert_eq!(now.url, before.url);
        assert_ne!(now.ca_bundle, before.ca_bundle);
        // Once they are known, it follows them.
        bench.select("b", "b", 1, json!({}));
        bench.selects(&["b", "a"]).await;
        bench.cluster.put_selector("b", None);
        bench.selects(&["a"]).await;
        bench.settled().await;
    }
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_selector_that_the_api_server_refuses_is_given_up_alone() {
    let bench = Bench::start(Arc::new(FakeCluster::default())).await;
    bench.cluster.put_profile(Some(&[("selectors", PODS)]));
    bench.calls_for(&["pods"]).await;
    bench.select("a", "a", 1, json!({}));
    bench.selects(&["a"]).await;
    bench.settled().await;
    bench.cluster.set(|record| record.webhook_refusal = Some("webhooks[2].objectSelector: no".to_owned()));
    bench.select("b", "b", 0, json!({}));
    let message = bench.told_of("b", INVALID_SELECTOR).await;
    let expected = "spec: the API server refuses it: webhooks[2].objectSelector: no; write what it takes; it does nothing \
                    until then";
    assert_eq!(message, expected);
    bench.select("c", "c", 2, json!({}));
    bench.selects(&["c", "a"]).await;
    bench.calls_for(&["pods"]).await;
    bench.end().await;
}

/// A pod that a Selector has marked and that no node takes.
fn unschedulable(name: &str, selector: &str) -> Pod {
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable"});
    let metadata = json!({"namespace": "n", "name": name, "uid": format!("{name}-uid"), "labels": {"app": "x"},
        "annotations": {SELECTOR: selector}});
    serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": [], "tolerations": [{"key": "own"}]},
        "status": {"conditions": [condition]}}))
    .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_no_node_takes_may_go_to_a_virtual_node_then() {
    let bench = Bench::start(Arc::new(FakeCluster::default())).await;
    bench.cluster.put_pod(unschedulable("before", "ns/prefers"));
    bench.cluster.put_pod(unschedulable("others", "ns/only"));
    bench.select("only", "x", 0, json!({"normalNodeOnly": {}}));
    bench.selects(&["x"]).await;
    bench.select("prefers", "x", 1, json!({"normalNodePrefer": {}}));
    let keys = |record: &Record, name: &str| -> Vec<String> {
        let tolerations = record.pods[&format!("n/{name}")].spec.clone().unwrap().tolerations.unwrap_or_default();
        tolerations.into_iter().filter_map(|toleration| toleration.key).collect()
    };
    bench.cluster.wait("the toleration", |record| keys(record, "before") == ["own", "k"]).await;
    bench.cluster.go_offline();
    bench.cluster.put_pod(unschedulable("after", "ns/prefers"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.cluster.go_online();
    bench.cluster.wait("the toleration", |record| keys(record, "after") == ["own", "k"]).await;
    assert_eq!(bench.cluster.see(|record| keys(record, "others")), ["own"]);
    bench.end().await;
}
