//! Takes over what the daemon asks about a plugin.

use std::borrow::Cow;
use std::ffi::{c_char, CStr};

use super::{config, os};
use crate::daemon::Verb;
use crate::sys;
use crate::trust::{Change, Options, Requester};

/// Copies what is asked for.
///
/// # Safety
/// The request must be the daemon's, in a callback.
pub(super) unsafe fn change(request: &sys::plugin_request_t) -> Change {
    // SAFETY: The name of a plugin ends in NUL.
    let plugin = unsafe { lossy(request.plugin) }.into_owned();
    // SAFETY: NULL, or a tree as liboconfig made it, which does not change meanwhile.
    let options = match unsafe { request.config.as_ref() } {
        None => Options::Unread,
        // SAFETY: As above.
        Some(root) => match unsafe { config::statements(root) } {
            Ok(statements) => Options::Read(statements),
            Err(_) => Options::Strange,
        },
    };
    Change {
        verb: match request.verb {
            sys::plugin_verb_t_PLUGIN_VERB_UNLOAD => Verb::Unload,
            sys::plugin_verb_t_PLUGIN_VERB_RELOAD => Verb::Reload,
            _ => Verb::Load,
        },
        plugin,
        by: requester(&request.who),
        given: !matches!(
            request.config_from,
            sys::plugin_config_from_t_PLUGIN_CONFIG_NONE
                | sys::plugin_config_from_t_PLUGIN_CONFIG_DISK
        ),
        tuned: request.options & !sys::PLUGIN_OPTION_TIMEOUT != 0,
        options,
    }
}

/// Who asks. A role that is not known may do nothing.
pub(super) fn requester(who: &sys::plugin_requester_t) -> Requester {
    match who.role {
        sys::plugin_role_t_PLUGIN_ROLE_GROUP => Requester::Group(who.uid),
        sys::plugin_role_t_PLUGIN_ROLE_OWNER => Requester::Owner(who.uid),
        sys::plugin_role_t_PLUGIN_ROLE_PLUGIN => {
            // SAFETY: NULL, or the name of a plugin, which ends in NUL and is never freed.
            Requester::Plugin(unsafe { lossy(who.plugin) }.into_owned())
        }
        _ => Requester::Other(who.uid),
    }
}

/// SHA-256 of the configuration, if it has been read, in hexadecimal digits.
///
/// # Safety
/// As for [`change`].
pub(super) unsafe fn digest(request: &sys::plugin_request_t) -> Option<String> {
    // SAFETY: NULL, or a tree as liboconfig made it, which does not change meanwhile.
    let root = unsafe { request.config.as_ref() }?;
    // SAFETY: As above.
    Some(unsafe { config::digest(root) })
}

/// A text, whatever is in it; an empty one for NULL.
///
/// # Safety
/// Unless it is NULL, the text must end in NUL, and live and not change as long as the result.
pub(super) unsafe fn lossy<'a>(text: *const c_char) -> Cow<'a, str> {
    match text.is_null() {
        true => Cow::Borrowed(""),
        // SAFETY: It is not NULL, and the caller's promise.
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy(),
    }
}

/// Writes a text with a NUL behind it, cut to the room that there is.
///
/// # Safety
/// Unless it is NULL, so many bytes can be written there.
pub(super) unsafe fn write(to: *mut c_char, room: usize, text: &str) {
    if to.is_null() || room == 0 {
        return;
    }
    let text = os::c_text(text);
    let bytes = text.as_bytes();
    let length = bytes.len().min(room - 1);
    // SAFETY: It is not NULL, there is room for the text and the NUL, and the text is ours.
    unsafe {
        to.copy_from_nonoverlapping(bytes.as_ptr().cast(), length);
        to.add(length).write(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr;

    fn request(role: sys::plugin_role_t) -> sys::plugin_request_t {
        sys::plugin_request_t {
            verb: sys::plugin_verb_t_PLUGIN_VERB_RELOAD,
            plugin: c"cpu".as_ptr(),
            who: sys::plugin_requester_t {
                role,
                plugin: c"unixsock".as_ptr(),
                uid: 1000,
                gid: 1000,
                pid: 1,
                control_gid: 5,
            },
            config_from: sys::plugin_config_from_t_PLUGIN_CONFIG_DISK,
            config_file: ptr::null(),
            config: ptr::null(),
            options: sys::PLUGIN_OPTION_TIMEOUT,
        }
    }

    #[test]
    fn a_request_is_copied_with_who_asks() {
        for (role, by) in [
            (sys::plugin_role_t_PLUGIN_ROLE_GROUP, Requester::Group(1000)),
            (sys::plugin_role_t_PLUGIN_ROLE_OWNER, Requester::Owner(1000)),
            (sys::plugin_role_t_PLUGIN_ROLE_OTHER, Requester::Other(1000)),
            (99, Requester::Other(1000)),
            (
                sys::plugin_role_t_PLUGIN_ROLE_PLUGIN,
                Requester::Plugin("unixsock".into()),
            ),
        ] {
            // SAFETY: The request is made as the daemon makes it.
            let change = unsafe { change(&request(role)) };
            let expected = Change {
                verb: Verb::Reload,
                plugin: "cpu".into(),
                by,
                given: false,
                tuned: false,
                options: Options::Unread,
            };
            assert_eq!(change, expected);
        }
    }

    #[test]
    fn what_is_given_with_a_request_is_noticed() {
        let mut request = request(sys::plugin_role_t_PLUGIN_ROLE_GROUP);
        request.plugin = c"c\xffu".as_ptr();
        request.options |= sys::PLUGIN_OPTION_ON_FAILURE;
        for (from, given) in [
            (sys::plugin_config_from_t_PLUGIN_CONFIG_NONE, false),
            (sys::plugin_config_from_t_PLUGIN_CONFIG_FILE, true),
            (sys::plugin_config_from_t_PLUGIN_CONFIG_TEXT, true),
            (99, true),
        ] {
            request.config_from = from;
            // SAFETY: The request is made as the daemon makes it.
            let change = unsafe { change(&request) };
            assert_eq!((change.given, change.tuned), (given, true));
            assert_eq!(change.plugin, "c\u{fffd}u");
        }
    }

    #[test]
    fn a_reason_is_cut_to_its_room() {
        let mut room: [c_char; 8] = [1; 8];
        // SAFETY: There is so much room.
        unsafe {
            write(room.as_mut_ptr(), 4, "abcdef");
            assert_eq!(lossy(room.as_ptr()), "abc");
            assert_eq!(room[4], 1);
            write(room.as_mut_ptr(), 8, "x");
            assert_eq!(lossy(room.as_ptr()), "x");
            write(room.as_mut_ptr(), 0, "y");
            write(ptr::null_mut(), 8, "y");
            assert_eq!(lossy(room.as_ptr()), "x");
            assert_eq!(lossy(ptr::null()), "");
        }
    }
}
