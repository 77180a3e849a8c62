//! `larderctl store ls|du|prune|verify`.

use std::process::ExitCode;

use jiff::Timestamp;
use larder_proto::v1;
use larder_proto::v1::verify_store_response::Item;
use serde::Serialize;

use crate::agent::{Agent, CtlError, refused};
use crate::figures;
use crate::output::{self, Output, Row};
use crate::progress;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    diff_id: String,
    size_bytes: u64,
    disk_bytes: u64,
    in_use: bool,
    images: u32,
    last_use: Option<Timestamp>,
}

impl Row for Layer {
    const COLUMNS: &'static [&'static str] = &["LAYER", "ON DISK", "IMAGES", "IN USE", "LAST USE"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            figures::short(&self.diff_id),
            figures::bytes(self.disk_bytes),
            self.images.to_string(),
            figures::yes(self.in_use),
            figures::age(self.last_use, now),
        ]
    }
}

pub(crate) async fn list(agent: &Agent, output: Output) -> Result<(), CtlError> {
    let answer = agent.store().list_layers(v1::ListLayersRequest {}).await.map_err(refused("list layers"))?;
    let layer = |layer: v1::StoredLayer| Layer {
        diff_id: layer.diff_id,
        size_bytes: layer.size_bytes,
        disk_bytes: layer.disk_bytes,
        in_use: layer.in_use,
        images: layer.images,
        last_use: figures::time(layer.last_use),
    };
    let layers: Vec<Layer> = answer.into_inner().layers.into_iter().map(layer).collect();
    output.list(&layers, "No layers.")
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    root: String,
    snapshotter: String,
    disk_size_bytes: u64,
    disk_free_bytes: u64,
    layers: u64,
    layer_bytes: u64,
    used_layer_bytes: u64,
    images: u64,
    image_bytes: u64,
    document_bytes: u64,
    unfinished_bytes: u64,
    index_bytes: u64,
    index_rebuilds: u64,
    removed_at_start: u64,
}

pub(crate) async fn usage(agent: &Agent, output: Output) -> Result<(), CtlError> {
    let answer = agent.store().get_store_usage(v1::GetStoreUsageRequest {}).await;
    let usage = answer.map_err(refused("sum up the store"))?.into_inner();
    let usage = Usage {
        root: usage.root,
        snapshotter: usage.snapshotter,
        disk_size_bytes: usage.disk_size_bytes,
        disk_free_bytes: usage.disk_free_bytes,
        layers: usage.layers,
        layer_bytes: usage.layer_bytes,
        used_layer_bytes: usage.used_layer_bytes,
        images: usage.images,
        image_bytes: usage.image_bytes,
        document_bytes: usage.document_bytes,
        unfinished_bytes: usage.unfinished_bytes,
        index_bytes: usage.index_bytes,
        index_rebuilds: usage.index_rebuilds,
        removed_at_start: usage.removed_at_start,
    };
    output.one(&usage, usage_words)
}

