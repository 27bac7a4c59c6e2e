//! A panic at the boundary, provoked in a monitor that was built with debug assertions.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use collectd_live_tests::{may_change_user, skip, Builder, Daemon, Variant};

use crate::support::Broker;
use crate::{block, can_run, prefix};

/// The static library that cargo has made beside this test program: its name has a hash in it, the newest is
/// of the same build.
fn library() -> PathBuf {
    let program = env::current_exe().expect("this program");
    let directory = program.parent().expect("a directory");
    fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libcollectd_live-") && name.ends_with(".a")
        })
        .max_by_key(|path| fs::metadata(path).and_then(|file| file.modified()).ok())
        .unwrap_or_else(|| panic!("no libcollectd_live-*.a in {}", directory.display()))
}

/// Makes the plugin in the daemon's plugin directory of this library and the shim.
fn build_plugin(builder: &Builder) {
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("c-shim");
    let include = prefix().join("include/collectd/core");
    let helper = env!("CARGO_BIN_EXE_collectd-live-runner");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-DHAVE_CONFIG_H", "-I"])
        .arg(&include)
        .arg("-I")
        .arg(include.join("daemon"))
        .arg(format!("-DMONITOR_HELPER=\"{helper}\""))
        .arg(shim.join("monitor.c"))
        .arg(library())
        .args(["-lssl", "-lcrypto", "-lpthread", "-ldl", "-lm"])
        .args(["-Wl,--exclude-libs,ALL", "-Wl,-z,nodelete", "-o"])
        .arg(builder.path("plugins").join("monitor.so"))
        .output()
        .expect("a C compiler");
    assert!(output.status.success(), "{output:?}");
}

/// A daemon whose monitor panics in this entry point.
fn daemon(place: &str) -> Daemon {
    let builder = Daemon::builder(Variant::Patched)
        .load_plugin("uptime")
        .env("COLLECTD_LIVE_PANIC_IN", place);
    build_plugin(&builder);
    builder.start()
}

/// Checks that the panic was told once, and that everything else goes on.
#[track_caller]
fn assert_told_once(daemon: &Daemon, place: &str) {
    daemon.wait_for_log(&format!("the monitor has failed in {place} and is out of"));
    daemon
        .ctl("PUTNOTIF severity=okay time=1 message=later")
        .expect_ok();
    daemon.wait_for_value_of("uptime");
    // The daemon's own line about a failed operation quotes it.
    let line = "[error] monitor plugin: the monitor has failed";
    let log = daemon.log();
    assert_eq!(log.matches(line).count(), 1, "{log}");
}

#[test]
fn a_panic_in_config_fails_the_plugin_and_nothing_else() {
    if !can_run("a_panic_in_config_fails_the_plugin_and_nothing_else") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon("cl_monitor_configure");
    let block = block(&broker, &daemon.path("."));
    daemon
        .load("monitor", &[("config", &block)])
        .expect_refused(&["the monitor has failed in cl_monitor_configure"]);
    daemon.assert_state("monitor", "FAILED");
    assert_told_once(&daemon, "cl_monitor_configure");
    daemon.unload("monitor").expect_ok();
    daemon.stop();
}

#[test]
fn a_panic_in_init_fails_the_plugin_and_nothing_else() {
    if !can_run("a_panic_in_init_fails_the_plugin_and_nothing_else") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon("cl_monitor_init");
    let block = block(&broker, &daemon.path("."));
    daemon
        .load("monitor", &[("config", &block)])
        .expect_refused(&["the monitor has failed in cl_monitor_init"]);
    daemon.assert_state("monitor", "FAILED");
    assert_told_once(&daemon, "cl_monitor_init");
    daemon.unload("monitor").expect_ok();
    daemon.stop();
}

#[test]
fn a_panic_in_a_callback_takes_the_monitor_out_of_service_and_nothing_else() {
    if !can_run("a_panic_in_a_callback_takes_the_monitor_out_of_service_and_nothing_else") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon("cl_monitor_notification");
    let block = block(&broker, &daemon.path("."));
    // Loading it is a notification itself.
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    assert_told_once(&daemon, "cl_monitor_notification");
    daemon.unload("monitor").expect_ok();
    daemon.stop();
}

#[test]
fn a_panic_in_shutdown_does_not_end_the_daemon() {
    if !can_run("a_panic_in_shutdown_does_not_end_the_daemon") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon("cl_monitor_shutdown");
    let block = block(&broker, &daemon.path("."));
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    // What runs is ended when the monitor is freed.
    daemon.unload("monitor").expect_ok();
    assert_told_once(&daemon, "cl_monitor_shutdown");
    assert!(daemon.plugin("monitor").is_none());
    daemon.stop();
}

#[test]
fn a_panic_in_the_policy_leaves_the_plugins_to_root() {
    const NAME: &str = "a_panic_in_the_policy_leaves_the_plugins_to_root";
    if !can_run(NAME) {
        return;
    }
    if !may_change_user() {
        skip(NAME, "root, to become another user");
        return;
    }
    let broker = Broker::start();
    let builder = Daemon::builder(Variant::Patched)
        .open_to_all_users()
        .plugin_block("unixsock", "ControlGroup \"daemon\"")
        .load_plugin("uptime")
        .env("COLLECTD_LIVE_PANIC_IN", "cl_monitor_policy");
    build_plugin(&builder);
    let daemon = builder.start();
    let block = block(&broker, &daemon.path("."));
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    let as_member = || daemon.collectdctl_as(65534, &[1], &["reloadplugin", "uptime"]);
    // First it panics, then it has failed.
    for _ in 0..2 {
        let denied = as_member();
        assert_ne!(denied.code, Some(0), "{denied:?}");
        assert!(denied.stderr.contains("cannot tell"), "{denied:?}");
        daemon.reload("uptime", &[]).expect_ok();
    }
    assert_told_once(&daemon, "cl_monitor_policy");
    daemon.unload("monitor").expect_ok();
    let done = as_member();
    assert_eq!(done.code, Some(0), "{done:?}");
    daemon.stop();
}

#[test]
fn a_panic_in_the_audit_log_takes_nothing_with_it() {
    if !can_run("a_panic_in_the_audit_log_takes_nothing_with_it") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon("cl_monitor_audit");
    let block = block(&broker, &daemon.path("."));
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    daemon.reload("uptime", &[]).expect_ok();
    assert_told_once(&daemon, "cl_monitor_audit");
    daemon.unload("monitor").expect_ok();
    daemon.stop();
}
