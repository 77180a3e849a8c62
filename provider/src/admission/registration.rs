//! Pure: no I/O, no clock, no randomness.
//!
//! The webhooks' entries at the API server. The selectors of the one for pods see to it that no pod ever waits for us that
//! is not meant for the virtual nodes. First comes a webhook for each selector of the profile, in their order, then one for
//! each Selector object, the highest priority first, then five for labels, of which at most one is called for a pod, since
//! each leaves out what those before it take, and last one for all pods that go to the virtual nodes, where the profile has
//! something to write on all of them.
//!
//! | webhook | pods | namespaces |
//! |---|---|---|
//! | `profile-<n>` | `objectSelector` of the selector | its `namespaceSelector` |
//! | `selector-<n>` | `objectLabels` of the Selector | its `namespaceLabels` |
//! | `pod` | `alibabacloud.com/eci: "true"` | all |
//! | `pod-legacy` | `eci: "true"` and no newer label | all |
//! | `namespace` | neither label | `alibabacloud.com/eci: "true"` |
//! | `namespace-legacy` | neither label | `eci: "true"` and no newer label |
//! | `namespace-injection` | neither label | `virtual-node-affinity-injection: enabled` and no newer label |
//! | `effects` | nodeSelector or nodeName of a virtual node | all |
//!
//! So it needs to be known here of no namespace what labels it has: the API server looks.
//!
//! The one for ImageCaches is called for those that name Secrets, and fails with us: what nobody has checked must not be
//! built. It is not called for an object that is on its way out, so that a deletion never hangs on us.
//!
//! A pod starts without us when we do not answer (`failurePolicy: Ignore`): the API server waits 5 seconds for each webhook
//! that selects the pod, one after the other, and no longer than the whole request may take. A webhook is called again when
//! another one has changed the pod after it, which is harmless, since the review is idempotent.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ServiceReference,
    ValidatingWebhook, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use serde_json::json;

use super::review::{LABEL, LABEL_LEGACY, Placement};
use crate::profile::{Profile, Selector, selection};
use crate::selector::{Name, Rule, Rules};

/// The entry's name, which is ECI's.
pub const NAME: &str = "vk-webhook";
/// Where the API server sends reviews.
pub const PATH: &str = "/mutate";
/// The name of the entry for ImageCaches.
pub const IMAGE_CACHE_NAME: &str = "vk-webhook-imagecaches";
/// Where the API server sends reviews of ImageCaches.
pub const IMAGE_CACHE_PATH: &str = "/validate-imagecache";
/// The path of the webhook for all pods that go to the virtual nodes.
pub const EFFECTS_PATH: &str = "/mutate/effects";
/// What the path of the webhook for a Selector object begins with.
const RULE_PATH: &str = "/mutate/selector/";
/// Where the profile that holds is kept, for the next life of this process.
pub const PROFILE_ANNOTATION: &str = "eci.alibabacloud.com/profile";
/// Where what the Selector objects do not say themselves is kept, likewise.
pub const SELECTORS_ANNOTATION: &str = "eci.alibabacloud.com/selectors";
/// The namespace label of the oldest releases, and its value.
const INJECTION: (&str, &str) = ("virtual-node-affinity-injection", "enabled");
/// How long the API server waits, in seconds.
const TIMEOUT_SECONDS: i32 = 5;
/// So much of what the API server says of an entry is told. It may repeat all of the field that it finds fault with.
const LONGEST_WORDS: usize = 512;

/// Where the API server reaches the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// At this address.
    Url {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Through this Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its port.
        port: u16,
    },
}

/// Why a text is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address for the webhook: https://HOST[:PORT] or service://NAMESPACE/NAME[:PORT] is expected")]
pub struct TargetError {
    /// The text.
    pub text: String,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            if let Some(rest) = text.strip_prefix("service://") {
                let (namespace, rest) = rest.split_once('/')?;
                let (name, port) = with_port(rest)?;
                let is_whole = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
                return is_whole.then(|| Self::Service { namespace: namespace.to_owned(), name, port });
            }
            let rest = text.strip_prefix("https://")?;
            let rest = rest.strip_suffix(PATH).or_else(|| rest.strip_suffix('/')).unwrap_or(rest);
            let (host, port) = with_port(rest)?;
            (!host.is_empty() && !host.contains('/')).then_some(Self::Url { host, port })
        };
        read().ok_or_else(|| TargetError { text: text.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { host, port } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Url { host, port } => write!(f, "https://{host}:{port}"),
            Self::Service { namespace, name, port } => write!(f, "service://{namespace}/{name}:{port}"),
        }
    }
}

