//! The controller against a cluster and hosts in memory. Times are short waits of the paused clock.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::agent::fake::FakeAgent;
use crate::agent::{CachePhase, CacheState, CachedImage, ChosenCache, RegistryCredential, VerificationPolicy};
use crate::cluster::fake::FakeCluster;
use crate::cluster::objects::ObjectContent;
use crate::cluster::{ObjectKey, ObjectKind};
use crate::custom_resource::{ImageCacheSpec, Phase, VERIFICATION_ANNOTATION};
use crate::image_cache::handle::Chosen;
use crate::image_cache::matching::Refusal;
use crate::image_cache::plan::id_of;

mod lasting;
mod leaving;
mod room;
mod told;
mod touched;

struct Bench {
    cluster: Arc<FakeCluster>,
    agents: BTreeMap<String, Arc<FakeAgent>>,
    caches: ImageCaches,
    tasks: JoinSet<Result<(), PartError>>,
    stop: CancellationToken,
    most: usize,
}

fn read_logins(secret: &ObjectContent) -> Result<Vec<RegistryCredential>, String> {
    let username = secret.data.get("user").ok_or("it has no user")?;
    Ok(vec![RegistryCredential { username: String::from_utf8_lossy(username).into_owned(), ..Default::default() }])
}

fn around(
    cluster: &Arc<FakeCluster>,
    agents: BTreeMap<String, Arc<dyn AgentClient>>,
    events: EventRecorder,
    most: usize,
) -> Surroundings {
    Surroundings {
        api: cluster.clone(),
        agents,
        nodes: cluster.clone(),
        events,
        read_logins,
        secret_rule: SecretRule::Labelled,
        most,
        default: NodeDefault::default(),
        meters: Meters::default(),
    }
}

/// A controller whose steps a test takes itself, with the host `a`; an object at the API server; and what must live on.
fn by_hand() -> (ImageCacheController, ImageCache, impl Sized) {
    let (cluster, agent) = (Arc::new(FakeCluster::default()), Arc::new(FakeAgent::default()));
    let (events, writer) = EventRecorder::new(cluster.clone());
    let agents = BTreeMap::from([("a".to_owned(), agent as Arc<dyn AgentClient>)]);
    let (caches, controller) = ImageCacheController::new(around(&cluster, agents, events, 0));
    let images = vec!["nginx:1".to_owned()];
    let cache = cluster.put_image_cache(ImageCache::new("c", ImageCacheSpec { images, ..Default::default() }));
    (controller, cache, (caches, writer))
}

impl Bench {
    fn new(nodes: &[&str]) -> Self {
        Self::with(nodes, 0)
    }

    /// With a limit of so many caches.
    fn with(nodes: &[&str], most: usize) -> Self {
        let cluster = Arc::new(FakeCluster::default());
        let agents = nodes.iter().map(|node| ((*node).to_owned(), Arc::new(FakeAgent::default()))).collect();
        Self::start(cluster, agents, most)
    }

    fn start(cluster: Arc<FakeCluster>, agents: BTreeMap<String, Arc<FakeAgent>>, most: usize) -> Self {
        let (events, writer) = EventRecorder::new(cluster.clone());
        let clients = agents.iter().map(|(node, agent)| (node.clone(), Arc::clone(agent) as Arc<dyn AgentClient>));
        let (caches, controller) = ImageCacheController::new(around(&cluster, clients.collect(), events, most));
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(controller.run(stop.clone()));
        tasks.spawn(writer.run(stop.clone()));
        Self { cluster, agents, caches, tasks, stop, most }
    }

    /// Ends the controller, and starts another on the same cluster and hosts.
    async fn restart(mut self) -> Self {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        Self::start(self.cluster, self.agents, self.most)
    }

    fn agent(&self, node: &str) -> &FakeAgent {
        &self.agents[node]
    }

