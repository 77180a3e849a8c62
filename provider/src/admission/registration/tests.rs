//! Which pods the entry has the API server call for, and where.

use super::*;
use crate::profile::labels::matches;
use crate::profile::parse::parse;
use rstest::rstest;

#[rstest]
#[case("https://10.0.0.1:9443", "https://10.0.0.1:9443", "10.0.0.1")]
#[case("https://10.0.0.1:9443/mutate", "https://10.0.0.1:9443", "10.0.0.1")]
#[case("https://larder.example/", "https://larder.example:443", "larder.example")]
#[case("https://[::1]:9443", "https://[::1]:9443", "::1")]
#[case("service://larder-system/provider", "service://larder-system/provider:443", "provider.larder-system.svc")]
#[case("service://a/b:9443", "service://a/b:9443", "b.a.svc")]
fn targets(#[case] text: &str, #[case] shown: &str, #[case] name: &str) {
    let target: Target = text.parse().unwrap();
    assert_eq!(target.to_string(), shown);
    assert_eq!(target.certificate_name(), name);
}

#[rstest]
#[case("http://10.0.0.1")]
#[case("10.0.0.1:9443")]
#[case("https://")]
#[case("https://a/b")]
#[case("https://a:port")]
#[case("service://a")]
#[case("service:///b")]
fn no_targets(#[case] text: &str) {
    assert!(text.parse::<Target>().is_err());
}

#[test]
fn what_the_api_server_says_is_cut() {
    assert_eq!(brief("no"), "no");
    let long = brief(&format!("x{}", "é".repeat(100_000)));
    assert!(long.len() < 520 && long.ends_with("é..."), "{long}");
}

fn entry_with(profile: &Profile) -> MutatingWebhookConfiguration {
    entry_of(profile, &Rules::default())
}

fn entry_of(profile: &Profile, rules: &Rules) -> MutatingWebhookConfiguration {
    let mut placement = Placement::new(vec![]);
    placement.nodes = vec!["n0".to_owned(), "n1".to_owned()];
    let target = "https://h".parse().unwrap();
    let (record, rules_record) = ("{}", "{1}");
    entry(&Wanted {
        target: &target,
        ca_bundle: "ca",
        profile,
        record,
        rules,
        earlier_rules: &[],
        rules_record,
        placement: &placement,
    })
}

type Labels<'a> = &'a [(&'static str, &'static str)];

fn called_with(profile: &Profile, pod: Labels<'_>, namespace: Labels<'_>) -> Vec<String> {
    called_of(&entry_with(profile), pod, namespace)
}

fn called_of(entry: &MutatingWebhookConfiguration, pod: Labels<'_>, namespace: Labels<'_>) -> Vec<String> {
    let set = |labels: Labels<'_>| -> BTreeMap<String, String> {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let (pod, namespace) = (set(pod), set(namespace));
    let all = entry.webhooks.iter().flatten();
    let called = all.filter(|webhook| {
        matches(webhook.object_selector.as_ref().unwrap(), Some(&pod))
            && matches(webhook.namespace_selector.as_ref().unwrap(), Some(&namespace))
            && webhook.match_conditions.is_none()
    });
    called.map(|webhook| webhook.name.split('.').next().unwrap().to_owned()).collect()
}

fn called(pod: Labels<'_>, namespace: Labels<'_>) -> Vec<String> {
    called_with(&Profile::default(), pod, namespace)
}

#[test]
fn the_labelled_are_called_once_and_the_others_never() {
    assert_eq!(called(&[(LABEL, "true")], &[]), ["pod"]);
    assert_eq!(called(&[(LABEL_LEGACY, "true")], &[]), ["pod-legacy"]);
    assert_eq!(called(&[(LABEL, "true"), (LABEL_LEGACY, "true")], &[(LABEL, "true")]), ["pod"]);
    assert_eq!(called(&[], &[(LABEL, "true")]), ["namespace"]);
    assert_eq!(called(&[], &[(LABEL_LEGACY, "true")]), ["namespace-legacy"]);
    assert_eq!(called(&[], &[INJECTION]), ["namespace-injection"]);
    assert_eq!(called(&[], &[INJECTION, (LABEL, "true"), (LABEL_LEGACY, "true")]), ["namespace"]);
    let never: [(&[_], &[_]); 6] = [
        (&[], &[]),
        (&[("app", "x")], &[("team", "y")]),
        (&[(LABEL, "false")], &[(LABEL, "true")]),
        (&[(LABEL_LEGACY, "no")], &[(LABEL, "true")]),
        (&[(LABEL, "false"), (LABEL_LEGACY, "true")], &[]),
        (&[], &[(LABEL, "false"), (LABEL_LEGACY, "true")]),
    ];
    for (pod, namespace) in never {
        assert_eq!(called(pod, namespace), Vec::<String>::new(), "{pod:?} in {namespace:?}");
    }
}

fn profile() -> Profile {
    let text = r#"[
        {"name": "both", "namespaceSelector": {"matchLabels": {"team": "y"}}, "objectSelector": {"matchLabels": {"app": "x"}}},
        {"name": "all", "effect": {"labels": {"a": "b"}}},
        {"name": "pods", "objectSelector": {"matchLabels": {"app": "x"}}},
        {"name": "namespaces", "namespaceSelector": {"matchLabels": {"team": "y"}}}
    ]"#;
    parse(text).unwrap()
}

#[test]
fn selectors_of_the_profile_are_called_first_and_in_order() {
    let called = |pod, namespace| called_with(&profile(), pod, namespace);
    assert_eq!(called(&[("app", "x")], &[("team", "y")]), ["profile-0", "profile-2", "profile-3"]);
    assert_eq!(called(&[("app", "x"), (LABEL, "true")], &[]), ["profile-2", "pod"]);
    assert_eq!(called(&[("app", "z")], &[("team", "y"), (LABEL, "true")]), ["profile-3", "namespace"]);
    assert_eq!(called(&[("app", "z")], &[]), Vec::<String>::new());
}

