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

/// Copies what stands in an item, which itself need not have a key.
///
/// # Safety
/// As for [`block`].
pub(super) unsafe fn statements(item: &sys::oconfig_item_t) -> Result<Vec<Block>, cl_status> {
    // SAFETY: liboconfig counts what it allocates.
    let children = unsafe { counted(item.children, item.children_num) };
    children
        .iter()
        // SAFETY: As for the item, so for its parts.
        .map(|child| unsafe { nested(child, MAX_DEPTH) })
        .collect()
}

/// SHA-256 of what stands in an item, in hexadecimal digits: of every key without its case, of every value as it is,
/// and of where each begins and ends. Comments and spaces do not count.
///
/// # Safety
/// As for [`block`].
pub(super) unsafe fn digest(item: &sys::oconfig_item_t) -> String {
    let mut hash = openssl::sha::Sha256::new();
    let mut part = |kind: u8, bytes: &[u8]| {
        hash.update(&[kind]);
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    // SAFETY: liboconfig counts what it allocates.
    let children = |item: &sys::oconfig_item_t| unsafe {
        counted::<sys::oconfig_item_t>(item.children, item.children_num)
    };
    // Whoever wrote it may have nested it more deeply than a stack takes.
    let mut open = vec![children(item).iter()];
    while let Some(siblings) = open.last_mut() {
        let Some(item) = siblings.next() else {
            part(b')', &[]);
            open.pop();
            continue;
        };
        // SAFETY: A key ends in NUL and lives as long as the item.
        part(b'k', &unsafe { bytes(item.key) }.to_ascii_lowercase());
        // SAFETY: liboconfig counts what it allocates.
        for value in unsafe { counted(item.values, item.values_num) } {
            // SAFETY: The type says which member of the union was written.
            unsafe {
                match u32::try_from(value.type_) {
                    Ok(sys::OCONFIG_TYPE_STRING) => part(b's', bytes(value.value.string)),
                    Ok(sys::OCONFIG_TYPE_NUMBER) => {
                        part(b'n', &value.value.number.to_le_bytes());
                    }
                    Ok(sys::OCONFIG_TYPE_BOOLEAN) => {
                        part(b'b', &[u8::from(value.value.boolean != 0)]);
                    }
                    _ => part(b'?', &[]),
                }
            }
        }
        open.push(children(item).iter());
    }
    hash.finish().map(|byte| format!("{byte:02x}")).concat()
}

/// # Safety
/// Unless it is NULL, the text must end in NUL, and live and not change as long as the result.
unsafe fn bytes<'a>(text: *const c_char) -> &'a [u8] {
    match text.is_null() {
        true => &[],
        // SAFETY: It is not NULL, and the caller's promise.
        false => unsafe { CStr::from_ptr(text) }.to_bytes(),
    }
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
    fn what_stands_in_a_root_without_a_key_is_copied() {
        let mut tree = tree(b"Host");
        tree.root.key = ptr::null_mut();
        // SAFETY: The tree is made as liboconfig makes it, and lives.
        let statements = unsafe { statements(&tree.root) }.unwrap();
        assert_eq!(statements, [Block::option("Host", [])]);
    }

    #[test]
    fn configurations_differ_in_their_digest_as_they_do_in_what_they_say() {
        // SAFETY: The trees are made as liboconfig makes them, and live.
        let of = |tree: &Tree| unsafe { digest(&tree.root) };
        let host = of(&tree(b"Host"));
        assert_eq!(host.len(), 64);
        assert_eq!(host, of(&tree(b"hosT")));
        assert_ne!(host, of(&tree(b"Hosts")));
        assert_ne!(of(&tree(b"Ho\xffst")), of(&tree(b"Ho\xfest")));
        let inner = tree(b"Host");
        let mut children = [inner.root];
        let mut outer = tree(b"Host");
        outer.root.children = children.as_mut_ptr();
        assert_ne!(of(&outer), host);
        // The value of an option counts, its place, too.
        let mut values = inner._values.clone();
        values[1].value.number = 2.5;
        let before = of(&outer);
        children[0].values = values.as_mut_ptr();
        outer.root.children = children.as_mut_ptr();
        let changed = of(&outer);
        assert_ne!(changed, before);
        children[0].values_num = 1;
        outer.root.children = children.as_mut_ptr();
        assert_ne!(of(&outer), changed);
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
