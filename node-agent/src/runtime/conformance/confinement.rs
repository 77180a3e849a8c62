//! Limits, users, capabilities, the system call filter.

use std::collections::BTreeMap;

use rstest::rstest;

use super::bench::{Bench, exited, running};
use crate::runtime::{GroupsPolicy, ResourceSpec, Runtime, SecuritySpec};

/// The default capabilities of containerd as a mask.
const DEFAULT_MASK: &str = "00000000a80425fb";

/// What a script finds out about its own process.
const STATUS: &str = "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd):' /proc/self/status";

fn value<'a>(lines: &'a [String], key: &str) -> &'a str {
    let line = lines.iter().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key} in {lines:?}"));
    line.trim()
}

#[rstest]
#[tokio::test]
async fn too_much_memory_ends_it_and_the_reason_is_told(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let mut spec = bench.shell("c1", "x=0123456789abcdef; while :; do x=$x$x; done");
    spec.resources.memory_limit_bytes = Some(16 << 20);
    let exit = bench.run(&runtime, spec).await;
    assert_eq!((exit.exit_code, exit.reason.as_str()), (137, "OOMKilled"));
}

#[rstest]
#[tokio::test]
async fn limits_are_set_in_the_cgroups(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let mut spec = bench.shell("c1", "sleep 1000");
    spec.resources = ResourceSpec {
        cpu_request_milli: Some(250),
        cpu_limit_milli: Some(500),
        memory_limit_bytes: Some(32 << 20),
        oom_score_adj: 900,
    };
    let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
    let pid = running(&container).await;
    if bench.cgroups.features().unified {
        assert_eq!(bench.cgroup_file("c1", "memory", "memory.max"), "33554432");
        assert_eq!(bench.cgroup_file("c1", "cpu", "cpu.max"), "50000 100000");
    } else {
        assert_eq!(bench.cgroup_file("c1", "memory", "memory.limit_in_bytes"), "33554432");
        assert_eq!(bench.cgroup_file("c1", "cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(bench.cgroup_file("c1", "cpu", "cpu.shares"), "256");
    }
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "900");
    runtime.remove(&container.id).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn the_default_confinement_holds(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    // A new user namespace takes no capability, so that only the filter can refuse it. chroot it must let through.
    let script = format!(
        "{STATUS}; unshare -U true 2>&1 && echo unshared; chroot / /bin/true && echo changed; id -u; id -g; id -G"
    );
    bench.run(&runtime, bench.shell("c1", &script)).await;
    let lines = bench.lines("c1");
    assert_eq!(value(&lines, "Seccomp:"), "2");
    assert_eq!(value(&lines, "NoNewPrivs:"), "0");
    assert_eq!(value(&lines, "CapEff:"), DEFAULT_MASK);
    assert_eq!(value(&lines, "CapBnd:"), DEFAULT_MASK);
    assert!(!lines.iter().any(|line| line == "unshared"), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("Operation not permitted")), "{lines:?}");
    assert_eq!(lines[lines.len() - 4..], ["changed", "0", "0", "0"]);
}

#[rstest]
#[tokio::test]
async fn without_the_filter_a_namespace_can_be_made(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let mut spec = bench.shell("c1", &format!("{STATUS}; unshare -U true && echo unshared"));
    spec.security.seccomp_unconfined = true;
    bench.run(&runtime, spec).await;
    let lines = bench.lines("c1");
    assert_eq!(value(&lines, "Seccomp:"), "0");
    assert_eq!(lines.last().unwrap(), "unshared");
}

#[rstest]
#[tokio::test]
async fn a_restricted_container_has_nothing(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let mut spec = bench.shell("c1", &format!("{STATUS}; touch /x || echo read-only; id -u; id -g; id -G"));
    spec.security = SecuritySpec {
        run_as_user: Some(101),
        run_as_non_root: true,
        supplemental_groups: vec![2000],
        drop_capabilities: vec!["ALL".into()],
        read_only_root: true,
        ..SecuritySpec::default()
    };
    bench.run(&runtime, spec).await;
    let lines = bench.lines("c1");
    assert_eq!(value(&lines, "Seccomp:"), "2");
    assert_eq!(value(&lines, "NoNewPrivs:"), "1");
    assert_eq!(value(&lines, "CapBnd:"), "0000000000000000");
    assert!(lines.iter().any(|line| line == "read-only"));
    assert_eq!(lines[lines.len() - 3..], ["101", "102", "102 29 2000"]);
}

/// With the image's groups (29 is one) and without.
#[rstest]
#[case::merged(GroupsPolicy::Merge, &[29, 102, 2000])]
#[case::strict(GroupsPolicy::Strict, &[102, 2000])]
#[tokio::test]
async fn the_user_that_is_told_is_the_one_that_runs(
    #[values("builtin", "crun", "runc")] runtime: &'static str,
    #[case] groups_policy: GroupsPolicy,
    #[case] groups: &[u32],
) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let mut spec = bench.shell("c1", "id -u; id -g; grep ^Groups: /proc/self/status");
    spec.security.run_as_user = Some(101);
    spec.security.supplemental_groups = vec![2000];
    spec.security.groups_policy = groups_policy;
    let container = runtime.start(spec, BTreeMap::new()).await.unwrap();
    exited(&container).await;
    let told = container.user.clone().unwrap();
    assert_eq!((told.uid, told.gid, told.additional_gids.as_slice()), (101, 102, groups));
    let lines = bench.lines("c1");
    assert_eq!(lines[..2], ["101", "102"]);
    let running: Vec<u32> = value(&lines, "Groups:").split(' ').map(|gid| gid.parse().unwrap()).collect();
    assert_eq!(running, groups);
    runtime.remove(&container.id).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn an_administrator_gets_a_wider_filter(#[values("builtin", "crun", "runc")] runtime: &'static str) {
    let bench = Bench::new(runtime);
    let runtime = bench.open().await;
    let mut spec = bench.shell("c1", "mount -t tmpfs none /tmp && echo mounted");
    spec.security.add_capabilities = vec!["SYS_ADMIN".into()];
    bench.run(&runtime, spec).await;
    assert_eq!(bench.lines("c1"), ["mounted"]);
}
