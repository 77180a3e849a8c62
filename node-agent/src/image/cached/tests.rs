//! Who gets a private image that is here: a registry in this process, a store on disk, layers in memory.

use std::time::Duration;

use rstest::rstest;

use super::*;
use crate::{
    image::{
        BuildCache, CachePhase, EnsureImageError,
        tests::{Bench, noise, push, push_layers, wish},
        verification::{AllowList, Origin, Policy, Rules},
    },
    registry::{
        Credential, Login,
        test_registry::{Door, Fault, TestRegistry},
    },
};

/// A pod or cache with this user's login; none for an empty name.
fn access(registry: &TestRegistry, user: &str) -> RegistryAccess {
    let login = Login::Basic { username: user.to_owned(), password: "hush-hush".to_owned() };
    let credential = Credential { registry: registry.host(), login };
    let credentials = if user.is_empty() { vec![] } else { vec![credential] };
    RegistryAccess { credentials, ..RegistryAccess::default() }
}

/// Lets this user in, and nobody else.
fn only_for(user: &str) -> Door {
    Door::Bearer(format!("{user}:hush-hush"), None)
}

fn reference(registry: &TestRegistry) -> String {
    format!("{}/a:v1", registry.host())
}

/// A cache of one image, made with the login of `user`.
async fn build(bench: &Bench, registry: &TestRegistry, user: &str) {
    let wish = BuildCache {
        id: "imc-1".to_owned(),
        name: "one".to_owned(),
        images: vec![reference(registry)],
        access: access(registry, user),
        size_limit_bytes: 0,
        refresh: String::new(),
    };
    bench.service.build_cache(wish).await.unwrap();
    let mut list = bench.service.watch_caches();
    let is_ready = list.wait_for(|list| list.get("imc-1").is_some_and(|state| state.phase == CachePhase::Ready));
    tokio::time::timeout(Duration::from_secs(20), is_ready).await.unwrap().unwrap();
    registry.forget_seen();
}

/// A private image, in a cache that was made for a pod of the user `me`.
async fn private() -> (TestRegistry, Bench) {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    push(&registry, "a", "v1");
    registry.set_door(only_for("me"));
    build(&bench, &registry, "me").await;
    (registry, bench)
}

fn pod(registry: &TestRegistry, user: &str) -> EnsureImage {
    let cache = ChosenCache { origin: Origin::Automatic, ..ChosenCache::by_hand("imc-1") };
    EnsureImage { access: access(registry, user), cache: Some(cache), ..wish(&reference(registry)) }
}

async fn is_served(bench: &Bench, wish: EnsureImage) -> bool {
    let (image, progress) = bench.ensure(wish).await;
    image.is_ok() && progress == [ImageProgress::AlreadyPresent]
}

async fn refusal(bench: &Bench, wish: EnsureImage) -> EnsureImageError {
    bench.ensure(wish).await.0.unwrap_err()
}

#[tokio::test]
async fn whose_login_made_the_cache_is_served_without_a_request() {
    let (registry, bench) = private().await;
    assert!(is_served(&bench, pod(&registry, "me")).await);
    assert_eq!(registry.seen(), []);
}

#[tokio::test]
async fn another_login_asks_once_for_the_manifest() {
    let (registry, bench) = private().await;
    registry.set_door(only_for("other"));
    assert!(is_served(&bench, pod(&registry, "other")).await);
    // One without the token, one with it.
    assert_eq!((registry.count("GET", "/manifests/sha256:"), registry.count("GET", "/token")), (2, 1));
    assert_eq!(registry.seen().len(), 3, "{:?}", registry.seen());
    registry.forget_seen();
    assert!(is_served(&bench, pod(&registry, "other")).await && is_served(&bench, pod(&registry, "me")).await);
    assert_eq!(registry.seen(), []);
}

