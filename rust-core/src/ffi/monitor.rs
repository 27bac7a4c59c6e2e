//! The exported functions. Their contract as a whole is `c-shim/README.md`.

use std::ffi::c_char;
use std::path::PathBuf;
use std::sync::Arc;

use super::collectd::Collectd;
use super::status::cl_status;
use super::{change, config, guard, values};
use crate::monitor::Monitor;
use crate::sys::{
    data_set_t, notification_t, oconfig_item_t, plugin_request_t, plugin_source_t, value_list_t,
};

/// The monitor. Made by cl_monitor_new(), owned by whoever called that, ended by cl_monitor_free().
#[allow(
    non_camel_case_types,
    reason = "exported functions and types take C names"
)]
pub struct cl_monitor(Monitor);

/// Makes a monitor. It starts nothing.
///
/// Parameters: helper_path is the program collectd-live-runner, used where the configuration names no other;
/// out is where to put the monitor.
///
/// Returns: CL_STATUS_OK; CL_STATUS_NULL; CL_STATUS_NOT_UTF8 if the path is not; CL_STATUS_PANIC.
///
/// Lifetimes: the path is copied. The monitor lives until cl_monitor_free().
///
/// # Safety
/// helper_path is a string that ends in NUL, or NULL; out is valid for writing a pointer, or NULL.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_new(
    helper_path: *const c_char,
    out: *mut *mut cl_monitor,
) -> cl_status {
    guard::without_monitor(|| {
        if out.is_null() {
            return Err(cl_status::CL_STATUS_NULL);
        }
        // SAFETY: The caller's promise.
        let helper = PathBuf::from(unsafe { config::text(helper_path) }?);
        let monitor = Box::new(cl_monitor(Monitor::new(Arc::new(Collectd), helper)));
        // SAFETY: It is not NULL, and the caller's promise.
        unsafe { out.write(Box::into_raw(monitor)) };
        Ok(())
    })
}

/// Takes the plugin's block of collectd.conf. Each mistake in it, and in the file that it names, is logged.
///
/// Parameters: block is the `<Plugin monitor>` block.
///
/// Returns: CL_STATUS_OK; CL_STATUS_CONFIGURATION if there are mistakes, or this is the second block;
/// CL_STATUS_NOT_UTF8; CL_STATUS_STATE after init; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.
///
/// Lifetimes: the block is copied.
///
/// # Safety
/// monitor is from cl_monitor_new() and not freed, or NULL; block is as liboconfig made it, or NULL.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_configure(
    monitor: *const cl_monitor,
    block: *const oconfig_item_t,
) -> cl_status {
    // SAFETY: The caller's promise, for both.
    let (Some(monitor), Some(block)) = (unsafe { monitor.as_ref() }, unsafe { block.as_ref() })
    else {
        return cl_status::CL_STATUS_NULL;
    };
    guard::with_monitor("cl_monitor_configure", &monitor.0, || {
        // SAFETY: The caller's promise.
        let block = unsafe { config::block(block) }.inspect_err(|status| {
            tracing::error!(?status, "the block <Plugin monitor> cannot be read");
        })?;
        Ok(monitor.0.configure(&block)?)
    })
}

/// Starts what was configured: the helper, the threads, the connection. Does not wait for the broker.
///
/// Returns: CL_STATUS_OK; CL_STATUS_INIT if it could not be started, and nothing runs; CL_STATUS_STATE if it
/// was started before; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.
///
/// # Safety
/// monitor is from cl_monitor_new() and not freed, or NULL.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_init(monitor: *const cl_monitor) -> cl_status {
    // SAFETY: The caller's promise.
    let Some(monitor) = (unsafe { monitor.as_ref() }) else {
        return cl_status::CL_STATUS_NULL;
    };
    guard::with_monitor("cl_monitor_init", &monitor.0, || Ok(monitor.0.init()?))
}

/// Takes a notification. Does not block.
///
/// Parameters: source is what plugin_get_source() says in the callback.
///
/// Returns: CL_STATUS_OK; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.
///
/// Lifetimes: what is kept of the notification is copied.
///
/// # Safety
/// monitor is from cl_monitor_new() and not freed, or NULL; notification is one of the daemon's, or NULL; source
/// is the daemon's.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_notification(
    monitor: *const cl_monitor,
    notification: *const notification_t,
    source: plugin_source_t,
) -> cl_status {
    // SAFETY: The caller's promise, for both.
    let (Some(monitor), Some(n)) = (unsafe { monitor.as_ref() }, unsafe {
        notification.as_ref()
    }) else {
        return cl_status::CL_STATUS_NULL;
    };
    guard::on_the_way("cl_monitor_notification", &monitor.0, || {
        // SAFETY: The caller's promise.
        unsafe { values::notification(monitor.0.intake()?, n, source) };
        Ok(())
    })
}

