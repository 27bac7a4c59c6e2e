//! The daemon as it is linked.

use std::ffi::{c_char, CStr};
use std::path::PathBuf;
use std::ptr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::os;
use crate::daemon::{Daemon, LogLevel, Notification};
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
        // SAFETY: Every field is set and every text ends in NUL. The daemon copies what it keeps.
        unsafe { sys::plugin_dispatch_notification(&raw const c) == 0 }
    }

    fn hostname(&self) -> String {
        // SAFETY: The daemon sets hostname_g before it initialises plugins, and changes it only while it reads
        // its configuration. It is asked for in init.
        let name = unsafe { sys::hostname_g };
        if name.is_null() {
            return String::new();
        }
        // SAFETY: It is a string that ends in NUL, and see above.
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

/// collectd counts time in 2^-30 seconds.
fn cdtime(time: SystemTime) -> sys::cdtime_t {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs() << 30) | ((u64::from(since.subsec_nanos()) << 30) / 1_000_000_000)
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
    fn a_text_that_is_too_long_is_cut_at_a_character() {
        let mut field = [1; 4];
        fill(&mut field, "aéé");
        let expected: [c_char; 4] = [b'a', 0xc3, 0xa9, 0].map(|byte| c_char::from_ne_bytes([byte]));
        assert_eq!(field, expected);
        fill(&mut field, "");
        assert_eq!(field, [0; 4]);
    }
}
