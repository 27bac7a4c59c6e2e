//! The storm: several clients load, unload and reload plugins at random, in a
//! daemon whose readers feed its writers as fast as they can.
//!
//! Each client owns some of the plugins, so it knows what the daemon has to
//! answer; others belong to all clients. Beside that they list, flush, send
//! values and notifications, and signals. Checked is that every answer is the
//! one expected, that every number arrived at every writer that was there, that
//! nothing grows between a calm moment early on and one at the end, that the
//! daemon ends well, and that a sanitizer has nothing to say.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fmt, thread};

use crate::{eventually, may_change_user, own_address, Builder, Daemon, Reply, Variant};

/// How long the daemon may take to bring the last numbers to the writers, or to
/// become calm.
const DEADLINE: Duration = Duration::from_secs(30);

/// How many clients there are.
const CLIENTS: usize = 4;

/// How many series of numbers the readers feed.
const SERIES: usize = 4;

/// How far a number can be ahead of another one on its way to the writers.
const WINDOW: u64 = 256;

/// The writers that are there from start to end.
const WITNESSES: [&str; 2] = ["witness1", "witness2"];

/// The pause between two packets for `statsd`, and between two for `network`.
const PACKETS: Duration = Duration::from_millis(5);

/// What the threads of connections to the control socket are called.
const CONNECTION: &str = "unixsock conn";

/// The operation after which memory must not grow any more, if there are twice
/// as many at least.
const SETTLED: u32 = 1000;

/// What the operations after that may add to the memory that is allocated: the
/// buffers of a few connections and threads.
const HEAP_GROWTH_BYTES: f64 = 32.0 * 1024.0;

/// What they may add to the size of the process.
const RSS_GROWTH_KIB: u64 = 1024;

/// What kind of storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storm {
    /// The build of the daemon.
    pub variant: Variant,
    /// Whether the daemon runs in valgrind.
    pub valgrind: bool,
    /// How many operations the clients make, all together.
    pub operations: u32,
    /// What the random choices follow from.
    pub seed: u64,
    /// Whether the daemon is stopped while numbers and commands still come.
    pub abrupt: bool,
}

/// What happened in a storm.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How long it took.
    pub duration: Duration,
    /// How many numbers the writers saw that were there from start to end.
    pub numbers: u64,
    /// How often a writer came and went.
    pub visits: usize,
    /// How many numbers these writers saw.
    pub numbers_at_visits: u64,
    /// What the daemon was like at the calm moments.
    pub calm: Vec<Calm>,
}

/// What a daemon is like when all plugins that come and go are gone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calm {
    /// After so many operations.
    pub operations: u32,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Allocated bytes, where they can be told.
    pub heap_bytes: Option<f64>,
    /// How many threads there are.
    pub threads: usize,
    /// How many open descriptors there are.
    pub descriptors: usize,
}

impl fmt::Display for Calm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after {} operations: {} KiB resident, {} threads, {} descriptors",
            self.operations, self.rss_kib, self.threads, self.descriptors
        )?;
        self.heap_bytes
            .map_or(Ok(()), |bytes| write!(f, ", {bytes} bytes allocated"))
    }
}

/// Random numbers (`SplitMix64`).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("a small number")
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What a plugin's owner knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Gone,
    Ready,
    Failed,
}

/// A plugin that comes and goes.
#[derive(Debug)]
struct Subject {
    name: String,
    /// The name of the file that it is made from.
    source: String,
    /// Configurations that it accepts. None: that of the configuration file.
    good: Vec<Option<String>>,
    /// Configurations that it or its initialisation refuses.
    bad: Vec<String>,
    /// Whether it refuses to be loaded, whatever its configuration.
    broken: bool,
    /// Whether it is there all the time, and only its configuration changes.
    kept: bool,
    state: State,
}

impl Subject {
    fn new(name: &str) -> Self {
        Subject {
            name: name.to_owned(),
            source: name.to_owned(),
            good: vec![None],
            bad: Vec::new(),
            broken: false,
            kept: false,
            state: State::Gone,
        }
    }

