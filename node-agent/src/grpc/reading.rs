//! What is read for the provider: logs and figures.

use futures::{Stream, StreamExt as _, future, stream};
use larder_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::convert;
use crate::{
    chain::Chain,
    container_log::{self, LogError, LogOptions},
    pod::{
        figures::{FigureSource, PodFigures},
        logs::{FindLogError, LogSource, Run},
    },
    stats::Usage,
};

/// How many pieces of a log wait for a slow reader at most; a piece has 64 KiB.
const PIECES_KEPT: usize = 4;

/// A container's log in pieces.
pub(super) async fn log(
    source: &LogSource,
    request: v1::ReadLogsRequest,
) -> Result<impl Stream<Item = Result<v1::ReadLogsResponse, Status>> + Send + use<>, Status> {
    convert::check_uid(&request.uid)?;
    let run = if request.previous { Run::Previous } else { Run::Current };
    let options = options(&request)?;
    let found = source.find(&request.uid, &request.container, run).await.map_err(|error| find_status(&error))?;
    let (out, pieces) = mpsc::channel(PIECES_KEPT);
    let reading = async move {
        let read = container_log::read(&found.path, &options, found.ended(), &out).await;
        read.err().map(|error| Err(log_status(&error)))
    };
    // The reader is polled together with what it has read, so that it needs no task of its own and ends with the call.
    let pieces = ReceiverStream::new(pieces).map(|data| Ok(v1::ReadLogsResponse { data }));
    Ok(stream::select(pieces, stream::once(reading).filter_map(future::ready)))
}

fn options(request: &v1::ReadLogsRequest) -> Result<LogOptions, Status> {
    let count = |name: &str, value: Option<i64>| {
        let refuse = |_| Status::invalid_argument(format!("{name} must not be negative"));
        value.map(u64::try_from).transpose().map_err(refuse)
    };
    let since = request.since.map(convert::time);
    if since == Some(None) {
        return Err(Status::invalid_argument("since is no time"));
    }
    Ok(LogOptions {
        follow: request.follow,
        tail_lines: count("tail_lines", request.tail_lines)?,
        since: since.flatten(),
        timestamps: request.timestamps,
        limit_bytes: count("limit_bytes", request.limit_bytes)?,
    })
}

fn find_status(error: &FindLogError) -> Status {
    let message = Chain(error).to_string();
    match error {
        FindLogError::NoPod { .. }
        | FindLogError::NoContainer { .. }
        | FindLogError::NotStarted { .. }
        | FindLogError::NoPrevious { .. } => Status::not_found(message),
        FindLogError::List { .. } | FindLogError::Runtime(_) => Status::internal(message),
    }
}

fn log_status(error: &LogError) -> Status {
    let message = Chain(error).to_string();
    match error {
        LogError::NotFound { .. } => Status::not_found(message),
        LogError::Read { .. } | LogError::Watch { .. } => Status::internal(message),
    }
}

/// The figures of the node and its pods.
pub(super) async fn figures(source: &FigureSource, now: jiff::Timestamp) -> Result<v1::NodeStats, Status> {
    let (node, pods) = source.read().await.map_err(|error| Status::internal(Chain(&error).to_string()))?;
    Ok(v1::NodeStats {
        time: Some(convert::timestamp(now)),
        usage: Some(usage(node)),
        pods: pods.into_iter().map(pod_stats).collect(),
    })
}

fn pod_stats(figures: PodFigures) -> v1::PodStats {
    let containers = figures.containers.into_iter().map(|container| v1::ContainerStats {
        name: container.name,
        started: Some(convert::timestamp(container.started_at)),
        usage: Some(usage(container.usage)),
    });
    v1::PodStats {
        uid: figures.pod.uid,
        namespace: figures.pod.namespace,
        name: figures.pod.name,
        containers: containers.collect(),
    }
}

fn usage(usage: Usage) -> v1::Usage {
    v1::Usage {
        cpu_core_nanoseconds: usage.cpu_core_nanoseconds,
        memory_usage_bytes: usage.memory_usage_bytes,
        memory_working_set_bytes: usage.memory_working_set_bytes,
        memory_rss_bytes: usage.memory_rss_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let asked =
            v1::ReadLogsRequest { tail_lines: Some(3), limit_bytes: Some(0), follow: true, ..Default::default() };
        let options = options(&asked).unwrap();
        assert_eq!((options.tail_lines, options.limit_bytes, options.follow), (Some(3), Some(0), true));
        for bad in [
            v1::ReadLogsRequest { tail_lines: Some(-1), ..Default::default() },
            v1::ReadLogsRequest { limit_bytes: Some(-1), ..Default::default() },
            v1::ReadLogsRequest {
                since: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }),
                ..Default::default()
            },
        ] {
            assert_eq!(super::options(&bad).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
