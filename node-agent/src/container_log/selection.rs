//! From the bytes of a log to the bytes that were asked for.
//!
//! Pure: no I/O, no clock, no randomness.

use jiff::Timestamp;

use super::LogOptions;
use super::entry::Entry;

/// The longest line that is taken for an entry, in bytes. The monitor writes 16 KiB of content at most.
const MAX_LINE: usize = 64 * 1024;

/// Whether there is a point in reading on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Yes.
    More,
    /// The limit is reached.
    Done,
}

/// Takes a log in pieces that may be cut anywhere.
#[derive(Debug)]
pub(super) struct Selection {
    since: Option<Timestamp>,
    timestamps: bool,
    /// How many bytes may still be given.
    left: Option<u64>,
    /// The line that has begun.
    begun: Vec<u8>,
    /// Inside of a line that is too long for an entry.
    skipping: bool,
    /// Whether the last entry was a piece, so that its continuation gets no time of its own.
    in_line: bool,
}

impl Selection {
    pub(super) fn new(options: &LogOptions) -> Self {
        Self {
            since: options.since,
            timestamps: options.timestamps,
            left: options.limit_bytes,
            begun: Vec::new(),
            skipping: false,
            in_line: false,
        }
    }

    /// Takes the next piece of the log and appends what is asked for to `out`.
    pub(super) fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Progress {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line = &bytes[..end];
            bytes = &bytes[end + 1..];
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            let progress = if self.begun.is_empty() {
                self.line(line, out)
            } else {
                let mut whole = std::mem::take(&mut self.begun);
                whole.extend_from_slice(line);
                let progress = self.line(&whole, out);
                whole.clear();
                self.begun = whole;
                progress
            };
            if progress == Progress::Done {
                return progress;
            }
        }
        if !self.skipping {
            self.begun.extend_from_slice(bytes);
        }
        if self.begun.len() > MAX_LINE {
            self.begun.clear();
            self.skipping = true;
        }
        if self.left == Some(0) { Progress::Done } else { Progress::More }
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Progress {
        let Some(entry) = Entry::parse(line) else { return Progress::More };
        if let Some(since) = self.since {
            if entry.timestamp().is_none_or(|time| time < since) {
                return Progress::More;
            }
            // Times only grow, so the question need not be asked again.
            self.since = None;
        }
        let start = out.len();
        if self.timestamps && !self.in_line {
            out.extend_from_slice(entry.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(entry.content);
        if !entry.is_partial {
            out.push(b'\n');
        }
        self.in_line = entry.is_partial;
        self.cut(out, start)
    }

    /// Takes back what is over the limit of what was added since `start`.
    fn cut(&mut self, out: &mut Vec<u8>, start: usize) -> Progress {
        let Some(left) = &mut self.left else { return Progress::More };
        let allowed = usize::try_from(*left).unwrap_or(usize::MAX);
        out.truncate(start.saturating_add(allowed));
        *left = left.saturating_sub(u64::try_from(out.len() - start).unwrap_or(u64::MAX));
        if *left == 0 { Progress::Done } else { Progress::More }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const LOG: &str = "1970-01-01T00:00:01.000000000Z stdout F one\n\
                       not an entry\n\
                       1970-01-01T00:00:02.000000000Z stderr P tw\n\
                       1970-01-01T00:00:02.000000001Z stderr F o\n\
                       1970-01-01T00:00:03.000000000Z stdout F \n\
                       1970-01-01T00:00:04.000000000Z stdout P end";

    fn select(options: &LogOptions, log: &str, piece: usize) -> (String, Progress) {
        let (mut selection, mut out, mut progress) = (Selection::new(options), Vec::new(), Progress::More);
        for bytes in log.as_bytes().chunks(piece) {
            progress = selection.take(bytes, &mut out);
            if progress == Progress::Done {
                break;
            }
        }
        (String::from_utf8(out).unwrap(), progress)
    }

    fn since(second: i64) -> LogOptions {
        LogOptions { since: Some(Timestamp::from_second(second).unwrap()), ..LogOptions::default() }
    }

    fn limit(bytes: u64) -> LogOptions {
        LogOptions { limit_bytes: Some(bytes), ..LogOptions::default() }
    }

    #[rstest]
    #[case::all(LogOptions::default(), "one\ntwo\n\n", Progress::More)]
    #[case::since_the_second(since(2), "two\n\n", Progress::More)]
    #[case::since_later(since(9), "", Progress::More)]
    #[case::cut_within_a_line(limit(2), "on", Progress::Done)]
    #[case::cut_at_its_end(limit(4), "one\n", Progress::Done)]
    #[case::not_cut(limit(100), "one\ntwo\n\n", Progress::More)]
    #[case::nothing(limit(0), "", Progress::Done)]
    #[case::with_times(
        LogOptions { timestamps: true, ..since(2) },
        "1970-01-01T00:00:02.000000000Z two\n1970-01-01T00:00:03.000000000Z \n",
        Progress::More
    )]
    fn what_was_asked_for(#[case] options: LogOptions, #[case] expected: &str, #[case] progress: Progress) {
        assert_eq!(select(&options, LOG, 1000), (expected.to_owned(), progress));
    }

    #[test]
    fn a_line_without_end_is_passed_over_and_not_kept() {
        let mut selection = Selection::new(&LogOptions::default());
        let mut out = Vec::new();
        for _ in 0..100 {
            selection.take(&[b'x'; 4096], &mut out);
            assert!(selection.begun.len() <= MAX_LINE);
        }
        selection.take(b"\n1970-01-01T00:00:01.000000000Z stdout F next\n", &mut out);
        assert_eq!(out, b"next\n");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_log_is_cut(piece in 1_usize..200, limit in prop::option::of(0_u64..20), times in any::<bool>()) {
            let options = LogOptions { limit_bytes: limit, timestamps: times, ..LogOptions::default() };
            prop_assert_eq!(select(&options, LOG, piece), select(&options, LOG, 1000));
        }

        #[test]
        fn no_log_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..300), limit in prop::option::of(0_u64..20)) {
            let options = LogOptions { limit_bytes: limit, ..since(1) };
            let mut out = Vec::new();
            Selection::new(&options).take(&bytes, &mut out);
            prop_assert!(limit.is_none_or(|limit| u64::try_from(out.len()).unwrap() <= limit));
        }
    }
}
