//! `90s`, `500ms`, `2m`, `1h`; a bare number is seconds.
use std::time::Duration;

/// The flag of every command that waits.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Timeout {
    /// How long to wait, such as 500ms, 30s or 2m
    #[arg(long, value_name = "D", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a duration such as 500ms, 30s, 2m or 1h".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(expected()),
    };
    // A day is longer than anybody waits; more would overflow the deadline on the wire.
    let milliseconds = milliseconds.filter(|milliseconds| (1..=86_400_000).contains(milliseconds));
    milliseconds.map(Duration::from_millis).ok_or_else(|| "expected a duration from 1ms to 24h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_or_are_seconds() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_hours(1)));
        for wrong in
            ["", "s", "1.5s", "-1s", "1d", "0", "25h", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
