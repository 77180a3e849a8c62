//! The host's command line against a whole agent.

use std::{
    io::BufRead as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

use super::bench::Bench;

fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--package", "larderctl"]).status().unwrap();
        assert!(built.success(), "build larderctl");
        Path::new(env!("CARGO_BIN_EXE_larder-node-agent")).with_file_name("larderctl")
    };
    PROGRAM.get_or_init(build).clone()
}

fn command(bench: &Bench, arguments: &[&str]) -> Command {
    let socket = format!("unix://{}", bench.path("agent.sock").display());
    let mut command = Command::new(program());
    command.args(["--agent", &socket]).args(arguments);
    command
}

/// Asks an agent, for JSON.
async fn ask(bench: &Bench, arguments: &[&str]) -> Output {
    let mut command = command(bench, arguments);
    command.args(["-o", "json"]);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn told(bench: &Bench, arguments: &[&str]) -> Value {
    let output = ask(bench, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_is_shown_verified_repaired_and_pruned() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    client.run(bench.request(&bench.pod("u-store", "trap 'exit 0' TERM; while true; do sleep 0.1; done"))).await;
    client.until_phase(&bench, "u-store", "Running").await;

    let pods = told(&bench, &["pods"]).await;
    assert_eq!((&pods[0]["uid"], &pods[0]["status"]["phase"]), (&"u-store".into(), &"Running".into()));
    let images = told(&bench, &["images"]).await;
    assert_eq!((&images[0]["references"][0], &images[0]["inUse"]), (&bench.registry.image().into(), &true.into()));
    assert_eq!(told(&bench, &["store", "prune"]).await["layers"], Value::Array(Vec::new()), "a pod uses them");
    assert_eq!(told(&bench, &["store", "verify"]).await["wrong"], 0);

    let layer = told(&bench, &["store", "ls"]).await[0]["diffId"].as_str().unwrap().to_owned();
    let tar = bench.path("root/layers").join(layer.trim_start_matches("sha256:")).join("layer.tar");
    let file = std::fs::File::options().write(true).open(&tar).unwrap();
    file.write_all_at(b"rot", 700_000).unwrap();
    let verified = ask(&bench, &["store", "verify"]).await;
    assert_eq!(verified.status.code(), Some(1), "{}", String::from_utf8_lossy(&verified.stdout));
    let repaired = told(&bench, &["store", "verify", "--repair"]).await;
    assert_eq!((&repaired["righted"], &repaired["findings"][0]["name"]), (&1.into(), &layer.as_str().into()));
    assert_eq!(told(&bench, &["store", "verify"]).await["wrong"], 0);

    client.stop("u-store", 5).await;
    client.until_gone(&bench, "u-store").await;
    let pruned = async {
        // The image is given back in the background, which tells nobody.
        while told(&bench, &["store", "prune"]).await["layers"][0] != layer.as_str() {}
    };
    tokio::time::timeout(super::bench::DEADLINE, pruned).await.unwrap();
    assert_eq!(told(&bench, &["images"]).await, Value::Array(Vec::new()));

    let registry = bench.registry.address.to_string();
    let pulled = told(&bench, &["pull", &bench.registry.image(), "--plain-http", &registry]).await;
    assert_eq!(pulled["reference"], bench.registry.image());
    assert_eq!(told(&bench, &["store", "ls"]).await[0]["diffId"], layer);
    let usage = told(&bench, &["store", "du"]).await;
    assert_eq!((&usage["layers"], &usage["snapshotter"]), (&1.into(), &"erofs".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_are_seen_while_they_go_on() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    assert_eq!(told(&bench, &["pulls"]).await, Value::Array(Vec::new()));
    let mut following = command(&bench, &["pulls", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();

    bench.registry.set_stalled(true);
    client.run(bench.request(&bench.pod("u-pulls", "true"))).await;
    let half = async {
        loop {
            let pull = told(&bench, &["pulls"]).await[0].take();
            if pull["doneBytes"].as_u64().is_some_and(|done| done > 0) {
                return pull;
            }
        }
    };
    let pull = tokio::time::timeout(super::bench::DEADLINE, half).await.unwrap();
    assert_eq!(pull["reference"], bench.registry.image());
    assert_eq!((&pull["waiting"], &pull["waiters"]), (&1.into(), &serde_json::json!(["pod test/u-pulls"])));
    assert_eq!((&pull["doneLayers"], &pull["totalLayers"]), (&0.into(), &1.into()));
    let figure = |name: &str| pull[name].as_u64().unwrap();
    assert!(figure("doneBytes") < figure("totalBytes") && figure("bytesPerSecond") > 0, "{pull}");
    client.stop("u-pulls", 1).await;
    client.until_gone(&bench, "u-pulls").await;

    let lines = std::io::BufReader::new(following.stdout.take().unwrap()).lines();
    let ended = format!("{}: ended", bench.registry.image());
    let followed: Vec<String> = tokio::task::spawn_blocking(move || {
        let mut seen = Vec::new();
        for line in lines.map(Result::unwrap) {
            seen.push(line);
            if seen.last() == Some(&ended) {
                break;
            }
        }
        seen
    })
    .await
    .unwrap();
    following.kill().unwrap();
    following.wait().unwrap();
    let is_half = |line: &String| line.contains(": 0/1 layers, ") && line.ends_with(", for pod test/u-pulls");
    assert!(followed.iter().any(is_half), "{followed:?}");

    bench.registry.set_stalled(false);
    let registry = bench.registry.address.to_string();
    let mut pull = command(&bench, &["pull", &bench.registry.image(), "--plain-http", &registry]);
    let pulled = tokio::task::spawn_blocking(move || pull.output().unwrap()).await.unwrap();
    let lines = String::from_utf8(pulled.stderr).unwrap();
    assert!(pulled.status.success() && lines.starts_with("0/1 layers, "), "{lines}");
    assert_eq!(told(&bench, &["pulls"]).await, Value::Array(Vec::new()));
}
