//! One entry of a log: `<time> <stream> <tag> <content>`.
//!
//! Pure: no I/O, no clock, no randomness.

use jiff::Timestamp;

/// An entry, as it lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// As it is written, which is also how it is shown.
    pub(super) time: &'a str,
    /// Whether the line goes on in the stream's next entry.
    pub(super) is_partial: bool,
    pub(super) content: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads one line, without its newline. `None` for what is no entry.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (time, stream, tags, content) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        if !matches!(stream, b"stdout" | b"stderr") {
            return None;
        }
        // Tags may become a list, of which the first is the one that is known today.
        let is_partial = match tags.split(|byte| *byte == b':').next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self { time: std::str::from_utf8(time).ok()?, is_partial, content })
    }

    /// The time as one. `None` when it is none.
    pub(super) fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_entry_is_read() {
        let entry = Entry::parse(b"2016-10-06T00:17:09.669794202Z stdout F a  b ").unwrap();
        assert_eq!((entry.content, entry.is_partial), (&b"a  b "[..], false));
        assert_eq!(entry.timestamp().unwrap().as_second(), 1_475_713_029);
        assert!(Entry::parse(b"t stderr P ").unwrap().is_partial);
        assert!(!Entry::parse(b"t stderr F:X x").unwrap().is_partial);
        assert_eq!(Entry::parse(b"t stderr P x").unwrap().timestamp(), None);
    }

    #[test]
    fn other_lines_are_none() {
        for line in [&b""[..], b"text", b"t stdout F", b"t stdin F x", b"t stdout Q x", b"\xff stdout F x"] {
            assert_eq!(Entry::parse(line), None);
        }
    }

    proptest! {
        #[test]
        fn what_the_monitor_writes_is_read(nanos in any::<u64>(), content in "[^\n]{0,40}") {
            let time = larder_monitor::UnixNanos(nanos);
            let mut out = Vec::new();
            let mut lines = larder_monitor::cri_log::LineSplitter::new(larder_monitor::cri_log::Stream::Stdout);
            lines.push(format!("{content}\n").as_bytes(), time, &mut out);
            let entry = Entry::parse(out.strip_suffix(b"\n").unwrap()).unwrap();
            prop_assert_eq!(entry.content, content.as_bytes());
            prop_assert_eq!(entry.timestamp().unwrap().as_nanosecond(), i128::from(nanos));
        }
    }
}
