//! Many commands, large ones, and such as leave something behind.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use collectd_live::clock::iso8601;
use collectd_live_tests::{eventually, patience, Builder, Daemon, Variant};
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use rustix::process::{kill_process, Signal};

use crate::support::{is_gone, process, Broker, Requester, Sender, SOON};
use crate::{block, can_run, listening, written, Site};

/// How many commands are run back to back, unless this says otherwise.
const COMMANDS: usize = 1000;
const COMMANDS_VARIABLE: &str = "COLLECTD_LIVE_COMMANDS";

/// mosquitto 2.0.11 does not send all of what had to wait until fewer messages were in flight.
const BROKER: &str =
    "allow_anonymous true\nmax_inflight_messages 1000\nmax_queued_messages 10000\n";

const SERVICES: &str = r#"{
    "hello": { "commands": { "exec": "echo Hello World!" } },
    "exit": { "commands": { "three": "exit 3" } },
    "count": { "commands": {
        "up": { "shell": "echo $$ >> DIR/count; echo counted", "concurrency": 8 },
        "helper": "echo $PPID" } },
    "much": { "commands": { "all": { "argv": ["/usr/bin/head", "-c", "100000000", "/dev/zero"] } } },
    "leave": { "commands": {
        "child": "sleep 3600 & echo $!",
        "daemon": "setsid -f sh -c 'echo $$ > DIR/daemon; exec sleep 3600'; echo begun" } }
}"#;

/// A daemon without the plugin exec, whose threads and pipes come and go.
fn plain() -> Builder {
    Daemon::builder(Variant::Patched)
        .load_plugin("uptime")
        .available("monitor")
}

fn site() -> Site {
    Site::at(Broker::with(BROKER), plain(), SERVICES)
}

/// A number of KiB in a process's status.
fn kib(pid: &str, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
    number.and_then(|text| text.parse().ok()).expect("a number")
}

fn entries(pid: &str, what: &str) -> usize {
    let path = format!("/proc/{pid}/{what}");
    fs::read_dir(path).expect("a process").count()
}

/// The process that runs the commands.
fn helper(site: &Site) -> String {
    site.sender.command("\"helper\"", "count", "helper");
    let pid = site.sender.code_and_message("\"helper\"").1;
    site.sender.take();
    pid
}

