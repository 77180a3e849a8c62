//! Pure: no I/O, no clock, no randomness.
//!
//! The ImageCache object that is made for a pod that matched no cache in full. There is one for each distinct set of
//! images, whoever asks first; it is built with that pod's credentials. While it is being made, or has failed, it says
//! nothing of a pod with other credentials: such a pod may have one of its own. Once it is ready, hosts give its private
//! images to whoever can pull them ([`super::verification`]).

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest as _, Sha256};

use super::plan::is_leaving;
use super::reference::Reference;
use super::retention;
use super::status::image_set;
use crate::custom_resource::{
    AUTOMATIC_GIB, AUTOMATIC_LABEL, FINALIZER, IMAGE_SET_LABEL, INSECURE_ANNOTATION, ImageCache, ImageCacheSpec,
    LARGEST_GIB, MOST_IMAGES, PLAIN_HTTP_ANNOTATION, Phase,
};
use crate::{identity, quantity};

/// Until a build that failed is tried again for the next pod that asks.
const RETRY: SignedDuration = SignedDuration::from_secs(60);

/// How much more storage a pod asks for than every instance has, as a quantity.
const EXTRA_STORAGE_ANNOTATION: &str = "k8s.aliyun.com/eci-extra-ephemeral-storage";

/// A pod that asks for a cache of its images.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// The pod, for events.
    pub pod: ObjectReference,
    /// The key of its set of images.
    pub image_set: String,
    /// The object to make.
    pub cache: ImageCache,
}

/// What to do about an ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Make the object.
    Create,
    /// Remove this one, which failed a while ago, and make the object.
    Replace {
        /// The failed object's name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// This one is being built.
    Join {
        /// Its name.
        name: String,
    },
    /// There is one, ready or lately failed.
    Nothing,
}

/// Why no cache can be made for a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// More images than a cache holds.
    #[error("the pod has {count} images, and a cache holds {MOST_IMAGES} at most")]
    TooMany {
        /// How many the pod has.
        count: usize,
    },
}

/// The images of a pod's containers as the user wrote them, in the order of the pod.
pub fn images(pod: &Pod) -> impl Iterator<Item = &str> {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    containers.filter_map(|container| container.image.as_deref())
}

/// The pull secrets of a pod, `namespace:name`, those of its service account among them: admission has put them there.
pub fn secrets(pod: &Pod) -> BTreeSet<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let secrets = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    secrets.filter(|secret| !secret.name.is_empty()).map(|secret| format!("{namespace}:{}", secret.name)).collect()
}

/// The secrets that a cache was made with for one pod; none for one that was made by hand.
pub fn made_with(cache: &ImageCache) -> BTreeSet<String> {
    if retention::is_automatic(cache) {
        cache.spec.image_pull_secrets.iter().cloned().collect()
    } else {
        BTreeSet::new()
    }
}

/// The ask of a pod.
///
/// # Errors
/// When its images fit into no cache.
pub fn ask(pod: &Pod) -> Result<Ask, AskError> {
    let mut seen = BTreeSet::new();
    let is_new =
        |text: &&str| seen.insert(Reference::parse(text).map_or_else(|_| (*text).to_owned(), |r| r.to_string()));
    let distinct: Vec<String> = images(pod).filter(is_new).map(str::to_owned).collect();
    if distinct.len() > MOST_IMAGES {
        return Err(AskError::TooMany { count: distinct.len() });
    }
    let metadata = &pod.metadata;
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let spec = ImageCacheSpec {
        images: distinct,
        image_pull_secrets: secrets(pod).into_iter().collect(),
        image_cache_size: i64::try_from(size_gib(pod)).ok(),
        retention_days: None,
    };
    let image_set = image_set_key(&spec);
    let annotation = |key: &str| {
        let value = metadata.annotations.as_ref()?.get(key)?;
        Some((key.to_owned(), value.clone()))
    };
    let mut cache = ImageCache::new(&format!("auto-create-for-{}", identity::instance_id(uid)), spec);
    cache.metadata = ObjectMeta {
        name: cache.metadata.name.take(),
        labels: Some(
            [(AUTOMATIC_LABEL.to_owned(), "true".to_owned()), (IMAGE_SET_LABEL.to_owned(), image_set.clone())].into(),
        ),
        finalizers: Some(vec![FINALIZER.to_owned()]),
        annotations: Some([PLAIN_HTTP_ANNOTATION, INSECURE_ANNOTATION].into_iter().filter_map(annotation).collect()),
        ..ObjectMeta::default()
    };
    let pod = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    };
    Ok(Ask { pod, image_set, cache })
}

