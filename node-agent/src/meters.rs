//! What the agent counts and times of its own work, in the text format of OpenMetrics.
//!
//! Cheap to clone; every clone counts into the same figures.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// From a millisecond to a minute, each twice the one before.
const BUCKETS: (f64, f64, u16) = (0.001, 2.0, 17);

/// A step of a pod's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum StartStep {
    /// From the wish to all containers running.
    Total,
    /// Waiting for a permit to start a container.
    Queue,
    /// Namespaces and network.
    Sandbox,
    /// Volumes.
    Volumes,
    /// Images.
    Image,
    /// From the permit to the process.
    Runtime,
    /// Telling the status.
    Status,
}

/// How an image came, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ImageSource {
    /// The matched cache had it.
    Cache,
    /// The registry was asked.
    Registry,
    /// It is not to be had for now.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    step: StartStep,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: ImageSource,
}

/// All figures.
#[derive(Debug, Clone)]
pub struct Meters {
    registry: Arc<Registry>,
    start_seconds: Family<StepLabels, Histogram>,
    images: Family<SourceLabels, Counter>,
    saved_bytes: Counter,
    /// Store indexes that were lost or could not be used, and were made anew from the files.
    pub index_rebuilds: Counter,
    evicted_layers: Counter,
    evicted_bytes: Counter,
    /// Containers that run again after they have ended.
    pub restarts: Counter,
    /// Pods that have a worker now.
    pub pods: Gauge,
    received_bytes: Counter,
    /// Layers that came from registries and are whole.
    pub layers: Counter,
    /// Images whose layers are coming now.
    pub pulls: Gauge,
}

impl Default for Meters {
    fn default() -> Self {
        let new_histogram: fn() -> Histogram = || {
            let (first, factor, buckets) = BUCKETS;
            Histogram::new(exponential_buckets(first, factor, buckets))
        };
        let start_seconds = Family::new_with_constructor(new_histogram);
        let (images, restarts, pods) = (Family::default(), Counter::default(), Gauge::default());
        let (received_bytes, layers, pulls) = (Counter::default(), Counter::default(), Gauge::default());
        let mut registry = Registry::with_prefix("larder_agent");
        registry.register("pod_start_seconds", "Time of a pod's start, by step", start_seconds.clone());
        registry.register("images", "Images that containers asked for, by where they came from", images.clone());
        let saved_bytes = Counter::default();
        let help = "Bytes that no registry had to send, because a matched image cache held the image";
        registry.register("image_cache_saved_bytes", help, saved_bytes.clone());
        let (index_rebuilds, evicted_layers, evicted_bytes) =
            (Counter::default(), Counter::default(), Counter::default());
        registry.register(
            "store_index_rebuilds",
            "Store indexes that were lost or could not be used, made anew from the files",
            index_rebuilds.clone(),
        );
        registry.register("store_evicted_layers", "Unused layers that were removed", evicted_layers.clone());
        registry.register("store_evicted_bytes", "Bytes that unused layers had on disk", evicted_bytes.clone());
        registry.register("container_restarts", "Containers started again after they had ended", restarts.clone());
        registry.register("pods", "Pods that have a worker now", pods.clone());
        let help = "Bytes of layers and configurations received from registries";
        registry.register("registry_received_bytes", help, received_bytes.clone());
        registry.register("layers_pulled", "Layers that came from registries and are whole", layers.clone());
        registry.register("pulls", "Images whose layers are coming now", pulls.clone());
        let registry = Arc::new(registry);
        Self {
            registry,
            start_seconds,
            images,
            saved_bytes,
            index_rebuilds,
            evicted_layers,
            evicted_bytes,
            restarts,
            pods,
            received_bytes,
            layers,
            pulls,
        }
    }
}

impl Meters {
    /// Takes the time of a step of a start.
    pub fn start_step(&self, step: StartStep, took: Duration) {
        self.start_seconds.get_or_create(&StepLabels { step }).observe(took.as_secs_f64());
    }

    /// Counts an image.
    pub fn image(&self, source: ImageSource) {
        self.images.get_or_create(&SourceLabels { source }).inc();
    }

    /// Counts what no registry had to send.
    pub fn saved(&self, bytes: u64) {
        self.saved_bytes.inc_by(bytes);
    }

    /// Counts what a registry has sent.
    pub fn received(&self, bytes: usize) {
        self.received_bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Counts layers that were removed because nobody used them.
    pub fn evicted(&self, layers: u64, bytes: u64) {
        self.evicted_layers.inc_by(layers);
        self.evicted_bytes.inc_by(bytes);
    }

    /// All figures as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail; a figure that cannot be written is left out.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_text() {
        let meters = Meters::default();
        meters.clone().start_step(StartStep::Runtime, Duration::from_millis(3));
        meters.image(ImageSource::Cache);
        meters.pods.inc();
        meters.received(7);
        meters.saved(8);
        meters.index_rebuilds.inc();
        meters.evicted(2, 300);
        let text = meters.text();
        for line in [
            r#"larder_agent_pod_start_seconds_bucket{le="0.004",step="Runtime"} 1"#,
            r#"larder_agent_images_total{source="Cache"} 1"#,
            "larder_agent_pods 1",
            "larder_agent_registry_received_bytes_total 7",
            "larder_agent_image_cache_saved_bytes_total 8",
            "larder_agent_store_index_rebuilds_total 1",
            "larder_agent_store_evicted_layers_total 2",
            "larder_agent_store_evicted_bytes_total 300",
        ] {
            assert!(text.lines().any(|there| there == line), "{line} is not in\n{text}");
        }
    }
}
