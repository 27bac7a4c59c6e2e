//! Takes over what liboconfig read.

use std::ffi::{c_char, CStr};
use std::slice;

use super::status::cl_status;
use crate::settings::{Block, Value};
use crate::sys;

/// collectd's parser nests as deeply as it is told to; no block of the monitor does.
const MAX_DEPTH: usize = 16;

/// Copies a block with everything in it.
///
/// # Safety
/// The item and everything it points to must be as liboconfig made it, and must not change meanwhile.
pub(super) unsafe fn block(item: &sys::oconfig_item_t) -> Result<Block, cl_status> {
    // SAFETY: The caller's promise.
    unsafe { nested(item, MAX_DEPTH) }
}

/// # Safety
/// As for [`block`].
unsafe fn nested(item: &sys::oconfig_item_t, depth: usize) -> Result<Block, cl_status> {
    if depth == 0 {
        return Err(cl_status::CL_STATUS_CONFIGURATION);
    }
    // SAFETY: A key ends in NUL and lives as long as the item.
    let key = unsafe { text(item.key) }?;
    // SAFETY: liboconfig counts what it allocates.
    let (values, children) = unsafe {
        (
            counted(item.values, item.values_num),
            counted(item.children, item.children_num),
        )
    };
    // SAFETY: As for the item, so for its parts.
    let values = values
        .iter()
        .map(|v| unsafe { value(v) })
        .collect::<Result<_, _>>()?;
    // SAFETY: As for the item, so for its parts.
    let children = children
        .iter()
        .map(|c| unsafe { nested(c, depth - 1) })
        .collect::<Result<_, _>>()?;
    Ok(Block {
        key,
        values,
        children,
    })
}

/// # Safety
/// As for [`block`].
unsafe fn value(value: &sys::oconfig_value_t) -> Result<Value, cl_status> {
    // SAFETY: The type says which member of the union was written.
    unsafe {
        match u32::try_from(value.type_) {
            Ok(sys::OCONFIG_TYPE_STRING) => Ok(Value::Text(text(value.value.string)?)),
            Ok(sys::OCONFIG_TYPE_NUMBER) => Ok(Value::Number(value.value.number)),
            Ok(sys::OCONFIG_TYPE_BOOLEAN) => Ok(Value::Flag(value.value.boolean != 0)),
            _ => Err(cl_status::CL_STATUS_CONFIGURATION),
        }
    }
}

/// # Safety
/// Unless it is NULL, the text must end in NUL and must not change meanwhile.
pub(super) unsafe fn text(text: *const c_char) -> Result<String, cl_status> {
    if text.is_null() {
        return Err(cl_status::CL_STATUS_NULL);
    }
    // SAFETY: It is not NULL, and the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map(str::to_owned)
        .map_err(|_| cl_status::CL_STATUS_NOT_UTF8)
}

/// # Safety
/// There must be so many, unless there are none, and they must not change while they are looked at.
unsafe fn counted<'a, T>(first: *const T, count: i32) -> &'a [T] {
    match usize::try_from(count) {
        // SAFETY: The caller's promise.
        Ok(count) if count > 0 && !first.is_null() => unsafe {
            slice::from_raw_parts(first, count)
        },
        _ => &[],
    }
}
