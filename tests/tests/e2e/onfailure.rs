//! What becomes of a plugin that fails: quarantine, unload, shutdown.

use std::fs;
use std::time::Duration;

use collectd_live_tests::{eventually, Builder, Daemon, Variant};

/// How long a step may take that needs nothing but the daemon.
const SOON: Duration = Duration::from_secs(20);

/// The exit status of a daemon that started although an init callback failed.
const INIT_FAILED: i32 = 1;

const UNLOAD: (&str, &str) = ("onfailure", "unload");
const SHUTDOWN: (&str, &str) = ("onfailure", "shutdown");

fn builder() -> Builder {
    Daemon::builder(Variant::Asan)
        .load_plugin("memory")
        .available("badconfig")
        .available("badinit")
        .available("noreg")
}

/// Waits until the daemon has ended by itself, and returns its log.
#[track_caller]
fn wait_for_end(daemon: Daemon) -> String {
    daemon.wait_for_log("Exiting normally.");
    daemon.stop()
}

/// Sends a command that makes the daemon stop. The answer may be lost.
#[track_caller]
fn send(daemon: &Daemon, line: &str) {
    if let Ok(reply) = daemon.connect().command(line) {
        reply.expect_refused(&["the daemon stops"]);
    }
}

#[track_caller]
fn notify(daemon: &Daemon) {
    daemon
        .ctl("PUTNOTIF severity=okay time=1 message=hello")
        .expect_ok();
}

/// Proves that a plugin that refuses its configuration, or fails in its init
/// callback, is unloaded if the command says so; without the option it stays.
#[test]
fn a_plugin_that_fails_is_unloaded_if_the_command_says_so() {
    let daemon = builder().start();
    for (plugin, config, reason) in [
        ("badinit", "Fail true", "status -1"),
        ("badconfig", "Number 1\nRefuse true", "Refuse"),
    ] {
        for _ in 0..3 {
            daemon
                .load(plugin, &[("config", config), UNLOAD])
                .expect_refused(&[plugin, "has failed and is unloaded", reason]);
            daemon.assert_gone(plugin);
        }
        daemon
            .load(plugin, &[("config", config)])
            .expect_refused(&[plugin, "FAILED", reason]);
        daemon.assert_state(plugin, "FAILED");
        // What has failed already is unloaded, too, when another try fails.
        daemon
            .reload(plugin, &[("config", config), UNLOAD])
            .expect_refused(&[plugin, "is unloaded", reason]);
        daemon.assert_gone(plugin);
    }
    daemon.wait_for_value_of("memory");
    daemon.stop();
}

/// Proves that a reload that can go back to the old configuration is no failure
/// of the plugin.
#[test]
fn a_plugin_that_works_on_is_not_unloaded() {
    let daemon = builder().start();
    daemon
        .load("badconfig", &[("config", "Number 7")])
        .expect_ok();
    daemon
        .reload("badconfig", &[("config", "Refuse true"), UNLOAD])
        .expect_refused(&["the old configuration is in force again"]);
    daemon.assert_state("badconfig", "READY");
    daemon
        .reload("badconfig", &[("config", "Refuse true"), SHUTDOWN])
        .expect_refused(&["the old configuration is in force again"]);
    daemon.assert_state("badconfig", "READY");
    daemon.wait_for_value_of("badconfig");
    daemon.stop();
}

/// Proves that a plugin that cannot be unloaded stays failed, and that the
/// answer says why.
#[test]
fn a_plugin_that_fails_and_cannot_be_unloaded_stays() {
    let daemon = builder().available("badstart").start();
    daemon.load("badstart", &[UNLOAD]).expect_refused(&[
        "FAILED",
        "status 42",
        "cannot be unloaded",
        "has not registered as unloadable",
    ]);
    daemon.assert_state("badstart", "FAILED");
    daemon.stop();
}

/// Proves that the global option is the default for commands, and that a command
/// may say otherwise.
#[test]
fn the_global_option_is_the_default_for_commands() {
    let daemon = builder().option("OnPluginFailure \"Unload\"").start();
    daemon
        .load("badinit", &[])
        .expect_refused(&["has failed and is unloaded"]);
    daemon.assert_gone("badinit");
    daemon
        .load("badinit", &[("onfailure", "quarantine")])
        .expect_refused(&["FAILED"]);
    daemon.assert_state("badinit", "FAILED");
    daemon.unload("badinit").expect_ok();

    let client = daemon.collectdctl(&["loadplugin", "badinit", "onfailure=quarantine"]);
    assert_eq!(client.code, Some(255), "{client:?}");
    daemon.assert_state("badinit", "FAILED");
    let client = daemon.collectdctl(&["reloadplugin", "badinit", "onfailure=never"]);
    assert!(client.stderr.contains("onfailure"), "{client:?}");
    daemon.assert_state("badinit", "FAILED");
    daemon.stop();
}

