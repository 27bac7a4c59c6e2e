//! What LISTPLUGINS, `collectdctl listplugins` and CollectInternalStats tell.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use collectd_live_tests::{build_dir, eventually, own_address, Daemon, Variant};

/// The kinds of callbacks that a plugin is listed with.
fn callbacks(daemon: &Daemon, plugin: &str) -> String {
    daemon
        .plugin(plugin)
        .unwrap_or_else(|| panic!("{plugin} is not listed"))
        .field("callbacks")
        .to_owned()
}

/// Proves that callbacks are counted by kind, under the plugin that has
/// registered them, whether in `module_register` or while it is configured.
#[test]
fn callbacks_are_listed_by_kind() {
    let builder = Daemon::builder(Variant::Patched);
    let data = builder.path("csv");
    let daemon = builder
        .load_plugin("cpu")
        .load_plugin("entropy")
        .load_plugin_with("csv", "FlushInterval 10")
        .plugin_block("csv", &format!("DataDir \"{}\"", data.display()))
        .start();

    assert_eq!(
        callbacks(&daemon, "cpu"),
        "read:1,init:1,shutdown:1,config:1"
    );
    assert_eq!(callbacks(&daemon, "entropy"), "read:1");
    assert_eq!(callbacks(&daemon, "csv"), "write:1,shutdown:1,config:1");
    assert_eq!(
        callbacks(&daemon, "logfile"),
        "log:1,notification:1,config:1"
    );

    let cpu = daemon.assert_state("cpu", "READY");
    assert_eq!(cpu.field("unloadable"), "yes");
    assert_eq!(cpu.field("resident"), "no");
    assert!(!cpu.fields.contains_key("reason"), "{cpu:?}");
    let entropy = daemon.assert_state("entropy", "READY");
    assert_eq!(entropy.field("unloadable"), "no");
    assert!(!entropy.fields.contains_key("resident"), "{entropy:?}");
    let refusal = daemon
        .unload("entropy")
        .expect_refused(&["cannot be unloaded"]);
    assert!(
        refusal.contains(entropy.field("reason")),
        "LISTPLUGINS and UNLOADPLUGIN give different reasons: {refusal}, {entropy:?}"
    );
    daemon.stop();
}

/// Proves that a plugin is listed with the time of its last change of state and
/// with the threads that it has: those of `statsd` end when it is unloaded.
#[test]
fn the_last_change_and_the_threads_are_listed() {
    // In milliseconds, as they are listed.
    fn now() -> f64 {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        (time.expect("a clock after 1970").as_secs_f64() * 1e3).floor() / 1e3
    }
    let daemon = Daemon::builder(Variant::Patched)
        .available("badconfig")
        .available("statsd")
        .start();
    let since = |state: &str| -> f64 {
        let plugin = daemon.assert_state("badconfig", state);
        plugin.field("since").parse().expect("a time")
    };

    let mut before = now();
    for (config, state) in [("Number 1", "READY"), ("Refuse true", "FAILED")] {
        daemon.load("badconfig", &[("config", config)]);
        let entered = since(state);
        assert!(
            before <= entered && entered <= now() + 1e-3,
            "{state} since {entered}, but the command was given at {before}"
        );
        assert_eq!(since(state).to_bits(), entered.to_bits());
        daemon.unload("badconfig").expect_ok();
        before = now();
    }

    let address = own_address(28_125);
    let config = format!("Host \"{}\"\nPort \"{}\"", address.ip(), address.port());
    daemon.load("statsd", &[("config", &config)]).expect_ok();
    let statsd = daemon.assert_state("statsd", "READY");
    assert_eq!(statsd.field("threads"), "1", "{statsd:?}");
    daemon.unload("statsd").expect_ok();
    daemon.assert_gone("statsd");
    daemon.stop();
}

