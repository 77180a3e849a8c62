//! The keeper of the entry against an API server in memory, with time paused.

use tokio::task::JoinSet;

use super::*;
use crate::admission::registration::PROFILE_ANNOTATION;
use crate::cluster::fake::{FakeCluster, Record};
use crate::profile::standing::{IGNORED, INVALID};

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
        let around =
            Surroundings { entries: cluster.clone(), profiles: cluster.clone(), access: cluster.clone(), events };
        let target = "https://127.0.0.1:9443".parse().unwrap();
        let placement = Placement::new(vec![]);
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
        let of = |record: &Record| {
            let is_it = |event: &&k8s_openapi::api::core::v1::Event| event.reason.as_deref() == Some(reason);
            record.events.iter().rev().find(is_it).cloned()
        };
        self.cluster.wait(reason, |record| of(record).is_some()).await;
        let event = self.cluster.see(of).unwrap();
        let about = (event.involved_object.kind.as_deref(), event.involved_object.name.as_deref());
        assert_eq!(about, (Some("ConfigMap"), Some("eci-profile")));
        assert_eq!(event.metadata.namespace.as_deref(), Some("kube-system"));
        event.message.unwrap()
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
    bench.cluster.set(|record| record.webhook_refusal = Some("selector: invalid".to_owned()));
    bench.cluster.put_profile(Some(&[("selectors", OTHER)]));
    let message = bench.told(INVALID).await;
    assert_eq!(message, "selector: invalid; the profile before this one still holds");
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.calls_for(&["pods"]).await;
    bench.end().await;
}