/// The size of a pod's cache: as much as every instance has, and what the pod asks for beyond.
fn size_gib(pod: &Pod) -> u64 {
    let annotations = pod.metadata.annotations.as_ref();
    let extra = annotations.and_then(|annotations| annotations.get(EXTRA_STORAGE_ANNOTATION));
    let bytes = extra.and_then(|extra| quantity::whole(extra)).unwrap_or_default();
    AUTOMATIC_GIB.saturating_add(bytes.div_ceil(1 << 30)).min(LARGEST_GIB)
}

/// What to do about an ask, among the objects that there are.
pub fn answer<'a>(ask: &Ask, caches: impl IntoIterator<Item = &'a ImageCache>, now: Timestamp) -> Answer {
    let mut best = Answer::Create;
    let secrets: BTreeSet<String> = ask.cache.spec.image_pull_secrets.iter().cloned().collect();
    // What is ready serves whoever may have it. What is being made or has failed tells nothing of a build with others.
    let is_for_it = |cache: &&ImageCache| {
        let tells = match cache.status.as_ref().map(|status| status.phase).unwrap_or_default() {
            Phase::Ready | Phase::Updating | Phase::UpdateFailed => true,
            Phase::Pending | Phase::Creating | Phase::Failed => {
                !retention::is_automatic(cache) || made_with(cache) == secrets
            }
        };
        tells && image_set_key(&cache.spec) == ask.image_set
    };
    for cache in caches.into_iter().filter(|cache| !is_leaving(cache)).filter(is_for_it) {
        let name = cache.metadata.name.clone().unwrap_or_default();
        let status = cache.status.clone().unwrap_or_default();
        match status.phase {
            Phase::Pending | Phase::Creating => return Answer::Join { name },
            Phase::Ready | Phase::Updating | Phase::UpdateFailed => return Answer::Nothing,
            // One that was made by hand is the user's to repair.
            Phase::Failed if !retention::is_automatic(cache) => {}
            Phase::Failed => {
                let failed = status.last_updated_time.map(|time| time.0);
                best = if failed.is_none_or(|failed| failed + RETRY <= now) {
                    Answer::Replace { name, uid: cache.metadata.uid.clone().unwrap_or_default() }
                } else {
                    Answer::Nothing
                };
            }
        }
    }
    best
}

