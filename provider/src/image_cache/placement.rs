//! Pure: no I/O, no clock, no randomness.
//!
//! Which hosts are to hold an image cache: all of them, or those whose virtual nodes have the labels that annotations ask
//! for. A selector is written as `kubectl --selector` takes it.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use kube::core::{Expression, Selector, SelectorExt as _};

use super::hosts::{Host, Labels};
use crate::custom_resource::ImageCache;

/// A label selector of virtual nodes.
pub const NODE_SELECTOR_ANNOTATION: &str = "eci.alibabacloud.com/node-selector";
/// `amd64` or `arm64`.
pub const ARCH_ANNOTATION: &str = "k8s.aliyun.com/imc-cpu-arch";
/// `linux` or `windows`.
pub const OS_ANNOTATION: &str = "k8s.aliyun.com/imc-os-type";

const ARCH_LABEL: &str = "kubernetes.io/arch";
const OS_LABEL: &str = "kubernetes.io/os";

/// Why it is not known where a cache is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The selector is none.
    #[error("annotation {NODE_SELECTOR_ANNOTATION} is {text:?}, which is no label selector: {why}")]
    Selector {
        /// As written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A value that is not one of those that there are.
    #[error("annotation {key} is {value:?}, and not {expected}")]
    Value {
        /// The annotation.
        key: &'static str,
        /// As written.
        value: String,
        /// What there is.
        expected: &'static str,
    },
}

/// What an object asks of the virtual nodes that are to hold its cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    selector: Selector,
    text: String,
}

/// Whether a host is to hold a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It is.
    Yes,
    /// It is not, and forgets it.
    No,
    /// The labels of its node are not known yet: nothing is done.
    Unknown,
}

/// What an object asks for; nothing when every host will do.
///
/// # Errors
/// When an annotation means nothing.
pub fn demand(cache: &ImageCache) -> Result<Option<Demand>, PlacementError> {
    let value = |key: &str| cache.annotations().get(key);
    let (mut expressions, mut text) = (Vec::new(), Vec::new());
    if let Some(written) = value(NODE_SELECTOR_ANNOTATION) {
        let bad = |why: String| PlacementError::Selector { text: written.clone(), why };
        expressions.extend(parse(written).map_err(bad)?);
        text.push(written.trim().to_owned());
    }
    let known: [(_, _, &[&str], _); 2] = [
        (ARCH_ANNOTATION, ARCH_LABEL, &["amd64", "arm64"], "amd64 or arm64"),
        (OS_ANNOTATION, OS_LABEL, &["linux", "windows"], "linux or windows"),
    ];
    for (key, label, values, expected) in known {
        let Some(written) = value(key) else { continue };
        let Some(meant) = values.iter().find(|value| **value == written.trim()) else {
            return Err(PlacementError::Value { key, value: written.clone(), expected });
        };
        expressions.push(Expression::Equal(label.to_owned(), (*meant).to_owned()));
        text.push(format!("{label}={meant}"));
    }
    let asks = !expressions.is_empty();
    Ok(asks.then(|| Demand { selector: expressions.into_iter().collect(), text: text.join(",") }))
}

impl Demand {
    /// Whether a node with these labels is to hold the cache. No labels: they are not known yet.
    pub fn wants(&self, labels: Option<&Labels>) -> Wanted {
        match labels {
            None => Wanted::Unknown,
            Some(labels) if self.selector.matches(labels) => Wanted::Yes,
            Some(_) => Wanted::No,
        }
    }

    /// What is said when no node has these labels.
    pub fn unmet(&self) -> String {
        format!("no host has a node with the labels {}", self.text)
    }
}

/// Where a cache is wanted, among the hosts that there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place<'h> {
    /// The hosts that are to hold it, or may be, by virtual node.
    pub hosts: Vec<(&'h str, &'h Host, Wanted)>,
    /// Why no host is.
    pub obstacle: Option<String>,
}

/// Where a cache is wanted. While its annotations mean nothing, every host keeps what it has.
pub fn place<'h>(cache: &ImageCache, hosts: &'h BTreeMap<String, Host>) -> Place<'h> {
    let with = |wanted: &dyn Fn(&Host) -> Wanted| {
        hosts.iter().map(|(node, host)| (node.as_str(), host, wanted(host))).collect::<Vec<_>>()
    };
    let demand = match demand(cache) {
        Ok(Some(demand)) => demand,
        Ok(None) => return Place { hosts: with(&|_| Wanted::Yes), obstacle: None },
        Err(error) => return Place { hosts: with(&|_| Wanted::Unknown), obstacle: Some(error.to_string()) },
    };
    let mut hosts = with(&|host| demand.wants(host.labels.as_ref()));
    hosts.retain(|(_, _, wanted)| *wanted != Wanted::No);
    let obstacle = hosts.is_empty().then(|| demand.unmet());
    Place { hosts, obstacle }
}

