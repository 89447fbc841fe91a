//! `--since` and `--until`: an age (`10m`, `1h30m`), a date (`2026-01-02`, with a time and a zone), or seconds since 1970.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;

use super::Parsed;
use crate::output::time::day_number;
use crate::sys;

/// The moment; `now` is what an age is counted from.
pub(crate) fn moment(text: &str, now: SystemTime) -> Parsed<Timestamp> {
    if let Some(age) = duration(text) {
        let at = if text.starts_with('-') { now.checked_add(age) } else { now.checked_sub(age) };
        return at.map(of_system_time).ok_or_else(|| format!("the age {text} is too long"));
    }
    if let Some(at) = seconds(text).or_else(|| date(text)) {
        return Ok(at);
    }
    Err(format!("\"{text}\" is neither an age (10m, 1h30m), nor a date (2026-01-02T15:04:05Z), nor seconds since 1970"))
}

fn of_system_time(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 }
}

/// Go's notation of a duration: numbers with the units ns, us, ms, s, m, h.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, after) = rest.split_at(digits_end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, following) = after.split_at(unit_end);
        let unit_s = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let amount = digits.parse::<f64>().ok()? * unit_s;
        total = total.checked_add(Duration::try_from_secs_f64(amount).ok()?)?;
        rest = following;
    }
    Some(total)
}

/// `1136073600.000000001`
fn seconds(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Timestamp { seconds: whole.parse().ok()?, nanos: format!("{fraction:0<9}").parse().ok()? })
}

/// RFC 3339 in the shortened forms that docker takes; without a zone it is local time.
fn date(text: &str) -> Option<Timestamp> {
    let (day, clock) = text.split_once('T').map_or((text, None), |(day, clock)| (day, Some(clock)));
    let (day, clock, zone_s) = match clock {
        None if day.ends_with('Z') => (day.trim_end_matches('Z'), "00:00:00", Some(0)),
        None => (day, "00:00:00", None),
        Some(clock) => {
            let (clock, zone_s) = split_zone(clock)?;
            (day, clock, zone_s)
        }
    };
    let (seconds_of_day, nanos) = clock_time(clock)?;
    let wall = day_of(day)? * 86_400 + seconds_of_day;
    let offset_s = zone_s.or_else(|| sys::local_time(wall).map(|local| local.offset_s))?;
    Some(Timestamp { seconds: wall - offset_s, nanos })
}

fn day_of(text: &str) -> Option<i64> {
    let parts: Vec<i64> = text.split('-').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [year, month, day] = parts[..] else { return None };
    let fits = (1..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    fits.then(|| day_number(year, month, day))
}

/// A clock's text without its zone, and the zone's offset.
fn split_zone(clock: &str) -> Option<(&str, Option<i64>)> {
    if let Some(clock) = clock.strip_suffix('Z') {
        return Some((clock, Some(0)));
    }
    let Some(at) = clock.find(['+', '-']) else { return Some((clock, None)) };
    let (clock, zone) = clock.split_at(at);
    let (hours, minutes) = zone[1..].split_once(':')?;
    let offset = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
    Some((clock, Some(if zone.starts_with('-') { -offset } else { offset })))
}

/// `15:04[:05[.999]]` as seconds of the day and nanoseconds.
fn clock_time(text: &str) -> Option<(i64, i32)> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let parts: Vec<i64> = clock.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let (hour, minute, second) = match parts[..] {
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    let fits = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..61).contains(&second);
    fits.then_some(())?;
    Some((hour * 3600 + minute * 60 + second, format!("{fraction:0<9}").parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn parsed(text: &str) -> Result<(i64, i32), ()> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S);
        moment(text, now).map(|at| (at.seconds, at.nanos)).map_err(drop)
    }

    #[test]
    fn ages() {
        let ago = |seconds: i64| Ok((NOW_S as i64 - seconds, 0));
        assert_eq!(parsed("10m"), ago(600));
        assert_eq!(parsed("1h30m"), ago(5400));
        assert_eq!(parsed("1.5h"), ago(5400));
        assert_eq!(parsed("0"), ago(0));
        assert_eq!(parsed("1500ms"), Ok((NOW_S as i64 - 2, 500_000_000)));
    }

    #[test]
    fn dates() {
        for (text, seconds, nanos) in [
            ("2006-01-02T15:04:05Z", 1_136_214_245, 0),
            ("2006-01-02T15:04:05.999999999Z", 1_136_214_245, 999_999_999),
            ("2006-01-02T15:04:05+02:00", 1_136_207_045, 0),
            ("2006-01-02T15:04:05-03:30", 1_136_226_845, 0),
            ("2006-01-02T15:04Z", 1_136_214_240, 0),
            ("2006-01-02Z", 1_136_160_000, 0),
        ] {
            assert_eq!(parsed(text), Ok((seconds, nanos)), "{text}");
        }
    }

    #[test]
    fn seconds_since_1970() {
        assert_eq!(parsed("1136073600"), Ok((1_136_073_600, 0)));
        assert_eq!(parsed("1136073600.000000001"), Ok((1_136_073_600, 1)));
        assert_eq!(parsed("1136073600.5"), Ok((1_136_073_600, 500_000_000)));
    }

    #[test]
    fn refused() {
        for text in ["", "yesterday", "10x", "2006-13-02", "2006-01-02T25:00Z", "1.0000000001", "m", "-"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-+0-9.:TZhms]{0,30}") {
            let _ = parsed(&text);
        }
    }
}
