//! The lease of a node.
//!
//! Pure: no I/O, no clock, no randomness.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};

use crate::cluster::nodes::LEASE_NAMESPACE;

/// Seconds after which the node counts as gone: the kubelet's figure.
const DURATION_SECONDS: i32 = 40;

/// The lease, renewed at `now`: on top of the one that is there, if any.
pub(super) fn renewed(current: Option<Lease>, node: &str, node_uid: &str, now: Timestamp) -> Lease {
    let mut lease = current.unwrap_or_default();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: node_uid.to_owned(),
        ..OwnerReference::default()
    };
    lease.metadata = ObjectMeta {
        name: Some(node.to_owned()),
        namespace: Some(LEASE_NAMESPACE.to_owned()),
        owner_references: Some(vec![owner]),
        ..lease.metadata
    };
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(node.to_owned()),
        lease_duration_seconds: Some(DURATION_SECONDS),
        renew_time: Some(MicroTime(now)),
        ..lease.spec.unwrap_or_default()
    });
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_belongs_to_its_node_and_keeps_its_version() {
        let now = Timestamp::from_second(7).unwrap();
        let mut there = renewed(None, "n", "uid-1", now);
        there.metadata.resource_version = Some("5".into());
        let lease = renewed(Some(there), "n", "uid-2", now);
        assert_eq!(lease.metadata.resource_version.as_deref(), Some("5"));
        let owners = lease.metadata.owner_references.unwrap();
        assert_eq!((owners.len(), owners[0].uid.as_str()), (1, "uid-2"));
        let spec = lease.spec.unwrap();
        assert_eq!((spec.lease_duration_seconds, spec.holder_identity.as_deref()), (Some(40), Some("n")));
    }
}
