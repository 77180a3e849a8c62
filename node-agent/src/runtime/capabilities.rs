//! The capabilities of a container: containerd's default set, changed as the pod asks.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeSet;

use super::SecuritySpec;
use super::oci_spec::SpecError;

/// All capabilities of Linux 6, in the order of their numbers.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container gets when the pod says nothing, as containerd has it.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The capabilities whose bits are set in `mask`, as `/proc/<pid>/status` has it.
pub fn from_mask(mask: u64) -> BTreeSet<String> {
    ALL.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, name)| (*name).to_owned()).collect()
}

/// The capabilities of a container, in alphabetical order. What the host cannot give is left out, as runc does.
///
/// # Errors
/// When the pod names one that does not exist.
pub fn resolve(security: &SecuritySpec, available: &BTreeSet<String>) -> Result<BTreeSet<String>, SpecError> {
    let (add, add_all) = names("add", &security.add_capabilities)?;
    let (drop, drop_all) = names("drop", &security.drop_capabilities)?;
    let mut set: BTreeSet<String> = match (security.privileged || add_all, drop_all) {
        (true, _) if security.privileged => ALL.iter().map(|name| (*name).to_owned()).collect(),
        (_, true) => BTreeSet::new(),
        (true, false) => ALL.iter().map(|name| (*name).to_owned()).collect(),
        (false, false) => DEFAULT.iter().map(|name| (*name).to_owned()).collect(),
    };
    set.extend(add);
    if !security.privileged {
        set.retain(|name| !drop.contains(name));
    }
    set.retain(|name| available.contains(name));
    Ok(set)
}

/// The capabilities in a list, with their prefix, and whether `ALL` is among them.
fn names(verb: &'static str, list: &[String]) -> Result<(BTreeSet<String>, bool), SpecError> {
    let (mut found, mut all) = (BTreeSet::new(), false);
    for name in list {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" {
            all = true;
            continue;
        }
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        if !ALL.contains(&full.as_str()) {
            return Err(SpecError::UnknownCapability { verb, name: name.clone() });
        }
        found.insert(full);
    }
    Ok((found, all))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn security(add: &[&str], drop: &[&str]) -> SecuritySpec {
        SecuritySpec {
            add_capabilities: add.iter().map(|name| (*name).to_owned()).collect(),
            drop_capabilities: drop.iter().map(|name| (*name).to_owned()).collect(),
            ..SecuritySpec::default()
        }
    }

    #[rstest]
    #[case::default(&[], &[], DEFAULT.len(), &["CAP_CHOWN"], &["CAP_SYS_ADMIN"])]
    #[case::added(&["SYS_ADMIN"], &[], DEFAULT.len() + 1, &["CAP_SYS_ADMIN"], &[])]
    #[case::added_with_prefix_in_lower_case(&["cap_sys_time"], &[], DEFAULT.len() + 1, &["CAP_SYS_TIME"], &[])]
    #[case::dropped(&[], &["CHOWN"], DEFAULT.len() - 1, &[], &["CAP_CHOWN"])]
    #[case::all_dropped(&[], &["ALL"], 0, &[], &["CAP_CHOWN"])]
    #[case::all_dropped_but_one(&["NET_BIND_SERVICE"], &["all"], 1, &["CAP_NET_BIND_SERVICE"], &[])]
    #[case::all_added(&["ALL"], &[], ALL.len(), &["CAP_SYS_ADMIN"], &[])]
    #[case::all_added_but_one(&["ALL"], &["SYS_ADMIN"], ALL.len() - 1, &[], &["CAP_SYS_ADMIN"])]
    fn the_set_follows_the_pod(
        #[case] add: &[&str],
        #[case] drop: &[&str],
        #[case] count: usize,
        #[case] has: &[&str],
        #[case] has_not: &[&str],
    ) {
        let set = resolve(&security(add, drop), &from_mask(u64::MAX)).unwrap();
        assert_eq!(set.len(), count);
        assert!(has.iter().all(|name| set.contains(*name)));
        assert!(!has_not.iter().any(|name| set.contains(*name)));
    }

    #[test]
    fn what_the_host_cannot_give_is_left_out() {
        let without_resource = from_mask(!(1 << 24));
        assert!(!without_resource.contains("CAP_SYS_RESOURCE"));
        let set = resolve(&security(&["ALL"], &[]), &without_resource).unwrap();
        assert_eq!(set.len(), ALL.len() - 1);
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        let error = resolve(&security(&["FLY"], &[]), &from_mask(u64::MAX)).unwrap_err();
        assert_eq!(error.to_string(), "unknown capability to add \"FLY\"");
    }

    #[test]
    fn a_privileged_container_has_all() {
        let security = SecuritySpec { privileged: true, ..security(&[], &["ALL"]) };
        assert_eq!(resolve(&security, &from_mask(u64::MAX)).unwrap().len(), ALL.len());
    }
}
