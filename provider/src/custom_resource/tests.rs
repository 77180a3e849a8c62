//! The definition as committed, and what its fields mean.

use std::path::PathBuf;

use rstest::rstest;

use super::*;

const HEADER: &str = "# Made from provider/src/custom_resource.rs and custom_resource/selector.rs by\n\
    #   LARDER_WRITE=1 cargo test -p larder-provider crd_yaml\n";

#[test]
fn crd_yaml_is_what_the_type_says() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../hack/deploy/crd.yaml");
    let [image_cache, selector] =
        [definition(), selector::definition()].map(|definition| serde_saphyr::to_string(&definition).unwrap());
    let expected = format!("{HEADER}{image_cache}---\n{selector}");
    if std::env::var_os("LARDER_WRITE").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(committed == expected, "hack/deploy/crd.yaml is not current; its header tells how to make it");
}

#[test]
fn the_names_are_ecis() {
    let definition = definition();
    assert_eq!(definition.metadata.name.as_deref(), Some("imagecaches.eci.alibabacloud.com"));
    assert_eq!(definition.spec.scope, "Cluster");
    assert_eq!(definition.spec.names.short_names, Some(vec!["ic".to_owned(), "imc".to_owned()]));
    assert_eq!(definition.spec.names.categories, Some(vec!["all".to_owned()]));
    let version = &definition.spec.versions[0];
    assert!(version.subresources.as_ref().unwrap().status.is_some());
    let columns: Vec<_> =
        version.additional_printer_columns.as_ref().unwrap().iter().map(|c| c.name.as_str()).collect();
    assert_eq!(columns, ["Age", "CacheId", "Phase", "Progress", "Hosts", "Images", "Size", "Reason"]);
}

#[test]
fn a_status_that_nobody_has_written_says_pending() {
    let definition = definition();
    let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    let fields = schema.properties.as_ref().unwrap();
    let status = &fields["status"];
    assert_eq!(status.default.as_ref().unwrap().0, json!({"phase": "Pending", "progress": "0%"}));
    let of = |field: &str| status.properties.as_ref().unwrap()[field].default.as_ref().unwrap().0.clone();
    assert_eq!((of("phase"), of("progress")), (json!("Pending"), json!("0%")));
    let read: ImageCacheStatus = serde_json::from_value(status.default.as_ref().unwrap().0.clone()).unwrap();
    assert_eq!((read.phase, read.image_cache_id), (Phase::Pending, None));
    let secrets = &fields["spec"].properties.as_ref().unwrap()["imagePullSecrets"];
    let rule = &secrets.x_kubernetes_validations.as_ref().unwrap()[0];
    assert_eq!(rule.message.as_deref(), Some("each entry must be written namespace:secretName"));
}

#[test]
fn every_annotation_that_holds_is_in_the_description() {
    let text = serde_json::to_string(&definition()).unwrap();
    for key in [
        RETENTION_ANNOTATION,
        SIZE_ANNOTATION,
        PLAIN_HTTP_ANNOTATION,
        INSECURE_ANNOTATION,
        REFRESH_ANNOTATION,
        VERIFICATION_ANNOTATION,
        crate::image_cache::placement::NODE_SELECTOR_ANNOTATION,
        crate::image_cache::placement::ARCH_ANNOTATION,
        crate::image_cache::placement::OS_ANNOTATION,
    ] {
        assert!(text.contains(key), "{key}");
    }
}

fn spec(size: Option<i64>, days: Option<i64>) -> ImageCacheSpec {
    ImageCacheSpec {
        images: vec!["nginx".to_owned()],
        image_cache_size: size,
        retention_days: days,
        ..Default::default()
    }
}

#[rstest]
#[case(None, None, 20)]
#[case(Some(10), None, 20)]
#[case(Some(25), Some("30"), 25)]
#[case(None, Some("30"), 30)]
#[case(None, Some("lots"), 20)]
#[case(None, Some("99999999"), 32_768)]
#[case(Some(-1), None, 20)]
fn sizes(#[case] field: Option<i64>, #[case] annotation: Option<&str>, #[case] expected: u64) {
    let annotations = annotation.map(|value| (SIZE_ANNOTATION.to_owned(), value.to_owned())).into_iter().collect();
    assert_eq!(spec(field, None).size_gib(&annotations), expected);
}

#[rstest]
#[case(None, None, None)]
#[case(Some(7), Some("30"), Some(7))]
#[case(None, Some("30"), Some(30))]
#[case(None, Some("0"), None)]
#[case(None, Some("-3"), None)]
fn retentions(#[case] field: Option<i64>, #[case] annotation: Option<&str>, #[case] expected: Option<u32>) {
    let annotations = annotation.map(|value| (RETENTION_ANNOTATION.to_owned(), value.to_owned())).into_iter().collect();
    assert_eq!(spec(None, field).retention(&annotations), expected);
}

#[test]
fn the_documented_example_is_read() {
    let text = r#"{"apiVersion":"eci.alibabacloud.com/v1","kind":"ImageCache","metadata":{"name":"imagecache-sample-test",
        "annotations":{"k8s.aliyun.com/imc-enable-reuse":"true"}},"spec":{"images":["a/nginx:1.14.2","a/busybox:1.30"],
        "imagePullSecrets":["default:secret1","kube-system:secret3"],"imageCacheSize":25,"retentionDays":7}}"#;
    let cache: ImageCache = serde_json::from_str(text).unwrap();
    assert_eq!(cache.spec.images.len(), 2);
    assert_eq!(cache.spec.image_cache_size, Some(25));
    assert!(cache.status.is_none());
}
