//! Tables and properties of reading manifests and planning pulls.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const AMD64: Platform = Platform { os: "linux", architecture: "amd64", variants: &["", "v1"] };
const ARM: Platform = Platform { os: "linux", architecture: "arm", variants: &["v7", "v6", ""] };

fn id(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

fn read(value: &serde_json::Value) -> Result<Document, PlanError> {
    read_document(value.to_string().as_bytes(), id(0))
}

fn image(config_type: &str, layer_type: &str) -> serde_json::Value {
    json!({
        "schemaVersion": 2,
        "config": {"mediaType": config_type, "digest": id(1).to_string(), "size": 10},
        "layers": [{"mediaType": layer_type, "digest": id(2).to_string(), "size": 20}],
    })
}

fn config(os: &str, architecture: &str, diff_ids: &[String]) -> ImageConfiguration {
    let value = json!({"os": os, "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    serde_json::from_value(value).unwrap()
}

fn layer(blob: Content) -> ManifestLayer {
    ManifestLayer { blob, keeper: LayerKeeper::Registry }
}

#[test]
fn reads_images_of_both_formats() {
    let expected = Document::Image(Manifest {
        config: Content { digest: id(1), size: 10 },
        layers: vec![layer(Content { digest: id(2), size: 20 })],
    });
    for (config_type, layer_type) in [
        ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        assert_eq!(read(&image(config_type, layer_type)), Ok(expected.clone()));
    }
}

#[test]
fn knows_who_keeps_a_layer() {
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    for (types, expected) in
        [(&LAYER_TYPES[..], LayerKeeper::Registry), (&FOREIGN_LAYER_TYPES[..], LayerKeeper::Foreign)]
    {
        for layer_type in types {
            let Ok(Document::Image(manifest)) = read(&image(CONFIG, layer_type)) else { panic!("{layer_type}") };
            assert_eq!(manifest.layers[0].keeper, expected, "{layer_type}");
        }
    }
}

#[test]
fn refuses_by_name_what_is_not_an_image() {
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    let mut with_type = image(CONFIG, LAYER);
    with_type["mediaType"] = json!("application/vnd.example");
    let mut both = image(CONFIG, LAYER);
    both["manifests"] = json!([]);
    for (value, expected) in [
        (json!({"schemaVersion": 1, "fsLayers": []}), "schema version 1"),
        (image("application/vnd.cncf.helm.config.v1+json", LAYER), "but application/vnd.cncf.helm.config.v1+json"),
        (image(CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "+encrypted, which is not supported"),
        (image(CONFIG, "application/vnd.oci.image.layer.v1.tar+bzip2"), "+bzip2, which is not supported"),
        (image(CONFIG, "application/vnd.oci.image.layer.v1.tar+xz"), "+xz, which is not supported"),
        (with_type, "but application/vnd.example"),
        (both, "an image and an index at once"),
        (json!({"schemaVersion": 2, "mediaType": "application/x"}), "but application/x"),
        (json!({"schemaVersion": 2}), "no config or no layers"),
        (json!({"layers": []}), "no schemaVersion 2"),
        (json!([]), "malformed"),
        (json!({"schemaVersion": 2, "manifests": [{"digest": "x"}]}), "\"x\" is not a digest"),
    ] {
        let text = read(&value).unwrap_err().to_string();
        assert!(text.contains(expected), "{value}: {text}");
    }
}

fn entry(n: u8, os: &str, architecture: &str, variant: &str) -> IndexEntry {
    IndexEntry { digest: id(n), platform: Some((os.to_owned(), architecture.to_owned(), variant.to_owned())) }
}

#[test]
fn chooses_the_best_entry_for_the_platform() {
    let entries = [
        entry(1, "unknown", "unknown", ""),
        entry(2, "linux", "arm", "v6"),
        entry(3, "linux", "arm", "v7"),
        entry(4, "windows", "amd64", ""),
        entry(5, "linux", "amd64", ""),
        entry(6, "linux", "amd64", ""),
    ];
    assert_eq!(choose(&entries, &AMD64, id(0)), Ok(vec![id(5), id(6)]));
    assert_eq!(choose(&entries, &ARM, id(0)), Ok(vec![id(3), id(2)]));
    let text = choose(&entries[..4], &AMD64, id(0)).unwrap_err().to_string();
    assert!(text.starts_with("no image for linux/amd64 (v1) in sha256:00"), "{text}");
    assert!(text.ends_with("only for linux/arm/v6, linux/arm/v7, windows/amd64"), "{text}");
    let silent = |n| IndexEntry { digest: id(n), platform: None };
    assert_eq!(choose(&[silent(9), silent(8)], &AMD64, id(0)), Ok(vec![id(9), id(8)]));
    assert_eq!(choose(&[silent(9), entry(5, "linux", "amd64", "")], &AMD64, id(0)), Ok(vec![id(5), id(9)]));
    assert!(choose(&[], &AMD64, id(0)).is_err());
}

#[test]
fn takes_the_variants_that_the_host_can_run() {
    let amd64 = |level: usize| Platform { variants: AMD64_VARIANTS[level - 1], ..AMD64 };
    let arm64 = Platform { os: "linux", architecture: "arm64", variants: &["", "v8"] };
    let all = |architecture: &str, variants: &[&str]| -> Vec<IndexEntry> {
        (1..).zip(variants).map(|(n, variant)| entry(n, "linux", architecture, variant)).collect()
    };
    for (entries, platform, chosen) in [
        (all("amd64", &["v2", "v3"]), amd64(3), Some(2)),
        (all("amd64", &["v2", "v3"]), amd64(4), Some(2)),
        (all("amd64", &["v2", "v3"]), amd64(2), Some(1)),
        (all("amd64", &["v2", "v3"]), amd64(1), None),
        (all("amd64", &["v4", "v3", ""]), amd64(4), Some(3)),
        (all("amd64", &["v4"]), amd64(3), None),
        (all("arm64", &["v8"]), arm64.clone(), Some(1)),
        (all("arm64", &["v9", "v8", ""]), arm64.clone(), Some(3)),
        (all("arm64", &["v9"]), arm64.clone(), None),
        (all("arm", &["v8"]), arm64.clone(), None),
    ] {
        let found = choose(&entries, &platform, id(0)).ok().map(|found| found[0]);
        assert_eq!(found, chosen.map(id), "{entries:?} {platform:?}");
    }
    let text = choose(&all("amd64", &["v4"]), &amd64(3), id(0)).unwrap_err().to_string();
    assert!(text.starts_with("no image for linux/amd64 (v1, v2, v3) in"), "{text}");
    assert!(text.ends_with("only for linux/amd64/v4"), "{text}");
    // Whatever this is run on, the plain image is one that it can run.
    assert!(Platform::host().variants.contains(&""));
}

#[test]
fn the_configuration_must_fit_the_manifest_and_the_host() {
    let manifest = Manifest {
        config: Content { digest: id(1), size: 1 },
        layers: vec![layer(Content { digest: id(2), size: 2 })],
    };
    let one = [id(7).to_string()];
    let fitting = layers(&manifest, &config("linux", "amd64", &one), &AMD64, id(0)).unwrap();
    assert_eq!(
        fitting,
        [PlannedLayer { diff_id: id(7), blob: manifest.layers[0].blob, keeper: LayerKeeper::Registry }]
    );
    for (config, expected) in [
        (config("linux", "amd64", &[]), "1 layers, its configuration 0"),
        (config("linux", "arm64", &one), "is for linux/arm64, this node runs linux/amd64"),
        (config("linux", "amd64", &["sha256:xx".to_owned()]), "is not a digest"),
    ] {
        let text = layers(&manifest, &config, &AMD64, id(0)).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_document(&bytes, id(0));
    }

    #[test]
    fn a_plan_is_what_is_missing_once_and_largest_first(
        ids in proptest::collection::vec((0u8..12, 0u64..1000), 0..30), here in proptest::collection::hash_set(0u8..12, 0..12)
    ) {
        let all: Vec<PlannedLayer> = ids
            .iter()
            .map(|&(n, size)| (n, layer(Content { digest: id(n), size })))
            .map(|(n, ManifestLayer { blob, keeper })| PlannedLayer { diff_id: id(n), blob, keeper })
            .collect();
        let plan = plan(&all, |diff_id| here.iter().any(|&n| id(n) == *diff_id));
        let planned: HashSet<Digest> = plan.missing.iter().map(|layer| layer.diff_id).collect();
        let wanted: HashSet<Digest> =
            ids.iter().filter(|(n, _)| !here.contains(n)).map(|&(n, _)| id(n)).collect();
        prop_assert_eq!(&planned, &wanted);
        prop_assert_eq!(plan.missing.len(), wanted.len());
        prop_assert!(plan.missing.is_sorted_by_key(|layer| std::cmp::Reverse(layer.blob.size)));
        prop_assert_eq!(plan.missing_bytes, plan.missing.iter().map(|layer| layer.blob.size).sum::<u64>());
    }
}