/// Says whether the rules want to see values, so that cl_monitor_write() is to be registered.
///
/// Parameters: out is where to put the answer.
///
/// Returns: CL_STATUS_OK; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.
///
/// # Safety
/// monitor is from cl_monitor_new() and not freed, or NULL; out is valid for writing a bool, or NULL.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_takes_values(
    monitor: *const cl_monitor,
    out: *mut bool,
) -> cl_status {
    // SAFETY: The caller's promise.
    let Some(monitor) = (unsafe { monitor.as_ref() }) else {
        return cl_status::CL_STATUS_NULL;
    };
    if out.is_null() {
        return cl_status::CL_STATUS_NULL;
    }
    guard::with_monitor("cl_monitor_takes_values", &monitor.0, || {
        monitor.0.intake()?;
        // SAFETY: It is not NULL, and the caller's promise.
        unsafe { out.write(monitor.0.takes_values()) };
        Ok(())
    })
}

/// Takes values. Does not block.
///
/// Parameters: source is what plugin_get_source() says in the callback.
///
/// Returns: CL_STATUS_OK, also if no rule wants to see them, or they are lost because the rules are too slow;
/// CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.
///
/// Lifetimes: what is kept of the values is copied.
///
/// # Safety
/// monitor is from cl_monitor_new() and not freed, or NULL; data_set and values are the daemon's and belong together,
/// or NULL; source is the daemon's.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_write(
    monitor: *const cl_monitor,
    data_set: *const data_set_t,
    values: *const value_list_t,
    source: plugin_source_t,
) -> cl_status {
    // SAFETY: The caller's promise, for all.
    let (Some(monitor), Some(set), Some(list)) = (
        unsafe { monitor.as_ref() },
        unsafe { data_set.as_ref() },
        unsafe { values.as_ref() },
    ) else {
        return cl_status::CL_STATUS_NULL;
    };
    guard::on_the_way("cl_monitor_write", &monitor.0, || {
        // SAFETY: The caller's promise.
        unsafe { values::values(monitor.0.intake()?, set, list, source) };
        Ok(())
    })
}

/// Says whether a plugin may be loaded, reloaded or unloaded. Waits for nothing but the disks of the trust file and of
/// the journal. Where nobody can decide, because the monitor has failed or there is a mistake in the trust file, root and the daemon's
/// user may do everything, others nothing.
///
/// Parameters: reason is where to put a text of up to reason_size bytes with the NUL, which says why not.
///
/// Returns: CL_STATUS_OK if it may be done; CL_STATUS_REFUSED, and then the reason is written; CL_STATUS_NULL, which
/// is to be taken as a refusal.
///
/// Lifetimes: nothing of the request is kept.
///
/// # Safety
/// monitor is from cl_monitor_new() and not freed, or NULL; request is the daemon's, or NULL; reason is valid for
/// writing so many bytes, or NULL.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_policy(
    monitor: *const cl_monitor,
    request: *const plugin_request_t,
    reason: *mut c_char,
    reason_size: usize,
) -> cl_status {
    // SAFETY: The caller's promise, for both.
    let (Some(monitor), Some(request)) = (unsafe { monitor.as_ref() }, unsafe { request.as_ref() })
    else {
        return cl_status::CL_STATUS_NULL;
    };
    let refuse = |why: &str| {
        // SAFETY: The caller's promise.
        unsafe { change::write(reason, reason_size, why) };
        cl_status::CL_STATUS_REFUSED
    };
    let status = guard::with_monitor("cl_monitor_policy", &monitor.0, || {
        // SAFETY: The caller's promise.
        let change = unsafe { change::change(request) };
        monitor.0.may(&change).map_err(|why| refuse(&why))
    });
    match status {
        cl_status::CL_STATUS_OK | cl_status::CL_STATUS_REFUSED => status,
        // It has panicked while it decided.
        _ => guard::without_monitor(|| {
            change::requester(&request.who)
                .mends()
                .map_err(|why| refuse(&why))
        }),
    }
}

