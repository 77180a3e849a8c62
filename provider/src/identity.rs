//! Pure: no I/O, no clock, no randomness.
//!
//! The identifiers that Larder makes up. They are derived from what they stand for and not drawn at random, so that a
//! restart in the middle of anything arrives at the same ones and nothing is made twice.

use sha2::{Digest as _, Sha256};

/// The characters of ECI's identifiers.
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// How many of them follow the prefix.
const LENGTH: usize = 20;

/// The id of an image cache: `imc-` and 20 characters, from the UID of its object. An object that is deleted and created
/// again is another cache.
pub fn image_cache_id(object_uid: &str) -> String {
    format!("imc-{}", derive("image cache", object_uid))
}

/// The id of a pod's instance: `eci-` and 20 characters, from the pod's UID.
pub fn instance_id(pod_uid: &str) -> String {
    format!("eci-{}", derive("instance", pod_uid))
}

/// The id of the request that made a pod's instance, in the shape of a UUID in capitals, from the pod's UID.
pub fn request_id(pod_uid: &str) -> String {
    let digest = Sha256::digest(format!("request\n{pod_uid}").as_bytes());
    let text = hex::encode_upper(&digest[..16]);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

/// 20 characters from a text, different for each purpose.
fn derive(purpose: &str, text: &str) -> String {
    let digest = Sha256::digest(format!("{purpose}\n{text}").as_bytes());
    digest.iter().take(LENGTH).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "0b5a5f0e-7c1d-4a4b-9a39-1f5d4a3e2c11";

    #[test]
    fn ids_look_like_ecis() {
        for (id, prefix) in [(image_cache_id(UID), "imc-"), (instance_id(UID), "eci-")] {
            let rest = id.strip_prefix(prefix).unwrap();
            assert_eq!(rest.len(), 20);
            assert!(rest.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()), "{id}");
        }
        assert_ne!(image_cache_id(UID)[4..], instance_id(UID)[4..]);
        assert_eq!(request_id(UID).len(), 36);
    }

    proptest! {
        #[test]
        fn the_same_uid_gives_the_same_id(a in "[a-f0-9-]{36}", b in "[a-f0-9-]{36}") {
            prop_assert_eq!(image_cache_id(&a), image_cache_id(&a));
            prop_assert_eq!(a == b, image_cache_id(&a) == image_cache_id(&b));
        }
    }
}
