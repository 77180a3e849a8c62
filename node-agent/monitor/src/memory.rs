//! Did the kernel kill for memory?

use std::fs;
use std::path::Path;

/// Whether the kernel has killed a process in the memory cgroup `dir` because a limit was reached.
pub(crate) fn ran_out(dir: Option<&Path>) -> bool {
    dir.is_some_and(|dir| oom_kills(dir) > 0)
}

/// How many processes the kernel has killed in the memory cgroup `dir` because a limit was reached. 0 when that cannot be
/// known: a container without a memory cgroup cannot reach its limit.
fn oom_kills(dir: &Path) -> u64 {
    // memory.events is cgroup v2, memory.oom_control v1; both have a line `oom_kill <count>`.
    ["memory.events", "memory.oom_control"]
        .iter()
        .find_map(|name| fs::read_to_string(dir.join(name)).ok())
        .and_then(|content| count_of(&content, "oom_kill"))
        .unwrap_or(0)
}

/// The number behind `key` in a flat keyed file.
fn count_of(content: &str, key: &str) -> Option<u64> {
    content.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_in_both_versions() {
        let cases = [
            ("memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\noom_group_kill 0\n", 2),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", 0),
        ];
        for (name, content, count) in cases {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), content).unwrap();
            assert_eq!(oom_kills(dir.path()), count, "{name}");
        }
        assert_eq!(oom_kills(Path::new("/nonexistent")), 0);
    }
}
