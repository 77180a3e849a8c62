//! As much of the strategic merge patch as we send.
//!
//! Pure: no I/O, no clock, no randomness.

use serde_json::Value;

/// Lists that are merged, and the field that tells their elements apart.
const MERGED: [(&str, &str); 4] = [("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip"), ("addresses", "type")];

/// Applies a patch.
pub fn strategic(target: &mut Value, patch: &Value) {
    let (Some(target), Some(patch)) = (target.as_object_mut(), patch.as_object()) else { return };
    for (key, change) in patch {
        match (change, target.get_mut(key)) {
            (Value::Null, _) => {
                target.remove(key);
            }
            (Value::Object(_), Some(inner)) if inner.is_object() => strategic(inner, change),
            (Value::Array(elements), Some(Value::Array(list))) => match MERGED.iter().find(|(name, _)| name == key) {
                Some((_, by)) => merge_list(list, elements, by),
                None => *list = elements.clone(),
            },
            (_, _) => {
                target.insert(key.clone(), without_directives(change));
            }
        }
    }
}

fn is_directive(element: &Value) -> bool {
    element.get("$patch").is_some()
}

fn without_directives(value: &Value) -> Value {
    match value {
        Value::Array(elements) => elements.iter().filter(|element| !is_directive(element)).cloned().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => value.clone(),
    }
}

fn merge_list(list: &mut Vec<Value>, elements: &[Value], by: &str) {
    if elements.iter().any(|element| element["$patch"] == "replace") {
        *list = elements.iter().filter(|element| !is_directive(element)).cloned().collect();
        return;
    }
    for element in elements {
        if element["$patch"] == "delete" {
            list.retain(|there| there[by] != element[by]);
            continue;
        }
        match list.iter_mut().find(|there| there[by] == element[by]) {
            Some(there) => strategic(there, element),
            None => list.push(element.clone()),
        }
    }
}
