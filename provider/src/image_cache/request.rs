//! Pure: no I/O, no clock, no randomness.
//!
//! What a pod asks of image caches: its annotations, read once into a checked form. Every value that cannot be honoured has
//! a stated outcome and becomes a [`Notice`] that the user sees as a Warning event; nothing invalid is passed over in
//! silence, and nothing invalid keeps a pod from starting.
//!
//! | annotation | not usable | outcome |
//! |---|---|---|
//! | `eci-imc-id` | empty | as if it were not there; the legacy name is looked at next |
//! | `eci-image-snapshot-id` | empty | as if it were not there |
//! | `eci-auto-imc` | not a boolean | the default: `true`, or what the node has in its place |
//! | `eci-image-cache` | not a boolean | likewise |
//! | `imc-perfect-match` | not a boolean | the default: `false` |
//! | `imc-match-count-request` | not a whole number of 0 or more | as if it were not there |
//!
//! Of a pod that says nothing, the node decides ([`NodeDefault`]): whether it is matched, and whether a cache is made for it.
//!
//! A well-formed id of a cache that does not exist is not an invalid value: see [`super::matching`].

use std::collections::BTreeMap;

/// Turns automatic matching (and creation) on or off; on by default.
pub const AUTO: &str = "k8s.aliyun.com/eci-auto-imc";
/// The older name of [`AUTO`]. Looked at only where the new one is not there.
pub const AUTO_LEGACY: &str = "k8s.aliyun.com/eci-image-cache";
/// Names the one cache that the pod is to start from.
pub const PINNED: &str = "k8s.aliyun.com/eci-imc-id";
/// The older name of [`PINNED`]. Looked at only where the new one is not there.
pub const PINNED_LEGACY: &str = "k8s.aliyun.com/eci-image-snapshot-id";
/// Asks for a cache that holds every image of the pod.
pub const PERFECT: &str = "k8s.aliyun.com/imc-perfect-match";
/// Asks for a cache that holds at least so many images of the pod.
pub const COUNT: &str = "k8s.aliyun.com/imc-match-count-request";

/// Reason of the event that tells of an annotation which cannot be honoured.
pub const INVALID_ANNOTATION: &str = "InvalidAnnotation";
/// Reason of the event that tells of a wish which the node does not grant.
pub const SWITCHED_OFF: &str = "ImageCacheSwitchedOff";

/// So many characters of an invalid value are shown.
const SHOWN: usize = 64;

/// What a pod wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// No image cache at all, and none to be made.
    Nothing,
    /// This cache and no other.
    Pinned {
        /// The id, `imc-...`, as the user wrote it.
        id: String,
    },
    /// The best one there is.
    Automatic {
        /// How much of the pod a cache has to hold to be of use.
        condition: Condition,
    },
}

/// How much of a pod a cache has to hold to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// One image or more.
    Any,
    /// So many images or more.
    AtLeast(usize),
    /// Every image.
    Perfect,
}

/// What holds for pods that do not say themselves whether they are matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeDefault {
    /// They are, and a cache is made where none holds them whole: as on ECI.
    #[default]
    Create,
    /// They are, and no cache is made.
    Match,
    /// They are not. This also holds for pods that ask for it; only a cache that a pod names by its id is used.
    Off,
}

/// What follows when no cache holds the whole pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMiss {
    /// One is made.
    Create,
    /// Images are pulled, and that is all.
    Pull,
}

/// The annotations of a pod, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What the pod wants.
    pub wish: Wish,
    /// What follows when no cache holds it whole.
    pub on_miss: OnMiss,
    /// What its user is told.
    pub notices: Vec<Notice>,
}

/// Something that the user is to be told about an annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The reason of the event.
    pub reason: &'static str,
    /// The text of the event.
    pub message: String,
}

/// Reads the annotations of a pod.
pub fn read(annotations: Option<&BTreeMap<String, String>>, default: NodeDefault) -> Asked {
    let empty = BTreeMap::new();
    let mut reader = Reader { annotations: annotations.unwrap_or(&empty), default, notices: Vec::new() };
    let (wish, on_miss) = reader.wish();
    Asked { wish, on_miss, notices: reader.notices }
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    default: NodeDefault,
    notices: Vec<Notice>,
}