#[rstest]
#[case::none("", "no login fits this registry")]
#[case::a_wrong_one("other", "the login was refused")]
#[tokio::test]
async fn who_may_not_pull_it_is_told_why(#[case] user: &str, #[case] why: &str) {
    let (registry, bench) = private().await;
    let refusal = refusal(&bench, pod(&registry, user)).await;
    assert_eq!(refusal.reason(), "ErrImagePull");
    let text = refusal.to_string();
    for part in ["failed to pull image", "401", why, "image cache imc-1 has the image on this node", "imagePullSecrets"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    // It was asked for by its tag as well, as by any pod that must pull.
    assert!(registry.count("GET", "/manifests/v1") > 0);
    assert_eq!(registry.count("GET", "/blobs/"), 0);
}

#[tokio::test]
async fn who_answers_everything_proves_nothing() {
    let (registry, bench) = private().await;
    registry.fault("/manifests/", usize::MAX, Fault::Status(200, vec![], "Please log in"));
    assert!(bench.ensure(pod(&registry, "")).await.0.is_err());
    registry.heal();
    assert!(bench.ensure(pod(&registry, "")).await.0.is_err(), "it was noted as everybody's");
}

#[tokio::test]
async fn to_know_its_digest_is_not_enough_to_get_an_image() {
    let (registry, bench) = private().await;
    let manifest = bench.service.watch_caches().borrow()["imc-1"].images[0].manifest;
    let other = TestRegistry::start().await;
    let names_it = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest.to_string(), "size": 1}],
    });
    other.put_manifest("x", "v1", &names_it);
    let image = wish(&format!("{}/x:v1", other.host()));
    // The second time its index is known here as well.
    for _ in 0..2 {
        assert!(bench.ensure(image.clone()).await.0.is_err());
        assert!(other.count("GET", &format!("/manifests/{manifest}")) > 0);
        other.forget_seen();
    }
    assert_eq!(registry.seen(), []);
}

#[tokio::test]
async fn a_registry_that_is_away_stops_only_who_is_not_known() {
    let (registry, bench) = private().await;
    registry.fault("/", 99, Fault::Status(503, vec![], "away"));
    assert!(is_served(&bench, pod(&registry, "me")).await);
    assert_eq!(registry.seen(), []);
    let text = refusal(&bench, pod(&registry, "other")).await.to_string();
    assert!(text.contains("503") && text.contains("image cache imc-1 has the image on this node"), "{text}");
    // It was asked with patience, and not all over again.
    assert_eq!(registry.count("GET", "/manifests/v1") + registry.count("HEAD", "/manifests/v1"), 0);
}

#[tokio::test]
async fn what_is_known_outlives_a_restart_and_holds_no_login() {
    let (registry, bench) = private().await;
    let folder = bench.store.layout().pulled();
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let text = std::fs::read_to_string(&files[0]).unwrap();
    assert!(files.len() == 1 && text.contains("\"logins\"") && !text.contains("hush"), "{text}");
    let bench = bench.restart().await;
    assert!(is_served(&bench, pod(&registry, "me")).await);
    assert_eq!(registry.seen(), []);
    // A record that is lost costs a request.
    std::fs::remove_file(&files[0]).unwrap();
    let bench = bench.restart().await;
    assert!(is_served(&bench, pod(&registry, "me")).await);
    assert!(registry.count("GET", "/manifests/sha256:") > 0);
}

#[tokio::test]
async fn a_public_image_is_anybodys_although_a_login_brought_it() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    push(&registry, "a", "v1");
    // As at Docker Hub: everybody gets a token, and whoever shows a login is asked for it.
    registry.set_door(Door::Bearer(String::new(), None));
    build(&bench, &registry, "me").await;
    let strict = |user| {
        let mut pod = pod(&registry, user);
        pod.cache.as_mut().unwrap().policy = Some(Policy::AlwaysVerify);
        pod
    };
    assert!(is_served(&bench, strict("")).await && is_served(&bench, strict("other")).await);
    assert_eq!(registry.seen(), []);
}

#[tokio::test]
async fn without_asking_only_who_is_known_is_served() {
    let (registry, bench) = private().await;
    let never = |user| EnsureImage { policy: PullPolicy::Never, ..pod(&registry, user) };
    assert!(is_served(&bench, never("me")).await);
    let refusal = refusal(&bench, never("other")).await;
    assert_eq!(refusal.reason(), "ErrImageNeverPull");
    assert!(refusal.to_string().contains("image cache imc-1 has it on this node"), "{refusal}");
    assert_eq!(registry.seen(), []);
}

#[tokio::test]
async fn a_pull_without_the_cache_counts() {
    let (registry, bench) = private().await;
    registry.set_door(only_for("other"));
    let alone = EnsureImage { cache: None, ..pod(&registry, "other") };
    bench.ensure(alone).await.0.unwrap();
    registry.forget_seen();
    assert!(is_served(&bench, pod(&registry, "other")).await);
    assert_eq!(registry.seen(), []);
}