    /// It was loaded when the daemon started.
    fn loaded(mut self) -> Self {
        self.state = State::Ready;
        self
    }

    fn kept(mut self) -> Self {
        self.kept = true;
        self.loaded()
    }

    fn made_from(mut self, source: &str) -> Self {
        self.source = source.to_owned();
        self
    }

    /// Accepts this configuration beside what it accepts already.
    fn or(mut self, config: &str) -> Self {
        self.good.push(Some(config.to_owned()));
        self
    }

    /// Accepts this configuration only, beside others that are added.
    fn only(mut self, config: &str) -> Self {
        self.good.clear();
        self.or(config)
    }

    fn refuses(mut self, config: &str) -> Self {
        self.bad.push(config.to_owned());
        self
    }
}

/// The plugins that come and go, for each client those that it owns. The first
/// one is in the centre of the storm.
fn subjects(daemon: &Daemon, port: u16, peers: &Peers) -> [Vec<Subject>; CLIENTS] {
    let report = daemon.path("visits");
    let report = report.display();
    let dir = daemon.path("");
    let dir = dir.display();
    // "Release" is there from the beginning: nothing waits for it.
    let release = format!("Entered \"{dir}/entered\"\nRelease \"{dir}/release\"");
    let visitor = |name| {
        Subject::new(name)
            .made_from("stormsink")
            .only(&format!("Report \"{report}\"\nWindow {WINDOW}"))
            .refuses("Refuse true")
            .refuses("FailInit true")
    };
    let busy = |name| {
        Subject::new(name)
            .made_from("stormbusy")
            .or("Threads 1")
            .or("Threads 4")
            .refuses("Refuse true")
            .refuses("FailInit true")
    };
    let address = |address: SocketAddrV4| format!("\"{}\" \"{}\"", address.ip(), address.port());
    let (listen, server) = (address(peers.network), address(peers.sink));
    // Programs are not run as root.
    let user = if may_change_user() {
        String::from("nobody")
    } else {
        std::env::var("USER").expect("the name of the user")
    };
    let program = |line: &str| format!("\"{user}\" \"/bin/sh\" \"-c\" \"{line}\"");
    let short = program("echo PUTVAL testhost/exec-short/gauge-x interval=0.1 N:1; echo oops >&2");
    let long = program(
        "while echo PUTVAL testhost/exec-long/gauge-x interval=0.1 N:2; do sleep 0.05; done",
    );
    let notified = program("cat > /dev/null");
    let mut noreg = Subject::new("noreg");
    noreg.broken = true;

    let mut own = [
        vec![
            visitor("visitor1"),
            Subject::new("memory").or("ValuesAbsolute false\nValuesPercentage true"),
            Subject::new("early"),
            Subject::new("df").or("ReportInodes true"),
            Subject::new("irq").or("Irq 7"),
            Subject::new("swap").or("ReportBytes true"),
            Subject::new("statsd")
                .only(&format!(
                    "Host \"{0}\"\nPort \"{1}\"",
                    peers.statsd.ip(),
                    peers.statsd.port()
                ))
                .or(&format!(
                    "Host \"{0}\"\nPort \"{1}\"\nCounterSum true\nTimerCount true\nTimerPercentile 90\n\
                     DeleteCounters true\nDeleteTimers true\nDeleteGauges true\nDeleteSets true",
                    peers.statsd.ip(),
                    peers.statsd.port()
                )),
            Subject::new("tail").only(&format!(
                "<File \"{dir}/log\">\nInstance \"log\"\n<Match>\nRegex \"plugin\"\n\
                 DSType \"CounterInc\"\nType \"counter\"\nInstance \"lines\"\n</Match>\n</File>"
            )),
        ],
        vec![
            visitor("visitor2"),
            Subject::new("badinit")
                .only("Fail false")
                .refuses("Fail true"),
            Subject::new("interface")
                .or("Interface \"lo\"")
                .or("Interface \"/^l/\"\nIgnoreSelected true"),
            Subject::new("load").or("ReportRelative true"),
            Subject::new("tcpconns").or("LocalPort \"22\"\nAllPortsSummary true"),
            Subject::new("vmem").or("Verbose true"),
            Subject::new("network")
                .only(&format!("Listen {listen}\nServer {server}\nTimeToLive 1"))
                .or(&format!("Listen {listen}\nReportStats true"))
                .or(&format!("Server {server}\nForward true\nMaxPacketSize 1024")),
            Subject::new("logfile")
                .only(&log_config(daemon, "err"))
                .or(&log_config(daemon, "warning"))
                .kept(),
        ],
        vec![
            busy("busy1"),
            Subject::new("badconfig")
                .or("Number 7")
                .refuses("Refuse true"),
            Subject::new("disk").or("Disk \"/^sd/\"\nIgnoreSelected true"),
            Subject::new("csv").only(&format!("DataDir \"{dir}/csv\"")),
            Subject::new("write_graphite").only(&format!(
                "<Node \"up\">\nHost \"127.0.0.1\"\nPort {port}\nProtocol \"tcp\"\n</Node>"
            )),
            Subject::new("syslog").only("LogLevel \"err\""),
            Subject::new("exec")
                .only(&format!("Exec {short}\nExec {long}"))
                .or(&format!("Exec {long}\nNotificationExec {notified}")),
            noreg,
        ],
        vec![
            busy("busy2"),
            Subject::new("cpu")
                .or("ReportByCpu false")
                .or("ValuesPercentage true\nReportByState false")
                .refuses("ReportByColour true"),
            Subject::new("dropread"),
            Subject::new("processes").or("Process \"collectd\""),
            Subject::new("latefree").only(&release),
            Subject::new("contextswitch"),
            Subject::new("write_log").or("Format JSON"),
        ],
    ];
    for (client, name) in [(2, "threshold"), (3, "aggregation")] {
        if daemon
            .plugin(name)
            .is_some_and(|plugin| plugin.field("unloadable") == "yes")
        {
            own[client].push(Subject::new(name).loaded());
        }
    }
    own
}

