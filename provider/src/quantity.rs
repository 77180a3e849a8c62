//! Pure: no I/O, no clock, no randomness.
//!
//! Kubernetes quantities: `500m`, `1.5Gi`, `1e3`.

/// Thousandths of a quantity, rounded up; nothing for what is none, is negative, or does not fit.
pub fn thousandths(text: &str) -> Option<u64> {
    scaled(text, 1_000.0)
}

/// A quantity in whole units, rounded up; nothing for what is none, is negative, or does not fit.
pub fn whole(text: &str) -> Option<u64> {
    scaled(text, 1.0)
}

fn scaled(text: &str, scale: f64) -> Option<u64> {
    const UNITS: [(&str, f64); 16] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
        ("", 1.0),
    ];
    let text = text.trim();
    let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
    // The product of a decimal fraction may lie a hair above the whole number that was meant.
    let value = number * factor * scale;
    let whole = if (value - value.round()).abs() < 1e-6 { value.round() } else { value.ceil() };
    if !(0.0..=9.0e18).contains(&whole) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and between 0 and 9e18")]
    Some(whole as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("1", Some(1_000))]
    #[case("0.1", Some(100))]
    #[case("100m", Some(100))]
    #[case("1.5", Some(1_500))]
    #[case("1e1", Some(10_000))]
    #[case("2k", Some(2_000_000))]
    #[case("1n", Some(1))]
    #[case("-1", None)]
    #[case("", None)]
    #[case("NaN", None)]
    #[case("1e300", None)]
    fn quantities(#[case] text: &str, #[case] expected: Option<u64>) {
        assert_eq!(thousandths(text), expected);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,12}") {
            let _ = (thousandths(&text), whole(&text));
        }
    }
}
