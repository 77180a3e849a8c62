//! Tables and properties of matching.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

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
        made_with: BTreeSet::new(),
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
#[case::nothing_there(&[], Choice::Miss, Automatic::Build)]
#[case::full(&[cache("a", 0, &["nginx:1", "busybox:1"])], hit("a", Coverage::Full), Automatic::Nothing)]
#[case::more_than_full(&[cache("a", 0, &["nginx:1", "busybox:1", "redis:1"])], hit("a", Coverage::Full), Automatic::Nothing)]
#[case::partial(&[cache("a", 0, &["nginx:1"])], hit("a", Coverage::Partial), Automatic::Build)]
#[case::repository_only(&[cache("a", 0, &["nginx:2"])], Choice::Miss, Automatic::Build)]
#[case::other(&[cache("a", 0, &["redis:1"])], Choice::Miss, Automatic::Build)]
#[case::more_exact_wins(&[cache("a", 9, &["nginx:1", "redis:1"]), cache("b", 0, &["nginx:1", "busybox:1"])],
    hit("b", Coverage::Full), Automatic::Nothing)]
#[case::then_more_repositories(&[cache("a", 9, &["nginx:1"]), cache("b", 0, &["nginx:1", "busybox:2"])],
    hit("b", Coverage::Partial), Automatic::Build)]
#[case::then_closest_size(&[cache("a", 9, &["nginx:1", "redis:1"]), cache("b", 0, &["nginx:1"])],
    hit("b", Coverage::Partial), Automatic::Build)]
#[case::then_newest(&[cache("a", 1, &["nginx:1"]), cache("b", 2, &["nginx:1"])],
    hit("b", Coverage::Partial), Automatic::Build)]
#[case::then_name(&[cache("b", 1, &["nginx:1"]), cache("a", 1, &["nginx:1"])],
    hit("a", Coverage::Partial), Automatic::Build)]
fn the_order(#[case] caches: &[Candidate], #[case] choice: Choice, #[case] automatic: Automatic) {
    assert_eq!(choose(&ANY, &["nginx:1", "busybox:1"], caches), (choice, automatic));
}

#[rstest]
#[case(Condition::Any, hit("a", Coverage::Partial))]
#[case(Condition::AtLeast(1), hit("a", Coverage::Partial))]
#[case(Condition::AtLeast(2), hit("a", Coverage::Partial))]
#[case(Condition::AtLeast(3), Choice::Miss)]
#[case(Condition::AtLeast(4), Choice::Miss)]
#[case(Condition::Perfect, Choice::Miss)]
fn conditions(#[case] condition: Condition, #[case] choice: Choice) {
    let caches = [cache("a", 0, &["nginx:1", "busybox:1"])];
    let wish = Wish::Automatic { condition };
    assert_eq!(choose(&wish, &["nginx:1", "busybox:1", "redis:1"], &caches), (choice, Automatic::Build));
}

#[test]
fn only_a_serving_cache_is_matched() {
    let mut caches = [cache("a", 0, &["nginx:1"]), cache("b", 0, &["nginx:1"])];
    caches[0].standing = Standing::NotComplete;
    caches[1].standing = Standing::Failed("no room".to_owned());
    assert_eq!(choose(&ANY, &["nginx:1"], &caches), (Choice::Miss, Automatic::Build));
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
    assert_eq!(choose(&ANY, &[&format!("nginx@{}", digest(3))], &caches).0, Choice::Miss);
    assert_eq!(choose(&ANY, &[&format!("redis@{}", digest(1))], &caches).0, Choice::Miss);
}

#[test]
fn an_image_cached_by_digest_answers_no_tag() {
    let caches = [cache("a", 0, &[&format!("nginx:1@{}", digest(1))])];
    assert_eq!(choose(&ANY, &["nginx:1"], &caches).0, Choice::Miss);
}

#[test]
fn names_are_normalised_and_counted_once() {
    let caches = [cache("a", 0, &["docker.io/library/nginx:latest"])];
    assert_eq!(choose(&ANY, &["nginx", "nginx:latest", "library/nginx"], &caches).0, hit("a", Coverage::Full));
}

#[test]
fn an_invalid_reference_is_never_cached_nor_matched() {
    let caches = [cache("a", 0, &["nginx:1"])];
    assert_eq!(choose(&ANY, &["nginx:1", "NOT/An image"], &caches), (hit("a", Coverage::Partial), Automatic::Nothing));
    assert_eq!(choose(&ANY, &["NOT/An image"], &caches), (Choice::Miss, Automatic::Nothing));
}

#[rstest]
#[case(Standing::Serving, Choice::Pinned { id: "imc-a".to_owned() })]
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
#[case::another_pod(&[], Choice::Miss)]
#[case::other_secrets(&["a:other"], Choice::Miss)]
#[case::one_of_two(&["a:one"], Choice::Miss)]
#[case::the_same(&["a:one", "a:two"], hit("imc-p", Coverage::Full))]
#[case::more(&["a:one", "a:two", "a:three"], hit("imc-p", Coverage::Full))]
fn what_secrets_made_serves_who_has_them(#[case] secrets: &[&str], #[case] wanted: Choice) {
    let private =
        Candidate { made_with: ["a:one", "a:two"].map(str::to_owned).into(), ..cache("imc-p", 0, &["nginx:1"]) };
    let pod = pod(&["nginx:1"]).pulled_with(secrets.iter().map(|name| (*name).to_owned()).collect());
    let pinned = Wish::Pinned { id: "imc-p".to_owned() };
    let refused = Choice::Refused(Refusal::NotFound { id: "imc-p".to_owned() });
    let by_id = if wanted == Choice::Miss { refused } else { Choice::Pinned { id: "imc-p".to_owned() } };
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
        made_with: if standing == 3 { ["ns:private".to_owned()].into() } else { BTreeSet::new() },
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
    Degree::of(images, caches.iter().find(|cache| cache.id == *id).unwrap()).exact
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

    #[test]
    fn no_other_cache_holds_more(images in some_pod(), caches in some_caches()) {
        let choice = decide(&ANY, &images, &caches).choice;
        let held = exact(&images, &caches, &choice);
        let serves = |cache: &&Candidate| cache.standing == Standing::Serving && cache.made_with.is_empty();
        for cache in caches.iter().filter(serves) {
            prop_assert!(Degree::of(&images, cache).exact <= held);
        }
    }

    #[test]
    fn what_secrets_made_is_not_there_for_a_pod_without(images in some_pod(), caches in some_caches()) {
        let open: Vec<Candidate> = caches.iter().filter(|cache| cache.made_with.is_empty()).cloned().collect();
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
        prop_assert_eq!(decide(&ANY, &images, &strangers).choice, Choice::Miss);
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
        prop_assert_eq!(decision.automatic == Automatic::Build, *coverage == Coverage::Partial);
    }
}