/// The configuration of the log: with less than this, a line for each value that
/// comes too late, or is logged by `write_log`, would fill the disk.
fn log_config(daemon: &Daemon, level: &str) -> String {
    format!(
        "File \"{}\"\nLogLevel \"{level}\"\nPrintSeverity true",
        daemon.path("log").display()
    )
}

/// The plugins that all clients load and unload. Nobody knows their state.
fn shared_subjects(daemon: &Daemon) -> Vec<Subject> {
    let report = daemon.path("visits");
    vec![
        Subject::new("uptime"),
        Subject::new("users"),
        Subject::new("visitor3")
            .made_from("stormsink")
            .only(&format!("Report \"{}\"\nWindow {WINDOW}", report.display())),
        // Unloads itself when a notification of the clients comes.
        Subject::new("selfcall").only("Trigger \"storm\""),
    ]
}

/// Those that the daemon talks to by UDP.
struct Peers {
    /// Where `statsd` and `network` listen.
    statsd: SocketAddrV4,
    network: SocketAddrV4,
    /// Where `network` sends to.
    sink: SocketAddrV4,
}

impl Peers {
    fn new() -> Self {
        // Storms of one process may take place at the same time.
        static NEXT: AtomicU16 = AtomicU16::new(25_900);
        let address = || own_address(NEXT.fetch_add(1, Ordering::Relaxed));
        Peers {
            statsd: address(),
            network: address(),
            sink: address(),
        }
    }

    /// Sends packets, whether somebody listens or not, until `stop`; takes what
    /// `network` sends, to no end.
    fn feed(&self, stop: &AtomicBool) {
        let socket = UdpSocket::bind(self.sink).expect("a socket for packets");
        socket
            .set_nonblocking(true)
            .expect("a socket that does not wait");
        let mut buffer = [0; 2048];
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let counts = format!(
                "storm.c:1|c\nstorm.g:{number}|g\nstorm.t:{number}|ms\nstorm.s:{number}|s\n"
            );
            // Nobody may listen: then there is an error, now or the next time.
            drop(socket.send_to(counts.as_bytes(), self.statsd));
            drop(socket.send_to(&network_packet(number), self.network));
            while socket.recv_from(&mut buffer).is_ok() {}
            thread::sleep(PACKETS);
        }
    }
}

