//! Numbers with docker's bounds: processors, processes, seconds, and Go's notion of true and false.

use super::Parsed;

const NANOS: u64 = 1_000_000_000;
/// Digits after the point that a billionth has.
const NANO_DIGITS: usize = 9;

/// `1.5` processors as billionths of one.
pub(crate) fn nano_cpus(text: &str) -> Parsed<u64> {
    let invalid = || format!("failed to parse {text} as a rational number");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if (whole.is_empty() && fraction.is_empty()) || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
    {
        return Err(invalid());
    }
    let significant = fraction.trim_end_matches('0');
    if significant.len() > NANO_DIGITS {
        return Err("value is too precise".to_owned());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
    let nanos: u64 = format!("{significant:0<NANO_DIGITS$}").parse().map_err(|_| invalid())?;
    whole.checked_mul(NANOS).and_then(|cpus| cpus.checked_add(nanos)).ok_or_else(|| "value is too large".to_owned())
}

/// A number of processes; 0 and -1 are no limit.
pub(crate) fn pids_limit(text: &str) -> Parsed<i64> {
    match integer(text)? {
        -1 | 0 => Ok(0),
        limit if limit > 0 => Ok(limit),
        _ => Err("must be -1 (no limit) or more".to_owned()),
    }
}

/// Seconds, not negative.
pub(crate) fn seconds(text: &str) -> Parsed<u32> {
    u32::try_from(integer(text)?).map_err(|_| "must be a number of seconds from 0 to 4294967295".to_owned())
}

/// A whole number.
pub(crate) fn integer(text: &str) -> Parsed<i64> {
    text.parse().map_err(|_| format!("parsing \"{text}\": not a whole number"))
}

/// What Go's flags take for a bool.
pub(crate) fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("parsing \"{text}\": want true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors() {
        for (text, nanos) in [
            ("1", Ok(NANOS)),
            ("1.5", Ok(1_500_000_000)),
            (".5", Ok(500_000_000)),
            ("2.", Ok(2 * NANOS)),
            ("0.000000001", Ok(1)),
            ("0", Ok(0)),
            ("0.1000000000000", Ok(100_000_000)),
            ("0.0000000001", Err(())),
            ("-1", Err(())),
            ("abc", Err(())),
            ("", Err(())),
            (".", Err(())),
            ("1.2.3", Err(())),
            ("99999999999999999999", Err(())),
        ] {
            assert_eq!(nano_cpus(text).map_err(drop), nanos, "{text}");
        }
    }

    #[test]
    fn limits_and_times() {
        assert_eq!(pids_limit("-1"), Ok(0));
        assert_eq!(pids_limit("100"), Ok(100));
        assert!(pids_limit("-2").is_err());
        assert!(pids_limit("many").is_err());
        assert_eq!(seconds("0"), Ok(0));
        assert!(seconds("-1").is_err());
    }

    #[test]
    fn booleans() {
        assert_eq!(boolean("True"), Ok(true));
        assert_eq!(boolean("0"), Ok(false));
        assert!(boolean("yes").is_err());
    }
}