impl Target {
    /// The name that the certificate must bear.
    pub fn certificate_name(&self) -> String {
        match self {
            Self::Url { host, .. } => host.clone(),
            Self::Service { namespace, name, .. } => format!("{name}.{namespace}.svc"),
        }
    }

    fn client_config(&self, path: &str, ca_bundle: &str) -> WebhookClientConfig {
        let ca_bundle = Some(ByteString(ca_bundle.as_bytes().to_vec()));
        match self {
            Self::Url { .. } => {
                WebhookClientConfig { ca_bundle, url: Some(format!("{self}{path}")), ..WebhookClientConfig::default() }
            }
            Self::Service { namespace, name, port } => {
                let service = ServiceReference {
                    namespace: namespace.clone(),
                    name: name.clone(),
                    path: Some(path.to_owned()),
                    port: Some(i32::from(*port)),
                };
                WebhookClientConfig { ca_bundle, service: Some(service), ..WebhookClientConfig::default() }
            }
        }
    }
}

/// `host`, `host:port`, `[address]:port`; the port is 443 where there is none.
fn with_port(text: &str) -> Option<(String, u16)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = if rest.is_empty() { 443 } else { rest.strip_prefix(':')?.parse().ok()? };
        return Some((host.to_owned(), port));
    }
    match text.split_once(':') {
        Some((host, port)) => Some((host.to_owned(), port.parse().ok()?)),
        None => Some((text.to_owned(), 443)),
    }
}

/// What the entry is made from.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Where the API server reaches us.
    pub target: &'a Target,
    /// The certificates that it is to trust, in PEM.
    pub ca_bundle: &'a str,
    /// Whose selectors are called for.
    pub profile: &'a Profile,
    /// The text that is kept of it.
    pub record: &'a str,
    /// The Selectors that are called for.
    pub rules: &'a Rules,
    /// Those that an earlier entry calls for, while nobody says which Selectors there are.
    pub earlier_rules: &'a [Called],
    /// The text that is kept of them.
    pub rules_record: &'a str,
    /// Which pods go to the virtual nodes.
    pub placement: &'a Placement,
}

/// A Selector object as the entry has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Called {
    path: String,
    object: Option<LabelSelector>,
    namespace: Option<LabelSelector>,
}

/// The path of the webhook for a selector of the profile. The digest tells it from the selector that had its place in an
/// earlier profile, for which the API server may go on calling a moment.
pub fn selector_path(at: usize, selector: &Selector) -> String {
    format!("/mutate/profile/{at}/{}", selector.digest())
}

/// The path of the webhook for a Selector object.
pub fn rule_path(rule: &Rule) -> String {
    format!("{RULE_PATH}{}", rule.digest())
}

/// The Selectors that an entry calls for.
pub fn called_for(entry: &MutatingWebhookConfiguration) -> Vec<Called> {
    let called = entry.webhooks.iter().flatten().filter_map(|webhook| {
        let config = &webhook.client_config;
        let of_service = config.service.as_ref().and_then(|service| service.path.as_ref());
        let path = config.url.as_ref().or(of_service)?;
        let path = path[path.find(RULE_PATH)?..].to_owned();
        Some(Called { path, object: webhook.object_selector.clone(), namespace: webhook.namespace_selector.clone() })
    });
    called.collect()
}

/// The Selector whose webhook the API server finds fault with, where its words name one.
pub fn at_fault(message: &str, profile: &Profile, rules: &Rules) -> Option<Name> {
    let (number, _) = message.split_once("webhooks[")?.1.split_once(']')?;
    let of_profile = profile.selectors.iter().filter(|selector| !selector.is_effect_only()).count();
    let at = number.parse::<usize>().ok()?.checked_sub(of_profile)?;
    rules.iter().nth(at).map(|rule| rule.name.clone())
}

