//! Durations and sizes as text: `"10m"`, `"1h30m"`, `"64MiB"`.

use std::time::Duration;

/// Names of time units, largest first, and their length in milliseconds.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Names of size units and their length in bytes, largest first among the binary ones.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

/// Reads a duration like `"250ms"`, `"10m"` or `"1h30m"`; none if it is not one.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut total_ms: u64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = leading_number(rest)?;
        let end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let (_, unit_ms) = TIME_UNITS.iter().find(|(name, _)| *name == unit)?;
        total_ms = total_ms.checked_add(number.checked_mul(*unit_ms)?)?;
        rest = next;
    }
    Some(Duration::from_millis(total_ms))
}

/// Reads a size like `"64MiB"` or `"4096B"`; none if it is not one.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = leading_number(text)?;
    let (_, unit_bytes) = SIZE_UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim_start())?;
    number.checked_mul(*unit_bytes)
}

/// Writes a duration the way [`parse_duration`] reads it; below a millisecond it is cut off.
pub fn format_duration(duration: Duration) -> String {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, unit_ms) in TIME_UNITS {
        let count = rest_ms / unit_ms;
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
            rest_ms %= unit_ms;
        }
    }
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
}

/// Writes a size for people, at most one digit behind the point: `1.5MiB`.
pub fn format_size(bytes: u64) -> String {
    let binary = SIZE_UNITS
        .iter()
        .take(4)
        .find(|(_, unit_bytes)| bytes >= *unit_bytes);
    let Some((name, unit_bytes)) = binary else {
        return format!("{bytes}B");
    };
    let tenths = bytes % unit_bytes * 10 / unit_bytes;
    match tenths {
        0 => format!("{}{name}", bytes / unit_bytes),
        _ => format!("{}.{tenths}{name}", bytes / unit_bytes),
    }
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_all_their_units() {
        for (text, ms) in [
            ("250ms", 250),
            ("0s", 0),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(ms)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "10",
            "m",
            "10 m",
            "-1s",
            "1.5h",
            "10min",
            "99999999999999999999s",
            "1M",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_read_and_overflow_is_refused() {
        assert_eq!(parse_size("64MiB"), Some(64 << 20));
        assert_eq!(parse_size("64 MiB"), Some(64 << 20));
        assert_eq!(parse_size("1GB"), Some(1_000_000_000));
        for text in ["", "64", "64mb", "64Mib", "-1B", "99999999TiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for ms in [0, 1, 999, 61_000, 5_400_000, 90_061_001] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }
        assert_eq!(format_size(1_572_864), "1.5MiB");
        assert_eq!(format_size(1023), "1023B");
    }
}
