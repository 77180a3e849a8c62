//! Pure: no I/O, no clock, no randomness.
//!
//! What the annotations of an ImageCache object ask for in vain: what only Alibaba's cloud can honour, and values that mean
//! nothing. The object is taken all the same, and says so once.
//!
//! `imc-enable-reuse` and `imc-enable-flash` are not among them: layers that are in the store are always used again, and a
//! cache is Ready as soon as the first host holds it. Annotations that say where a cache is wanted are read in
//! [`super::placement`], because a cache cannot be built while they mean nothing.

use kube::ResourceExt as _;

use super::request::INVALID_ANNOTATION;
use super::verification;
use crate::custom_resource::{
    ImageCache, LARGEST_GIB, LONGEST_RETENTION_DAYS, RETENTION_ANNOTATION, SIZE_ANNOTATION, SMALLEST_GIB,
};

/// Reason of the event about an annotation that is accepted and has no effect.
pub const NOT_HONOURED: &str = "NotHonoured";

/// Reason of the event about a Secret that brought no login.
pub const UNUSABLE_SECRET: &str = "PullSecretUnusable";

/// What only the cloud has, and what an annotation means there.
const CLOUD_ONLY: [(&str, &str); 12] = [
    ("k8s.aliyun.com/vswitch-ids", "it names zones of the cloud's network"),
    ("k8s.aliyun.com/security-group-id", "it names a firewall of the cloud's network"),
    ("k8s.aliyun.com/resource-group-id", "it names a group of resources of the cloud"),
    (
        "k8s.aliyun.com/acr-instance-ids",
        "only the cloud's registry knows its hosts without a login; name a Secret in spec.imagePullSecrets",
    ),
    ("k8s.aliyun.com/acr-service-arns", "only the cloud has its roles; name a Secret in spec.imagePullSecrets"),
    ("k8s.aliyun.com/acr-user-arns", "only the cloud has its roles; name a Secret in spec.imagePullSecrets"),
    ("k8s.aliyun.com/eip-instance-id", "it names an address of the cloud; hosts pull from their own"),
    ("k8s.aliyun.com/auto-create-eip", "it asks for an address of the cloud; hosts pull from their own"),
    ("k8s.aliyun.com/eip-bandwidth", "it is about an address of the cloud; hosts pull from their own"),
    ("k8s.aliyun.com/eip-internet-charge-type", "it is about an address of the cloud; hosts pull from their own"),
    ("k8s.aliyun.com/eip-isp", "it is about an address of the cloud; hosts pull from their own"),
    (
        "k8s.aliyun.com/eip-common-bandwidth-package-id",
        "it is about an address of the cloud; hosts pull from their own",
    ),
];

/// Something to tell whoever made the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// In one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What is to be said of an object's annotations. The same object always gives the same notices in the same order.
pub fn notices(cache: &ImageCache) -> Vec<Notice> {
    let value = |key: &str| cache.annotations().get(key);
    let asks = |key: &str| value(key).is_some_and(|value| !matches!(value.trim(), "" | "false"));
    let in_vain = CLOUD_ONLY.iter().filter(|(key, _)| asks(key)).map(|(key, why)| Notice {
        reason: NOT_HONOURED,
        message: format!("annotation {key} is accepted and has no effect: {why}"),
    });
    let (size, days) = (cache.spec.image_cache_size, cache.spec.retention_days);
    let size = value(SIZE_ANNOTATION).filter(|_| size.is_none()).and_then(|value| invalid_size(value));
    let days = value(RETENTION_ANNOTATION).filter(|_| days.is_none()).and_then(|value| invalid_days(value));
    let verification = verification::invalid(cache);
    let invalid =
        size.into_iter().chain(days).chain(verification).map(|message| Notice { reason: INVALID_ANNOTATION, message });
    invalid.chain(in_vain).collect()
}

