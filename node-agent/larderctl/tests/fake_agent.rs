//! The program as a user runs it, against an agent that answers what a test has told it to.

#![expect(clippy::tests_outside_test_module, reason = "the whole file is one")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use larder_proto::v1::image_cache_service_server::{ImageCacheService, ImageCacheServiceServer};
use larder_proto::v1::pull_service_server::{PullService, PullServiceServer};
use larder_proto::v1::store_service_server::{StoreService, StoreServiceServer};
use larder_proto::v1::{self, pull_image_response, verify_store_response};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// An agent with one image of one layer, which is damaged.
#[derive(Debug)]
struct Fake;

type Stream<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

fn stream<T>(items: Vec<Result<T, Status>>) -> Response<Stream<T>> {
    Response::new(tokio_stream::iter(items))
}

#[tonic::async_trait]
impl StoreService for Fake {
    type PruneStoreStream = Stream<v1::PruneStoreResponse>;
    type VerifyStoreStream = Stream<v1::VerifyStoreResponse>;
    type PullImageStream = Stream<v1::PullImageResponse>;

    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Result<Response<v1::ListImagesResponse>, Status> {
        let image = v1::StoredImage {
            manifest_digest: format!("sha256:{}", "ab".repeat(32)),
            references: vec!["docker.io/library/nginx:latest".to_owned()],
            layers: vec!["sha256:1".to_owned(), "sha256:2".to_owned()],
            size_bytes: 3 << 20,
            caches: vec!["imc-1".to_owned()],
            in_use: true,
            last_use: None,
        };
        Ok(Response::new(v1::ListImagesResponse { images: vec![image] }))
    }

    async fn list_layers(&self, _: Request<v1::ListLayersRequest>) -> Result<Response<v1::ListLayersResponse>, Status> {
        Ok(Response::new(v1::ListLayersResponse::default()))
    }

    async fn get_store_usage(&self, _: Request<v1::GetStoreUsageRequest>) -> Result<Response<v1::StoreUsage>, Status> {
        let usage = v1::StoreUsage {
            root: "/var/lib/larder".to_owned(),
            snapshotter: "erofs".to_owned(),
            disk_size_bytes: 100 << 30,
            disk_free_bytes: 25 << 30,
            layers: 7,
            layer_bytes: 3 << 30,
            used_layer_bytes: 1 << 30,
            ..v1::StoreUsage::default()
        };
        Ok(Response::new(usage))
    }

    async fn prune_store(
        &self,
        request: Request<v1::PruneStoreRequest>,
    ) -> Result<Response<Self::PruneStoreStream>, Status> {
        assert!(request.into_inner().dry_run, "a test removes nothing");
        let layers = vec!["sha256:1".to_owned()];
        Ok(stream(vec![Ok(v1::PruneStoreResponse { images: Vec::new(), layers, freed_bytes: 2048 })]))
    }

    async fn verify_store(
        &self,
        request: Request<v1::VerifyStoreRequest>,
    ) -> Result<Response<Self::VerifyStoreStream>, Status> {
        use verify_store_response::Item;
        let repair = request.into_inner().repair;
        let item = |item| Ok(v1::VerifyStoreResponse { item: Some(item) });
        let finding = v1::VerifyFinding {
            kind: v1::StoreItemKind::Layer.into(),
            name: "sha256:1".to_owned(),
            why: "its tar has the digest sha256:0".to_owned(),
            outcome: if repair { v1::VerifyOutcome::Repaired } else { v1::VerifyOutcome::Told }.into(),
            detail: String::new(),
        };
        let righted = u64::from(repair);
        let summary =
            v1::VerifySummary { layers: 2, bytes: 1 << 20, wrong: 1, righted, ..v1::VerifySummary::default() };
        let progress = v1::VerifyProgress { done_bytes: 1 << 19, total_bytes: 1 << 20 };
        Ok(stream(vec![item(Item::Progress(progress)), item(Item::Finding(finding)), item(Item::Summary(summary))]))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        use pull_image_response::Item;
        let request = request.into_inner();
        if request.reference == "cut" {
            return Ok(stream(Vec::new()));
        }
        let Some(login) = request.credentials.first() else {
            return Ok(stream(vec![Err(Status::unavailable("failed to pull image \"r.example/a\": denied"))]));
        };
        assert_eq!(
            (login.registry.as_str(), login.username.as_str(), login.password.as_str()),
            ("r.example", "me", "pw")
        );
        let item = |item| Ok(v1::PullImageResponse { item: Some(item) });
        let done = v1::PulledImage {
            reference: "r.example/a:latest".to_owned(),
            image_id: "r.example/a@sha256:1".to_owned(),
            manifest_digest: "sha256:1".to_owned(),
            size_bytes: 4096,
        };
        let progress = |done_layers, done_bytes| {
            let progress = v1::PullProgress { done_bytes, total_bytes: 2048, done_layers, total_layers: 2 };
            item(Item::Progress(progress))
        };
        Ok(stream(vec![progress(0, 0), progress(0, 1), progress(1, 1024), item(Item::Done(done))]))
    }
}

