//! What the monitor costs, beside what cannot be avoided: `cargo bench -p collectd-live`.
//!
//! Latency is from publishing a command to having its result, at QoS 2, beside a bare responder that runs the
//! same program and a bare round trip through the same broker, all in one run. Then there is the throughput
//! with eight commands outstanding, beside starting the same program as often, and what an idle monitor uses.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::process::Command;
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use collectd_live::daemon::Daemon;
use collectd_live::fake::FakeDaemon;
use collectd_live::monitor::Monitor;
use collectd_live::settings::{Block, Value};
use rumqttc::{Client, Event, MqttOptions, NetworkOptions, Packet, QoS};
use support::{broker_is_installed, Broker};

const ROUNDS: usize = 500;
const OUTSTANDING: usize = 8;
const PROGRAM: &str = "/bin/true";
const IDLE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// A client that hands on what it receives at once.
struct Probe {
    client: Client,
    received: Receiver<Vec<u8>>,
}

impl Probe {
    fn new(broker: &Broker, id: &str, topic: &str) -> Self {
        let options = MqttOptions::new(id, "127.0.0.1", broker.port());
        let (client, mut connection) = Client::new(options, 100);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        connection.eventloop.set_network_options(network);
        client
            .subscribe(topic, QoS::ExactlyOnce)
            .expect("room for a request");
        let (to, received) = channel();
        let (ready, subscribed) = channel();
        thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        if to.send(publish.payload.to_vec()).is_err() {
                            return;
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => ready.send(()).expect("main waits"),
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        subscribed
            .recv_timeout(PATIENCE)
            .expect("the broker answers");
        Self { client, received }
    }

    fn publish(&self, topic: &str, payload: String) {
        self.client
            .publish(topic, QoS::ExactlyOnce, false, payload)
            .expect("room for a request");
    }

    fn receive(&self) -> Vec<u8> {
        self.received.recv_timeout(PATIENCE).expect("an answer")
    }
}

fn command(task: usize) -> String {
    format!(r#"{{"task_id":{task},"service":"s","command":"c"}}"#)
}

/// The time from publishing to the answer, many times.
fn latencies(probe: &Probe, topic: &str, first_task: usize) -> Vec<Duration> {
    let mut all: Vec<_> = (0..ROUNDS)
        .map(|round| {
            let started = Instant::now();
            probe.publish(topic, command(first_task + round));
            probe.receive();
            started.elapsed()
        })
        .collect();
    all.sort();
    all
}

fn show(what: &str, sorted: &[Duration]) {
    let milliseconds = |share: usize| sorted[sorted.len() * share / 100].as_secs_f64() * 1e3;
    println!(
        "{what:<34} p50 {:7.2} ms   p99 {:7.2} ms",
        milliseconds(50),
        milliseconds(99)
    );
}

/// What the monitor's threads have used: CPU time, and how often one woke up.
fn used() -> (Duration, u64) {
    let (mut cpu, mut wakeups) = (0, 0);
    for task in fs::read_dir("/proc/self/task")
        .expect("a directory")
        .flatten()
    {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if !read("comm").starts_with("monitor-") {
            continue;
        }
        let first = |text: &str| {
            let word = text.split_whitespace().next();
            word.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
        };
        cpu += first(&read("schedstat"));
        let status = read("status");
        let switches = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        wakeups += switches.map_or(0, first);
    }
    (Duration::from_nanos(cpu), wakeups)
}

/// Memory that is in use, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a file");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).expect("a number")
}

fn main() {
    if !broker_is_installed("bench") {
        return;
    }
    let broker =
        Broker::with("allow_anonymous true\nset_tcp_nodelay true\nmax_inflight_messages 100\n");
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.json");
    let services = format!(
        r#"{{ "Services": {{ "s": {{ "commands": {{ "c": {{ "argv": ["{PROGRAM}"], "concurrency": 16 }} }} }} }} }}"#
    );
    fs::write(&config, services).expect("a file");
    let block = Block::option("Plugin", [Value::from("monitor")])
        .with("Host", broker.address().as_str())
        .with("CommandTopic", "commands")
        .with("CommandResultTopic", "results")
        .with("MonitorConfigPath", config.to_str().expect("UTF-8"));
    let before = resident();
    let daemon = Arc::new(FakeDaemon::new("bench"));
    let monitor = Monitor::new(
        Arc::clone(&daemon) as Arc<dyn Daemon>,
        env!("CARGO_BIN_EXE_collectd-live-runner").into(),
    );
    monitor.configure(&block).expect("the block is right");
    monitor.init().expect("it starts");

    let echo = Probe::new(&broker, "echo", "echo");
    let probe = Probe::new(&broker, "probe", "results");
    let bare = Probe::new(&broker, "bare", "bare-results");
    let responder = Probe::new(&broker, "responder", "bare-commands");
    thread::spawn(move || {
        while let Ok(message) = responder.received.recv() {
            let output = Command::new(PROGRAM).output().expect("it can be run");
            assert!(output.status.success());
            let text = String::from_utf8(message).expect("UTF-8");
            responder.publish("bare-results", text);
        }
    });

    // Until the monitor listens.
    probe.publish("commands", command(0));
    while probe.received.recv_timeout(Duration::from_secs(1)).is_err() {
        probe.publish("commands", command(0));
    }
    show(
        "round trip through the broker",
        &latencies(&echo, "echo", 0),
    );
    show("bare responder", &latencies(&bare, "bare-commands", 0));
    show("monitor", &latencies(&probe, "commands", 1));

    let started = Instant::now();
    for round in 0..ROUNDS {
        if round >= OUTSTANDING {
            probe.receive();
        }
        probe.publish("commands", command(10_000 + round));
    }
    for _ in 0..OUTSTANDING {
        probe.receive();
    }
    let rate = |elapsed: Duration| ROUNDS as f64 / elapsed.as_secs_f64();
    println!(
        "monitor, {OUTSTANDING} outstanding           {:7.0} commands a second",
        rate(started.elapsed())
    );
    let started = Instant::now();
    for _ in 0..ROUNDS {
        let status = Command::new(PROGRAM).status().expect("it can be run");
        assert!(status.success());
    }
    println!(
        "the program alone, one by one      {:7.0} runs a second",
        rate(started.elapsed())
    );

    let (cpu, wakeups) = used();
    thread::sleep(IDLE);
    let (cpu_after, wakeups_after) = used();
    let seconds = IDLE.as_secs_f64();
    println!(
        "idle: {:.3} ms of CPU and {:.1} wake-ups a second; {} KiB more memory than before, with all of the above",
        (cpu_after - cpu).as_secs_f64() * 1e3 / seconds,
        (wakeups_after - wakeups) as f64 / seconds,
        resident().saturating_sub(before)
    );
    monitor.shutdown();
}
