//! What panics: a part ends the controller, a worker is begun anew, later each time.

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::*;
use crate::pod::cache_choice::CacheDecision;

#[tokio::test(start_paused = true)]
async fn a_part_that_panics_ends_it_with_its_name() {
    let mut bench = Bench::new();
    bench.agent.break_call("watch_pods");
    bench.start();
    let ended = tokio::time::timeout(Duration::from_secs(60), bench.tasks.join_next()).await.expect("in time");
    let error = ended.unwrap().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the stream of the agent's pods has panicked: watch_pods is broken");
}

#[tokio::test(start_paused = true)]
async fn a_lane_of_events_and_a_watch_of_an_object_are_parts_too() {
    for (call, message) in [
        ("create_event", "of the events has panicked: create_event is broken"),
        ("watch_object", "a watch of a ConfigMap or Secret has panicked: watch_object is broken"),
    ] {
        let mut bench = Bench::new();
        bench.cluster.break_call(call);
        bench.start_with(Arc::new(Breaking::new(1).0));
        let mut naming = pod("p", "u1");
        naming.spec.as_mut().unwrap().image_pull_secrets = serde_json::from_value(json!([{"name": "s"}])).unwrap();
        bench.cluster.put_pod(naming);
        let ended = tokio::time::timeout(Duration::from_secs(60), bench.tasks.join_next()).await.expect("in time");
        let error = ended.unwrap().unwrap().unwrap_err().to_string();
        assert!(error.ends_with(message), "{error}");
    }
}

/// Panics as often as it is told, and says when.
#[derive(Debug)]
struct Breaking {
    left: std::sync::Mutex<usize>,
    panics: mpsc::UnboundedSender<Instant>,
}

impl Breaking {
    fn new(times: usize) -> (Self, mpsc::UnboundedReceiver<Instant>) {
        let (panics, seen) = mpsc::unbounded_channel();
        (Self { left: times.into(), panics }, seen)
    }
}

#[async_trait]
impl CacheChoice for Breaking {
    async fn choose(&self, _: &str, _: &Pod) -> CacheDecision {
        let left = {
            let mut left = self.left.lock().unwrap();
            let before = *left;
            *left = before.saturating_sub(1);
            before
        };
        if left > 0 {
            let _ = self.panics.send(Instant::now());
            panic!("{left} to go");
        }
        CacheDecision::Run(Admitted::default())
    }

    fn recall(&self, _: &str, _: &Pod) -> Admitted {
        Admitted::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_is_begun_anew_later_each_time() {
    let mut bench = Bench::new();
    let (breaking, mut panics) = Breaking::new(5);
    bench.start_with(Arc::new(breaking));
    bench.cluster.put_pod(pod("p", "u1"));
    // Others are none the worse meanwhile.
    bench.ran(1).await;
    let mut times = vec![];
    while let Ok(time) = panics.try_recv() {
        times.push(time);
    }
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps.len(), 4);
    for (gap, least) in gaps.iter().zip([1, 2, 4, 8]) {
        assert!(*gap >= Duration::from_secs(least) && *gap <= Duration::from_secs(2 * least + 1), "{gaps:?}");
    }
    bench.event("FailedSync").await;
    let message = bench.cluster.see(|record| record.events[0].message.clone().unwrap());
    assert!(
        message.starts_with("Error syncing pod, skipping: the pod's worker has panicked: 5 to go; trying again in 1s"),
        "{message}"
    );
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_goes_while_its_worker_waits_is_forgotten() {
    let mut bench = Bench::new();
    let (breaking, _panics) = Breaking::new(3);
    bench.start_with(Arc::new(breaking));
    bench.cluster.put_pod(pod("p", "u1"));
    bench.event("FailedSync").await;
    bench.cluster.drop_pod("ns", "p");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.agent.see(|record| (record.runs.len(), record.stops.len())), (0, 0));
    // The same controller takes up others at once.
    bench.cluster.put_pod(pod("q", "u2"));
    bench.event("FailedSync").await;
    bench.ran(1).await;
}
