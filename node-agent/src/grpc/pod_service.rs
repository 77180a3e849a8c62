//! The pods of this node, as the provider asks for them.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use larder_proto::v1;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Services, convert, reading};
use crate::{
    chain::Chain,
    pod::{
        logs::LogSource,
        publisher::{PodSnapshot, Subscription},
        supervisor::{Pods, RequestError},
        support::{self, Policy},
    },
};

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Debug)]
pub(super) struct PodApi {
    pods: Pods,
    logs: LogSource,
    policy: Policy,
    stop: CancellationToken,
}

impl PodApi {
    pub(super) fn new(services: &Services) -> Self {
        Self {
            pods: services.pods.clone(),
            logs: services.logs.clone(),
            policy: services.policy,
            stop: services.stop.clone(),
        }
    }
}

#[tonic::async_trait]
impl v1::pod_service_server::PodService for PodApi {
    type WatchPodsStream = Answers<v1::WatchPodsResponse>;
    type ReadLogsStream = Answers<v1::ReadLogsResponse>;

    async fn run_pod(&self, request: Request<v1::RunPodRequest>) -> Result<Response<v1::RunPodResponse>, Status> {
        let wish = convert::wish(request.into_inner())?;
        let known = self.pods.publisher.get(&wish.identity().uid).is_some();
        let check = if known { support::check_known } else { support::check };
        check(&wish.pod, self.policy).map_err(|refusal| Status::failed_precondition(refusal.to_string()))?;
        self.pods.run(wish).await.map_err(|error| status(&error))?;
        Ok(Response::new(v1::RunPodResponse {}))
    }

    async fn stop_pod(&self, request: Request<v1::StopPodRequest>) -> Result<Response<v1::StopPodResponse>, Status> {
        let request = request.into_inner();
        let grace = request.grace_period.map(convert::duration);
        let known = self.pods.stop(request.uid, grace).await.map_err(|error| status(&error))?;
        Ok(Response::new(v1::StopPodResponse { known }))
    }

    async fn list_pods(&self, _: Request<v1::ListPodsRequest>) -> Result<Response<v1::ListPodsResponse>, Status> {
        Ok(Response::new(list(&self.pods.publisher.list())?))
    }

    async fn watch_pods(&self, _: Request<v1::WatchPodsRequest>) -> Result<Response<Self::WatchPodsStream>, Status> {
        let subscription = self.pods.publisher.subscribe();
        let first =
            v1::WatchPodsResponse { item: Some(v1::watch_pods_response::Item::List(list(&subscription.list)?)) };
        let changes = stream::unfold(subscription, |subscription: Subscription| async move {
            let change = convert::change(&subscription.next().await);
            Some((change, subscription))
        });
        let stop = self.stop.clone().cancelled_owned();
        let answers = stream::once(async move { Ok(first) }).chain(changes).take_until(stop);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn read_logs(&self, request: Request<v1::ReadLogsRequest>) -> Result<Response<Self::ReadLogsStream>, Status> {
        let pieces = reading::log(&self.logs, request.into_inner()).await?;
        Ok(Response::new(Box::pin(pieces.take_until(self.stop.clone().cancelled_owned()))))
    }
}

fn list(pods: &[Arc<PodSnapshot>]) -> Result<v1::ListPodsResponse, Status> {
    let pods: Result<Vec<_>, _> = pods.iter().map(|snapshot| convert::pod_state(snapshot)).collect();
    Ok(v1::ListPodsResponse { pods: pods? })
}

fn status(error: &RequestError) -> Status {
    let message = Chain(error).to_string();
    match error {
        RequestError::Busy(_) => Status::unavailable(message),
        RequestError::ShuttingDown => Status::unavailable(message),
        RequestError::Record { .. } => Status::resource_exhausted(message),
    }
}
