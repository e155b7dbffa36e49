//! Sizes and times as people write them. Pure text.

use std::time::Duration;

const SIZES: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
/// In milliseconds.
const TIMES: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// Reads a size: bytes, or a number with KiB, MiB, GiB or TiB.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let expected = "expected bytes, or a number with KiB, MiB, GiB or TiB, such as 512MiB";
    let (number, unit) = split(text.trim()).ok_or(expected)?;
    let factor = match unit {
        "" | "B" => 1,
        unit => SIZES.iter().find(|(name, _)| *name == unit).ok_or(expected)?.1,
    };
    number.checked_mul(factor).ok_or_else(|| "is too large".to_owned())
}

/// Reads a time: a number with ms, s, m or h.
pub(crate) fn parse_time_span(text: &str) -> Result<Duration, String> {
    let expected = "expected a time such as 500ms, 30s, 5m or 1h";
    let (number, unit) = split(text.trim()).ok_or(expected)?;
    let factor = TIMES.iter().find(|(name, _)| *name == unit).ok_or(expected)?.1;
    number.checked_mul(factor).map(Duration::from_millis).ok_or_else(|| "is too long".to_owned())
}

/// A size without loss, in the largest unit that divides it.
pub(crate) fn show_size(n: u64) -> String {
    match SIZES.iter().find(|(_, factor)| n > 0 && n.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", n / factor),
        None => n.to_string(),
    }
}

/// A time without loss to the millisecond, in the largest unit that divides it.
pub(crate) fn show_time_span(millis: u64) -> String {
    match TIMES.iter().rev().find(|(_, factor)| millis > 0 && millis.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", millis / factor),
        None => format!("{millis}ms"),
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_back() {
        for n in [0, 1, 1023, 1024, 1536, 1 << 20, 5 << 30, 3 << 40, u64::MAX] {
            assert_eq!(parse_size(&show_size(n)), Ok(n), "{n}");
        }
        for millis in [0, 1, 999, 1000, 90_000, 3_600_000, 5_400_000] {
            assert_eq!(parse_time_span(&show_time_span(millis)), Ok(Duration::from_millis(millis)), "{millis}");
        }
        for bad in ["", "s", "5", "5 min", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_time_span(bad).is_err(), "{bad}");
        }
    }
}
