//! What is refused: with a reason that names the place, and without any effect
//! on the rest of the daemon.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use collectd_live_tests::{eventually, Builder, Daemon, Reply, Variant};

/// The longest control line that is accepted.
const LINE_LIMIT: usize = 256 * 1024;

fn daemon_with_memory() -> Builder {
    Daemon::builder(Variant::Patched)
        .load_plugin("memory")
        .available("cpu")
}

/// All plugins with what does not change by itself.
#[track_caller]
fn plugins_and_states(daemon: &Daemon) -> Vec<(String, String, String)> {
    let plugins = daemon.plugins().into_iter();
    plugins
        .map(|p| {
            (
                p.name.clone(),
                p.state.clone(),
                p.field("generation").to_owned(),
            )
        })
        .collect()
}

/// Checks that a command is refused with a reason that contains `parts`, that no
/// plugin changes and that the others go on.
#[track_caller]
fn assert_refused_without_effect(daemon: &Daemon, parts: &[&str], command: impl Fn() -> Reply) {
    let before = plugins_and_states(daemon);
    command().expect_refused(parts);
    assert_eq!(
        plugins_and_states(daemon),
        before,
        "a refused command changed the plugins"
    );
    daemon.assert_alive();
    daemon.wait_for_value_of("memory");
}

/// Proves that an unknown plugin is refused by its name.
#[test]
fn an_unknown_plugin_is_refused() {
    let daemon = daemon_with_memory().start();
    assert_refused_without_effect(&daemon, &["nosuch"], || daemon.load("nosuch", &[]));
    assert_refused_without_effect(&daemon, &["nosuch"], || daemon.unload("nosuch"));
    assert_refused_without_effect(&daemon, &["nosuch"], || daemon.reload("nosuch", &[]));
    daemon.stop();
}

/// Proves that a name cannot lead out of the plugin directory.
#[test]
fn a_name_that_is_a_path_is_refused() {
    let daemon = daemon_with_memory().start();
    fs::create_dir(daemon.path("plugins/sub")).unwrap();
    fs::copy(
        daemon.path("plugins/cpu.so"),
        daemon.path("plugins/sub/cpu.so"),
    )
    .unwrap();
    fs::copy(daemon.path("plugins/cpu.so"), daemon.path("outside.so")).unwrap();
    let absolute = daemon.path("plugins/cpu").display().to_string();
    for name in ["sub/cpu", "../outside", "..", ".", "/", &absolute, ""] {
        assert_refused_without_effect(&daemon, &["name"], || daemon.load(name, &[]));
    }
    assert!(!daemon.is_mapped("cpu") && !daemon.is_mapped("sub/cpu"));
    daemon.stop();
}

/// Proves that a symbolic link in the plugin directory is not followed.
#[test]
fn a_symbolic_link_in_the_plugin_directory_is_refused() {
    let daemon = daemon_with_memory().start();
    fs::copy(daemon.path("plugins/cpu.so"), daemon.path("elsewhere.so")).unwrap();
    symlink(
        daemon.path("elsewhere.so"),
        daemon.path("plugins/linked.so"),
    )
    .unwrap();
    assert_refused_without_effect(&daemon, &["linked"], || daemon.load("linked", &[]));
    daemon.stop();
}

/// Proves that a shared object that is no plugin, and a file that is no shared
/// object, are refused and not kept in memory.
#[test]
fn an_object_that_is_no_plugin_is_refused() {
    let daemon = daemon_with_memory().available("noreg").start();
    assert_refused_without_effect(&daemon, &["noreg", "module_register"], || {
        daemon.load("noreg", &[])
    });
    daemon.assert_gone("noreg");

    fs::write(daemon.path("plugins/rubbish.so"), "not a shared object").unwrap();
    assert_refused_without_effect(&daemon, &["rubbish"], || daemon.load("rubbish", &[]));
    daemon.assert_gone("rubbish");
    daemon.stop();
}

