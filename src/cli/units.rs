//! Sizes, rates, times and ages as people write and read them. Pure text.

use crate::ids::Time;

pub(super) use crate::quantity::parse_size;

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A size with one decimal.
pub(super) fn bytes(n: u64) -> String {
    match UNITS.iter().find(|(_, factor)| n >= *factor) {
        Some((unit, factor)) => format!("{:.1} {unit}", n as f64 / *factor as f64),
        None => format!("{n} B"),
    }
}

/// Bytes in so many seconds, as a rate.
pub(super) fn rate(n: u64, seconds: f64) -> String {
    match seconds > 0.0 {
        // The cast saturates, and a rate is for reading only.
        true => format!("{}/s", bytes((n as f64 / seconds) as u64)),
        false => "-".to_owned(),
    }
}

/// How long ago, from milliseconds: its two largest units.
pub(super) fn age(millis: u64) -> String {
    let s = millis / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86400, s % 86400 / 3600),
    }
}

/// Reads a time: RFC 3339 with its zone.
pub(super) fn parse_time(text: &str) -> Result<Time, String> {
    let expected = "expected a time with its zone, such as 2026-11-24T05:30:00Z";
    let time: jiff::Timestamp = text.parse().map_err(|_| expected.to_owned())?;
    let millis = u64::try_from(time.as_millisecond()).map_err(|_| "is before 1970".to_owned())?;
    Ok(Time::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        assert_eq!(parse_size("4GiB"), Ok(4 << 30));
        assert_eq!(parse_size("512 MiB"), Ok(512 << 20));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "GiB", "4GB", "-1", "1.5GiB", "4gib", "99999999999999999999", "18446744073709551615KiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(rate(3 << 20, 2.0), "1.5 MiB/s");
        assert_eq!(rate(1, 0.0), "-");
    }

    #[test]
    fn times_are_read_and_ages_shown() {
        assert_eq!(parse_time("1970-01-01T00:00:01.5Z"), Ok(Time::from_millis(1500)));
        assert_eq!(parse_time("1970-01-01T01:00:00+01:00"), Ok(Time::from_millis(0)));
        for bad in ["yesterday", "2026-11-24", "2026-11-24T05:30:00", "1969-12-31T23:59:59Z"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
        assert_eq!(age(59_999), "59s");
        assert_eq!(age(61_000), "1m 1s");
        assert_eq!(age(3_600_000 * 25), "1d 1h");
    }
}