fn invalid_size(value: &str) -> Option<String> {
    let used = match value.trim().parse::<u64>() {
        Ok(size) if (1..=LARGEST_GIB).contains(&size) => return None,
        Ok(size) => size.clamp(SMALLEST_GIB, LARGEST_GIB),
        Err(_) => SMALLEST_GIB,
    };
    Some(format!(
        "annotation {SIZE_ANNOTATION} is {value:?}, and not a number of GiB from {SMALLEST_GIB} to {LARGEST_GIB}: {used} \
         is used"
    ))
}

fn invalid_days(value: &str) -> Option<String> {
    let is_valid = value.trim().parse::<u32>().is_ok_and(|days| (1..=LONGEST_RETENTION_DAYS).contains(&days));
    let message = || {
        format!(
            "annotation {RETENTION_ANNOTATION} is {value:?}, and not a number of days from 1 to \
             {LONGEST_RETENTION_DAYS}: the cache is kept for ever"
        )
    };
    (!is_valid).then(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom_resource::{ImageCacheSpec, VERIFICATION_ANNOTATION};
    use rstest::rstest;

    fn cache(annotations: &[(&str, &str)]) -> ImageCache {
        ImageCache::new("c", ImageCacheSpec::default()).annotated(annotations)
    }

    #[test]
    fn what_only_the_cloud_has_is_named_and_what_holds_here_is_not() {
        for (key, _) in CLOUD_ONLY {
            let notices = notices(&cache(&[(key, "x")]));
            assert_eq!(notices.len(), 1, "{key}");
            assert_eq!(notices[0].reason, NOT_HONOURED);
            assert!(notices[0].message.contains(key), "{notices:?}");
        }
        let quiet = [
            ("k8s.aliyun.com/auto-create-eip", "false"),
            ("k8s.aliyun.com/imc-enable-reuse", "true"),
            ("k8s.aliyun.com/imc-enable-flash", "true"),
            ("k8s.aliyun.com/plain-http-registry", "r:5000"),
            ("k8s.aliyun.com/imc-cpu-arch", "arm64"),
            (SIZE_ANNOTATION, "25"),
            (RETENTION_ANNOTATION, "7"),
        ];
        assert_eq!(notices(&cache(&quiet)), []);
        assert_eq!(notices(&ImageCache::new("c", ImageCacheSpec::default())), []);
    }

    #[rstest]
    #[case(SIZE_ANNOTATION, "10", None)]
    #[case(SIZE_ANNOTATION, "0", Some(": 20 is used"))]
    #[case(SIZE_ANNOTATION, "lots", Some(": 20 is used"))]
    #[case(SIZE_ANNOTATION, "-3", Some(": 20 is used"))]
    #[case(SIZE_ANNOTATION, "99999", Some(": 32768 is used"))]
    #[case(RETENTION_ANNOTATION, "0", Some(": the cache is kept for ever"))]
    #[case(RETENTION_ANNOTATION, "65537", Some(": the cache is kept for ever"))]
    #[case(VERIFICATION_ANNOTATION, "Always", Some(": AlwaysVerify is used"))]
    #[case(VERIFICATION_ANNOTATION, "NeverVerify", None)]
    #[case(RETENTION_ANNOTATION, "week", Some(": the cache is kept for ever"))]
    fn values_that_mean_nothing_say_what_holds(#[case] key: &str, #[case] value: &str, #[case] end: Option<&str>) {
        let found = notices(&cache(&[(key, value)]));
        match end {
            None => assert_eq!(found, []),
            Some(end) => {
                assert_eq!((found.len(), found[0].reason), (1, INVALID_ANNOTATION));
                let message = &found[0].message;
                assert!(message.contains(key) && message.contains(value) && message.ends_with(end), "{message}");
            }
        }
    }

    #[test]
    fn a_field_that_is_given_makes_its_annotation_moot() {
        let mut cache = cache(&[(SIZE_ANNOTATION, "lots"), (RETENTION_ANNOTATION, "week")]);
        cache.spec.image_cache_size = Some(25);
        cache.spec.retention_days = Some(7);
        assert_eq!(notices(&cache), []);
    }
}