/// Proves that the list can be asked for at any moment: what it goes through is
/// not freed under its hands, and what does not change is always told alike.
#[test]
fn the_list_is_told_while_plugins_come_and_go() {
    const ROUNDS: usize = 60;
    let daemon = Daemon::builder(Variant::Asan)
        .load_plugin("memory")
        .available("badconfig")
        .available("cpu")
        .start();
    let expected = callbacks(&daemon, "memory");
    let running = AtomicUsize::new(2);
    thread::scope(|scope| {
        for plugin in ["badconfig", "cpu"] {
            let (daemon, running) = (&daemon, &running);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    daemon.load(plugin, &[]).expect_ok();
                    daemon.unload(plugin).expect_ok();
                }
                running.fetch_sub(1, Ordering::Release);
            });
        }
        while running.load(Ordering::Acquire) > 0 {
            assert_eq!(callbacks(&daemon, "memory"), expected);
        }
    });
    daemon.assert_gone("badconfig");
    daemon.assert_gone("cpu");
    daemon.stop();
}

/// Proves that a name which nobody has heard of leaves nothing behind in the
/// daemon: memory does not grow with the number of names.
#[test]
fn unknown_names_leave_nothing_behind() {
    const NAMES: usize = 20_000;
    let daemon = Daemon::builder(Variant::Patched)
        .load_plugin("memory")
        .start();
    // What the first refusals take, they take for good.
    let ask = |from: usize, to: usize| {
        for i in from..to {
            let name = format!("no_such_plugin_with_a_long_name_{i:0>80}");
            daemon
                .load(&name, &[])
                .expect_refused(&["no such plugin", "Nothing has been changed"]);
        }
    };
    ask(0, 2_000);
    let before = daemon.status().rss_kib;
    ask(2_000, NAMES);
    let after = daemon.status().rss_kib;
    // A record and its name take some 400 bytes.
    let records = (NAMES as u64 - 2_000) * 400 / 1024;
    assert!(
        after < before + records / 4,
        "resident memory went from {before} to {after} KiB, records would take {records}"
    );
    daemon.stop();
}

/// Proves that the table of `collectdctl listplugins` has a title and aligned
/// columns, and that those who are told less get fewer columns.
#[test]
fn the_client_prints_a_table() {
    let daemon = Daemon::builder(Variant::Patched)
        .load_plugin("memory")
        .available("oddwords")
        .start();
    let calm = daemon.collectdctl(&["listplugins"]);
    assert_eq!(calm.code, Some(0), "{calm:?}");
    assert!(!calm.stdout.contains("LAST ERROR"), "{calm:?}");

    // The answer is not UTF-8, which the harness's own client insists on.
    let loaded = daemon.collectdctl(&["loadplugin", "oddwords"]);
    assert!(loaded.stderr.contains("FAILED"), "{loaded:?}");
    let table = daemon.collectdctl(&["listplugins"]).stdout;
    let lines: Vec<&str> = table.lines().collect();
    let titles = [
        "NAME",
        "STATE",
        "GEN",
        "SINCE",
        "ORIGIN",
        "UNLOADABLE",
        "CALLBACKS",
        "CALLS",
        "THREADS",
        "SKIPPED",
        "LAST ERROR",
    ];
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>().join(" "),
        titles.join(" ")
    );
    let pod = build_dir().join("patched/tree/src/collectdctl.pod");
    let pod = fs::read(&pod).unwrap_or_else(|e| panic!("{}: {e}", pod.display()));
    assert!(
        String::from_utf8_lossy(&pod)
            .lines()
            .any(|line| line.split_whitespace().eq(titles.join(" ").split(' '))),
        "the manual shows other columns"
    );
    assert_eq!(lines.len(), 5, "{table}");
    for line in &lines[1..] {
        for title in titles {
            let at = lines[0].find(title).expect("a title");
            let (before, cell) = line.as_bytes().split_at(at);
            assert!(
                before.last().is_none_or(|c| *c == b' ') && cell[0] != b' ',
                "the column {title} is not aligned in\n{table}"
            );
        }
    }
    let row: Vec<&str> = lines[3].split_whitespace().collect();
    assert_eq!(row[..3], ["oddwords", "FAILED", "1"]);
    assert_eq!(row[4..7], ["runtime", "yes", "init:1"]);
    assert!(lines[3].contains("\"quoted\", back\\slash"), "{table}");
    daemon.stop();
}

