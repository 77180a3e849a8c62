//! Pure: no I/O, no clock, no randomness.
//!
//! The data of `kube-system/eci-profile`, read into a checked form. Of its keys only `selectors` means something here, a JSON
//! array in a string:
//!
//! ```json
//! [{"name": "selector-demo1",
//!   "namespaceSelector": {"matchLabels": {"eci": "true"}},
//!   "objectSelector": {"matchLabels": {"eci": "true"}},
//!   "effect": {"annotations": {"k8s.aliyun.com/eci-auto-imc": "true"}, "labels": {"created-by-eci": "true"}}}]
//! ```
//!
//! It is taken whole or not at all. What is wrong is told with its line within `selectors`, as an editor counts them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

use super::effect::{Effect, is_ours};
use super::labels;

/// The key that is read.
pub const SELECTORS: &str = "selectors";
/// The longest text of `selectors`: it is kept beside the webhook's entry, where the API server takes little more.
const LONGEST: usize = 64 << 10;
/// The most selectors. Each is an entry of its own, and a pod that all of them select waits for all of them.
const MOST: usize = 100;

/// What holds for pods that are created.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Profile {
    /// In the order in which they are tried.
    pub selectors: Vec<Selector>,
}

/// One selector.
#[derive(Debug, Clone, PartialEq)]
pub struct Selector {
    /// Its name, for people.
    pub name: String,
    /// Labels of the namespace.
    pub namespace: Option<LabelSelector>,
    /// Labels of the pod.
    pub object: Option<LabelSelector>,
    /// What is written on the pod.
    pub effect: Effect,
}

impl Selector {
    /// Whether it brings no pod to the virtual nodes, and writes on all that go there anyway.
    pub fn is_effect_only(&self) -> bool {
        self.namespace.is_none() && self.object.is_none()
    }

    /// What tells it from other selectors, of an earlier profile as well.
    pub fn digest(&self) -> String {
        let digest = Sha256::digest(format!("{self:?}").as_bytes());
        hex::encode(&digest[..8])
    }
}

/// What is wrong with `selectors`, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("selectors, line {line}, column {column}: {what}")]
pub struct Invalid {
    /// From 1.
    pub line: usize,
    /// From 1; 0 for the whole line.
    pub column: usize,
    /// For people.
    pub what: String,
}

/// Reads the text of `selectors`. An empty one has none.
///
/// # Errors
/// When it is not what is expected.
pub fn parse(text: &str) -> Result<Profile, Invalid> {
    let whole = |what: String| Invalid { line: 1, column: 0, what };
    if text.trim().is_empty() {
        return Ok(Profile::default());
    }
    if text.len() > LONGEST {
        return Err(whole(format!("{} bytes are too long; {LONGEST} are the most", text.len())));
    }
    let selectors: Vec<Selector> = serde_json::from_str(text).map_err(|error| Invalid {
        line: error.line(),
        column: error.column(),
        what: without_place(&error.to_string()),
    })?;
    if selectors.len() > MOST {
        return Err(whole(format!("{} selectors are too many; {MOST} are the most", selectors.len())));
    }
    Ok(Profile { selectors })
}

/// The keys of the data that mean nothing here: what they choose among is Alibaba Cloud's alone.
pub fn unknown_keys(data: &BTreeMap<String, String>) -> impl Iterator<Item = &str> {
    data.keys().map(String::as_str).filter(|key| *key != SELECTORS)
}

/// serde_json says where at the end of its texts.
fn without_place(text: &str) -> String {
    text.rsplit_once(" at line ").map_or(text, |(what, _)| what).to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SelectorForm {
    name: String,
    namespace_selector: Option<LabelsForm>,
    object_selector: Option<LabelsForm>,
    effect: Option<EffectForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LabelsForm {
    #[serde(default)]
    match_labels: BTreeMap<Key, LabelValue>,
    #[serde(default)]
    match_expressions: Vec<RequirementForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequirementForm {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct EffectForm {
    #[serde(default)]
    annotations: BTreeMap<EffectKey, String>,
    #[serde(default)]
    labels: BTreeMap<EffectKey, LabelValue>,
}

/// A key that the API server takes. Checked as it is read, so that the error has its place.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key(String);

/// A key that may be written on a pod.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct EffectKey(String);

struct LabelValue(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if labels::is_key(&text) { Ok(Self(text)) } else { Err(D::Error::custom(format!("{text:?} is no key"))) }
    }
}

impl<'de> Deserialize<'de> for EffectKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Key(text) = Key::deserialize(from)?;
        let fault = || D::Error::custom(format!("{text:?} is for the virtual node alone to write"));
        if is_ours(&text) { Err(fault()) } else { Ok(Self(text)) }
    }
}

impl<'de> Deserialize<'de> for LabelValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let fault = || D::Error::custom(format!("{text:?} is no value of a label"));
        if labels::is_value(&text) { Ok(Self(text)) } else { Err(fault()) }
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let form = SelectorForm::deserialize(from)?;
        let name = form.name;
        let fault = |what: &str| D::Error::custom(format!("selector {name:?}: {what}"));
        if name.trim().is_empty() {
            return Err(fault("its name is empty"));
        }
        let selector = |form: Option<LabelsForm>| form.map(label_selector).transpose();
        let namespace = selector(form.namespace_selector).map_err(|what| fault(&what))?;
        let object = selector(form.object_selector).map_err(|what| fault(&what))?;
        let EffectForm { annotations, labels } = form.effect.unwrap_or_default();
        let effect = Effect {
            annotations: annotations.into_iter().map(|(key, value)| (key.0, value)).collect(),
            labels: labels.into_iter().map(|(key, value)| (key.0, value.0)).collect(),
        };
        if namespace.is_none() && object.is_none() && effect.is_empty() {
            return Err(fault("it selects nothing and has no effect"));
        }
        Ok(Self { name, namespace, object, effect })
    }
}

