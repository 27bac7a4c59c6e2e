//! Plugins come, go and come back with another configuration.

use std::fs;
use std::time::Duration;

use collectd_live_tests::{eventually, Builder, Daemon, Variant};

const DEADLINE: Duration = Duration::from_secs(20);

/// Reports one value, `cpu/percent-active`.
const CPU_IN_TOTAL: &str = "ReportByCpu false\nReportByState false\nValuesPercentage true";

/// Reports `cpu-0/cpu-idle` and many more.
const CPU_IN_DETAIL: &str = "ReportByCpu true\nReportByState true";

fn daemon_with_others() -> Builder {
    Daemon::builder(Variant::Patched)
        .load_plugin("memory")
        .load_plugin("load")
        .available("cpu")
}

#[track_caller]
fn wait_for_identifier(daemon: &Daemon, identifier: &str) {
    eventually(&format!("the value {identifier}"), DEADLINE, || {
        daemon.listval().remove(identifier)
    });
}

#[track_caller]
fn wait_until_expired(daemon: &Daemon, plugin: &str) {
    eventually(&format!("no value of {plugin}"), DEADLINE, || {
        daemon.last_value_of(plugin).is_none().then_some(())
    });
}

/// Proves the main job: a plugin is loaded with a configuration of its own, is
/// listed and reports; is unloaded, leaves the list and the process's memory
/// map; comes back with another configuration that is in force. The others
/// report all the time.
#[test]
fn a_plugin_comes_goes_and_comes_back_configured_anew() {
    let daemon = daemon_with_others().start();
    daemon.assert_gone("cpu");
    assert_eq!(
        daemon.assert_state("memory", "READY").field("origin"),
        "file"
    );

    daemon.load("cpu", &[("config", CPU_IN_TOTAL)]).expect_ok();
    let cpu = daemon.assert_state("cpu", "READY");
    assert_eq!(cpu.field("origin"), "runtime");
    assert_eq!(cpu.field("unloadable"), "yes");
    assert_eq!(cpu.field("generation"), "1");
    wait_for_identifier(&daemon, "cpu/percent-active");
    assert!(!daemon.listval().contains_key("cpu-0/cpu-idle"));

    daemon.unload("cpu").expect_ok();
    daemon.assert_gone("cpu");
    daemon.wait_for_value_of("memory");
    daemon.wait_for_value_of("load");
    wait_until_expired(&daemon, "cpu");

    daemon.load("cpu", &[("config", CPU_IN_DETAIL)]).expect_ok();
    assert_eq!(daemon.assert_state("cpu", "READY").field("generation"), "2");
    wait_for_identifier(&daemon, "cpu-0/cpu-idle");
    assert!(!daemon.listval().contains_key("cpu/percent-active"));
    daemon.wait_for_value_of("memory");
    daemon.wait_for_value_of("load");
    daemon.stop();
}

/// Proves that every plugin that is opted in can be unloaded and loaded again
/// when it came with the configuration file, and reports afterwards.
#[test]
fn every_plugin_that_opted_in_can_be_unloaded_and_loaded_again() {
    const OPTED_IN: [&str; 4] = ["cpu", "memory", "load", "uptime"];
    let daemon = OPTED_IN
        .iter()
        .fold(Daemon::builder(Variant::Patched), |b, p| b.load_plugin(p))
        .start();
    for plugin in OPTED_IN {
        daemon.wait_for_value_of(plugin);
        daemon.unload(plugin).expect_ok();
        daemon.assert_gone(plugin);
        daemon.load(plugin, &[]).expect_ok();
        daemon.wait_for_value_of(plugin);
    }
    daemon.stop();
}

/// Proves that a plugin that is loaded without a configuration takes its block
/// from collectd.conf, as it stands at that moment.
#[test]
fn a_plugin_loaded_without_a_configuration_uses_its_block_in_the_file() {
    let daemon = daemon_with_others()
        .plugin_block("cpu", CPU_IN_TOTAL)
        .start();
    daemon.load("cpu", &[]).expect_ok();
    wait_for_identifier(&daemon, "cpu/percent-active");
    assert!(!daemon.listval().contains_key("cpu-0/cpu-idle"));
    daemon.stop();
}