fn rules() -> Rules {
    let rule = |name: &str, priority, spec: serde_json::Value| {
        let name = Name { namespace: "ns".to_owned(), name: name.to_owned() };
        Rule { priority, ..crate::selector::rule::read(name, &serde_json::from_value(spec).unwrap()).unwrap() }
    };
    let app = json!({"objectLabels": {"matchLabels": {"app": "x"}}});
    let team = json!({"namespaceLabels": {"matchLabels": {"team": "y"}}});
    let both =
        json!({"objectLabels": {"matchLabels": {"app": "z"}}, "namespaceLabels": {"matchLabels": {"team": "y"}}});
    Rules::ranked(vec![rule("app", -1, app), rule("team", 3, team), rule("both", 0, both)]).0
}

#[test]
fn selector_objects_are_called_after_the_profile_in_the_order_of_their_priority() {
    let entry = entry_of(&profile(), &rules());
    let called = |pod, namespace| called_of(&entry, pod, namespace);
    assert_eq!(called(&[("app", "x")], &[]), ["profile-2", "selector-2"]);
    assert_eq!(called(&[("app", "z")], &[("team", "y")]), ["profile-3", "selector-0", "selector-1"]);
    assert_eq!(called(&[("app", "z")], &[("team", "z")]), Vec::<String>::new());
    assert_eq!(kept_selectors(&entry), Some("{1}"));
    let url = entry.webhooks.as_ref().unwrap()[3].client_config.url.clone().unwrap();
    assert_eq!(url, format!("https://h:443{}", rule_path(rules().iter().next().unwrap())));
    let mut forgotten = entry.clone();
    forgotten.metadata.annotations.as_mut().unwrap().remove(SELECTORS_ANNOTATION);
    assert!(!is_current(&forgotten, &entry));
}

#[test]
fn whose_webhook_is_at_fault() {
    let at_fault = |at: usize| {
        let message = format!("\"vk-webhook\" is invalid: webhooks[{at}].objectSelector: no");
        super::at_fault(&message, &profile(), &rules()).map(|name| name.to_string())
    };
    assert_eq!([2, 3, 5, 6].map(at_fault), [None, Some("ns/team".to_owned()), Some("ns/app".to_owned()), None]);
    assert_eq!(super::at_fault("request is too large", &profile(), &rules()), None);
}

#[test]
fn what_is_for_all_pods_comes_last_and_only_to_those_of_virtual_nodes() {
    let webhooks = entry_with(&profile()).webhooks.unwrap();
    let last = webhooks.last().unwrap();
    assert!(last.name.starts_with("effects."));
    assert_eq!(
        last.match_conditions.as_ref().unwrap()[0].expression,
        "(has(object.spec.nodeSelector) && \"type\" in object.spec.nodeSelector && \
         object.spec.nodeSelector[\"type\"] == \"virtual-kubelet\") || \
         (has(object.spec.nodeName) && object.spec.nodeName in [\"n0\", \"n1\"])"
    );
    assert!(entry_with(&Profile::default()).webhooks.unwrap().iter().all(|w| w.match_conditions.is_none()));
    let url = webhooks[0].client_config.url.clone().unwrap();
    assert_eq!(url, format!("https://h:443/mutate/profile/0/{}", profile().selectors[0].digest()));
}

#[test]
fn another_profile_makes_another_entry() {
    let (with, without) = (entry_with(&profile()), entry_with(&Profile::default()));
    assert!(is_current(&with, &with.clone()) && !is_current(&without, &with));
    assert_eq!(kept_profile(&with), Some("{}"));
    let mut forgotten = with.clone();
    forgotten.metadata.annotations = None;
    assert!(!is_current(&forgotten, &with));
}

#[test]
fn an_image_cache_that_names_secrets_is_not_taken_unchecked() {
    let entry = image_cache_entry(&"https://h:9443".parse().unwrap(), "ca");
    let webhook = &entry.webhooks.unwrap()[0];
    assert_eq!(webhook.failure_policy.as_deref(), Some("Fail"));
    assert_eq!(webhook.client_config.url.as_deref(), Some("https://h:9443/validate-imagecache"));
    let rule = &webhook.rules.as_ref().unwrap()[0];
    assert_eq!(rule.operations.as_deref(), Some(&["CREATE".to_owned(), "UPDATE".to_owned()][..]));
    assert_eq!(webhook.match_conditions.as_ref().unwrap().len(), 2);
}

#[test]
fn nobody_waits_long_and_nobody_is_refused() {
    let (target, placement) = ("service://a/b".parse().unwrap(), Placement::new(vec![]));
    let entry = entry(&Wanted {
        target: &target,
        ca_bundle: "ca",
        profile: &profile(),
        record: "",
        rules: &rules(),
        earlier_rules: &[],
        rules_record: "",
        placement: &placement,
    });
    for webhook in entry.webhooks.clone().unwrap() {
        assert_eq!(webhook.failure_policy.as_deref(), Some("Ignore"));
        assert_eq!(webhook.timeout_seconds, Some(5));
        assert_eq!(webhook.side_effects, "None");
        assert!(webhook.client_config.url.is_none() && webhook.client_config.service.is_some());
    }
    assert!(is_current(&entry, &entry.clone()));
    let paths: Vec<String> = called_for(&entry).into_iter().map(|called| called.path).collect();
    assert_eq!(paths, rules().iter().map(rule_path).collect::<Vec<_>>());
}
