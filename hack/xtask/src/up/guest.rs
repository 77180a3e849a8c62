//! What must hold in somebody else's cluster before our nodes join it: their names are free, and their pods' addresses are
//! nobody else's.

use anyhow::{Context, bail};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use super::layout::{Layout, Settings};
use crate::conditions::node_is_ready;
use crate::larder::Provider;
use crate::process;

/// Refuses to join where it would do harm.
pub(super) async fn check(layout: &Layout, settings: &Settings, client: &Client) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.context("list the nodes")?;
    let ours: Vec<String> = settings.agents(layout).map(|agent| agent.node).collect();
    // While our provider runs, nodes of these names are kept alive by it.
    let joined = process::find(&layout.run(), Provider::NAME).is_some();
    nodes.items.iter().try_for_each(|node| check_node(node, &ours, joined, settings.pods))
}

fn check_node(node: &Node, ours: &[String], joined: bool, pods: Ipv4Net) -> anyhow::Result<()> {
    let name = node.name_any();
    if ours.contains(&name) {
        if !joined && node_is_ready(node) {
            bail!("a node {name} is there and Ready, so another machine keeps it alive: name ours with --node-name");
        }
        return Ok(());
    }
    let spec = node.spec.iter();
    let networks = spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(spec.pod_cidr.as_ref()));
    for network in networks.filter_map(|text| text.parse::<Ipv4Net>().ok()) {
        if network.contains(&pods) || pods.contains(&network) {
            bail!(
                "pods of node {name} have {network}, which is part of {pods}: name addresses of ours with --pod-cidr"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(name: &str, ready: &str, network: &str, joined: bool) -> String {
        let node = json!({
            "metadata": {"name": name}, "spec": {"podCIDR": network},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        let node = serde_json::from_value(node).expect("a node");
        let pods = "10.245.0.0/16".parse().expect("a network");
        let result = check_node(&node, &["edge-0".to_owned()], joined, pods);
        result.err().map(|err| err.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_name_that_another_machine_has_is_refused() {
        assert!(said("edge-0", "True", "10.1.0.0/24", false).contains("--node-name"));
        assert_eq!(
            said("edge-0", "Unknown", "10.1.0.0/24", false),
            "",
            "what is left of an earlier life is taken over"
        );
        assert_eq!(said("edge-0", "True", "10.1.0.0/24", true), "", "our own");
    }

    #[test]
    fn addresses_that_another_node_has_are_refused() {
        for network in ["10.245.3.0/24", "10.244.0.0/15"] {
            assert!(said("other", "True", network, false).contains("--pod-cidr"), "{network}");
        }
        assert_eq!(said("other", "True", "10.244.0.0/24", false), "");
    }
}
