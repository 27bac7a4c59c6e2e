//! The daemon as it is linked.

use std::ffi::{c_char, CStr};
use std::path::PathBuf;
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{os, values};
use crate::daemon::{
    Daemon, DataSource, DataValue, LogLevel, Notification, SourceType, ValueList, Verb,
};
use crate::sys;

/// The collectd that this library is loaded into.
pub(super) struct Collectd;

impl Daemon for Collectd {
    fn log(&self, level: LogLevel, line: &str) {
        let line = os::c_text(line);
        // SAFETY: The format takes one string, which ends in NUL and lives until the call is over. plugin_log
        // may be called from any thread.
        unsafe { sys::plugin_log(level as i32, c"%s".as_ptr(), line.as_ptr()) };
    }

    fn syslog(&self, level: LogLevel, line: &str) {
        os::syslog(level, line);
    }

    fn dispatch_notification(&self, notification: &Notification) -> bool {
        let mut c = sys::notification_t {
            severity: notification.severity as i32,
            time: cdtime(notification.time),
            message: [0; sys::NOTIF_MAX_MSG_LEN as usize],
            host: [0; sys::DATA_MAX_NAME_LEN as usize],
            plugin: [0; sys::DATA_MAX_NAME_LEN as usize],
            plugin_instance: [0; sys::DATA_MAX_NAME_LEN as usize],
            type_: [0; sys::DATA_MAX_NAME_LEN as usize],
            type_instance: [0; sys::DATA_MAX_NAME_LEN as usize],
            meta: ptr::null_mut(),
        };
        fill(&mut c.message, &notification.message);
        fill(&mut c.host, &notification.host);
        fill(&mut c.plugin, &notification.plugin);
        fill(&mut c.plugin_instance, &notification.plugin_instance);
        fill(&mut c.type_, &notification.type_);
        fill(&mut c.type_instance, &notification.type_instance);
        let dispatch = || {
            // SAFETY: Every field is set and every text ends in NUL. The daemon copies what it keeps.
            unsafe { sys::plugin_dispatch_notification(&raw const c) == 0 }
        };
        values::as_own(|| values::as_monitor(dispatch))
    }

    fn data_sources(&self, type_: &str) -> Option<Vec<DataSource>> {
        let type_ = os::c_text(type_);
        // SAFETY: The name ends in NUL. The daemon answers NULL or a data set, which lives until the daemon ends,
        // as do the sources in it. It may be asked from any thread.
        let set = unsafe { sys::plugin_get_ds(type_.as_ptr()).as_ref() }?;
        if set.ds.is_null() || set.ds_num == 0 {
            return None;
        }
        // SAFETY: There are as many as it says, and see above.
        let sources = unsafe { slice::from_raw_parts(set.ds, set.ds_num) };
        sources
            .iter()
            .map(|source| {
                Some(DataSource {
                    name: field(&source.name),
                    type_: source_type(source.type_)?,
                })
            })
            .collect()
    }

    fn dispatch_values(&self, values: &ValueList) -> bool {
        // The daemon does not know which member of the union was set, so a mistake would be a wrong number.
        let types = values.values.iter().map(|value| value.source_type());
        let fits = self
            .data_sources(&values.type_)
            .is_some_and(|sources| sources.iter().map(|source| source.type_).eq(types));
        if !fits {
            return false;
        }
        let mut numbers: Vec<sys::value_t> = values.values.iter().copied().map(number).collect();
        let mut c = sys::value_list_t {
            values: numbers.as_mut_ptr(),
            values_len: numbers.len(),
            time: values.time.map_or(0, cdtime),
            interval: values.interval.map_or(0, cdinterval),
            host: [0; sys::DATA_MAX_NAME_LEN as usize],
            plugin: [0; sys::DATA_MAX_NAME_LEN as usize],
            plugin_instance: [0; sys::DATA_MAX_NAME_LEN as usize],
            type_: [0; sys::DATA_MAX_NAME_LEN as usize],
            type_instance: [0; sys::DATA_MAX_NAME_LEN as usize],
            meta: ptr::null_mut(),
        };
        fill(&mut c.host, &values.host);
        fill(&mut c.plugin, &values.plugin);
        fill(&mut c.plugin_instance, &values.plugin_instance);
        fill(&mut c.type_, &values.type_);
        fill(&mut c.type_instance, &values.type_instance);
        // SAFETY: Every field is set, every text ends in NUL, and the numbers live until the call is over. The
        // daemon copies what it keeps, and may be called from any thread.
        values::as_monitor(|| unsafe { sys::plugin_dispatch_values(&raw const c) == 0 })
    }

    fn last_values(&self, series: &str) -> Option<Vec<DataValue>> {
        let sources = self.data_sources(type_of(series)?)?;
        let numbers = cached(series, sys::uc_get_value_by_name)?;
        // SAFETY: The cache has a number for each data source of the type, as that has it.
        let value = |(number, source): (&sys::value_t, &DataSource)| unsafe {
            values::number(number, source.type_ as i32)
        };
        let fits = numbers.len() == sources.len();
        fits.then(|| numbers.iter().zip(&sources).map(value).collect())
    }

    fn rates(&self, series: &str) -> Option<Vec<f64>> {
        cached(series, sys::uc_get_rate_by_name)
    }