impl Reader<'_> {
    /// Everything is read, so that an invalid value is reported also where another makes it irrelevant.
    fn wish(&mut self) -> (Wish, OnMiss) {
        let (pinned, pinned_legacy) = (self.id(PINNED), self.id(PINNED_LEGACY));
        let auto = if self.annotations.contains_key(AUTO) { AUTO } else { AUTO_LEGACY };
        let is_matched = self.default != NodeDefault::Off;
        let (auto, perfect, count) = (self.boolean(auto, is_matched), self.boolean(PERFECT, false), self.count());
        let perfect = perfect.unwrap_or(false);
        // A pinned cache overrides automatic matching, also one that is switched off.
        if let Some(id) = pinned.or(pinned_legacy) {
            return (Wish::Pinned { id }, OnMiss::Pull);
        }
        let condition = match (perfect, count) {
            (true, _) => Condition::Perfect,
            (false, Some(count)) if count > 1 => Condition::AtLeast(count),
            (false, _) => Condition::Any,
        };
        match (self.default, auto) {
            (_, Some(false)) | (NodeDefault::Off, None) => (Wish::Nothing, OnMiss::Pull),
            (NodeDefault::Off, Some(true)) => {
                let message =
                    "[eci.imagecache]Image caches are not matched on this virtual node: they are switched off there.";
                self.notices.push(Notice { reason: SWITCHED_OFF, message: message.to_owned() });
                (Wish::Nothing, OnMiss::Pull)
            }
            (NodeDefault::Match, None) => (Wish::Automatic { condition }, OnMiss::Pull),
            (NodeDefault::Create, _) | (NodeDefault::Match, Some(true)) => {
                (Wish::Automatic { condition }, OnMiss::Create)
            }
        }
    }

    fn id(&mut self, key: &str) -> Option<String> {
        let id = self.annotations.get(key)?.trim();
        if id.is_empty() {
            self.notice(key, "an image cache id (imc-...)", "the annotation is ignored");
            return None;
        }
        Some(id.to_owned())
    }

    /// Nothing where it is not there or not usable; `default` is what then holds.
    fn boolean(&mut self, key: &str, default: bool) -> Option<bool> {
        match self.annotations.get(key)?.trim() {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => Some(true),
            "false" | "False" | "FALSE" | "f" | "F" | "0" => Some(false),
            _ => {
                self.notice(key, "\"true\" or \"false\"", &format!("the default \"{default}\" is used"));
                None
            }
        }
    }

    fn count(&mut self) -> Option<usize> {
        let value = self.annotations.get(COUNT)?.trim();
        match value.parse() {
            Ok(count) => Some(count),
            Err(_) => {
                self.notice(COUNT, "a whole number of images", "the annotation is ignored");
                None
            }
        }
    }

    fn notice(&mut self, key: &str, expected: &str, outcome: &str) {
        // An annotation may hold 256 KiB, an event 1 KiB.
        let value: String =
            self.annotations.get(key).map(|value| value.chars().take(SHOWN).collect()).unwrap_or_default();
        let message = format!(
            "[eci.imagecache]Annotation {key} has the invalid value {value:?}: {expected} is expected; {outcome}."
        );
        self.notices.push(Notice { reason: INVALID_ANNOTATION, message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn read_pairs(pairs: &[(&str, &str)]) -> (Wish, Vec<Notice>) {
        let asked = read_on(NodeDefault::Create, pairs);
        (asked.wish, asked.notices)
    }

    fn read_on(default: NodeDefault, pairs: &[(&str, &str)]) -> Asked {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        read(Some(&annotations), default)
    }

    fn pinned(id: &str) -> Wish {
        Wish::Pinned { id: id.to_owned() }
    }

    const ANY: Wish = Wish::Automatic { condition: Condition::Any };
    const PERFECTLY: Wish = Wish::Automatic { condition: Condition::Perfect };

    #[rstest]
    #[case(&[], ANY)]
    #[case(&[(AUTO, "true")], ANY)]
    #[case(&[(AUTO, "false")], Wish::Nothing)]
    #[case(&[(AUTO_LEGACY, "false")], Wish::Nothing)]
    #[case(&[(AUTO, "true"), (AUTO_LEGACY, "false")], ANY)]
    #[case(&[(AUTO, "false"), (AUTO_LEGACY, "true")], Wish::Nothing)]
    #[case(&[(PERFECT, "true")], PERFECTLY)]
    #[case(&[(PERFECT, "true"), (COUNT, "2")], PERFECTLY)]
    #[case(&[(PERFECT, "false"), (COUNT, "2")], Wish::Automatic { condition: Condition::AtLeast(2) })]
    #[case(&[(COUNT, "1")], ANY)]
    #[case(&[(COUNT, "0")], ANY)]
    #[case(&[(PINNED, "imc-a")], pinned("imc-a"))]
    #[case(&[(PINNED, "imc-a"), (PINNED_LEGACY, "imc-b")], pinned("imc-a"))]
    #[case(&[(PINNED_LEGACY, "imc-b")], pinned("imc-b"))]
    #[case(&[(PINNED, "imc-a"), (AUTO, "false")], pinned("imc-a"))]
    #[case(&[(PINNED, "imc-a"), (PERFECT, "true")], pinned("imc-a"))]
    #[case(&[(AUTO, "false"), (PERFECT, "true")], Wish::Nothing)]
    fn valid(#[case] pairs: &[(&str, &str)], #[case] expected: Wish) {
        assert_eq!(read_pairs(pairs), (expected, vec![]));
    }

    #[rstest]
    #[case(&[(AUTO, "yes")], ANY, AUTO)]
    #[case(&[(AUTO, "")], ANY, AUTO)]
    #[case(&[(AUTO_LEGACY, "on")], ANY, AUTO_LEGACY)]
    #[case(&[(PERFECT, "yes")], ANY, PERFECT)]
    #[case(&[(COUNT, "-1")], ANY, COUNT)]
    #[case(&[(COUNT, "two")], ANY, COUNT)]
    #[case(&[(COUNT, "")], ANY, COUNT)]
    #[case(&[(COUNT, "99999999999999999999999999")], ANY, COUNT)]
    #[case(&[(PINNED, "")], ANY, PINNED)]
    #[case(&[(PINNED, ""), (PINNED_LEGACY, "imc-b")], pinned("imc-b"), PINNED)]
    #[case(&[(PERFECT, "true"), (COUNT, "-1")], PERFECTLY, COUNT)]
    #[case(&[(PINNED, "imc-a"), (AUTO, "yes")], pinned("imc-a"), AUTO)]
    #[case(&[(AUTO, "false"), (COUNT, "-1")], Wish::Nothing, COUNT)]
    fn invalid(#[case] pairs: &[(&str, &str)], #[case] expected: Wish, #[case] told_of: &str) {
        let (wish, notices) = read_pairs(pairs);
        assert_eq!(wish, expected);
        assert_eq!(notices.len(), 1);
        assert!(notices[0].message.contains(told_of), "{:?}", notices[0]);
    }

    #[rstest]
    #[case(NodeDefault::Create, &[], ANY, OnMiss::Create)]
    #[case(NodeDefault::Create, &[(AUTO, "yes")], ANY, OnMiss::Create)]
    #[case(NodeDefault::Create, &[(AUTO, "false")], Wish::Nothing, OnMiss::Pull)]
    #[case(NodeDefault::Match, &[], ANY, OnMiss::Pull)]
    #[case(NodeDefault::Match, &[(AUTO, "yes")], ANY, OnMiss::Pull)]
    #[case(NodeDefault::Match, &[(AUTO, "true")], ANY, OnMiss::Create)]
    #[case(NodeDefault::Match, &[(AUTO_LEGACY, "true")], ANY, OnMiss::Create)]
    #[case(NodeDefault::Match, &[(AUTO, "false")], Wish::Nothing, OnMiss::Pull)]
    #[case(NodeDefault::Match, &[(PERFECT, "true")], PERFECTLY, OnMiss::Pull)]
    #[case(NodeDefault::Off, &[], Wish::Nothing, OnMiss::Pull)]
    #[case(NodeDefault::Off, &[(AUTO, "true")], Wish::Nothing, OnMiss::Pull)]
    #[case(NodeDefault::Off, &[(AUTO, "yes")], Wish::Nothing, OnMiss::Pull)]
    #[case(NodeDefault::Off, &[(PINNED, "imc-a"), (AUTO, "true")], pinned("imc-a"), OnMiss::Pull)]
    fn the_node_decides_where_the_pod_does_not(
        #[case] default: NodeDefault,
        #[case] pairs: &[(&str, &str)],
        #[case] wish: Wish,
        #[case] on_miss: OnMiss,
    ) {
        let asked = read_on(default, pairs);
        assert_eq!((asked.wish, asked.on_miss), (wish, on_miss));
    }

    #[test]
    fn a_pod_that_asks_in_vain_is_told() {
        let told = |pairs| read_on(NodeDefault::Off, pairs).notices;
        assert_eq!(told(&[]), []);
        assert_eq!(told(&[(AUTO, "true")])[0].reason, SWITCHED_OFF);
        assert!(told(&[(AUTO, "yes")])[0].message.contains("the default \"false\" is used"));
    }

    #[test]
    fn the_notice_says_what_was_wrong_and_what_happens() {
        let (_, notices) = read_pairs(&[(AUTO, "yes")]);
        assert_eq!(
            notices[0].message,
            "[eci.imagecache]Annotation k8s.aliyun.com/eci-auto-imc has the invalid value \"yes\": \"true\" or \"false\" is \
             expected; the default \"true\" is used."
        );
    }

    proptest! {
        #[test]
        fn nothing_panics_and_bad_values_are_told(auto in ".{0,8}", perfect in ".{0,8}", count in ".{0,8}") {
            let (wish, notices) = read_pairs(&[(AUTO, &auto), (PERFECT, &perfect), (COUNT, &count)]);
            prop_assert!(notices.len() <= 3);
            let is_pinned = matches!(wish, Wish::Pinned { .. });
            prop_assert!(!is_pinned);
        }
    }
}
