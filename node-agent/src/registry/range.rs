//! Where in a blob an answer begins, and whether it promises as many bytes as there should be.
//!
//! Pure: no I/O, no clock, no randomness.

/// What an answer to a request for a blob says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promise<'a> {
    /// Whether it is 206.
    pub(super) partial: bool,
    /// `Content-Range`.
    pub(super) content_range: Option<&'a str>,
    /// `Content-Length`.
    pub(super) content_length: Option<u64>,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadPromise {
    /// The whole blob would have so many bytes.
    Length(u64),
    /// It begins behind what was asked for, or its range cannot be read.
    Range,
}

/// Where the bytes of an answer begin when `offset` was asked for of a blob of `size` bytes.
pub(super) fn begin(promise: Promise<'_>, offset: u64, size: u64) -> Result<u64, BadPromise> {
    let (begins, total) = match (promise.partial, promise.content_range) {
        (false, _) => (0, None),
        // Not as the standard has it, but what came can be verified all the same.
        (true, None) => (offset, None),
        (true, Some(range)) => read(range).ok_or(BadPromise::Range)?,
    };
    if begins > offset {
        return Err(BadPromise::Range);
    }
    let total = total.or_else(|| promise.content_length.map(|length| length.saturating_add(begins)));
    match total {
        Some(total) if total != size => Err(BadPromise::Length(total)),
        Some(_) | None => Ok(begins),
    }
}

/// First byte and length of `bytes 5-9/10`.
fn read(content_range: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = content_range.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    (first <= last).then_some((first, total))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(content_range: Option<&str>, content_length: Option<u64>) -> Result<u64, BadPromise> {
        begin(Promise { partial: content_range.is_some(), content_range, content_length }, 5, 10)
    }

    #[test]
    fn tells_where_an_answer_begins_and_what_is_wrong_with_it() {
        for (range, length, expected) in [
            (None, Some(10), Ok(0)),
            (None, None, Ok(0)),
            (None, Some(11), Err(BadPromise::Length(11))),
            (None, Some(5), Err(BadPromise::Length(5))),
            (Some("bytes 5-9/10"), Some(5), Ok(5)),
            (Some("bytes 5-9/10"), None, Ok(5)),
            (Some("bytes 4-9/10"), Some(6), Ok(4)),
            (Some("bytes 5-9/*"), Some(5), Ok(5)),
            (Some("bytes 5-9/*"), Some(6), Err(BadPromise::Length(11))),
            (Some("bytes 5-9/12"), Some(5), Err(BadPromise::Length(12))),
            (Some("bytes 6-9/10"), Some(4), Err(BadPromise::Range)),
            (Some("bytes */10"), None, Err(BadPromise::Range)),
            (Some("bytes 9-5/10"), None, Err(BadPromise::Range)),
            (Some("lines 5-9/10"), None, Err(BadPromise::Range)),
        ] {
            assert_eq!(of(range, length), expected, "{range:?} {length:?}");
        }
        let without_range = Promise { partial: true, content_range: None, content_length: Some(5) };
        assert_eq!(begin(without_range, 5, 10), Ok(5));
    }

    proptest! {
        #[test]
        fn never_begins_behind_what_was_asked_for(
            text in "bytes [0-9]{0,20}-[0-9]{0,20}/[0-9*]{0,20}|\\PC{0,30}", length: Option<u64>, offset: u64, size: u64
        ) {
            let promise = Promise { partial: true, content_range: Some(&text), content_length: length };
            if let Ok(begins) = begin(promise, offset, size) {
                prop_assert!(begins <= offset);
            }
        }
    }
}
