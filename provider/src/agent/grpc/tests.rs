//! The client against a server in this process, over a real socket.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream;
use k8s_openapi::api::core::v1::Pod;
use larder_proto::v1::pod_service_server::{PodService, PodServiceServer};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Request;

use super::*;
use crate::agent::ChosenCache;

/// Answers as a test wants it, and keeps what it was sent.
#[derive(Debug, Default)]
struct Server {
    runs: Arc<Mutex<Vec<v1::RunPodRequest>>>,
}

#[async_trait]
impl PodService for Server {
    type WatchPodsStream = futures::stream::BoxStream<'static, Result<v1::WatchPodsResponse, Status>>;
    type ReadLogsStream = futures::stream::BoxStream<'static, Result<v1::ReadLogsResponse, Status>>;

    async fn run_pod(&self, request: Request<v1::RunPodRequest>) -> Result<Response<v1::RunPodResponse>, Status> {
        assert!(request.metadata().get("grpc-timeout").is_some(), "the agent is told how long is waited");
        self.runs.lock().unwrap().push(request.into_inner());
        Ok(Response::new(v1::RunPodResponse {}))
    }

    async fn stop_pod(&self, request: Request<v1::StopPodRequest>) -> Result<Response<v1::StopPodResponse>, Status> {
        let request = request.into_inner();
        let seconds = request.grace_period.map(|grace| grace.seconds);
        Ok(Response::new(v1::StopPodResponse { known: request.uid == "known" && seconds == Some(7) }))
    }

    async fn list_pods(&self, _: Request<v1::ListPodsRequest>) -> Result<Response<v1::ListPodsResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn watch_pods(&self, _: Request<v1::WatchPodsRequest>) -> Result<Response<Self::WatchPodsStream>, Status> {
        use v1::watch_pods_response::Item;
        let list = Item::List(v1::ListPodsResponse { pods: vec![] });
        let state = v1::PodState {
            uid: "u".into(),
            generation: 3,
            status_json: Bytes::from(r#"{"phase":"Running"}"#),
            ..v1::PodState::default()
        };
        let items = [Some(list), None, Some(Item::Changed(state))];
        let items = items.map(|item| Ok(v1::WatchPodsResponse { item }));
        Ok(Response::new(stream::iter(items).chain(stream::iter([Err(Status::unavailable("gone"))])).boxed()))
    }

    async fn read_logs(&self, request: Request<v1::ReadLogsRequest>) -> Result<Response<Self::ReadLogsStream>, Status> {
        let request = request.into_inner();
        if request.previous {
            return Err(Status::not_found("no previous run"));
        }
        let piece = v1::ReadLogsResponse { data: Bytes::from(format!("{:?}\n", request.tail_lines)) };
        Ok(Response::new(stream::iter([Ok(piece)]).boxed()))
    }
}

struct Bench {
    agent: GrpcAgent,
    runs: Arc<Mutex<Vec<v1::RunPodRequest>>>,
    _folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let (server, mut tasks) = (Server::default(), JoinSet::new());
    let runs = server.runs.clone();
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let serving =
        tonic::transport::Server::builder().add_service(PodServiceServer::new(server)).serve_with_incoming(incoming);
    tasks.spawn(async move { serving.await.unwrap() });
    let agent = GrpcAgent::new(&format!("unix://{}", socket.display()), None).unwrap();
    Bench { agent, runs, _folder: folder, _tasks: tasks }
}

#[tokio::test]
async fn calls_arrive_and_answers_come_back() {
    let bench = bench();
    let pod = Pod::default();
    let run = RunPod {
        pod: Arc::new(pod),
        config_maps: vec![],
        secrets: vec![],
        tokens: vec![],
        service_env: vec![],
        credentials: vec![],
        image_cache: Some(ChosenCache { id: "imc-1".into(), is_automatic: false, policy: None }),
        plain_http_registries: vec![],
        insecure_registries: vec![],
    };
    bench.agent.run_pod(&run).await.unwrap();
    assert_eq!(bench.runs.lock().unwrap()[0].image_cache_id, "imc-1");
    let grace = Some(Duration::from_secs(7));
    assert_eq!(bench.agent.stop_pod("known", grace).await.unwrap(), Stopping::Begun);
    assert_eq!(bench.agent.stop_pod("other", grace).await.unwrap(), Stopping::Unknown);
    assert!(matches!(bench.agent.stats().await, Err(AgentError::Refused { .. })), "a service that is not there");
}

#[tokio::test]
async fn a_stream_leaves_out_what_is_unknown_and_ends_with_its_error() {
    let bench = bench();
    let changes: Vec<_> = bench.agent.watch_pods().await.unwrap().collect().await;
    assert_eq!(changes.len(), 3);
    assert!(matches!(&changes[0], Ok(PodChange::List(pods)) if pods.is_empty()));
    assert!(matches!(&changes[1], Ok(PodChange::Changed(state)) if state.generation == 3));
    assert!(matches!(&changes[2], Err(AgentError::Unreachable { .. })));
}

#[tokio::test]
async fn logs_are_read_and_what_is_missing_is_not_found() {
    let bench = bench();
    let query = LogQuery { tail_lines: Some(4), ..LogQuery::default() };
    let pieces: Vec<_> = bench.agent.read_logs(&query).await.unwrap().collect().await;
    assert_eq!(pieces[0].as_ref().unwrap(), "Some(4)\n");
    let query = LogQuery { previous: true, ..LogQuery::default() };
    assert!(matches!(bench.agent.read_logs(&query).await, Err(AgentError::NotFound { .. })));
}

#[tokio::test]
async fn addresses_are_checked() {
    assert!(GrpcAgent::new("unix:///run/x.sock", None).is_ok());
    for bad in ["", "http://10.0.0.1:1", "unix:/relative", "::"] {
        assert!(matches!(GrpcAgent::new(bad, None), Err(ConnectError::Address { .. })), "{bad}");
    }
    assert!(matches!(GrpcAgent::new("https://10.0.0.1:1", None), Err(ConnectError::TlsFilesMissing { .. })));
}

#[tokio::test]
async fn missing_socket_is_unreachable_and_named() {
    let agent = GrpcAgent::new("unix:///nowhere/agent.sock", None).unwrap();
    let error = agent.node_facts().await.unwrap_err();
    assert!(matches!(&error, AgentError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("No such file"), "{error}");
}

#[test]
fn codes_become_classes() {
    let class = |code: Code| classify("RunPod", &Status::new(code, "m"));
    assert!(matches!(class(Code::FailedPrecondition), AgentError::Refused { message } if message == "m"));
    assert!(class(Code::InvalidArgument).is_permanent());
    assert!(!class(Code::Internal).is_permanent());
    assert!(matches!(class(Code::Unavailable), AgentError::Unreachable { .. }));
}
