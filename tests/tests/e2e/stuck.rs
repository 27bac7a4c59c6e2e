//! A function of a plugin that does not return while an operation needs it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use collectd_live_tests::{eventually, patience, Daemon, Reply, Variant};

use crate::others::assert_unnoticed;

/// How long a step may take that needs nothing but the daemon.
const SOON: Duration = Duration::from_secs(20);

/// The timeout of operations that are to be given up.
const TIMEOUT: &str = "1";

/// How long a daemon waits at its end for the operation that is under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A daemon with the plugin `stuck`, and with others that go on.
fn with_stuck() -> Daemon {
    Daemon::builder(Variant::Asan)
        .load_plugin("memory")
        .available("cpu")
        .available("stuck")
        .start()
}

/// A configuration of `stuck` that lets one of its functions hang.
fn hanging(daemon: &Daemon, function: &str) -> String {
    format!(
        "Entered \"{}\"\nRelease \"{}\"\nHang \"{function}\"\nThen true",
        daemon.path("entered").display(),
        daemon.path("release").display()
    )
}

fn wait_for_file(path: &Path) {
    eventually(&format!("{}", path.display()), SOON, || {
        path.exists().then_some(())
    });
}

/// Carries out an operation that is to be given up because of `function`, and
/// checks that the answer comes in time and says so.
#[track_caller]
fn assert_given_up(daemon: &Daemon, function: &str, operation: impl FnOnce() -> Reply) {
    let start = Instant::now();
    operation().expect_refused(&["stuck", function, "has not returned"]);
    let elapsed = start.elapsed();
    assert!(
        elapsed >= Duration::from_secs(1),
        "given up after {elapsed:?} already"
    );
    assert!(
        elapsed < patience(Duration::from_secs(8)),
        "the answer took {elapsed:?}"
    );
    wait_for_file(&daemon.path("entered"));
}

/// Checks that the plugin is listed as stuck in `function`, that no operation on
/// it is possible, and that everything else goes on.
#[track_caller]
fn assert_stuck(daemon: &Daemon, function: &str) {
    let since = SystemTime::now();
    let stuck = daemon.assert_state("stuck", "FAILED");
    let error = stuck.field("error").to_owned();
    assert!(
        error.starts_with("stuck: ") && error.contains(function) && error.contains("since 20"),
        "{stuck:?}"
    );
    for refused in [
        daemon.load("stuck", &[]),
        daemon.unload("stuck"),
        daemon.reload("stuck", &[]),
    ] {
        refused.expect_refused(&[
            "\"stuck\" is stuck: its",
            function,
            "nothing has been changed",
        ]);
    }
    assert_eq!(daemon.assert_state("stuck", "FAILED").field("error"), error);

    daemon.load("cpu", &[]).expect_ok();
    daemon.wait_for_value_of("cpu");
    daemon.reload("memory", &[]).expect_ok();
    daemon.unload("cpu").expect_ok();
    daemon.assert_gone("cpu");
    daemon.ctl("FLUSH").expect_ok();
    daemon
        .ctl("PUTNOTIF severity=okay time=1 message=hello")
        .expect_ok();
    daemon.wait_for_value_of("memory");
    assert!(
        !daemon
            .last_value_of("stuck")
            .is_some_and(|time| time > seconds(since)),
        "a stuck plugin reports values"
    );
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_secs_f64()
}

/// Lets the function return and waits until the plugin is not stuck any more.
#[track_caller]
fn release(daemon: &Daemon) {
    let told = || {
        daemon
            .log()
            .matches("Plugin \"stuck\" is not stuck any more")
            .count()
    };
    let before = told();
    fs::write(daemon.path("release"), "").expect("letting the function return");
    eventually("the plugin to be released", SOON, || {
        (told() > before).then_some(())
    });
}