#[test]
fn commands_back_to_back_run_once_each_though_their_ids_repeat_and_memory_stays() {
    if !can_run("commands_back_to_back_run_once_each_though_their_ids_repeat_and_memory_stays") {
        return;
    }
    /// As many as run at once.
    const OUTSTANDING: usize = 8;
    /// How many task ids there are.
    const IDS: usize = 50;
    let count = env::var(COMMANDS_VARIABLE).map_or(COMMANDS, |text| {
        text.parse()
            .unwrap_or_else(|e| panic!("{COMMANDS_VARIABLE}={text:?}: {e}"))
    });
    let site = site();
    let daemon = site.daemon.pid().to_string();
    let helper = helper(&site);
    let processes = [daemon.as_str(), helper.as_str()];
    let look = || {
        processes.map(|pid| {
            (
                kib(pid, "RssAnon"),
                entries(pid, "fd"),
                entries(pid, "task"),
            )
        })
    };
    let warm = count / 4;
    let mut before = None;
    let mut answered = 0;
    let mut answers: BTreeMap<usize, usize> = BTreeMap::new();
    let mut sent = 0;
    let started = Instant::now();
    let first = SystemTime::now();
    while answered < count {
        while sent < count && sent - answered < OUTSTANDING {
            // The original's senders draw an id again and again; the time tells the tasks apart.
            let (task, second) = (sent % IDS, sent / IDS);
            let time = iso8601(first + Duration::from_secs(u64::try_from(second).expect("few")));
            let text = format!(
                r#"{{"task_id":{task},"timestamp":"{time}","service":"count","command":"up"}}"#
            );
            site.sender.publish("commands", text);
            sent += 1;
        }
        let results = eventually("another result", SOON, || {
            Some(site.sender.take()).filter(|results| !results.is_empty())
        });
        for text in results {
            let result: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(
                (&result["code"], &result["message"]),
                (&0.into(), &"counted".into()),
                "{text}"
            );
            let task = result["task_id"].as_u64().expect("a number");
            *answers
                .entry(usize::try_from(task).expect("small"))
                .or_default() += 1;
            answered += 1;
        }
        if answered >= warm && before.is_none() {
            before = Some(look());
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    for (task, times) in answers {
        assert_eq!(times, (count - task).div_ceil(IDS), "answers to {task}");
    }
    let ran = fs::read_to_string(site.daemon.path("count")).expect("a file");
    assert_eq!(ran.lines().count(), count);
    let before = before.expect("there was a first part");
    let rest = u64::try_from(count - warm).expect("a number");
    // What the journal knows of a task that is over, of which there are 16384 at most, and some room to breathe.
    for (known, (what, before)) in [160, 0]
        .into_iter()
        .zip(["daemon", "helper"].iter().zip(before))
    {
        let most = before.0 + rest * known / 1024 + 1024;
        let now = eventually(
            &format!("the {what} is as it was: {before:?}"),
            SOON,
            || {
                let [daemon, helper] = look();
                let now = if *what == "daemon" { daemon } else { helper };
                ((now.1, now.2) == (before.1, before.2)).then_some(now)
            },
        );
        eprintln!("{what}: {before:?}, {now:?}; {count} commands in {seconds:.1} s");
        assert!(now.0 <= most, "{what}: {now:?} after {before:?}");
    }
    site.works("\"last\"");
    site.daemon.stop();
}

#[test]
fn a_hundred_at_once_from_one_sender_are_all_run_and_answered() {
    if !can_run("a_hundred_at_once_from_one_sender_are_all_run_and_answered") {
        return;
    }
    let site = site();
    for task in 0..100 {
        site.sender.command(&task.to_string(), "count", "up");
    }
    for task in 0..100 {
        let expected = (0, "counted".to_owned());
        assert_eq!(site.sender.code_and_message(&task.to_string()), expected);
    }
    let ran = fs::read_to_string(site.daemon.path("count")).expect("a file");
    assert_eq!(ran.lines().count(), 100);
    assert_eq!(site.sender.received().len(), 100);
    site.daemon.stop();
}

#[test]
fn a_command_that_prints_a_hundred_megabytes_is_answered_and_takes_no_memory() {
    if !can_run("a_command_that_prints_a_hundred_megabytes_is_answered_and_takes_no_memory") {
        return;
    }
    let site = site();
    let helper = helper(&site);
    let daemon = site.daemon.pid().to_string();
    site.sender.command("1", "much", "all");
    assert_eq!(site.sender.code_and_message("1").0, 0);
    let before = [&daemon, &helper].map(|pid| {
        // From here on, the peak is a new one.
        fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("our own process");
        kib(pid, "VmRSS")
    });
    site.sender.command("2", "much", "all");
    let (code, message) = site.sender.code_and_message("2");
    assert_eq!(code, 0);
    let (output, mark) = message.split_at(65_536);
    assert!(output.bytes().all(|byte| byte == 0));
    assert_eq!(mark, "\n[truncated: 100000000 bytes in all]");
    for (pid, before) in [&daemon, &helper].iter().zip(before) {
        let peak = kib(pid, "VmHWM");
        assert!(peak < before + 3072, "{peak} KiB after {before} KiB");
    }
    site.works("3");
    site.daemon.stop();
}

#[test]
fn what_a_command_leaves_behind_neither_delays_its_result_nor_ends_with_the_daemon() {
    if !can_run("what_a_command_leaves_behind_neither_delays_its_result_nor_ends_with_the_daemon") {
        return;
    }
    let site = site();
    let started = Instant::now();
    // It holds what its parent printed to.
    site.sender.command("1", "leave", "child");
    let (code, child) = site.sender.code_and_message("1");
    assert_eq!(code, 0);
    site.sender.command("2", "leave", "daemon");
    let expected = (0, "begun".to_owned());
    assert_eq!(site.sender.code_and_message("2"), expected);
    assert!(started.elapsed() < patience(Duration::from_secs(20)));
    let daemon = written(&site.daemon.path("daemon"));
    site.works("3");
    let left = [process(&child), process(&daemon)];
    site.daemon.stop();
    for pid in left {
        assert!(
            !is_gone(&pid.to_string()),
            "{pid} was ended with the daemon"
        );
        kill_process(pid, Signal::KILL).expect("it is ours");
    }
}

/// A host whose state outlives its daemon.
struct Host {
    state: tempfile::TempDir,
    broker: Broker,
    protocol: &'static str,
}

impl Host {
    /// Starts its daemon, and waits until it listens.
    fn start(&self) -> Daemon {
        let builder = plain().load_plugin("monitor");
        let dir = self.state.path().display();
        let block = format!(
            "{}Protocol \"{}\"\nStateDir \"{dir}\"\n\
             <Service \"count\">\nCommand \"up\" \"echo up >> {dir}/count\"\n</Service>\n",
            block(&self.broker, self.state.path()),
            self.protocol,
        );
        let daemon = builder.plugin_block("monitor", &block).start();
        listening(&daemon, 1);
        daemon
    }
}

#[test]
fn a_host_that_was_offline_for_an_hour_runs_nothing_on_its_return() {
    if !can_run("a_host_that_was_offline_for_an_hour_runs_nothing_on_its_return") {
        return;
    }
    for (protocol, killed) in [("3.1.1", false), ("3.1.1", true), ("5", false), ("5", true)] {
        let host = Host {
            state: tempfile::tempdir().expect("a directory"),
            broker: Broker::with(BROKER),
            protocol,
        };
        let daemon = host.start();
        if killed {
            drop(daemon);
        } else {
            daemon.stop();
        }
        let sender = Sender::listen(&host.broker, "results");
        let requester = Requester::listen(&host.broker, "requester", &[]);
        // What would have been sent an hour ago, as the broker has kept it since.
        let hour_ago = iso8601(SystemTime::now() - Duration::from_secs(3600));
        let old = |task: usize, time: &str| {
            format!(r#"{{"task_id":{task},{time}"service":"count","command":"up"}}"#)
        };
        for task in 0..20 {
            sender.publish(
                "commands",
                old(task, &format!("\"timestamp\":\"{hour_ago}\",")),
            );
        }
        // The same without a time of its own.
        for task in 20..25 {
            sender.publish("commands", old(task, ""));
        }
        // Of this one, only the broker knows the age.
        let expiring = PublishProperties {
            message_expiry_interval: Some(1),
            ..PublishProperties::default()
        };
        let now = iso8601(SystemTime::now());
        let message = old(25, &format!("\"timestamp\":\"{now}\","));
        requester.publish("commands", &message, expiring);
        let expires = Instant::now() + Duration::from_secs(2);
        eventually(
            "the broker has all of it, and the last one has expired",
            SOON,
            || {
                let log = host.broker.log();
                let kept = log.matches("Received PUBREL from").count();
                (kept == 26 && Instant::now() > expires).then_some(())
            },
        );
        let daemon = host.start();
        sender.command("100", "count", "up");
        assert_eq!(sender.code_and_message("100").0, 0);
        for task in 0..25 {
            let code = sender.code_and_message(&task.to_string()).0;
            assert_eq!(code, 0x3008, "{task} with MQTT {protocol}");
        }
        assert_eq!(sender.results("25").len(), 0, "with MQTT {protocol}");
        let ran = fs::read_to_string(host.state.path().join("count")).expect("a file");
        assert_eq!(ran, "up\n", "with MQTT {protocol}");
        daemon.stop();
    }
}

/// The last value of each series of the monitor that is in the files of the plugin csv.
fn written_values(daemon: &Daemon) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    let csv = daemon.path("csv/testhost");
    for plugin in fs::read_dir(csv).into_iter().flatten().flatten() {
        let name = plugin.file_name().into_string().expect("UTF-8");
        let Some(instance) = name.strip_prefix("monitor-") else {
            continue;
        };
        for file in fs::read_dir(plugin.path()).expect("a directory").flatten() {
            let text = fs::read_to_string(file.path()).expect("a file");
            // A line that is being written is not whole yet.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let value = whole.lines().last().and_then(|line| line.split(',').nth(1));
            let series = file.file_name().into_string().expect("UTF-8");
            // The date stands behind the name.
            let series = &series[..series.len() - "-2026-01-01".len()];
            if let Some(value) = value.and_then(|value| value.parse().ok()) {
                values.insert(format!("{instance}/{series}"), value);
            }
        }
    }
    values
}

#[test]
fn what_the_monitor_says_of_itself_arrives_at_a_writer() {
    if !can_run("what_the_monitor_says_of_itself_arrives_at_a_writer") {
        return;
    }
    let builder = plain().load_plugin("csv");
    let path = builder.path("csv");
    // Counters are written as rates unless they are asked not to be.
    let block = format!("DataDir \"{}\"\nStoreRates false", path.display());
    let mut site = Site::at(
        Broker::with(BROKER),
        builder.plugin_block("csv", &block),
        SERVICES,
    );
    let expect = |site: &Site, expected: &[(&str, f64)]| {
        eventually(&format!("these values: {expected:?}"), SOON, || {
            let values = written_values(&site.daemon);
            let same = expected
                .iter()
                .all(|(series, value)| values.get(*series) == Some(value));
            same.then_some(())
        });
    };
    expect(
        &site,
        &[
            ("commands/operations-succeeded", 0.0),
            ("connection/bool-hearing", 1.0),
            ("connection/connections-made", 1.0),
            ("journal/bool-durable", 1.0),
        ],
    );
    for (task, service, command) in [
        ("1", "hello", "exec"),
        ("2", "exit", "three"),
        ("3", "no", "no"),
    ] {
        site.sender.command(task, service, command);
        site.sender.result(task);
    }
    site.sender.publish("commands", "42");
    expect(
        &site,
        &[
            ("commands/operations-succeeded", 1.0),
            ("commands/operations-failed", 1.0),
            ("commands/queue_length-running", 0.0),
            ("refused/operations-0x1002", 1.0),
            ("messages/operations-received", 4.0),
            ("messages/operations-unreadable", 1.0),
            ("results/operations-delivered", 3.0),
            ("results/queue_length-waiting", 0.0),
        ],
    );
    site.broker.kill();
    expect(
        &site,
        &[
            ("connection/bool-hearing", 0.0),
            ("connection/bool-connected", 0.0),
            ("connection/errors-lost", 1.0),
        ],
    );
    site.daemon.stop();
}

/// What the monitor's threads and its helper have used: time on a processor, and how often one has slept.
fn used(processes: &[&str]) -> (Duration, u64) {
    let (mut time, mut sleeps) = (0, 0);
    let tasks = processes.iter().flat_map(|pid| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
        tasks.flatten().map(|task| task.path())
    });
    for task in tasks {
        let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
        let name = read("comm");
        if !name.starts_with("monitor-") && name != "collectd-live-r\n" {
            continue;
        }
        let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u64>().ok());
        time += number(read("schedstat").split(' ').next()).expect("nanoseconds");
        let status = read("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sleeps += number(line).expect("a count");
    }
    (Duration::from_nanos(time), sleeps)
}

#[test]
fn idle_it_costs_little() {
    if !can_run("idle_it_costs_little") {
        return;
    }
    const SECONDS: u32 = 5;
    let broker = Broker::start();
    // The interval that a site has.
    let daemon = plain().interval("10").start();
    let pid = daemon.pid().to_string();
    let before = kib(&pid, "VmRSS");
    let block = format!(
        "Host \"{}\"\nCommandTopic \"commands\"\nCommandResultTopic \"results\"\nLogLevel \"info\"\n\
         <Service \"helper\">\nCommand \"pid\" \"echo $PPID\"\n</Service>\n",
        broker.address()
    );
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    listening(&daemon, 1);
    let memory = kib(&pid, "VmRSS") - before;
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "helper", "pid");
    let helper = sender.code_and_message("1").1;
    let processes = [pid.as_str(), helper.as_str()];
    // Until the result's last acknowledgement is dealt with.
    let mut last = used(&processes).1;
    eventually("it is idle", SOON, || {
        let now = used(&processes).1;
        (std::mem::replace(&mut last, now) == now).then_some(())
    });
    let before = used(&processes);
    std::thread::sleep(Duration::from_secs(SECONDS.into())); // What is measured.
    let after = used(&processes);
    let time = (after.0 - before.0) / SECONDS;
    let sleeps = (after.1 - before.1) / u64::from(SECONDS);
    eprintln!("{time:?} and {sleeps} wake-ups a second, {memory} KiB");
    assert!(time <= Duration::from_millis(1), "{time:?} a second");
    assert!(sleeps <= 10, "{sleeps} wake-ups a second");
    // Some hundred KiB depend on what the kernel maps ahead: README has a figure.
    assert!(memory <= 6 * 1024, "{memory} KiB");
    daemon.stop();
}
