//! The store of this host, as `larderctl` asks for it.

use std::{future::Future, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use larder_proto::v1;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Services, convert};
use crate::{
    chain::Chain,
    image::{
        EnsureImage, EnsureImageError, ImageProgress, ImageService, Images as _, Moved, PresentImage, PullPolicy,
        RegistryAccess, Waiter,
        inventory::{InventoryError, Prune, StoredImage, StoredLayer, Usage},
        verify::{Finding, Outcome, Subject, Verified, VerifyError, VerifyStep},
    },
    snapshot::Mend,
    store::eviction::Plan,
};

/// Steps that wait for a slow caller; what is more is left out where it is about to be out of date.
const QUEUE: usize = 16;

#[derive(Debug)]
pub(super) struct StoreApi {
    images: Arc<ImageService>,
    stop: CancellationToken,
}

impl StoreApi {
    pub(super) fn new(services: &Services) -> Self {
        Self { images: Arc::clone(&services.images), stop: services.stop.clone() }
    }

    /// Ends a stream with the agent.
    fn answer<T: Send + 'static>(
        &self,
        items: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Response<Answers<T>> {
        Response::new(Box::pin(items.take_until(self.stop.clone().cancelled_owned())))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::store_service_server::StoreService for StoreApi {
    type PruneStoreStream = Answers<v1::PruneStoreResponse>;
    type VerifyStoreStream = Answers<v1::VerifyStoreResponse>;
    type PullImageStream = Answers<v1::PullImageResponse>;

    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Result<Response<v1::ListImagesResponse>, Status> {
        let images = self.images.stored_images().await.map_err(|error| inventory_status(&error))?;
        Ok(Response::new(v1::ListImagesResponse { images: images.into_iter().map(image).collect() }))
    }

    async fn list_layers(&self, _: Request<v1::ListLayersRequest>) -> Result<Response<v1::ListLayersResponse>, Status> {
        let layers = self.images.stored_layers().await.map_err(|error| inventory_status(&error))?;
        Ok(Response::new(v1::ListLayersResponse { layers: layers.iter().map(layer).collect() }))
    }

    async fn get_store_usage(&self, _: Request<v1::GetStoreUsageRequest>) -> Result<Response<v1::StoreUsage>, Status> {
        let found = self.images.usage().await.map_err(|error| inventory_status(&error))?;
        Ok(Response::new(usage(&found)))
    }

    async fn prune_store(
        &self,
        request: Request<v1::PruneStoreRequest>,
    ) -> Result<Response<Self::PruneStoreStream>, Status> {
        let how = if request.into_inner().dry_run { Prune::OnlySay } else { Prune::Remove };
        let images = Arc::clone(&self.images);
        let pruned = async move { images.prune(how).await.map(pruned).map_err(|error| inventory_status(&error)) };
        Ok(self.answer(stream::once(pruned)))
    }

    async fn verify_store(
        &self,
        request: Request<v1::VerifyStoreRequest>,
    ) -> Result<Response<Self::VerifyStoreStream>, Status> {
        use v1::verify_store_response::Item;
        let mend = if request.into_inner().repair { Mend::Yes } else { Mend::No };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let images = Arc::clone(&self.images);
        let work = async move { images.verify(mend, sender).await };
        let items = told(receiver, work).map(|told| {
            let item = match told {
                Told::Step(VerifyStep::Read { done_bytes, total_bytes }) => {
                    Item::Progress(v1::VerifyProgress { done_bytes, total_bytes })
                }
                Told::Step(VerifyStep::Found(found)) => Item::Finding(finding(found)),
                Told::End(Ok(verified)) => Item::Summary(summary(verified)),
                Told::End(Err(error)) => return Err(verify_status(&error)),
            };
            Ok(v1::VerifyStoreResponse { item: Some(item) })
        });
        Ok(self.answer(items))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        use v1::pull_image_response::Item;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (images, wish) = (Arc::clone(&self.images), wish(request.into_inner()));
        let work = async move { images.ensure(wish, sender).await };
        let items = told(receiver, work).filter_map(|told| {
            let item = match told {
                Told::Step(ImageProgress::Layers(moved)) => Some(Ok(Item::Progress(progress(moved)))),
                Told::Step(ImageProgress::Pulling | ImageProgress::Pulled { .. } | ImageProgress::AlreadyPresent) => {
                    None
                }
                Told::End(Ok(image)) => Some(Ok(Item::Done(pulled(&image)))),
                Told::End(Err(error)) => Some(Err(pull_status(&error))),
            };
            let answer = item.map(|item| item.map(|item| v1::PullImageResponse { item: Some(item) }));
            std::future::ready(answer)
        });
        Ok(self.answer(items))
    }
}

/// What is told of some work: its steps, then what came of it.
enum Told<T, R> {
    Step(T),
    End(R),
}

/// Drives `work` and passes on what it tells; both end when the stream is dropped.
fn told<T, R>(
    steps: mpsc::Receiver<T>,
    work: impl Future<Output = R> + Send + 'static,
) -> impl Stream<Item = Told<T, R>> + Send
where
    T: Send + 'static,
    R: Send + 'static,
{
    enum State<T, R> {
        Working(mpsc::Receiver<T>, Pin<Box<dyn Future<Output = R> + Send>>),
        Worked(mpsc::Receiver<T>, R),
        Ended,
    }
    stream::unfold(State::Working(steps, Box::pin(work)), |mut state| async move {
        if let State::Working(mut steps, mut work) = state {
            tokio::select! {
                biased;
                // A step stays in the queue, and work in its place, when the other comes first.
                Some(step) = steps.recv() => return Some((Told::Step(step), State::Working(steps, work))),
                result = &mut work => state = State::Worked(steps, result),
            }
        }
        match state {
            State::Worked(mut steps, result) => Some(match steps.try_recv() {
                Ok(step) => (Told::Step(step), State::Worked(steps, result)),
                Err(_) => (Told::End(result), State::Ended),
            }),
            State::Working(..) | State::Ended => None,
        }
    })
}

fn wish(request: v1::PullImageRequest) -> EnsureImage {
    EnsureImage {
        reference: request.reference,
        policy: PullPolicy::Always,
        access: RegistryAccess {
            credentials: request.credentials.into_iter().map(convert::credential).collect(),
            plain_http: request.plain_http_registries,
            insecure: request.insecure_registries,
        },
        cache: None,
        waiter: Waiter::Command,
    }
}

fn progress(moved: Moved) -> v1::PullProgress {
    v1::PullProgress {
        done_bytes: moved.done_bytes,
        total_bytes: moved.total_bytes,
        done_layers: moved.done_layers,
        total_layers: moved.total_layers,
    }
}

fn pulled(image: &PresentImage) -> v1::PulledImage {
    v1::PulledImage {
        reference: image.reference.clone(),
        image_id: image.image_id.clone(),
        manifest_digest: image.manifest.to_string(),
        size_bytes: image.size_bytes,
    }
}

fn image(image: StoredImage) -> v1::StoredImage {
    v1::StoredImage {
        manifest_digest: image.manifest.to_string(),
        references: image.references,
        layers: image.diff_ids.iter().map(ToString::to_string).collect(),
        size_bytes: image.size_bytes,
        caches: image.caches,
        in_use: image.in_use,
        last_use: time(image.last_use),
    }
}

fn layer(layer: &StoredLayer) -> v1::StoredLayer {
    v1::StoredLayer {
        diff_id: layer.record.diff_id.to_string(),
        size_bytes: layer.record.size_bytes,
        disk_bytes: layer.record.disk_bytes,
        in_use: layer.in_use,
        images: u32::try_from(layer.images).unwrap_or(u32::MAX),
        last_use: time(layer.record.last_use),
    }
}

fn usage(usage: &Usage) -> v1::StoreUsage {
    v1::StoreUsage {
        root: usage.root.display().to_string(),
        snapshotter: usage.driver.name().to_owned(),
        disk_size_bytes: usage.disk.size_bytes,
        disk_free_bytes: usage.disk.free_bytes,
        layers: usage.layers as u64,
        layer_bytes: usage.layer_bytes,
        used_layer_bytes: usage.used_bytes,
        images: usage.images as u64,
        image_bytes: usage.image_bytes,
        document_bytes: usage.document_bytes,
        unfinished_bytes: usage.unfinished_bytes,
        index_bytes: usage.index_bytes,
        index_rebuilds: usage.recovered.index_rebuilds,
        removed_at_start: usage.recovered.removed,
    }
}

fn pruned(plan: Plan) -> v1::PruneStoreResponse {
    v1::PruneStoreResponse {
        images: plan.images.iter().map(ToString::to_string).collect(),
        layers: plan.layers.iter().map(ToString::to_string).collect(),
        freed_bytes: plan.freed_bytes,
    }
}

fn finding(finding: Finding) -> v1::VerifyFinding {
    let (kind, name) = match finding.subject {
        Subject::Layer(diff_id) => (v1::StoreItemKind::Layer, diff_id.to_string()),
        Subject::Image(manifest) => (v1::StoreItemKind::Image, manifest.to_string()),
        Subject::Document(digest) => (v1::StoreItemKind::Document, digest.to_string()),
        Subject::Cache(id) => (v1::StoreItemKind::Cache, id),
    };
    let (outcome, detail) = match finding.outcome {
        Outcome::Told => (v1::VerifyOutcome::Told, String::new()),
        Outcome::Repaired => (v1::VerifyOutcome::Repaired, String::new()),
        Outcome::Removed => (v1::VerifyOutcome::Removed, String::new()),
        Outcome::Left(why) => (v1::VerifyOutcome::Left, why),
    };
    v1::VerifyFinding { kind: kind.into(), name, why: finding.why, outcome: outcome.into(), detail }
}

fn summary(verified: Verified) -> v1::VerifySummary {
    v1::VerifySummary {
        layers: verified.layers,
        unhashed_layers: verified.unhashed_layers,
        bytes: verified.bytes,
        images: verified.images,
        documents: verified.documents,
        wrong: verified.wrong,
        righted: verified.righted,
    }
}

/// Seconds since 1970; 0 is not known.
fn time(seconds: u64) -> Option<prost_types::Timestamp> {
    let seconds = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    Timestamp::from_second(seconds).ok().map(convert::timestamp)
}

fn inventory_status(error: &InventoryError) -> Status {
    let message = Chain(error).to_string();
    match error {
        InventoryError::Store(_) | InventoryError::Snapshot(_) => Status::internal(message),
        InventoryError::Closed => Status::unavailable(message),
    }
}

fn verify_status(error: &VerifyError) -> Status {
    match error {
        VerifyError::Busy => Status::failed_precondition(error.to_string()),
        VerifyError::Inventory(error) => inventory_status(error),
    }
}

fn pull_status(error: &EnsureImageError) -> Status {
    let message = error.to_string();
    match error {
        EnsureImageError::InvalidReference { .. } => Status::invalid_argument(message),
        EnsureImageError::NeverPull { .. } | EnsureImageError::NeverVerified { .. } | EnsureImageError::Pull { .. } => {
            Status::unavailable(message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_comes_after_every_step() {
        let (sender, steps) = mpsc::channel(2);
        let work = async move {
            for step in 0..5 {
                sender.send(step).await.unwrap();
            }
            "done"
        };
        let all: Vec<String> = told(steps, work)
            .map(|told| match told {
                Told::Step(step) => step.to_string(),
                Told::End(end) => end.to_owned(),
            })
            .collect()
            .await;
        assert_eq!(all, ["0", "1", "2", "3", "4", "done"]);
    }

    #[test]
    fn a_time_that_is_not_known_is_not_told() {
        assert_eq!(time(0), None);
        assert_eq!(time(7).unwrap().seconds, 7);
        assert_eq!(time(u64::MAX), None);
    }
}
