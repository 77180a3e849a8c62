//! `larderctl cache ls|show`.

use jiff::Timestamp;
use larder_proto::v1;
use larder_proto::v1::watch_image_caches_response::Item;
use serde::Serialize;

use crate::agent::{Agent, CtlError, refused};
use crate::figures;
use crate::output::{Output, Row};

const DOING: &str = "list image caches";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cache {
    id: String,
    name: String,
    phase: &'static str,
    progress_percent: u32,
    reason: String,
    images: Vec<Image>,
    events: Vec<Event>,
    started: Option<Timestamp>,
    last_updated: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    reference: String,
    manifest: String,
    size_bytes: u64,
}

/// A step of a build.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    name: String,
    reason: String,
    message: String,
    #[serde(rename = "type")]
    kind: String,
    time: Option<Timestamp>,
}

impl Row for Cache {
    const COLUMNS: &'static [&'static str] = &["ID", "NAME", "PHASE", "PROGRESS", "IMAGES", "SIZE", "AGE", "REASON"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.id.clone(),
            self.name.clone(),
            self.phase.to_owned(),
            format!("{}%", self.progress_percent),
            self.images.len().to_string(),
            figures::bytes(self.images.iter().map(|image| image.size_bytes).sum()),
            figures::age(self.started, now),
            self.reason.clone(),
        ]
    }
}

pub(crate) async fn list(agent: &Agent, output: Output) -> Result<(), CtlError> {
    output.list(&all(agent).await?, "No image caches.")
}

/// One cache, by its id or name.
pub(crate) async fn show(agent: &Agent, output: Output, wanted: &str) -> Result<(), CtlError> {
    let mut caches = all(agent).await?.into_iter();
    let found = caches.find(|cache| cache.id == wanted || cache.name == wanted);
    let cache = found.ok_or_else(|| CtlError::NoCache(wanted.to_owned()))?;
    output.one(&cache, |cache| cache_words(cache, output.now()))
}

fn cache_words(cache: &Cache, now: Timestamp) -> String {
    let mut lines = vec![
        format!("{:<10}{}", "Id", cache.id),
        format!("{:<10}{}", "Name", cache.name),
        format!("{:<10}{}, {}%", "Phase", cache.phase, cache.progress_percent),
    ];
    if !cache.reason.is_empty() {
        lines.push(format!("{:<10}{}", "Reason", cache.reason));
    }
    for (number, image) in cache.images.iter().enumerate() {
        let title = if number == 0 { "Images" } else { "" };
        let (manifest, size) = (figures::short(&image.manifest), figures::bytes(image.size_bytes));
        lines.push(format!("{title:<10}{} {manifest} {size}", image.reference));
    }
    for (number, event) in cache.events.iter().enumerate() {
        let title = if number == 0 { "Steps" } else { "" };
        lines.push(format!("{title:<10}{} ago {}: {}", figures::age(event.time, now), event.reason, event.message));
    }
    lines.join("\n")
}

async fn all(agent: &Agent) -> Result<Vec<Cache>, CtlError> {
    let mut caches = agent.caches();
    let answer = caches.watch_image_caches(v1::WatchImageCachesRequest {}).await.map_err(refused(DOING))?;
    // The full list is the first element.
    let first = answer.into_inner().message().await.map_err(refused(DOING))?;
    let Some(v1::WatchImageCachesResponse { item: Some(Item::List(list)) }) = first else {
        return Err(CtlError::CutShort(DOING));
    };
    let mut caches: Vec<Cache> = list.caches.into_iter().map(cache).collect();
    caches.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(caches)
}

fn cache(cache: v1::ImageCacheState) -> Cache {
    let phase = match cache.phase() {
        v1::ImageCachePhase::Unspecified => "Unknown",
        v1::ImageCachePhase::Creating => "Creating",
        v1::ImageCachePhase::Ready => "Ready",
        v1::ImageCachePhase::Failed => "Failed",
        v1::ImageCachePhase::Updating => "Updating",
        v1::ImageCachePhase::UpdateFailed => "UpdateFailed",
    };
    let image = |image: v1::CachedImage| Image {
        reference: image.reference,
        manifest: image.manifest_digest,
        size_bytes: image.size_bytes,
    };
    let event = |event: v1::BuildEvent| Event {
        name: event.name,
        reason: event.reason,
        message: event.message,
        kind: event.r#type,
        time: figures::time(event.time),
    };
    Cache {
        id: cache.id,
        name: cache.name,
        phase,
        progress_percent: cache.progress_percent,
        reason: cache.reason,
        images: cache.images.into_iter().map(image).collect(),
        events: cache.events.into_iter().map(event).collect(),
        started: figures::time(cache.started),
        last_updated: figures::time(cache.last_updated),
    }
}
