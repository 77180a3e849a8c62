//! Pure: no I/O, no clock, no randomness.
//!
//! Which Selectors hold: of each the newest state that can be used. What their authors must know is told once.
//!
//! What cannot be read off the objects themselves is kept as a [`Record`] beside the webhook's entry, so that it holds over
//! a restart: the last good state of those that are broken now, and what has been told. An object takes little more than
//! 256 KiB of annotations and the profile is kept there, too; so the record is bounded, whatever people write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::ranking::{MOST, Rules};
use super::rule::{Name, Rule, read, unhonoured};
use crate::custom_resource::selector::{Selector, SelectorSpec};

/// Reason of the event on a Selector that cannot be used.
pub const INVALID: &str = "InvalidSelector";
/// Reason of the event on a field that is of no avail.
pub const NOT_HONOURED: &str = "NotHonoured";
/// Reason of the event on a Selector that is one too many.
pub const TOO_MANY: &str = "TooManySelectors";
/// So many bytes of last good states are kept over a restart. What is beyond them is afterwards as its object says.
const MOST_HELD: usize = 64 << 10;
/// So many things that were told are remembered over a restart. What is beyond them is told once more.
const MOST_TOLD: usize = 2000;

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

/// What is kept over a restart.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Record {
    /// What holds of Selectors whose newest state cannot be used, if anything, by UID.
    #[serde(default)]
    pub holds: BTreeMap<String, Option<SelectorSpec>>,
    /// Digests of what has been told and is still so.
    #[serde(default)]
    pub digests: BTreeSet<String>,
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
    /// Digests.
    told: BTreeSet<String>,
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
        Self { told: record.digests, restored: Some(record.holds), ..Self::default() }
    }

    /// The Selectors, in their order.
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules)
    }

    /// The text of the record that keeps what the objects do not say.
    pub fn record(&self) -> String {
        let differing = self.known.iter().filter(|(_, known)| differs(known));
        let holds = differing.map(|(uid, known)| (uid.clone(), known.good.clone()));
        let unseen = self.restored.clone().unwrap_or_default();
        let mut room = MOST_HELD;
        let fits = |one: &(String, Option<SelectorSpec>)| {
            let size = serde_json::to_string(one).map_or(MOST_HELD, |text| text.len());
            room.checked_sub(size).inspect(|left| room = *left).is_some()
        };
        let holds = holds.chain(unseen).filter(fits).collect();
        let record = Record { holds, digests: self.told.iter().take(MOST_TOLD).cloned().collect() };
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
        let mut now = BTreeSet::new();
        for (uid, known) in &self.known {
            for (reason, message) in notices(known, self.too_many.contains(&known.name)) {
                let digest = digest(uid, &message);
                if !self.told.contains(&digest) {
                    told.push(Told { uid: uid.clone(), reason, message });
                }
                now.insert(digest);
            }
        }
        self.told = now;
        told
    }
}

fn digest(uid: &str, message: &str) -> String {
    let digest = Sha256::digest(format!("{uid} {message}").as_bytes());
    hex::encode(&digest[..8])
}

/// Whether what holds of it is not what its object alone says.
fn differs(known: &Known) -> bool {
    match &known.good {
        Some(good) => *good != known.seen,
        None => read(known.name.clone(), &known.seen).is_ok(),
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

    const NOTHING: &str = r#"{"holds":{},"digests":[]}"#;

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
        assert_eq!(standing.record(), NOTHING);
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
        assert_eq!(again.record(), NOTHING);
    }

    #[test]
    fn one_too_many_is_told() {
        let many: Vec<Selector> = (0..=MOST).map(|n| labelled(&format!("s{n:03}"), "1")).collect();
        let mut standing = Standing::default();
        let told = standing.take(&many);
        assert_eq!((told.len(), told[0].reason, told[0].uid.as_str()), (1, TOO_MANY, "uid-s100"));
    }

    #[test]
    fn the_record_stays_small_whatever_people_write() {
        let named = |n: usize| format!("{n:08}-0123-4567-89ab-0123456789ab");
        let good = |n: usize| {
            let spec = json!({"objectLabels": {}, "effect": {"annotations": {"a": "x".repeat(15 << 10)}}});
            selector(&named(n), spec)
        };
        let broken = |n: usize| labelled(&named(n), &"x".repeat(200_000));
        let mut standing = Standing::default();
        standing.take(&(0..10).map(good).collect::<Vec<_>>());
        standing.settle();
        let all: Vec<Selector> = (0..10).map(broken).chain((10..3000).map(|n| labelled(&named(n), "1"))).collect();
        assert_eq!(standing.take(&all).len(), 10 + 3000 - 10 - (MOST - 10));
        standing.give_up(None, &"no".repeat(250)).unwrap();
        let record = standing.record();
        assert!(record.len() < 110 << 10, "{}", record.len());
        // Those that are kept hold on.
        let mut again = Standing::restored(Some(&record));
        again.take(&all[..10]);
        assert!((3..10).contains(&again.rules().iter().count()), "{}", again.rules().iter().count());
    }

    #[test]
    fn a_record_that_cannot_be_read_is_none() {
        for record in [None, Some(""), Some("{"), Some(r#"{"holds": 1}"#)] {
            let mut standing = Standing::restored(record);
            assert_eq!(standing.record(), NOTHING);
            assert_eq!(standing.take(&[labelled("a", "1")]), []);
            assert_eq!(values(&standing), ["1"]);
        }
    }
}