/// The key of a spec's set of images, whichever order and spelling they come in; fits a label's value.
pub fn image_set_key(spec: &ImageCacheSpec) -> String {
    let set: Vec<String> = image_set(spec.images.iter().map(String::as_str)).into_iter().collect();
    // No reference holds a line break, so different sets never make the same text.
    hex::encode(&Sha256::digest(set.join("\n").as_bytes())[..20])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom_resource::ImageCacheStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use rstest::rstest;
    use serde_json::json;

    fn pod(images: &[&str]) -> Pod {
        let containers: Vec<_> = images.iter().map(|image| json!({"name": "c", "image": image})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "annotations": {PLAIN_HTTP_ANNOTATION: "r:5000", "x": "y"}},
            "spec": {"containers": containers, "imagePullSecrets": [{"name": "s"}, {"name": "s"}, {}]},
        }))
        .unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_000).unwrap()
    }

    fn made(images: &[&str], phase: Phase, automatic: bool) -> ImageCache {
        let mut cache = ask(&pod(images)).unwrap().cache;
        cache.metadata.uid = Some("cache-uid".to_owned());
        if !automatic {
            cache.metadata.labels = None;
        }
        cache.status = Some(ImageCacheStatus { phase, last_updated_time: Some(Time(now())), ..Default::default() });
        cache
    }

    /// The same for a pod without secrets.
    fn open(mut cache: ImageCache) -> ImageCache {
        cache.spec.image_pull_secrets.clear();
        cache
    }

    /// The same for a pod of another namespace.
    fn others(mut cache: ImageCache) -> ImageCache {
        cache.spec.image_pull_secrets = vec!["other:s".to_owned()];
        cache
    }

    #[test]
    fn the_object_is_the_pods() {
        let ask = ask(&pod(&["nginx", "busybox:1", "docker.io/library/nginx:latest"])).unwrap();
        let ImageCache { metadata, spec, status } = ask.cache;
        assert_eq!(metadata.name.unwrap(), format!("auto-create-for-{}", identity::instance_id("u")));
        assert_eq!(metadata.labels.unwrap()[AUTOMATIC_LABEL], "true");
        assert_eq!(metadata.annotations.unwrap(), [(PLAIN_HTTP_ANNOTATION.to_owned(), "r:5000".to_owned())].into());
        assert_eq!(spec.images, ["nginx", "busybox:1"]);
        assert_eq!(spec.image_pull_secrets, ["ns:s"]);
        assert_eq!(spec.image_cache_size, Some(30));
        assert!(status.is_none());
        assert_eq!(ask.pod.uid.as_deref(), Some("u"));
    }

    #[rstest]
    #[case("50Gi", 80)]
    #[case("500Mi", 31)]
    #[case("1.5Gi", 32)]
    #[case("lots", 30)]
    #[case("-1Gi", 30)]
    #[case("9Pi", 32_768)]
    fn the_size_is_what_every_pod_has_and_what_this_one_asks_for(#[case] extra: &str, #[case] expected: i64) {
        let mut pod = pod(&["nginx"]);
        pod.metadata.annotations = Some([(EXTRA_STORAGE_ANNOTATION.to_owned(), extra.to_owned())].into());
        assert_eq!(ask(&pod).unwrap().cache.spec.image_cache_size, Some(expected));
    }

    #[test]
    fn the_key_is_of_the_set() {
        let key = |images: &[&str]| ask(&pod(images)).unwrap().image_set;
        assert_eq!(key(&["nginx", "busybox:1"]), key(&["docker.io/library/busybox:1", "nginx:latest", "nginx"]));
        assert_ne!(key(&["nginx", "busybox:1"]), key(&["nginx"]));
        assert!(key(&["nginx"]).len() <= 63);
    }

    #[test]
    fn a_pod_with_too_many_images_gets_none() {
        let images: Vec<String> = (0..21).map(|n| format!("image-{n}")).collect();
        let texts: Vec<&str> = images.iter().map(String::as_str).collect();
        assert_eq!(ask(&pod(&texts)), Err(AskError::TooMany { count: 21 }));
        assert!(ask(&pod(&texts[..20])).is_ok());
    }

    #[rstest]
    #[case::none_there(vec![], Answer::Create)]
    #[case::another_set(vec![made(&["redis"], Phase::Ready, true)], Answer::Create)]
    #[case::being_built(vec![made(&["nginx"], Phase::Creating, true)],
        Answer::Join { name: format!("auto-create-for-{}", identity::instance_id("u")) })]
    #[case::being_built_by_hand(vec![made(&["nginx"], Phase::Pending, false)],
        Answer::Join { name: format!("auto-create-for-{}", identity::instance_id("u")) })]
    #[case::ready(vec![made(&["nginx"], Phase::Failed, true), made(&["nginx"], Phase::Ready, true)], Answer::Nothing)]
    #[case::just_failed(vec![made(&["nginx"], Phase::Failed, true)], Answer::Nothing)]
    #[case::ready_for_everybody(vec![open(made(&["nginx"], Phase::Ready, true))], Answer::Nothing)]
    #[case::failed_without_the_secret(vec![open(made(&["nginx"], Phase::Failed, true))], Answer::Create)]
    #[case::being_built_without_the_secret(vec![open(made(&["nginx"], Phase::Creating, true))], Answer::Create)]
    #[case::ready_with_other_secrets(vec![others(made(&["nginx"], Phase::Ready, true))], Answer::Nothing)]
    #[case::failed_for_others(vec![others(made(&["nginx"], Phase::Failed, true))], Answer::Create)]
    #[case::failed_by_hand(vec![made(&["nginx"], Phase::Failed, false)], Answer::Create)]
    fn answers(#[case] caches: Vec<ImageCache>, #[case] expected: Answer) {
        assert_eq!(answer(&ask(&pod(&["nginx"])).unwrap(), &caches, now()), expected);
    }

    #[test]
    fn a_failure_is_tried_again_after_a_while() {
        let failed = made(&["nginx"], Phase::Failed, true);
        let name = failed.metadata.name.clone().unwrap();
        let later = answer(&ask(&pod(&["nginx"])).unwrap(), [&failed], now() + RETRY);
        assert_eq!(later, Answer::Replace { name, uid: "cache-uid".to_owned() });
    }
}
