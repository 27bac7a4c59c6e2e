//! The examples in the documents are what a reader would see.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use collectd_live_tests::{build_dir, Daemon, Variant};

/// Makes what differs from run to run look the same: numbers, and the white
/// space that lines up columns.
fn normalise(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| {
            let mut shape = String::new();
            for c in line
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .chars()
            {
                let number = c.is_ascii_digit() || c == '.' && shape.ends_with('#');
                if !number {
                    shape.push(c);
                } else if !shape.ends_with('#') {
                    shape.push('#');
                }
            }
            shape
        })
        .collect()
}

/// Asserts that every line of `wanted` is in `got`, in this order. A list may
/// have more: the plugins of the test itself.
#[track_caller]
fn assert_shown(command: &str, wanted: &str, got: &str) {
    let lines = normalise(got);
    let mut rest = lines.iter();
    for line in normalise(wanted) {
        assert!(
            rest.any(|candidate| *candidate == line),
            "{command}\nis documented to show\n{wanted}\nbut shows\n{got}\nThe line looked for: {line}"
        );
    }
}

fn daemon() -> Daemon {
    let builder = Daemon::builder(Variant::Patched);
    let data = builder.path("csv");
    builder
        .load_plugin("csv")
        .plugin_block("csv", &format!("DataDir \"{}\"", data.display()))
        .load_plugin("entropy")
        .load_plugin("memory")
        .available("cpu")
        .available("load")
        .start()
}

/// Proves that the commands on the README's first screen work as shown there.
#[test]
fn the_commands_of_the_readme_show_what_it_says() {
    let readme = include_str!("../../../README.md");
    let block = readme
        .split("```")
        .nth(1)
        .expect("an example in the README");
    let daemon = daemon();
    let client = build_dir().join("prefix/bin/collectdctl");

    let mut commands = 0;
    for example in block.trim().split("$ ").skip(1) {
        // A command goes on for as long as a quote is open.
        let mut end = 0;
        for line in example.split_inclusive('\n') {
            end += line.len();
            if example[..end].matches('\'').count() % 2 == 0 {
                break;
            }
        }
        let (command, wanted) = (example[..end].trim_end(), &example[end..]);
        let output = Command::new("bash")
            .arg("-c")
            .arg(format!(
                "collectdctl() {{ \"$CLIENT\" -s \"$SOCKET\" \"$@\"; }}; {{ {command}; }} 2>&1"
            ))
            .env("CLIENT", &client)
            .env("SOCKET", daemon.socket())
            .output()
            .expect("running bash");
        assert_shown(command, wanted, &String::from_utf8_lossy(&output.stdout));
        commands += 1;
    }
    assert_eq!(commands, 4, "commands in the example of the README");
    daemon.stop();
}

/// Proves that the conversations in `collectd-unixsock(5)` about plugins take
/// place as printed there.
#[test]
fn the_conversations_of_the_manual_take_place() {
    let pod = build_dir().join("patched/tree/src/collectd-unixsock.pod");
    let pod = fs::read_to_string(&pod).unwrap_or_else(|e| panic!("{}: {e}", pod.display()));
    let daemon = daemon();

    for (verb, before) in [
        ("LISTPLUGINS", r#"LOADPLUGIN cpu config="Nonsense maybe""#),
        ("LOADPLUGIN", "UNLOADPLUGIN cpu"),
        ("UNLOADPLUGIN", "LISTPLUGINS"),
        ("RELOADPLUGIN", "LOADPLUGIN cpu"),
    ] {
        daemon.ctl(before);
        let item = pod
            .split(&format!("=item B<{verb}>"))
            .nth(1)
            .unwrap_or_else(|| panic!("the manual does not know {verb}"));
        let example = item
            .split("Example:\n")
            .nth(1)
            .unwrap_or_else(|| panic!("{verb} has no example"));

        let mut lines = example
            .lines()
            .map(str::trim)
            .take_while(|line| !line.is_empty())
            .peekable();
        let mut commands = 0;
        while let Some(line) = lines.next() {
            let command = line
                .strip_prefix("-> | ")
                .unwrap_or_else(|| panic!("{verb}: not a command: {line}"));
            let mut wanted = Vec::new();
            while let Some(answer) = lines.next_if(|l| l.starts_with("<- | ")) {
                wanted.push(answer.trim_start_matches("<- | "));
            }
            let reply = daemon.ctl(command);
            let got = format!(
                "{} {}\n{}",
                reply.status,
                reply.text,
                reply.lines.join("\n")
            );
            assert_shown(command, &wanted.join("\n"), &got);
            commands += 1;
        }
        assert!(commands > 0, "{verb}: the example is empty");
    }
    daemon.stop();
}

/// The plugins that bring their own control socket and log, without which the
/// harness cannot do.
const OF_THE_HARNESS: [&str; 2] = ["logfile", "unixsock"];

/// Proves that the plugins of which `collectd.conf(5)` says that they can be
/// unloaded can be, and no others: each that is built is loaded, without a
/// configuration, and unloaded.
#[test]
fn the_manual_lists_the_plugins_that_can_be_unloaded() {
    let pod = build_dir().join("patched/tree/src/collectd.conf.pod");
    let pod = fs::read(&pod).unwrap_or_else(|e| panic!("{}: {e}", pod.display()));
    let pod = String::from_utf8_lossy(&pod);
    let list = pod
        .split_once("Those are\n")
        .and_then(|(_, rest)| rest.split_once(';'))
        .map(|(list, _)| list)
        .expect("the list of plugins that can be unloaded");
    let listed: BTreeSet<String> = list
        .split("B<")
        .skip(1)
        .filter_map(|item| item.split_once('>'))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert!(listed.len() > 20, "{list}");

    let daemon = Daemon::builder(Variant::Patched).start();
    let built: BTreeSet<String> = fs::read_dir(Variant::Patched.prefix().join("lib/collectd"))
        .expect("the directory of the plugins")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| Some(file.strip_suffix(".so")?.to_owned()))
        .collect();
    let missing: Vec<&String> = listed.difference(&built).collect();
    assert!(missing.is_empty(), "not built: {missing:?}");

    for name in &built {
        if OF_THE_HARNESS.contains(&name.as_str()) {
            continue;
        }
        daemon.provide(name);
        // Without a configuration it may fail, which makes no difference.
        daemon.load(name, &[]);
        let plugin = daemon
            .plugin(name)
            .unwrap_or_else(|| panic!("{name} has not been loaded"));
        let in_manual = listed.contains(name)
            || name.starts_with("match_")
            || name.starts_with("target_")
            || name == "monitor";
        assert_eq!(plugin.field("unloadable") == "yes", in_manual, "{plugin:?}");
        if in_manual {
            daemon.unload(name).expect_ok();
            assert_eq!(daemon.plugin(name), None);
        } else {
            daemon.unload(name).expect_refused(&["not registered"]);
        }
    }
    daemon.stop();
}
