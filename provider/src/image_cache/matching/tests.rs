//! Tables and properties of matching.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;
use crate::image_cache::automatic;
use crate::image_cache::catalog::Trust;

fn digest(n: u8) -> String {
    format!("sha256:{}", format!("{n:02x}").repeat(32))
}

fn image(reference: &str, size: u64) -> CandidateImage {
    let reference = Reference::parse(reference).unwrap();
    CandidateImage { reference, manifest_digest: String::new(), index_digest: String::new(), size }
}

fn cache(id: &str, created: i64, images: &[&str]) -> Candidate {
    Candidate {
        id: id.to_owned(),
        name: format!("name-{id}"),
        created,
        standing: Standing::Serving,
        trust: Trust::default(),
        only_with: BTreeSet::new(),
        images: images.iter().map(|reference| image(reference, 100)).collect(),
    }
}

fn pod(images: &[&str]) -> PodImages {
    PodImages::read(images.iter().copied())
}

const ANY: Wish = Wish::Automatic { condition: Condition::Any };

fn hit(id: &str, coverage: Coverage) -> Choice {
    Choice::Hit { id: id.to_owned(), coverage }
}

fn part(held: usize, of: usize) -> Coverage {
    Coverage::Partial { held, of }
}

/// Decides among caches that come in this order.
fn decide(wish: &Wish, images: &PodImages, caches: &[Candidate]) -> Decision {
    super::decide(wish, images, &caches.iter().cloned().collect())
}

fn choose(wish: &Wish, images: &[&str], caches: &[Candidate]) -> (Choice, Automatic) {
    let decision = decide(wish, &pod(images), caches);
    (decision.choice, decision.automatic)
}

#[test]
fn the_documented_pod_hits_the_documented_cache() {
    let seed = [
        "registry.cn-shanghai.aliyuncs.com/eci_open/nginx:1.14.2",
        "registry.cn-shanghai.aliyuncs.com/eci_open/busybox:1.30",
    ];
    let caches = [cache("imc-a", 0, &seed)];
    let perfect = Wish::Automatic { condition: Condition::Perfect };
    assert_eq!(choose(&perfect, &seed, &caches), (hit("imc-a", Coverage::Full), Automatic::Nothing));
}

#[rstest]
#[case::nothing_there(&[], Choice::Miss(MissReason::NoCandidate), Automatic::Build)]
#[case::full(&[cache("a", 0, &["nginx:1", "busybox:1"])], hit("a", Coverage::Full), Automatic::Nothing)]
#[case::more_than_full(&[cache("a", 0, &["nginx:1", "busybox:1", "redis:1"])], hit("a", Coverage::Full), Automatic::Nothing)]
#[case::partial(&[cache("a", 0, &["nginx:1"])], hit("a", part(1, 2)), Automatic::Build)]
#[case::repository_only(&[cache("a", 0, &["nginx:2"])], Choice::Miss(MissReason::RepositoryOnly), Automatic::Build)]
#[case::other(&[cache("a", 0, &["redis:1"])], Choice::Miss(MissReason::NoCandidate), Automatic::Build)]
#[case::more_exact_wins(&[cache("a", 9, &["nginx:1", "redis:1"]), cache("b", 0, &["nginx:1", "busybox:1"])],
    hit("b", Coverage::Full), Automatic::Nothing)]
#[case::then_more_repositories(&[cache("a", 9, &["nginx:1"]), cache("b", 0, &["nginx:1", "busybox:2"])],
    hit("b", part(1, 2)), Automatic::Build)]
#[case::then_closest_size(&[cache("a", 9, &["nginx:1", "redis:1"]), cache("b", 0, &["nginx:1"])],
    hit("b", part(1, 2)), Automatic::Build)]
#[case::then_newest(&[cache("a", 1, &["nginx:1"]), cache("b", 2, &["nginx:1"])],
    hit("b", part(1, 2)), Automatic::Build)]
#[case::then_name(&[cache("b", 1, &["nginx:1"]), cache("a", 1, &["nginx:1"])],
    hit("a", part(1, 2)), Automatic::Build)]
fn the_order(#[case] caches: &[Candidate], #[case] choice: Choice, #[case] automatic: Automatic) {
    assert_eq!(choose(&ANY, &["nginx:1", "busybox:1"], caches), (choice, automatic));
}

