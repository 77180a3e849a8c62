//! The host's command line against a whole agent.

use std::{
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
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

/// Asks an agent, for JSON.
async fn ask(bench: &Bench, arguments: &[&str]) -> Output {
    let socket = format!("unix://{}", bench.path("agent.sock").display());
    let mut command = Command::new(program());
    command.args(["--agent", &socket, "-o", "json"]).args(arguments);
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