/// Reads a selector: requirements with commas between them, each `key`, `!key`, `key=value`, `key==value`, `key!=value`,
/// `key in (a,b)` or `key notin (a,b)`.
fn parse(text: &str) -> Result<Vec<Expression>, String> {
    split(text)?.into_iter().filter(|part| !part.is_empty()).map(requirement).collect()
}

/// At the commas that are in no parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' if inside => return Err("( within (".to_owned()),
            '(' => inside = true,
            ')' if !inside => return Err(") without (".to_owned()),
            ')' => inside = false,
            ',' if !inside => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err("( without )".to_owned());
    }
    parts.push(text[start..].trim());
    Ok(parts)
}

fn requirement(text: &str) -> Result<Expression, String> {
    if let Some(key) = text.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(self::key(key)?));
    }
    // The longer operators first: `=` is in both others.
    for (operator, make) in EQUALITIES {
        if let Some((key, value)) = text.split_once(operator) {
            return Ok(make(self::key(key)?, self::value(value)?));
        }
    }
    let mut words = text.splitn(2, char::is_whitespace);
    let (name, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().trim());
    if rest.is_empty() {
        return Ok(Expression::Exists(key(name)?));
    }
    for (operator, make) in MEMBERSHIPS {
        let list = rest.strip_prefix(operator).map(str::trim);
        if let Some(list) = list.and_then(|list| list.strip_prefix('(')).and_then(|list| list.strip_suffix(')')) {
            let values: Result<BTreeSet<String>, String> = list.split(',').map(value).collect();
            return Ok(make(key(name)?, values?));
        }
    }
    Err(format!("{text:?} is no requirement"))
}

