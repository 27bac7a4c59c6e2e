//! Who may do what on the control socket.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use collectd_live_tests::{may_change_user, skip, Builder, Collectdctl, Daemon, Variant};

/// A group that every Debian has, and one that nobody in these tests is in.
const DAEMON: u32 = 1;
const NOGROUP: u32 = 65534;

/// Proves that a user who can open the socket but is neither root nor the
/// daemon's may see names and states, and nothing else; and may change nothing.
#[test]
fn an_unprivileged_user_may_list_names_and_states_only() {
    if !may_change_user() {
        skip(
            "an_unprivileged_user_may_list_names_and_states_only",
            "root, to become another user",
        );
        return;
    }
    let daemon = Daemon::builder(Variant::Patched)
        .open_to_all_users()
        .load_plugin("memory")
        .available("cpu")
        .start();

    let listing = daemon.collectdctl_as_nobody(&["listplugins"]);
    assert_eq!(listing.code, Some(0), "{listing:?}");
    let lines: Vec<Vec<&str>> = listing
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let (titles, rows) = lines.split_first().expect("a title");
    assert_eq!(*titles, ["NAME", "STATE"], "not just names and states");
    let expected = ["logfile", "memory", "unixsock"].map(|name| vec![name, "READY"]);
    assert_eq!(rows, expected, "not just names and states");

    for args in [
        ["loadplugin", "cpu"],
        ["unloadplugin", "memory"],
        ["reloadplugin", "memory"],
    ] {
        let refused = daemon.collectdctl_as_nobody(&args);
        assert_ne!(refused.code, Some(0), "{refused:?}");
        assert!(refused.stderr.contains("Permission denied"), "{refused:?}");
    }
    daemon.assert_gone("cpu");
    let memory = daemon.assert_state("memory", "READY");
    assert_eq!(memory.field("generation"), "1");
    daemon.wait_for_value_of("memory");
    daemon.stop();
}

/// A daemon with the control group `daemon`, whose file has the plugin `memory`.
fn with_control_group() -> Builder {
    Daemon::builder(Variant::Patched)
        .open_to_all_users()
        .plugin_block("unixsock", "ControlGroup \"daemon\"")
        .load_plugin("memory")
        .available("cpu")
        .available("exec")
        .available("judge")
}

/// Runs `collectdctl` as a member of the control group.
fn as_member(daemon: &Daemon, args: &[&str]) -> Collectdctl {
    daemon.collectdctl_as(NOGROUP, &[DAEMON], args)
}

#[track_caller]
fn assert_done(result: &Collectdctl) {
    assert_eq!(result.code, Some(0), "{result:?}");
}

#[track_caller]
fn assert_denied(result: &Collectdctl, why: &str) {
    assert_ne!(result.code, Some(0), "{result:?}");
    assert!(result.stderr.contains("Permission denied"), "{result:?}");
    assert!(result.stderr.contains(why), "{result:?}");
}

/// Proves that members of the control group, by their group or by a supplementary
/// one, can use what is in the configuration file, and that nobody else can.
#[test]
fn the_control_group_uses_what_is_on_disk() {
    if !may_change_user() {
        skip(
            "the_control_group_uses_what_is_on_disk",
            "root, to become another user",
        );
        return;
    }
    let daemon = with_control_group().start();

    for (gid, groups) in [(DAEMON, &[][..]), (NOGROUP, &[50, DAEMON, 60])] {
        for args in [
            ["reloadplugin", "memory"],
            ["unloadplugin", "memory"],
            ["loadplugin", "memory"],
        ] {
            assert_done(&daemon.collectdctl_as(gid, groups, &args));
        }
        assert_eq!(
            daemon.assert_state("memory", "READY").field("origin"),
            "file"
        );
        let listing = daemon.collectdctl_as(gid, groups, &["listplugins"]);
        assert!(listing.stdout.contains("GEN"), "{listing:?}");
    }
    for (gid, groups) in [(NOGROUP, &[][..]), (NOGROUP, &[50, 60])] {
        assert_denied(
            &daemon.collectdctl_as(gid, groups, &["reloadplugin", "memory"]),
            "and the group `daemon'",
        );
    }

    let file = daemon.path("file");
    fs::write(&file, "ValuesAbsolute true\n").expect("a file");
    let configfile = format!("configfile={}", file.display());
    for (args, why) in [
        (
            &["reloadplugin", "memory", "config=ValuesAbsolute true"][..],
            "may not give a configuration",
        ),
        (
            &["reloadplugin", "memory", &configfile],
            "may not give a configuration",
        ),
        (
            &["reloadplugin", "memory", "interval=1"],
            "may give no option",
        ),
        (
            &["reloadplugin", "memory", "onfailure=shutdown"],
            "may give no option",
        ),
        (&["loadplugin", "cpu"], "does not have this plugin"),
        (&["loadplugin", "exec"], "plugins that run code"),
    ] {
        assert_denied(&as_member(&daemon, args), why);
    }
    assert_eq!(
        daemon.assert_state("memory", "READY").field("generation"),
        "5"
    );
    daemon.assert_gone("cpu");
    daemon.assert_gone("exec");
    daemon.stop();
}

