//! What the object says of itself, and where its cache is wanted.

use k8s_openapi::api::core::v1::Node;

use super::*;
use crate::image_cache::placement::NODE_SELECTOR_ANNOTATION;

impl Bench {
    fn label(&self, node: &str, labels: Value) {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": node, "labels": labels}})).unwrap();
        self.cluster.write_node(node);
    }

    fn put_annotated(&self, name: &str, annotations: Value) -> ImageCache {
        let images = vec!["nginx:1".to_owned()];
        let mut cache = ImageCache::new(name, ImageCacheSpec { images, ..Default::default() });
        cache.metadata.annotations = serde_json::from_value(annotations).unwrap();
        self.cluster.put_image_cache(cache)
    }

    fn messages(&self, object: &str, reason: &str) -> Vec<String> {
        let is = |event: &&k8s_openapi::api::core::v1::Event| {
            event.involved_object.name.as_deref() == Some(object) && event.reason.as_deref() == Some(reason)
        };
        self.cluster.see(|record| record.events.iter().filter(is).map(|event| event.message.clone().unwrap()).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_tells_of_its_annotations_once_and_of_what_becomes_of_it() {
    let bench = Bench::new(&["a"]);
    let annotations = json!({"k8s.aliyun.com/vswitch-ids": "vsw-a", "k8s.aliyun.com/imc-size": "lots"});
    let id = id_of(&bench.put_annotated("c", annotations));
    assert!(bench.event("c", "NotHonoured").await.contains("k8s.aliyun.com/vswitch-ids"));
    assert!(bench.event("c", "InvalidAnnotation").await.contains("\"lots\""));
    bench.told("a", &id).await;
    bench.report("a", &id, CachePhase::Failed, 1, &[]);
    assert_eq!(bench.event("c", "Failed").await, "failed to pull images.");
    bench.report("a", &id, CachePhase::Ready, 2, &["nginx:1"]);
    bench.event("c", "Ready").await;
    let bench = bench.restart().await;
    bench.report("a", &id, CachePhase::Ready, 3, &["nginx:1"]);
    bench.settle().await;
    assert_eq!(bench.messages("c", "NotHonoured").len(), 1);
    assert_eq!(bench.messages("c", "Ready"), [format!("Image cache {id} is ready.")]);
    let regarding = bench.cluster.see(|record| record.events[0].involved_object.clone());
    assert_eq!((regarding.kind.as_deref(), regarding.namespace), (Some("ImageCache"), None));
}

#[tokio::test(start_paused = true)]
async fn where_nobody_checks_who_names_a_secret_it_needs_a_label() {
    let bench = Bench::new(&["a"]);
    let key = |name: &str| ObjectKey { kind: ObjectKind::Secret, namespace: "ns".to_owned(), name: name.to_owned() };
    let plain = ObjectContent { data: [("user".to_owned(), "plain".into())].into(), ..Default::default() };
    let mut labelled = ObjectContent { data: [("user".to_owned(), "labelled".into())].into(), ..Default::default() };
    labelled.labels = [("eci.alibabacloud.com/image-cache".to_owned(), "true".to_owned())].into();
    bench.cluster.put_object(key("plain"), Some(plain));
    bench.cluster.put_object(key("labelled"), Some(labelled));
    let images = vec!["nginx:1".to_owned()];
    let image_pull_secrets = ["ns:plain", "ns:labelled", "ns:missing"].map(str::to_owned).to_vec();
    let spec = ImageCacheSpec { images, image_pull_secrets, ..Default::default() };
    let id = id_of(&bench.cluster.put_image_cache(ImageCache::new("c", spec)));
    bench.told("a", &id).await;
    let users = bench.agent("a").see(|record| record.builds[0].credentials.clone());
    assert_eq!(users.iter().map(|login| login.username.as_str()).collect::<Vec<_>>(), ["labelled"]);
    bench.report("a", &id, CachePhase::Failed, 1, &[]);
    let reason = bench.phase("c", Phase::Failed).await.status.unwrap().reason;
    for part in ["failed to pull images.", "ns:plain cannot be used: it is not labelled", "ns:missing cannot be used"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert!(!reason.contains("ns:labelled"), "{reason}");
    bench.event("c", "PullSecretUnusable").await;
    bench.settle().await;
    assert_eq!(bench.messages("c", "PullSecretUnusable").len(), 2);
}

/// In real time, since that is what the controller reckons in.
#[tokio::test]
async fn a_selector_keeps_a_cache_to_its_hosts() {
    let bench = Bench::new(&["a", "b"]);
    bench.label("a", json!({"zone": "x"}));
    bench.label("b", json!({"zone": "y"}));
    let mut cache = bench.put_annotated("c", json!({NODE_SELECTOR_ANNOTATION: "zone=x"}));
    let id = id_of(&cache);
    bench.told("a", &id).await;
    bench.report("a", &id, CachePhase::Ready, 1, &["nginx:1"]);
    let status = bench.phase("c", Phase::Ready).await.status.unwrap();
    assert_eq!(status.ready_hosts, "1/1");
    assert_eq!(bench.agent("b").see(|record| record.builds.len()), 0);
    // It moves with its selector, and is built on the other host before anybody misses it.
    cache.status = Some(status);
    let cache = cache.annotated(&[(NODE_SELECTOR_ANNOTATION, "zone=y")]);
    let cache = bench.cluster.put_image_cache(cache);
    bench.told("b", &id).await;
    bench.agent("a").wait("delete", |record| record.cache_deletes.contains(&id)).await;
    bench.report("b", &id, CachePhase::Ready, 1, &["nginx:1"]);
    bench.phase("c", Phase::Ready).await;

    let cache = cache.annotated(&[(NODE_SELECTOR_ANNOTATION, "zone in")]);
    let cache = bench.cluster.put_image_cache(cache);
    let reason = bench.phase("c", Phase::UpdateFailed).await.status.unwrap().reason;
    assert!(reason.contains(NODE_SELECTOR_ANNOTATION) && reason.contains("\"zone in\""), "{reason}");
    assert!(bench.agent("b").see(|record| record.caches.contains_key(&id)));

    let cache = cache.annotated(&[(NODE_SELECTOR_ANNOTATION, "zone=z")]);
    bench.cluster.put_image_cache(cache);
    let reason = bench.phase("c", Phase::Failed).await.status.unwrap().reason;
    assert_eq!(reason, "no host has a node with the labels zone=z");
    // A host that gets the label gets the cache.
    bench.label("a", json!({"zone": "z"}));
    bench.agent("a").wait("build", |record| record.builds.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_setting_tries_a_failed_cache_again_and_a_refresh_a_ready_one() {
    let bench = Bench::new(&["a"]);
    let mut cache = bench.put_annotated("c", json!({}));
    let id = id_of(&cache);
    bench.told("a", &id).await;
    bench.report("a", &id, CachePhase::Failed, 1, &[]);
    cache.status = bench.phase("c", Phase::Failed).await.status;
    let cache = cache.annotated(&[("team", "x")]);
    let cache = bench.cluster.put_image_cache(cache);
    bench.settle().await;
    assert_eq!(bench.agent("a").see(|record| record.builds.len()), 1);
    let cache = cache.annotated(&[("k8s.aliyun.com/plain-http-registry", "r")]);
    bench.cluster.put_image_cache(cache);
    bench.agent("a").wait("second build", |record| record.builds.len() == 2).await;
    bench.report("a", &id, CachePhase::Ready, 2, &["nginx:1"]);
    let mut cache = bench.phase("c", Phase::Ready).await;
    cache.metadata.annotations.as_mut().unwrap().insert("eci.alibabacloud.com/refresh".to_owned(), "1".to_owned());
    bench.cluster.put_image_cache(cache);
    bench.agent("a").wait("third build", |record| record.builds.len() == 3).await;
    assert_eq!(bench.agent("a").see(|record| record.builds[2].refresh.clone()), "1");
    bench.phase("c", Phase::Updating).await;
}
