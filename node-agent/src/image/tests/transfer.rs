//! Transfers that break, resume, and come from somebody else; and what is left behind.

use super::*;
use crate::registry::test_registry::Seen;

/// More than is worth keeping.
const LARGE: usize = 3 << 20;

/// Two registries that are mirrors of one that is not there.
struct Mirrored {
    first: TestRegistry,
    second: TestRegistry,
    bench: Bench,
    _config: tempfile::TempDir,
}

impl Mirrored {
    async fn new() -> Self {
        let (first, second) = (TestRegistry::start().await, TestRegistry::start().await);
        let config = tempfile::tempdir().unwrap();
        let folder = config.path().join("registry.invalid");
        std::fs::create_dir(&folder).unwrap();
        let hosts = format!("[host.\"http://{}\"]\n[host.\"http://{}\"]\n", first.host(), second.host());
        std::fs::write(folder.join("hosts.toml"), hosts).unwrap();
        let bench = Bench::with_hosts(Some(config.path().to_owned())).await;
        Self { first, second, bench, _config: config }
    }

    /// Pushes an image of one large layer to both.
    fn push(&self) -> Pushed {
        let plain = noise(9, LARGE);
        push_layers(&self.first, "a", "v1", &[(plain.clone(), plain.clone())]);
        push_layers(&self.second, "a", "v1", &[(plain.clone(), plain)])
    }
}

const MIRRORED: &str = "registry.invalid/a:v1";

/// From where on a blob was asked for; none is from the first byte on, whether a range was named or not.
fn ranges(registry: &TestRegistry, blob: &str) -> Vec<Option<String>> {
    let of_blob = |seen: &Seen| seen.path.contains(blob);
    let whole = range(0);
    let from = |seen: Seen| seen.range.filter(|range| Some(range) != whole.as_ref());
    registry.seen().into_iter().filter(of_blob).map(from).collect()
}

fn range(from: usize) -> Option<String> {
    Some(format!("bytes={from}-"))
}

#[tokio::test]
async fn what_a_power_cut_has_torn_is_fetched_again() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain = noise(7, LARGE);
    let packed = gzip(&plain);
    let pushed = push_layers(&registry, "a", "v1", &[(plain, packed.clone())]);
    // The start is right, so that it is known for what it is.
    let torn = [&packed[..1000], &[0; 1 << 20]].concat();
    std::fs::write(bench.store.layout().partial(&pushed.blobs[0]), torn).unwrap();
    bench.pull(&format!("{}/a:v1", registry.host())).await.unwrap();
    assert_eq!(bench.partials(), Vec::<u64>::new());
}

#[tokio::test]
async fn another_mirror_goes_on_where_the_first_broke_off() {
    let mirrored = Mirrored::new().await;
    let blob = mirrored.push().blobs[0].to_string();
    mirrored.first.fault(&blob, 1, Fault::Cut(2 << 20));
    mirrored.bench.pull(MIRRORED).await.unwrap();
    assert_eq!(ranges(&mirrored.first, &blob), [None]);
    assert_eq!(ranges(&mirrored.second, &blob), [range(2 << 20)]);
    assert_eq!(mirrored.bench.partials(), Vec::<u64>::new());
}

#[tokio::test]
async fn a_mirror_whose_bytes_drip_is_given_up_for_the_next() {
    let mirrored = Mirrored::new().await;
    let blob = mirrored.push().blobs[0].to_string();
    mirrored.first.fault(&blob, 1, Fault::Drip(Duration::from_millis(50)));
    mirrored.bench.pull(MIRRORED).await.unwrap();
    let went_on = ranges(&mirrored.second, &blob);
    assert!(matches!(went_on.as_slice(), [Some(_)]), "from where the first was: {went_on:?}");
}

