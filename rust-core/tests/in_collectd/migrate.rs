//! `collectd-live migrate --check`: the daemon reads the configuration of a site of lua-collectd-monitor.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use collectd_live_tests::{skip, Variant};

use crate::prefix;

fn migrate(configuration: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_collectd-live"))
        .args(["migrate", "--check", "--collectd"])
        .arg(Variant::Patched.prefix().join("sbin/collectd"))
        .arg(configuration)
        .args(arguments)
        .output()
        .expect("the program can be run")
}

#[test]
fn a_site_is_told_what_to_write_instead() {
    if !prefix().join("lib/collectd/monitor.so").is_file() {
        skip(
            "a_site_is_told_what_to_write_instead",
            "a collectd that was configured --with-collectd-live",
        );
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let json = path("config.json");
    fs::create_dir(path("conf.d")).expect("a directory");
    fs::write(
        path("collectd.conf"),
        format!("Include \"{}/*.conf\"\n", path("conf.d").display()),
    )
    .expect("a file");
    let lua = format!(
        "<LoadPlugin lua>\n  Globals true\n</LoadPlugin>\n<Plugin lua>\n  BasePath \"/usr/local/share/lua/5.1\"\n  \
         Script \"collectd/monitor/remote.lua\"\n  <Module \"collectd/monitor/remote.lua\">\n    \
         MonitorConfigPath \"{}\"\n  </Module>\n</Plugin>\n",
        json.display()
    );
    fs::write(path("conf.d/lua.conf"), lua).expect("a file");
    let config = r#"{ "Host": "h", "CommandTopic": "c", "ReconnectInterval": 5,
        "Services": { "hello": { "commands": { "exec": "echo Hello" } } } }"#;
    fs::write(&json, config).expect("a file");

    let output = migrate(&path("collectd.conf"), &[]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let place = path("conf.d/lua.conf");
    assert!(
        stdout.contains(&format!("{}:1: LoadPlugin lua", place.display())),
        "{stdout}"
    );
    assert!(
        stdout.contains(&format!("{}:4: Plugin lua", place.display())),
        "{stdout}"
    );
    assert!(
        stdout.contains("  <Plugin monitor>\n    MonitorConfigPath "),
        "{stdout}"
    );

    fs::write(&json, config.replace("echo Hello", "echo $ME")).expect("a file");
    let output = migrate(&path("collectd.conf"), &["--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["attention"], true);
    assert!(report["write"]
        .as_str()
        .unwrap()
        .starts_with("LoadPlugin monitor\n"));

    fs::write(path("other.conf"), "LoadPlugin cpu\n").expect("a file");
    for (file, why) in [
        ("other.conf", "no lua-collectd-monitor"),
        ("missing.conf", "No such file"),
    ] {
        let output = migrate(&path(file), &[]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(why), "{stderr}");
    }
}
