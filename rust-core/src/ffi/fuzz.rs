//! What libFuzzer calls. Only there with the feature `fuzz`.

use std::ffi::{c_char, CStr};
use std::slice;

use crate::fuzz;

/// Tries an input with the target of this name. Ends the process if something does not hold, or there is no such target.
///
/// # Safety
/// The name ends in NUL, and there are so many bytes of data.
#[no_mangle]
pub unsafe extern "C" fn cl_fuzz(target: *const c_char, data: *const u8, size: usize) {
    // SAFETY: The caller's promise.
    let name = unsafe { CStr::from_ptr(target) }
        .to_str()
        .unwrap_or_default();
    let data = match size {
        // The pointer may be NULL.
        0 => &[],
        // SAFETY: The caller's promise.
        _ => unsafe { slice::from_raw_parts(data, size) },
    };
    match fuzz::TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => target(data),
        // A panic ends at this function, and the process with it.
        None => panic!("there is no target {name}"),
    }
}