/// Checks that the plugin is failed, can be mended, works and can be unloaded.
#[track_caller]
fn assert_mendable(daemon: &Daemon) {
    let failed = daemon.assert_state("stuck", "FAILED");
    assert!(failed.field("error").contains("was given up"), "{failed:?}");
    daemon
        .load("stuck", &[("config", "Hang \"nothing\"")])
        .expect_ok();
    daemon.wait_for_value_of("stuck");
    daemon.unload("stuck").expect_ok();
    daemon.assert_gone("stuck");
}

fn count(daemon: &Daemon, function: &str) -> usize {
    daemon
        .log()
        .matches(&format!("stuck plugin: {function} runs."))
        .count()
}

/// Loads the plugin so that `function` hangs, and releases it later.
#[track_caller]
fn load_and_get_stuck(function: &str) -> Daemon {
    let daemon = with_stuck();
    let config = hanging(&daemon, function);
    assert_given_up(&daemon, function, || {
        daemon.load("stuck", &[("config", &config), ("timeout", TIMEOUT)])
    });
    assert_stuck(&daemon, function);
    release(&daemon);
    daemon
}

/// Loads the plugin, unloads it so that `function` hangs, and releases it later.
#[track_caller]
fn unload_and_get_stuck(function: &str) -> Daemon {
    let daemon = with_stuck();
    let config = hanging(&daemon, function);
    daemon.load("stuck", &[("config", &config)]).expect_ok();
    daemon.wait_for_value_of("stuck");
    assert_given_up(&daemon, function, || {
        daemon.unload_within("stuck", Duration::from_secs(1))
    });
    assert_stuck(&daemon, function);
    release(&daemon);
    daemon
}

/// The functions that can hang.
pub(crate) const FUNCTIONS: [&str; 6] = ["config", "init", FREE_READ, "flush", "shutdown", FREE];

/// Those that free user data: of a reader, and of anything else.
const FREE_READ: &str = "free function of a read callback";
const FREE: &str = "free function of a callback";

/// Loads and unloads the plugin so that one of its functions hangs and is given
/// up soon, and waits until it has returned.
#[track_caller]
pub(crate) fn get_stuck_and_return(daemon: &Daemon, function: &str) {
    // On a busy machine something else may take so long. Then once more.
    for attempt in 1.. {
        let timeout = format!("{}", 0.05 * f64::from(attempt));
        let config = hanging(daemon, function);
        let mut reply = daemon.load(
            "stuck",
            &[
                ("config", &config),
                (
                    "timeout",
                    if ["config", "init"].contains(&function) {
                        &timeout
                    } else {
                        "20"
                    },
                ),
            ],
        );
        if reply.is_ok() {
            reply = daemon.ctl(&format!("UNLOADPLUGIN stuck timeout={timeout}"));
        }
        let reason = reply.expect_refused(&["stuck"]);

        fs::write(daemon.path("release"), "").expect("letting the function return");
        eventually("the plugin to be released", SOON, || {
            let stuck = daemon.plugin("stuck").is_some_and(|plugin| {
                let error = plugin.fields.get("error");
                error.is_some_and(|error| error.starts_with("stuck: "))
            });
            (!stuck).then_some(())
        });
        if daemon.plugin("stuck").is_some() {
            daemon.unload("stuck").expect_ok();
        }
        daemon.assert_gone("stuck");
        fs::remove_file(daemon.path("release")).expect("taking the file away");

        if reason.contains(function) && reason.contains("has not returned") {
            return;
        }
        assert!(attempt < 10, "{function} never hangs: {reason}");
    }
}

/// Proves that plugins that are stuck, and return, take nothing from the others:
/// of a reader every 10 ms, no value is lost, doubled or late.
#[test]
fn a_stuck_plugin_costs_the_others_nothing() {
    assert_unnoticed(&["stuck"], 5, |daemon| {
        for function in FUNCTIONS {
            get_stuck_and_return(daemon, function);
        }
    });
}