/// A packet of collectd's network protocol with a gauge, which comes from a host
/// that nobody else speaks of.
fn network_packet(number: u32) -> Vec<u8> {
    let mut packet = Vec::new();
    let mut part = |kind: u16, content: &[u8]| {
        let length = u16::try_from(content.len() + 4).expect("a short part");
        packet.extend(kind.to_be_bytes());
        packet.extend(length.to_be_bytes());
        packet.extend(content);
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_secs_f64();
    // Times are in units of 2^-30 seconds.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is a time"
    )]
    let units = |seconds: f64| ((seconds * f64::from(1 << 30)) as u64).to_be_bytes();
    part(0x0000, b"elsewhere\0");
    part(0x0008, &units(now));
    part(0x0009, &units(0.1));
    part(0x0002, b"storm\0");
    part(0x0004, b"gauge\0");
    // One value, a gauge, in the order of x86.
    let mut values = vec![0, 1, 1];
    values.extend(f64::from(number).to_le_bytes());
    part(0x0006, &values);
    packet
}

/// What all clients know.
struct World<'a> {
    daemon: &'a Daemon,
    /// The way to the control socket: closed while the socket is reloaded.
    door: RwLock<()>,
    /// How many operations are left.
    left: AtomicU32,
    /// Whether a client has failed: then the others need not go on.
    failed: AtomicBool,
    shared: &'a [Subject],
}

