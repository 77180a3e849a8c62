//! What a container's specification has to know of this host. It is looked up once.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use crate::host::cgroup::CgroupLayout;
use crate::runtime::capabilities;

/// The facts.
#[derive(Debug)]
pub(super) struct HostFacts {
    pub(super) cgroups: CgroupLayout,
    /// The capabilities that this process can give away.
    pub(super) capabilities: BTreeSet<String>,
    /// The least `oom_score_adj` that this process may set.
    pub(super) oom_score_floor: i32,
}

impl HostFacts {
    pub(super) fn read() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let mask = |key| mask_in(&status, key).unwrap_or(0);
        let capabilities = capabilities::from_mask(mask("CapPrm:") & mask("CapBnd:"));
        let own_score = fs::read_to_string("/proc/self/oom_score_adj")?;
        // Going below what one has takes CAP_SYS_RESOURCE.
        let oom_score_floor =
            if capabilities.contains("CAP_SYS_RESOURCE") { -1000 } else { own_score.trim().parse().unwrap_or(0) };
        Ok(Self { cgroups: CgroupLayout::detect()?, capabilities, oom_score_floor })
    }
}

fn mask_in(status: &str, key: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_read_from_the_status() {
        let status = "Name:\tx\nCapPrm:\t000001fffeffffff\nCapBnd:\tzz\n";
        assert_eq!(mask_in(status, "CapPrm:"), Some(0x1ff_feff_ffff));
        assert_eq!(mask_in(status, "CapBnd:"), None);
        assert_eq!(mask_in(status, "CapAmb:"), None);
    }

    #[test]
    fn this_host_has_facts() {
        let facts = HostFacts::read().unwrap();
        assert!(facts.capabilities.contains("CAP_SYS_ADMIN"), "these tests run as root");
        assert_ne!(facts.cgroups, CgroupLayout::None);
    }
}
