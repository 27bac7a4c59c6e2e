//! What the operating system offers only to C.

use std::ffi::{c_char, c_int, CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use crate::daemon::LogLevel;

/// Runs something with every signal blocked in this thread, so that a thread started meanwhile has them
/// blocked for ever.
pub(crate) fn with_signals_blocked<T>(body: impl FnOnce() -> T) -> T {
    /// Puts the mask back, also if the body panics.
    struct Restore(libc::sigset_t);

    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: The set was filled in by pthread_sigmask, and nothing is asked to be stored.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
        }
    }

    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the set it is given and cannot fail for a valid pointer; after that
    // pthread_sigmask reads it, and initialises the other set, which cannot fail for SIG_SETMASK.
    let before = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    };
    let _restore = Restore(before);
    body()
}

/// Rids a process that was just executed of what it inherited from a daemon: descriptors other than the
/// standard ones, signal handling, signal mask, session and umask. To be called before there are threads.
pub(crate) fn forget_parent() {
    // SAFETY: No descriptor above 2 has been opened by this process, so nobody in it holds one.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } != 0 {
        // A kernel before 5.9. The limit may be very high, but then it is only slow.
        // SAFETY: sysconf has no preconditions.
        let limit = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
        for descriptor in 3..i32::try_from(limit).unwrap_or(65_536) {
            // SAFETY: As above.
            unsafe { libc::close(descriptor) };
        }
    }
    for signal in 1..=64 {
        // The runtime of Rust relies on EPIPE, and undoes this for children. KILL, STOP and the two signals
        // that belong to libc are refused, which is fine.
        if signal != libc::SIGPIPE {
            // SAFETY: The default action is valid for every signal that accepts one.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    let mut none = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given, before pthread_sigmask reads it.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
    // SAFETY: Neither has preconditions. setsid fails for a process group leader, which is then left alone by
    // the daemon's terminal as well.
    unsafe {
        libc::setsid();
        libc::umask(0o022);
    }
}

/// Whom a command runs as.
#[derive(Debug)]
pub(crate) struct Identity {
    user: Option<User>,
    gid: libc::gid_t,
    /// Every group of the user; none where only the group changes.
    groups: Option<Vec<libc::gid_t>>,
}

#[derive(Debug)]
struct User {
    name: String,
    uid: libc::uid_t,
    gid: libc::gid_t,
    home: String,
    shell: String,
}

impl Identity {
    /// Looks up a user with all groups, or a group, or both. One of them must be given.
    pub(crate) fn find(user: Option<&str>, group: Option<&str>) -> Result<Self, String> {
        let user = user.map(find_user).transpose()?;
        let gid = match (group, &user) {
            (Some(group), _) => find_group(group)?,
            (None, Some(user)) => user.gid,
            (None, None) => return Err("neither a user nor a group was given".to_owned()),
        };
        let groups = user.as_ref().map(groups_of).transpose()?;
        Ok(Self { user, gid, groups })
    }

    /// Makes the command run as this.
    pub(crate) fn assume(self, command: &mut Command) {
        let Self { user, gid, groups } = self;
        if let Some(user) = &user {
            command
                .env("HOME", &user.home)
                .env("USER", &user.name)
                .env("LOGNAME", &user.name)
                .env("SHELL", &user.shell);
        }
        let uid = user.map(|user| user.uid);
        // SAFETY: Between fork and exec the closure only makes system calls, with memory that was allocated
        // before.
        unsafe {
            command.pre_exec(move || {
                let check = |result: c_int| match result {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                };
                // Whoever is this user already may not set groups, and need not.
                let is_root = libc::geteuid() == 0;
                if let Some(groups) = groups.as_ref().filter(|_| is_root) {
                    check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                }
                if is_root || gid != libc::getegid() {
                    check(libc::setgid(gid))?;
                }
                match uid {
                    Some(uid) => check(libc::setuid(uid)),
                    None => Ok(()),
                }
            });
        }
    }
}

/// Calls a function of the `getpwnam_r` family with more and more memory, until it is enough.
fn with_buffer<T>(
    mut call: impl FnMut(&mut [c_char]) -> (c_int, Option<T>),
) -> io::Result<Option<T>> {
    const MOST: usize = 16 << 20;
    let mut buffer = vec![0; 4096];
    loop {
        match call(&mut buffer) {
            (0, found) => return Ok(found),
            (libc::ERANGE, _) if buffer.len() < MOST => buffer.resize(buffer.len() * 4, 0),
            (libc::EINTR, _) => {}
            // Some services say so of a name that is not there.
            (libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM, _) => return Ok(None),
            (error, _) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn find_user(name: &str) -> Result<User, String> {
    let c_name = c_text(name);
    let found = with_buffer(|buffer| {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut result = ptr::null_mut();
        // SAFETY: Every pointer is valid for the call, and the length is that of the buffer.
        let status = unsafe {
            libc::getpwnam_r(
                c_name.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut result,
            )
        };
        // SAFETY: The result is NULL or points to the entry, which is filled in then.
        let user = unsafe { result.as_ref() }.map(|entry| User {
            name: name.to_owned(),
            uid: entry.pw_uid,
            gid: entry.pw_gid,
            // SAFETY: The texts of an entry end in NUL and stand in the buffer.
            home: unsafe { text_of(entry.pw_dir) },
            // SAFETY: As above.
            shell: unsafe { text_of(entry.pw_shell) },
        });
        (status, user)
    });
    match found {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(format!("there is no user {name:?}")),
        Err(error) => Err(format!("the user {name:?} cannot be looked up: {error}")),
    }
}

fn find_group(name: &str) -> Result<libc::gid_t, String> {
    let c_name = c_text(name);
    let found = with_buffer(|buffer| {
        let mut entry = MaybeUninit::<libc::group>::uninit();
        let mut result = ptr::null_mut();
        // SAFETY: Every pointer is valid for the call, and the length is that of the buffer.
        let status = unsafe {
            libc::getgrnam_r(
                c_name.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut result,
            )
        };
        // SAFETY: The result is NULL or points to the entry, which is filled in then.
        (status, unsafe { result.as_ref() }.map(|entry| entry.gr_gid))
    });
    match found {
        Ok(Some(gid)) => Ok(gid),
        Ok(None) => Err(format!("there is no group {name:?}")),
        Err(error) => Err(format!("the group {name:?} cannot be looked up: {error}")),
    }
}

fn groups_of(user: &User) -> Result<Vec<libc::gid_t>, String> {
    const MOST: usize = 65_536;
    let name = c_text(&user.name);
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    while groups.len() <= MOST {
        let mut count = c_int::try_from(groups.len()).unwrap_or(c_int::MAX);
        // SAFETY: The name ends in NUL, and the count is that of the list.
        let status = unsafe {
            libc::getgrouplist(name.as_ptr(), user.gid, groups.as_mut_ptr(), &raw mut count)
        };
        let count = usize::try_from(count).unwrap_or(0);
        if status >= 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        groups.resize(count.max(groups.len() * 2), 0);
    }
    Err(format!("the user {:?} is in too many groups", user.name))
}

/// # Safety
/// The text ends in NUL, or is NULL.
unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: The caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// Writes a line to the system's log.
pub(crate) fn syslog(level: LogLevel, line: &str) {
    let line = c_text(line);
    // SAFETY: The format takes one string, which ends in NUL and lives until the call is over.
    unsafe {
        libc::syslog(
            libc::LOG_DAEMON | level as i32,
            c"%s".as_ptr(),
            line.as_ptr(),
        )
    };
}

/// A text for C. What comes behind a NUL would not be seen, so there is none.
pub(super) fn c_text(text: &str) -> CString {
    let bytes: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
    // Without NUL bytes this cannot fail.
    CString::new(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_blocked(signal: i32) -> bool {
        let mut mask = MaybeUninit::uninit();
        // SAFETY: With no new set, pthread_sigmask only initialises the old one, which is then read.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), mask.as_mut_ptr());
            libc::sigismember(mask.as_ptr(), signal) == 1
        }
    }

    #[test]
    fn a_thread_started_with_signals_blocked_keeps_them_blocked() {
        let before = is_blocked(libc::SIGTERM);
        let thread = with_signals_blocked(|| std::thread::spawn(|| is_blocked(libc::SIGTERM)));
        assert!(thread.join().unwrap());
        assert_eq!(is_blocked(libc::SIGTERM), before);
    }

    #[test]
    fn text_for_c_holds_no_nul() {
        assert_eq!(c_text("a\0b").to_bytes(), b"ab");
    }
}