impl Storm {
    /// Makes the storm.
    ///
    /// # Panics
    /// If anything is not as it should be; the message tells the seed.
    pub fn run(self) -> Outcome {
        let start = Instant::now();
        eprintln!("{self}");

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port for a server");
        let port = listener.local_addr().expect("the server's port").port();
        // It ends with the process.
        thread::spawn(move || serve(&listener));

        let daemon = self.start();
        let peers = Peers::new();
        let mut subjects = subjects(&daemon, port, &peers);
        let shared = shared_subjects(&daemon);
        for subject in subjects.iter().flatten().chain(&shared) {
            daemon.provide_as(&subject.source, &subject.name);
        }
        let mut outcome = Outcome::default();
        let mut random = Random(self.seed);

        let mut done = 0;
        while done < self.operations {
            let operations = SETTLED.min(self.operations - done);
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| peers.feed(&stop));
                // It feeds until the end, whatever that is.
                let result = panic::catch_unwind(AssertUnwindSafe(|| {
                    blow(&daemon, &mut subjects, &shared, operations, &mut random);
                }));
                stop.store(true, Ordering::Relaxed);
                if let Err(cause) = result {
                    panic::resume_unwind(cause);
                }
            });
            done += operations;
            let calm = self.calm_down(&daemon, &mut subjects, &shared, done);
            eprintln!("{calm}");
            outcome.calm.push(calm);
        }

        let path = daemon.path("visits");
        if self.abrupt {
            let check = |log: &str| check_visits(&path, log, None, &mut outcome);
            stop_abruptly(daemon, check);
        } else {
            let sent = stop_feeding(&daemon);
            let check = |log: &str| check_visits(&path, log, Some(&sent), &mut outcome);
            daemon.stop_and(check);
        }
        assert!(
            self.operations < 300 || outcome.visits > 0,
            "no writer came and went: {outcome:?}"
        );
        self.check_growth(&outcome.calm);
        outcome.duration = start.elapsed();
        eprintln!("{outcome}");
        outcome
    }

    fn start(self) -> Daemon {
        let builder = Daemon::builder(self.variant)
            // What glibc keeps back for each of the threads grows slowly for hours.
            .env(
                "GLIBC_TUNABLES",
                "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0",
            )
            .option("ReadThreads 5")
            .option("WriteThreads 5")
            .option("CollectInternalStats true")
            .option("Timeout 5")
            .load_plugin("match_regex")
            .load_plugin("target_set")
            .load_plugin("threshold")
            .load_plugin("aggregation");
        let report = builder.path("visits");
        let stop = builder.path("stop");
        File::create(builder.path("release")).expect("a file for plugins that wait for it");

        let witness = |builder: Builder, name: &str| {
            builder
                .available_as("stormsink", name)
                .load_plugin(name)
                .plugin_block(
                    name,
                    &format!(
                        "Report \"{}\"\nComplete true\nWindow {WINDOW}",
                        report.display()
                    ),
                )
        };
        let mut builder = WITNESSES
            .into_iter()
            .fold(builder, witness)
            .load_plugin("stormfeed")
            .plugin_block(
                "stormfeed",
                &format!(
                    "Interval {}\nBurst 10\nSeries {SERIES}\nWindow {WINDOW}\nStop \"{}\"",
                    if self.valgrind { 0.1 } else { 0.01 },
                    stop.display()
                ),
            )
            .plugin_block(
                "threshold",
                "<Plugin \"stormfeed\">\n<Type \"count\">\nWarningMax 1000\nHits 100\n</Type>\n\
                 </Plugin>",
            )
            .plugin_block(
                "aggregation",
                "<Aggregation>\nPlugin \"stormfeed\"\nType \"count\"\nGroupBy \"Host\"\n\
                 CalculateSum true\n</Aggregation>",
            )
            .chain(
                "PostCache",
                "<Rule \"kicks\">\n<Match \"regex\">\nTypeInstance \"^kick$\"\n</Match>\n\
                 <Target \"set\">\nMetaData \"kick\" \"yes\"\n</Target>\n</Rule>\n\
                 <Target \"write\">\n</Target>",
            );
        if self.valgrind {
            builder = builder.in_valgrind();
        } else {
            builder = builder.load_plugin_with("heap", "Interval 0.01");
        }
        let daemon = builder.start();

        let config = log_config(&daemon, "err");
        daemon.reload("logfile", &[("config", &config)]).expect_ok();
        daemon
    }

    /// Unloads all that came, and looks at what is left.
    fn calm_down(
        self,
        daemon: &Daemon,
        subjects: &mut [Vec<Subject>; CLIENTS],
        shared: &[Subject],
        operations: u32,
    ) -> Calm {
        for subject in subjects.iter_mut().flatten() {
            if subject.state != State::Gone && !subject.kept {
                unload(daemon, &subject.name).expect_ok();
                subject.state = State::Gone;
            }
        }
        for Subject { name, .. } in shared {
            if daemon.plugin(name).is_some() {
                unload(daemon, name).expect_ok();
            }
        }
        let names = || {
            let all = subjects.iter().flatten().chain(shared);
            all.filter(|subject| !subject.kept)
                .map(|subject| subject.name.as_str())
        };
        for name in names() {
            daemon.assert_gone(name);
        }
        eventually("the last values to expire", DEADLINE * 2, || {
            let values = daemon.listval();
            let is_left = |name: &str| {
                values
                    .keys()
                    .any(|value| value.split(['/', '-']).next() == Some(name))
            };
            (!names().chain(["storm"]).any(is_left)).then_some(())
        });

        // How many connections are left depends on how often the socket was reloaded.
        daemon.disconnect();
        daemon.assert_alive();
        eventually("all connections but one to end", DEADLINE, || {
            let threads = daemon.status().threads;
            (threads.iter().filter(|name| *name == CONNECTION).count() == 1).then_some(())
        });

        let heap = || {
            daemon.wait_for_value_of("heap");
            daemon.getval("heap/count").expect("the heap's size")
        };
        Calm {
            operations,
            rss_kib: daemon.status().rss_kib,
            heap_bytes: (!self.valgrind)
                .then(|| (0..10).map(|_| heap()).fold(f64::INFINITY, f64::min)),
            threads: daemon.status().threads.len(),
            descriptors: daemon.descriptors(),
        }
    }

    fn check_growth(self, calm: &[Calm]) {
        let [settled, .., last] = calm else {
            return;
        };
        assert_eq!(settled.threads, last.threads, "threads are left");
        assert_eq!(
            settled.descriptors, last.descriptors,
            "descriptors are left"
        );
        if let (Some(settled), Some(last)) = (settled.heap_bytes, last.heap_bytes) {
            assert!(
                last <= settled + HEAP_GROWTH_BYTES,
                "{settled} bytes were allocated, at the end {last}"
            );
        }
        // The records of sanitizers and of valgrind grow.
        if self.variant == Variant::Patched && !self.valgrind {
            assert!(
                last.rss_kib <= settled.rss_kib + RSS_GROWTH_KIB,
                "the process had {} KiB, at the end {}",
                settled.rss_kib,
                last.rss_kib
            );
        }
    }
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "storm: variant {}, {} operations, seed {}",
            if self.valgrind {
                "valgrind"
            } else {
                self.variant.name()
            },
            self.operations,
            self.seed
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "storm passed in {:.1} s: {} numbers arrived at {} writers; other writers came {} times \
             and saw {}",
            self.duration.as_secs_f64(),
            self.numbers,
            WITNESSES.len(),
            self.visits,
            self.numbers_at_visits
        )
    }
}

