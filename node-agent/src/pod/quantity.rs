//! Kubernetes quantities (`500m`, `64Mi`, `1e3`), exact.
//!
//! The syntax is that of `apimachinery/pkg/api/resource/quantity.go`. Values round up, as there: a pod that asks for half a
//! byte gets one.
//!
//! Pure: no I/O, no clock, no randomness.

use std::{fmt, ops::Add, str::FromStr};

const NANOS: i128 = 1_000_000_000;

/// An amount, in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Quantity {
    nanos: i128,
}

/// A text that is not a quantity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a quantity, write it like 500m, 2, 64Mi or 1.5Gi")]
pub struct ParseQuantityError(String);

impl Quantity {
    /// A whole number of units.
    pub fn of(units: u64) -> Self {
        Self { nanos: i128::from(units) * NANOS }
    }

    /// A number of thousandths of a unit.
    pub fn of_milli(milli: u64) -> Self {
        Self { nanos: i128::from(milli) * (NANOS / 1000) }
    }

    /// Units, rounded up; 0 for what is negative.
    pub fn value(self) -> u64 {
        self.in_parts_of(Self::of(1))
    }

    /// Thousandths of a unit, rounded up; 0 for what is negative.
    pub fn milli(self) -> u64 {
        self.in_parts_of(Self::of_milli(1))
    }

    /// How many times `part` it is, rounded up; 0 for what is negative or when `part` is not positive.
    pub fn in_parts_of(self, part: Self) -> u64 {
        if part.nanos <= 0 || self.nanos <= 0 {
            return 0;
        }
        let parts = (self.nanos + part.nanos - 1) / part.nanos;
        u64::try_from(parts).unwrap_or(u64::MAX)
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos) }
    }
}

/// Whole units, rounded up, with the suffix that makes it shortest.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        const DECIMAL: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
        let written = [(1024, BINARY), (1000, DECIMAL)].map(|(step, suffixes)| {
            let (mut value, mut level) = (self.value(), 0);
            while value != 0 && value.is_multiple_of(step) && level + 1 < suffixes.len() {
                (value, level) = (value / step, level + 1);
            }
            format!("{value}{}", suffixes[level])
        });
        let [binary, decimal] = written;
        f.write_str(if decimal.len() < binary.len() { &decimal } else { &binary })
    }
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(|nanos| Self { nanos }).ok_or_else(|| ParseQuantityError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<i128> {
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let scale = scale_of(suffix)?;
    let mut digits: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        digits = digits.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    let fraction_digits = u32::try_from(fraction.len()).ok()?;
    let divisor = 10_i128.checked_pow(fraction_digits)?.checked_mul(scale.divisor)?;
    let scaled = digits.checked_mul(scale.factor)?.checked_mul(NANOS)?;
    // Below a billionth there is nothing: round away from zero, as Kubernetes does.
    let nanos = scaled.checked_add(divisor - 1)? / divisor;
    Some(if negative { -nanos } else { nanos })
}

struct Scale {
    factor: i128,
    divisor: i128,
}

fn scale_of(suffix: &str) -> Option<Scale> {
    let times = |factor| Some(Scale { factor, divisor: 1 });
    let parts = |divisor| Some(Scale { factor: 1, divisor });
    match suffix {
        "n" => parts(1_000_000_000),
        "u" => parts(1_000_000),
        "m" => parts(1000),
        "" => times(1),
        "k" => times(1000),
        "M" => times(10_i128.pow(6)),
        "G" => times(10_i128.pow(9)),
        "T" => times(10_i128.pow(12)),
        "P" => times(10_i128.pow(15)),
        "E" => times(10_i128.pow(18)),
        "Ki" => times(1 << 10),
        "Mi" => times(1 << 20),
        "Gi" => times(1 << 30),
        "Ti" => times(1 << 40),
        "Pi" => times(1 << 50),
        "Ei" => times(1 << 60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { parts(power) } else { times(power) }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", 0, 0)]
    #[case("2", 2, 2000)]
    #[case("500m", 1, 500)]
    #[case("0.1", 1, 100)]
    #[case("1.5Gi", 1_610_612_736, 1_610_612_736_000)]
    #[case("64Mi", 67_108_864, 67_108_864_000)]
    #[case("1e3", 1000, 1_000_000)]
    #[case("12E-1", 2, 1200)]
    #[case("3k", 3000, 3_000_000)]
    #[case("1n", 1, 1)]
    #[case(".5", 1, 500)]
    #[case("5.", 5, 5000)]
    #[case("-1", 0, 0)]
    #[case("+1", 1, 1000)]
    fn reads(#[case] text: &str, #[case] value: u64, #[case] milli: u64) {
        let quantity: Quantity = text.parse().unwrap();
        assert_eq!((quantity.value(), quantity.milli()), (value, milli));
    }

    #[rstest]
    #[case("3Gi", "3Gi")]
    #[case("2048Mi", "2Gi")]
    #[case("1500Mi", "1500Mi")]
    #[case("6G", "6G")]
    #[case("1", "1")]
    #[case("0", "0")]
    fn writes(#[case] text: &str, #[case] written: &str) {
        assert_eq!(text.parse::<Quantity>().unwrap().to_string(), written);
    }

    #[rstest]
    fn refuses(
        #[values("", "m", "1x", "1.2.3", "1 Gi", "0x10", "1e", "1e99999999999", "9999999999999999999999E")] text: &str,
    ) {
        assert!(text.parse::<Quantity>().is_err());
    }

    proptest! {
        #[test]
        fn anything_can_be_parsed_without_panic(text in "[-+]?[0-9.]{0,40}[a-zA-Z0-9-]{0,6}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn what_is_written_reads_back(number: u64) {
            prop_assert_eq!(Quantity::of(number).to_string().parse::<Quantity>().unwrap(), Quantity::of(number));
        }

        #[test]
        fn whole_numbers_read_back(number in any::<u32>()) {
            prop_assert_eq!(number.to_string().parse::<Quantity>().unwrap(), Quantity::of(u64::from(number)));
        }
    }
}
