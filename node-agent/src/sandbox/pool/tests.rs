//! The pool by itself, on a host where no slot can be made.

use super::*;
use crate::sandbox::slot::Record;

fn spec(uid: &str) -> SandboxSpec {
    SandboxSpec { uid: uid.into(), hostname: "h".into(), domainname: String::new(), sysctls: Vec::new() }
}

/// A pool whose slots cannot be made: the folder for them is missing.
fn pool_on_a_broken_host(found: Vec<Slot>) -> Pool {
    let (folder, cidr) = (PathBuf::from("/nonexistent/sandboxes"), "10.99.0.0/24".parse().unwrap());
    Pool::new(PoolConfig { folder, cidr, bridge_index: 0, size: 2 }, found)
}

/// Takes in what comes back until nothing is under way, and says how much that was.
async fn settle(pool: &mut Pool) -> usize {
    let mut count = 0;
    while let Some(done) = pool.work.join_next().await {
        count += 1;
        assert!(count < 100, "it goes on and on");
        pool.finish(done);
    }
    count
}

#[tokio::test]
async fn a_host_that_refuses_is_left_alone_until_somebody_asks() {
    let mut pool = pool_on_a_broken_host(Vec::new());
    pool.refill();
    assert_eq!(settle(&mut pool).await, 2);
    let (reply, answer) = oneshot::channel();
    pool.serve(Request::Ensure(spec("a"), reply));
    settle(&mut pool).await;
    let error = answer.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "create sandbox for pod a");
    assert_eq!((pool.addresses.in_use(), pool.creating), (0, 0));
}

#[tokio::test]
async fn whoever_asks_again_meanwhile_waits_for_the_same_sandbox() {
    let mut pool = pool_on_a_broken_host(Vec::new());
    let ((first, one), (second, two), (third, removed)) = (oneshot::channel(), oneshot::channel(), oneshot::channel());
    pool.serve(Request::Ensure(spec("a"), first));
    pool.serve(Request::Ensure(spec("a"), second));
    pool.serve(Request::Remove("a".into(), third));
    assert_eq!((pool.waiting.len(), pool.under_way["a"].len()), (1, 2));
    settle(&mut pool).await;
    assert!(one.await.unwrap().is_err());
    assert!(two.await.unwrap().is_err());
    removed.await.unwrap().unwrap();
    assert!(pool.under_way.is_empty());
}

/// A sandbox of pod `a`, as far as its folder goes.
fn slot_of_a(folder: &std::path::Path, address: &str) -> Slot {
    let folder = folder.join(address);
    std::fs::create_dir(&folder).unwrap();
    let (address, uid) = (address.parse().unwrap(), Some("a".to_owned()));
    Slot { folder, record: Record { address, host_link: String::new(), uid } }
}

/// Asks for the removal of pod `a`'s sandbox.
fn ask_to_remove(pool: &mut Pool) -> oneshot::Receiver<Result<(), SandboxError>> {
    let (reply, answer) = oneshot::channel();
    pool.serve(Request::Remove("a".into(), reply));
    answer
}

#[tokio::test]
async fn whoever_asks_for_a_removal_again_meanwhile_is_answered_when_it_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let slot = slot_of_a(folder.path(), "10.99.0.5");
    let mut pool = pool_on_a_broken_host(vec![slot.clone()]);
    // A file in the place of the folder cannot be removed as one.
    std::fs::remove_dir(&slot.folder).unwrap();
    std::fs::write(&slot.folder, "").unwrap();
    let (first, mut second) = (ask_to_remove(&mut pool), ask_to_remove(&mut pool));
    assert!(second.try_recv().is_err(), "it is answered before anything is removed");
    settle(&mut pool).await;
    for answer in [first, second] {
        assert_eq!(answer.await.unwrap().unwrap_err().to_string(), "remove sandbox for pod a");
    }
    assert_eq!((pool.taken.len(), pool.addresses.in_use()), (1, 1));
    std::fs::remove_file(&slot.folder).unwrap();
    let (first, second) = (ask_to_remove(&mut pool), ask_to_remove(&mut pool));
    settle(&mut pool).await;
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!((pool.taken.len(), pool.under_way.len(), pool.addresses.in_use()), (0, 0, 0));
}

#[tokio::test]
async fn a_removal_that_panics_is_an_error_and_can_be_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let slot = slot_of_a(folder.path(), "10.99.0.5");
    let mut pool = pool_on_a_broken_host(vec![slot.clone()]);
    let (reply, broken) = oneshot::channel();
    pool.taken.clear();
    pool.under_way.insert("a".into(), Vec::new());
    pool.work.spawn(removal(Some("a".into()), slot.clone(), Some(reply), |_| panic!("for the test")));
    let again = ask_to_remove(&mut pool);
    settle(&mut pool).await;
    assert_eq!(broken.await.unwrap().unwrap_err().to_string(), "remove sandbox for pod a");
    again.await.unwrap().unwrap();
    assert!(!slot.folder.exists());
    assert_eq!((pool.taken.len(), pool.under_way.len(), pool.addresses.in_use()), (0, 0, 0));
}

#[tokio::test]
async fn a_second_sandbox_of_the_same_pod_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let found = ["10.99.0.5", "10.99.0.6"].map(|address| slot_of_a(folder.path(), address));
    let mut pool = pool_on_a_broken_host(found.to_vec());
    assert_eq!(pool.addresses.in_use(), 2);
    settle(&mut pool).await;
    assert_eq!((pool.taken.len(), pool.addresses.in_use()), (1, 1));
    assert!(!found[0].folder.exists() && found[1].folder.exists());
}

#[tokio::test]
async fn what_was_taken_is_made_anew_only_after_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut free = slot_of_a(folder.path(), "10.99.0.5");
    free.record.uid = None;
    let mut pool = pool_on_a_broken_host(vec![free]);
    let (reply, _answer) = oneshot::channel();
    pool.serve(Request::Ensure(spec("b"), reply));
    assert_eq!((pool.free.len(), pool.creating), (0, 0), "in the way of the start");
    assert!(pool.refill_at.is_some_and(|at| at > Instant::now()));
    // Whoever finds the pool empty is not kept waiting.
    let (reply, _answer) = oneshot::channel();
    pool.serve(Request::Ensure(spec("c"), reply));
    assert_eq!(pool.creating, 1);
    pool.refill();
    assert_eq!((pool.creating, pool.refill_at), (1 + pool.config.size, None));
}
