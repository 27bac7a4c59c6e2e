//! A daemon that never uses the new commands behaves as stock does.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use collectd_live_tests::{eventually, Daemon, Variant};

/// What one run of a daemon left behind.
struct Run {
    /// The log in order, without the values that write_log puts in it.
    log: Vec<String>,
    /// What the thread of the control socket logged beside that.
    control: Vec<String>,
    /// The identifiers in the order in which write_log first saw them.
    order: Vec<String>,
    /// The identifiers that LISTVAL gives.
    listed: BTreeSet<String>,
    /// The files that csv wrote, without the date.
    files: BTreeSet<String>,
}

/// One reader and one writer, so that the order of what happens is fixed.
fn run(variant: Variant) -> Run {
    let builder = Daemon::builder(variant)
        .log_option("Timestamp false")
        .option("ReadThreads 1")
        .option("WriteThreads 1");
    let data = builder.path("csv");
    let daemon = builder
        .load_plugin("cpu")
        .load_plugin("memory")
        .load_plugin("load")
        .load_plugin("uptime")
        .load_plugin("write_log")
        .load_plugin("csv")
        .plugin_block("cpu", "ReportByCpu true\nReportByState true")
        .plugin_block("csv", &format!("DataDir \"{}\"", data.display()))
        .plugin_block("nosuch", "Option true")
        .start();
    // The last reader has had two turns.
    for _ in 0..2 {
        daemon.wait_for_value_of("uptime");
    }
    let files = eventually("the files of csv", Duration::from_secs(20), || {
        let files = csv_files(&data);
        files
            .iter()
            .any(|file| file.starts_with("uptime/"))
            .then_some(files)
    });
    let listed = daemon.listval().into_keys().collect();
    let directory = daemon.path("").display().to_string();
    let log = daemon.stop();

    let mut run = Run {
        log: Vec::new(),
        control: Vec::new(),
        order: Vec::new(),
        listed,
        files,
    };
    for line in log.lines() {
        // A value is "[info] write_log values:" and then a line of its own.
        if let Some(value) = line.strip_prefix("testhost.") {
            let identifier = value.split(' ').next().unwrap_or_default().to_owned();
            if !run.order.contains(&identifier) {
                run.order.push(identifier);
            }
        } else if line.contains("set_thread_name(\"unixsock conn\")") {
            // A connection that ended before its thread got its name: the
            // harness has many short ones, and both daemons may log this.
        } else if line.contains("Not sleeping because the next interval is") {
            // What the machine has to do beside decides whether this comes.
        } else if line.contains("unixsock plugin") {
            run.control.push(line.to_owned());
        } else if !line.is_empty() && !line.contains("write_log values:") {
            run.log.push(line.replace(&directory, "DIR/"));
        }
    }
    run
}

/// The files below csv's directory, as "<plugin>/<type>".
fn csv_files(data: &Path) -> BTreeSet<String> {
    let list = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten();
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect::<Vec<_>>()
    };
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    list(&data.join("testhost"))
        .iter()
        .flat_map(|plugin| {
            list(plugin)
                .into_iter()
                .map(move |file| (plugin.clone(), file))
        })
        .map(|(plugin, file)| {
            let file = name(&file);
            // "-2026-11-22" at the end is the day.
            let kind = file
                .get(..file.len().saturating_sub(11))
                .unwrap_or_default();
            format!("{}/{kind}", name(&plugin))
        })
        .collect()
}

/// Proves that the patched daemon gives stock's log lines in stock's order and
/// stock's values, when both run side by side with the same configuration.
#[test]
fn start_up_gives_the_log_lines_and_values_of_stock() {
    let stock = run(Variant::Stock);
    let patched = run(Variant::Patched);
    assert_eq!(patched.log, stock.log, "the log lines differ");
    assert_eq!(
        patched.control, stock.control,
        "the log lines of the control socket differ"
    );
    assert!(
        !stock.order.is_empty(),
        "write_log wrote nothing that was understood"
    );
    assert_eq!(
        patched.order, stock.order,
        "the order of the values differs"
    );
    assert_eq!(patched.listed, stock.listed, "the values differ");
    assert_eq!(patched.files, stock.files, "the files of csv differ");
}

/// Proves that what stock refuses at start-up is refused in the same words.
#[test]
fn start_up_refuses_what_stock_refuses() {
    let run = |variant| {
        let builder = Daemon::builder(variant)
            .log_option("Timestamp false")
            .load_plugin("cpu");
        let (status, log, stderr) = builder
            .plugin_block("cpu", "ReportByCpu true\nUnknownOption true")
            .start_in_vain();
        // The first lines come before the log is configured, with the time.
        let stderr: Vec<String> = stderr
            .lines()
            .map(|line| line.rsplit("] ").next().unwrap_or_default().to_owned())
            .collect();
        (status, log, stderr)
    };
    let stock = run(Variant::Stock);
    assert!(!stock.0.success());
    assert_eq!(run(Variant::Patched), stock);
}

/// What the write threads say, if they have the time to.
const OF_WRITERS: [&str; 4] = [
    "write callback",
    "write plugins",
    "write target",
    "value list",
];

/// What `collectd -T` says of a configuration: its exit status, and its messages
/// in order, without the time and without those of the write threads.
fn read_once(variant: Variant, content: &str) -> (Option<i32>, Vec<String>) {
    let plugins = ["cpu", "memory", "load", "badstart"];
    let builder = plugins
        .iter()
        .fold(Daemon::builder(variant), |builder, plugin| {
            builder.available(plugin)
        });
    let file = builder.path("collectd.conf");
    let head = format!(
        "Hostname \"testhost\"\nFQDNLookup false\nBaseDir \"{}\"\nPluginDir \"{}\"\n\
         TypesDB \"{}\"\n",
        builder.path("").display(),
        builder.path("plugins").display(),
        variant.prefix().join("share/collectd/types.db").display()
    );
    fs::write(&file, head + content).expect("writing collectd.conf");
    let output = Command::new(variant.prefix().join("sbin/collectd"))
        .arg("-T")
        .arg("-C")
        .arg(&file)
        .current_dir(builder.path(""))
        .output()
        .expect("running collectd");
    let text = [output.stdout, output.stderr].concat();
    let directory = builder.path("").display().to_string();
    let lines = String::from_utf8_lossy(&text)
        .lines()
        .filter(|line| !OF_WRITERS.iter().any(|words| line.contains(words)))
        .map(|line| {
            let line = line.split_once("] ").map_or(line, |(_, rest)| rest);
            line.replace(&directory, "DIR/")
        })
        .collect();
    (output.status.code(), lines)
}

/// Proves that `collectd -T` reads, complains and ends as stock does.
#[test]
fn a_single_read_is_that_of_stock() {
    let mut statuses = BTreeSet::new();
    for content in [
        "LoadPlugin cpu\nLoadPlugin memory\nLoadPlugin load\n",
        "LoadPlugin cpu\nLoadPlugin badstart\n",
        "LoadPlugin cpu\n<Plugin cpu>\nNosuch true\n</Plugin>\n",
        "LoadPlugin nosuch\n",
        "",
    ] {
        let stock = read_once(Variant::Stock, content);
        assert_eq!(read_once(Variant::Patched, content), stock, "{content}");
        statuses.insert(stock.0);
    }
    assert!(statuses.len() > 1, "no difference between good and bad");
}