/// Takes what `write_graphite` sends, to no end.
fn serve(listener: &TcpListener) {
    for connection in listener.incoming().flatten() {
        thread::spawn(move || {
            let mut connection = connection;
            // A connection that breaks has ended, that is all.
            drop(io::copy(&mut connection, &mut io::sink()));
        });
    }
}

/// Lets all clients loose until they have made `operations`.
fn blow(
    daemon: &Daemon,
    subjects: &mut [Vec<Subject>; CLIENTS],
    shared: &[Subject],
    operations: u32,
    random: &mut Random,
) {
    let world = World {
        daemon,
        door: RwLock::new(()),
        left: AtomicU32::new(operations),
        failed: AtomicBool::new(false),
        shared,
    };
    thread::scope(|scope| {
        for (number, own) in subjects.iter_mut().enumerate() {
            let mut client = Client {
                world: &world,
                number,
                random: Random(random.next()),
                own,
            };
            scope.spawn(move || client.run());
        }
    });
}

/// One of those who make operations.
struct Client<'a> {
    world: &'a World<'a>,
    number: usize,
    random: Random,
    own: &'a mut [Subject],
}

impl Client<'_> {
    fn run(&mut self) {
        let world = self.world;
        let take = |left: u32| left.checked_sub(1);
        while !world.failed.load(Ordering::Relaxed)
            && world
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
        {
            let result = panic::catch_unwind(AssertUnwindSafe(|| self.operate()));
            if let Err(cause) = result {
                world.failed.store(true, Ordering::Relaxed);
                panic::resume_unwind(cause);
            }
        }
    }

    fn operate(&mut self) {
        let daemon = self.world.daemon;
        if self.random.below(200) == 0 {
            let _closed = self
                .world
                .door
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            daemon.reload_control_socket(&[TIMEOUT]);
            return;
        }
        let _open = self
            .world
            .door
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        match self.random.below(100) {
            0..70 => self.change_own(),
            70..78 => self.change_shared(),
            78..86 => self.check_states(),
            86..88 => drop(daemon.listval()),
            88..92 => self.flush(),
            92..94 => drop(
                daemon
                    .ctl("PUTNOTIF severity=warning time=1 plugin=storm message=storm")
                    .expect_ok(),
            ),
            94..97 => drop(
                daemon
                    .putval(&format!("storm/gauge-{}", self.number), 0.1, 1.0)
                    .expect_ok(),
            ),
            _ => daemon.ask_to_flush(),
        }
    }

    fn flush(&mut self) {
        let line =
            *self
                .random
                .pick(&["FLUSH", "FLUSH plugin=csv", "FLUSH plugin=busy1 timeout=1"]);
        self.world.daemon.ctl(line).expect_ok();
    }

    fn change_own(&mut self) {
        let daemon = self.world.daemon;
        let random = &mut self.random;
        let number = if random.chance(20) {
            0
        } else {
            random.below(self.own.len())
        };
        let subject = &mut self.own[number];
        let name = subject.name.clone();

        if subject.broken {
            load(daemon, &name, None, random).expect_refused(&[]);
            return;
        }
        if random.chance(5) {
            // Nothing happens to it if what it is given cannot be read.
            let reply = if random.chance(50) {
                load(daemon, &name, Some("<Unfinished"), random)
            } else {
                reload(daemon, &name, Some("<Unfinished"), random)
            };
            reply.expect_refused(&[]);
            return;
        }

        let bad = !subject.bad.is_empty() && random.chance(20);
        let config = if bad {
            Some(random.pick(&subject.bad).clone())
        } else {
            random.pick(&subject.good).clone()
        };
        let config = config.as_deref();
        // What it is good for is that something changes.
        let action = match subject.state {
            _ if subject.kept => "reload",
            State::Gone => *random.pick(&["load", "load", "load", "load", "unload", "reload"]),
            State::Ready => *random.pick(&["unload", "unload", "reload", "reload", "load"]),
            State::Failed => *random.pick(&["unload", "reload", "load"]),
        };
        let before = subject.state;
        let (reply, after) = match (action, before) {
            ("load", State::Gone | State::Failed) => (
                load(daemon, &name, config, random),
                if bad { State::Failed } else { State::Ready },
            ),
            ("load", State::Ready) => {
                load(daemon, &name, config, random).expect_refused(&["already loaded"]);
                return;
            }
            ("reload", State::Gone) => {
                reload(daemon, &name, config, random).expect_refused(&["not loaded"]);
                return;
            }
            ("reload", _) => (
                reload(daemon, &name, config, random),
                // The old configuration comes back if there is one.
                if bad { before } else { State::Ready },
            ),
            ("unload", State::Gone) => {
                unload(daemon, &name).expect_refused(&["not loaded"]);
                return;
            }
            _ => (unload(daemon, &name), State::Gone),
        };
        subject.state = after;
        assert_eq!(
            reply.is_ok(),
            !bad || action == "unload",
            "{action} {name} ({before:?}) with {config:?} gives: {reply:?}"
        );
        if after == State::Gone && random.chance(20) {
            daemon.assert_gone(&name);
        }
    }

    fn change_shared(&mut self) {
        let daemon = self.world.daemon;
        let subject = self.random.pick(self.world.shared);
        let name = subject.name.as_str();
        let config = self.random.pick(&subject.good).as_deref();
        let (reply, excuse) = match self.random.below(3) {
            0 => (
                load(daemon, name, config, &mut self.random),
                "already loaded",
            ),
            1 => (unload(daemon, name), "not loaded"),
            _ => (reload(daemon, name, config, &mut self.random), "not loaded"),
        };
        if !reply.is_ok() {
            reply.expect_refused(&[excuse]);
        }
    }

    /// Checks that the daemon tells of each plugin what its owner knows.
    fn check_states(&mut self) {
        let listed: BTreeMap<String, String> = self
            .world
            .daemon
            .plugins()
            .into_iter()
            .map(|plugin| (plugin.name, plugin.state))
            .collect();
        for subject in self.own.iter() {
            let expected = match subject.state {
                State::Gone => None,
                State::Ready => Some("READY"),
                State::Failed => Some("FAILED"),
            };
            assert_eq!(
                listed.get(&subject.name).map(String::as_str),
                expected,
                "the state of {}",
                subject.name
            );
        }
    }
}

