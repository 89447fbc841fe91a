//! Moments as docker prints them: Go's forms of RFC 3339 and of `time.String`, and ages.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;

use super::human;
use crate::sys;

const DAY_S: i64 = 86_400;
/// What Go prints for a moment that was never set.
const ZERO: &str = "0001-01-01T00:00:00Z";

/// RFC 3339 in UTC with as many digits of a second as there are: inspect.
pub(crate) fn utc(at: Option<&Timestamp>) -> String {
    let Some(at) = at else { return ZERO.to_owned() };
    let nanos = format!("{:09}", at.nanos);
    let fraction = nanos.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{}{dot}{fraction}Z", utc_seconds(at.seconds))
}

/// RFC 3339 in UTC with nine digits of a second: `logs --timestamps`.
pub(crate) fn utc_fixed(at: &Timestamp) -> String {
    format!("{}.{:09}Z", utc_seconds(at.seconds), at.nanos)
}

/// RFC 3339 in local time with nine digits of a second: events.
pub(crate) fn local_fixed(at: &Timestamp) -> String {
    let Some(local) = sys::local_time(at.seconds) else { return utc_fixed(at) };
    let zone = if local.offset_s == 0 { "Z".to_owned() } else { offset(local.offset_s, ":") };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}{zone}",
        local.year, local.month, local.day, local.hour, local.minute, local.second, at.nanos
    )
}

/// Go's `time.String` of a whole second: `2006-01-02 15:04:05 -0700 MST`, the CreatedAt of lists.
pub(crate) fn go_string(at: &Timestamp) -> String {
    let Some(local) = sys::local_time(at.seconds) else { return utc_fixed(at) };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02} {} {}",
        local.year,
        local.month,
        local.day,
        local.hour,
        local.minute,
        local.second,
        offset(local.offset_s, ""),
        local.zone
    )
}

/// How long ago `at` was, in words without "ago". A moment in the future is now.
pub(crate) fn age(at: &Timestamp, now: SystemTime) -> String {
    human::duration(since(at, now))
}

/// The moment as the system's clock counts.
pub(crate) fn system_time(at: &Timestamp) -> SystemTime {
    let fraction = Duration::from_nanos(at.nanos.max(0) as u64);
    match u64::try_from(at.seconds) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + fraction,
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

fn since(at: &Timestamp, now: SystemTime) -> Duration {
    now.duration_since(system_time(at)).unwrap_or_default()
}

fn offset(seconds: i64, separator: &str) -> String {
    let minutes = seconds.abs() / 60;
    let sign = if seconds < 0 { '-' } else { '+' };
    format!("{sign}{:02}{separator}{:02}", minutes / 60, minutes % 60)
}

fn utc_seconds(seconds: i64) -> String {
    let (year, month, day) = civil_date(seconds.div_euclid(DAY_S));
    let rest = seconds.rem_euclid(DAY_S);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The date of a day counted from 1970-01-01 in the proleptic Gregorian calendar. Years are counted from March, so that
/// the leap day is a year's last and months have a regular length: 153 days in every five.
fn civil_date(day_number: i64) -> (i64, i64, i64) {
    const DAYS_IN_400_YEARS: i64 = 146_097;
    const DAYS_FROM_0000_03_01: i64 = 719_468;
    let days = day_number + DAYS_FROM_0000_03_01;
    let era = days.div_euclid(DAYS_IN_400_YEARS);
    let day_of_era = days.rem_euclid(DAYS_IN_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// The number of a day since 1970-01-01; the inverse of [`civil_date`].
pub(crate) fn day_number(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let year_of_era = year.rem_euclid(400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    year.div_euclid(400) * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, nanos: i32) -> Timestamp {
        Timestamp { seconds, nanos }
    }

    #[test]
    fn utc_forms() {
        assert_eq!(utc(None), "0001-01-01T00:00:00Z");
        assert_eq!(utc(Some(&at(0, 0))), "1970-01-01T00:00:00Z");
        assert_eq!(utc(Some(&at(1_136_214_245, 120_000_000))), "2006-01-02T15:04:05.12Z");
        assert_eq!(utc_fixed(&at(951_782_400, 5)), "2000-02-29T00:00:00.000000005Z");
    }

    #[test]
    fn days_and_dates_are_inverse() {
        for day in (-800_000..800_000).step_by(97) {
            let (year, month, date) = civil_date(day);
            assert_eq!(day_number(year, month, date), day);
        }
        assert_eq!(day_number(2026, 11, 23), 20_780);
    }

    #[test]
    fn offsets() {
        assert_eq!(offset(-12_600, ":"), "-03:30");
        assert_eq!(offset(7200, ""), "+0200");
    }

    #[test]
    fn ages_do_not_lie_in_the_future() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(age(&at(940, 0), now), "About a minute");
        assert_eq!(age(&at(2000, 0), now), "Less than a second");
    }
}
