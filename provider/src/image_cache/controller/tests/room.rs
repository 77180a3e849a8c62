//! How many image caches there may be.

use super::*;

impl Bench {
    async fn reason(&self, name: &str, phase: Phase) -> String {
        self.phase(name, phase).await.status.unwrap().reason
    }

    /// Makes a cache for a pod and has it Ready; gives the object's name.
    async fn made_for(&self, name: &str, image: &str) -> String {
        self.caches.choose("a", &pod(name, json!({}), &[image])).await;
        self.event(name, "ImageCacheAutoCreated").await;
        let holds = |cache: &ImageCache| cache.spec.images == [image];
        let cache = self.cluster.see(|record| record.image_caches.values().find(|cache| holds(cache)).unwrap().clone());
        self.told("a", &id_of(&cache)).await;
        self.report("a", &id_of(&cache), CachePhase::Ready, 1, &[image]);
        let object = cache.metadata.name.unwrap();
        self.phase(&object, Phase::Ready).await;
        object
    }
}

#[tokio::test(start_paused = true)]
async fn one_too_many_by_hand_fails_until_there_is_room() {
    let bench = Bench::with(&["a"], 1);
    bench.put("first", &["nginx:1"]);
    let id = id_of(&bench.phase("first", Phase::Pending).await);
    bench.told("a", &id).await;
    bench.put("second", &["redis:1"]);
    let reason = bench.reason("second", Phase::Failed).await;
    assert!(reason.starts_with("image cache quota 1 is used up: "), "{reason}");
    bench.settle().await;
    assert_eq!(bench.agent("a").see(|record| record.builds.len()), 1);
    // What it has let in it does not refuse after a restart.
    bench.report("a", &id, CachePhase::Ready, 1, &["nginx:1"]);
    bench.phase("first", Phase::Ready).await;
    let bench = bench.restart().await;
    bench.settle().await;
    assert_eq!(bench.reason("first", Phase::Ready).await, "");
    bench.cluster.delete_image_cache("first");
    bench.phase("second", Phase::Pending).await;
    bench.agent("a").wait("build", |record| record.builds.iter().any(|build| build.name == "second")).await;
}

#[tokio::test(start_paused = true)]
async fn an_automatic_one_takes_the_place_of_the_least_recently_used() {
    let bench = Bench::with(&["a"], 2);
    let first = bench.made_for("p", "nginx:1").await;
    let second = bench.made_for("q", "redis:1").await;
    // The older of the two has been used since.
    let mut used = bench.cluster.see(|record| record.image_caches[&first].clone());
    let later = Timestamp::now() + jiff::SignedDuration::from_hours(1);
    used.status.as_mut().unwrap().last_matched_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(later));
    bench.cluster.put_image_cache(used);
    bench.settle().await;
    let third = bench.made_for("r", "busybox:1").await;
    bench.cluster.wait("eviction", |record| !record.image_caches.contains_key(&second)).await;
    let left = bench.cluster.see(|record| record.image_caches.keys().cloned().collect::<Vec<_>>());
    assert_eq!(left.len(), 2);
    assert!(left.contains(&first) && left.contains(&third), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_freed_for_a_pod_nobody_else_takes() {
    let bench = Bench::with(&["a"], 1);
    bench.made_for("p", "nginx:1").await;
    bench.put("by-hand", &["redis:1"]);
    bench.phase("by-hand", Phase::Failed).await;
    let second = bench.made_for("q", "busybox:1").await;
    bench.settle().await;
    bench.phase(&second, Phase::Ready).await;
    assert!(bench.reason("by-hand", Phase::Failed).await.starts_with("image cache quota 1 is used up"));
    assert!(bench.agent("a").see(|record| record.builds.iter().all(|build| build.name != "by-hand")));
}

#[tokio::test(start_paused = true)]
async fn where_nothing_can_go_the_pod_is_told() {
    let bench = Bench::with(&["a"], 1);
    bench.put("by-hand", &["nginx:1"]);
    let id = id_of(&bench.phase("by-hand", Phase::Pending).await);
    bench.told("a", &id).await;
    bench.caches.choose("a", &pod("p", json!({}), &["redis:1"])).await;
    let told = bench.event("p", "ImageCacheAutoCreateFailed").await;
    assert!(
        told.starts_with("[eci.imagecache]Image cache auto create failed for image cache quota 1 is used up"),
        "{told}"
    );
    assert_eq!(bench.cluster.see(|record| record.image_caches.len()), 1);
}