#[tokio::test]
async fn every_endpoint_is_named_when_the_mirror_lies_and_the_registry_is_away() {
    let mirrored = Mirrored::new().await;
    let blob = mirrored.push().blobs[0].to_string();
    mirrored.first.fault(&blob, 1000, Fault::Corrupt);
    mirrored.second.fault(&blob, 1000, Fault::Status(404, vec![], "not here"));
    let text = mirrored.bench.pull(MIRRORED).await.unwrap_err().to_string();
    let lie = format!("content from http://{}/v2/a/blobs/{blob}?ns=registry.invalid has digest", mirrored.first.host());
    for words in [lie.as_str(), "404 Not Found: not here", "https://registry.invalid/v2/a/blobs/", "dns error"] {
        assert!(text.contains(words), "{words} is not in: {text}");
    }
    assert_eq!(mirrored.bench.partials(), Vec::<u64>::new());
    mirrored.second.heal();
    mirrored.bench.pull(MIRRORED).await.unwrap();
}

#[tokio::test]
async fn a_liar_is_found_when_two_gave_something_wrong_together() {
    let mirrored = Mirrored::new().await;
    let blob = mirrored.push().blobs[0].to_string();
    // The first gives some right bytes and breaks off, each time; the second ends it wrongly, once.
    mirrored.first.fault(&blob, 1000, Fault::Cut(1000));
    mirrored.second.fault(&blob, 1, Fault::Corrupt);
    mirrored.bench.pull(MIRRORED).await.unwrap();
    let second = ranges(&mirrored.second, &blob);
    assert_eq!(second, [range(1000), None], "from the first byte on, alone");
}

#[tokio::test]
async fn a_transfer_goes_on_after_the_agent_has_ended() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain = noise(3, LARGE);
    let pushed = push_layers(&registry, "a", "v1", &[(plain.clone(), gzip(&plain))]);
    let (blob, reference) = (pushed.blobs[0].to_string(), format!("{}/a:v1", registry.host()));
    registry.fault(&blob, 1, Fault::Stall(2 << 20));
    registry.fault(&blob, 1000, Fault::Slow(Duration::from_secs(60)));
    bench.pull_until_kept(&reference, 2 << 20).await;
    let bench = bench.restart().await;
    assert_eq!(bench.partials(), [2 << 20]);
    registry.heal();
    registry.forget_seen();
    let (image, progress) = bench.ensure(wish(&reference)).await;
    image.unwrap();
    assert_eq!(ranges(&registry, &blob), [range(2 << 20)]);
    let total = progress.iter().find_map(|step| match step {
        ImageProgress::Layers(moved) => Some((moved.total_bytes, moved.total_layers)),
        ImageProgress::Pulling | ImageProgress::Pulled { .. } | ImageProgress::AlreadyPresent => None,
    });
    assert_eq!(total, Some((u64::try_from(gzip(&plain).len()).unwrap(), 1)));
    assert_eq!((bench.partials(), bench.snapshotter.layer_count()), (vec![], 1));
}

#[tokio::test]
async fn a_pull_that_failed_goes_on_when_the_pod_is_tried_again() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain = noise(4, LARGE);
    let pushed = push_layers(&registry, "a", "v1", &[(plain.clone(), plain)]);
    let (blob, reference) = (pushed.blobs[0].to_string(), format!("{}/a:v1", registry.host()));
    registry.fault(&blob, 1, Fault::Cut(2 << 20));
    registry.fault(&blob, 1000, Fault::Status(500, vec![], ""));
    bench.pull(&reference).await.unwrap_err();
    assert_eq!(bench.partials(), [2 << 20]);
    registry.heal();
    registry.forget_seen();
    bench.pull(&reference).await.unwrap();
    assert_eq!((ranges(&registry, &blob), bench.partials()), (vec![range(2 << 20)], vec![]));
}

