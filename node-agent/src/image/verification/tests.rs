use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn some_policy() -> impl Strategy<Value = Policy> {
    prop_oneof![
        Just(Policy::NeverVerify),
        Just(Policy::NeverVerifyPreloadedImages),
        Just(Policy::NeverVerifyAllowlistedImages),
        Just(Policy::AlwaysVerify),
    ]
}

fn some_question() -> impl Strategy<Value = Question> {
    let origin = prop_oneof![Just(Origin::ByHand), Just(Origin::Automatic)];
    (some_policy(), origin, any::<bool>(), any::<bool>()).prop_map(|(policy, origin, is_allowed, may_ask)| Question {
        policy,
        origin,
        is_allowed,
        may_ask,
    })
}

fn some_login() -> impl Strategy<Value = Login> {
    prop_oneof![
        ("[ab:1]{0,3}", "[ab:1]{0,3}").prop_map(|(username, password)| Login::Basic { username, password }),
        "[ab:1]{0,3}".prop_map(Login::IdentityToken),
        "[ab:1]{0,3}".prop_map(Login::RegistryToken),
    ]
}

fn some_entries() -> impl Strategy<Value = Vec<(String, Entry)>> {
    let entry = prop_oneof![1 => Just(Entry::Anybody), 5 => some_login().prop_map(Entry::Login)];
    proptest::collection::vec(("[xy]", entry), 0..6)
}

fn record(entries: &[(String, Entry)]) -> Pulled {
    entries.iter().fold(Pulled::default(), |pulled, (repository, entry)| {
        with_entry(&pulled, repository, entry, "salt").unwrap_or(pulled)
    })
}

#[rstest]
#[case(Policy::NeverVerify, [Verdict::Serve, Verdict::Serve, Verdict::Serve])]
#[case(Policy::NeverVerifyPreloadedImages, [Verdict::Serve, Verdict::Ask, Verdict::Ask])]
#[case(Policy::NeverVerifyAllowlistedImages, [Verdict::Ask, Verdict::Ask, Verdict::Serve])]
#[case(Policy::AlwaysVerify, [Verdict::Ask, Verdict::Ask, Verdict::Ask])]
fn each_policy(#[case] policy: Policy, #[case] expected: [Verdict; 3]) {
    let made = [(Origin::ByHand, false), (Origin::Automatic, false), (Origin::Automatic, true)];
    let verdicts =
        made.map(|(origin, is_allowed)| Question { policy, origin, is_allowed, may_ask: true }.decide(false));
    assert_eq!(verdicts, expected);
}

#[rstest]
#[case("reg.example.com/team/app", "reg.example.com/team/app:1", true)]
#[case("reg.example.com/team/app", "reg.example.com/team/app-2:1", false)]
#[case("nginx", "docker.io/library/nginx:1.27", true)]
#[case("reg.example.com:5000/a", "reg.example.com:5000/a", true)]
#[case("reg.example.com/team/*", "reg.example.com/team/a/b:1", true)]
#[case("reg.example.com/team/*", "reg.example.com/teams/a:1", false)]
#[case("reg.example.com/*", "reg.example.com.evil.com/a", false)]
#[case("docker.io/library/*", "nginx", true)]
fn the_list_names_repositories(#[case] pattern: &str, #[case] image: &str, #[case] expected: bool) {
    assert_eq!(AllowList::read([pattern]).unwrap().has(&reference(image)), expected);
}

