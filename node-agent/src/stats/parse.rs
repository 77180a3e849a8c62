//! The formats of the files that figures are read from.
//!
//! Pure: no I/O, no clock, no randomness.

/// The number behind `key`, in a file with one key and one number a line (and perhaps a unit, which is left out).
pub(super) fn keyed(content: &str, key: &str) -> Option<u64> {
    content.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(key)).then(|| words.next()?.parse().ok()).flatten()
    })
}

/// The ticks that the processors of the host were busy for, out of `/proc/stat`: all but idle and waiting. A guest's time is
/// in the user's already.
pub(super) fn busy_ticks(content: &str) -> Option<u64> {
    let line = content.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal guest guest_nice; older kernels have fewer.
    if ticks.len() < 4 {
        return None;
    }
    let busy = |index: &usize| !matches!(index, 3 | 4);
    Some((0..ticks.len().min(8)).filter(busy).fold(0, |sum, index| sum.saturating_add(ticks[index])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_whole_words() {
        let content = "anon_thp 1\nanon 2\nMemTotal:       24683456 kB\nempty\n";
        assert_eq!(keyed(content, "anon"), Some(2));
        assert_eq!(keyed(content, "MemTotal:"), Some(24_683_456));
        assert_eq!(keyed(content, "empty"), None);
        assert_eq!(keyed(content, "none"), None);
    }

    #[test]
    fn idle_time_is_not_busy() {
        assert_eq!(busy_ticks("cpu  10 20 30 1000 500 1 2 3 10 0\ncpu0 1 1 1 1\n"), Some(66));
        assert_eq!(busy_ticks("cpu  10 20 30 1000\n"), Some(60));
        assert_eq!(busy_ticks("cpu  10 20\n"), None);
        assert_eq!(busy_ticks("intr 1\n"), None);
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(content in ".{0,200}", key in ".{0,10}") {
            keyed(&content, &key);
            busy_ticks(&content);
            busy_ticks(&format!("cpu {content}"));
        }
    }
}
