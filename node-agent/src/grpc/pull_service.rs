//! The pulls under way, as a command line on this host asks for them.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _};
use larder_proto::v1;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Services, convert};
use crate::image::{ImageService, PullList};

#[derive(Debug)]
pub(super) struct PullApi {
    images: Arc<ImageService>,
    stop: CancellationToken,
}

impl PullApi {
    pub(super) fn new(services: &Services) -> Self {
        Self { images: Arc::clone(&services.images), stop: services.stop.clone() }
    }
}

#[tonic::async_trait]
impl v1::pull_service_server::PullService for PullApi {
    type WatchPullsStream = Pin<Box<dyn Stream<Item = Result<v1::WatchPullsResponse, Status>> + Send>>;

    async fn watch_pulls(&self, _: Request<v1::WatchPullsRequest>) -> Result<Response<Self::WatchPullsStream>, Status> {
        let lists = WatchStream::new(self.images.watch_pulls()).map(|list| Ok(response(&list)));
        Ok(Response::new(Box::pin(lists.take_until(self.stop.clone().cancelled_owned()))))
    }
}

fn response(list: &PullList) -> v1::WatchPullsResponse {
    let pulls = list.iter().map(|(reference, state)| v1::PullState {
        reference: reference.clone(),
        started: Some(convert::timestamp(state.started)),
        waiting: u32::try_from(state.waiters.len()).unwrap_or(u32::MAX),
        done_bytes: state.moved.done_bytes,
        total_bytes: state.moved.total_bytes,
        done_layers: state.moved.done_layers,
        total_layers: state.moved.total_layers,
        waiters: state.waiters.iter().map(ToString::to_string).collect(),
    });
    v1::WatchPullsResponse { pulls: pulls.collect() }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::image::{Moved, PullState, Waiter};

    #[test]
    fn tells_all_of_a_pull() {
        let state = PullState {
            started: Timestamp::from_second(7).unwrap(),
            waiters: vec![Waiter::Command],
            moved: Moved { done_bytes: 2, total_bytes: 3, done_layers: 4, total_layers: 5 },
        };
        let told = response(&Arc::new([("a".to_owned(), state)].into()));
        let [pull] = &told.pulls[..] else { panic!("{told:?}") };
        assert_eq!((pull.reference.as_str(), pull.started.unwrap().seconds, pull.waiting), ("a", 7, 1));
        let numbers = (pull.done_bytes, pull.total_bytes, pull.done_layers, pull.total_layers);
        assert_eq!(numbers, (2, 3, 4, 5));
        assert_eq!(pull.waiters, ["larderctl"]);
    }
}
