//! Numbers in tar headers.
//!
//! Pure: no I/O, no clock, no randomness.

use crate::erofs::tree::Timestamp;

/// A field of a header: octal digits between spaces and zero bytes, or base-256 where the first bit is set. An empty field
/// is zero. `None` where it is neither, or beyond 64 bits.
pub(crate) fn field(bytes: &[u8]) -> Option<i64> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => base_256(bytes),
        _ => octal(bytes),
    }
}

/// A field that counts or identifies: never negative.
pub(crate) fn unsigned(bytes: &[u8]) -> Option<u64> {
    u64::try_from(field(bytes)?).ok()
}

fn octal(bytes: &[u8]) -> Option<i64> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let digits = bytes[..end].trim_ascii();
    let mut value: i64 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

/// Two's complement over all bits but the first.
fn base_256(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.first()? & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (index, byte) in bytes.iter().enumerate() {
        let byte = if index == 0 && !negative { byte & 0x7f } else { *byte };
        value = value.checked_mul(256)? | i128::from(byte);
    }
    i64::try_from(value).ok()
}

/// Decimal digits and nothing else.
pub(crate) fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    let mut value: u64 = 0;
    for digit in bytes {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some(value)
}

/// A PAX time: decimal seconds with an optional sign and fraction. Digits beyond nanoseconds are dropped, rounding down.
pub(crate) fn time(bytes: &[u8]) -> Option<Timestamp> {
    let (negative, bytes) = match bytes {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, bytes),
    };
    let mut parts = bytes.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    let mut lost = false;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for place in 0..9 {
            nanoseconds = nanoseconds * 10 + u32::from(fraction.get(place).map_or(0, |digit| digit - b'0'));
        }
        lost = fraction.iter().skip(9).any(|digit| *digit != b'0');
    }
    if !negative {
        return Some(Timestamp { seconds, nanoseconds });
    }
    let nanoseconds = nanoseconds + u32::from(lost);
    Some(match nanoseconds {
        0 => Timestamp { seconds: -seconds, nanoseconds: 0 },
        1_000_000_000.. => Timestamp { seconds: -seconds - 1, nanoseconds: 0 },
        some => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - some },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"0000644\0", Some(0o644))]
    #[case(b"   644 \0", Some(0o644))]
    #[case(b"\0\0\0\0", Some(0))]
    #[case(b"        ", Some(0))]
    #[case(b"12345678", None)]
    #[case(b"77777777777\0", Some(0o77_777_777_777))]
    #[case(b"\x80\0\0\0\0\0\0\0\0\0\x01\x02", Some(258))]
    #[case(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2))]
    #[case(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None)]
    fn fields(#[case] bytes: &[u8], #[case] expected: Option<i64>) {
        assert_eq!(field(bytes), expected);
    }

    #[rstest]
    #[case("0", Some((0, 0)))]
    #[case("1700000000.123456789", Some((1_700_000_000, 123_456_789)))]
    #[case("1.5", Some((1, 500_000_000)))]
    #[case("1.1234567899", Some((1, 123_456_789)))]
    #[case("-1", Some((-1, 0)))]
    #[case("-1.5", Some((-2, 500_000_000)))]
    #[case("-0.0000000001", Some((-1, 999_999_999)))]
    #[case("", None)]
    #[case("1.x", None)]
    #[case("99999999999999999999", None)]
    fn times(#[case] text: &str, #[case] expected: Option<(i64, u32)>) {
        let expected = expected.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds });
        assert_eq!(time(text.as_bytes()), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = field(&bytes);
            let _ = time(&bytes);
        }
    }
}