/// How long an unload may wait for the callbacks that run: on a busy machine in
/// valgrind nothing is certain but that they end.
const TIMEOUT: (&str, &str) = ("timeout", "100");

fn options<'a>(config: Option<&'a str>, random: &mut Random) -> Vec<(&'a str, &'a str)> {
    let interval = *random.pick(&["0.02", "0.1", "0.5"]);
    let mut options = vec![("interval", interval), TIMEOUT];
    options.extend(config.map(|config| ("config", config)));
    if random.chance(20) {
        options.push(("flushinterval", "0.05"));
    }
    options
}

fn load(daemon: &Daemon, name: &str, config: Option<&str>, random: &mut Random) -> Reply {
    daemon.load(name, &options(config, random))
}

fn reload(daemon: &Daemon, name: &str, config: Option<&str>, random: &mut Random) -> Reply {
    daemon.reload(name, &options(config, random))
}

fn unload(daemon: &Daemon, name: &str) -> Reply {
    daemon.unload_within(name, Duration::from_secs(100))
}

/// Lets the readers end, waits until all numbers have arrived, and returns how
/// many there were in each series.
fn stop_feeding(daemon: &Daemon) -> Vec<u64> {
    File::create(daemon.path("stop")).expect("a file that stops the readers");
    let text = eventually("all numbers to arrive at the writers", DEADLINE, || {
        fs::read_to_string(daemon.path("stop.done")).ok()
    });
    let sent: Vec<u64> = text
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.parse().ok())
        .collect();
    assert_eq!(sent.len(), SERIES, "stormfeed wrote: {text:?}");
    assert!(
        sent.iter().all(|numbers| *numbers > 0),
        "a reader never read: {sent:?}"
    );
    sent
}

