//! What `collectd-live generate` writes, and what the build installs: manual pages and completions.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use crate::support::{broker_is_installed, Broker};
use crate::{block, Running};

const PROGRAM: &str = env!("CARGO_BIN_EXE_collectd-live");

fn generate(directory: &Path) {
    let status = Command::new(PROGRAM)
        .arg("generate")
        .arg(directory)
        .status()
        .expect("the program can be run");
    assert!(status.success());
}

/// The names of the subcommands, as the help lists them.
fn subcommands() -> BTreeSet<String> {
    let output = Command::new(PROGRAM)
        .arg("--help")
        .output()
        .expect("the program can be run");
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let list = help.split("Commands:\n").nth(1).expect("a list");
    let names = list
        .lines()
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next());
    let names: BTreeSet<_> = names.map(str::to_owned).collect();
    names.into_iter().filter(|name| name != "help").collect()
}

/// The commands that a page shows.
fn examples(page: &str) -> Vec<String> {
    let parts = page.split(".EX\n").skip(1);
    let parts = parts.filter_map(|part| part.split(".EE\n").next());
    parts
        .flat_map(str::lines)
        .map(|line| line.replace("\\-", "-"))
        .collect()
}

#[test]
fn every_subcommand_has_a_page() {
    let dir = tempfile::tempdir().expect("a directory");
    generate(dir.path());
    let names = subcommands();
    assert!(
        names.contains("send-command") && names.contains("list"),
        "{names:?}"
    );
    let main = fs::read_to_string(dir.path().join("collectd-live.1")).expect("a page");
    for name in names {
        let path = dir.path().join(format!("collectd-live-{name}.1"));
        let page = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS"] {
            let quoted = format!(".SH \"{section}\"");
            let plain = format!(".SH {section}");
            assert!(
                page.contains(&quoted) || page.contains(&plain),
                "{section} in {page}"
            );
        }
        assert!(main.contains(&name.replace('-', "\\-")), "{name} in {main}");
    }
}

#[test]
fn the_examples_of_the_pages_work() {
    if !broker_is_installed("the_examples_of_the_pages_work") {
        return;
    }
    let broker = Broker::start();
    let mut of_host = block(&broker);
    of_host
        .children
        .retain(|option| !option.key.ends_with("Topic"));
    let of_host = of_host
        .with("CommandTopic", "commands/%h")
        .with("CommandResultTopic", "results/%h")
        .with("StatusTopic", "status/%h");
    let host = |name: &str| {
        let dir = Rc::new(tempfile::tempdir().expect("a directory"));
        Running::named(name, of_host.clone(), &dir).listening()
    };
    let _hosts = ["web1", "web2", "web3"].map(host);
    let dir = tempfile::tempdir().expect("a directory");
    generate(dir.path());
    let mut tried = 0;
    for name in ["send-command", "ping", "list"] {
        let path = dir.path().join(format!("collectd-live-{name}.1"));
        let page = fs::read_to_string(path).expect("a page");
        for example in examples(&page) {
            let line = example.replace("broker.example.com", &broker.address());
            let words = line.strip_prefix("collectd-live ").expect("our program");
            let output = Command::new("sh")
                .arg("-c")
                .arg(format!("exec {PROGRAM} {words}"))
                .output()
                .expect("a shell");
            assert!(output.status.success(), "{line}: {output:?}");
            assert!(!output.stdout.is_empty(), "{line}");
            tried += 1;
        }
    }
    assert_eq!(tried, 7);
}

#[test]
fn a_shell_completes_subcommands_and_options() {
    let dir = tempfile::tempdir().expect("a directory");
    generate(dir.path());
    for file in ["_collectd-live", "collectd-live.fish"] {
        let text = fs::read_to_string(dir.path().join(file)).expect("a file");
        assert!(text.contains("send-command"), "{text}");
    }
    for (words, expected) in [
        ("collectd-live send", "send-command"),
        ("collectd-live send-command --max", "--max-failures"),
    ] {
        let script = format!(
            "source {}; words=({words}); COMP_WORDS=(\"${{words[@]}}\"); COMP_CWORD=$((${{#words[@]}} - 1))
             function=$(complete -p collectd-live | sed 's/.*-F \\([^ ]*\\).*/\\1/')
             $function collectd-live \"${{words[-1]}}\" \"${{words[-2]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            dir.path().join("collectd-live.bash").display()
        );
        let output = Command::new("bash")
            .arg("-c")
            .arg(script)
            .output()
            .expect("bash can be run");
        let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
        assert_eq!(text.trim(), expected, "{words}: {output:?}");
    }
}