/// Proves that whole blocks of the plugin are taken as well as their content.
#[test]
fn a_configuration_may_be_whole_blocks() {
    let daemon = daemon_with_others().start();
    let blocks = format!(
        "<LoadPlugin cpu>\nInterval 0.05\n</LoadPlugin>\n<Plugin cpu>\n{CPU_IN_TOTAL}\n</Plugin>"
    );
    daemon.load("cpu", &[("config", &blocks)]).expect_ok();
    wait_for_identifier(&daemon, "cpu/percent-active");
    assert!(!daemon.listval().contains_key("cpu-0/cpu-idle"));
    daemon.stop();
}

/// Proves that a configuration can stand in a file, and that a relative path, its own
/// or that of what it includes, starts from BaseDir.
#[test]
fn a_configuration_may_stand_in_a_file() {
    let daemon = daemon_with_others().start();
    let file = daemon.path("cpu.conf");
    fs::write(&file, format!("<Plugin cpu>\n{CPU_IN_TOTAL}\n</Plugin>\n")).unwrap();
    daemon
        .load("cpu", &[("configfile", &file.display().to_string())])
        .expect_ok();
    wait_for_identifier(&daemon, "cpu/percent-active");
    assert!(!daemon.listval().contains_key("cpu-0/cpu-idle"));

    fs::create_dir(daemon.path("more")).unwrap();
    fs::write(daemon.path("more/load.conf"), "Include \"more/x.conf\"\n").unwrap();
    fs::write(daemon.path("more/x.conf"), "ReportRelative true\n").unwrap();
    daemon
        .reload("load", &[("configfile", "more/load.conf")])
        .expect_ok();
    wait_for_identifier(&daemon, "load/load-relative");
    daemon
        .reload("load", &[("configfile", "load.conf")])
        .expect_refused(&["load.conf"]);
    daemon.stop();
}

/// Proves that the interval of the command is the plugin's: the daemon's own is
/// an hour.
#[test]
fn the_interval_of_the_command_is_in_force() {
    let daemon = Daemon::builder(Variant::Patched)
        .interval("3600")
        .available("uptime")
        .start();
    daemon.load("uptime", &[("interval", "0.05")]).expect_ok();
    for _ in 0..5 {
        daemon.wait_for_value_of("uptime");
    }
    daemon.stop();
}

/// Proves that a reload puts a new configuration in force.
#[test]
fn a_reload_puts_the_new_configuration_in_force() {
    let daemon = daemon_with_others().available("badconfig").start();
    daemon
        .load("badconfig", &[("config", "Number 1")])
        .expect_ok();
    eventually("the first number", DEADLINE, || {
        daemon.getval("badconfig/count").filter(|n| *n == 1.0)
    });
    daemon
        .reload("badconfig", &[("config", "Number 2")])
        .expect_ok();
    daemon.assert_state("badconfig", "READY");
    eventually("the second number", DEADLINE, || {
        daemon.getval("badconfig/count").filter(|n| *n == 2.0)
    });
    daemon.stop();
}

/// Proves that a reload with a configuration that the plugin refuses puts the
/// old one back in force, and says so; and that one that does not parse changes
/// nothing.
#[test]
fn a_reload_that_fails_puts_the_old_configuration_back() {
    let daemon = daemon_with_others().available("badconfig").start();
    daemon
        .load("badconfig", &[("config", "Number 7")])
        .expect_ok();
    daemon.wait_for_value_of("badconfig");

    daemon
        .reload("badconfig", &[("config", "Number 8\nRefuse true")])
        .expect_refused(&["badconfig", "old configuration"]);
    daemon.assert_state("badconfig", "READY");
    daemon.wait_for_value_of("badconfig");
    assert_eq!(daemon.getval("badconfig/count"), Some(7.0));

    daemon
        .reload("badconfig", &[("config", "Number 8\nNumber")])
        .expect_refused(&["badconfig", "line 2"]);
    daemon.assert_state("badconfig", "READY");
    daemon.wait_for_value_of("badconfig");
    assert_eq!(daemon.getval("badconfig/count"), Some(7.0));
    daemon.wait_for_value_of("memory");
    daemon.stop();
}