#[tokio::test]
async fn what_was_kept_is_hashed_again() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain = noise(5, LARGE);
    let pushed = push_layers(&registry, "a", "v1", &[(plain.clone(), plain.clone())]);
    let (blob, reference) = (pushed.blobs[0].to_string(), format!("{}/a:v1", registry.host()));
    let kept = bench.store.layout().partial(&pushed.blobs[0]);
    // Torn by a power cut; then all of it, torn; then more than there is; then all of it, whole.
    let torn = [&plain[..2 << 20], &[0; 4096]].concat();
    for (content, expected) in [
        (torn.clone(), vec![range(torn.len()), None]),
        (vec![0; LARGE], vec![None]),
        (vec![0; LARGE + 1], vec![None]),
        (plain, vec![]),
    ] {
        std::fs::write(&kept, content).unwrap();
        registry.forget_seen();
        bench.pull(&reference).await.unwrap();
        assert_eq!((ranges(&registry, &blob), bench.partials()), (expected, vec![]));
        bench.snapshotter.forget_layers();
    }
}

#[tokio::test]
async fn a_registry_with_less_than_was_kept_is_asked_from_the_first_byte_on() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain = noise(6, LARGE);
    let pushed = push_layers(&registry, "a", "v1", &[(plain.clone(), plain)]);
    let (blob, reference) = (pushed.blobs[0].to_string(), format!("{}/a:v1", registry.host()));
    std::fs::write(bench.store.layout().partial(&pushed.blobs[0]), vec![0; 2 << 20]).unwrap();
    // An error is asked for again, for its words.
    registry.fault(&blob, 2, Fault::Status(416, vec![], ""));
    bench.pull(&reference).await.unwrap();
    assert_eq!(ranges(&registry, &blob), [range(2 << 20), range(2 << 20), None]);
}

#[tokio::test]
async fn a_full_disk_takes_back_what_was_kept() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain = noise(7, LARGE);
    let pushed = push_layers(&registry, "a", "v1", &[(plain.clone(), plain)]);
    let reference = format!("{}/a:v1", registry.host());
    let layout = bench.store.layout();
    for blob in [pushed.blobs[0], Digest::of(b"of another pull")] {
        std::fs::write(layout.partial(&blob), vec![0; 2 << 20]).unwrap();
    }
    bench.snapshotter.set_full(true);
    let text = bench.pull(&reference).await.unwrap_err().to_string();
    assert!(text.contains("no space left"), "{text}");
    assert_eq!(bench.partials(), Vec::<u64>::new());
}

#[tokio::test]
async fn the_room_is_asked_for_before_the_bytes_come() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain = noise(8, LARGE);
    push_layers(&registry, "a", "v1", &[(plain.clone(), plain)]);
    bench.pull(&format!("{}/a:v1", registry.host())).await.unwrap();
    assert_eq!(bench.snapshotter.size_hints(), [Some(u64::try_from(LARGE).unwrap())]);
}

#[tokio::test]
async fn pulls_are_seen_while_they_are_under_way() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain = noise(2, LARGE);
    let pushed = push_layers(&registry, "a", "v1", &[(plain.clone(), plain)]);
    let reference = format!("{}/a:v1", registry.host());
    registry.fault(&pushed.blobs[0].to_string(), 1, Fault::Drip(Duration::from_millis(5)));
    let mut watched = bench.service.watch_pulls();
    let (sender, _receiver) = mpsc::channel(100);
    {
        let pulls =
            [bench.service.ensure(wish(&reference), sender.clone()), bench.service.ensure(wish(&reference), sender)];
        let seen = async {
            let moves = |list: &PullList| list.get(&reference).is_some_and(|pull| pull.moved.done_bytes > 0);
            // Not to be held on to: a pull that ends changes the list.
            watched.wait_for(moves).await.unwrap().clone()
        };
        let seen = tokio::select! {
            _ = futures::future::join_all(pulls) => panic!("they cannot end"),
            seen = seen => seen,
        };
        let pull = &seen[&reference];
        let expected =
            Moved { total_bytes: u64::try_from(LARGE).unwrap(), done_layers: 0, total_layers: 1, ..pull.moved };
        assert_eq!((pull.waiters.len(), pull.moved), (2, expected));
    }
    assert!(bench.service.watch_pulls().borrow().is_empty());
}