    fn change_plugin(&self, verb: Verb, plugin: &str) -> Result<String, String> {
        let name = os::c_text(plugin);
        let mut message: [c_char; 1024] = [0; 1024];
        let (text, room) = (message.as_mut_ptr(), message.len());
        let name = name.as_ptr();
        // SAFETY: The name ends in NUL, there is as much room for the message as is said, and no options are given.
        // The daemon does this from any thread.
        let change = || unsafe {
            match verb {
                Verb::Load => sys::plugin_lifecycle_load(name, ptr::null(), text, room),
                Verb::Reload => sys::plugin_lifecycle_reload(name, ptr::null(), text, room),
                // Zero is the default for how long its callbacks are waited for.
                Verb::Unload => sys::plugin_lifecycle_unload(name, 0, text, room),
            }
        };
        // The daemon tells a policy and the audit log who asks.
        let status = values::as_monitor(change);
        let message = field(&message);
        match status {
            0 => Ok(message),
            _ => Err(message),
        }
    }

    fn hostname(&self) -> String {
        // SAFETY: The variable lives as long as the daemon, which replaces it atomically.
        let name = unsafe { AtomicPtr::from_ptr(&raw mut sys::hostname_g) }.load(Ordering::Acquire);
        if name.is_null() {
            return String::new();
        }
        // SAFETY: It is a string that ends in NUL, and the daemon frees none that it has replaced.
        unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned()
    }

    fn state_dir(&self) -> PathBuf {
        // The daemon goes into its BaseDir before it initialises plugins, and stays there.
        std::env::current_dir()
            .unwrap_or_else(|_| PathBuf::from("/var/lib/collectd"))
            .join("monitor")
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The type in the name of a series.
fn type_of(series: &str) -> Option<&str> {
    let last = series.splitn(3, '/').nth(2)?;
    last.split('-').next()
}

/// Asks the daemon's cache for the numbers of a series, by one of its functions.
fn cached<T: Copy>(
    series: &str,
    ask: unsafe extern "C" fn(*const c_char, *mut *mut T, *mut usize) -> i32,
) -> Option<Vec<T>> {
    let name = os::c_text(series);
    let (mut numbers, mut count) = (ptr::null_mut(), 0);
    // SAFETY: The name ends in NUL, and the two are there to be written. The cache has a lock of its own.
    let status = unsafe { ask(name.as_ptr(), &raw mut numbers, &raw mut count) };
    if status != 0 || numbers.is_null() {
        return None;
    }
    // SAFETY: On success there are as many as it says, and they are ours.
    let copy = unsafe { slice::from_raw_parts(numbers, count) }.to_vec();
    // SAFETY: They were allocated by malloc(), and nothing refers to them any more.
    unsafe { libc::free(numbers.cast()) };
    Some(copy)
}

/// collectd counts time in 2^-30 seconds.
fn cdtime(time: SystemTime) -> sys::cdtime_t {
    cdinterval(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn cdinterval(interval: Duration) -> sys::cdtime_t {
    (interval.as_secs() << 30) | ((u64::from(interval.subsec_nanos()) << 30) / 1_000_000_000)
}

pub(super) fn source_type(number: i32) -> Option<SourceType> {
    [
        SourceType::Counter,
        SourceType::Gauge,
        SourceType::Derive,
        SourceType::Absolute,
    ]
    .into_iter()
    .find(|type_| *type_ as i32 == number)
}

fn number(value: DataValue) -> sys::value_t {
    match value {
        DataValue::Counter(counter) => sys::value_t { counter },
        DataValue::Gauge(gauge) => sys::value_t { gauge },
        DataValue::Derive(derive) => sys::value_t { derive },
        DataValue::Absolute(absolute) => sys::value_t { absolute },
    }
}

/// The text in a field. One that does not end in NUL fills it.
pub(super) fn field(field: &[c_char]) -> String {
    let bytes: Vec<u8> = field.iter().map(|c| c.to_ne_bytes()[0]).collect();
    match CStr::from_bytes_until_nul(&bytes) {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

/// Copies a text into a field, cut at a character, and ends it in NUL.
fn fill(field: &mut [c_char], text: &str) {
    let mut end = text.len().min(field.len() - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    field.fill(0);
    for (to, from) in field.iter_mut().zip(text[..end].bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_is_counted_in_parts_of_a_second() {
        assert_eq!(cdtime(UNIX_EPOCH + Duration::from_millis(1500)), 3 << 29);
    }

    #[test]
    fn a_field_ends_at_its_nul_or_its_end() {
        let c = |text: &[u8]| -> Vec<c_char> {
            text.iter().map(|b| c_char::from_ne_bytes([*b])).collect()
        };
        assert_eq!(field(&c(b"ab\0cd")), "ab");
        assert_eq!(field(&c(b"abc")), "abc");
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_at_a_character() {
        let mut field = [1; 4];
        fill(&mut field, "aéé");
        let expected: [c_char; 4] = [b'a', 0xc3, 0xa9, 0].map(|byte| c_char::from_ne_bytes([byte]));
        assert_eq!(field, expected);
        fill(&mut field, "");
        assert_eq!(field, [0; 4]);
    }
}