/// A pull for two pods that comes half way and ends; then the agent does.
#[derive(Debug)]
struct FakePulls;

#[tonic::async_trait]
impl PullService for FakePulls {
    type WatchPullsStream = Stream<v1::WatchPullsResponse>;

    async fn watch_pulls(&self, _: Request<v1::WatchPullsRequest>) -> Result<Response<Self::WatchPullsStream>, Status> {
        let pull = |done_layers, done_bytes| v1::PullState {
            reference: "r.example/a:latest".to_owned(),
            // A time before there were pulls, so that the rate is none.
            started: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            waiting: 2,
            done_bytes,
            total_bytes: 4096,
            done_layers,
            total_layers: 4,
            waiters: vec!["pod ns/a".to_owned(), "pod ns/b".to_owned()],
        };
        let list = |pulls| Ok(v1::WatchPullsResponse { pulls });
        Ok(stream(vec![list(vec![pull(1, 1024)]), list(vec![pull(2, 2048)]), list(Vec::new())]))
    }
}

/// Two caches: one that is there, one that cannot be.
#[derive(Debug)]
struct FakeCaches;

#[tonic::async_trait]
impl ImageCacheService for FakeCaches {
    type WatchImageCachesStream = Stream<v1::WatchImageCachesResponse>;

    async fn build_image_cache(
        &self,
        _: Request<v1::BuildImageCacheRequest>,
    ) -> Result<Response<v1::BuildImageCacheResponse>, Status> {
        Err(Status::unimplemented("a test builds nothing"))
    }

    async fn delete_image_cache(
        &self,
        _: Request<v1::DeleteImageCacheRequest>,
    ) -> Result<Response<v1::DeleteImageCacheResponse>, Status> {
        Err(Status::unimplemented("a test deletes nothing"))
    }

    async fn watch_image_caches(
        &self,
        _: Request<v1::WatchImageCachesRequest>,
    ) -> Result<Response<Self::WatchImageCachesStream>, Status> {
        let image = |reference: &str| v1::CachedImage {
            reference: reference.to_owned(),
            manifest_digest: format!("sha256:{}", "cd".repeat(32)),
            index_digest: String::new(),
            size_bytes: 2 << 20,
        };
        let step = v1::BuildEvent {
            name: "nginx".to_owned(),
            reason: "Failed".to_owned(),
            message: "failed to pull image \"nginx\": gone".to_owned(),
            r#type: "Warning".to_owned(),
            time: None,
        };
        let whole = v1::ImageCacheState {
            id: "imc-2".to_owned(),
            name: "web".to_owned(),
            phase: v1::ImageCachePhase::Ready.into(),
            progress_percent: 100,
            images: vec![image("nginx"), image("busybox:1")],
            ..v1::ImageCacheState::default()
        };
        let broken = v1::ImageCacheState {
            id: "imc-1".to_owned(),
            name: "batch".to_owned(),
            phase: v1::ImageCachePhase::Failed.into(),
            reason: step.message.clone(),
            events: vec![step],
            ..v1::ImageCacheState::default()
        };
        let list = v1::ImageCacheList { caches: vec![whole, broken] };
        let item = v1::watch_image_caches_response::Item::List(list);
        Ok(stream(vec![Ok(v1::WatchImageCachesResponse { item: Some(item) })]))
    }
}