fn label_selector(form: LabelsForm) -> Result<LabelSelector, String> {
    let requirement = |form: RequirementForm| {
        let RequirementForm { key, operator, values } = form;
        let values = Some(values).filter(|values| !values.is_empty());
        let requirement = LabelSelectorRequirement { key, operator, values };
        labels::fault(&requirement).map_or(Ok(requirement), Err)
    };
    let expressions = form.match_expressions.into_iter().map(requirement).collect::<Result<Vec<_>, _>>()?;
    let labels: BTreeMap<String, String> = form.match_labels.into_iter().map(|(key, value)| (key.0, value.0)).collect();
    Ok(LabelSelector {
        match_expressions: Some(expressions).filter(|expressions| !expressions.is_empty()),
        match_labels: Some(labels).filter(|labels| !labels.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const DOCUMENTED: &str = r#"[{"name":"selector-demo1",
  "namespaceSelector":{"matchLabels":{"eci":"true"}},
  "objectSelector":{"matchLabels":{"eci":"true"}},
  "effect":{"annotations":{"k8s.aliyun.com/eci-auto-imc":"true"},"labels":{"created-by-eci":"true"}}}]"#;

    #[test]
    fn the_documented_profile_is_read() {
        let profile = parse(DOCUMENTED).unwrap();
        let [selector] = profile.selectors.as_slice() else { panic!("{profile:?}") };
        let labels = Some(BTreeMap::from([("eci".to_owned(), "true".to_owned())]));
        let wanted = LabelSelector { match_labels: labels, match_expressions: None };
        assert_eq!((&selector.namespace, &selector.object), (&Some(wanted.clone()), &Some(wanted)));
        assert_eq!(selector.effect.annotations["k8s.aliyun.com/eci-auto-imc"], "true");
        assert_eq!(selector.effect.labels["created-by-eci"], "true");
        assert!(!selector.is_effect_only());
    }

    #[test]
    fn nothing_is_no_selector() {
        for text in ["", " \n", "[]"] {
            assert_eq!(parse(text), Ok(Profile::default()));
        }
        assert!(parse(r#"[{"name": "all", "effect": {"labels": {"a": "b"}}}]"#).unwrap().selectors[0].is_effect_only());
    }

    #[rstest]
    #[case::broken("[{\"name\": \"a\",\n \"effect\": }]", 2, "expected value")]
    #[case::cut("[\n{\"name\": \"a\"", 2, "EOF")]
    #[case::no_array("{}", 1, "expected a sequence")]
    #[case::no_name("[\n{\"effect\": {}}]", 2, "missing field `name`")]
    #[case::unknown("[{\"name\": \"a\",\n\n \"policy\": {}}]", 3, "unknown field `policy`")]
    #[case::typo("[{\"name\": \"a\",\n \"objectSelector\":\n {\"matchLabel\": {}}}]", 3, "unknown field `matchLabel`")]
    #[case::no_text("[{\"name\": \"a\", \"effect\": {\"annotations\": {\n \"a\": true}}}]", 2, "expected a string")]
    #[case::key("[{\"name\": \"a\", \"effect\": {\"annotations\": {\n \"a b\": \"\"}}}]", 2, "\"a b\" is no key")]
    #[case::ours(
        "[{\"name\": \"a\", \"effect\": {\"annotations\": {\n \"ProviderCreate\": \"\"}}}]",
        2,
        "\"ProviderCreate\" is for the virtual node alone to write"
    )]
    #[case::value(
        "[{\"name\": \"a\", \"effect\": {\"labels\": {\n \"a\": \"b c\"}}}]",
        2,
        "\"b c\" is no value of a label"
    )]
    #[case::operator(
        "[{\"name\": \"a\", \"objectSelector\": {\"matchExpressions\":\n [{\"key\": \"k\", \"operator\": \"Is\"}]}}]",
        2,
        "selector \"a\": \"Is\" is no operator"
    )]
    #[case::empty_name("[{\"name\": \" \", \"effect\": {\"labels\": {\"a\": \"b\"}}}]", 1, "its name is empty")]
    #[case::idle("[\n{\"name\": \"a\"}]", 2, "selector \"a\": it selects nothing and has no effect")]
    fn a_fault_is_named_with_its_line(#[case] text: &str, #[case] line: usize, #[case] what: &str) {
        let invalid = parse(text).unwrap_err();
        assert_eq!(invalid.line, line, "{invalid}");
        assert!(invalid.what.contains(what) && !invalid.what.contains("at line"), "{invalid}");
    }

    #[test]
    fn too_much_is_refused() {
        let one = r#"{"name": "a", "objectSelector": {}}"#;
        let many = format!("[{}]", vec![one; 101].join(","));
        assert!(parse(&many).unwrap_err().what.contains("101 selectors are too many"));
        assert!(parse(&" ".repeat(LONGEST)).is_ok());
        assert!(parse(&format!("[{}]", " ".repeat(LONGEST))).unwrap_err().what.contains("too long"));
    }

    #[test]
    fn selectors_differ_in_their_digests() {
        let digests: Vec<String> = ["{}", r#"{"matchLabels": {"a": "b"}}"#]
            .map(|labels| {
                parse(&format!(r#"[{{"name": "a", "objectSelector": {labels}}}]"#)).unwrap().selectors[0].digest()
            })
            .into();
        assert_ne!(digests[0], digests[1]);
        assert_eq!(digests[0].len(), 16);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,200}", cut in 0..300_usize) {
            drop(parse(&text));
            drop(parse(DOCUMENTED.get(..cut).unwrap_or(DOCUMENTED)));
        }
    }
}
