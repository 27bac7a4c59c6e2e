//! Hands values and notifications of the daemon to the rules.

use std::borrow::Cow;
use std::cell::Cell;
use std::ffi::{c_char, CStr};
use std::slice;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::collectd::{field, source_type};
use crate::daemon::{DataSource, DataValue, Notification, Severity, SourceType};
use crate::rules::intake::Intake;
use crate::rules::{matching, Notice, Origin, Sample, Series};
use crate::sys;

/// What the daemon calls this plugin.
const OWN_NAME: &str = "monitor";

thread_local! {
    /// Whether this thread hands a notification of the monitor to the daemon, which hands it back at once.
    static OWN: Cell<bool> = const { Cell::new(false) };
}

/// Runs something while notifications of this thread are the monitor's own.
pub(super) fn as_own<T>(body: impl FnOnce() -> T) -> T {
    let before = OWN.replace(true);
    let result = body();
    OWN.set(before);
    result
}

/// Runs something while what this thread dispatches is the monitor's for the daemon, too, which does not know the
/// thread.
pub(super) fn as_monitor<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: What is set is the thread's own. The name is never changed and never freed.
    let before = unsafe {
        let mut context = sys::plugin_get_ctx();
        context.name = c"monitor".as_ptr().cast_mut();
        sys::plugin_set_ctx(context)
    };
    let result = body();
    // SAFETY: It was the thread's before.
    unsafe { sys::plugin_set_ctx(before) };
    result
}

/// Where what a callback was given comes from.
struct Source {
    plugin: &'static str,
    foreign: bool,
}

impl Source {
    /// # Safety
    /// The source must be the daemon's.
    unsafe fn new(source: sys::plugin_source_t) -> Self {
        let plugin = match source.plugin.is_null() {
            true => c"",
            // SAFETY: It is not NULL, the caller's promise, and the daemon never frees the names of plugins.
            false => unsafe { CStr::from_ptr::<'static>(source.plugin) },
        };
        Self {
            plugin: plugin.to_str().unwrap_or_default(),
            foreign: source.foreign,
        }
    }

    fn origin(&self) -> Origin {
        Origin {
            plugin: (!self.plugin.is_empty()).then(|| self.plugin.into()),
            foreign: self.foreign,
        }
    }
}

/// Hands over a notification. Those of the monitor are not for its rules.
///
/// # Safety
/// The source must be the daemon's.
pub(super) unsafe fn notification(
    intake: &Intake,
    n: &sys::notification_t,
    source: sys::plugin_source_t,
) {
    if OWN.get() {
        return;
    }
    // SAFETY: The caller's promise.
    let source = unsafe { Source::new(source) };
    let severity = match n.severity {
        4 => Severity::Okay,
        2 => Severity::Warning,
        _ => Severity::Failure,
    };
    let fields = [
        &n.host,
        &n.plugin,
        &n.plugin_instance,
        &n.type_,
        &n.type_instance,
    ]
    .map(text);
    let subject = subject(&fields, &source, severity.name());
    intake.notification(&subject, || Notice {
        notification: Notification {
            severity,
            time: time(n.time),
            message: field(&n.message),
            host: subject.fields[0].to_owned(),
            plugin: subject.fields[1].to_owned(),
            plugin_instance: subject.fields[2].to_owned(),
            type_: subject.fields[3].to_owned(),
            type_instance: subject.fields[4].to_owned(),
        },
        origin: source.origin(),
    });
}

/// Hands over values. Those of the monitor are not for its rules.
///
/// # Safety
/// The data set and the list must be the daemon's, belong together, and not change meanwhile; the source must be the
/// daemon's.
pub(super) unsafe fn values(
    intake: &Intake,
    set: &sys::data_set_t,
    list: &sys::value_list_t,
    source: sys::plugin_source_t,
) {
    // SAFETY: The caller's promise.
    let source = unsafe { Source::new(source) };
    if source.plugin == OWN_NAME {
        return;
    }
    let fields = [
        &list.host,
        &list.plugin,
        &list.plugin_instance,
        &list.type_,
        &list.type_instance,
    ]
    .map(text);
    let subject = subject(&fields, &source, "");
    let count = match list.values.is_null() || set.ds.is_null() {
        true => 0,
        false => list.values_len.min(set.ds_num),
    };
    // SAFETY: There are as many as the daemon says, if there are any, and the caller's promise.
    let (sources, numbers) = unsafe {
        match count {
            0 => (&[][..], &[][..]),
            _ => (
                slice::from_raw_parts(set.ds, count),
                slice::from_raw_parts(list.values, count),
            ),
        }
    };
    let series = || Series {
        host: subject.fields[0].to_owned(),
        plugin: subject.fields[1].to_owned(),
        plugin_instance: subject.fields[2].to_owned(),
        type_: subject.fields[3].to_owned(),
        type_instance: subject.fields[4].to_owned(),
        sources: sources
            .iter()
            .map(|source| DataSource {
                name: field(&source.name),
                type_: source_type(source.type_).unwrap_or(SourceType::Gauge),
            })
            .collect(),
        origin: source.origin(),
    };
    let sample = |series: Arc<Series>| Sample {
        time: time(list.time),
        interval: interval(list.interval),
        values: numbers
            .iter()
            .zip(sources)
            // SAFETY: The type of a source says which member of the union was written.
            .map(|(value, source)| unsafe { number(value, source.type_) })
            .collect(),
        series,
    };
    intake.value(&subject, series, sample);
}

/// # Safety
/// The type must be the one that the value was written with.
pub(super) unsafe fn number(value: &sys::value_t, type_: i32) -> DataValue {
    // SAFETY: The caller's promise.
    unsafe {
        match source_type(type_) {
            Some(SourceType::Counter) => DataValue::Counter(value.counter),
            Some(SourceType::Derive) => DataValue::Derive(value.derive),
            Some(SourceType::Absolute) => DataValue::Absolute(value.absolute),
            Some(SourceType::Gauge) | None => DataValue::Gauge(value.gauge),
        }
    }
}

fn subject<'a>(
    fields: &'a [Cow<'a, str>; 5],
    source: &'a Source,
    severity: &'a str,
) -> matching::Subject<'a> {
    let [host, plugin, plugin_instance, type_, type_instance] = fields;
    matching::Subject {
        fields: [
            host,
            plugin,
            plugin_instance,
            type_,
            type_instance,
            source.plugin,
            severity,
        ],
        foreign: source.foreign,
    }
}