/// Stops the daemon while numbers and commands still come.
fn stop_abruptly(daemon: Daemon, check: impl FnOnce(&str)) {
    // So many that the write threads are busy when they are told to end.
    let many_values = format!(
        "PUTVAL testhost/storm/gauge-last interval=1{}",
        " N:1".repeat(200)
    );
    let lines = [
        "LISTVAL",
        many_values.as_str(),
        "LISTPLUGINS",
        "FLUSH",
        "LOADPLUGIN cpu",
        "PUTNOTIF severity=okay time=1 message=storm",
        "UNLOADPLUGIN cpu",
        "GETVAL testhost/stormfeed/count-0",
    ];
    let lines = &lines;
    let started = AtomicU32::new(0);
    let connections: Vec<_> = (0..CLIENTS).map(|_| daemon.connect()).collect();
    thread::scope(|scope| {
        for (number, mut connection) in connections.into_iter().enumerate() {
            let started = &started;
            scope.spawn(move || {
                let mut lines = lines.iter().cycle().skip(number);
                // The daemon's end ends the connection.
                while lines
                    .next()
                    .is_some_and(|line| connection.command(line).is_ok())
                {
                    started.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        eventually("the clients to be at work", DEADLINE, || {
            (started.load(Ordering::Relaxed) > 100).then_some(())
        });
        daemon.stop_and(check);
    });
}

/// Checks what the writers have written down at their end. If it is known how
/// many numbers were sent, the witnesses must have seen all of them.
fn check_visits(path: &Path, log: &str, sent: Option<&[u64]>, outcome: &mut Outcome) {
    let text = fs::read_to_string(path).expect("what the writers have seen");
    let mut complete = 0;
    for line in text.lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let numbers: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
        let Some([series, seen, first, last, missing, twice]) = numbers.as_deref() else {
            panic!("stormsink wrote a line that is no report: {line:?}");
        };
        assert!(
            *missing == 0 && *twice == 0,
            "{name}: of series {series}, {missing} numbers are missing, {twice} came twice; its \
             log:\n{}",
            log.lines()
                .filter(|line| line.contains(name))
                .collect::<Vec<_>>()
                .join("\n")
        );
        if WITNESSES.contains(&name) {
            if let Some(sent) = sent {
                let sent = sent[usize::try_from(*series).expect("a series")];
                assert_eq!(
                    (*seen, *first, *last),
                    (sent, 0, sent - 1),
                    "{name} must see all numbers of series {series}"
                );
            }
            complete += 1;
            outcome.numbers += seen;
        } else {
            outcome.numbers_at_visits += seen;
            outcome.visits += usize::from(*series == 0);
        }
    }
    assert_eq!(
        complete,
        WITNESSES.len() * SERIES,
        "a writer that was there from start to end has seen nothing:\n{text}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_choices() {
        let choices = |seed| {
            let mut random = Random(seed);
            (0..100).map(|_| random.below(10)).collect::<Vec<_>>()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
    }
}