#[rstest]
#[case(Condition::Any, hit("a", part(2, 3)))]
#[case(Condition::AtLeast(1), hit("a", part(2, 3)))]
#[case(Condition::AtLeast(2), hit("a", part(2, 3)))]
#[case(Condition::AtLeast(3), Choice::Miss(MissReason::ConditionNotMet))]
#[case(Condition::AtLeast(4), Choice::Miss(MissReason::ConditionNotMet))]
#[case(Condition::Perfect, Choice::Miss(MissReason::ConditionNotMet))]
fn conditions(#[case] condition: Condition, #[case] choice: Choice) {
    let caches = [cache("a", 0, &["nginx:1", "busybox:1"])];
    let wish = Wish::Automatic { condition };
    assert_eq!(choose(&wish, &["nginx:1", "busybox:1", "redis:1"], &caches), (choice, Automatic::Build));
}

fn pod_of(init: &[&str], app: &[&str]) -> PodImages {
    let containers =
        |images: &[&str]| images.iter().map(|image| json!({"name": "c", "image": image})).collect::<Vec<_>>();
    let spec = json!({"initContainers": containers(init), "containers": containers(app)});
    PodImages::read(automatic::images(&serde_json::from_value(json!({"spec": spec})).unwrap()))
}

/// Init containers count as the others do, and an image counts once however many containers run on it.
#[rstest]
#[case::init_is_missing(&["busybox:1"], &["nginx:1"], &["nginx:1"], Condition::Perfect, Choice::Miss(MissReason::ConditionNotMet))]
#[case::init_is_there(&["busybox:1"], &["nginx:1"], &["nginx:1", "busybox:1"], Condition::Perfect, hit("a", Coverage::Full))]
#[case::init_counts(&["busybox:1"], &["nginx:1"], &["nginx:1", "busybox:1"], Condition::AtLeast(2), hit("a", Coverage::Full))]
#[case::init_alone(&["busybox:1"], &["nginx:1"], &["busybox:1"], Condition::AtLeast(1), hit("a", part(1, 2)))]
#[case::init_and_app_share(&["nginx:1"], &["nginx:1"], &["nginx:1"], Condition::Perfect, hit("a", Coverage::Full))]
#[case::two_of_one_image(&[], &["nginx:1", "nginx:1"], &["nginx:1"], Condition::Perfect, hit("a", Coverage::Full))]
#[case::two_of_one_image_are_one(&[], &["nginx:1", "nginx:1"], &["nginx:1"], Condition::AtLeast(2), Choice::Miss(MissReason::ConditionNotMet))]
#[case::two_of_three(&[], &["nginx:1", "nginx:1", "redis:1"], &["nginx:1"], Condition::Any, hit("a", part(1, 2)))]
fn what_counts_as_an_image_of_the_pod(
    #[case] init: &[&str],
    #[case] app: &[&str],
    #[case] cached: &[&str],
    #[case] condition: Condition,
    #[case] wanted: Choice,
) {
    let wish = Wish::Automatic { condition };
    assert_eq!(decide(&wish, &pod_of(init, app), &[cache("a", 0, cached)]).choice, wanted);
}

#[rstest]
#[case::nothing(&[], MissReason::NoCandidate)]
#[case::other(&[("redis:1", Standing::Serving)], MissReason::NoCandidate)]
#[case::repository(&[("nginx:2", Standing::Serving)], MissReason::RepositoryOnly)]
#[case::not_all(&[("nginx:1", Standing::Serving)], MissReason::ConditionNotMet)]
#[case::in_the_making(&[("nginx:1 busybox:1", Standing::NotComplete)], MissReason::NotReady)]
#[case::not_all_in_the_making(&[("nginx:1", Standing::NotComplete)], MissReason::NoCandidate)]
#[case::the_nearest_counts(
    &[("nginx:2", Standing::Serving), ("nginx:1 busybox:1", Standing::Failed(String::new())), ("nginx:1", Standing::Serving)],
    MissReason::NotReady
)]
fn a_miss_says_why(#[case] caches: &[(&str, Standing)], #[case] reason: MissReason) {
    let named = caches.iter().enumerate();
    let caches: Vec<Candidate> = named
        .map(|(n, (images, standing))| {
            let images: Vec<&str> = images.split(' ').collect();
            Candidate { standing: standing.clone(), ..cache(&format!("imc-{n}"), 0, &images) }
        })
        .collect();
    let perfect = Wish::Automatic { condition: Condition::Perfect };
    assert_eq!(choose(&perfect, &["nginx:1", "busybox:1"], &caches).0, Choice::Miss(reason));
}

