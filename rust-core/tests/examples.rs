//! The rules of `examples/`: they are checked, and tried with the day that is recorded beside them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use collectd_live::rules::lua::Limits;
use collectd_live::rules::tool::{read_services, Tool};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn tool() -> Tool {
    let examples = root().join("examples");
    Tool {
        directory: examples.join("rules"),
        limits: Limits::default(),
        services: Some(read_services(&examples.join("config.json")).expect("services")),
        hostname: "node1".to_owned(),
    }
}

#[test]
fn nothing_is_wrong_with_them() {
    let findings = tool().check().expect("the files can be read");
    assert_eq!(findings, []);
}

#[test]
fn they_do_with_a_recorded_day_what_they_are_for() {
    let recorded = root().join("examples/recorded");
    let mut lines = String::new();
    let summary = tool().replay(&[recorded.join("day.jsonl")], 0, |happening| {
        lines.push_str(&happening.line());
        lines.push('\n');
    });
    let expected = fs::read_to_string(recorded.join("day.txt")).expect("what is expected");
    assert_eq!(lines, expected, "\n{lines}");
    let summary = summary.expect("the files can be read");
    assert_eq!(summary.failures, 0);
    assert_eq!(summary.unmatched, [""; 0]);
}

/// The program says the same, and its exit status tells whether anything is wrong.
#[test]
fn the_program_checks_and_tries_rules() {
    let examples = root().join("examples");
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_collectd-live"))
            .current_dir(&examples)
            .arg("rules")
            .args(arguments)
            .output()
            .expect("the program can be run")
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let config = ["--config", "config.json"];
    let checked = run(&[&["check", "rules"], &config[..]].concat());
    assert_eq!(
        (checked.status.code(), text(&checked.stdout)),
        (Some(0), String::new()),
        "{checked:?}"
    );

    let recorded = [
        "test",
        "rules",
        "--replay",
        "recorded/day.jsonl",
        "--hostname",
        "node1",
    ];
    let tried = run(&[&recorded[..], &config[..]].concat());
    let expected = fs::read_to_string(examples.join("recorded/day.txt")).expect("what is expected");
    let sum = "68 values and notifications, 7 actions, 0 failures of rules
";
    assert_eq!(text(&tried.stdout), format!("{expected}{sum}"));
    assert_eq!(tried.status.code(), Some(0));

    let tried = run(&[&recorded[..], &config[..], &["--json"]].concat());
    let stdout = text(&tried.stdout);
    let lines: Vec<serde_json::Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    assert_eq!(lines.len(), 13);
    assert_eq!(
        lines[0],
        serde_json::json!({ "time": "2026-01-01T00:00:40Z", "rule": "memory::metric::short", "event": "run",
            "series": "node1/memory/memory-free", "action": "web restart", "step": 0, "dry": false })
    );
    assert_eq!(lines[12]["event"], "summary");

    // A host without these services.
    let none = tempfile::NamedTempFile::new().expect("a file");
    fs::write(&none, r#"{ "Services": {} }"#).expect("a file");
    let none = none.path().to_str().expect("UTF-8");
    let checked = run(&["check", "rules", "--config", none]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(
        text(&checked.stdout).contains("disk:10: error: there is no service \"disk\""),
        "{checked:?}"
    );
    let wrong = run(&["check", "nowhere"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("nowhere: "), "{wrong:?}");
}

/// The manual's example is one of them.
#[test]
fn the_manual_shows_one_that_works() {
    let patches = root().join("collectd-patches");
    let example = fs::read_to_string(root().join("examples/rules/memory.lua")).expect("an example");
    let code: Vec<_> = example
        .lines()
        .filter(|line| !line.starts_with("--"))
        .map(|line| match line {
            "" => "+".to_owned(),
            line => format!("+  {line}"),
        })
        .collect();
    let manual = fs::read_to_string(patches.join("0406-pod-tasks-of-rules.patch"));
    let manual = manual.expect("the manual's patch");
    assert!(manual.contains(&code.join("\n")), "{}", code.join("\n"));
}
