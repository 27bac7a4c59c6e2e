//! What the operating system offers only to C.

use std::ffi::CString;
use std::mem::MaybeUninit;
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
