use super::*;
use crate::{
    digest::Digest,
    registry::{Credential, Login},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn wish(images: &[&str]) -> BuildCache {
    BuildCache {
        id: "imc-1".into(),
        name: "one".into(),
        images: images.iter().map(|&image| image.to_owned()).collect(),
        access: RegistryAccess { plain_http: vec!["r:5000".into()], ..RegistryAccess::default() },
        size_limit_bytes: 7,
        refresh: String::new(),
    }
}

fn image(reference: &str) -> CachedImage {
    CachedImage { reference: reference.into(), manifest: Digest::of(reference.as_bytes()), index: None, size_bytes: 1 }
}

fn state(caches: &Caches) -> (CachePhase, u8, String) {
    let state = &caches.list(&CacheList::default())["imc-1"];
    (state.phase, state.progress_percent, state.reason.clone())
}

/// A cache that is being built for the first time, as build 1.
fn building() -> Caches {
    let mut caches = Caches::default();
    let record = caches.wished(&wish(&["a"]), at(1)).unwrap();
    assert!(!caches.has("imc-1"), "not before it is durable");
    assert_eq!(caches.put(record), None);
    caches.begin("imc-1", 1);
    caches
}

fn ready() -> Caches {
    let mut caches = building();
    let record = caches.ended("imc-1", 1, Ok(vec![image("a")]), at(2)).unwrap();
    assert_eq!(state(&caches).0, CachePhase::Creating, "not before it is durable");
    caches.put(record);
    caches
}

#[test]
fn what_is_as_wished_or_on_its_way_is_left_alone() {
    let mut caches = building();
    assert_eq!(caches.wished(&wish(&["a"]), at(2)), None);
    let other = caches.wished(&wish(&["b"]), at(2)).unwrap();
    assert_eq!(caches.put(other), Some(1), "the build of what is no longer wished for is given up");
    let mut caches = ready();
    assert_eq!(caches.wished(&wish(&["a"]), at(3)), None);
    assert_eq!(caches.wished(&wish(&["b"]), at(3)).unwrap().phase, CachePhase::Updating);
    let larger = BuildCache { size_limit_bytes: 8, ..wish(&["a"]) };
    assert!(caches.wished(&larger, at(3)).is_some());
    let refreshed = BuildCache { refresh: "2".into(), ..wish(&["a"]) };
    assert_eq!(caches.wished(&refreshed, at(3)).unwrap().phase, CachePhase::Updating);
    // Logins are not kept, so whether there were any tells nothing of what a build brings.
    let mut with_logins = wish(&["a"]);
    let login = Login::RegistryToken("hush".into());
    with_logins.access.credentials = vec![Credential { registry: "r".into(), login }];
    assert_eq!(caches.wished(&with_logins, at(3)), None);
    // What has failed is tried again.
    let mut failed = building();
    let record = failed.ended("imc-1", 1, Err("no".into()), at(2)).unwrap();
    failed.put(record);
    assert_eq!(state(&failed), (CachePhase::Failed, 0, "no".into()));
    assert_eq!(failed.wished(&wish(&["a"]), at(3)).unwrap().phase, CachePhase::Creating);
    assert_eq!(caches.remove("imc-1"), None);
    assert_eq!(building().remove("imc-1"), Some(1));
}

#[test]
fn only_the_newest_build_is_listened_to() {
    let mut caches = building();
    let event = || Report::Event { name: "a".into(), reason: "Pulling", message: String::new(), warning: false };
    assert!(caches.note("imc-1", 1, Report::Progress(30), at(2)));
    assert!(!caches.note("imc-1", 1, Report::Progress(20), at(2)), "it does not go back");
    assert!(!caches.note("imc-1", 0, Report::Progress(40), at(2)));
    assert!(!caches.note("imc-1", 0, event(), at(2)) && caches.note("imc-1", 1, event(), at(2)));
    assert_eq!(caches.ended("imc-1", 0, Ok(Vec::new()), at(2)), None);
    assert_eq!(caches.ended("imc-2", 1, Ok(Vec::new()), at(2)), None);
    assert_eq!(state(&caches), (CachePhase::Creating, 30, String::new()));
    let record = caches.ended("imc-1", 1, Ok(vec![image("a")]), at(3)).unwrap();
    caches.put(record);
    assert!(!caches.note("imc-1", 1, event(), at(4)), "it has ended");
    let told = caches.list(&CacheList::default());
    let reasons: Vec<&str> = told["imc-1"].events.iter().map(|event| event.reason.as_str()).collect();
    assert_eq!(reasons, ["Pulling", "Ready"]);
    assert!(Arc::ptr_eq(&told["imc-1"], &caches.list(&told)["imc-1"]), "what has not changed is shared");
}

#[test]
fn what_cannot_be_recorded_leaves_what_served() {
    let mut caches = ready();
    let record = caches.wished(&wish(&["b"]), at(3)).unwrap();
    caches.put(record);
    caches.begin("imc-1", 2);
    let record = caches.ended("imc-1", 2, Ok(vec![image("b")]), at(4)).unwrap();
    caches.not_recorded(record, "no space", at(4));
    assert_eq!(state(&caches), (CachePhase::UpdateFailed, 0, "put on record: no space".into()));
    assert_eq!(caches.list(&CacheList::default())["imc-1"].images, [image("a")]);
    assert!(caches.wished(&wish(&["b"]), at(5)).is_some(), "it is tried again");
}

#[test]
fn a_restart_goes_on_with_what_it_can() {
    let record = |wish: &BuildCache| Caches::default().wished(wish, at(1)).unwrap();
    let mut caches = Caches::default();
    let goes_on = caches.take_up("imc-1".into(), record(&wish(&["a"])), None, at(2)).unwrap();
    assert_eq!((goes_on.id, goes_on.images, goes_on.access), ("imc-1".into(), vec!["a".into()], wish(&[]).access));
    assert_eq!(state(&caches), (CachePhase::Creating, 0, String::new()));

    let login = Login::RegistryToken("hush".into());
    let mut with_logins = wish(&["a"]);
    with_logins.access.credentials = vec![Credential { registry: "r".into(), login }];
    let mut caches = Caches::default();
    assert!(caches.take_up("imc-1".into(), record(&with_logins), None, at(2)).is_none());
    let told = caches.list(&CacheList::default());
    assert!(told["imc-1"].ask_again && told["imc-1"].reason.contains("interrupted by a restart"), "{told:?}");

    let mut served = record(&wish(&["a"]));
    served.succeed(&[image("a")], at(2));
    let mut caches = Caches::default();
    assert!(caches.take_up("imc-1".into(), served.clone(), None, at(3)).is_none());
    assert_eq!(state(&caches), (CachePhase::Ready, 100, String::new()));
    // A restart is no step of the build: the day of one that failed is counted from its failure.
    assert_eq!(caches.list(&CacheList::default())["imc-1"].last_updated, at(2));
    let mut caches = Caches::default();
    assert!(caches.take_up("imc-1".into(), served, Some("gone".into()), at(3)).is_none());
    let told = caches.list(&CacheList::default());
    assert!(told["imc-1"].ask_again && told["imc-1"].images.is_empty());
    assert_eq!(state(&caches), (CachePhase::Failed, 0, "gone".into()));
}
