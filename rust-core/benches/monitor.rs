//! What the monitor costs, beside what cannot be avoided: `cargo bench -p collectd-live`.
//!
//! Latency is from publishing a command to having its result, at QoS 2, beside a bare responder that runs the
//! same program and a bare round trip through the same broker, all in one run and in turns, so that what else
//! the machine does hits all of them. The monitor brings a task to the disk before it runs: a second responder
//! does so, too, and a second monitor has its journal where there is no disk. Then there is the throughput with
//! eight commands outstanding, beside starting the same program as often, and what an idle monitor uses.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
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

const ROUNDS: usize = 1000;
const OUTSTANDING: usize = 8;
const PROGRAM: &str = "/bin/true";
const IDLE: Duration = Duration::from_secs(10);
/// Which of the ways is the one that the others are compared with.
const BARE: usize = 1;
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

/// Somebody who answers, and how long that takes.
struct Way {
    name: &'static str,
    probe: Probe,
    topic: &'static str,
    latencies: Vec<Duration>,
}

impl Way {
    fn new(broker: &Broker, name: &'static str, topic: &'static str, results: &str) -> Self {
        Self {
            name,
            probe: Probe::new(broker, &format!("probe of {topic}"), results),
            topic,
            latencies: Vec::new(),
        }
    }

    /// Publishes a command, and waits for its answer.
    fn ask(&mut self, task: usize) {
        let started = Instant::now();
        self.probe.publish(self.topic, command(task));
        self.probe.receive();
        self.latencies.push(started.elapsed());
    }

    /// Prints the latencies, and how much longer they are than those of another one.
    fn show(&self, other: &Self) {
        let at = |way: &Self, share: usize| {
            let mut all = way.latencies.clone();
            all.sort();
            all[all.len() * share / 100].as_secs_f64() * 1e3
        };
        print!("{:<42}", self.name);
        for share in [50, 99] {
            let (own, other) = (at(self, share), at(other, share));
            print!("   p{share} {own:7.2} ms ({:+.2})", own - other);
        }
        println!();
    }
}

/// Runs the program and answers, for as long as anybody asks. With a file, a record reaches the disk first.
fn respond(responder: Probe, results: &'static str, journal: Option<File>) {
    const RECORD: [u8; 400] = [b'x'; 400];
    thread::spawn(move || {
        let mut at = 0;
        while let Ok(message) = responder.received.recv() {
            if let Some(journal) = &journal {
                journal.write_all_at(&RECORD, at).expect("room");
                journal.sync_data().expect("a disk");
                at += RECORD.len() as u64;
            }
            let output = Command::new(PROGRAM).output().expect("it can be run");
            assert!(output.status.success());
            let text = String::from_utf8(message).expect("UTF-8");
            responder.publish(results, text);
        }
    });
}

/// A file that takes up its room, as the journal does.
fn preallocated(path: &Path) -> File {
    let file = File::create(path).expect("a file");
    file.write_all_at(&vec![0; 8 << 20], 0).expect("room");
    file.sync_all().expect("a disk");
    file
}

/// A monitor of this host, which has its journal there.
fn monitor(broker: &Broker, host: &str, state: &Path, config: &Path) -> Monitor {
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let block = Block::option("Plugin", [Value::from("monitor")])
        .with("Host", broker.address().as_str())
        .with("CommandTopic", "commands/%h")
        .with("CommandResultTopic", "results/%h")
        .with("StateDir", path(state).as_str())
        .with("MonitorConfigPath", path(config).as_str());
    let daemon: Arc<dyn Daemon> = Arc::new(FakeDaemon::new(host));
    let monitor = Monitor::new(daemon, env!("CARGO_BIN_EXE_collectd-live-runner").into());
    monitor.configure(&block).expect("the block is right");
    monitor.init().expect("it starts");
    monitor
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
    let before = resident();
    let disk = monitor(&broker, "disk", &dir.path().join("state"), &config);
    let idle_memory = resident().saturating_sub(before);
    let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let no_disk = monitor(&broker, "memory", memory.path(), &config);

    let responder = Probe::new(&broker, "responder", "bare");
    respond(responder, "bare-results", None);
    let responder = Probe::new(&broker, "syncing responder", "syncing");
    let journal = preallocated(&dir.path().join("records"));
    respond(responder, "syncing-results", Some(journal));
    let mut ways = [
        Way::new(&broker, "round trip through the broker", "echo", "echo"),
        Way::new(&broker, "bare responder", "bare", "bare-results"),
        Way::new(
            &broker,
            "bare responder, one record to the disk",
            "syncing",
            "syncing-results",
        ),
        Way::new(&broker, "monitor", "commands/disk", "results/disk"),
        Way::new(
            &broker,
            "monitor, journal in memory",
            "commands/memory",
            "results/memory",
        ),
    ];
    // Until the monitors listen.
    for way in &ways[3..] {
        way.probe.publish(way.topic, command(0));
        while way
            .probe
            .received
            .recv_timeout(Duration::from_secs(1))
            .is_err()
        {
            way.probe.publish(way.topic, command(0));
        }
        // What was sent more than once is answered more than once.
        while way
            .probe
            .received
            .recv_timeout(Duration::from_millis(500))
            .is_ok()
        {}
    }
    for round in 1..=ROUNDS {
        for way in &mut ways {
            way.ask(round);
        }
    }
    for way in &ways {
        way.show(&ways[BARE]);
    }

    for way in &ways[3..] {
        let started = Instant::now();
        for round in 0..ROUNDS {
            if round >= OUTSTANDING {
                way.probe.receive();
            }
            way.probe.publish(way.topic, command(10_000 + round));
        }
        for _ in 0..OUTSTANDING {
            way.probe.receive();
        }
        println!(
            "{:<42} {:7.0} commands a second, {OUTSTANDING} outstanding",
            way.name,
            ROUNDS as f64 / started.elapsed().as_secs_f64()
        );
    }
    let started = Instant::now();
    for _ in 0..ROUNDS {
        let status = Command::new(PROGRAM).status().expect("it can be run");
        assert!(status.success());
    }
    println!(
        "{:<42} {:7.0} runs a second",
        "the program alone, one by one",
        ROUNDS as f64 / started.elapsed().as_secs_f64()
    );

    no_disk.shutdown();

    let (cpu, wakeups) = used();
    thread::sleep(IDLE);
    let (cpu_after, wakeups_after) = used();
    let seconds = IDLE.as_secs_f64();
    println!(
        "idle: {:.3} ms of CPU and {:.1} wake-ups a second; {idle_memory} KiB of memory of its own",
        (cpu_after - cpu).as_secs_f64() * 1e3 / seconds,
        (wakeups_after - wakeups) as f64 / seconds
    );
    disk.shutdown();
}
