//! Figures in words: sizes, ages, digests.
//!
//! Pure: no I/O, no clock, no randomness.

use jiff::Timestamp;

/// `1.4 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1.4 MiB/s`.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// How long ago something was, as kubectl says it: `5s`, `12m`, `3h`, `9d`; `-` where it is not known.
pub(crate) fn age(time: Option<Timestamp>, now: Timestamp) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let seconds = now.duration_since(time).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A point in time from the wire; none when there is no such time.
pub(crate) fn time(time: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    let time = time?;
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// The first digits of a digest, which people tell it by.
pub(crate) fn short(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(12).collect()
}

/// `a, b` or, where there is none, `-`.
pub(crate) fn all(words: &[String]) -> String {
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

/// `yes` or `no`.
pub(crate) fn yes(is_so: bool) -> String {
    if is_so { "yes" } else { "no" }.to_owned()
}

/// How much of a whole, in percent.
pub(crate) fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from((u128::from(part) * 100).checked_div(whole.into()).unwrap_or(0)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_or_more_digits() {
        for (count, words) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_500, "1023.9 KiB"),
            (1_048_550, "1.0 MiB"),
            (793_775_206, "757.0 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(count), words);
        }
    }

    #[test]
    fn ages_are_kubectls() {
        let now = Timestamp::from_second(1_000_000).expect("a time");
        let ago = |seconds: i64| age(Timestamp::from_second(1_000_000 - seconds).ok(), now);
        assert_eq!([0, 119, 120, 7199, 7200, 172_800].map(ago), ["0s", "119s", "2m", "119m", "2h", "2d"]);
        assert_eq!(ago(-5), "0s", "a clock that went back");
        assert_eq!(age(None, now), "-");
    }

    #[test]
    fn digests_are_cut() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("imc-1"), "imc-1");
        assert_eq!([percent(1, 3), percent(0, 0), percent(u64::MAX, 1)], [33, 0, u64::MAX]);
    }
}