fn usage_words(usage: &Usage) -> String {
    let bytes = figures::bytes;
    let free = usage.layer_bytes.saturating_sub(usage.used_layer_bytes);
    let used = usage.disk_size_bytes.saturating_sub(usage.disk_free_bytes);
    let lines = [
        ("Store", format!("{} ({})", usage.root, usage.snapshotter)),
        (
            "Disk",
            format!(
                "{}, {} free, {}% used",
                bytes(usage.disk_size_bytes),
                bytes(usage.disk_free_bytes),
                figures::percent(used, usage.disk_size_bytes)
            ),
        ),
        ("Layers", format!("{} in {}", bytes(usage.layer_bytes), usage.layers)),
        ("  in use", bytes(usage.used_layer_bytes)),
        ("  can be freed", bytes(free)),
        ("Images", format!("{} in {}", bytes(usage.image_bytes), usage.images)),
        ("Documents", bytes(usage.document_bytes)),
        ("Unfinished", bytes(usage.unfinished_bytes)),
        ("Index", bytes(usage.index_bytes)),
    ];
    lines.map(|(name, value)| format!("{name:<16}{value}")).join("\n")
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pruned {
    dry_run: bool,
    images: Vec<String>,
    layers: Vec<String>,
    freed_bytes: u64,
}

pub(crate) async fn prune(agent: &Agent, output: Output, dry_run: bool) -> Result<(), CtlError> {
    const DOING: &str = "remove what nobody uses";
    let answer = agent.store().prune_store(v1::PruneStoreRequest { dry_run }).await.map_err(refused(DOING))?;
    let pruned = answer.into_inner().message().await.map_err(refused(DOING))?.ok_or(CtlError::CutShort(DOING))?;
    let (images, layers, freed_bytes) = (pruned.images, pruned.layers, pruned.freed_bytes);
    output.one(&Pruned { dry_run, images, layers, freed_bytes }, |pruned| {
        let verb = if pruned.dry_run { "Would remove" } else { "Removed" };
        let freed = figures::bytes(pruned.freed_bytes);
        format!("{verb} {} layers and {} images: {freed}", pruned.layers.len(), pruned.images.len())
    })
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    kind: &'static str,
    name: String,
    why: String,
    outcome: &'static str,
    detail: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified {
    layers: u64,
    unhashed_layers: u64,
    bytes: u64,
    images: u64,
    documents: u64,
    wrong: u64,
    righted: u64,
    findings: Vec<Finding>,
}

/// Fails when something is wrong in the end.
pub(crate) async fn verify(agent: &Agent, output: Output, repair: bool) -> Result<ExitCode, CtlError> {
    const DOING: &str = "verify the store";
    let answer = agent.store().verify_store(v1::VerifyStoreRequest { repair }).await.map_err(refused(DOING))?;
    let mut steps = answer.into_inner();
    let (bar, mut findings) = (progress::bar(), Vec::new());
    while let Some(step) = steps.message().await.map_err(refused(DOING))? {
        match step.item {
            Some(Item::Progress(progress)) => {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
            }
            Some(Item::Finding(found)) => {
                let found = finding(found);
                if output.is_for_people() {
                    // Above the bar, and at once: a large store takes minutes.
                    bar.suspend(|| output::line(&finding_words(&found)))?;
                }
                findings.push(found);
            }
            Some(Item::Summary(summary)) => {
                bar.finish_and_clear();
                let left = summary.wrong.saturating_sub(summary.righted);
                output.one(&verified(&summary, findings), |verified| verified_words(verified, repair))?;
                return Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            // A newer agent tells more than we know.
            None => {}
        }
    }
    Err(CtlError::CutShort(DOING))
}

fn finding(found: v1::VerifyFinding) -> Finding {
    let kind = match found.kind() {
        v1::StoreItemKind::Unspecified => "item",
        v1::StoreItemKind::Layer => "layer",
        v1::StoreItemKind::Image => "image",
        v1::StoreItemKind::Document => "document",
        v1::StoreItemKind::Cache => "cache",
    };
    let outcome = match found.outcome() {
        v1::VerifyOutcome::Unspecified | v1::VerifyOutcome::Told => "wrong",
        v1::VerifyOutcome::Repaired => "repaired",
        v1::VerifyOutcome::Removed => "removed",
        v1::VerifyOutcome::Left => "not repaired",
    };
    Finding { kind, name: found.name, why: found.why, outcome, detail: found.detail }
}

fn finding_words(found: &Finding) -> String {
    let detail = if found.detail.is_empty() { String::new() } else { format!(" ({})", found.detail) };
    format!("{}: {} {}: {}{detail}", found.outcome, found.kind, found.name, found.why)
}

fn verified(summary: &v1::VerifySummary, findings: Vec<Finding>) -> Verified {
    Verified {
        layers: summary.layers,
        unhashed_layers: summary.unhashed_layers,
        bytes: summary.bytes,
        images: summary.images,
        documents: summary.documents,
        wrong: summary.wrong,
        righted: summary.righted,
        findings,
    }
}

fn verified_words(verified: &Verified, repair: bool) -> String {
    let mut words = format!(
        "Read {} layers ({}), {} images, {} documents: ",
        verified.layers,
        figures::bytes(verified.bytes),
        verified.images,
        verified.documents
    );
    let left = verified.wrong.saturating_sub(verified.righted);
    words.push_str(&match (verified.wrong, left) {
        (0, _) => "all as they should be.".to_owned(),
        (wrong, 0) => format!("{wrong} wrong, all put right."),
        (wrong, left) if repair => format!("{wrong} wrong, {left} could not be put right."),
        (wrong, _) => format!("{wrong} wrong. `larderctl store verify --repair` fetches them again."),
    });
    if verified.unhashed_layers > 0 {
        let count = verified.unhashed_layers;
        words.push_str(&format!(
            "\n{count} layers were unpacked by a version that took no digests of files: everything but their content was \
             compared. They get digests when they are pulled again."
        ));
    }
    words
}
