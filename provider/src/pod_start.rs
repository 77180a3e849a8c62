//! How a pod starts on a virtual node: whether the policy takes it, from which image cache, and what is written on it. It
//! puts the parts together that know these things, and decides nothing by itself.
//!
//! A pod that names an image cache which cannot be used yet stays Pending, with the reason in its status and its events,
//! and starts when the cache is Ready: that is ECI's default strategy for failures, `fail-back`, and what a Deployment
//! needs whose cache is being made at the same moment. A pod that the policy refuses stays Pending, too, where its containers
//! are restarted: a Failed one would be replaced by its controller without end. With the restart policy `Never` it is Failed,
//! so that its Job counts it and ends.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;

use crate::admission::Selected;
use crate::agent::ChosenCache;
use crate::custom_resource::{INSECURE_ANNOTATION, PLAIN_HTTP_ANNOTATION};
use crate::image_cache::{self, ImageCaches, Note};
use crate::pod::acted_on::{self, ACTED_ON};
use crate::pod::eci_annotations::{self, MATCHED_IMAGE_CACHE, Surroundings};
use crate::pod::policy::{self, PodPolicy};
use crate::pod::unhonoured::{Unhonoured, unhonoured};
use crate::pod::{Admitted, CacheChoice, CacheDecision, Notice, PROVIDER_FAILED, Refusal};
use crate::profile::Effect;

/// Decides how pods start.
#[derive(Debug)]
pub struct PodStart {
    /// Which pods are taken.
    pub policy: PodPolicy,
    /// Tells which image cache a pod starts from.
    pub image_caches: ImageCaches,
    /// What is written on pods, by the name of the virtual node.
    pub surroundings: BTreeMap<String, Surroundings>,
    /// Tells which Selectors act; nothing where there is no webhook that would have marked a pod.
    pub selected: Option<Selected>,
}

#[async_trait]
impl CacheChoice for PodStart {
    async fn choose(&self, node: &str, pod: &Pod) -> CacheDecision {
        let effect = self.outstanding(pod).await;
        let pod = &*with_effect(pod, &effect);
        let violations = policy::violations(self.policy, pod);
        if !violations.is_empty() {
            let message = policy::explain(&violations);
            return CacheDecision::Refuse(Refusal { reason: PROVIDER_FAILED.to_owned(), message, notices: vec![] });
        }
        let chosen = self.image_caches.choose(node, pod).await;
        let told = chosen.notes.into_iter().map(notice);
        match chosen.start {
            Ok(image_cache) => {
                let size = eci_annotations::size_message(pod);
                let size = Notice { warning: false, reason: "UserInstanceTypeSpec".to_owned(), message: size };
                let asked = unhonoured(pod).into_iter().map(not_honoured);
                let notices = std::iter::once(size).chain(asked).chain(told).collect();
                let mut admitted = self.admitted(node, pod, image_cache, effect);
                admitted.annotations.insert(ACTED_ON.to_owned(), acted_on::mark(pod.metadata.annotations.as_ref()));
                if admitted.image_cache.is_none() {
                    // A copy of another pod, or a user's own word, is not what this pod started from.
                    admitted.cleared.insert(MATCHED_IMAGE_CACHE.to_owned());
                }
                CacheDecision::Run(Admitted { notices, ..admitted })
            }
            Err(refusal) => CacheDecision::Later(waiting(&refusal, told.collect())),
        }
    }

    async fn until_worth_asking(&self, node: &str, pod: &Pod) {
        let effect = self.outstanding(pod).await;
        self.image_caches.until_ready(node, &with_effect(pod, &effect)).await;
    }

    fn recall(&self, node: &str, pod: &Pod) -> Admitted {
        // Which cache it started from is the agent's to know. What is written on the pod may be its user's own word.
        // An effect that was outstanding when it began was not written in time.
        let effect = self.selected.as_ref().and_then(|selected| selected.outstanding_now(pod)).unwrap_or_default();
        self.admitted(node, &with_effect(pod, &effect), None, effect)
    }
}

