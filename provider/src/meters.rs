//! What the provider counts and times of its own work, in the text format of OpenMetrics.
//!
//! Cheap to clone; every clone counts into the same figures.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// From a millisecond to 16 seconds, each twice the one before.
const BUCKETS: (f64, f64, u16) = (0.001, 2.0, 15);

/// From ten milliseconds to eleven minutes, each twice the one before.
const BUILD_BUCKETS: (f64, f64, u16) = (0.01, 2.0, 17);

/// Close together around a thousandth of a second, which is the most that a choice among a thousand caches may take.
const MATCH_BOUNDS: [f64; 16] = [
    0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_15, 0.000_2, 0.000_3, 0.000_4, 0.000_5, 0.000_6, 0.000_8, 0.001,
    0.001_5, 0.002, 0.005, 0.05,
];

/// How something went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// It worked.
    Done,
    /// It failed, and is tried again.
    Failed,
    /// It was refused for good.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

/// One kind of work.
#[derive(Debug, Clone)]
pub struct Meter {
    count: Family<Labels, Counter>,
    seconds: Histogram,
}

impl Meter {
    fn new(registry: &mut Registry, name: &str, what: &str) -> Self {
        let meter = Self { count: Family::default(), seconds: histogram(BUCKETS) };
        registry.register(name, format!("{what}, by outcome"), meter.count.clone());
        registry.register(format!("{name}_seconds"), format!("Time of {what}"), meter.seconds.clone());
        meter
    }

    /// Counts one, with the time that it took.
    pub fn record(&self, outcome: Outcome, took: Duration) {
        self.count.get_or_create(&Labels { outcome }).inc();
        self.seconds.observe(took.as_secs_f64());
    }
}

/// How a choice of an image cache for a pod went.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ChoiceLabels {
    /// `hit`, `partial`, `pinned`, `miss`, `refused` or `off`.
    pub outcome: &'static str,
    /// Why; empty where there is nothing to add.
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

/// What is counted and timed of image caches.
#[derive(Debug, Clone)]
pub struct CacheMeters {
    choices: Family<ChoiceLabels, Counter>,
    builds: Family<BuildLabels, Counter>,
    build_seconds: Histogram,
    match_seconds: Histogram,
    phases: Family<PhaseLabels, Gauge>,
}

impl CacheMeters {
    fn new(registry: &mut Registry) -> Self {
        let meters = Self {
            choices: Family::default(),
            builds: Family::default(),
            build_seconds: histogram(BUILD_BUCKETS),
            match_seconds: Histogram::new(MATCH_BOUNDS),
            phases: Family::default(),
        };
        let help = "Pods that started or were to start, by what image cache they were given and why";
        registry.register("image_cache_choices", help, meters.choices.clone());
        registry.register("image_cache_builds", "Builds of image caches that ended, by outcome", meters.builds.clone());
        let help = "Time from a new or changed ImageCache to Ready, as its status tells it";
        registry.register("image_cache_build_seconds", help, meters.build_seconds.clone());
        let help = "Time in which the image cache of a pod was chosen among all";
        registry.register("image_cache_match_seconds", help, meters.match_seconds.clone());
        registry.register("image_caches", "ImageCache objects, by phase", meters.phases.clone());
        meters
    }

    /// Counts a choice.
    pub fn chosen(&self, how: &ChoiceLabels) {
        self.choices.get_or_create(how).inc();
    }

    /// Counts the time of a choice among the caches.
    pub fn matched(&self, took: Duration) {
        self.match_seconds.observe(took.as_secs_f64());
    }

    /// Counts a build that has ended; the time counts where the cache is Ready.
    pub fn built(&self, is_ready: bool, took: Duration) {
        let outcome = if is_ready { "ready" } else { "failed" };
        self.builds.get_or_create(&BuildLabels { outcome }).inc();
        if is_ready {
            self.build_seconds.observe(took.as_secs_f64());
        }
    }

    /// Says how many caches are in a phase.
    pub fn in_phase(&self, phase: &'static str, count: i64) {
        self.phases.get_or_create(&PhaseLabels { phase }).set(count);
    }
}

fn histogram((first, factor, buckets): (f64, f64, u16)) -> Histogram {
    Histogram::new(exponential_buckets(first, factor, buckets))
}

/// All figures.
#[derive(Debug, Clone)]
pub struct Meters {
    registry: Arc<Registry>,
    /// Pods, or what is new of them, handed to an agent.
    pub hand_overs: Meter,
    /// Statuses written to the API server.
    pub status_writes: Meter,
    /// API objects removed.
    pub removals: Meter,
    /// Pods that have a worker now.
    pub workers: Gauge,
    /// Image caches.
    pub image_caches: CacheMeters,
}

impl Default for Meters {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("larder_provider");
        let hand_overs = Meter::new(&mut registry, "pod_hand_overs", "pods handed to an agent");
        let status_writes = Meter::new(&mut registry, "pod_status_writes", "pod statuses written to the API server");
        let removals = Meter::new(&mut registry, "pod_removals", "pod objects removed from the API server");
        let workers = Gauge::default();
        registry.register("pod_workers", "Pods that have a worker now", workers.clone());
        let image_caches = CacheMeters::new(&mut registry);
        Self { registry: Arc::new(registry), hand_overs, status_writes, removals, workers, image_caches }
    }
}

impl Meters {
    /// Writes all figures as text.
    ///
    /// # Errors
    /// When `out` does not take it.
    pub fn write(&self, out: &mut impl fmt::Write) -> fmt::Result {
        text::encode(out, &self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_text() {
        let meters = Meters::default();
        meters.clone().hand_overs.record(Outcome::Done, Duration::from_millis(3));
        meters.workers.inc();
        meters.image_caches.chosen(&ChoiceLabels { outcome: "miss", reason: "NotReady" });
        meters.image_caches.built(true, Duration::from_millis(15));
        meters.image_caches.built(false, Duration::ZERO);
        meters.image_caches.in_phase("Ready", 3);
        meters.image_caches.matched(Duration::from_micros(160));
        let mut text = String::new();
        meters.write(&mut text).unwrap();
        for line in [
            r#"larder_provider_pod_hand_overs_total{outcome="Done"} 1"#,
            r#"larder_provider_pod_hand_overs_seconds_bucket{le="0.004"} 1"#,
            "larder_provider_pod_workers 1",
            r#"larder_provider_image_cache_choices_total{outcome="miss",reason="NotReady"} 1"#,
            r#"larder_provider_image_cache_builds_total{outcome="ready"} 1"#,
            r#"larder_provider_image_cache_builds_total{outcome="failed"} 1"#,
            r#"larder_provider_image_cache_build_seconds_bucket{le="0.02"} 1"#,
            r#"larder_provider_image_cache_build_seconds_count 1"#,
            r#"larder_provider_image_cache_match_seconds_bucket{le="0.0002"} 1"#,
            r#"larder_provider_image_caches{phase="Ready"} 3"#,
        ] {
            assert!(text.lines().any(|there| there == line), "{line} is not in\n{text}");
        }
    }
}
