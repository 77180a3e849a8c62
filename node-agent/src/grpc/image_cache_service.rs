//! The image caches of this host, as the provider asks for them.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use larder_proto::v1;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Services, convert};
use crate::{
    chain::Chain,
    image::{
        BuildCache, BuildEvent, CacheChange, CacheError, CacheList, CachePhase, CacheState, CachedImage, ImageService,
        RegistryAccess, changes,
    },
};

#[derive(Debug)]
pub(super) struct ImageCacheApi {
    images: Arc<ImageService>,
    stop: CancellationToken,
}

impl ImageCacheApi {
    pub(super) fn new(services: &Services) -> Self {
        Self { images: Arc::clone(&services.images), stop: services.stop.clone() }
    }
}

#[tonic::async_trait]
impl v1::image_cache_service_server::ImageCacheService for ImageCacheApi {
    type WatchImageCachesStream = Pin<Box<dyn Stream<Item = Result<v1::WatchImageCachesResponse, Status>> + Send>>;

    async fn build_image_cache(
        &self,
        request: Request<v1::BuildImageCacheRequest>,
    ) -> Result<Response<v1::BuildImageCacheResponse>, Status> {
        self.images.build_cache(wish(request.into_inner())).await.map_err(|error| status(&error))?;
        Ok(Response::new(v1::BuildImageCacheResponse {}))
    }

    async fn delete_image_cache(
        &self,
        request: Request<v1::DeleteImageCacheRequest>,
    ) -> Result<Response<v1::DeleteImageCacheResponse>, Status> {
        self.images.delete_cache(&request.into_inner().id).await.map_err(|error| status(&error))?;
        Ok(Response::new(v1::DeleteImageCacheResponse {}))
    }

    async fn watch_image_caches(
        &self,
        _: Request<v1::WatchImageCachesRequest>,
    ) -> Result<Response<Self::WatchImageCachesStream>, Status> {
        let mut list = self.images.watch_caches();
        let known = list.borrow_and_update().clone();
        let caches = known.values().map(|cache| state(cache)).collect();
        let first = item(v1::watch_image_caches_response::Item::List(v1::ImageCacheList { caches }));
        let answers = stream::once(async move { first })
            .chain(differences(list, known))
            .take_until(self.stop.clone().cancelled_owned());
        Ok(Response::new(Box::pin(answers)))
    }
}

/// What changes after `known`. A slow reader is told of the newest state only, so nothing piles up.
fn differences(
    list: watch::Receiver<CacheList>,
    known: CacheList,
) -> impl Stream<Item = Result<v1::WatchImageCachesResponse, Status>> + Send {
    let steps = stream::unfold((list, known), |(mut list, known)| async move {
        // The sender is gone when the agent ends, and so is the stream.
        list.changed().await.ok()?;
        let now = list.borrow_and_update().clone();
        let told: Vec<_> = changes(&known, &now).iter().map(change).collect();
        Some((stream::iter(told), (list, now)))
    });
    steps.flatten()
}

fn item(item: v1::watch_image_caches_response::Item) -> Result<v1::WatchImageCachesResponse, Status> {
    Ok(v1::WatchImageCachesResponse { item: Some(item) })
}

fn change(change: &CacheChange) -> Result<v1::WatchImageCachesResponse, Status> {
    use v1::watch_image_caches_response::Item;
    item(match change {
        CacheChange::Changed(cache) => Item::Changed(state(cache)),
        CacheChange::Deleted(id) => Item::Deleted(id.clone()),
    })
}

fn wish(request: v1::BuildImageCacheRequest) -> BuildCache {
    BuildCache {
        id: request.id,
        name: request.name,
        images: request.images,
        access: RegistryAccess {
            credentials: request.credentials.into_iter().map(convert::credential).collect(),
            plain_http: request.plain_http_registries,
            insecure: request.insecure_registries,
        },
        size_limit_bytes: request.size_limit_bytes,
        refresh: request.refresh,
    }
}

