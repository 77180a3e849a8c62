//! The packet filter rules of one node's pods, as text for `nft`.
//!
//! Pure: no I/O, no clock, no randomness.

/// What the rules are about.
#[derive(Debug, Clone)]
pub(super) struct Rules<'a> {
    /// The pods' bridge, which also names the table.
    pub(super) bridge: &'a str,
    /// The pods' network.
    pub(super) pod_cidr: &'a str,
    /// Every pod network of the cluster: traffic to it keeps its source address.
    pub(super) cluster_cidr: &'a str,
}

impl Rules<'_> {
    /// A ruleset that puts this table in place of an older one, in one transaction.
    pub(super) fn install(&self) -> String {
        let Self { bridge, pod_cidr, cluster_cidr } = self;
        let table = self.table();
        // The second rule is for a Service whose endpoint is on the same bridge as its client: without it the answer would
        // go straight across the bridge, past the address translation, and the client would not know it.
        format!(
            "add table ip {table}\n\
             flush table ip {table}\n\
             table ip {table} {{\n\
             \tchain postrouting {{\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tip saddr {pod_cidr} ip daddr != {cluster_cidr} oifname != \"{bridge}\" masquerade\n\
             \t\tip saddr {pod_cidr} oifname \"{bridge}\" ct status dnat masquerade\n\
             \t}}\n\
             \tchain forward {{\n\
             \t\ttype filter hook forward priority filter; policy accept;\n\
             \t\tiifname \"{bridge}\" accept\n\
             \t\toifname \"{bridge}\" accept\n\
             \t}}\n\
             }}\n"
        )
    }

    fn table(&self) -> String {
        format!("larder-{}", self.bridge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_table_after_the_bridge_and_spares_the_cluster() {
        let rules = Rules { bridge: "larder7", pod_cidr: "10.244.7.0/24", cluster_cidr: "10.244.0.0/16" }.install();
        assert!(rules.starts_with("add table ip larder-larder7\nflush table ip larder-larder7\n"), "{rules}");
        assert!(rules.contains("ip saddr 10.244.7.0/24 ip daddr != 10.244.0.0/16 oifname != \"larder7\" masquerade"));
    }
}