/// Proves that `collectdctl -j listplugins` prints JSON that a program which knows
/// nothing of collectd can read, whatever the errors contain.
#[test]
fn the_client_prints_json() {
    let daemon = Daemon::builder(Variant::Patched)
        .load_plugin("memory")
        .load_plugin("entropy")
        .available("oddwords")
        .start();
    let loaded = daemon.collectdctl(&["loadplugin", "oddwords"]);
    assert!(loaded.stderr.contains("FAILED"), "{loaded:?}");
    let json = daemon.collectdctl(&["-j", "listplugins"]);
    assert_eq!(json.code, Some(0), "{json:?}");

    let list: Vec<Value> = serde_json::from_str(&json.stdout)
        .unwrap_or_else(|e| panic!("not JSON: {e}\n{}", json.stdout));
    let plugin = |name: &str| {
        list.iter()
            .find(|plugin| plugin["name"] == name)
            .unwrap_or_else(|| panic!("{name} is not listed: {}", json.stdout))
    };

    let memory = plugin("memory");
    assert_eq!(memory["state"], "READY");
    assert_eq!(memory["generation"], 1);
    assert!(memory["since"].is_f64(), "{memory}");
    assert_eq!(memory["origin"], "file");
    assert_eq!(memory["unloadable"], true);
    assert_eq!(memory["resident"], false);
    assert_eq!(
        memory["callbacks"],
        serde_json::json!({"read": 1, "init": 1, "config": 1})
    );
    assert_eq!(memory["error"], Value::Null);

    let entropy = plugin("entropy");
    assert_eq!(entropy["unloadable"], false);
    assert!(entropy["reason"].is_string(), "{entropy}");

    let odd = plugin("oddwords");
    assert_eq!(odd["state"], "FAILED");
    let error = odd["error"].as_str().expect("an error");
    assert!(
        error
            .starts_with("\"quoted\", back\\slash, {brace}, caf\u{e9}, tab line \u{fffd}\u{fffd} "),
        "{odd}"
    );

    let refused = daemon.collectdctl(&["-j", "listval"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("-j is for listplugins only"),
        "{refused:?}"
    );
    daemon.stop();
}

/// Proves that CollectInternalStats reports the plugins by state, the skipped
/// calls and how operations ended, beside what stock reports.
#[test]
fn internal_statistics_count_plugins_and_operations() {
    let daemon = Daemon::builder(Variant::Patched)
        .option("CollectInternalStats true")
        .load_plugin("memory")
        .available("badconfig")
        .start();
    daemon.wait_for_value_of("collectd");
    let wait_for = |what: &str, number: f64| {
        eventually(
            &format!("{number} for {what}"),
            Duration::from_secs(20),
            || {
                daemon
                    .getval(&format!("collectd-plugins/{what}"))
                    .filter(|n| *n == number)
            },
        );
    };
    for (what, number) in [
        ("count-ready", 3.0),
        ("count-failed", 0.0),
        ("count-loading", 0.0),
        ("count-configuring", 0.0),
        ("count-initializing", 0.0),
        ("count-draining", 0.0),
    ] {
        wait_for(what, number);
    }

    daemon
        .load("badconfig", &[("config", "Refuse true")])
        .expect_refused(&["FAILED"]);
    wait_for("count-failed", 1.0);
    wait_for("count-ready", 3.0);
    // The reader of what has failed is due ten times a second.
    eventually("calls that are skipped", Duration::from_secs(20), || {
        daemon
            .getval("collectd-plugins/derive-skipped")
            .filter(|rate| *rate > 0.0)
    });
    daemon.load("badconfig", &[]).expect_ok();
    wait_for("count-failed", 0.0);
    wait_for("count-ready", 4.0);

    let names: BTreeMap<String, f64> = daemon.listval();
    for name in [
        "collectd-write_queue/queue_length",
        "collectd-write_queue/derive-dropped",
        "collectd-cache/cache_size",
        "collectd-plugins/operations-done",
        "collectd-plugins/operations-failed",
        "collectd-plugins/operations-refused",
    ] {
        assert!(names.contains_key(name), "{name} is not in {names:?}");
    }
    daemon.stop();
}
