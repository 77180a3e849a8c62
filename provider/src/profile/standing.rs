//! Pure: no I/O, no clock, no randomness.
//!
//! Which profile holds: the newest that could be read. What its user must know is told once.
//!
//! The one that holds is kept as a [`Record`] beside the webhook's entry, so that it holds over a restart also while the
//! ConfigMap is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::parse::{Profile, SELECTORS, parse, unknown_keys};

/// Reason of the event on a profile that cannot be read.
pub const INVALID: &str = "InvalidProfile";
/// Reason of the event on keys that mean nothing here.
pub const IGNORED: &str = "ProfileKeyIgnored";
/// Of so many keys the user is told that they mean nothing. They are kept, where there is little room.
const MOST_TOLD: usize = 50;

/// Something to be told as an event of the ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// True for a `Warning`.
    pub warning: bool,
    /// In one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What is kept over a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Record {
    /// The text of the selectors that hold.
    #[serde(default)]
    pub selectors: String,
    /// Keys that are there and of which the user has been told that they mean nothing here.
    #[serde(default)]
    pub told: BTreeSet<String>,
}

/// The profile that holds.
#[derive(Debug, Default)]
pub struct Standing {
    record: Record,
    profile: Arc<Profile>,
    /// The selectors that the API server has taken last.
    settled: (String, Arc<Profile>),
    /// What was looked at last.
    seen: Option<BTreeMap<String, String>>,
}

impl Standing {
    /// As an earlier life of this process has left it, in the text of a [`Record`]. What cannot be read is as if it were
    /// not there.
    pub fn restored(record: Option<&str>) -> Self {
        let record: Record = record.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let Ok(profile) = parse(&record.selectors) else { return Self::default() };
        let profile = Arc::new(profile);
        Self { settled: (record.selectors.clone(), Arc::clone(&profile)), record, profile, seen: None }
    }

    /// The profile.
    pub fn profile(&self) -> Arc<Profile> {
        Arc::clone(&self.profile)
    }

    /// The text of the record that keeps it.
    pub fn record(&self) -> String {
        serde_json::to_string(&self.record).expect("text and sets of text can always be written")
    }

    /// Takes the ConfigMap's data as it is now; a ConfigMap that is not there has none.
    pub fn take(&mut self, data: BTreeMap<String, String>) -> Vec<Told> {
        if self.seen.as_ref() == Some(&data) {
            return vec![];
        }
        let mut told = vec![];
        let text = data.get(SELECTORS).map(String::as_str).unwrap_or_default();
        match parse(text) {
            Ok(profile) => (self.record.selectors, self.profile) = (text.to_owned(), Arc::new(profile)),
            Err(invalid) => told.push(refused(&invalid.to_string())),
        }
        let there: BTreeSet<String> = unknown_keys(&data).take(MOST_TOLD).map(str::to_owned).collect();
        let unknown: Vec<&str> = there.difference(&self.record.told).map(String::as_str).collect();
        if !unknown.is_empty() {
            let message = format!("{} mean nothing here and are passed over", unknown.join(", "));
            told.push(Told { warning: false, reason: IGNORED, message });
        }
        self.record.told = there;
        self.seen = Some(data);
        told
    }

    /// The API server has the profile.
    pub fn settle(&mut self) {
        self.settled = (self.record.selectors.clone(), self.profile());
    }

    /// The API server refuses the profile: the one that it has taken last holds again. Nothing when it is that one.
    pub fn give_up(&mut self, why: &str) -> Option<Told> {
        if self.settled.0 == self.record.selectors {
            return None;
        }
        (self.record.selectors, self.profile) = self.settled.clone();
        Some(refused(why))
    }
}

fn refused(why: &str) -> Told {
    Told { warning: true, reason: INVALID, message: format!("{why}; the profile before this one still holds") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"[{"name": "a", "objectSelector": {}}]"#;
    const BROKEN: &str = "[\n{]";

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn names(standing: &Standing) -> Vec<String> {
        standing.profile().selectors.iter().map(|selector| selector.name.clone()).collect()
    }

    #[test]
    fn the_last_good_one_holds_and_the_fault_is_told_once() {
        let mut standing = Standing::default();
        assert_eq!(standing.take(data(&[(SELECTORS, GOOD)])), []);
        assert_eq!(names(&standing), ["a"]);
        let told = standing.take(data(&[(SELECTORS, BROKEN)]));
        assert_eq!((told.len(), told[0].warning, told[0].reason), (1, true, INVALID));
        assert!(told[0].message.starts_with("selectors, line 2, column 2: "), "{}", told[0].message);
        assert!(told[0].message.ends_with("; the profile before this one still holds"), "{}", told[0].message);
        assert_eq!(names(&standing), ["a"]);
        assert_eq!(standing.take(data(&[(SELECTORS, BROKEN)])), []);
        assert_eq!(standing.take(BTreeMap::new()), []);
        assert_eq!(names(&standing), Vec::<String>::new());
    }

    #[test]
    fn it_holds_over_a_restart_and_so_does_what_was_told() {
        let mut standing = Standing::default();
        let told = standing.take(data(&[(SELECTORS, GOOD), ("vSwitchIds", "vsw-1"), ("vpcId", "vpc-1")]));
        assert_eq!(told[0].message, "vSwitchIds, vpcId mean nothing here and are passed over");
        let mut standing = Standing::restored(Some(&standing.record()));
        assert_eq!(names(&standing), ["a"]);
        let told = standing.take(data(&[(SELECTORS, BROKEN), ("vSwitchIds", "vsw-2"), ("slsMachineGroup", "g")]));
        let reasons: Vec<_> = told.iter().map(|told| (told.reason, told.message.contains("vSwitchIds"))).collect();
        assert_eq!(reasons, [(INVALID, false), (IGNORED, false)]);
        assert_eq!(names(&standing), ["a"]);
    }

    #[test]
    fn only_keys_that_are_there_are_kept_and_not_all_of_very_many() {
        let mut standing = Standing::default();
        assert_eq!(standing.take(data(&[("vpcId", "vpc-1")])).len(), 1);
        assert_eq!(standing.take(BTreeMap::new()), []);
        assert!(!standing.record().contains("vpcId"), "{}", standing.record());
        let many: BTreeMap<_, _> = (0..4000).map(|n| (format!("{n:0250}"), String::new())).collect();
        assert_eq!(standing.take(many.clone()).len(), 1);
        assert!(standing.record().len() < 16 << 10, "{}", standing.record().len());
        let mut again = Standing::restored(Some(&standing.record()));
        assert_eq!(again.take(many), []);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_none() {
        for record in ["", "{", r#"{"selectors": "["}"#] {
            assert_eq!(names(&Standing::restored(Some(record))), Vec::<String>::new());
        }
        assert_eq!(names(&Standing::restored(None)), Vec::<String>::new());
    }

    #[test]
    fn what_the_api_server_refuses_is_given_up() {
        let mut standing = Standing::default();
        standing.take(data(&[(SELECTORS, GOOD)]));
        standing.settle();
        assert_eq!(standing.give_up("no"), None);
        standing.take(data(&[(SELECTORS, r#"[{"name": "b", "objectSelector": {}}]"#)]));
        let told = standing.give_up("the API server says no").unwrap();
        assert_eq!(told.message, "the API server says no; the profile before this one still holds");
        assert_eq!(names(&standing), ["a"]);
    }
}
