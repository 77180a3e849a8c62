//! `larderctl caches`.

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
    let mut caches = agent.caches();
    let answer = caches.watch_image_caches(v1::WatchImageCachesRequest {}).await.map_err(refused(DOING))?;
    // The full list is the first element.
    let first = answer.into_inner().message().await.map_err(refused(DOING))?;
    let Some(v1::WatchImageCachesResponse { item: Some(Item::List(list)) }) = first else {
        return Err(CtlError::CutShort(DOING));
    };
    let caches: Vec<Cache> = list.caches.into_iter().map(cache).collect();
    output.list(&caches, "No image caches.")
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
    Cache {
        id: cache.id,
        name: cache.name,
        phase,
        progress_percent: cache.progress_percent,
        reason: cache.reason,
        images: cache.images.into_iter().map(image).collect(),
        started: figures::time(cache.started),
        last_updated: figures::time(cache.last_updated),
    }
}