/// Proves that only a plugin that said so can be unloaded or reloaded.
#[test]
fn a_plugin_that_did_not_opt_in_cannot_be_unloaded() {
    let daemon = daemon_with_memory().load_plugin("stubborn").start();
    assert_eq!(
        daemon.assert_state("stubborn", "READY").field("unloadable"),
        "no"
    );
    assert_refused_without_effect(&daemon, &["stubborn", "unload"], || {
        daemon.unload("stubborn")
    });
    assert_refused_without_effect(&daemon, &["stubborn", "unload"], || {
        daemon.reload("stubborn", &[])
    });
    daemon.wait_for_value_of("stubborn");
    daemon.stop();
}

/// Proves that loading what is loaded, and unloading what is not, is refused.
#[test]
fn a_command_that_does_not_fit_the_state_is_refused() {
    let daemon = daemon_with_memory().start();
    assert_refused_without_effect(&daemon, &["memory", "already"], || {
        daemon.load("memory", &[])
    });
    assert_refused_without_effect(&daemon, &["cpu", "not loaded"], || daemon.unload("cpu"));
    assert_refused_without_effect(&daemon, &["cpu", "not loaded"], || {
        daemon.reload("cpu", &[])
    });
    daemon.stop();
}

/// Proves that an option that the command does not know, or a value that does
/// not fit, is refused by its name.
#[test]
fn an_option_that_the_command_does_not_know_is_refused() {
    let daemon = daemon_with_memory().start();
    for (key, value) in [
        ("colour", "blue"),
        ("interval", "soon"),
        ("interval", "-1"),
        ("interval", "0"),
        ("interval", "inf"),
        ("interval", "nan"),
        ("globals", "perhaps"),
        ("timeout", ""),
    ] {
        assert_refused_without_effect(&daemon, &[key], || daemon.load("cpu", &[(key, value)]));
    }
    assert_refused_without_effect(&daemon, &["config"], || {
        daemon.load(
            "cpu",
            &[("config", "ReportByCpu true"), ("configfile", "/dev/null")],
        )
    });
    assert_refused_without_effect(&daemon, &["config"], || {
        daemon.ctl("UNLOADPLUGIN memory config=\"\"")
    });
    daemon.stop();
}

/// Proves that a configuration that does not parse changes nothing, and that the
/// reason names the line as the sender counts it.
#[test]
fn a_configuration_that_does_not_parse_is_refused_by_its_line() {
    let daemon = daemon_with_memory().start();
    for (config, line) in [
        ("ReportByCpu < true", "line 1"),
        (
            "ReportByCpu true\nReportByState < true\nReportByCpu true",
            "line 2",
        ),
        ("ReportByCpu true\n\n# a comment\nReportByState", "line 4"),
        ("<Plugin cpu>\nReportByCpu true\n</Wrong>", "line 3"),
    ] {
        assert_refused_without_effect(&daemon, &[line], || {
            daemon.load("cpu", &[("config", config)])
        });
        daemon.assert_gone("cpu");
    }
    daemon.stop();
}

/// Proves that one broken configuration leaves no trace in how the next one is
/// read: not even a string that never ends, which used to swallow it.
#[test]
fn a_broken_configuration_does_not_harm_the_next_one() {
    let daemon = daemon_with_memory().start();
    for unterminated in [
        "ReportByCpu \"tru\\\n  e",
        "ReportByCpu true\nReportByState \"a\nb\nc",
        "<Plugin cpu>\nReportByCpu true",
    ] {
        daemon
            .load("cpu", &[("config", unterminated)])
            .expect_refused(&["line"]);
        daemon
            .load(
                "cpu",
                &[(
                    "config",
                    "ReportByCpu true\nReportByState true\nReportByCpu < true",
                )],
            )
            .expect_refused(&["line 3"]);
        daemon.assert_gone("cpu");

        daemon
            .load("cpu", &[("config", "ReportByCpu true\nReportByState true")])
            .expect_ok();
        daemon.wait_for_value_of("cpu");
        daemon.unload("cpu").expect_ok();
    }
    daemon.stop();
}

