//! Points in time as the messages write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// ISO 8601 in UTC, to the second: `2020-11-26T00:41:19Z`.
pub fn iso8601(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    };
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let second = seconds.rem_euclid(86_400);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Days since 1970-01-01 as a date of the proleptic Gregorian calendar. Years are counted from March,
/// so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_IN_400_YEARS: i64 = 146_097;
    let days = days.saturating_add(719_468);
    let era = days.div_euclid(DAYS_IN_400_YEARS);
    let day_of_era = days.rem_euclid(DAYS_IN_400_YEARS);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// Reads a date and a time of ISO 8601: `2020-11-26T00:41:19Z`, with a fraction of a second or an offset such
/// as `+01:00`. Without `Z` or an offset it is UTC as well.
pub fn parse_iso8601(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-');
    let year = digits(date.next()?, 4)?;
    let month = digits(date.next()?, 2)?;
    let day = digits(date.next()?, 2)?;
    let (time, offset) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => rest.split_at(at),
        None => (rest, "Z"),
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.splitn(3, ':');
    let hour = digits(time.next()?, 2)?;
    let minute = digits(time.next()?, 2)?;
    let second = digits(time.next()?, 2)?;
    let is_fraction =
        !fraction.is_empty() && fraction.len() <= 9 && fraction.bytes().all(|b| b.is_ascii_digit());
    // A leap second is the one after it.
    let in_range = (1..=12).contains(&month) && hour < 24 && minute < 60 && second <= 60;
    if !in_range || !is_fraction || !(1..=days_of(year, month)).contains(&day) {
        return None;
    }
    let nanoseconds: u64 = format!("{fraction:0<9}").parse().ok()?;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second
        - offset_seconds(offset)?;
    let fraction = Duration::from_nanos(nanoseconds);
    let whole = Duration::from_secs(seconds.unsigned_abs());
    match seconds >= 0 {
        true => UNIX_EPOCH.checked_add(whole + fraction),
        false => UNIX_EPOCH.checked_sub(whole)?.checked_add(fraction),
    }
}

/// A number of exactly so many digits.
fn digits(text: &str, count: usize) -> Option<i64> {
    let right = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    right.then(|| text.parse().ok())?
}

fn offset_seconds(offset: &str) -> Option<i64> {
    let sign = match offset.as_bytes() {
        b"Z" | b"z" => return Some(0),
        [b'+', ..] => 1,
        [b'-', ..] => -1,
        _ => return None,
    };
    let (hours, minutes) = match offset[1..].split_once(':') {
        Some(both) => both,
        None if offset.len() == 3 => (&offset[1..], "00"),
        None => offset[1..].split_at_checked(2)?,
    };
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The reverse of [`civil`].
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_is_written_can_be_read() {
        for seconds in (0..4_200_000_000_u64).step_by(86_399 * 7) {
            let moment = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(parse_iso8601(&iso8601(moment)), Some(moment));
        }
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(parse_iso8601(&iso8601(before)), Some(before));
    }

    #[test]
    fn offsets_and_fractions_are_read() {
        let moment = parse_iso8601("2020-11-26T00:41:19Z").unwrap();
        for text in [
            "2020-11-26T01:41:19+01:00",
            "2020-11-26T01:41:19+01",
            "2020-11-25T19:11:19-0530",
            "2020-11-26 00:41:19",
            "2020-11-26t00:41:19z",
            "2020-11-26T00:41:19.000Z",
        ] {
            assert_eq!(parse_iso8601(text), Some(moment), "{text}");
        }
        let half = parse_iso8601("2020-11-26T00:41:19.5Z").unwrap();
        assert_eq!(half, moment + Duration::from_millis(500));
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "now",
            "1606351279",
            "2020-11-26",
            "2020-11-26T",
            "2020-11-26T00:41Z",
            "2020-11-26T00:41:19+",
            "2020-11-26T00:41:19+1:00",
            "2020-11-26T00:41:19+é",
            "2020-11-26T00:41:19.Z",
            "2020-11-26T24:00:00Z",
            "2020-13-26T00:41:19Z",
            "2021-02-29T00:41:19Z",
            "2020-11-00T00:41:19Z",
            "+020-11-26T00:41:19Z",
            "2020-11-26T00:41:19Zx",
            "\u{661}020-11-26T00:41:19Z",
        ] {
            assert_eq!(parse_iso8601(text), None, "{text}");
        }
    }

    fn at(seconds: u64) -> String {
        iso8601(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn known_moments() {
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(at(1_606_351_279), "2020-11-26T00:41:19Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn a_clock_before_1970_is_still_a_date() {
        assert_eq!(
            iso8601(UNIX_EPOCH - Duration::from_secs(1)),
            "1969-12-31T23:59:59Z"
        );
    }
}