/// Proves that a config callback that does not return costs the plugin only,
/// which can be mended when it has returned; and that nothing of the plugin is
/// called after the operation has been given up.
#[test]
fn a_config_callback_that_hangs_is_given_up() {
    let daemon = load_and_get_stuck("config");
    for function in ["the next config", "init", "the next init"] {
        assert_eq!(count(&daemon, function), 0, "{function} was called");
    }
    assert_mendable(&daemon);
    daemon.stop();
}

/// Proves the same of an init callback.
#[test]
fn an_init_callback_that_hangs_is_given_up() {
    let daemon = load_and_get_stuck("init");
    assert_eq!(count(&daemon, "the next init"), 0);
    assert_mendable(&daemon);
    daemon.stop();
}

/// Proves the same of a flush callback that is called while the plugin is
/// unloaded.
#[test]
fn a_flush_callback_that_hangs_is_given_up() {
    let daemon = unload_and_get_stuck("flush");
    assert_eq!(count(&daemon, "shutdown"), 0);
    assert_mendable(&daemon);
    daemon.stop();
}

/// Proves the same of a shutdown callback, which is not called again: what the
/// plugin had is gone.
#[test]
fn a_shutdown_callback_that_hangs_is_given_up() {
    let daemon = unload_and_get_stuck("shutdown");
    assert_eq!(count(&daemon, FREE), 0);
    daemon.unload("stuck").expect_ok();
    daemon.assert_gone("stuck");
    assert_eq!(count(&daemon, "shutdown"), 1);
    assert_eq!(count(&daemon, FREE), 1);
    daemon
        .load("stuck", &[("config", "Hang \"nothing\"")])
        .expect_ok();
    daemon.wait_for_value_of("stuck");
    daemon.stop();
}

/// Proves the same of free functions, which run once for each time that the
/// plugin is loaded.
#[test]
fn a_free_function_that_hangs_is_given_up() {
    for function in [FREE_READ, FREE] {
        let daemon = unload_and_get_stuck(function);
        assert_eq!(
            count(&daemon, "shutdown"),
            usize::from(function == FREE),
            "{function}"
        );
        assert_mendable(&daemon);
        assert_eq!(count(&daemon, FREE_READ), 2);
        assert_eq!(count(&daemon, FREE), 2);
        daemon.stop();
    }
}

/// Proves the same of `module_register`.
#[test]
fn a_module_register_that_hangs_is_given_up() {
    let daemon = with_stuck();
    let marker = daemon.path("hang-in-module-register");
    fs::write(&marker, "").unwrap();
    assert_given_up(&daemon, "module_register", || {
        daemon.load("stuck", &[("timeout", TIMEOUT)])
    });
    fs::remove_file(&marker).unwrap();
    assert_stuck(&daemon, "module_register");
    release(&daemon);
    assert_mendable(&daemon);
    daemon.stop();
}

/// Proves the same of what an object does when it is mapped and unmapped. The
/// plugin is gone when that has returned. (Meanwhile libc holds a lock of its
/// own, so that other plugins cannot be loaded.)
#[test]
fn constructors_and_destructors_that_hang_are_given_up() {
    let daemon = with_stuck();
    for (function, what) in [("constructor", "dlopen"), ("destructor", "dlclose")] {
        let marker = daemon.path(&format!("hang-in-{function}"));
        if function == "destructor" {
            daemon.load("stuck", &[]).expect_ok();
        }
        fs::write(&marker, "").expect("a file that says what is to hang");
        assert_given_up(&daemon, what, || {
            if function == "constructor" {
                daemon.load("stuck", &[("timeout", TIMEOUT)])
            } else {
                daemon.unload_within("stuck", Duration::from_secs(1))
            }
        });
        let stuck = daemon.assert_state("stuck", "FAILED");
        assert!(stuck.field("error").contains(what), "{stuck:?}");
        daemon
            .load("stuck", &[])
            .expect_refused(&["\"stuck\" is stuck: its", what]);
        daemon.wait_for_value_of("memory");

        fs::remove_file(&marker).expect("taking the file away");
        release(&daemon);
        daemon.assert_gone("stuck");
        daemon
            .load("stuck", &[("config", "Hang \"nothing\"")])
            .expect_ok();
        daemon.wait_for_value_of("stuck");
        daemon.unload("stuck").expect_ok();
        daemon.assert_gone("stuck");
        for file in ["entered", "release"] {
            fs::remove_file(daemon.path(file)).expect("taking the file away");
        }
    }
    daemon.stop();
}