/// What lies in the store and in no cache of the pod is nobody's without the registry's word, whatever the policy.
#[tokio::test]
async fn without_a_cache_the_registry_is_always_asked() {
    let rules = Rules { policy: Policy::NeverVerify, ..Rules::default() };
    let (registry, bench) = (TestRegistry::start().await, Bench::with_rules(rules).await);
    push(&registry, "a", "v1");
    registry.set_door(only_for("me"));
    let with = |user| EnsureImage { cache: None, ..pod(&registry, user) };
    bench.ensure(with("me")).await.0.unwrap();
    let text = refusal(&bench, with("")).await.to_string();
    assert!(text.contains("401") && !text.contains("on this node"), "{text}");
}

#[tokio::test]
async fn what_the_registry_no_longer_has_is_pulled_as_it_is_now() {
    let (registry, bench) = private().await;
    registry.set_door(only_for("other"));
    let plain = noise(99, 1000);
    let new = push_layers(&registry, "a", "v1", &[(plain.clone(), plain)]);
    // The tag has moved; who may have the old one gets it from the cache, as pods do that nobody asks about.
    let (image, _) = bench.ensure(pod(&registry, "other")).await;
    assert_ne!(image.unwrap().manifest, new.manifest);
    let bench = bench.restart().await;
    registry.set_door(only_for("third"));
    registry.fault("/manifests/sha256:", 4, Fault::Status(404, vec![], "manifest unknown"));
    let (image, _) = bench.ensure(pod(&registry, "third")).await;
    assert_eq!(image.unwrap().manifest, new.manifest);
}

/// Node's policy, cache's policy, how it came to be; whether a pod without a login is served.
#[rstest]
#[case(Policy::NeverVerify, None, Origin::Automatic, true)]
#[case(Policy::NeverVerifyPreloadedImages, None, Origin::Automatic, false)]
#[case(Policy::NeverVerifyPreloadedImages, None, Origin::ByHand, true)]
#[case(Policy::NeverVerifyAllowlistedImages, None, Origin::ByHand, false)]
#[case(Policy::AlwaysVerify, None, Origin::ByHand, false)]
#[case(Policy::AlwaysVerify, Some(Policy::NeverVerify), Origin::Automatic, true)]
#[case(Policy::AlwaysVerify, Some(Policy::NeverVerifyPreloadedImages), Origin::ByHand, true)]
#[case(Policy::NeverVerify, Some(Policy::AlwaysVerify), Origin::ByHand, false)]
#[tokio::test]
async fn the_caches_policy_comes_before_the_nodes(
    #[case] policy: Policy,
    #[case] own: Option<Policy>,
    #[case] origin: Origin,
    #[case] expected: bool,
) {
    let rules = Rules { policy, ..Rules::default() };
    let (registry, bench) = (TestRegistry::start().await, Bench::with_rules(rules).await);
    push(&registry, "a", "v1");
    registry.set_door(only_for("me"));
    build(&bench, &registry, "me").await;
    let cache = ChosenCache { id: "imc-1".to_owned(), origin, policy: own };
    let stranger = EnsureImage { cache: Some(cache.clone()), ..pod(&registry, "") };
    assert_eq!(is_served(&bench, stranger).await, expected);
    assert_eq!(registry.seen().is_empty(), expected);
    // Whoever's login brought it is served in any case, and without a request.
    registry.forget_seen();
    assert!(is_served(&bench, EnsureImage { cache: Some(cache), ..pod(&registry, "me") }).await);
    assert_eq!(registry.seen(), []);
}

#[tokio::test]
async fn what_is_on_the_list_is_everybodys() {
    let registry = TestRegistry::start().await;
    push(&registry, "a", "v1");
    registry.set_door(only_for("me"));
    for (pattern, expected) in [("/*", true), ("/a", true), ("/other", false)] {
        let allowed = AllowList::read([format!("{}{pattern}", registry.host()).as_str()]).unwrap();
        let rules = Rules { policy: Policy::NeverVerifyAllowlistedImages, allowed };
        let bench = Bench::with_rules(rules).await;
        build(&bench, &registry, "me").await;
        assert_eq!(is_served(&bench, pod(&registry, "")).await, expected, "{pattern}");
    }
}
