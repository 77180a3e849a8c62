//! The end of a pod that is asked for.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_pod_stopped_while_pulling_is_gone() {
    let mut bench = Bench::new().await;
    bench.host.next_pull(Pull::Hangs);
    bench.run(one("Always")).await;
    let host = Arc::clone(&bench.host);
    host.asked.subscribe().wait_for(|_| host.count("ensure") == 1).await.unwrap();
    bench.pods.stop("u1".into(), Some(Duration::from_secs(30))).await.unwrap();
    let begun = tokio::time::Instant::now();
    let last = bench.until_gone().await;
    assert_eq!(phase(&last), "Failed");
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(bench.host.sandboxes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_stopped_in_its_back_off_is_gone() {
    let mut bench = Bench::new().await;
    bench.run(one("Always")).await;
    for _ in 0..2 {
        bench.until(|snapshot| phase(snapshot) == "Running" && waiting(snapshot).is_empty()).await;
        let started = bench.host.count("start app");
        bench.host.exit("app", 1);
        let host = Arc::clone(&bench.host);
        if started == 1 {
            host.asked.subscribe().wait_for(|_| host.count("start app") == 2).await.unwrap();
            bench.until(|snapshot| restarts(snapshot) == 1 && waiting(snapshot).is_empty()).await;
        }
    }
    bench.until(|snapshot| waiting(snapshot) == "CrashLoopBackOff").await;
    bench.pods.stop("u1".into(), None).await.unwrap();
    let last = bench.until_gone().await;
    assert_eq!(phase(&last), "Failed");
    assert_eq!(bench.host.count("signal"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_is_killed_at_the_deadline() {
    let mut bench = Bench::new().await;
    bench.host.be_deaf();
    bench.run(one("Always")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    let begun = tokio::time::Instant::now();
    bench.pods.stop("u1".into(), Some(Duration::from_secs(60))).await.unwrap();
    bench.pods.stop("u1".into(), Some(Duration::from_secs(5))).await.unwrap();
    bench.until_gone().await;
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert_eq!((bench.host.count("signal Stop"), bench.host.count("signal Kill")), (1, 1));
    assert!(bench.drain_events().contains(&"Killing: Stopping container app".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_pod_does_not_touch_its_successor() {
    let (host, folder) = (FakeHost::new(), tempfile::tempdir().unwrap());
    let (parts, settings) = (host.parts(folder.path()), fakes::settings(folder.path()));
    let (mut supervisor, _pods) = Supervisor::new(parts, settings, CancellationToken::new());
    supervisor.begin(fakes::wish("u1", one("Always"))).unwrap();
    assert!(supervisor.stop("u1".into(), None).unwrap());
    let ended = supervisor.tasks.join_next_with_id().await.unwrap();
    // Before its end is taken in, the pod is asked for again.
    let (reply, answer) = oneshot::channel();
    supervisor.take_wish(Box::new(fakes::wish("u1", one("Always"))), reply);
    answer.await.unwrap().unwrap();
    supervisor.take_end(ended);
    assert!(supervisor.stop("u1".into(), None).unwrap(), "the new one is known");
    let ended = supervisor.tasks.join_next_with_id().await.unwrap();
    supervisor.take_end(ended);
    assert!(!supervisor.stop("u1".into(), None).unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_ends_does_not_say_that_a_pod_is_not_there() {
    let (host, folder) = (FakeHost::new(), tempfile::tempdir().unwrap());
    let ends = CancellationToken::new();
    let (parts, settings) = (host.parts(folder.path()), fakes::settings(folder.path()));
    let (mut supervisor, _pods) = Supervisor::new(parts, settings, ends.clone());
    supervisor.begin(fakes::wish("u1", one("Always"))).unwrap();
    ends.cancel();
    supervisor.tasks.join_next().await.unwrap().unwrap();
    assert!(matches!(supervisor.stop("u1".into(), None), Err(RequestError::ShuttingDown)));
}