/// Proves that without the option nobody is a member, and that a group that does
/// not exist is told of and has none.
#[test]
fn there_is_no_control_group_by_default() {
    if !may_change_user() {
        skip(
            "there_is_no_control_group_by_default",
            "root, to become another user",
        );
        return;
    }
    for option in [None, Some("ControlGroup \"no such group\"")] {
        let mut builder = Daemon::builder(Variant::Patched)
            .open_to_all_users()
            .load_plugin("memory");
        if let Some(option) = option {
            builder = builder.plugin_block("unixsock", option);
        }
        let daemon = builder.start();
        if option.is_some() {
            daemon.wait_for_log("Cannot find the group `no such group': there is none");
        }
        for (gid, groups) in [(DAEMON, &[][..]), (NOGROUP, &[0, DAEMON])] {
            assert_denied(
                &daemon.collectdctl_as(gid, groups, &["reloadplugin", "memory"]),
                "not user ID 65534",
            );
        }
        daemon.stop();
    }
}

/// Proves that a plugin's policy is asked about what root wants as well, that every
/// decision is reported, and that members of the control group cannot get rid of it.
#[test]
fn a_policy_decides() {
    if !may_change_user() {
        skip("a_policy_decides", "root, to become another user");
        return;
    }
    let builder = with_control_group();
    let audit = builder.path("audit");
    let daemon = builder
        .load_plugin("judge")
        .plugin_block(
            "judge",
            &format!("Audit \"{}\"\nRefuse \"ReportByCpu\"", audit.display()),
        )
        .start();

    daemon
        .load("cpu", &[("config", "ReportByCpu false")])
        .expect_refused(&[
            "Permission denied",
            "`ReportByCpu' is not allowed",
            "Nothing has been changed",
        ]);
    daemon.assert_gone("cpu");
    daemon
        .load("cpu", &[("config", "ValuesPercentage true")])
        .expect_ok();
    assert_denied(
        &daemon.collectdctl_as_nobody(&["unloadplugin", "cpu"]),
        "not user ID 65534",
    );
    // With a policy, members may do what that allows.
    assert_done(&as_member(
        &daemon,
        &["reloadplugin", "cpu", "config=ReportByState false"],
    ));
    assert_denied(
        &as_member(
            &daemon,
            &["reloadplugin", "cpu", "config=Include \"/etc/passwd\""],
        ),
        "may not include files",
    );
    assert_denied(
        &as_member(&daemon, &["unloadplugin", "judge"]),
        "may not change the plugin that decides",
    );
    daemon.unload("nosuch").expect_refused(&["not loaded"]);
    daemon
        .load("cpu", &[("config", "secret secret")])
        .expect_refused(&["already loaded"]);

    let expected = [
        "refused load cpu owner 0 `ReportByCpu' is not allowed",
        "allowed load cpu owner 0 ",
        "refused unload cpu other 65534 this user may list plugins, but not change them",
        "allowed reload cpu group 65534 ",
        "refused reload cpu group 65534 members of the control group may not include files",
        "refused unload judge group 65534 members of the control group may not change the plugin that decides what they may do",
        "allowed unload nosuch owner 0 ",
        "allowed load cpu owner 0 ",
    ];
    let written = fs::read_to_string(&audit).expect("the audit");
    assert_eq!(written.lines().collect::<Vec<_>>(), expected);

    // Root can get rid of it. What is left is the daemon's own rule.
    daemon.unload("judge").expect_ok();
    assert!(!daemon.is_mapped("judge"));
    daemon
        .reload("cpu", &[("config", "ReportByCpu false")])
        .expect_ok();
    assert_denied(
        &as_member(
            &daemon,
            &["reloadplugin", "cpu", "config=ReportByState false"],
        ),
        "may not give a configuration",
    );

    // One that does not work stops everybody but root.
    daemon
        .load("judge", &[("config", "")])
        .expect_refused(&["FAILED"]);
    assert_denied(
        &as_member(&daemon, &["reloadplugin", "memory"]),
        "plugin \"judge\", which decides, is FAILED",
    );
    daemon.reload("memory", &[]).expect_ok();
    daemon.stop();
}

/// Proves that a file that is no configuration does not get into answers, nor into
/// the log, and that members of the control group cannot even have it opened.
#[test]
fn answers_do_not_quote_files() {
    if !may_change_user() {
        skip("answers_do_not_quote_files", "root, to become another user");
        return;
    }
    let builder = with_control_group();
    let audit = builder.path("audit");
    let daemon = builder
        .load_plugin("judge")
        .plugin_block("judge", &format!("Audit \"{}\"", audit.display()))
        .start();
    let file = daemon.path("shadow");
    let path = file.display().to_string();

    for (text, place) in [
        ("root:$6$xyzzy$xyzzy:19000:0:99999:7:::\n", "line 1"),
        ("# A comment\nxyzzy = plugh\n", "line 2"),
        ("Password \"xyzzy\nplugh\n", "line "),
        ("<xyzzy>\nPlugh 1\n</plugh>\n", "block not closed"),
        (
            "<Plugin memory>\n</Plugin>\nXyzzy \"plugh\"\n<Plugin memory>\nPlugh 1\n</Plugin>\n",
            "line 3",
        ),
    ] {
        fs::write(&file, text).expect("a file");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("its mode");
        let answer = daemon
            .reload("memory", &[("configfile", &path)])
            .expect_refused(&[&path, place]);
        let denied = as_member(
            &daemon,
            &["reloadplugin", "memory", &format!("configfile={path}")],
        );
        assert_ne!(denied.code, Some(0), "{denied:?}");
        let included = daemon
            .reload("memory", &[("config", &format!("Include \"{path}\""))])
            .expect_refused(&["memory"]);
        for said in [answer, denied.stderr, included, daemon.log()] {
            for secret in ["xyzzy", "plugh", "$6$"] {
                assert!(!said.to_lowercase().contains(secret), "{said}");
            }
        }
    }
    assert_eq!(
        daemon.assert_state("memory", "READY").field("generation"),
        "1"
    );
    daemon.stop();
}