/// Proves that the daemon stops in good order if the command says so, whether
/// `dlopen`, `module_register`, the configuration or init fails.
#[test]
fn the_daemon_stops_if_the_command_says_so() {
    for line in [
        "LOADPLUGIN rubbish onfailure=shutdown",
        "LOADPLUGIN noreg onfailure=shutdown",
        "LOADPLUGIN badconfig onfailure=shutdown config=\"Refuse true\"",
        "LOADPLUGIN badinit onfailure=shutdown",
    ] {
        let daemon = builder().start();
        fs::write(daemon.path("plugins/rubbish.so"), "not a shared object").unwrap();
        send(&daemon, line);
        let log = wait_for_end(daemon);
        let told = log
            .lines()
            .any(|line| line.contains("[error] lifecycle: ") && line.contains("The daemon stops."));
        assert!(told, "{line}: the log does not say why the daemon stops");
    }
}

/// Proves that the same goes for a plugin that is stuck.
#[test]
fn the_daemon_stops_for_a_stuck_plugin_if_the_command_says_so() {
    let daemon = builder().available("slowinit").start();
    let config = format!(
        r#"Entered \"{}\"\nRelease \"{}\""#,
        daemon.path("entered").display(),
        daemon.path("release").display()
    );
    send(
        &daemon,
        &format!("LOADPLUGIN slowinit timeout=1 onfailure=shutdown config=\"{config}\""),
    );
    let log = wait_for_end(daemon);
    assert!(log.contains("Stopping without shutting it down."));
}

/// Proves that a command that is refused is no failure.
#[test]
fn a_refused_command_does_not_stop_the_daemon() {
    let daemon = builder().start();
    daemon.load("nosuch", &[SHUTDOWN]).expect_refused(&[]);
    daemon.load("memory", &[SHUTDOWN]).expect_refused(&[]);
    daemon
        .load("badinit", &[SHUTDOWN, ("config", "Fail <")])
        .expect_refused(&["line 1"]);
    daemon.wait_for_value_of("memory");
    assert!(!daemon.log().contains("The daemon stops"));
    daemon.stop();
}

/// Proves that a plugin that fails in an init callback at start-up is ready all
/// the same, but for its read callback, if the option is not set: as in stock.
#[test]
fn a_failing_init_at_start_up_costs_the_read_callback_only() {
    let daemon = builder().load_plugin("badstart").start();
    daemon.assert_state("badstart", "READY");
    notify(&daemon);
    daemon.wait_for_log("badstart plugin: The notification callback runs.");
    assert_eq!(daemon.last_value_of("badstart"), None);
    let log = daemon.stop_with_status(INIT_FAILED);
    assert!(log.contains("badstart plugin: The next init callback runs."));
    assert!(log.contains("Plugin will be unloaded."), "stock's words");
}

/// Proves that it is failed, with all of its callbacks skipped, if the option
/// says so; also if it is to be unloaded but cannot be.
#[test]
fn a_failing_init_at_start_up_is_quarantined() {
    for option in ["quarantine", "unload"] {
        let daemon = builder()
            .option(&format!("OnPluginFailure \"{option}\""))
            .load_plugin("badstart")
            .start();
        let failed = daemon.assert_state("badstart", "FAILED");
        assert!(failed.field("error").contains("status 42"), "{failed:?}");
        notify(&daemon);
        eventually("skipped calls", SOON, || {
            let skipped = daemon.plugin("badstart")?.field("skipped").parse::<u64>();
            (skipped.ok()? >= 3).then_some(())
        });
        assert_eq!(daemon.last_value_of("badstart"), None);
        daemon
            .reload("badstart", &[])
            .expect_refused(&["has not registered as unloadable"]);
        let log = daemon.stop_with_status(INIT_FAILED);
        assert!(!log.contains("The notification callback runs."));
        assert!(!log.contains("The next init callback runs."));
        assert_eq!(
            log.contains("because it cannot be unloaded"),
            option == "unload"
        );
    }
}

/// Proves that it is unloaded if the option says so, and can be loaded again.
#[test]
fn a_failing_init_at_start_up_is_unloaded() {
    let daemon = builder()
        .option("OnPluginFailure \"unload\"")
        .load_plugin("badinit")
        .start();
    eventually("badinit to go", SOON, || {
        daemon.plugin("badinit").is_none().then_some(())
    });
    daemon.assert_gone("badinit");
    daemon
        .load("badinit", &[("config", "Fail false")])
        .expect_ok();
    daemon.wait_for_value_of("badinit");
    daemon.stop_with_status(INIT_FAILED);
}

/// Proves that the daemon stops if the option says so.
#[test]
fn a_failing_init_at_start_up_stops_the_daemon() {
    let (status, log, _) = builder()
        .option("OnPluginFailure \"shutdown\"")
        .load_plugin("badinit")
        .start_in_vain();
    assert_eq!(status.code(), Some(INIT_FAILED));
    assert!(log.contains("failed with status -1. The daemon stops."));
    assert!(log.contains("Exiting normally."));
}

/// Proves that a value of the option that is not known keeps the daemon from
/// starting.
#[test]
fn an_unknown_value_of_the_option_is_refused() {
    for value in ["\"reboot\"", "true", "\"\""] {
        let (status, log, stderr) = builder()
            .option(&format!("OnPluginFailure {value}"))
            .start_in_vain();
        assert!(!status.success());
        let all = format!("{log}{stderr}");
        assert!(
            all.contains("`OnPluginFailure' needs to be"),
            "{value}: {all}"
        );
    }
}
