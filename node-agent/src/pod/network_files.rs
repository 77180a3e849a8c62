//! A pod's names and the files that a container finds them in: `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`, as a
//! kubelet makes them (`pkg/kubelet/kubelet_pods.go`, `pkg/kubelet/network/dns`).
//!
//! Pure: no I/O, no clock, no randomness.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig, PodSpec};

/// glibc and musl read three at most.
const MAX_NAMESERVERS: usize = 3;
/// `MaxDNSSearchPaths` and `MaxDNSSearchListChars` of Kubernetes' validation.
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
/// A host name's longest, HOST_NAME_MAX less one.
const MAX_HOSTNAME: usize = 63;

/// How names are resolved in this cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsSettings {
    /// Addresses of the cluster's DNS service; none when it has none.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
}

/// What a pod is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNames {
    /// What `hostname` prints.
    pub hostname: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`; empty for a pod without subdomain.
    pub domain: String,
}

/// Lines of `/etc/resolv.conf`, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Servers in order.
    pub nameservers: Vec<String>,
    /// Domains that are tried in turn.
    pub searches: Vec<String>,
    /// `ndots:5` ...
    pub options: Vec<String>,
}

/// A pod's resolver, and whether the cluster's DNS was wanted but is not there (an event `MissingClusterDNS`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// The file.
    pub conf: ResolvConf,
    /// The pod asked for the cluster's DNS, and no address is configured: it has the host's.
    pub missing_cluster_dns: bool,
}

/// The names of a pod.
pub fn names(pod: &Pod, dns: &DnsSettings) -> PodNames {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(hostname) = spec.and_then(|spec| spec.hostname_override.clone()).filter(|name| !name.is_empty()) {
        return PodNames { hostname, domain: String::new() };
    }
    let given = spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let hostname = given.unwrap_or_else(|| shorten(pod.metadata.name.as_deref().unwrap_or_default()));
    let subdomain = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty());
    let domain = subdomain.map(|name| format!("{name}.{namespace}.svc.{}", dns.cluster_domain)).unwrap_or_default();
    let as_fqdn = spec.and_then(|spec| spec.set_hostname_as_fqdn) == Some(true);
    if as_fqdn && !domain.is_empty() {
        return PodNames { hostname: format!("{hostname}.{domain}"), domain };
    }
    PodNames { hostname, domain }
}

/// A pod's name may be longer than a host's; it is cut, and must not end in what a host's name may not end in.
fn shorten(name: &str) -> String {
    let cut: String = name.chars().take(MAX_HOSTNAME).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The text of `/etc/hosts`.
pub fn hosts(pod: &Pod, names: &PodNames, pod_ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let short = names.hostname.split('.').next().unwrap_or_default();
    let all_names =
        if names.domain.is_empty() { names.hostname.clone() } else { format!("{short}.{}\t{short}", names.domain) };
    for ip in pod_ips {
        text.push_str(&format!("{ip}\t{all_names}\n"));
    }
    let aliases: Vec<_> = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten()).collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

/// The resolver of a pod, from its policy, its own settings, the cluster's and the host's.
pub fn resolver(pod: &Pod, dns: &DnsSettings, host: &ResolvConf) -> Resolver {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    // ClusterFirst on the host's own network means Default, a kubelet says; pods here have their own network.
    let wants_cluster = matches!(policy, "ClusterFirst" | "ClusterFirstWithHostNet");
    let missing_cluster_dns = wants_cluster && dns.cluster_dns.is_empty();
    let mut conf = if policy == "None" {
        ResolvConf::default()
    } else if wants_cluster && !missing_cluster_dns {
        cluster_first(dns, namespace, host)
    } else {
        host.clone()
    };
    if let Some(own) = &spec.dns_config {
        merge(&mut conf, own);
    }
    conf.nameservers.truncate(MAX_NAMESERVERS);
    limit_searches(&mut conf.searches);
    Resolver { conf, missing_cluster_dns }
}

fn cluster_first(dns: &DnsSettings, namespace: &str, host: &ResolvConf) -> ResolvConf {
    let domain = &dns.cluster_domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches.extend([format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()]);
    }
    extend_new(&mut searches, &host.searches);
    let nameservers = dns.cluster_dns.iter().map(ToString::to_string).collect();
    ResolvConf { nameservers, searches, options: vec!["ndots:5".into()] }
}

fn merge(conf: &mut ResolvConf, own: &PodDNSConfig) {
    extend_new(&mut conf.nameservers, own.nameservers.as_deref().unwrap_or_default());
    extend_new(&mut conf.searches, own.searches.as_deref().unwrap_or_default());
    for option in own.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        let text = option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}"));
        // The pod's own value takes the place of ours.
        match conf.options.iter_mut().find(|old| old.split(':').next() == Some(name)) {
            Some(old) => *old = text,
            None => conf.options.push(text),
        }
    }
}

fn extend_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn limit_searches(searches: &mut Vec<String>) {
    searches.truncate(MAX_SEARCHES);
    while searches.iter().map(|search| search.len() + 1).sum::<usize>() > MAX_SEARCH_CHARS + 1 {
        searches.pop();
    }
}

impl ResolvConf {
    /// Reads a file as the resolver does: what it does not know, it skips.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().map(str::to_owned)),
                // The last one counts (resolv.conf(5)).
                Some("search" | "domain") => conf.searches = words.map(str::to_owned).collect(),
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                Some(_) | None => {}
            }
        }
        conf
    }
}

impl std::fmt::Display for ResolvConf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.searches.is_empty() {
            writeln!(f, "search {}", self.searches.join(" "))?;
        }
        for nameserver in &self.nameservers {
            writeln!(f, "nameserver {nameserver}")?;
        }
        if !self.options.is_empty() {
            writeln!(f, "options {}", self.options.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn dns(cluster_dns: &[&str]) -> DnsSettings {
        let cluster_dns = cluster_dns.iter().map(|ip| ip.parse().unwrap()).collect();
        DnsSettings { cluster_dns, cluster_domain: "cluster.local".into() }
    }

    #[rstest]
    #[case(json!({}), "web-0", "")]
    #[case(json!({"hostname": "db", "subdomain": "all"}), "db", "all.shop.svc.cluster.local")]
    #[case(json!({"subdomain": "all", "setHostnameAsFQDN": true}), "web-0.all.shop.svc.cluster.local", "all.shop.svc.cluster.local")]
    #[case(json!({"hostname": "db", "subdomain": "all", "hostnameOverride": "mine.example"}), "mine.example", "")]
    fn names_of_a_pod(#[case] spec: serde_json::Value, #[case] hostname: &str, #[case] domain: &str) {
        let expected = PodNames { hostname: hostname.into(), domain: domain.into() };
        assert_eq!(names(&pod(spec), &dns(&[])), expected);
    }

    #[test]
    fn hosts_has_the_pod_and_its_aliases() {
        let pod = pod(json!({
            "subdomain": "all",
            "hostAliases": [{"ip": "10.0.0.9", "hostnames": ["a.example", "b.example"]}],
        }));
        let text = hosts(&pod, &names(&pod, &dns(&[])), &["10.1.0.2".parse().unwrap()]);
        let tail: Vec<_> = text.lines().skip(7).collect();
        assert_eq!(
            tail,
            [
                "10.1.0.2\tweb-0.all.shop.svc.cluster.local\tweb-0",
                "",
                "# Entries added by HostAliases.",
                "10.0.0.9\ta.example\tb.example",
            ]
        );
    }

    const HOST: &str = "nameserver 192.0.2.53\nsearch old.example\nsearch corp.example\noptions edns0\n# c\n";

    #[rstest]
    #[case(json!({}), &["10.96.0.10"],
        "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n", false)]
    #[case(json!({}), &[], "search corp.example\nnameserver 192.0.2.53\noptions edns0\n", true)]
    #[case(json!({"dnsPolicy": "Default"}), &["10.96.0.10"], "search corp.example\nnameserver 192.0.2.53\noptions edns0\n", false)]
    #[case(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.2.3.4"], "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]}}),
        &["10.96.0.10"], "nameserver 1.2.3.4\noptions ndots:2 rotate\n", false)]
    #[case(json!({"dnsConfig": {"searches": ["x.example"], "options": [{"name": "ndots", "value": "2"}]}}), &["10.96.0.10"],
        "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example x.example\nnameserver 10.96.0.10\noptions ndots:2\n", false)]
    fn resolvers(
        #[case] spec: serde_json::Value,
        #[case] cluster: &[&str],
        #[case] expected: &str,
        #[case] missing: bool,
    ) {
        let resolver = resolver(&pod(spec), &dns(cluster), &ResolvConf::parse(HOST));
        assert_eq!(resolver.conf.to_string(), expected);
        assert_eq!(resolver.missing_cluster_dns, missing);
    }

    proptest! {
        #[test]
        fn a_host_name_is_never_too_long_nor_ends_badly(name in "[a-z]([-.a-z0-9]{0,250}[a-z0-9])?") {
            let short = shorten(&name);
            prop_assert!(!short.is_empty() && short.len() <= MAX_HOSTNAME);
            prop_assert!(!short.ends_with(['-', '.']));
        }

        #[test]
        fn what_is_printed_reads_back(
            nameservers in prop::collection::vec("[0-9.]{7,15}", 0..4),
            searches in prop::collection::vec("[a-z.]{1,20}", 0..4),
            options in prop::collection::vec("[a-z]{1,8}(:[0-9])?", 0..4),
        ) {
            let conf = ResolvConf { nameservers, searches, options };
            prop_assert_eq!(ResolvConf::parse(&conf.to_string()), conf);
        }
    }
}