#[rstest]
#[case("")]
#[case("*")]
#[case("/*")]
#[case(" nginx")]
#[case("nginx:1")]
#[case("reg.example.com/a/*/b")]
#[case("reg.example.com/*/*")]
#[case("reg.example.com/a*")]
#[case("nginx@sha256:0000000000000000000000000000000000000000000000000000000000000000")]
fn a_pattern_that_means_nothing_is_named(#[case] pattern: &str) {
    let error = AllowList::read(["ok/*", pattern]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{pattern:?} is no pattern of --preloaded-images-verification-allowlist: ")));
}

#[test]
fn the_oldest_logins_are_forgotten() {
    let login = |n: usize| Login::RegistryToken(n.to_string());
    let entries: Vec<_> = (0..=MOST_LOGINS).map(|n| ("x".to_owned(), Entry::Login(login(n)))).collect();
    let pulled = record(&entries);
    assert!(!is_let_in(&pulled, "x", [&login(0)]));
    assert!((1..=MOST_LOGINS).all(|n| is_let_in(&pulled, "x", [&login(n)])));
}

#[test]
fn a_record_without_its_salt_begins_anew() {
    let mut pulled = record(&[("x".to_owned(), Entry::Login(Login::RegistryToken("t".to_owned())))]);
    pulled.salt.clear();
    let pulled = with_entry(&pulled, "y", &Entry::Anybody, "new").unwrap();
    assert_eq!((pulled.salt.as_str(), pulled.repositories.len()), ("new", 1));
}

proptest! {
    /// Who was let in needs no request, and nobody is served by a policy's strictness only.
    #[test]
    fn who_was_let_in_is_served(question in some_question()) {
        prop_assert_eq!(question.decide(true), Verdict::Serve);
        let verdict = question.decide(false);
        prop_assert_eq!(question.is_moot(), verdict == Verdict::Serve);
        prop_assert_eq!(verdict == Verdict::Ask, !question.is_moot() && question.may_ask);
    }

    /// `NeverVerify` asks for nothing that another policy lets pass, and `AlwaysVerify` lets nothing pass that another asks for.
    #[test]
    fn the_policies_lie_between_the_outer_two(question in some_question(), is_let_in: bool) {
        let with = |policy| Question { policy, ..question }.decide(is_let_in);
        prop_assert_eq!(with(Policy::NeverVerify), Verdict::Serve);
        let strictest = with(Policy::AlwaysVerify);
        prop_assert!(question.decide(is_let_in) == Verdict::Serve || question.decide(is_let_in) == strictest);
    }

    /// A cache by hand is never stricter than an automatic one, and the registry is never asked where it may not be.
    #[test]
    fn by_hand_is_no_stricter(question in some_question(), is_let_in: bool) {
        let with = |origin| Question { origin, ..question }.decide(is_let_in);
        prop_assert!(with(Origin::ByHand) == Verdict::Serve || with(Origin::Automatic) == with(Origin::ByHand));
        let never = Question { may_ask: false, ..question };
        prop_assert_ne!(never.decide(is_let_in), Verdict::Ask);
    }

    /// Exactly who was recorded is let in, at exactly the repository where that was.
    #[test]
    fn a_record_knows_who_was_let_in_and_nobody_else(entries in some_entries(), repository in "[xyz]", login in some_login()) {
        let pulled = record(&entries);
        let there = |entry: &Entry| entries.iter().any(|(where_to, known)| *where_to == repository && known == entry);
        let expected = there(&Entry::Anybody) || there(&Entry::Login(login.clone()));
        prop_assert_eq!(is_let_in(&pulled, &repository, [&login]), expected);
        prop_assert_eq!(is_let_in(&pulled, &repository, []), there(&Entry::Anybody));
    }

    /// What was let in stays so whatever comes after it, and is written once.
    #[test]
    fn an_entry_adds(entries in some_entries(), later in some_entries()) {
        let pulled = record(&entries);
        for (repository, entry) in &entries {
            prop_assert_eq!(with_entry(&pulled, repository, entry, "other"), None);
        }
        let all: Vec<_> = entries.iter().chain(&later).cloned().collect();
        let after = record(&all);
        for (repository, entry) in &entries {
            let login = match entry { Entry::Login(login) => Some(login), Entry::Anybody => None };
            prop_assert!(is_let_in(&after, repository, login));
        }
    }

    /// Two logins never look the same, and none looks like itself under another salt.
    #[test]
    fn a_fingerprint_is_of_one_login(one in some_login(), other in some_login(), salt in "[ab:1]{0,3}", second in "[ab:1]{0,3}") {
        prop_assert_eq!(fingerprint(&salt, &one) == fingerprint(&salt, &other), one == other);
        prop_assert_eq!(fingerprint(&salt, &one) == fingerprint(&second, &one), salt == second);
    }

    #[test]
    fn no_pattern_panics(pattern in ".{0,12}", image in "[a-c./*]{1,8}") {
        if let (Ok(list), Ok(image)) = (AllowList::read([pattern.as_str()]), image.parse()) {
            let _ = list.has(&image);
        }
    }
}
