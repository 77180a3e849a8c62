//! Workers that break off, and what is asked of the pod meanwhile.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_pod_whose_step_broke_off_is_taken_up_however_long_the_host_does_not_answer() {
    let mut bench = Bench::new().await;
    bench.host.next_start_panics();
    bench.host.fail_lists(2);
    let begun = tokio::time::Instant::now();
    bench.run(one("Always")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    // Once it broke off, and twice the host did not answer: 1 s, 2 s and 4 s.
    assert_eq!(begun.elapsed().as_secs(), 7);
    let started: Vec<String> = bench.host.log().into_iter().filter(|entry| entry.starts_with("start ")).collect();
    assert_eq!(started, ["start app 0", "start app 0"], "it never ran, so it is the same attempt");
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_the_pause() {
    let mut bench = Bench::new().await;
    bench.host.next_start_panics();
    bench.host.fail_lists(4);
    bench.run(one("Always")).await;
    // 1 + 2 + 4 s have passed, and 8 s are to come.
    let host = Arc::clone(&bench.host);
    host.asked.subscribe().wait_for(|_| host.count("list containers") == 4).await.unwrap();
    let begun = tokio::time::Instant::now();
    assert!(bench.pods.stop("u1".into(), None).await.unwrap(), "the pod is known though no worker is there");
    // Asked for, it is taken up at once; the host fails a last time, which costs the next pause.
    bench.until_gone().await;
    assert_eq!(begun.elapsed().as_secs(), 16);
    assert_eq!((bench.host.sandboxes(), bench.host.containers()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_wish_that_comes_in_the_pause_is_taken_at_once() {
    let mut bench = Bench::new().await;
    bench.host.next_start_panics();
    bench.run(one("Always")).await;
    let host = Arc::clone(&bench.host);
    host.asked.subscribe().wait_for(|_| host.count("start app") == 1).await.unwrap();
    let begun = tokio::time::Instant::now();
    let mut wish = fakes::wish("u1", one("Always"));
    wish.objects.config_maps.insert("c".into(), Default::default());
    bench.pods.run(wish.clone()).await.unwrap();
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(Ledger::new(bench.folder.path().join("pods")).read("u1").unwrap().unwrap().wish, wish);
}
