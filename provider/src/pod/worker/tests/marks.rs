//! What is written on a pod: once, taken off where it is not ours, and told when its user changes what has been acted on.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;

use super::*;
use crate::pod::acted_on;
use crate::pod::cache_choice::CacheDecision;

const AUTO: &str = "k8s.aliyun.com/eci-auto-imc";
const MATCHED: &str = "k8s.aliyun.com/eci-matched-image-cache";

/// Admits every pod as one that has missed.
#[derive(Debug)]
struct Misses;

#[async_trait]
impl CacheChoice for Misses {
    async fn choose(&self, _: &str, pod: &Pod) -> CacheDecision {
        let mark = acted_on::mark(pod.metadata.annotations.as_ref());
        CacheDecision::Run(Admitted {
            annotations: BTreeMap::from([(acted_on::ACTED_ON.to_owned(), mark)]),
            cleared: BTreeSet::from([MATCHED.to_owned()]),
            ..Admitted::default()
        })
    }

    fn recall(&self, _: &str, _: &Pod) -> Admitted {
        Admitted::default()
    }
}

fn annotation(record: &Record, key: &str) -> Option<String> {
    record.pods["ns/p"].metadata.annotations.as_ref()?.get(key).cloned()
}

fn annotate(bench: &Bench, key: &str, value: &str) {
    bench.cluster.edit_pod("ns", "p", |pod| {
        pod.metadata.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
    });
}

fn told(record: &Record) -> Vec<String> {
    let is_it = |event: &&k8s_openapi::api::core::v1::Event| event.reason.as_deref() == Some(acted_on::REASON);
    record.events.iter().filter(is_it).filter_map(|event| event.message.clone()).collect()
}

async fn running(annotations: &[(&str, &str)]) -> Bench {
    running_with(Arc::new(Misses), annotations).await
}

async fn running_with(choice: Arc<dyn CacheChoice>, annotations: &[(&str, &str)]) -> Bench {
    let mut bench = Bench::new();
    bench.start_with(choice);
    let mut pod = pod("p", "u1");
    let pairs = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    pod.metadata.annotations = Some(pairs.collect());
    bench.cluster.put_pod(pod);
    bench.ran(1).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    bench.cluster.wait("the mark", |record| annotation(record, acted_on::ACTED_ON).is_some()).await;
    bench
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_is_not_ours_is_taken_off_and_the_agent_never_sees_it() {
    let bench = running(&[(MATCHED, "imc-forged")]).await;
    bench.cluster.wait("no such mark", |record| annotation(record, MATCHED).is_none()).await;
    bench.agent.see(|record| {
        assert_eq!(record.runs.len(), 1);
        assert!(!record.runs[0].pod.metadata.annotations.as_ref().unwrap().contains_key(MATCHED));
    });
}

#[tokio::test(start_paused = true)]
async fn a_change_that_comes_too_late_is_told_once_also_over_a_restart() {
    let mut bench = running(&[(AUTO, "true")]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.cluster.see(told), Vec::<String>::new());

    annotate(&bench, AUTO, "false");
    bench.cluster.wait("told", |record| !told(record).is_empty()).await;
    assert!(bench.cluster.see(told)[0].contains(AUTO));
    // Other annotations are nobody's business, and what was told is not told again.
    annotate(&bench, "other", "1");
    bench.restart().await;
    annotate(&bench, "other", "2");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.cluster.see(told).len(), 1);

    annotate(&bench, AUTO, "yes");
    bench.cluster.wait("told again", |record| told(record).len() == 2).await;
}

/// Admits every pod with an annotation about image caches that its user has not written, as a Selector does.
#[derive(Debug)]
struct Writes;

#[async_trait]
impl CacheChoice for Writes {
    async fn choose(&self, _: &str, _: &Pod) -> CacheDecision {
        let written = BTreeMap::from([(AUTO.to_owned(), "false".to_owned())]);
        let mark = (acted_on::ACTED_ON.to_owned(), acted_on::mark(Some(&written)));
        CacheDecision::Run(Admitted { annotations: written.into_iter().chain([mark]).collect(), ..Admitted::default() })
    }

    fn recall(&self, _: &str, _: &Pod) -> Admitted {
        Admitted::default()
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_written_with_the_start_is_no_change_of_the_users() {
    let bench = running_with(Arc::new(Writes), &[(AUTO, "true")]).await;
    bench.agent.see(|record| {
        assert_eq!(record.runs[0].pod.metadata.annotations.as_ref().unwrap()[AUTO], "false");
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.cluster.see(|record| annotation(record, AUTO)).as_deref(), Some("false"));
    assert_eq!(bench.cluster.see(told), Vec::<String>::new());
    annotate(&bench, AUTO, "true");
    bench.cluster.wait("told", |record| told(record).len() == 1).await;
}
