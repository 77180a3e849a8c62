//! Objects that are deleted: they go when the hosts have forgotten them, and never wait without end.

use super::*;
use crate::custom_resource::FINALIZER;

impl Bench {
    /// A cache that every host holds.
    async fn held(&self, name: &str, nodes: &[&str]) -> String {
        self.put(name, &["nginx:1"]);
        let id = id_of(&self.phase(name, Phase::Pending).await);
        for node in nodes {
            self.report(node, &id, CachePhase::Ready, 1, &["nginx:1"]);
        }
        self.phase(name, Phase::Ready).await;
        let is_kept = |cache: &ImageCache| cache.metadata.finalizers.as_deref() == Some(&[FINALIZER.to_owned()]);
        self.cluster.wait("finalizer", |record| record.image_caches.get(name).is_some_and(is_kept)).await;
        id
    }

    async fn gone(&self, name: &str) {
        self.cluster.wait("the end of the object", |record| !record.image_caches.contains_key(name)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_cache_goes_when_its_hosts_have_forgotten_it() {
    let bench = Bench::new(&["a", "b"]);
    let id = bench.held("c", &["a", "b"]).await;
    bench.cluster.delete_image_cache("c");
    bench.gone("c").await;
    for node in ["a", "b"] {
        assert!(bench.agent(node).see(|record| record.caches.is_empty() && record.cache_deletes.contains(&id)));
    }
    let chosen = bench.caches.choose("a", &pod("p", json!({"k8s.aliyun.com/eci-imc-id": id}), &["nginx:1"])).await;
    assert_eq!(chosen.start, Err(Refusal::NotFound { id }));
}

/// In real time, since that is what the controller reckons in.
#[tokio::test]
async fn a_host_that_is_away_does_not_hold_up_a_deletion_and_forgets_when_it_is_back() {
    let bench = Bench::new(&["a", "b"]);
    let id = bench.held("c", &["a", "b"]).await;
    bench.agent("b").go_offline();
    bench.settle().await;
    let mut deleted = bench.cluster.see(|record| record.image_caches["c"].clone());
    let long_ago = Timestamp::now() - jiff::SignedDuration::from_secs(9);
    deleted.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(long_ago));
    bench.cluster.put_image_cache(deleted);
    bench.agent("a").wait("delete", |record| record.cache_deletes.contains(&id)).await;
    bench.gone("c").await;
    bench.agent("b").go_online();
    bench.agent("b").wait("delete", |record| record.cache_deletes.contains(&id)).await;
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_on_its_way_out_is_neither_built_nor_written_nor_kept_by_us() {
    let bench = Bench::new(&["a"]);
    let mut cache = ImageCache::new("c", ImageCacheSpec { images: vec!["nginx".to_owned()], ..Default::default() });
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
    cache.metadata.deletion_timestamp = Some(now);
    cache.metadata.finalizers = Some(vec!["somebody/else".to_owned()]);
    bench.cluster.put_image_cache(cache);
    bench.put("other", &["nginx"]);
    bench.phase("other", Phase::Pending).await;
    bench.settle().await;
    let cache = bench.cluster.see(|record| record.image_caches["c"].clone());
    assert_eq!((cache.status, cache.metadata.finalizers), (None, Some(vec!["somebody/else".to_owned()])));
    assert_eq!(bench.agent("a").see(|record| record.builds.len()), 1);
}

#[tokio::test(start_paused = true)]
async fn an_automatic_cache_waits_for_an_earlier_one_of_its_name_to_go() {
    let bench = Bench::new(&["a"]);
    let asking = pod("p", json!({}), &["nginx:1"]);
    bench.caches.choose("a", &asking).await;
    let first = bench.automatic().await;
    let (name, id) = (first.metadata.name.clone().unwrap(), id_of(&first));
    bench.event("p", "ImageCacheAutoCreated").await;
    // Somebody else's finalizer keeps it for a while.
    let mut kept = bench.cluster.see(|record| record.image_caches[&name].clone());
    kept.metadata.finalizers = Some(vec![FINALIZER.to_owned(), "somebody/else".to_owned()]);
    bench.cluster.put_image_cache(kept);
    bench.cluster.delete_image_cache(&name);
    let is_left = |cache: &ImageCache| cache.metadata.finalizers.as_deref() == Some(&["somebody/else".to_owned()]);
    bench.cluster.wait("our finalizer off", |record| record.image_caches.get(&name).is_some_and(is_left)).await;
    bench.caches.choose("a", &asking).await;
    bench.settle().await;
    bench.cluster.drop_image_cache(&name);
    let is_new = |cache: &ImageCache| id_of(cache) != id;
    bench.cluster.wait("another", |record| record.image_caches.get(&name).is_some_and(is_new)).await;
}
