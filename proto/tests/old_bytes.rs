//! Bytes that version 0.1.0 sent must go on decoding to the same values: a provider and an agent of different versions
//! speak to each other while a cluster is being updated.
//!
//! A line here is never changed. Whoever adds a field adds a line with it.

#![expect(clippy::tests_outside_test_module, reason = "the whole file is one")]

use std::collections::HashMap;

use larder_proto::v1::{
    BuildImageCacheRequest, CachedImage, ImageCachePhase, ImageCacheState, ImagePullCredentialsVerificationPolicy,
    PodGone, PodState, PullImageRequest, PullProgress, PullState, ReadLogsRequest, RegistryCredential, ResolvedObject,
    RunPodRequest, ServiceAccountToken, StopPodRequest, StoreItemKind, StoredImage, VerifyFinding, VerifyOutcome,
    VerifyStoreResponse, WatchPodsResponse, verify_store_response, watch_pods_response,
};
use prost::Message;

#[test]
fn run_pod() {
    let expected = RunPodRequest {
        pod_json: br#"{"kind":"Pod"}"#.as_slice().into(),
        config_maps: vec![ResolvedObject {
            name: "c".into(),
            data: HashMap::from([("k".to_owned(), b"v".as_slice().into())]),
        }],
        tokens: vec![ServiceAccountToken { audience: "a".into(), expiration_seconds: 3607, token: "t".into() }],
        credentials: vec![RegistryCredential {
            registry: "r.example".into(),
            username: "u".into(),
            password: "p".into(),
            ..RegistryCredential::default()
        }],
        image_cache_id: "imc-1".into(),
        plain_http_registries: vec!["127.0.0.1:5000".into()],
        ..RunPodRequest::default()
    };
    still_decodes(
        "0a0e7b226b696e64223a22506f64227d120b0a01631206\
         0a016b12017622090a0161 10971c1a017432110a09722e6578616d706c65120175\
         1a01703a05696d632d31420e3132372e302e302e313a35303030",
        &expected,
    );
}

#[test]
fn stop_pod() {
    let expected =
        StopPodRequest { uid: "u".into(), grace_period: Some(prost_types::Duration { seconds: 30, nanos: 0 }) };
    still_decodes("0a0175 1202081e", &expected);
}

#[test]
fn watch_pods() {
    let state = PodState {
        uid: "u".into(),
        namespace: "n".into(),
        name: "p".into(),
        generation: 7,
        status_json: b"{}".as_slice().into(),
        terminated: true,
    };
    let changed = WatchPodsResponse { item: Some(watch_pods_response::Item::Changed(state)) };
    still_decodes("1211 0a0175 12016e 1a0170 2007 2a027b7d 3001", &changed);
    let gone = PodGone { uid: "u".into(), generation: 8, status_json: b"{}".as_slice().into() };
    let gone = WatchPodsResponse { item: Some(watch_pods_response::Item::Gone(gone)) };
    still_decodes("1a09 0a0175 1008 1a027b7d", &gone);
}

#[test]
fn read_logs() {
    let expected =
        ReadLogsRequest { uid: "u".into(), container: "c".into(), tail_lines: Some(0), ..ReadLogsRequest::default() };
    still_decodes("0a0175 120163 2800", &expected);
}

#[test]
fn image_cache_state() {
    let expected = ImageCacheState {
        id: "imc-1".into(),
        name: "n".into(),
        generation: 3,
        phase: ImageCachePhase::Ready.into(),
        progress_percent: 100,
        images: vec![CachedImage {
            reference: "nginx".into(),
            manifest_digest: "sha256:0".into(),
            index_digest: String::new(),
            size_bytes: 300,
        }],
        ..ImageCacheState::default()
    };
    still_decodes("0a05696d632d31 12016e 1803 2002 2864 3a14 0a056e67696e78 12087368613235363a30 20ac02", &expected);
}

#[test]
fn image_cache_to_be_asked_for_again() {
    let expected = ImageCacheState {
        id: "imc-1".into(),
        phase: ImageCachePhase::Failed.into(),
        ask_again: true,
        ..ImageCacheState::default()
    };
    still_decodes("0a05696d632d31 2003 5801", &expected);
}

#[test]
fn image_cache_that_is_fetched_again() {
    let expected = BuildImageCacheRequest { id: "i".into(), refresh: "2".into(), ..BuildImageCacheRequest::default() };
    still_decodes("0a0169 420132", &expected);
    let expected = ImageCacheState { id: "i".into(), refresh: "2".into(), ..ImageCacheState::default() };
    still_decodes("0a0169 620132", &expected);
}

#[test]
fn private_images() {
    let expected = RunPodRequest {
        image_cache_id: "imc-1".into(),
        image_cache_automatic: true,
        image_pull_credentials_verification_policy: ImagePullCredentialsVerificationPolicy::AlwaysVerify.into(),
        ..RunPodRequest::default()
    };
    still_decodes("3a05696d632d31 5001 5804", &expected);
    still_decodes("6801", &ImageCacheState { verifies_credentials: true, ..ImageCacheState::default() });
}

#[test]
fn store() {
    let expected = PullImageRequest {
        reference: "nginx".into(),
        plain_http_registries: vec!["r".into()],
        ..PullImageRequest::default()
    };
    still_decodes("0a056e67696e78 1a0172", &expected);
    let found = VerifyFinding {
        kind: StoreItemKind::Layer.into(),
        name: "sha256:0".into(),
        why: "w".into(),
        outcome: VerifyOutcome::Left.into(),
        detail: "d".into(),
    };
    let found = VerifyStoreResponse { item: Some(verify_store_response::Item::Finding(found)) };
    still_decodes("1214 0801 12087368613235363a30 1a0177 2004 2a0164", &found);
    let image = StoredImage { manifest_digest: "sha256:0".into(), in_use: true, ..StoredImage::default() };
    still_decodes("0a087368613235363a30 3001", &image);
}

#[test]
fn pulls() {
    let expected = PullState { reference: "a".into(), waiting: 2, total_layers: 3, ..PullState::default() };
    still_decodes("0a0161 1802 3803", &expected);
    still_decodes("0a0161 1802 3803 4205706f642061", &PullState { waiters: vec!["pod a".into()], ..expected });
    let expected = PullProgress { done_bytes: 1, total_bytes: 300, ..PullProgress::default() };
    still_decodes("0801 10ac02", &expected);
    still_decodes("0801 10ac02 1801 2002", &PullProgress { done_layers: 1, total_layers: 2, ..expected });
}

fn still_decodes<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &str, expected: &M) {
    let bytes = hex::decode(bytes.replace(' ', "")).expect("hexadecimal digits");
    assert_eq!(hex::encode(expected.encode_to_vec()), hex::encode(&bytes), "today's encoding of the same value");
    assert_eq!(&M::decode(bytes.as_slice()).expect("decode"), expected);
}
