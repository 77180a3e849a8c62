//! What images may look like, and what is refused by its name.

use super::*;

fn descriptor(media_type: &str, digest: Digest, size: usize) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}

fn index(entries: &[serde_json::Value]) -> serde_json::Value {
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries})
}

fn entry(digest: Digest, platform: serde_json::Value) -> serde_json::Value {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": 1, "platform": platform})
}

fn amd64() -> serde_json::Value {
    json!({"os": "linux", "architecture": "amd64"})
}

#[tokio::test]
async fn follows_indexes_within_indexes_but_not_for_ever() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let mut digest = push(&registry, "a", "leaf").manifest;
    let manifest = digest;
    for depth in 1..=4 {
        digest = registry.put_manifest("a", &format!("deep{depth}"), &index(&[entry(digest, amd64())]));
    }
    for depth in 1..=3 {
        let image = bench.pull(&format!("{}/a:deep{depth}", registry.host())).await.unwrap();
        assert_eq!(image.manifest, manifest);
    }
    let text = bench.pull(&format!("{}/a:deep4", registry.host())).await.unwrap_err().to_string();
    assert!(text.contains("more than 3 indexes lie within each other"), "{text}");
}

#[tokio::test]
async fn an_index_that_does_not_say_what_it_is_for_may_be_the_wrong_one() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let manifest = push(&registry, "a", "leaf").manifest;
    let silent = |digest: Digest| json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest.to_string(), "size": 1});
    let arm = index(&[entry(Digest::of(b"x"), json!({"os": "linux", "architecture": "arm64"}))]);
    let arm = registry.put_manifest("a", "arm", &arm);
    // An image for another host, which only its configuration tells.
    let config = serde_json::to_vec(
        &json!({"os": "linux", "architecture": "s390x", "rootfs": {"type": "layers", "diff_ids": []}}),
    );
    let config = config.unwrap();
    let (size, config) = (config.len(), registry.put_blob(config));
    let config = descriptor("application/vnd.oci.image.config.v1+json", config, size);
    let other = registry.put_manifest("a", "other", &json!({"schemaVersion": 2, "config": config, "layers": []}));
    let ours = registry.put_manifest("a", "ours", &index(&[entry(manifest, amd64())]));
    let all = [arm, other, ours].map(silent);
    registry.put_manifest("a", "v1", &index(&all));
    assert_eq!(bench.pull(&format!("{}/a:v1", registry.host())).await.unwrap().manifest, manifest);
    registry.put_manifest("a", "v2", &index(&all[..2]));
    let text = bench.pull(&format!("{}/a:v2", registry.host())).await.unwrap_err().to_string();
    assert!(text.contains(&format!("no image for linux/amd64 (v1) in {arm}, only for linux/arm64")), "{text}");
    let many = (0..100_u64).map(|n| index(&[json!({"digest": arm.to_string(), "size": n})]));
    let many: Vec<_> =
        many.enumerate().map(|(n, one)| silent(registry.put_manifest("a", &n.to_string(), &one))).collect();
    registry.put_manifest("a", "v3", &index(&many));
    registry.forget_seen();
    bench.pull(&format!("{}/a:v3", registry.host())).await.unwrap_err();
    assert!(registry.count("GET", "manifests") < 40, "{}", registry.count("GET", "manifests"));
}

#[tokio::test]
async fn layers_of_old_compressions_are_refused_by_name() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let plain = noise(53, 1000);
    for (name, start) in [("bzip2", &b"BZh91AY&SY"[..]), ("xz", b"\xfd7zXZ\0\0\x04")] {
        push_layers(&registry, name, "v1", &[(plain.clone(), [start, &plain].concat())]);
        let text = bench.pull(&format!("{}/{name}:v1", registry.host())).await.unwrap_err().to_string();
        assert!(text.contains(&format!("it is compressed with {name}, which is not supported")), "{text}");
    }
}

#[tokio::test]
async fn an_index_that_names_itself_is_a_lie() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let named = Digest::of(b"whatever");
    // No document holds its own digest, so the registry has to give it under another's.
    let itself = registry.put_manifest("a", "v1", &index(&[entry(named, amd64())]));
    registry.alias_manifest("a", &itself.to_string(), &named.to_string());
    let text = bench.pull(&format!("{}/a:v1", registry.host())).await.unwrap_err().to_string();
    assert!(text.contains(&format!("has digest {itself}, expected {named}")), "{text}");
}

