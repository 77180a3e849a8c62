//! The log format of the container runtime interface, as log collectors and a kubelet read it:
//! `<time> <stream> <tag> <content>` and a newline, where the time is RFC 3339 in UTC with nanoseconds, the stream is `stdout`
//! or `stderr`, and the tag is `F` for a full line or `P` for a piece of one that goes on in the stream's next entry.
//!
//! Pure: no I/O, no clock, no randomness.

use crate::files::UnixNanos;

/// The longest content of one entry in bytes; a longer line becomes several pieces. As containerd has it by default.
pub const MAX_CONTENT: usize = 16 * 1024;

/// Length of a time as [`format_time`] writes it.
pub const TIME_LEN: usize = 30;

/// One of a container's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output, and everything of a container with a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The stream's name in an entry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts the bytes of one stream into log entries.
#[derive(Debug)]
pub struct LineSplitter {
    stream: Stream,
    /// The begun line. Shorter than [`MAX_CONTENT`], and without memory of its own until a line is cut by a read.
    begun: Vec<u8>,
}

impl LineSplitter {
    /// A splitter with nothing begun.
    pub fn new(stream: Stream) -> Self {
        Self { stream, begun: Vec::new() }
    }

    /// Takes what was read at `time` and appends the entries that are complete to `out`.
    pub fn push(&mut self, mut bytes: &[u8], time: UnixNanos, out: &mut Vec<u8>) {
        let time = format_time(time);
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let whole = &bytes[..end];
            bytes = &bytes[end + 1..];
            if self.begun.is_empty() && whole.len() <= MAX_CONTENT {
                self.entry(b'F', whole, &time, out);
            } else {
                self.take(whole, &time, out);
                self.entry(b'F', &[], &time, out);
            }
        }
        self.take(bytes, &time, out);
    }

    /// The stream has ended: appends what was begun, as a piece, because its newline never came.
    pub fn finish(&mut self, time: UnixNanos, out: &mut Vec<u8>) {
        if !self.begun.is_empty() {
            self.entry(b'P', &[], &format_time(time), out);
        }
    }

    /// Adds a part of a line to what was begun, writing out pieces as they get full. A line of exactly the greatest length
    /// stays whole: a piece is only cut when there is more to come.
    fn take(&mut self, mut part: &[u8], time: &[u8; TIME_LEN], out: &mut Vec<u8>) {
        while self.begun.len() + part.len() > MAX_CONTENT {
            let (now, later) = part.split_at(MAX_CONTENT - self.begun.len());
            self.entry(b'P', now, time, out);
            part = later;
        }
        self.begun.extend_from_slice(part);
    }

    /// Writes one entry of what was begun and `rest`, and begins anew.
    fn entry(&mut self, tag: u8, rest: &[u8], time: &[u8; TIME_LEN], out: &mut Vec<u8>) {
        out.extend_from_slice(time);
        out.push(b' ');
        out.extend_from_slice(self.stream.as_str().as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.append(&mut self.begun);
        out.extend_from_slice(rest);
        out.push(b'\n');
    }
}

/// `time` as RFC 3339 in UTC with nine digits of fraction. Years after 9999 do not occur: the type ends in 2554.
pub fn format_time(time: UnixNanos) -> [u8; TIME_LEN] {
    let seconds = time.0 / 1_000_000_000;
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let second_of_day = seconds % 86_400;
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    put(&mut text[0..4], year);
    put(&mut text[5..7], month);
    put(&mut text[8..10], day);
    put(&mut text[11..13], second_of_day / 3600);
    put(&mut text[14..16], second_of_day / 60 % 60);
    put(&mut text[17..19], second_of_day % 60);
    put(&mut text[20..29], time.0 % 1_000_000_000);
    text
}

/// The suffix of a log file that was turned over at `time`: sorts by time, and begins as a kubelet's does.
pub fn rotated_suffix(time: UnixNanos) -> String {
    let text = format_time(time);
    let digits = |range: std::ops::Range<usize>| String::from_utf8_lossy(&text[range]).into_owned();
    format!(
        "{}{}{}-{}{}{}.{}",
        digits(0..4),
        digits(5..7),
        digits(8..10),
        digits(11..13),
        digits(14..16),
        digits(17..19),
        digits(20..29)
    )
}