/// The API server's words, short enough to be told to people, with what is to be done about it behind them.
pub fn brief(message: &str) -> String {
    if message.len() <= LONGEST_WORDS {
        return message.to_owned();
    }
    let end = (0..=LONGEST_WORDS).rev().find(|end| message.is_char_boundary(*end)).unwrap_or_default();
    format!("{}...", &message[..end])
}

/// The entry.
pub fn entry(wanted: &Wanted<'_>) -> MutatingWebhookConfiguration {
    let client_config = |path: &str| wanted.target.client_config(path, wanted.ca_bundle);
    let selectors = wanted.profile.selectors.iter().enumerate().filter(|(_, selector)| !selector.is_effect_only());
    let mut webhooks: Vec<MutatingWebhook> = selectors
        .map(|(at, selector)| {
            let (object, namespace) = (selector.object.clone(), selector.namespace.clone());
            let client_config = client_config(&selector_path(at, selector));
            webhook(&format!("profile-{at}"), object.unwrap_or_default(), namespace.unwrap_or_default(), client_config)
        })
        .collect();
    let called = wanted.rules.iter().map(|rule| Called {
        path: rule_path(rule),
        object: rule.object.clone(),
        namespace: rule.namespace.clone(),
    });
    let called = called.chain(wanted.earlier_rules.iter().cloned());
    webhooks.extend(called.enumerate().map(|(at, Called { path, object, namespace })| {
        let client_config = client_config(&path);
        webhook(&format!("selector-{at}"), object.unwrap_or_default(), namespace.unwrap_or_default(), client_config)
    }));
    let by_label = labelled()
        .map(|(name, pods, namespaces)| webhook(name, expressions(pods), expressions(namespaces), client_config(PATH)));
    webhooks.extend(by_label);
    if !selection::of_all(wanted.profile).is_empty() {
        let effects = webhook("effects", expressions(vec![]), expressions(vec![]), client_config(EFFECTS_PATH));
        let condition = MatchCondition { name: "virtual-node".to_owned(), expression: bound(wanted.placement) };
        webhooks.push(MutatingWebhook { match_conditions: Some(vec![condition]), ..effects });
    }
    let annotations = BTreeMap::from([
        (PROFILE_ANNOTATION.to_owned(), wanted.record.to_owned()),
        (SELECTORS_ANNOTATION.to_owned(), wanted.rules_record.to_owned()),
    ]);
    let name = Some(NAME.to_owned());
    MutatingWebhookConfiguration {
        metadata: ObjectMeta { name, annotations: Some(annotations), ..ObjectMeta::default() },
        webhooks: Some(webhooks),
    }
}

/// The webhooks for labels: name, labels of the pod, labels of the namespace.
fn labelled() -> [(&'static str, Vec<LabelSelectorRequirement>, Vec<LabelSelectorRequirement>); 5] {
    let is = |key: &str, value: &str| requirement(key, "In", &[value]);
    let without = |key: &str| requirement(key, "DoesNotExist", &[]);
    let unlabelled = || vec![without(LABEL), without(LABEL_LEGACY)];
    [
        ("pod", vec![is(LABEL, "true")], vec![]),
        ("pod-legacy", vec![is(LABEL_LEGACY, "true"), without(LABEL)], vec![]),
        ("namespace", unlabelled(), vec![is(LABEL, "true")]),
        ("namespace-legacy", unlabelled(), vec![is(LABEL_LEGACY, "true"), without(LABEL)]),
        (
            "namespace-injection",
            unlabelled(),
            vec![is(INJECTION.0, INJECTION.1), without(LABEL), without(LABEL_LEGACY)],
        ),
    ]
}

/// In the API server's own language: whether a pod goes to a virtual node. What [`super::review::is_bound`] says, too.
fn bound(placement: &Placement) -> String {
    let text = |text: &str| json!(text).to_string();
    let selected = placement.selector.iter().map(|(key, value)| {
        let (key, value) = (text(key), text(value));
        format!("{key} in object.spec.nodeSelector && object.spec.nodeSelector[{key}] == {value}")
    });
    let selected: Vec<String> = std::iter::once("has(object.spec.nodeSelector)".to_owned()).chain(selected).collect();
    let nodes: Vec<String> = placement.nodes.iter().map(|node| text(node)).collect();
    format!(
        "({}) || (has(object.spec.nodeName) && object.spec.nodeName in [{}])",
        selected.join(" && "),
        nodes.join(", ")
    )
}

/// The profile that an entry keeps.
pub fn kept_profile(entry: &MutatingWebhookConfiguration) -> Option<&str> {
    kept(entry, PROFILE_ANNOTATION)
}

/// What an entry keeps of the Selectors.
pub fn kept_selectors(entry: &MutatingWebhookConfiguration) -> Option<&str> {
    kept(entry, SELECTORS_ANNOTATION)
}

fn kept<'a>(entry: &'a MutatingWebhookConfiguration, key: &str) -> Option<&'a str> {
    entry.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether what is there is what we want: then nothing is written.
