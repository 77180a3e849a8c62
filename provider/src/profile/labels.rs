//! Pure: no I/O, no clock, no randomness.
//!
//! Keys and values of labels, and selectors of them, held to the API server's own rules: a webhook's entry with a selector
//! that breaks one would be refused as a whole, and a pod with such a label as well.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// The longest name, and the longest value.
const LONGEST_NAME: usize = 63;
/// The longest prefix of a key.
const LONGEST_PREFIX: usize = 253;

/// Whether it is a key of a label or an annotation: `name`, or `prefix.example/name`.
pub fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_prefix(prefix) && is_name(name),
        None => is_name(text),
    }
}

/// Whether it is the value of a label.
pub fn is_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

fn is_name(text: &str) -> bool {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= LONGEST_NAME
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && alphanumeric(text.chars().next())
        && alphanumeric(text.chars().last())
}

/// A DNS subdomain.
fn is_prefix(text: &str) -> bool {
    let part = |part: &str| {
        let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(is_inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= LONGEST_PREFIX && text.split('.').all(part)
}

/// What is wrong with a requirement; nothing when the API server takes it.
pub fn fault(requirement: &LabelSelectorRequirement) -> Option<String> {
    let LabelSelectorRequirement { key, operator, values } = requirement;
    let values = values.as_deref().unwrap_or_default();
    if !is_key(key) {
        return Some(format!("{key:?} is no key of a label"));
    }
    match operator.as_str() {
        "In" | "NotIn" if values.is_empty() => Some(format!("{operator} {key} needs values")),
        "In" | "NotIn" => {
            values.iter().find(|value| !is_value(value)).map(|value| format!("{value:?} is no value of a label"))
        }
        "Exists" | "DoesNotExist" if values.is_empty() => None,
        "Exists" | "DoesNotExist" => Some(format!("{operator} {key} takes no values")),
        other => Some(format!("{other:?} is no operator; use In, NotIn, Exists or DoesNotExist")),
    }
}

/// Whether labels are selected.
pub fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    let is_equal = |(key, wanted): (&String, &String)| value(key) == Some(wanted);
    let is_met = |requirement: &LabelSelectorRequirement| {
        let value = value(&requirement.key);
        let is_listed = value.is_some_and(|value| requirement.values.iter().flatten().any(|listed| listed == value));
        match requirement.operator.as_str() {
            "In" => is_listed,
            "NotIn" => !is_listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    selector.match_labels.iter().flatten().all(is_equal) && selector.match_expressions.iter().flatten().all(is_met)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[rstest]
    #[case("app", true)]
    #[case("k8s.aliyun.com/eci-auto-imc", true)]
    #[case("a_b.C-1", true)]
    #[case("", false)]
    #[case("-a", false)]
    #[case("a/b/c", false)]
    #[case("/a", false)]
    #[case("a/", false)]
    #[case("Upper.example/a", false)]
    #[case("a b", false)]
    #[case("\u{e4}", false)]
    fn keys(#[case] text: &str, #[case] valid: bool) {
        assert_eq!(is_key(text), valid);
    }

    #[test]
    fn lengths() {
        assert!(is_key(&"a".repeat(63)) && !is_key(&"a".repeat(64)));
        assert!(is_value(&"a".repeat(63)) && !is_value(&"a".repeat(64)));
        assert!(is_value("") && !is_value("a b"));
    }

    #[rstest]
    #[case(json!({}), true)]
    #[case(json!({"matchLabels": {"a": "1"}}), true)]
    #[case(json!({"matchLabels": {"a": "1", "b": "2"}}), false)]
    #[case(json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["0", "1"]}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), false)]
    #[case(json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}), false)]
    fn selectors(#[case] selector: Value, #[case] matched: bool) {
        let selector: LabelSelector = serde_json::from_value(selector).unwrap();
        assert_eq!(matches(&selector, Some(&BTreeMap::from([("a".to_owned(), "1".to_owned())]))), matched);
    }
}