    fn put(&self, name: &str, images: &[&str]) -> ImageCache {
        let images = images.iter().map(|image| (*image).to_owned()).collect();
        self.cluster.put_image_cache(ImageCache::new(name, ImageCacheSpec { images, ..Default::default() }))
    }

    async fn phase(&self, name: &str, phase: Phase) -> ImageCache {
        let is = |cache: &ImageCache| cache.status.as_ref().is_some_and(|status| status.phase == phase);
        self.cluster.wait(&format!("{name} {phase:?}"), |record| record.image_caches.get(name).is_some_and(is)).await;
        self.cluster.see(|record| record.image_caches[name].clone())
    }

    async fn told(&self, node: &str, id: &str) {
        self.agent(node).wait("build", |record| record.builds.iter().any(|build| build.id == id)).await;
    }

    fn report(&self, node: &str, id: &str, phase: CachePhase, generation: u64, images: &[&str]) {
        let images = images.iter().map(|text| CachedImage { reference: (*text).to_owned(), ..Default::default() });
        self.agent(node).report_cache(CacheState {
            id: id.to_owned(),
            phase,
            generation,
            progress_percent: 42,
            reason: if phase == CachePhase::Failed { "failed to pull images." } else { "" }.to_owned(),
            images: images.collect(),
            last_updated: Some(Timestamp::now()),
            ..CacheState::default()
        });
    }

    async fn event(&self, pod: &str, reason: &str) -> String {
        let is = |event: &&k8s_openapi::api::core::v1::Event| {
            event.involved_object.name.as_deref() == Some(pod) && event.reason.as_deref() == Some(reason)
        };
        self.cluster.wait(&format!("{reason} on {pod}"), |record| record.events.iter().any(|event| is(&event))).await;
        self.cluster.see(|record| record.events.iter().find(is).unwrap().message.clone().unwrap())
    }

    async fn automatic(&self) -> ImageCache {
        self.cluster.wait("automatic cache", |record| !record.image_caches.is_empty()).await;
        self.cluster.see(|record| record.image_caches.values().next().unwrap().clone())
    }

    /// Lets everything run that can.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn pod(name: &str, annotations: Value, images: &[&str]) -> Pod {
    let containers: Vec<_> = images.iter().map(|image| json!({"name": "c", "image": image})).collect();
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-of-{name}"), "annotations": annotations},
        "spec": {"containers": containers, "imagePullSecrets": [{"name": "login"}]},
    }))
    .unwrap()
}

fn chosen_by_hand(id: &str) -> ChosenCache {
    ChosenCache { id: id.to_owned(), is_automatic: false, policy: None }
}

fn reasons(chosen: &Chosen) -> Vec<&'static str> {
    chosen.notes.iter().map(|note| note.reason).collect()
}

