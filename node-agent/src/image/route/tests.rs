//! The order of trial, and that every liar is found.

use proptest::prelude::*;

use super::*;
use crate::digest::Digest;

fn broke() -> RegistryError {
    RegistryError::Connection { method: "GET", url: "http://r".to_owned(), cause: "reset".to_owned() }
}

fn missing() -> RegistryError {
    let (url, status) = ("http://r".to_owned(), "404".to_owned());
    RegistryError::NotFound { method: "GET", url, status, message: String::new() }
}

fn lie(id: usize) -> RegistryError {
    let (expected, actual) = (Digest::of(b"truth"), Digest::of(&[u8::try_from(id).unwrap()]));
    RegistryError::WrongDigest { url: format!("http://{id}"), expected, actual }
}

fn none() -> RegistryError {
    panic!("an error was kept")
}

#[test]
fn each_has_its_turn_before_a_wait() {
    let mut route = Route::new(vec![0, 2]);
    for _ in 0..3 {
        assert_eq!(route.next(), Some(0));
        route.failed(0, broke());
        assert_eq!(route.next(), Some(2));
        route.failed(2, broke());
        assert_eq!(route.next(), None);
        assert!(route.wait(1.0).is_some());
    }
    route.failed(0, broke());
    route.failed(2, broke());
    assert_eq!(route.wait(1.0), None, "the fourth time in a row");
    assert!(matches!(route.into_error(none), RegistryError::AllFailed(errors) if errors.len() == 2));
}

#[test]
fn progress_makes_failures_forgotten() {
    let mut route = Route::new(vec![0]);
    for _ in 0..100 {
        route.failed(0, broke());
        assert!(route.wait(0.5).is_some());
        route.progressed();
    }
}

#[test]
fn who_does_not_have_it_is_not_asked_again() {
    let mut route = Route::new(vec![0, 1]);
    route.failed(0, missing());
    assert_eq!(route.next(), Some(1));
    route.failed(1, broke());
    assert!(route.wait(1.0).is_some());
    assert_eq!(route.next(), Some(1));
    route.failed(1, missing());
    assert_eq!((route.next(), route.wait(1.0)), (None, None));
}

#[test]
fn a_liar_is_named_beside_what_came_after_it() {
    let mut route = Route::new(vec![0, 1]);
    route.gave(0);
    assert_eq!(route.wrong(0, lie(0)), Verdict::BeginAnew);
    assert_eq!(route.next(), Some(1));
    route.failed(1, missing());
    assert_eq!((route.next(), route.wait(1.0)), (None, None));
    let text = route.into_error(none).to_string();
    assert!(text.starts_with("not found: GET http://r: 404; before that, mirror content from http://0"), "{text}");
}

#[test]
fn what_was_kept_may_be_wrong_without_anybodys_fault() {
    let mut route = Route::new(vec![0]);
    route.begin_with(FirstBytes::Kept);
    route.gave(0);
    assert_eq!(route.wrong(0, lie(0)), Verdict::BeginAnew);
    assert_eq!(route.next(), Some(0));
    route.gave(0);
    assert_eq!(route.wrong(0, lie(0)), Verdict::GiveUp);
}

#[test]
fn one_that_has_less_than_was_kept_is_asked_from_the_first_byte_on() {
    let less = || {
        let (url, status, message) = ("http://r".to_owned(), "416".to_owned(), String::new());
        RegistryError::Status { method: "GET", url, status, code: 416, message, retry_after: None }
    };
    let mut route = Route::new(vec![0]);
    route.begin_with(FirstBytes::Kept);
    route.failed(0, less());
    assert_eq!((route.next(), route.wait(1.0)), (None, None));
    assert_eq!(route.abandoned(), Verdict::BeginAnew);
    assert_eq!(route.next(), Some(0));
    route.failed(0, less());
    assert_eq!(route.abandoned(), Verdict::GiveUp);
    assert_eq!(Route::new(vec![0]).kept_is_wrong(), Verdict::GiveUp);
}

#[test]
fn when_several_gave_something_wrong_each_is_tried_alone() {
    let mut route = Route::new(vec![0, 1]);
    route.gave(0);
    route.failed(0, broke());
    route.gave(1);
    assert_eq!(route.wrong(1, lie(1)), Verdict::BeginAnew);
    assert_eq!(route.next(), Some(0));
    route.gave(0);
    route.failed(0, broke());
    assert_eq!(route.next(), None, "the other must not go on with it");
    while route.wait(1.0).is_some() {
        assert_eq!(route.next(), Some(0));
        route.failed(0, broke());
    }
    assert_eq!(route.abandoned(), Verdict::BeginAnew);
    assert_eq!(route.next(), Some(1));
    route.gave(1);
    assert_eq!(route.abandoned(), Verdict::GiveUp);
}

/// What a source does when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    /// Gives wrong bytes to the end.
    Lies,
    /// Gives some wrong bytes and breaks off, each time.
    LiesAndBreaks,
    /// Gives some right bytes and breaks off, each time.
    Breaks,
    Missing,
}

/// Carries a transfer out. Returns whether it ended well, and how often a source was asked.
fn transfer(manners: &[Manner], first_bytes: FirstBytes) -> (bool, usize) {
    let mut route = Route::new((0..manners.len()).collect());
    route.begin_with(first_bytes);
    let (mut wrong, mut asked) = (first_bytes == FirstBytes::Kept, 0);
    loop {
        let Some(id) = route.next() else {
            if route.wait(0.5).is_some() {
                continue;
            }
            match route.abandoned() {
                Verdict::BeginAnew => wrong = false,
                Verdict::GiveUp => return (false, asked),
            }
            continue;
        };
        asked += 1;
        assert!(asked < 1000, "{manners:?}");
        let manner = manners[id];
        if manner == Manner::Missing {
            route.failed(id, missing());
            continue;
        }
        route.gave(id);
        wrong |= matches!(manner, Manner::Lies | Manner::LiesAndBreaks);
        if matches!(manner, Manner::Breaks | Manner::LiesAndBreaks) {
            route.failed(id, broke());
        } else if !wrong {
            return (true, asked);
        } else if route.wrong(id, lie(id)) == Verdict::BeginAnew {
            wrong = false;
        } else {
            return (false, asked);
        }
    }
}

proptest! {
    #[test]
    fn ends_well_whenever_somebody_is_honest(
        manners in proptest::collection::vec(
            prop_oneof![
                Just(Manner::Honest), Just(Manner::Lies), Just(Manner::LiesAndBreaks), Just(Manner::Breaks),
                Just(Manner::Missing),
            ],
            1..5,
        ),
        kept: bool,
    ) {
        let first_bytes = if kept { FirstBytes::Kept } else { FirstBytes::Received };
        let (well, _) = transfer(&manners, first_bytes);
        prop_assert_eq!(well, manners.contains(&Manner::Honest), "{:?}", manners);
    }
}