/// The text in a field, without a copy of it. One that does not end in NUL fills it.
fn text<const N: usize>(field: &[c_char; N]) -> Cow<'_, str> {
    // SAFETY: A char of C is a byte, whatever its sign.
    let bytes = unsafe { slice::from_raw_parts(field.as_ptr().cast::<u8>(), N) };
    match CStr::from_bytes_until_nul(bytes) {
        Ok(text) => text.to_string_lossy(),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}

/// A point in time that collectd counts in 2^-30 seconds.
fn time(time: u64) -> SystemTime {
    UNIX_EPOCH + interval(time)
}

fn interval(time: u64) -> Duration {
    let nanoseconds = ((time & ((1 << 30) - 1)) * 1_000_000_000) >> 30;
    Duration::from_secs(time >> 30) + Duration::from_nanos(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_in_parts_of_a_second() {
        assert_eq!(time(3 << 29), UNIX_EPOCH + Duration::from_millis(1500));
    }

    #[test]
    fn a_text_ends_at_its_nul_or_its_end() {
        let c = |text: &[u8; 4]| text.map(|byte| c_char::from_ne_bytes([byte]));
        assert_eq!(text(&c(b"ab\0d")), "ab");
        assert_eq!(text(&c(b"abcd")), "abcd");
        assert_eq!(text(&c(b"a\xff\0\0")), "a\u{fffd}");
    }

    #[test]
    fn what_is_dispatched_within_another_dispatch_is_own_until_both_are_over() {
        as_own(|| {
            as_own(|| ());
            assert!(OWN.get());
        });
        assert!(!OWN.get());
    }
}
