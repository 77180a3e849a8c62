//! Pure: no I/O, no clock, no randomness.
//!
//! What a build depends on beside the spec: annotations, whose change gives an object no new generation.

use kube::ResourceExt as _;
use sha2::{Digest as _, Sha256};

use crate::custom_resource::{
    INSECURE_ANNOTATION, ImageCache, PLAIN_HTTP_ANNOTATION, REFRESH_ANNOTATION, SIZE_ANNOTATION,
};

/// A key of the annotations that the outcome of a build depends on; nothing when there are none. Another key: an earlier
/// failure says nothing any more.
pub fn settings(cache: &ImageCache) -> Option<String> {
    let mut hash = Sha256::new();
    let mut is_empty = true;
    for key in [PLAIN_HTTP_ANNOTATION, INSECURE_ANNOTATION, SIZE_ANNOTATION, REFRESH_ANNOTATION] {
        let Some(value) = cache.annotations().get(key) else { continue };
        is_empty = false;
        // The lengths keep two values from being read as one.
        hash.update(format!("{key}={}:{value};", value.len()));
    }
    (!is_empty).then(|| hex::encode(&hash.finalize()[..8]))
}

/// What the content is asked to be as new as: any text, empty when it is never to be fetched again.
pub fn refresh(cache: &ImageCache) -> &str {
    cache.annotations().get(REFRESH_ANNOTATION).map(String::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom_resource::ImageCacheSpec;

    fn cache(annotations: &[(&str, &str)]) -> ImageCache {
        ImageCache::new("c", ImageCacheSpec::default()).annotated(annotations)
    }

    #[test]
    fn only_what_a_build_depends_on_counts() {
        assert_eq!(settings(&cache(&[])), None);
        assert_eq!(settings(&cache(&[("team", "x")])), None);
        let all = [PLAIN_HTTP_ANNOTATION, INSECURE_ANNOTATION, SIZE_ANNOTATION, REFRESH_ANNOTATION];
        let keys: std::collections::BTreeSet<_> =
            all.iter().flat_map(|key| ["a", "b"].map(|value| settings(&cache(&[(key, value)])))).collect();
        assert_eq!(keys.len(), 8);
        assert_eq!(
            settings(&cache(&[(SIZE_ANNOTATION, "25"), ("team", "x")])),
            settings(&cache(&[(SIZE_ANNOTATION, "25")]))
        );
        assert_eq!((refresh(&cache(&[(REFRESH_ANNOTATION, "3")])), refresh(&cache(&[]))), ("3", ""));
    }
}
