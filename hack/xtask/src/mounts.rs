//! What is mounted where, as the kernel tells it (proc(5), `/proc/PID/mountinfo`).

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where.
    pub(crate) point: PathBuf,
    /// The type of its file system.
    pub(crate) kind: String,
    /// Options of the file system, separated by commas.
    pub(crate) options: String,
}

/// What this process sees, in the order of mounting.
///
/// # Errors
/// When the kernel's table cannot be read.
pub(crate) fn read() -> anyhow::Result<Vec<Mount>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?))
}

/// The mounts in a table's text.
pub(crate) fn parse(table: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let point = PathBuf::from(unescape(left.split(' ').nth(4)?));
        // The device is between type and options.
        Some(Mount { point, kind: right.next()?.to_owned(), options: right.nth(1)?.to_owned() })
    };
    table.lines().filter_map(mount).collect()
}

/// Undoes the octal escapes: space, tab, newline, backslash.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
    }

    #[test]
    fn a_line_is_a_mount() {
        let line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n";
        let mount = Mount { point: "/mnt 2".into(), kind: "ext3".into(), options: "rw,errors=continue".into() };
        assert_eq!(parse(line), [mount]);
        assert_eq!(parse("not a line\n"), []);
    }
}