pub fn is_current(there: &MutatingWebhookConfiguration, wanted: &MutatingWebhookConfiguration) -> bool {
    there.webhooks == wanted.webhooks
        && kept_profile(there) == kept_profile(wanted)
        && kept_selectors(there) == kept_selectors(wanted)
}

fn expressions(requirements: Vec<LabelSelectorRequirement>) -> LabelSelector {
    LabelSelector {
        match_expressions: Some(requirements).filter(|requirements| !requirements.is_empty()),
        match_labels: None,
    }
}

/// The entry for ImageCaches.
pub fn image_cache_entry(target: &Target, ca_bundle: &str) -> ValidatingWebhookConfiguration {
    let condition =
        |name: &str, expression: &str| MatchCondition { name: name.to_owned(), expression: expression.to_owned() };
    let webhook = ValidatingWebhook {
        name: "imagecache.vk-webhook.eci.alibabacloud.com".to_owned(),
        admission_review_versions: vec!["v1".to_owned()],
        client_config: target.client_config(IMAGE_CACHE_PATH, ca_bundle),
        failure_policy: Some("Fail".to_owned()),
        match_conditions: Some(vec![
            condition("names-secrets", "has(object.spec.imagePullSecrets) && size(object.spec.imagePullSecrets) > 0"),
            condition("stays", "!has(object.metadata.deletionTimestamp)"),
        ]),
        match_policy: Some("Equivalent".to_owned()),
        namespace_selector: Some(LabelSelector::default()),
        object_selector: Some(LabelSelector::default()),
        rules: Some(vec![RuleWithOperations {
            api_groups: Some(vec!["eci.alibabacloud.com".to_owned()]),
            api_versions: Some(vec!["v1".to_owned()]),
            operations: Some(vec!["CREATE".to_owned(), "UPDATE".to_owned()]),
            resources: Some(vec!["imagecaches".to_owned()]),
            scope: Some("Cluster".to_owned()),
        }]),
        side_effects: "None".to_owned(),
        timeout_seconds: Some(TIMEOUT_SECONDS),
    };
    ValidatingWebhookConfiguration {
        metadata: ObjectMeta { name: Some(IMAGE_CACHE_NAME.to_owned()), ..ObjectMeta::default() },
        webhooks: Some(vec![webhook]),
    }
}

/// Every field that the API server would fill in is given, so that what comes back can be compared.
fn webhook(
    name: &str,
    pods: LabelSelector,
    namespaces: LabelSelector,
    client_config: WebhookClientConfig,
) -> MutatingWebhook {
    MutatingWebhook {
        name: format!("{name}.vk-webhook.eci.alibabacloud.com"),
        admission_review_versions: vec!["v1".to_owned()],
        client_config,
        failure_policy: Some("Ignore".to_owned()),
        match_conditions: None,
        match_policy: Some("Equivalent".to_owned()),
        namespace_selector: Some(namespaces),
        object_selector: Some(pods),
        reinvocation_policy: Some("IfNeeded".to_owned()),
        rules: Some(vec![RuleWithOperations {
            api_groups: Some(vec![String::new()]),
            api_versions: Some(vec!["v1".to_owned()]),
            operations: Some(vec!["CREATE".to_owned()]),
            resources: Some(vec!["pods".to_owned()]),
            scope: Some("Namespaced".to_owned()),
        }]),
        side_effects: "None".to_owned(),
        timeout_seconds: Some(TIMEOUT_SECONDS),
    }
}

fn requirement(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
    let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
    LabelSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: Some(values).filter(|values| !values.is_empty()),
    }
}

#[cfg(test)]
mod tests;