/// Takes note of what the daemon has decided about a plugin. Does not block.
///
/// Parameters: reason says why it was refused, and is not looked at if it was allowed.
///
/// Returns: CL_STATUS_OK; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.
///
/// Lifetimes: what is kept of the request is copied.
///
/// # Safety
/// monitor is from cl_monitor_new() and not freed, or NULL; request is the daemon's, or NULL; reason is a string that
/// ends in NUL, or NULL.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_audit(
    monitor: *const cl_monitor,
    request: *const plugin_request_t,
    allowed: bool,
    reason: *const c_char,
) -> cl_status {
    // SAFETY: The caller's promise, for both.
    let (Some(monitor), Some(request)) = (unsafe { monitor.as_ref() }, unsafe { request.as_ref() })
    else {
        return cl_status::CL_STATUS_NULL;
    };
    guard::with_monitor("cl_monitor_audit", &monitor.0, || {
        // SAFETY: The caller's promise, for all of them.
        let (change, digest, reason) = unsafe {
            (
                change::change(request),
                change::digest(request),
                change::lossy(reason),
            )
        };
        let outcome = match allowed {
            true => Ok(()),
            false => Err(reason.as_ref()),
        };
        Ok(monitor.0.decided(&change, outcome, digest)?)
    })
}

/// Dispatches what the monitor has counted, and a notification when it has not been able to hear commands for
/// long, or is again. Does not block.
///
/// Returns: CL_STATUS_OK; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.
///
/// # Safety
/// monitor is from cl_monitor_new() and not freed, or NULL.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_read(monitor: *const cl_monitor) -> cl_status {
    // SAFETY: The caller's promise.
    let Some(monitor) = (unsafe { monitor.as_ref() }) else {
        return cl_status::CL_STATUS_NULL;
    };
    guard::with_monitor("cl_monitor_read", &monitor.0, || Ok(monitor.0.read()?))
}

/// Ends what runs, and joins every thread. Takes some seconds at most.
///
/// Returns: CL_STATUS_OK, also if nothing runs; CL_STATUS_PANIC; CL_STATUS_NULL.
///
/// # Safety
/// monitor is from cl_monitor_new() and not freed, or NULL.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_shutdown(monitor: *const cl_monitor) -> cl_status {
    // SAFETY: The caller's promise.
    let Some(monitor) = (unsafe { monitor.as_ref() }) else {
        return cl_status::CL_STATUS_NULL;
    };
    guard::with_monitor("cl_monitor_shutdown", &monitor.0, || {
        monitor.0.shutdown();
        Ok(())
    })
}

/// Ends a monitor. One that still runs is shut down first. NULL is fine.
///
/// # Safety
/// monitor is from cl_monitor_new(), not freed, and no other call with it is in progress; or it is NULL.
#[no_mangle]
pub unsafe extern "C" fn cl_monitor_free(monitor: *mut cl_monitor) {
    if monitor.is_null() {
        return;
    }
    // There is nobody to tell that a destructor panicked; its threads have reported what happened to them.
    let _: cl_status = guard::without_monitor(|| {
        // SAFETY: The caller's promise.
        drop(unsafe { Box::from_raw(monitor) });
        Ok(())
    });
}

// cl_monitor_new() cannot be called here: there is no collectd to be linked with.
#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr;

    #[test]
    fn null_is_answered_and_never_followed() {
        let null = cl_status::CL_STATUS_NULL;
        let nobody = plugin_source_t {
            plugin: ptr::null(),
            foreign: false,
        };
        // SAFETY: NULL is allowed everywhere.
        unsafe {
            assert_eq!(cl_monitor_configure(ptr::null(), ptr::null()), null);
            assert_eq!(cl_monitor_init(ptr::null()), null);
            assert_eq!(
                cl_monitor_notification(ptr::null(), ptr::null(), nobody),
                null
            );
            assert_eq!(cl_monitor_takes_values(ptr::null(), ptr::null_mut()), null);
            assert_eq!(
                cl_monitor_write(ptr::null(), ptr::null(), ptr::null(), nobody),
                null
            );
            assert_eq!(
                cl_monitor_policy(ptr::null(), ptr::null(), ptr::null_mut(), 0),
                null
            );
            assert_eq!(
                cl_monitor_audit(ptr::null(), ptr::null(), true, ptr::null()),
                null
            );
            assert_eq!(cl_monitor_read(ptr::null()), null);
            assert_eq!(cl_monitor_shutdown(ptr::null()), null);
            cl_monitor_free(ptr::null_mut());
        }
    }
}