impl PodStart {
    /// What a Selector writes on the pod now that it is on a virtual node. It counts as if the pod had been made with it.
    async fn outstanding(&self, pod: &Pod) -> Effect {
        match &self.selected {
            Some(selected) => selected.outstanding(pod).await.unwrap_or_default(),
            None => Effect::default(),
        }
    }

    fn admitted(&self, node: &str, pod: &Pod, image_cache: Option<ChosenCache>, effect: Effect) -> Admitted {
        let around = self.surroundings.get(node).cloned().unwrap_or_default();
        let Effect { mut annotations, mut labels } = effect;
        let id = image_cache.as_ref().map(|cache| cache.id.as_str());
        annotations.extend(eci_annotations::annotations(pod, id, &around));
        labels.extend(eci_annotations::labels());
        Admitted {
            annotations,
            labels,
            plain_http_registries: registries(pod, PLAIN_HTTP_ANNOTATION),
            insecure_registries: registries(pod, INSECURE_ANNOTATION),
            notices: vec![],
            cleared: BTreeSet::new(),
            image_cache,
        }
    }
}

/// The pod as it is with an effect over its own labels and annotations.
fn with_effect<'a>(pod: &'a Pod, effect: &Effect) -> Cow<'a, Pod> {
    if effect.is_empty() {
        return Cow::Borrowed(pod);
    }
    let mut pod = pod.clone();
    pod.metadata.annotations.get_or_insert_default().extend(effect.annotations.clone());
    pod.metadata.labels.get_or_insert_default().extend(effect.labels.clone());
    Cow::Owned(pod)
}

fn waiting(refusal: &image_cache::Refusal, mut notices: Vec<Notice>) -> Refusal {
    // ECI takes a cache that is not complete for normal, and one that is not there for a mistake.
    let warning = !matches!(refusal, image_cache::Refusal::NotComplete { .. } | image_cache::Refusal::NotKnown { .. });
    let (reason, message) = (refusal.reason().to_owned(), refusal.message());
    notices.push(Notice { warning, reason: reason.clone(), message: message.clone() });
    Refusal { reason, message, notices }
}

fn notice(note: Note) -> Notice {
    Notice { warning: note.warning, reason: note.reason.to_owned(), message: note.message }
}

fn not_honoured(asked: Unhonoured) -> Notice {
    let message = format!("{}: {}; {}", asked.field, asked.what, asked.remedy);
    Notice { warning: true, reason: "NotHonoured".to_owned(), message }
}

