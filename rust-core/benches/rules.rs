//! What rules cost in a real daemon: the time on a processor for each value, of the threads that write values and
//! of those that evaluate rules, the share of values that did not reach them, and the time from a value's
//! dispatch to the start of a command. Needs what `ci/build` installs.
//!
//! `cargo bench --bench rules`, with a number of values as an argument if it is to be another than 100000.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark prints, and ends when something is wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use collectd_live_tests::{eventually, Daemon, Variant};

const DEADLINE: Duration = Duration::from_secs(300);
const HANDLERS: [usize; 5] = [0, 1, 10, 100, 1000];
const COMMANDS: usize = 30;

#[derive(Clone, Copy, PartialEq)]
enum Rules {
    /// The monitor is not loaded.
    NoMonitor,
    /// Each handler is called for each value, and does nothing.
    Plain(usize),
    /// Each handler names a plugin, and no value is of it.
    Matched(usize),
    /// The plain ones, each in a file with a state of its own.
    Isolated(usize),
}

impl Rules {
    fn write(self, dir: &Path) {
        let body = "handler = function(t) if t.plugin == 'nosuch' then return {} end end";
        let (count, isolated) = match self {
            Rules::NoMonitor => return,
            Rules::Plain(count) | Rules::Matched(count) => (count, false),
            Rules::Isolated(count) => (count, true),
        };
        let mut text = String::from("return {\n");
        for number in 0..count {
            let matches = match self {
                Rules::Matched(_) => format!("match = {{ plugin = 'nosuch{number}' }}, "),
                _ => String::new(),
            };
            let handler = format!("h{number} = {{ {matches}{body} }},\n");
            if isolated {
                let file = format!("-- monitor: isolated\nreturn {{ {handler} }}\n");
                fs::write(dir.join(format!("{number}.lua")), file).unwrap();
            }
            text.push_str(&handler);
        }
        text.push_str("}\n");
        if !isolated {
            fs::write(dir.join("rules.lua"), text).unwrap();
        }
    }
}

impl std::fmt::Display for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Rules::NoMonitor => "no monitor".to_owned(),
            Rules::Plain(count) => format!("{count} plain"),
            Rules::Matched(count) => format!("{count} with a match"),
            Rules::Isolated(count) => format!("{count} plain, isolated"),
        };
        f.pad(&text)
    }
}

struct Cost {
    /// Of the write threads and the rules' threads, for each value.
    writers: f64,
    rules: f64,
    dropped: f64,
}

/// Dispatches values as fast as the daemon takes them.
fn measure(rules: Rules, values: u32, write_threads: u32) -> Cost {
    let builder = Daemon::builder(Variant::Patched)
        .option(&format!("WriteThreads {write_threads}"))
        .available("monitor")
        .available("bench");
    let (dir, done) = (builder.path("rules"), builder.path("done"));
    fs::create_dir(&dir).unwrap();
    rules.write(&dir);
    let mut block = format!(
        "LocalMonitorConfigDir \"{}\"\nLogLevel \"info\"\n",
        dir.display()
    );
    write!(block, "RuleQueue {}", values.min(100_000)).unwrap();
    let daemon = builder.start();
    if rules != Rules::NoMonitor {
        daemon.load("monitor", &[("config", &block)]).expect_ok();
        if rules != Rules::Isolated(0) {
            daemon.wait_for_log("rules are in force");
        }
    }
    let used = |threads: &[&str]| daemon.time_on_cpu(threads);
    let before = (used(&["writer#"]), used(&["monitor-lua"]));
    let config = format!(
        "Values {values}\nWriters 1\nOnce true\nDone \"{}\"",
        done.display()
    );
    daemon.load("bench", &[("config", &config)]).expect_ok();
    eventually("all values are written", DEADLINE, || {
        done.exists().then_some(())
    });
    let writers = used(&["writer#"]) - before.0;
    // The rules have seen all that they are to see when they use no more time.
    let mut last = used(&["monitor-lua"]);
    let mut still = 0;
    eventually("the rules are done", DEADLINE, || {
        let now = used(&["monitor-lua"]);
        still = if now == last { still + 1 } else { 0 };
        last = now;
        (still > 40).then_some(())
    });
    let log = daemon.stop();
    let dropped = log.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("in_all=")?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    });
    let each = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(values);
    Cost {
        writers: each(writers),
        rules: each(last - before.1),
        dropped: dropped.unwrap_or_default() / f64::from(values),
    }
}

/// From the time of a value to a command's own look at the clock.
fn latency() -> Vec<f64> {
    let builder = Daemon::builder(Variant::Patched)
        .load_plugin("seqread")
        .available("monitor");
    let (dir, stamps) = (builder.path("rules"), builder.path("stamps"));
    fs::create_dir(&dir).unwrap();
    let rule = "return { match = { plugin = 'seqread' }, handler = function(t)
        collectd.log_info(string.format('value at %.6f', t.time))
        return { service = 'clock', command = 'look' } end }";
    fs::write(dir.join("rules.lua"), rule).unwrap();
    let daemon = builder.start();
    let block = format!(
        "LocalMonitorConfigDir \"{}\"\nLogLevel \"info\"\n<Service \"clock\">\nCommand \"look\" \"date +%s.%N >> {}\"\n</Service>",
        dir.display(),
        stamps.display()
    );
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    let ran: Vec<f64> = eventually("the commands ran", DEADLINE, || {
        let text = fs::read_to_string(&stamps).ok()?;
        let times: Vec<f64> = text.lines().flat_map(str::parse).collect();
        (times.len() >= COMMANDS).then_some(times)
    });
    let log = daemon.stop();
    let values: Vec<f64> = log
        .lines()
        .filter_map(|line| line.split_once("value at ")?.1.trim().parse().ok())
        .collect();
    // The command that looked at this time was asked for by the value before it.
    let mut took: Vec<f64> = ran
        .iter()
        .filter_map(|ran| {
            let value = values.iter().rfind(|value| *value <= ran)?;
            Some((ran - value) * 1e3)
        })
        .collect();
    took.sort_by(f64::total_cmp);
    took
}

fn main() {
    let values = std::env::args()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(100_000);
    if !collectd_live_tests::build_dir()
        .join("prefix/lib/collectd/monitor.so")
        .is_file()
    {
        println!("there is no collectd with a monitor: run ci/build first");
        return;
    }
    let base = measure(Rules::NoMonitor, values, 5);
    println!("{values} values, 5 write threads; ns of CPU for each value");
    println!("rules                    write threads    more    rules    lost");
    let mut cases = vec![];
    cases.extend(HANDLERS.map(Rules::Plain));
    cases.extend(HANDLERS[1..].iter().map(|count| Rules::Matched(*count)));
    cases.extend([Rules::Isolated(1), Rules::Isolated(2)]);
    println!(
        "{:<24} {:>13.0} {:>7} {:>8} {:>7}",
        Rules::NoMonitor,
        base.writers,
        "",
        "",
        ""
    );
    for case in cases {
        let cost = measure(case, values, 5);
        println!(
            "{:<24} {:>13.0} {:>7.0} {:>8.0} {:>6.1}%",
            case,
            cost.writers,
            cost.writers - base.writers,
            cost.rules,
            cost.dropped * 100.0
        );
    }
    let took = latency();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!(
        "from the dispatch of a value to its command's first look at the clock: median {:.1} ms, 90 % {:.1} ms",
        at(0.5),
        at(0.9)
    );
}
