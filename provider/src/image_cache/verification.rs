//! Pure: no I/O, no clock, no randomness.
//!
//! Which pods a cache gives its private images to. The host decides, because only it knows what a registry has let in; here
//! is read what the object says of it.

use kube::ResourceExt as _;

use crate::agent::VerificationPolicy;
use crate::custom_resource::{ImageCache, VERIFICATION_ANNOTATION};

/// The policies by their names in KEP-2535.
const NAMES: [(&str, VerificationPolicy); 4] = [
    ("NeverVerify", VerificationPolicy::NeverVerify),
    ("NeverVerifyPreloadedImages", VerificationPolicy::NeverVerifyPreloadedImages),
    ("NeverVerifyAllowlistedImages", VerificationPolicy::NeverVerifyAllowlistedImages),
    ("AlwaysVerify", VerificationPolicy::AlwaysVerify),
];

/// The policy of a cache; none for that of the hosts. A value that means nothing must not give away what it was to keep.
pub fn policy(cache: &ImageCache) -> Option<VerificationPolicy> {
    let written = written(cache)?;
    Some(named(written).unwrap_or(VerificationPolicy::AlwaysVerify))
}

/// What is to be said of a value that means nothing.
pub fn invalid(cache: &ImageCache) -> Option<String> {
    let written = written(cache).filter(|written| named(written).is_none())?;
    let names = NAMES.map(|(name, _)| name).join(", ");
    Some(format!("annotation {VERIFICATION_ANNOTATION} is {written:?}, and none of {names}: AlwaysVerify is used"))
}

fn written(cache: &ImageCache) -> Option<&str> {
    cache.annotations().get(VERIFICATION_ANNOTATION).map(|written| written.trim()).filter(|written| !written.is_empty())
}

fn named(written: &str) -> Option<VerificationPolicy> {
    NAMES.iter().find(|(name, _)| *name == written).map(|(_, policy)| *policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom_resource::ImageCacheSpec;
    use proptest::prelude::*;

    fn read(value: &str) -> (Option<VerificationPolicy>, Option<String>) {
        let cache = ImageCache::new("c", ImageCacheSpec::default()).annotated(&[(VERIFICATION_ANNOTATION, value)]);
        (policy(&cache), invalid(&cache))
    }

    #[test]
    fn the_names_are_those_of_the_kubelet() {
        for (name, policy) in NAMES {
            assert_eq!(read(&format!(" {name} ")), (Some(policy), None));
        }
        assert_eq!(read(" "), (None, None));
        let without = ImageCache::new("c", ImageCacheSpec::default());
        assert_eq!((policy(&without), invalid(&without)), (None, None));
    }

    proptest! {
        #[test]
        fn what_means_nothing_is_told_and_gives_nothing_away(value in "[a-zA-Z]{1,12}") {
            prop_assume!(named(&value).is_none());
            let (policy, told) = read(&value);
            prop_assert_eq!(policy, Some(VerificationPolicy::AlwaysVerify));
            let told = told.unwrap();
            prop_assert!(told.contains(VERIFICATION_ANNOTATION) && told.contains(&value), "{}", told);
        }
    }
}