#[test]
fn a_pin_says_how_much_the_cache_holds() {
    let caches = [cache("imc-a", 0, &["nginx:1"])];
    let wish = Wish::Pinned { id: "imc-a".to_owned() };
    let pinned = |images: &[&str]| choose(&wish, images, &caches).0;
    let named = |coverage| Choice::Pinned { id: "imc-a".to_owned(), coverage };
    assert_eq!(pinned(&["nginx:1"]), named(Coverage::Full));
    assert_eq!(pinned(&["nginx:1", "redis:1"]), named(part(1, 2)));
    assert_eq!(pinned(&["redis:1"]), named(part(0, 1)));
}

#[test]
fn only_a_serving_cache_is_matched() {
    let mut caches = [cache("a", 0, &["nginx:1"]), cache("b", 0, &["nginx:1"])];
    caches[0].standing = Standing::NotComplete;
    caches[1].standing = Standing::Failed("no room".to_owned());
    assert_eq!(choose(&ANY, &["nginx:1"], &caches), (Choice::Miss(MissReason::NotReady), Automatic::Build));
    assert_eq!(choose(&ANY, &["nginx:2"], &caches).0, Choice::Miss(MissReason::NoCandidate));
}

#[test]
fn a_digest_matches_under_whichever_tag() {
    let mut caches = [cache("a", 0, &["nginx:stable"])];
    caches[0].images[0].manifest_digest = digest(1);
    caches[0].images[0].index_digest = digest(2);
    for n in [1, 2] {
        let (choice, _) = choose(&ANY, &[&format!("nginx@{}", digest(n))], &caches);
        assert_eq!(choice, hit("a", Coverage::Full));
        let (choice, _) = choose(&ANY, &[&format!("nginx:other@{}", digest(n))], &caches);
        assert_eq!(choice, hit("a", Coverage::Full));
    }
    assert_eq!(choose(&ANY, &[&format!("nginx@{}", digest(3))], &caches).0, Choice::Miss(MissReason::RepositoryOnly));
    assert_eq!(choose(&ANY, &[&format!("redis@{}", digest(1))], &caches).0, Choice::Miss(MissReason::NoCandidate));
}

#[test]
fn an_image_cached_by_digest_answers_no_tag() {
    let caches = [cache("a", 0, &[&format!("nginx:1@{}", digest(1))])];
    assert_eq!(choose(&ANY, &["nginx:1"], &caches).0, Choice::Miss(MissReason::RepositoryOnly));
}

#[test]
fn names_are_normalised_and_counted_once() {
    let caches = [cache("a", 0, &["docker.io/library/nginx:latest"])];
    assert_eq!(choose(&ANY, &["nginx", "nginx:latest", "library/nginx"], &caches).0, hit("a", Coverage::Full));
}

#[test]
fn an_invalid_reference_is_never_cached_nor_matched() {
    let caches = [cache("a", 0, &["nginx:1"])];
    assert_eq!(choose(&ANY, &["nginx:1", "NOT/An image"], &caches), (hit("a", part(1, 2)), Automatic::Nothing));
    let missed = Choice::Miss(MissReason::NoCandidate);
    assert_eq!(choose(&ANY, &["NOT/An image"], &caches), (missed, Automatic::Nothing));
}

#[rstest]
#[case(Standing::Serving, Choice::Pinned { id: "imc-a".to_owned(), coverage: part(0, 1) })]
#[case(Standing::NotComplete, Choice::Refused(Refusal::NotComplete { id: "imc-a".to_owned() }))]
#[case(Standing::Failed("w".to_owned()), Choice::Refused(Refusal::Failed { id: "imc-a".to_owned(), why: "w".to_owned() }))]
fn pins(#[case] standing: Standing, #[case] choice: Choice) {
    let mut caches = [cache("imc-b", 0, &["nginx:1"]), cache("imc-a", 0, &["redis:1"])];
    caches[1].standing = standing;
    let wish = Wish::Pinned { id: "imc-a".to_owned() };
    assert_eq!(choose(&wish, &["nginx:1"], &caches), (choice, Automatic::Nothing));
}