#[tokio::test(start_paused = true)]
async fn a_cache_made_by_hand_becomes_ready_and_is_hit() {
    let bench = Bench::new(&["a"]);
    bench.put("c", &["nginx:1"]);
    let cache = bench.phase("c", Phase::Pending).await;
    let id = id_of(&cache);
    bench.told("a", &id).await;
    bench.report("a", &id, CachePhase::Creating, 1, &[]);
    let cache = bench.phase("c", Phase::Creating).await;
    assert_eq!(cache.status.unwrap().progress, "42%");
    bench.report("a", &id, CachePhase::Ready, 2, &["nginx:1"]);
    let cache = bench.phase("c", Phase::Ready).await;
    let status = cache.status.unwrap();
    assert_eq!((status.progress.as_str(), status.image_cache_id.as_deref()), ("100%", Some(id.as_str())));

    let chosen = bench.caches.choose("a", &pod("p", json!({}), &["nginx:1"])).await;
    assert_eq!(chosen.start, Ok(Some(chosen_by_hand(&id))));
    assert_eq!(reasons(&chosen), ["SuccessfulHitImageCache"]);
    let pinned = pod("p", json!({"k8s.aliyun.com/eci-imc-id": id}), &["redis"]);
    bench.caches.until_ready("a", &pinned).await;
    assert_eq!(bench.caches.choose("a", &pinned).await.start, Ok(Some(chosen_by_hand(&id))));
    bench
        .cluster
        .wait("last use", |record| {
            record.image_caches["c"].status.as_ref().is_some_and(|status| status.last_matched_time.is_some())
        })
        .await;
    bench.settle().await;
    assert_eq!(bench.agent("a").see(|record| record.builds.len()), 1);
    assert_eq!(bench.cluster.see(|record| record.image_caches.len()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_named_cache_that_cannot_be_used_makes_the_pod_wait() {
    let bench = Bench::new(&["a"]);
    let naming = |id: &str| pod("p", json!({"k8s.aliyun.com/eci-imc-id": id}), &["nginx:1"]);
    let chosen = bench.caches.choose("a", &naming("imc-nothing")).await;
    assert_eq!(chosen.start, Err(Refusal::NotFound { id: "imc-nothing".to_owned() }));
    bench.put("c", &["nginx:1"]);
    let id = id_of(&bench.phase("c", Phase::Pending).await);
    let chosen = bench.caches.choose("a", &naming(&id)).await;
    assert_eq!(chosen.start, Err(Refusal::NotComplete { id: id.clone() }));
    bench.told("a", &id).await;
    let waiting = tokio::time::timeout(Duration::from_secs(60), bench.caches.until_ready("a", &naming(&id))).await;
    assert!(waiting.is_err());
    bench.report("a", &id, CachePhase::Failed, 1, &[]);
    bench.phase("c", Phase::Failed).await;
    let chosen = bench.caches.choose("a", &naming(&id)).await;
    assert_eq!(chosen.start, Err(Refusal::Failed { id, why: "failed to pull images.".to_owned() }));
    assert_eq!(bench.cluster.see(|record| record.image_caches.len()), 1);
}

#[tokio::test(start_paused = true)]
async fn one_cache_is_made_however_many_pods_miss_at_once() {
    let bench = Bench::new(&["a", "b"]);
    let key = ObjectKey { kind: ObjectKind::Secret, namespace: "ns".to_owned(), name: "login".to_owned() };
    let content = ObjectContent { data: [("user".to_owned(), "me".into())].into(), ..Default::default() };
    bench.cluster.put_object(key, Some(content));
    for n in 0..20 {
        let images: &[&str] =
            if n % 2 == 0 { &["nginx:1", "redis"] } else { &["docker.io/library/redis:latest", "nginx:1"] };
        let chosen =
            bench.caches.choose(if n % 3 == 0 { "a" } else { "b" }, &pod(&format!("p{n}"), json!({}), images)).await;
        assert_eq!(chosen.start, Ok(None));
        assert_eq!(reasons(&chosen), ["ImageCacheMissed"]);
    }
    let cache = bench.automatic().await;
    assert!(cache.metadata.name.as_deref().unwrap().starts_with("auto-create-for-eci-"));
    let id = id_of(&cache);
    assert_eq!(
        bench.event("p0", "ImageCacheAutoCreated").await,
        format!("[eci.imagecache]Image cache {id} is auto created")
    );
    bench.told("a", &id).await;
    bench.told("b", &id).await;
    bench.settle().await;
    assert_eq!(bench.cluster.see(|record| record.image_caches.len()), 1);
    bench.agent("a").see(|record| {
        assert_eq!(record.builds.len(), 1);
        assert_eq!(record.builds[0].images, ["nginx:1", "redis"]);
        assert_eq!(record.builds[0].credentials[0].username, "me");
        assert_eq!(record.builds[0].size_limit_bytes, 30 << 30);
    });
}

#[tokio::test(start_paused = true)]
async fn a_failed_automatic_build_is_told_to_every_pod_that_asked() {
    let bench = Bench::new(&["a"]);
    for name in ["p", "q"] {
        bench.caches.choose("a", &pod(name, json!({}), &["nginx:1"])).await;
    }
    let first = bench.automatic().await;
    let id = id_of(&first);
    bench.told("a", &id).await;
    bench.report("a", &id, CachePhase::Failed, 1, &[]);
    for name in ["p", "q"] {
        let text = bench.event(name, "ImageCacheAutoCreateFailed").await;
        let expected = "[eci.imagecache]Image cache auto create failed for failed to pull images.; \
            pull secret ns:login cannot be used: it does not exist";
        assert_eq!(text, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_partial_hit_serves_and_has_a_whole_cache_made() {
    let bench = Bench::new(&["a"]);
    bench.put("c", &["nginx:1"]);
    let id = id_of(&bench.phase("c", Phase::Pending).await);
    bench.report("a", &id, CachePhase::Ready, 1, &["nginx:1"]);
    bench.phase("c", Phase::Ready).await;
    let both = ["nginx:1", "redis:1"];
    let chosen = bench.caches.choose("a", &pod("p", json!({}), &both)).await;
    assert_eq!(chosen.start, Ok(Some(chosen_by_hand(&id))));
    bench.event("p", "ImageCacheAutoCreated").await;
    let off = pod("q", json!({"k8s.aliyun.com/eci-auto-imc": "false"}), &["other"]);
    assert_eq!(bench.caches.choose("a", &off).await, Chosen { start: Ok(None), notes: vec![] });
    let strict = pod("p", json!({"k8s.aliyun.com/imc-perfect-match": "true"}), &both);
    assert_eq!(reasons(&bench.caches.choose("a", &strict).await), ["ImageCacheMissed"]);
    bench.settle().await;
    assert_eq!(bench.cluster.see(|record| record.image_caches.len()), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_host_holds_for_nobody_is_forgotten() {
    let bench = Bench::new(&["a"]);
    bench.put("c", &["nginx:1"]);
    let id = id_of(&bench.phase("c", Phase::Pending).await);
    bench.report("a", &id, CachePhase::Ready, 1, &["nginx:1"]);
    bench.phase("c", Phase::Ready).await;
    bench.report("a", "imc-stray", CachePhase::Ready, 1, &["nginx:1"]);
    bench.agent("a").wait("delete of the stray", |record| record.cache_deletes == ["imc-stray"]).await;
    bench.cluster.drop_image_cache("c");
    bench.agent("a").wait("delete of the cache", |record| record.cache_deletes.contains(&id)).await;
    bench.settle().await;
    assert!(bench.agent("a").see(|record| record.caches.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_restart_resumes_and_a_host_that_lost_its_caches_is_told_again() {
    let bench = Bench::new(&["a"]);
    bench.put("c", &["nginx:1"]);
    let id = id_of(&bench.phase("c", Phase::Pending).await);
    bench.told("a", &id).await;
    bench.report("a", &id, CachePhase::Ready, 1, &["nginx:1"]);
    bench.phase("c", Phase::Ready).await;
    let bench = bench.restart().await;
    let chosen = bench.caches.choose("a", &pod("p", json!({}), &["nginx:1"])).await;
    assert_eq!(chosen.start, Ok(Some(chosen_by_hand(&id))));
    bench.settle().await;
    assert_eq!(bench.agent("a").see(|record| record.builds.len()), 1);

    bench.agent("a").go_offline();
    bench.settle().await;
    assert_eq!(bench.phase("c", Phase::Ready).await.metadata.name.as_deref(), Some("c"));
    bench.agent("a").set(|record| record.caches.clear());
    bench.agent("a").go_online();
    bench.agent("a").wait("second build", |record| record.builds.len() == 2).await;
    bench.phase("c", Phase::Pending).await;
}

#[tokio::test(start_paused = true)]
async fn an_edited_cache_is_built_again_while_it_serves() {
    let bench = Bench::new(&["a"]);
    let mut cache = bench.put("c", &["nginx:1"]);
    let id = id_of(&bench.phase("c", Phase::Pending).await);
    bench.told("a", &id).await;
    bench.report("a", &id, CachePhase::Ready, 1, &["nginx:1"]);
    cache.status = bench.phase("c", Phase::Ready).await.status;
    cache.spec.images = vec!["nginx:2".to_owned()];
    cache.metadata.generation = Some(2);
    bench.cluster.put_image_cache(cache);
    bench.agent("a").wait("rebuild", |record| record.builds.len() == 2).await;
    bench.phase("c", Phase::Updating).await;
    assert_eq!(bench.caches.choose("a", &pod("p", json!({}), &["nginx:1"])).await.start, Ok(Some(chosen_by_hand(&id))));
    bench.report("a", &id, CachePhase::Ready, 2, &["nginx:2"]);
    let cache = bench.phase("c", Phase::Ready).await;
    assert_eq!(cache.status.unwrap().observed_generation, Some(2));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_claimed_while_a_host_has_not_been_heard() {
    let bench = Bench::new(&["a"]);
    bench.agent("a").go_offline();
    let bench = bench.restart().await;
    for waits in [true, false] {
        let asked = Instant::now();
        let chosen = bench.caches.choose("a", &pod("p", json!({}), &["nginx:1"])).await;
        assert_eq!(chosen, Chosen { start: Ok(None), notes: vec![] });
        assert_eq!(asked.elapsed() >= Duration::from_secs(1), waits);
    }
    let pinned = pod("p", json!({"k8s.aliyun.com/eci-imc-id": "imc-x"}), &["nginx:1"]);
    assert_eq!(bench.caches.choose("a", &pinned).await.start, Err(Refusal::NotKnown { id: "imc-x".to_owned() }));
}

#[tokio::test(start_paused = true)]
async fn a_cache_whose_time_is_over_is_removed() {
    let bench = Bench::new(&["a"]);
    let mut cache = ImageCache::new("c", ImageCacheSpec { images: vec!["nginx".to_owned()], ..Default::default() });
    cache.spec.retention_days = Some(1);
    let long_ago = Timestamp::now() - jiff::SignedDuration::from_hours(25);
    cache.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(long_ago));
    bench.cluster.put_image_cache(cache);
    bench.cluster.wait("removal", |record| record.image_caches.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_be_followed_ends_it_with_its_name() {
    let agent = Arc::new(FakeAgent::default());
    agent.break_call("watch_image_caches");
    let mut bench = Bench::start(Arc::default(), [("a".to_owned(), agent)].into(), 0);
    let ended = tokio::time::timeout(Duration::from_secs(60), bench.tasks.join_next()).await.expect("in time");
    let error = ended.unwrap().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the stream of the image caches of a has panicked: watch_image_caches is broken");
}

/// In real time, since that is what the controller reckons in.
#[tokio::test]
async fn a_job_that_panics_is_begun_again_later_and_the_controller_goes_on() {
    let bench = Bench::new(&["a"]);
    bench.agent("a").break_call("build_image_cache");
    bench.put("c", &["nginx:1"]);
    let id = id_of(&bench.phase("c", Phase::Pending).await);
    let agents = bench.agents.clone();
    agents["a"].wait("a panic", |_| agents["a"].panics() > 0).await;
    bench.settle().await;
    let panics = bench.agent("a").panics();
    assert!(panics < 5, "{panics} tries within a moment");
    bench.agent("a").mend_calls();
    bench.told("a", &id).await;

    // One that makes an automatic cache leaves nobody waiting for what never comes.
    bench.cluster.break_call("create_image_cache");
    bench.caches.choose("a", &pod("p", json!({}), &["redis:1"])).await;
    let text = bench.event("p", "ImageCacheAutoCreateFailed").await;
    assert!(text.contains("create_image_cache is broken"), "{text}");
    bench.cluster.mend_calls();
    bench.caches.choose("a", &pod("q", json!({}), &["redis:1"])).await;
    bench.event("q", "ImageCacheAutoCreated").await;
}

#[tokio::test]
async fn a_build_that_a_restart_of_the_agent_interrupted_is_asked_for_again() {
    let (mut controller, cache, _others) = by_hand();
    let (id, of) = (id_of(&cache), Version::of(&cache));
    controller.take_object(Watched::All(vec![cache]));
    let subject = Subject::Build { node: "a".to_owned(), id: id.clone() };
    let is_building = |controller: &ImageCacheController| controller.running.contains_key(&subject);
    let is_told = |controller: &mut ImageCacheController, now| {
        controller.running.remove(&subject);
        controller.take_outcome(
            subject.clone(),
            Outcome::Built { of: of.clone(), unusable: vec![], result: Ok(()) },
            now,
        );
    };
    let says = |controller: &mut ImageCacheController, phases: &[CachePhase]| {
        controller.take_heard("a", Heard::Lost, Timestamp::now());
        let states = phases.iter().map(|&phase| CacheState { id: id.clone(), phase, ..CacheState::default() });
        controller.take_heard("a", Heard::Change(CacheChange::List(states.collect())), Timestamp::now());
    };
    let seconds = jiff::SignedDuration::from_secs;
    let mut now = Timestamp::now();
    says(&mut controller, &[]);
    controller.look(now);
    assert!(is_building(&controller));
    is_told(&mut controller, now);
    says(&mut controller, &[CachePhase::Creating]);
    now += seconds(600);
    controller.look(now);
    assert!(!is_building(&controller));
    // At once the first time, and ever more slowly when it is interrupted again and again.
    for wait in [0, 30, 60, 120] {
        says(&mut controller, &[CachePhase::Interrupted]);
        if wait > 0 {
            controller.look(now + seconds(wait - 1));
            assert!(!is_building(&controller), "after {wait} s");
        }
        now += seconds(wait);
        controller.look(now);
        assert!(is_building(&controller), "after {wait} s");
        is_told(&mut controller, now);
    }
    says(&mut controller, &[CachePhase::Creating]);
    controller.look(now + seconds(3600));
    assert!(!is_building(&controller));
}

#[tokio::test(start_paused = true)]
async fn the_host_is_told_how_the_cache_came_to_be_and_whom_it_is_for() {
    let bench = Bench::new(&["a"]);
    bench.caches.choose("a", &pod("p", json!({}), &["nginx:1"])).await;
    let mut cache = bench.automatic().await;
    let id = id_of(&cache);
    bench.told("a", &id).await;
    bench.agent("a").report_cache(CacheState {
        id: id.clone(),
        phase: CachePhase::Ready,
        generation: 1,
        images: vec![CachedImage { reference: "nginx:1".to_owned(), ..Default::default() }],
        verifies_credentials: true,
        ..CacheState::default()
    });
    let name = cache.metadata.name.clone().unwrap();
    bench.phase(&name, Phase::Ready).await;
    // It has none of the secrets that the cache was made with: whether it may have the image is the host's to find out.
    let mut stranger = pod("q", json!({}), &["nginx:1"]);
    stranger.spec.as_mut().unwrap().image_pull_secrets = None;
    let expected = ChosenCache { id: id.clone(), is_automatic: true, policy: None };
    assert_eq!(bench.caches.choose("a", &stranger).await.start, Ok(Some(expected.clone())));
    cache = bench.cluster.see(|record| record.image_caches[&name].clone());
    cache.metadata.annotations = Some([(VERIFICATION_ANNOTATION.to_owned(), "NeverVerify".to_owned())].into());
    bench.cluster.put_image_cache(cache);
    bench.settle().await;
    let expected = ChosenCache { policy: Some(VerificationPolicy::NeverVerify), ..expected };
    assert_eq!(bench.caches.choose("a", &stranger).await.start, Ok(Some(expected)));
}