/// An operator, and what it makes of a key and the rest.
type Operator<T> = (&'static str, fn(String, T) -> Expression);

const EQUALITIES: [Operator<String>; 3] =
    [("!=", Expression::NotEqual), ("==", Expression::Equal), ("=", Expression::Equal)];
const MEMBERSHIPS: [Operator<BTreeSet<String>>; 2] = [("notin", Expression::NotIn), ("in", Expression::In)];

/// A label's key: a name, with a domain and a slash before it or without.
fn key(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (domain, name) = text.split_once('/').map_or((None, text), |(domain, name)| (Some(domain), name));
    let is_domain = |domain: &str| {
        let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        !domain.is_empty() && domain.len() <= 253 && domain.chars().all(is_letter)
    };
    let is_key = !name.is_empty() && is_name(name) && domain.is_none_or(is_domain);
    if is_key { Ok(text.to_owned()) } else { Err(format!("{text:?} is no label key")) }
}

/// A label's value, which may be empty.
fn value(text: &str) -> Result<String, String> {
    let text = text.trim();
    if is_name(text) { Ok(text.to_owned()) } else { Err(format!("{text:?} is no label value")) }
}

fn is_name(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_outer = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(is_inner)
        && is_outer(text.chars().next())
        && is_outer(text.chars().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom_resource::ImageCacheSpec;
    use proptest::prelude::*;
    use rstest::rstest;

    fn cache(annotations: &[(&str, &str)]) -> ImageCache {
        ImageCache::new("c", ImageCacheSpec::default()).annotated(annotations)
    }

    fn labels(text: &str) -> Labels {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[rstest]
    #[case("zone=a", true)]
    #[case("zone==a", true)]
    #[case("zone = b", false)]
    #[case("zone!=b", true)]
    #[case("disk!=ssd", true)]
    #[case("zone in (a, b)", true)]
    #[case("zone in (b)", false)]
    #[case("zone notin (b,c)", true)]
    #[case("zone", true)]
    #[case("!zone", false)]
    #[case("!disk,kubernetes.io/arch=arm64", true)]
    #[case("zone in (a,b),kubernetes.io/arch=amd64", false)]
    #[case("zone,", true)]
    fn selectors(#[case] text: &str, #[case] matches: bool) {
        let demand = demand(&cache(&[(NODE_SELECTOR_ANNOTATION, text)])).unwrap().unwrap();
        let here = labels("zone=a,kubernetes.io/arch=arm64");
        assert_eq!(demand.wants(Some(&here)), if matches { Wanted::Yes } else { Wanted::No });
        assert_eq!(demand.wants(None), Wanted::Unknown);
    }

    #[rstest]
    #[case("zone in a", "\"zone in a\" is no requirement")]
    #[case("zone in (a", "( without )")]
    #[case("zone) in", ") without (")]
    #[case("zone in (a b)", "\"a b\" is no label value")]
    #[case("=a", "\"\" is no label key")]
    #[case("-zone=a", "\"-zone\" is no label key")]
    #[case("/zone", "\"/zone\" is no label key")]
    #[case("zone=a=b", "\"a=b\" is no label value")]
    #[case("zone is a", "\"zone is a\" is no requirement")]
    fn no_selectors(#[case] text: &str, #[case] why: &str) {
        let error = demand(&cache(&[(NODE_SELECTOR_ANNOTATION, text)])).unwrap_err();
        assert_eq!(error, PlacementError::Selector { text: text.to_owned(), why: why.to_owned() });
        assert!(error.to_string().contains(NODE_SELECTOR_ANNOTATION), "{error}");
    }

    #[test]
    fn kind_of_machine() {
        assert_eq!(demand(&ImageCache::new("c", ImageCacheSpec::default())), Ok(None));
        assert_eq!(demand(&cache(&[(NODE_SELECTOR_ANNOTATION, " ")])), Ok(None));
        let both = demand(&cache(&[(ARCH_ANNOTATION, "arm64"), (OS_ANNOTATION, "linux")])).unwrap().unwrap();
        assert_eq!(both.unmet(), "no host has a node with the labels kubernetes.io/arch=arm64,kubernetes.io/os=linux");
        assert_eq!(both.wants(Some(&labels("kubernetes.io/arch=arm64,kubernetes.io/os=linux"))), Wanted::Yes);
        assert_eq!(both.wants(Some(&labels("kubernetes.io/arch=amd64,kubernetes.io/os=linux"))), Wanted::No);
        let error = demand(&cache(&[(ARCH_ANNOTATION, "riscv")])).unwrap_err();
        assert_eq!(error.to_string(), format!("annotation {ARCH_ANNOTATION} is \"riscv\", and not amd64 or arm64"));
    }

    #[test]
    fn a_cache_is_where_its_labels_are_and_stays_while_they_mean_nothing() {
        let host = |labels: Option<&str>| Host { labels: labels.map(self::labels), ..Host::default() };
        let hosts: BTreeMap<String, Host> = [("a", Some("zone=a")), ("b", Some("zone=b")), ("c", None)]
            .map(|(name, l)| (name.to_owned(), host(l)))
            .into();
        let placed = |annotations: &[(&str, &str)]| {
            let place = place(&cache(annotations), &hosts);
            let nodes: Vec<_> = place.hosts.iter().map(|(node, _, wanted)| ((*node).to_owned(), *wanted)).collect();
            (nodes, place.obstacle)
        };
        let everywhere = |wanted| ["a", "b", "c"].map(|node| (node.to_owned(), wanted)).to_vec();
        assert_eq!(placed(&[]), (everywhere(Wanted::Yes), None));
        let one = vec![("a".to_owned(), Wanted::Yes), ("c".to_owned(), Wanted::Unknown)];
        assert_eq!(placed(&[(NODE_SELECTOR_ANNOTATION, "zone=a")]), (one, None));
        let (nodes, obstacle) = placed(&[(NODE_SELECTOR_ANNOTATION, "zone in")]);
        assert_eq!(nodes, everywhere(Wanted::Unknown));
        assert!(obstacle.unwrap().contains(NODE_SELECTOR_ANNOTATION));
        let known: BTreeMap<_, _> = hosts.clone().into_iter().filter(|(_, host)| host.labels.is_some()).collect();
        let nowhere = cache(&[(NODE_SELECTOR_ANNOTATION, "zone=x")]);
        let obstacle = place(&nowhere, &known).obstacle;
        assert_eq!(obstacle.as_deref(), Some("no host has a node with the labels zone=x"));
    }

    proptest! {
        /// Whatever a user writes is a selector or an error, and what is a selector is written as it reads.
        #[test]
        fn nothing_a_user_writes_breaks_it(text in r"[ ,()!=a-c/.-]{0,24}|\PC{0,24}") {
            if let Ok(expressions) = parse(&text) {
                let selector: Selector = expressions.iter().cloned().collect();
                prop_assert_eq!(parse(&selector.to_string()).unwrap(), expressions);
            }
        }
    }
}