#[test]
fn a_pin_to_nothing_says_so() {
    let wish = Wish::Pinned { id: "imc-x".to_owned() };
    let (Choice::Refused(refusal), Automatic::Nothing) = choose(&wish, &["nginx:1"], &[]) else { panic!() };
    assert_eq!(refusal.reason(), "ImageCacheNotFound");
    assert_eq!(refusal.message(), "The specified image cache imc-x does not exist.");
}

#[test]
fn no_cache_when_it_is_switched_off() {
    let caches = [cache("a", 0, &["nginx:1"])];
    assert_eq!(choose(&Wish::Nothing, &["nginx:1"], &caches), (Choice::Off, Automatic::Nothing));
}

#[rstest]
#[case::another_pod(&[], Choice::Miss(MissReason::NoCandidate))]
#[case::other_secrets(&["a:other"], Choice::Miss(MissReason::NoCandidate))]
#[case::one_of_two(&["a:one"], Choice::Miss(MissReason::NoCandidate))]
#[case::the_same(&["a:one", "a:two"], hit("imc-p", Coverage::Full))]
#[case::more(&["a:one", "a:two", "a:three"], hit("imc-p", Coverage::Full))]
fn what_secrets_made_serves_who_has_them(#[case] secrets: &[&str], #[case] wanted: Choice) {
    let private =
        Candidate { only_with: ["a:one", "a:two"].map(str::to_owned).into(), ..cache("imc-p", 0, &["nginx:1"]) };
    let pod = pod(&["nginx:1"]).pulled_with(secrets.iter().map(|name| (*name).to_owned()).collect());
    let pinned = Wish::Pinned { id: "imc-p".to_owned() };
    let refused = Choice::Refused(Refusal::NotFound { id: "imc-p".to_owned() });
    let named = Choice::Pinned { id: "imc-p".to_owned(), coverage: Coverage::Full };
    let by_id = if matches!(wanted, Choice::Miss(_)) { refused } else { named };
    let caches = [private];
    assert_eq!(decide(&ANY, &pod, &caches).choice, wanted);
    assert_eq!(decide(&pinned, &pod, &caches).choice, by_id);
}

fn some_image() -> impl Strategy<Value = String> {
    ("[abc]", "[12]").prop_map(|(name, tag)| format!("{name}:{tag}"))
}

fn some_cache() -> impl Strategy<Value = Candidate> {
    let images = proptest::collection::vec((some_image(), 0..3_u64), 1..4);
    (images, 0..3_i64, 0..1000_u32, 0..4_u8).prop_map(|(images, created, id, standing)| Candidate {
        id: format!("imc-{id}"),
        name: format!("name-{id}"),
        created,
        standing: if standing == 0 { Standing::NotComplete } else { Standing::Serving },
        trust: Trust::default(),
        only_with: if standing == 3 { ["ns:private".to_owned()].into() } else { BTreeSet::new() },
        images: images.iter().map(|(reference, size)| image(reference, *size)).collect(),
    })
}

/// Caches with distinct ids.
fn some_caches() -> impl Strategy<Value = Vec<Candidate>> {
    proptest::collection::vec(some_cache(), 0..8).prop_map(|mut caches| {
        caches.sort_by(|a, b| a.id.cmp(&b.id));
        caches.dedup_by(|a, b| a.id == b.id);
        caches
    })
}

fn some_pod() -> impl Strategy<Value = PodImages> {
    proptest::collection::vec(some_image(), 1..5).prop_map(|images| PodImages::read(images.iter().map(String::as_str)))
}

fn some_condition() -> impl Strategy<Value = Condition> {
    prop_oneof![Just(Condition::Any), (1..4_usize).prop_map(Condition::AtLeast), Just(Condition::Perfect)]
}

fn exact(images: &PodImages, caches: &[Candidate], choice: &Choice) -> usize {
    let Choice::Hit { id, .. } = choice else { return 0 };
    Degree::of(images, &caches.iter().find(|cache| cache.id == *id).unwrap().images).exact
}