/// Proves that a string without its closing quote is an error, also on the last
/// line, where stock reads it as if the quote were not there.
#[test]
fn a_string_that_never_ends_is_refused() {
    let daemon = daemon_with_memory().start();
    assert_refused_without_effect(&daemon, &["line 2"], || {
        daemon.load(
            "cpu",
            &[("config", "ReportByCpu true\nReportByState \"tru")],
        )
    });
    daemon.assert_gone("cpu");
    daemon.stop();
}

/// Proves that a configuration file that cannot be used is refused by its path.
#[test]
fn a_configuration_file_that_cannot_be_used_is_refused() {
    let daemon = daemon_with_memory().start();
    let foreign = daemon.path("foreign.conf");
    fs::write(
        &foreign,
        "<Plugin memory>\nValuesAbsolute false\n</Plugin>\n",
    )
    .unwrap();
    let broken = daemon.path("broken.conf");
    fs::write(&broken, "<Plugin cpu>\n\nReportByCpu\n</Plugin>\n").unwrap();
    let directory = daemon.path("directory.conf");
    fs::create_dir(&directory).unwrap();
    let missing = daemon.path("missing.conf");

    for (file, parts) in [
        (&missing, ["missing.conf", ""]),
        (&directory, ["directory.conf", ""]),
        (&foreign, ["foreign.conf", "line 1"]),
        (&broken, ["broken.conf", "line 3"]),
    ] {
        let file = file.display().to_string();
        assert_refused_without_effect(&daemon, &parts, || {
            daemon.load("cpu", &[("configfile", &file)])
        });
        daemon.assert_gone("cpu");
    }
    daemon.stop();
}

/// Proves that a configuration may hold the named plugin's blocks only: neither
/// another plugin's nor global options can be slipped in.
#[test]
fn a_configuration_of_something_else_is_refused() {
    let daemon = daemon_with_memory().start();
    for (config, place) in [
        ("<Plugin memory>\nValuesAbsolute false\n</Plugin>", "line 1"),
        (
            "<Plugin cpu>\nReportByCpu true\n</Plugin>\nLoadPlugin load",
            "line 4",
        ),
        (
            "<Plugin cpu>\nReportByCpu true\n</Plugin>\nHostname \"other\"",
            "line 4",
        ),
    ] {
        assert_refused_without_effect(&daemon, &["`config'", place], || {
            daemon.load("cpu", &[("config", config)])
        });
        daemon.assert_gone("cpu");
    }
    daemon.stop();
}

/// Proves that a line over the limit is refused whole, whatever it is, and that
/// the connection goes on; and that a line just below the limit is carried out.
#[test]
fn a_line_over_the_limit_is_refused_whole() {
    let daemon = daemon_with_memory().start();
    let mut connection = daemon.connect();
    let load = |length: usize| {
        let (head, tail) = ("LOADPLUGIN cpu config=\"#", "\\nReportByCpu true\"");
        format!(
            "{head}{}{tail}",
            "x".repeat(length - head.len() - tail.len())
        )
    };

    for line in ["x".repeat(1 << 20), load(1 << 20), load(LINE_LIMIT + 1)] {
        connection
            .command(&line)
            .unwrap()
            .expect_refused(&["too long"]);
        connection.command("LISTVAL").unwrap().expect_ok();
    }
    daemon.assert_gone("cpu");
    daemon.wait_for_value_of("memory");

    connection.command(&load(LINE_LIMIT)).unwrap().expect_ok();
    daemon.assert_state("cpu", "READY");
    daemon.stop();
}