/// Writes `value` in decimal over the zeros of `digits`, from the right.
fn put(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01. Counts from a March, so that the leap day is a year's last day.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_ERA: u64 = 146_097; // 400 years
    let shifted = days + 719_468; // from 0000-03-01
    let era = shifted / DAYS_OF_ERA;
    let day_of_era = shifted % DAYS_OF_ERA;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(out: &[u8]) -> Vec<(String, char, Vec<u8>)> {
        let mut found = Vec::new();
        for line in out.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").expect("every entry ends with a newline");
            let head = std::str::from_utf8(&line[..TIME_LEN + 10]).unwrap();
            let mut words = head.split(' ');
            assert_eq!(words.next().unwrap().len(), TIME_LEN);
            let stream = words.next().unwrap().to_owned();
            let tag = words.next().unwrap().chars().next().unwrap();
            found.push((stream, tag, line[TIME_LEN + 10..].to_vec()));
        }
        found
    }

    #[test]
    fn times_are_written_in_utc_with_nine_digits() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
            (951_868_799_999_999_999, "2000-02-29T23:59:59.999999999Z"),
            (1_709_164_800_000_000_001, "2024-02-29T00:00:00.000000001Z"),
            (1_735_689_599_123_456_789, "2024-12-31T23:59:59.123456789Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
        ];
        for (nanos, text) in cases {
            assert_eq!(std::str::from_utf8(&format_time(UnixNanos(nanos))).unwrap(), text);
        }
    }

    #[test]
    fn a_rotated_file_is_named_by_its_time() {
        assert_eq!(rotated_suffix(UnixNanos(1_735_689_599_123_456_789)), "20241231-235959.123456789");
    }

    #[test]
    fn lines_become_full_entries_and_an_unfinished_one_a_piece_at_the_end() {
        let mut splitter = LineSplitter::new(Stream::Stderr);
        let mut out = Vec::new();
        splitter.push(b"one\n\ntw", UnixNanos(0), &mut out);
        splitter.push(b"o\nlast", UnixNanos(1), &mut out);
        splitter.finish(UnixNanos(2), &mut out);
        splitter.finish(UnixNanos(3), &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "1970-01-01T00:00:00.000000000Z stderr F one\n1970-01-01T00:00:00.000000000Z stderr F \n\
             1970-01-01T00:00:00.000000001Z stderr F two\n1970-01-01T00:00:00.000000002Z stderr P last\n"
        );
    }

    #[test]
    fn a_line_of_the_greatest_length_is_whole_and_one_byte_more_is_two_pieces() {
        for (extra, tags) in [(0, "F"), (1, "PF")] {
            let mut out = Vec::new();
            let mut line = vec![b'x'; MAX_CONTENT + extra];
            line.push(b'\n');
            LineSplitter::new(Stream::Stdout).push(&line, UnixNanos(0), &mut out);
            assert_eq!(entries(&out).iter().map(|entry| entry.1).collect::<String>(), tags);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_invented_however_the_stream_is_cut(
            lines in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 1usize..1500), 0..12),
            cuts in prop::collection::vec(1usize..40_000, 1..8),
        ) {
            let input: Vec<u8> = lines.iter().flat_map(|(piece, times)| piece.repeat(*times)).collect();
            let (mut splitter, mut out, mut rest) = (LineSplitter::new(Stream::Stdout), Vec::new(), input.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                splitter.push(now, UnixNanos(1), &mut out);
                rest = later;
            }
            splitter.finish(UnixNanos(2), &mut out);
            let mut joined = Vec::new();
            for (stream, tag, content) in entries(&out) {
                prop_assert_eq!(stream, "stdout");
                prop_assert!(content.len() <= MAX_CONTENT);
                joined.extend(content);
                if tag == 'F' { joined.push(b'\n'); }
            }
            prop_assert_eq!(joined, input);
        }
    }
}