/// The fake agent on a socket; it ends with this.
struct Running {
    folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Running {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let listener = {
            let _within = runtime.enter();
            tokio::net::UnixListener::bind(socket(folder.path())).expect("listen")
        };
        let thread = thread::spawn(move || {
            let server = tonic::transport::Server::builder()
                .add_service(StoreServiceServer::new(Fake))
                .add_service(PullServiceServer::new(FakePulls))
                .add_service(ImageCacheServiceServer::new(FakeCaches));
            let incoming = UnixListenerStream::new(listener);
            let served = server.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) });
            runtime.block_on(served).expect("serve");
        });
        Self { folder, stop: Some(stop), thread: Some(thread) }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run(&format!("unix://{}", socket(self.folder.path()).display()), arguments, "")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("agent.sock")
}

fn run(address: &str, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larderctl"));
    command.env_remove("LARDERCTL_AGENT").args(["--agent", address]).args(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start larderctl");
    // It may not read it.
    let _ = child.stdin.take().expect("its input").write_all(input.as_bytes());
    child.wait_with_output().expect("larderctl")
}

/// What a person at a terminal sees, down to the last byte.
fn on_a_terminal(address: &str, arguments: &[&str], input: &str) -> String {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    rustix::pty::grantpt(&master).expect("a terminal");
    rustix::pty::unlockpt(&master).expect("a terminal");
    let name = rustix::pty::ptsname(&master, Vec::new()).expect("its name").into_string().expect("its name");
    let terminal = File::options().read(true).write(true).open(name).expect("open the terminal");
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&terminal, size).expect("its size");
    let mut child = Command::new(env!("CARGO_BIN_EXE_larderctl"))
        .env_remove("LARDERCTL_AGENT")
        .env("TERM", "xterm")
        .args(["--agent", address])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(terminal.try_clone().expect("the terminal again"))
        .stderr(terminal)
        .spawn()
        .expect("start larderctl");
    let _ = child.stdin.take().expect("its input").write_all(input.as_bytes());
    let (mut master, mut seen) = (File::from(master), Vec::new());
    // It ends with an error: nobody has the other end any more.
    let _ = master.read_to_end(&mut seen);
    child.wait().expect("larderctl");
    String::from_utf8(seen).expect("words")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

#[test]
fn images_are_a_table_or_json() {
    let agent = Running::start();
    let shown = agent.run(&["images"]);
    assert!(shown.status.success(), "{}", err(&shown));
    let expected = "IMAGE                           MANIFEST      LAYERS  SIZE     CACHES  IN USE  LAST USE\n\
                    docker.io/library/nginx:latest  abababababab  2       3.0 MiB  imc-1   yes     -";
    assert_eq!(out(&shown), expected);
    let json: serde_json::Value = serde_json::from_str(&out(&agent.run(&["images", "-o", "json"]))).expect("JSON");
    assert_eq!(json[0]["references"][0], "docker.io/library/nginx:latest");
    assert_eq!((&json[0]["sizeBytes"], &json[0]["inUse"]), (&(3 << 20).into(), &true.into()));
}

#[test]
fn caches_are_listed_and_one_is_shown() {
    let agent = Running::start();
    let expected = "ID     NAME   PHASE   PROGRESS  IMAGES  SIZE     AGE  REASON\n\
                    imc-1  batch  Failed  0%        0       0 B      -    failed to pull image \"nginx\": gone\n\
                    imc-2  web    Ready   100%      2       4.0 MiB  -";
    for words in [&["cache", "ls"][..], &["caches"]] {
        let listed = agent.run(words);
        assert_eq!(out(&listed), expected, "{}", err(&listed));
    }
    let shown = out(&agent.run(&["cache", "show", "web"]));
    let expected = "Id        imc-2\nName      web\nPhase     Ready, 100%\n\
                    Images    nginx cdcdcdcdcdcd 2.0 MiB\n          busybox:1 cdcdcdcdcdcd 2.0 MiB";
    assert_eq!(shown, expected);
    let json: serde_json::Value =
        serde_json::from_str(&out(&agent.run(&["cache", "show", "imc-1", "-o", "json"]))).expect("JSON");
    assert_eq!((&json["phase"], &json["events"][0]["type"]), (&"Failed".into(), &"Warning".into()));
    let none = agent.run(&["cache", "show", "nope"]);
    assert_eq!((none.status.code(), err(&none)), (Some(1), "larderctl: there is no image cache \"nope\"".to_owned()));
}

#[test]
fn the_store_is_shown() {
    let agent = Running::start();
    assert_eq!(out(&agent.run(&["store", "ls"])), "No layers.");
    assert_eq!(out(&agent.run(&["store", "ls", "--output", "json"])), "[]");
    let usage = out(&agent.run(&["store", "du"]));
    for line in [
        "Store           /var/lib/larder (erofs)",
        "Disk            100.0 GiB, 25.0 GiB free, 75% used",
        "Layers          3.0 GiB in 7",
        "  can be freed  2.0 GiB",
    ] {
        assert!(usage.lines().any(|there| there == line), "{line:?} is not in\n{usage}");
    }
    assert_eq!(out(&agent.run(&["store", "prune", "--dry-run"])), "Would remove 1 layers and 0 images: 2.0 KiB");
}

#[test]
fn a_verification_fails_when_something_stays_wrong() {
    let agent = Running::start();
    let told = agent.run(&["store", "verify"]);
    assert_eq!(told.status.code(), Some(1));
    let words = out(&told);
    assert!(words.starts_with("wrong: layer sha256:1: its tar has the digest sha256:0\n"), "{words}");
    assert!(words.ends_with("1 wrong. `larderctl store verify --repair` fetches them again."), "{words}");
    let repaired = agent.run(&["store", "verify", "--repair"]);
    assert_eq!(repaired.status.code(), Some(0));
    assert!(out(&repaired).ends_with("1 wrong, all put right."), "{}", out(&repaired));
    let json: serde_json::Value =
        serde_json::from_str(&out(&agent.run(&["store", "verify", "-o", "json"]))).expect("JSON");
    assert_eq!((&json["wrong"], &json["findings"][0]["outcome"]), (&1.into(), &"wrong".into()));
}

#[test]
fn a_pull_takes_its_password_from_standard_input() {
    let agent = Running::start();
    let address = format!("unix://{}", socket(agent.folder.path()).display());
    let pulled = run(&address, &["pull", "r.example/a", "--username", "me"], "pw\n");
    assert_eq!(out(&pulled), "r.example/a@sha256:1\n4.0 KiB, 2.0 KiB of it transferred", "{}", err(&pulled));
    let lines = err(&pulled);
    let lines: Vec<&str> =
        lines.lines().filter_map(|line| line.rsplit_once(", ")).map(|(figures, _rate)| figures).collect();
    assert_eq!(lines, ["0/2 layers, 0 B/2.0 KiB (0%)", "1/2 layers, 1.0 KiB/2.0 KiB (50%)"]);
    let refused = agent.run(&["pull", "r.example/a"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(err(&refused), "larderctl: pull: failed to pull image \"r.example/a\": denied");
    let cut = agent.run(&["pull", "cut"]);
    assert_eq!(err(&cut), "larderctl: pull: the node agent has ended in the middle");
}

#[test]
fn a_pull_is_seen_in_place_on_a_terminal() {
    let agent = Running::start();
    let address = format!("unix://{}", socket(agent.folder.path()).display());
    let seen = on_a_terminal(&address, &["pull", "r.example/a", "--username", "me"], "pw\n");
    assert!(seen.contains("/2 layers"), "{seen:?}");
    assert!(!seen.contains("50%"), "no lines: {seen:?}");
    assert!(seen.ends_with("r.example/a@sha256:1\r\n4.0 KiB, 2.0 KiB of it transferred\r\n"), "{seen:?}");
}

#[test]
fn pulls_are_listed() {
    let agent = Running::start();
    let listed = out(&agent.run(&["pulls"]));
    let (header, row) = listed.split_once('\n').expect("two lines");
    assert_eq!(header, "IMAGE               LAYERS  BYTES            RATE   AGE     WAITING");
    assert!(row.starts_with("r.example/a:latest  1/4     1.0 KiB/4.0 KiB  0 B/s  "), "{row}");
    assert!(row.ends_with("  pod ns/a and 1 more"), "{row}");
    let json: serde_json::Value = serde_json::from_str(&out(&agent.run(&["pulls", "-o", "json"]))).expect("JSON");
    let expected = serde_json::json!([{
        "reference": "r.example/a:latest", "started": "1970-01-01T00:00:00Z", "bytesPerSecond": 0,
        "doneLayers": 1, "totalLayers": 4, "doneBytes": 1024, "totalBytes": 4096,
        "waiting": 2, "waiters": ["pod ns/a", "pod ns/b"],
    }]);
    assert_eq!(json, expected);
}

#[test]
fn pulls_are_followed_until_the_agent_ends() {
    let agent = Running::start();
    let followed = agent.run(&["pulls", "--watch"]);
    let expected = "r.example/a:latest: 1/4 layers, 1.0 KiB/4.0 KiB (25%), 0 B/s, for pod ns/a and 1 more\n\
                    r.example/a:latest: 2/4 layers, 2.0 KiB/4.0 KiB (50%), 0 B/s, for pod ns/a and 1 more\n\
                    r.example/a:latest: ended";
    // The second has a rate, however little time there was between the two.
    let figures = |text: &str| text.lines().map(without_rate).collect::<Vec<_>>();
    assert_eq!(figures(&out(&followed)), figures(expected));
    let ended = "larderctl: list pulls: the node agent has ended in the middle";
    assert_eq!((followed.status.code(), err(&followed)), (Some(1), ended.to_owned()));

    let lists = out(&agent.run(&["pulls", "-w", "-o", "json"]));
    let lists: Vec<serde_json::Value> = lists.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let done: Vec<_> = lists.iter().map(|list| list[0]["doneLayers"].as_u64()).collect();
    assert_eq!(done, [Some(1), Some(2), None]);

    let address = format!("unix://{}", socket(agent.folder.path()).display());
    let seen = on_a_terminal(&address, &["pulls", "-w"], "");
    assert!(seen.contains("IMAGE ") && seen.contains("WAITING") && !seen.contains("for pod"), "{seen:?}");
    assert!(seen.contains("No pulls."), "{seen:?}");
    assert!(seen.trim_end().ends_with(ended), "{seen:?}");
}

fn without_rate(line: &str) -> (String, String) {
    let Some((figures, rest)) = line.split_once("%), ") else { return (line.to_owned(), String::new()) };
    (figures.to_owned(), rest.split_once(", ").map_or(rest, |(_rate, who)| who).to_owned())
}

#[test]
fn what_cannot_be_done_is_said_with_its_remedy() {
    let agent = Running::start();
    // The fake has no such service, as an agent of an older version.
    let old = agent.run(&["pods"]);
    assert_eq!(err(&old), "larderctl: the node agent does not know how to list pods: it is older than this larderctl");
    let nobody = run("unix:///nowhere/agent.sock", &["images"], "");
    assert_eq!(nobody.status.code(), Some(1));
    let words = err(&nobody);
    assert!(
        words.contains("no node agent answers at unix:///nowhere/agent.sock: is larder-node-agent running"),
        "{words}"
    );
    assert!(words.contains("No such file"), "the cause is told: {words}");
    let bad = run("https://1.2.3.4:5", &["images"], "");
    assert_eq!(err(&bad), "larderctl: --agent \"https://1.2.3.4:5\" is not unix:///PATH");
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run("unix:///nowhere", &["completions", shell], "");
        assert!(script.status.success(), "{}", err(&script));
        for word in ["verify", "pulls"] {
            assert!(out(&script).contains(word), "{shell}: {word}");
        }
    }
}
