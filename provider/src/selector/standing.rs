//! Pure: no I/O, no clock, no randomness.
//!
//! Which Selectors hold: of each the newest state that can be used. What their authors must know is told once.
//!
//! What cannot be read off the objects themselves is kept as a [`Record`] beside the webhook's entry, so that it holds over
//! a restart: the last good state of those that are broken now, and what has been told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ranking::{MOST, Rules};
use super::rule::{Name, Rule, read, unhonoured};
use crate::custom_resource::selector::{Selector, SelectorSpec};

/// Reason of the event on a Selector that cannot be used.
pub const INVALID: &str = "InvalidSelector";
/// Reason of the event on a field that is of no avail.
pub const NOT_HONOURED: &str = "NotHonoured";
/// Reason of the event on a Selector that is one too many.
pub const TOO_MANY: &str = "TooManySelectors";

/// Something to be told as a `Warning` of a Selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The Selector's UID.
    pub uid: String,
    /// In one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What is kept over a restart, by UID.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Record {
    /// What holds of Selectors whose newest state cannot be used, if anything.
    #[serde(default)]
    pub holds: BTreeMap<String, Option<SelectorSpec>>,
    /// What has been told of each and is still so.
    #[serde(default)]
    pub told: BTreeMap<String, BTreeSet<String>>,
}

/// One Selector.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    name: Name,
    /// As it was last seen.
    seen: SelectorSpec,
    /// What holds of it.
    good: Option<SelectorSpec>,
    /// What the API server has last taken of it.
    settled: Option<SelectorSpec>,
    /// Why what was seen does not hold.
    fault: Option<String>,
}

/// The Selectors that hold.
#[derive(Debug, Default)]
pub struct Standing {
    known: BTreeMap<String, Known>,
    told: BTreeMap<String, BTreeSet<String>>,
    /// Of an earlier life of this process, until the objects have been seen.
    restored: Option<BTreeMap<String, Option<SelectorSpec>>>,
    rules: Arc<Rules>,
    too_many: BTreeSet<Name>,
}

impl Standing {
    /// As an earlier life of this process has left it, in the text of a [`Record`]. What cannot be read is as if it were
    /// not there.
    pub fn restored(record: Option<&str>) -> Self {
        let record: Record = record.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Self { told: record.told, restored: Some(record.holds), ..Self::default() }
    }

    /// The Selectors, in their order.
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules)
    }

    /// The text of the record that keeps what the objects do not say.
    pub fn record(&self) -> String {
        let differing = self.known.iter().filter(|(_, known)| known.good.as_ref() != Some(&known.seen));
        let holds = differing.map(|(uid, known)| (uid.clone(), known.good.clone()));
        let unseen = self.restored.clone().unwrap_or_default();
        let record = Record { holds: holds.chain(unseen).collect(), told: self.told.clone() };
        serde_json::to_string(&record).expect("these fields can always be written")
    }

    /// Takes all Selectors as they are now.
    pub fn take<'a>(&mut self, all: impl IntoIterator<Item = &'a Selector>) -> Vec<Told> {
        let (mut before, restored) = (std::mem::take(&mut self.known), self.restored.take());
        for selector in all {
            let uid = selector.metadata.uid.clone().unwrap_or_default();
            let known = match before.remove(&uid) {
                Some(known) if known.seen == selector.spec => known,
                Some(known) => seen(name_of(selector), &selector.spec, known.good, known.settled),
                None => {
                    // What an earlier life has not kept was as its object says.
                    let held = restored
                        .as_ref()
                        .map(|held| held.get(&uid).cloned().unwrap_or_else(|| Some(selector.spec.clone())));
                    let held = held.flatten().filter(|held| read(name_of(selector), held).is_ok());
                    seen(name_of(selector), &selector.spec, held.clone(), held)
                }
            };
            self.known.insert(uid, known);
        }
        self.look()
    }

    /// The API server has them.
    pub fn settle(&mut self) {
        for known in self.known.values_mut() {
            known.settled.clone_from(&known.good);
        }
    }

    /// The API server refuses them: of the one that is at fault, or of all that are new where nobody knows which that is,
    /// what was taken last holds again. Nothing when nobody is at fault and nothing is new.
    pub fn give_up(&mut self, culprit: Option<&Name>, why: &str) -> Option<Vec<Told>> {
        let mut any = false;
        for known in self.known.values_mut() {
            let is_at_fault = culprit == Some(&known.name);
            let is_new = known.good != known.settled;
            if is_at_fault && !is_new {
                known.settled = None;
            }
            if is_at_fault || (is_new && culprit.is_none()) {
                known.good.clone_from(&known.settled);
                known.fault = Some(format!("spec: the API server refuses it: {why}; write what it takes"));
                any = true;
            }
        }
        any.then(|| self.look())
    }

    /// Ranks what holds, and gives what has not been told yet.
    fn look(&mut self) -> Vec<Told> {
        let rules: Vec<Rule> = self.known.values().filter_map(rule_of).collect();
        let (rules, too_many) = Rules::ranked(rules);
        if *self.rules != rules {
            self.rules = Arc::new(rules);
        }
        self.too_many = too_many.into_iter().collect();
        let mut told = vec![];
        let mut now = BTreeMap::new();
        for (uid, known) in &self.known {
            let known_to_author = self.told.get(uid);
            let mut messages = BTreeSet::new();
            for (reason, message) in notices(known, self.too_many.contains(&known.name)) {
                if known_to_author.is_none_or(|known| !known.contains(&message)) {
                    told.push(Told { uid: uid.clone(), reason, message: message.clone() });
                }
                messages.insert(message);
            }
            if !messages.is_empty() {
                now.insert(uid.clone(), messages);
            }
        }
        self.told = now;
        told
    }
}