proptest! {
    #[test]
    fn the_order_of_caches_does_not_matter(
        images in some_pod(), caches in some_caches(), condition in some_condition(), turn in 0..8_usize
    ) {
        let wish = Wish::Automatic { condition };
        let expected = decide(&wish, &images, &caches);
        let mut turned = caches.clone();
        turned.reverse();
        let middle = if turned.is_empty() { 0 } else { turn % turned.len() };
        turned.rotate_left(middle);
        prop_assert_eq!(decide(&wish, &images, &turned), expected);
    }

    /// The order at the head of the module, word by word, over all caches.
    #[test]
    fn the_first_in_the_order_is_chosen(images in some_pod(), caches in some_caches()) {
        let serves = |cache: &&Candidate| cache.standing == Standing::Serving && cache.only_with.is_empty();
        let mut all: Vec<(Degree, &Candidate)> =
            caches.iter().filter(serves).map(|cache| (Degree::of(&images, &cache.images), cache)).collect();
        all.sort_by(|(a, one), (b, other)| {
            let by_fit = b.exact.cmp(&a.exact).then(b.repository_only.cmp(&a.repository_only)).then(a.beyond.cmp(&b.beyond));
            by_fit.then(other.created.cmp(&one.created)).then(one.name.cmp(&other.name))
        });
        let first = all.first().filter(|(degree, _)| degree.exact > 0).map(|(_, cache)| cache.id.as_str());
        let choice = decide(&ANY, &images, &caches).choice;
        let chosen = if let Choice::Hit { id, .. } = &choice { Some(id.as_str()) } else { None };
        prop_assert_eq!(chosen, first);
    }

    #[test]
    fn no_other_cache_holds_more(images in some_pod(), caches in some_caches()) {
        let choice = decide(&ANY, &images, &caches).choice;
        let held = exact(&images, &caches, &choice);
        let serves = |cache: &&Candidate| cache.standing == Standing::Serving && cache.only_with.is_empty();
        for cache in caches.iter().filter(serves) {
            prop_assert!(Degree::of(&images, &cache.images).exact <= held);
        }
    }

    #[test]
    fn what_secrets_made_is_not_there_for_a_pod_without(images in some_pod(), caches in some_caches()) {
        let open: Vec<Candidate> = caches.iter().filter(|cache| cache.only_with.is_empty()).cloned().collect();
        prop_assert_eq!(decide(&ANY, &images, &caches), decide(&ANY, &images, &open));
    }

    #[test]
    fn another_cache_never_makes_it_worse(
        images in some_pod(), caches in some_caches(), more in some_cache(), condition in some_condition()
    ) {
        prop_assume!(caches.iter().all(|cache| cache.id != more.id));
        let wish = Wish::Automatic { condition };
        let before = exact(&images, &caches, &decide(&wish, &images, &caches).choice);
        let mut caches = caches;
        caches.push(more);
        let after = exact(&images, &caches, &decide(&wish, &images, &caches).choice);
        prop_assert!(after >= before);
    }

    #[test]
    fn nothing_in_common_is_a_miss(images in some_pod(), caches in some_caches()) {
        let strangers: Vec<Candidate> = caches.into_iter().map(|mut cache| {
            for image in &mut cache.images {
                image.reference.repository.push_str("-other");
            }
            cache
        }).collect();
        prop_assert_eq!(decide(&ANY, &images, &strangers).choice, Choice::Miss(MissReason::NoCandidate));
    }

    #[test]
    fn a_condition_is_kept(images in some_pod(), caches in some_caches(), condition in some_condition()) {
        let decision = decide(&Wish::Automatic { condition }, &images, &caches);
        let Choice::Hit { coverage, .. } = &decision.choice else {
            prop_assert_eq!(decision.automatic, Automatic::Build);
            return Ok(());
        };
        let held = exact(&images, &caches, &decision.choice);
        match condition {
            Condition::Any => prop_assert!(held >= 1),
            Condition::AtLeast(count) => prop_assert!(held >= count),
            Condition::Perfect => prop_assert_eq!(held, images.distinct.len()),
        }
        prop_assert_eq!(*coverage == Coverage::Full, held == images.distinct.len());
        prop_assert_eq!(decision.automatic == Automatic::Build, *coverage != Coverage::Full);
    }
}