/// Proves that a reload whose new configuration hangs is given up, too.
#[test]
fn a_reload_that_hangs_is_given_up() {
    let daemon = with_stuck();
    daemon
        .load("stuck", &[("config", "Hang \"nothing\"")])
        .expect_ok();
    let config = hanging(&daemon, "init");
    assert_given_up(&daemon, "init", || {
        daemon.reload("stuck", &[("config", &config), ("timeout", TIMEOUT)])
    });
    assert_stuck(&daemon, "init");
    release(&daemon);
    assert_mendable(&daemon);
    daemon.stop();
}

/// How many threads carry out operations, or once did and hang.
fn operations(daemon: &Daemon) -> usize {
    let threads = daemon.status().threads;
    threads.iter().filter(|name| *name == "operation").count()
}

/// The kernel lists a thread for a moment after it has been joined.
#[track_caller]
fn wait_for_operations(daemon: &Daemon, number: usize) {
    eventually(&format!("{number} such threads"), SOON, || {
        (operations(daemon) == number).then_some(())
    });
}

/// Proves that each operation that is given up costs one thread, until the
/// function returns.
#[test]
fn a_thread_that_was_abandoned_ends_when_it_can() {
    let daemon = with_stuck();
    for _ in 0..3 {
        daemon.load("cpu", &[]).expect_ok();
        wait_for_operations(&daemon, 1);
        let config = hanging(&daemon, "init");
        assert_given_up(&daemon, "init", || {
            daemon.load("stuck", &[("config", &config), ("timeout", TIMEOUT)])
        });
        daemon.unload("cpu").expect_ok();
        wait_for_operations(&daemon, 2);
        release(&daemon);
        wait_for_operations(&daemon, 1);
        daemon.unload("stuck").expect_ok();
        for file in ["entered", "release"] {
            fs::remove_file(daemon.path(file)).expect("taking the file away");
        }
    }
    daemon.stop();
}

/// Proves that several plugins can be stuck at once, and that the log and the
/// notifications tell of each.
#[test]
fn plugins_are_stuck_independently() {
    let daemon = Daemon::builder(Variant::Asan)
        .load_plugin("memory")
        .available("cpu")
        .available("stuck")
        .available("slowinit")
        .start();
    let config = hanging(&daemon, "config");
    assert_given_up(&daemon, "config", || {
        daemon.load("stuck", &[("config", &config), ("timeout", TIMEOUT)])
    });
    let config = format!(
        "Entered \"{}\"\nRelease \"{}\"",
        daemon.path("entered-2").display(),
        daemon.path("release-2").display()
    );
    daemon
        .load("slowinit", &[("config", &config), ("timeout", TIMEOUT)])
        .expect_refused(&["slowinit", "stuck", "init"]);
    assert_stuck(&daemon, "config");

    fs::write(daemon.path("release-2"), "").unwrap();
    daemon.wait_for_log("Plugin \"slowinit\" is not stuck any more");
    daemon
        .unload("slowinit")
        .expect_refused(&["has not registered as unloadable"]);
    assert_stuck(&daemon, "config");
    release(&daemon);
    assert_mendable(&daemon);
    let log = daemon.stop();
    for plugin in ["stuck", "slowinit"] {
        for message in ["is stuck and FAILED", "is not stuck any more"] {
            let told = log
                .lines()
                .filter(|line| line.contains(&format!("Plugin \"{plugin}\" {message}")))
                .count();
            assert_eq!(told, 2, "a log line and a notification: {plugin} {message}");
        }
    }
}