/// A Selector that is new or has changed. What held before holds on where it cannot be used.
fn seen(name: Name, spec: &SelectorSpec, good: Option<SelectorSpec>, settled: Option<SelectorSpec>) -> Known {
    let read = read(name.clone(), spec);
    let good = if read.is_ok() { Some(spec.clone()) } else { good };
    let fault = read.err().map(|fault| fault.to_string());
    Known { name, seen: spec.clone(), good, settled, fault }
}

fn rule_of(known: &Known) -> Option<Rule> {
    read(known.name.clone(), known.good.as_ref()?).ok()
}

fn name_of(selector: &Selector) -> Name {
    Name {
        namespace: selector.metadata.namespace.clone().unwrap_or_default(),
        name: selector.metadata.name.clone().unwrap_or_default(),
    }
}

/// What there is to be told of a Selector.
fn notices(known: &Known, is_too_many: bool) -> Vec<(&'static str, String)> {
    let fault = known.fault.iter().map(|fault| {
        let holds = if known.good.is_some() { "what it said before still holds" } else { "it does nothing until then" };
        (INVALID, format!("{fault}; {holds}"))
    });
    let in_vain = known.good.iter().flat_map(unhonoured).map(|asked| (NOT_HONOURED, asked.to_string()));
    let too_many = is_too_many.then(|| {
        let message =
            format!("it does nothing: only {MOST} Selectors act, those of the highest priority; delete others");
        (TOO_MANY, message)
    });
    fault.chain(in_vain).chain(too_many).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn selector(name: &str, spec: Value) -> Selector {
        serde_json::from_value(json!({
            "apiVersion": "eci.aliyun.com/v1", "kind": "Selector",
            "metadata": {"namespace": "n", "name": name, "uid": format!("uid-{name}")}, "spec": spec,
        }))
        .unwrap()
    }

    fn labelled(name: &str, value: &str) -> Selector {
        selector(name, json!({"objectLabels": {"matchLabels": {"app": value}}}))
    }

    fn values(standing: &Standing) -> Vec<String> {
        let labels = |rule: &Rule| rule.object.clone().unwrap().match_labels.unwrap()["app"].clone();
        standing.rules().iter().map(labels).collect()
    }

    #[test]
    fn the_last_good_state_of_each_holds_and_each_fault_is_told_once() {
        let mut standing = Standing::default();
        assert_eq!(standing.take(&[labelled("a", "1"), labelled("b", "2")]), []);
        let all = [labelled("a", "not a value"), labelled("b", "3")];
        let told = standing.take(&all);
        assert_eq!((told.len(), told[0].uid.as_str(), told[0].reason), (1, "uid-a", INVALID));
        let message = &told[0].message;
        assert!(message.starts_with("spec.objectLabels.matchLabels[app]: \"not a value\" is no value"), "{message}");
        assert!(message.ends_with("; what it said before still holds"), "{message}");
        assert_eq!(values(&standing), ["1", "3"]);
        assert_eq!(standing.take(&all), []);
        // Over a restart, too, and while nobody says which Selectors there are.
        let record = standing.record();
        let mut standing = Standing::restored(Some(&record));
        assert_eq!(standing.record(), record);
        assert_eq!(standing.take(&all), []);
        assert_eq!(values(&standing), ["1", "3"]);
        assert_eq!(standing.take(&[labelled("a", "4")]), []);
        assert_eq!(values(&standing), ["4"]);
        assert_eq!(standing.record(), r#"{"holds":{},"told":{}}"#);
        assert_eq!(standing.take(&[labelled("a", "not a value")]).len(), 1);
    }

    #[test]
    fn one_that_never_was_good_does_nothing() {
        let mut standing = Standing::default();
        let told = standing.take(&[selector("a", json!({})), labelled("b", "2")]);
        assert_eq!(
            told[0].message,
            "spec: it selects nothing; write objectLabels or namespaceLabels; it does nothing until then"
        );
        assert_eq!(values(&standing), ["2"]);
    }

    #[test]
    fn what_the_api_server_refuses_is_given_up_alone_where_it_is_known() {
        let mut standing = Standing::default();
        standing.take(&[labelled("a", "1"), labelled("b", "2"), labelled("c", "3")]);
        standing.settle();
        assert_eq!(standing.give_up(None, "no"), None);
        let all = [labelled("a", "4"), labelled("b", "5"), labelled("c", "3")];
        standing.take(&all);
        let a = Name { namespace: "n".to_owned(), name: "a".to_owned() };
        let told = standing.give_up(Some(&a), "no").unwrap();
        assert_eq!(
            told[0].message,
            "spec: the API server refuses it: no; write what it takes; what it said before still holds"
        );
        assert_eq!((told.len(), values(&standing)), (1, vec!["1".to_owned(), "5".to_owned(), "3".to_owned()]));
        // It is not tried again by itself, but by the next life of this process.
        assert_eq!(standing.take(&all), []);
        assert_eq!(values(&standing), ["1", "5", "3"]);
        assert_eq!(standing.give_up(None, "no").unwrap().len(), 1);
        assert_eq!(values(&standing), ["1", "2", "3"]);
        let mut again = Standing::restored(Some(&standing.record()));
        again.take(&all);
        assert_eq!(again.give_up(None, "no").map(|told| told.len()), Some(2));
        assert_eq!(values(&again), ["1", "2", "3"]);
        // What was taken once may not be taken any more.
        assert_eq!(again.give_up(Some(&a), "no").map(|told| told.len()), Some(1));
        assert_eq!(values(&again), ["2", "3"]);
        let mut again = Standing::restored(Some(&again.record()));
        again.take(&all);
        again.give_up(None, "no");
        assert_eq!(values(&again), ["2", "3"]);
    }

    #[test]
    fn what_is_asked_in_vain_is_told_once() {
        let asks = selector("a", json!({"objectLabels": {}, "policy": {"normalNodePrefer": {"cpuRatio": 2}}}));
        let mut standing = Standing::default();
        assert_eq!(standing.take([&asks])[0].reason, NOT_HONOURED);
        assert_eq!(standing.take([&asks]), []);
        let mut again = Standing::restored(Some(&standing.record()));
        assert_eq!(again.take([&asks]), []);
        assert_eq!(again.take(&[]), []);
        assert_eq!(again.record(), r#"{"holds":{},"told":{}}"#);
    }

    #[test]
    fn one_too_many_is_told() {
        let many: Vec<Selector> = (0..=MOST).map(|n| labelled(&format!("s{n:03}"), "1")).collect();
        let mut standing = Standing::default();
        let told = standing.take(&many);
        assert_eq!((told.len(), told[0].reason, told[0].uid.as_str()), (1, TOO_MANY, "uid-s100"));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_none() {
        for record in [None, Some(""), Some("{"), Some(r#"{"holds": 1}"#)] {
            let mut standing = Standing::restored(record);
            assert_eq!(standing.record(), r#"{"holds":{},"told":{}}"#);
            assert_eq!(standing.take(&[labelled("a", "1")]), []);
            assert_eq!(values(&standing), ["1"]);
        }
    }
}