/// Registry hosts of an annotation, separated by commas.
fn registries(pod: &Pod, key: &str) -> Vec<String> {
    let listed = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key));
    let hosts = listed.into_iter().flat_map(|hosts| hosts.split(',')).map(str::trim);
    hosts.filter(|host| !host.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::agent::AgentClient;
    use crate::agent::fake::FakeAgent;
    use crate::cluster::EventRecorder;
    use crate::cluster::fake::FakeCluster;
    use crate::image_cache::ImageCacheController;
    use crate::image_cache::request::{self, NodeDefault};
    use crate::meters::Meters;
    use crate::parts::PartError;
    use crate::selector::{Name, Rules, mark, rule};

    fn start(tasks: &mut JoinSet<Result<(), PartError>>) -> PodStart {
        let cluster = Arc::new(FakeCluster::default());
        let (events, _) = EventRecorder::new(cluster.clone());
        let agents = [("n".to_owned(), Arc::new(FakeAgent::default()) as Arc<dyn AgentClient>)].into();
        let around = image_cache::Surroundings {
            api: cluster.clone(),
            nodes: cluster,
            agents,
            events,
            read_logins: |_| Ok(vec![]),
            secret_rule: image_cache::SecretRule::CheckedAtAdmission,
            most: 0,
            default: NodeDefault::default(),
            meters: Meters::default(),
        };
        let (image_caches, controller) = ImageCacheController::new(around);
        tasks.spawn(controller.run(CancellationToken::new()));
        let around = Surroundings { stream_port: 10250, ..Surroundings::default() };
        let surroundings = [("n".to_owned(), around)].into();
        PodStart { policy: PodPolicy::Eci, image_caches, surroundings, selected: None }
    }

    fn pod(annotations: Value, spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([{"name": "c", "image": "nginx"}]);
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u", "annotations": annotations}, "spec": spec}))
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_misses_starts_and_is_told() {
        let mut tasks = JoinSet::new();
        let start = start(&mut tasks);
        let pod = pod(json!({PLAIN_HTTP_ANNOTATION: "a:5000, b,"}), json!({}));
        let CacheDecision::Run(admitted) = start.choose("n", &pod).await else { panic!() };
        let reasons: Vec<_> = admitted.notices.iter().map(|notice| notice.reason.as_str()).collect();
        assert_eq!(reasons, ["UserInstanceTypeSpec", "ImageCacheMissed"]);
        assert_eq!(admitted.annotations["ProviderCreate"], "done");
        assert_eq!(admitted.labels["serverless.alibabacloud.com/virtual-node"], "true");
        assert_eq!(admitted.plain_http_registries, ["a:5000", "b"]);
        assert_eq!(admitted.image_cache, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_names_a_missing_cache_waits_and_says_why() {
        let mut tasks = JoinSet::new();
        let start = start(&mut tasks);
        let pod = pod(json!({"k8s.aliyun.com/eci-imc-id": "imc-x"}), json!({}));
        let CacheDecision::Later(refusal) = start.choose("n", &pod).await else { panic!() };
        assert_eq!(refusal.reason, "ImageCacheNotFound");
        assert_eq!(refusal.message, "The specified image cache imc-x does not exist.");
        assert!(refusal.notices[0].warning);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_against_the_policy_is_refused_and_asks_for_no_cache() {
        let mut tasks = JoinSet::new();
        let mut start = start(&mut tasks);
        let pod = pod(json!({}), json!({"hostNetwork": true}));
        let CacheDecision::Refuse(refusal) = start.choose("n", &pod).await else { panic!() };
        assert_eq!(refusal.reason, "ProviderFailed");
        assert!(refusal.message.contains("spec.hostNetwork"));
        start.policy = PodPolicy::Kubelet;
        assert!(matches!(start.choose("n", &pod).await, CacheDecision::Run(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_honoured_is_told_with_the_start() {
        let mut tasks = JoinSet::new();
        let mut start = start(&mut tasks);
        let mut pod = pod(json!({"k8s.aliyun.com/eci-custom-hosts": "[]"}), json!({}));
        let CacheDecision::Run(admitted) = start.choose("n", &pod).await else { panic!() };
        let told = admitted.notices.iter().find(|notice| notice.reason == "NotHonoured").unwrap();
        assert!(told.warning);
        assert_eq!(
            told.message,
            "metadata.annotations[k8s.aliyun.com/eci-custom-hosts]: k8s.aliyun.com/eci-custom-hosts=[] is not honoured: the \
             pod's /etc/hosts does without; use spec.hostAliases"
        );
        // What decides how the pod behaves is refused as on ECI, and told where a kubelet's rules hold.
        let env = json!([{"name": "ECI_CONTAINER_TYPE", "value": "sidecar"}]);
        pod.spec.as_mut().unwrap().containers[0].env = serde_json::from_value(env).unwrap();
        let CacheDecision::Refuse(refusal) = start.choose("n", &pod).await else { panic!() };
        assert!(
            refusal.message.contains("spec.containers[0].env[0]: ECI_CONTAINER_TYPE=sidecar"),
            "{}",
            refusal.message
        );
        start.policy = PodPolicy::Kubelet;
        let CacheDecision::Run(admitted) = start.choose("n", &pod).await else { panic!() };
        assert_eq!(admitted.notices.iter().filter(|notice| notice.reason == "NotHonoured").count(), 2);
        assert!(start.recall("n", &pod).notices.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cache_that_a_user_has_written_on_the_pod_is_neither_believed_nor_left_there() {
        let mut tasks = JoinSet::new();
        let start = start(&mut tasks);
        let pod = pod(json!({MATCHED_IMAGE_CACHE: "imc-a"}), json!({}));
        let CacheDecision::Run(admitted) = start.choose("n", &pod).await else { panic!() };
        assert_eq!(admitted.cleared, BTreeSet::from([MATCHED_IMAGE_CACHE.to_owned()]));
        let recalled = start.recall("n", &pod);
        assert_eq!(recalled.image_cache, None);
        assert!(recalled.notices.is_empty() && recalled.cleared.is_empty());
        assert!(!recalled.annotations.contains_key(MATCHED_IMAGE_CACHE));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_acted_on_is_marked_at_the_start_and_not_later() {
        let mut tasks = JoinSet::new();
        let start = start(&mut tasks);
        let pod = pod(json!({request::AUTO: "false"}), json!({}));
        let CacheDecision::Run(admitted) = start.choose("n", &pod).await else { panic!() };
        assert!(admitted.annotations[ACTED_ON].starts_with("k8s.aliyun.com/eci-auto-imc="));
        assert!(!start.recall("n", &pod).annotations.contains_key(ACTED_ON));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_selector_writes_counts_from_the_start_and_is_written_once() {
        let mut tasks = JoinSet::new();
        let (shown, seen) = tokio::sync::watch::channel(None);
        let start = PodStart { selected: Some(Selected::new(seen)), ..start(&mut tasks) };
        let spec = json!({"objectLabels": {}, "policy": {"fair": {}},
            "effect": {"annotations": {"k8s.aliyun.com/eci-imc-id": "imc-x", "own": "1"}, "labels": {"l": "1"}}});
        let name = Name { namespace: "ns".to_owned(), name: "s".to_owned() };
        let rule = rule::read(name, &serde_json::from_value(spec).unwrap()).unwrap();
        let marked = pod(json!({mark::SELECTOR: "ns/s", "own": "0"}), json!({}));
        // Nobody knows the Selectors yet, and then somebody does.
        let choosing = start.choose("n", &marked);
        tokio::pin!(choosing);
        assert!(tokio::time::timeout(std::time::Duration::from_secs(1), &mut choosing).await.is_err());
        shown.send_replace(Some(Arc::new(Rules::ranked(vec![rule]).0)));
        let CacheDecision::Later(refusal) = choosing.await else { panic!() };
        assert!(refusal.message.contains("imc-x"), "{}", refusal.message);

        // A pod that began while we were away is not told of the effect again; one that lacks it is given it.
        let recalled = start.recall("n", &marked);
        assert_eq!((recalled.annotations["own"].as_str(), recalled.labels["l"].as_str()), ("1", "1"));
        assert_eq!(recalled.annotations[mark::EFFECT], mark::WRITTEN);
        let written = pod(json!({mark::SELECTOR: "ns/s", "own": "0", mark::EFFECT: mark::WRITTEN}), json!({}));
        assert!(!start.recall("n", &written).annotations.contains_key("own"));
        let other = pod(json!({mark::SELECTOR: "ns/gone"}), json!({}));
        let CacheDecision::Run(admitted) = start.choose("n", &other).await else { panic!() };
        assert!(!admitted.annotations.contains_key(mark::EFFECT));
    }

    #[test]
    fn no_effect_may_write_what_only_we_write() {
        let around = Surroundings {
            zone: "z".to_owned(),
            cluster_domain: "d".to_owned(),
            kubernetes_version: "v".to_owned(),
            stream_port: 1,
        };
        let ours = eci_annotations::annotations(&pod(json!({}), json!({})), Some("imc-a"), &around);
        let labels = eci_annotations::labels();
        let marks = [ACTED_ON, acted_on::TOLD, mark::SELECTOR, mark::EFFECT];
        for key in ours.keys().chain(labels.keys()).map(String::as_str).chain(marks) {
            assert!(crate::profile::effect::is_ours(key), "{key}");
        }
        // What its users may ask for they may ask for in an effect.
        assert!(!acted_on::KEYS.into_iter().any(crate::profile::effect::is_ours));
    }

    #[test]
    fn every_annotation_about_image_caches_is_watched_for_changes() {
        use request::{AUTO, AUTO_LEGACY, COUNT, PERFECT, PINNED, PINNED_LEGACY};
        for key in [AUTO, AUTO_LEGACY, PINNED, PINNED_LEGACY, PERFECT, COUNT] {
            assert!(acted_on::KEYS.contains(&key), "{key}");
        }
    }
}