/// Proves that the daemon stops while a plugin is stuck, wherever that is: it
/// does not wait for the plugin, calls nothing of it, frees nothing of it, and
/// says so.
#[test]
fn the_daemon_stops_while_a_plugin_is_stuck() {
    for function in FUNCTIONS {
        let daemon = with_stuck();
        let config = hanging(&daemon, function);
        let at_load = ["config", "init"].contains(&function);
        let load = daemon.load("stuck", &[("config", &config), ("timeout", TIMEOUT)]);
        if at_load {
            load.expect_refused(&["stuck", function]);
        } else {
            load.expect_ok();
            daemon
                .unload_within("stuck", Duration::from_secs(1))
                .expect_refused(&["stuck", function]);
        }
        let start = Instant::now();
        let log = daemon.stop();
        assert!(
            start.elapsed() < patience(STOP_TIMEOUT),
            "stopping took {:?}",
            start.elapsed()
        );
        let told = log.lines().any(|line| {
            line.contains("Plugin \"stuck\" is stuck: its ")
                && line.contains("Stopping without shutting it down.")
        });
        assert!(told, "stuck in {function}: the log does not say so");
        let runs = |callback: &str| {
            log.matches(&format!("stuck plugin: {callback} runs."))
                .count()
        };
        let shut_down = ["shutdown", FREE].contains(&function);
        assert_eq!(runs("shutdown"), usize::from(shut_down), "{function}");
        assert_eq!(runs(FREE), usize::from(function == FREE), "{function}");
        let at_load = ["config", "init"].contains(&function);
        assert_eq!(runs(FREE_READ), usize::from(!at_load), "{function}");
    }
}

/// Proves that the daemon stops in time although an operation hangs that has
/// not been given up yet.
#[test]
fn the_daemon_stops_while_an_operation_hangs() {
    let daemon = with_stuck();
    let config = hanging(&daemon, "init");
    let socket = daemon.socket();
    let load = std::thread::spawn(move || {
        let line = config.replace('"', "\\\"").replace('\n', "\\n");
        collectd_live_tests::Connection::open(&socket)
            .expect("the control socket")
            .command(&format!("LOADPLUGIN stuck timeout=3600 config=\"{line}\""))
    });
    wait_for_file(&daemon.path("entered"));
    let start = Instant::now();
    let log = daemon.stop();
    assert!(
        start.elapsed() < patience(STOP_TIMEOUT + SOON),
        "stopping took {:?}",
        start.elapsed()
    );
    assert!(
        log.contains("Stopping without shutting it down."),
        "the log does not say that the plugin is stuck"
    );
    assert!(!log.contains("stuck plugin: shutdown runs."));
    // The answer, or the end of the connection: the daemon does not wait for its
    // clients.
    drop(load.join().expect("the client"));
}

/// Proves that a notification callback that does not return, of a plugin that
/// nobody operates on, keeps nobody from operating on others.
#[test]
fn a_notification_callback_that_hangs_holds_up_no_operation() {
    let daemon = Daemon::builder(Variant::Asan)
        .available("badconfig")
        .available("cpu")
        .available("stuck")
        .start();
    let config = hanging(&daemon, "notification");
    daemon.load("stuck", &[("config", &config)]).expect_ok();
    // The callback hangs when it is told of this.
    daemon
        .load("badconfig", &[("config", "PleaseHang true")])
        .expect_refused(&["PleaseHang"]);
    wait_for_file(&daemon.path("entered"));

    daemon.unload("badconfig").expect_ok();
    daemon.load("cpu", &[]).expect_ok();
    daemon.wait_for_value_of("cpu");
    daemon.unload("cpu").expect_ok();
    daemon.assert_gone("cpu");
    daemon
        .unload_within("stuck", Duration::from_secs(1))
        .expect_refused(&["busy", "notification"]);
    daemon.assert_state("stuck", "READY");

    fs::write(daemon.path("release"), "").expect("letting the function return");
    daemon.unload("stuck").expect_ok();
    daemon.assert_gone("stuck");
    daemon.stop();
}