#[tokio::test]
async fn a_manifest_may_not_pass_its_configuration_off_as_a_layer() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let config = json!({"os": "linux", "architecture": "amd64", "config": {},
                        "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"x").to_string()]}});
    let config = serde_json::to_vec(&config).unwrap();
    let (size, digest) = (config.len(), registry.put_blob(config));
    registry.put_manifest(
        "a",
        "v1",
        &json!({
            "schemaVersion": 2,
            "config": descriptor("application/vnd.oci.image.config.v1+json", digest, size),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", digest, size)],
        }),
    );
    let text = bench.pull(&format!("{}/a:v1", registry.host())).await.unwrap_err().to_string();
    assert!(text.contains("layer content has diff id"), "{text}");
    assert_eq!(bench.snapshotter.layer_count(), 0);
}

#[tokio::test]
async fn artefacts_and_the_first_format_are_refused_by_their_names() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let chart = "application/vnd.cncf.helm.config.v1+json";
    let blob = registry.put_blob("{}");
    let artefact = json!({
        "schemaVersion": 2, "config": descriptor(chart, blob, 2),
        "layers": [descriptor("application/vnd.cncf.helm.chart.content.v1.tar+gzip", blob, 2)],
    });
    registry.put_manifest("chart", "v1", &artefact);
    registry.put_manifest("old", "v1", &json!({"schemaVersion": 1, "name": "old", "fsLayers": []}));
    registry.put_manifest(
        "attested",
        "v1",
        &index(&[entry(Digest::of(b"x"), json!({"os": "unknown", "architecture": "unknown"}))]),
    );
    registry.put_manifest(
        "arm",
        "v1",
        &index(&[entry(blob, json!({"os": "linux", "architecture": "arm64", "variant": "v8"}))]),
    );
    for (image, words) in [
        ("chart", format!("is not a container image but {chart}")),
        ("old", "schema version 1, which is not supported: push the image again".to_owned()),
        ("attested", "no image for linux/amd64 (v1) in".to_owned()),
        ("arm", "only for linux/arm64/v8".to_owned()),
    ] {
        let text = bench.pull(&format!("{}/{image}:v1", registry.host())).await.unwrap_err().to_string();
        assert!(text.contains(&words), "{text}");
    }
}

#[tokio::test]
async fn the_digest_decides_over_the_tag() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    let pinned = push(&registry, "a", "v1").manifest;
    let plain = noise(50, 1000);
    push_layers(&registry, "a", "v1", &[(plain.clone(), plain)]);
    let reference = format!("{}/a:v1@{pinned}", registry.host());
    let image = bench.pull(&reference).await.unwrap();
    assert_eq!((image.manifest, image.reference), (pinned, reference));
    assert_eq!(registry.count("GET", "manifests/v1"), 0);
}

#[tokio::test]
async fn foreign_layers_come_from_the_registry_and_from_nowhere_else() {
    let (registry, thief, bench) = (TestRegistry::start().await, TestRegistry::start().await, Bench::new().await);
    let plain = noise(51, 1000);
    let pushed = push_layers(&registry, "a", "v1", &[(plain.clone(), gzip(&plain))]);
    let mut manifest = registry.manifest("a", "v1");
    let layer = &mut manifest["layers"][0];
    layer["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    layer["urls"] = json!([format!("http://{}/layer", thief.host())]);
    registry.put_manifest("a", "v2", &manifest);
    // An error is asked for again, for its words.
    registry.fault(&pushed.blobs[0].to_string(), 2, Fault::Status(404, vec![], "foreign"));
    let text = bench.pull(&format!("{}/a:v2", registry.host())).await.unwrap_err().to_string();
    for words in ["404 Not Found: foreign", &format!("layer {} is foreign", pushed.blobs[0])] {
        assert!(text.contains(words), "{words} is not in: {text}");
    }
    bench.pull(&format!("{}/a:v2", registry.host())).await.unwrap();
    assert_eq!(thief.seen(), []);
}

#[tokio::test]
async fn empty_layers_are_layers() {
    let (registry, bench) = (TestRegistry::start().await, Bench::new().await);
    // The end of a tar alone, twice, as old builders wrote it; and no byte at all.
    let end = vec![0; 1024];
    let layers =
        [(end.clone(), gzip(&end)), (noise(52, 1000), noise(52, 1000)), (end.clone(), gzip(&end)), (vec![], vec![])];
    let pushed = push_layers(&registry, "a", "v1", &layers);
    let image = bench.pull(&format!("{}/a:v1", registry.host())).await.unwrap();
    assert_eq!((image.manifest, bench.snapshotter.layer_count()), (pushed.manifest, 3));
    assert_eq!(registry.count("GET", &pushed.blobs[0].to_string()), 1);
}