/// Proves that a plugin that refuses its configuration is listed as failed with
/// the reason, reports nothing, and is mended by another load.
#[test]
fn an_unknown_option_fails_the_plugin_until_it_is_loaded_well() {
    let daemon = daemon_with_memory().start();
    daemon
        .load("cpu", &[("config", "ReportByCpu true\nNoSuchOption true")])
        .expect_refused(&["cpu", "NoSuchOption"]);
    let failed = daemon.assert_state("cpu", "FAILED");
    assert!(failed.field("error").contains("NoSuchOption"), "{failed:?}");
    daemon.wait_for_value_of("memory");
    assert_eq!(
        daemon.last_value_of("cpu"),
        None,
        "a failed plugin reports values"
    );

    daemon
        .load("cpu", &[("config", "ReportByCpu true")])
        .expect_ok();
    let mended = daemon.assert_state("cpu", "READY");
    assert!(!mended.fields.contains_key("error"), "{mended:?}");
    daemon.wait_for_value_of("cpu");
    daemon.stop();
}

/// Proves the same for a plugin whose init callback fails. Its reader aborts the
/// daemon if it is called all the same.
#[test]
fn a_failing_init_fails_the_plugin_until_it_is_loaded_well() {
    let daemon = daemon_with_memory().available("badinit").start();
    daemon
        .load("badinit", &[])
        .expect_refused(&["badinit", "init"]);
    let failed = daemon.assert_state("badinit", "FAILED");
    assert!(failed.field("error").contains("init"), "{failed:?}");
    // The reader's turn comes every 0.1 s, and is skipped each time.
    eventually(
        "skipped calls of the reader",
        Duration::from_secs(20),
        || {
            let skipped = daemon
                .plugin("badinit")?
                .field("skipped")
                .parse::<u64>()
                .ok()?;
            (skipped >= 3).then_some(())
        },
    );

    daemon
        .load("badinit", &[("config", "Fail false")])
        .expect_ok();
    daemon.assert_state("badinit", "READY");
    daemon.wait_for_value_of("badinit");
    daemon.unload("badinit").expect_ok();
    daemon.assert_gone("badinit");
    daemon.stop();
}

/// Proves that a plugin that failed can be unloaded instead of mended.
#[test]
fn a_failed_plugin_can_be_unloaded() {
    let daemon = daemon_with_memory().available("badconfig").start();
    daemon
        .load("badconfig", &[("config", "Refuse true")])
        .expect_refused(&["badconfig"]);
    daemon.assert_state("badconfig", "FAILED");
    daemon.unload("badconfig").expect_ok();
    daemon.assert_gone("badconfig");
    daemon.wait_for_value_of("memory");
    daemon.stop();
}

/// Proves that no malformed line ends the daemon. The first one used to.
#[test]
fn malformed_lines_do_not_harm_the_daemon() {
    let daemon = daemon_with_memory().start();
    let quotes = "\"".repeat(1000);
    let fields = "x ".repeat(1000);
    for line in [
        r#"PUTVAL "a""b""c""d""e""f""g""#,
        r#"PUTVAL "a"b"c"d"e"f"g"#,
        "PUTVAL",
        "PUTVAL \"",
        "PUTVAL \"a",
        "PUTVAL a/b/c",
        "PUTVAL a/b/count N:1:2:3",
        "PUTVAL a/b/count\0N:1",
        "GETVAL",
        "GETVAL \"\"",
        "GETVAL \"\"\"\"",
        "GETTHRESHOLD",
        "FLUSH timeout=",
        "FLUSH plugin=\"",
        "PUTNOTIF",
        "PUTNOTIF message=x",
        "PUTNOTIF severity=okay time=x message=x",
        "LOADPLUGIN",
        "LOADPLUGIN \"",
        "LOADPLUGIN cpu config=\"abc\\",
        "UNLOADPLUGIN",
        "UNLOADPLUGIN memory timeout",
        "RELOADPLUGIN",
        "\\",
        "\"",
        &quotes,
        &fields,
    ] {
        daemon.ctl(line).expect_refused(&[]);
        daemon.assert_alive();
    }
    daemon.assert_state("memory", "READY");
    daemon.wait_for_value_of("memory");
    daemon.stop();
}
