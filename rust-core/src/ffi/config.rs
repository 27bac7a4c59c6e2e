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

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::ptr;

    /// A tree as liboconfig makes it, which lives as long as this value.
    struct Tree {
        _texts: Vec<CString>,
        _values: Box<[sys::oconfig_value_t]>,
        _children: Box<[sys::oconfig_item_t]>,
        root: sys::oconfig_item_t,
    }

    fn tree(key: &[u8]) -> Tree {
        let texts: Vec<CString> = [key, b"Plugin", b"monitor"]
            .into_iter()
            .map(|text| CString::new(text).unwrap())
            .collect();
        let text = |n: usize| texts[n].as_ptr().cast_mut();
        let value = |type_: u32, value| sys::oconfig_value_t {
            value,
            type_: i32::try_from(type_).unwrap(),
        };
        type Union = sys::oconfig_value_s__bindgen_ty_1;
        let mut values = [
            value(sys::OCONFIG_TYPE_STRING, Union { string: text(2) }),
            value(sys::OCONFIG_TYPE_NUMBER, Union { number: 1.5 }),
            value(sys::OCONFIG_TYPE_BOOLEAN, Union { boolean: 1 }),
        ]
        .to_vec()
        .into_boxed_slice();
        let mut children = [sys::oconfig_item_t {
            key: text(0),
            values: ptr::null_mut(),
            values_num: 0,
            parent: ptr::null_mut(),
            children: ptr::null_mut(),
            children_num: 0,
        }]
        .to_vec()
        .into_boxed_slice();
        let root = sys::oconfig_item_t {
            key: text(1),
            values: values.as_mut_ptr(),
            values_num: 3,
            parent: ptr::null_mut(),
            children: children.as_mut_ptr(),
            children_num: 1,
        };
        Tree {
            _texts: texts,
            _values: values,
            _children: children,
            root,
        }
    }

    #[test]
    fn a_block_is_copied_with_everything_in_it() {
        let tree = tree(b"Host");
        // SAFETY: The tree is made as liboconfig makes it, and lives.
        let block = unsafe { block(&tree.root) }.unwrap();
        let values = [Value::from("monitor"), Value::from(1.5), Value::from(true)];
        let mut expected = Block::option("Plugin", values);
        expected.children.push(Block::option("Host", []));
        assert_eq!(block, expected);
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        let tree = tree(b"Ho\xffst");
        // SAFETY: The tree is made as liboconfig makes it, and lives.
        let result = unsafe { block(&tree.root) };
        assert_eq!(result, Err(cl_status::CL_STATUS_NOT_UTF8));
    }

    #[test]
    fn a_tree_that_contains_itself_is_refused() {
        let mut tree = tree(b"Host");
        let mut cycle = Box::new(tree.root);
        cycle.children = &raw mut *cycle;
        tree.root.children = &raw mut *cycle;
        // SAFETY: Every pointer is valid, and the values live as long as the tree.
        let result = unsafe { block(&tree.root) };
        assert_eq!(result, Err(cl_status::CL_STATUS_CONFIGURATION));
    }
}