fn state(cache: &CacheState) -> v1::ImageCacheState {
    let phase = match cache.phase {
        CachePhase::Creating => v1::ImageCachePhase::Creating,
        CachePhase::Ready => v1::ImageCachePhase::Ready,
        CachePhase::Failed => v1::ImageCachePhase::Failed,
        CachePhase::Updating => v1::ImageCachePhase::Updating,
        CachePhase::UpdateFailed => v1::ImageCachePhase::UpdateFailed,
    };
    v1::ImageCacheState {
        id: cache.id.clone(),
        name: cache.name.clone(),
        generation: cache.generation,
        phase: phase.into(),
        progress_percent: cache.progress_percent.into(),
        reason: cache.reason.clone(),
        images: cache.images.iter().map(image).collect(),
        events: cache.events.iter().map(event).collect(),
        started: Some(convert::timestamp(cache.started)),
        last_updated: Some(convert::timestamp(cache.last_updated)),
        ask_again: cache.ask_again,
        refresh: cache.refresh.clone(),
        verifies_credentials: true,
    }
}

fn image(image: &CachedImage) -> v1::CachedImage {
    v1::CachedImage {
        reference: image.reference.clone(),
        manifest_digest: image.manifest.to_string(),
        index_digest: image.index.map(|index| index.to_string()).unwrap_or_default(),
        size_bytes: image.size_bytes,
    }
}

fn event(event: &BuildEvent) -> v1::BuildEvent {
    v1::BuildEvent {
        name: event.name.clone(),
        reason: event.reason.clone(),
        message: event.message.clone(),
        r#type: if event.warning { "Warning" } else { "Normal" }.to_owned(),
        time: Some(convert::timestamp(event.time)),
    }
}

fn status(error: &CacheError) -> Status {
    let message = Chain(error).to_string();
    match error {
        CacheError::NoImages(_) | CacheError::InvalidId(_) => Status::invalid_argument(message),
        CacheError::Store(_) => Status::internal(message),
        CacheError::Closed => Status::unavailable(message),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;

    fn cache(generation: u64) -> Arc<CacheState> {
        let time = Timestamp::from_second(7).unwrap();
        let event =
            BuildEvent { name: "nginx".into(), reason: "Failed".into(), message: "no".into(), warning: true, time };
        Arc::new(CacheState {
            id: "imc-1".into(),
            name: "one".into(),
            generation,
            phase: CachePhase::UpdateFailed,
            progress_percent: 40,
            reason: "no".into(),
            ask_again: true,
            refresh: "2".to_owned(),
            images: vec![CachedImage {
                reference: "nginx".into(),
                manifest: crate::digest::Digest::of(b"m"),
                index: None,
                size_bytes: 3,
            }],
            events: vec![event],
            started: time,
            last_updated: time,
        })
    }

    #[test]
    fn tells_all_of_a_cache() {
        let sent = state(&cache(5));
        assert_eq!((sent.id.as_str(), sent.name.as_str(), sent.generation), ("imc-1", "one", 5));
        assert_eq!((sent.phase(), sent.progress_percent), (v1::ImageCachePhase::UpdateFailed, 40));
        assert!(sent.ask_again);
        assert_eq!(sent.refresh, "2");
        assert_eq!((sent.images[0].index_digest.as_str(), sent.images[0].size_bytes), ("", 3));
        assert_eq!((sent.events[0].r#type.as_str(), sent.events[0].time.unwrap().seconds), ("Warning", 7));
    }

    #[tokio::test]
    async fn a_watcher_is_told_of_differences_and_the_newest_only() {
        let list = |caches: &[Arc<CacheState>]| -> CacheList {
            Arc::new(caches.iter().map(|cache| (cache.id.clone(), Arc::clone(cache))).collect::<BTreeMap<_, _>>())
        };
        let (sender, receiver) = watch::channel(list(&[]));
        let mut stream = Box::pin(differences(receiver, list(&[])));
        sender.send_replace(list(&[cache(1)]));
        sender.send_replace(list(&[cache(2)]));
        let told = stream.next().await.unwrap().unwrap().item.unwrap();
        assert_eq!(told, v1::watch_image_caches_response::Item::Changed(state(&cache(2))));
        sender.send_replace(list(&[]));
        let told = stream.next().await.unwrap().unwrap().item.unwrap();
        assert_eq!(told, v1::watch_image_caches_response::Item::Deleted("imc-1".into()));
        drop(sender);
        assert!(stream.next().await.is_none());
    }
}
