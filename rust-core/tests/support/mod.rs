//! A real broker, and somebody at the other end of it.

#![allow(
    dead_code,
    reason = "each test program uses its own part of these helpers"
)]

use std::env;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use collectd_live::clock::iso8601;
use collectd_live_tests::{eventually, skip};
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use rustix::process::Pid;

/// How long anything may take that is not timed.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Whether there is a broker to test with. Its absence is told to whoever counts the tests.
pub(crate) fn broker_is_installed(test: &str) -> bool {
    if mosquitto().is_some() {
        return true;
    }
    skip(test, "mosquitto (apt-get install mosquitto)");
    false
}

fn mosquitto() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join("mosquitto"))
        .find(|program| program.is_file())
}

/// Debian puts plugins into the directory of the architecture.
fn plugins() -> String {
    let triplet = format!("{}-linux-gnu", env::consts::ARCH);
    ["/usr/lib".to_owned(), format!("/usr/lib/{triplet}")]
        .into_iter()
        .find(|dir| {
            Path::new(dir)
                .join("mosquitto_dynamic_security.so")
                .exists()
        })
        .unwrap_or_default()
}

/// A mosquitto on a port of its own.
pub(crate) struct Broker {
    dir: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

impl Broker {
    /// A broker that lets everybody in.
    pub(crate) fn start() -> Self {
        Self::with("allow_anonymous true\n")
    }

    /// A broker with these lines in its configuration, in which `DIR` stands for its directory and
    /// `PLUGINS` for that of mosquitto's plugins.
    pub(crate) fn with(configuration: &str) -> Self {
        let mut broker = Self::prepared(configuration, |_| {});
        broker.start_again();
        broker
    }

    /// A broker that lets in one user only, with this password. More files are written by the function.
    pub(crate) fn with_user(user: &str, password: &str, files: impl FnOnce(&Path)) -> Self {
        let configuration = "allow_anonymous false\npassword_file DIR/passwords\n";
        let mut broker = Self::prepared(configuration, |dir| {
            let made = Command::new("mosquitto_passwd")
                .args(["-b", "-c"])
                .arg(dir.join("passwords"))
                .args([user, password])
                .output()
                .expect("it comes with mosquitto");
            assert!(made.status.success(), "{made:?}");
            files(dir);
        });
        broker.start_again();
        broker
    }

    /// A broker that does not run yet. The files that it needs are written by the function.
    pub(crate) fn prepared(configuration: &str, files: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        files(dir.path());
        let configuration = configuration
            .replace("DIR", dir.path().to_str().expect("UTF-8"))
            .replace("PLUGINS", &plugins());
        fs::write(dir.path().join("extra.conf"), configuration).expect("a file");
        // Another process may take the port before the broker does; start_again() sees that.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        Self {
            dir,
            port,
            process: None,
        }
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Starts it on its port, which a connection in TIME_WAIT may hold for a moment.
    pub(crate) fn start_again(&mut self) {
        let program = mosquitto().expect("mosquitto is installed");
        let dir = self.dir.path();
        let extra = fs::read_to_string(dir.join("extra.conf")).expect("a file");
        let conf = dir.join("mosquitto.conf");
        // As root, mosquitto would become another user, who may not read this directory.
        let text = format!("user root\nlistener {} 127.0.0.1\n{extra}", self.port);
        fs::write(&conf, text).expect("a file");
        let process = eventually("mosquitto runs and listens", SOON, || {
            let log = fs::File::create(dir.join("log")).expect("a file");
            let mut process = Command::new(&program)
                .arg("-v")
                .arg("-c")
                .arg(&conf)
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a descriptor"))
                .stderr(log)
                .spawn()
                .expect("mosquitto can be started");
            // It listens before it serves, and whoever answers must be this very process.
            let serves = eventually("mosquitto serves or ends", SOON, || {
                match process.try_wait().expect("a child") {
                    Some(_) => Some(false),
                    None => (self.log().contains("running")
                        && TcpStream::connect(("127.0.0.1", self.port)).is_ok())
                    .then_some(true),
                }
            });
            let lives = process.try_wait().expect("a child").is_none();
            if serves && lives {
                return Some(process);
            }
            if lives {
                process.kill().expect("a child");
                process.wait().expect("a child");
            }
            None
        });
        self.process = Some(process);
    }

    /// Has it read its access list again.
    pub(crate) fn reload(&self) {
        use rustix::process::{kill_process, Signal};
        let process = self.process.as_ref().expect("it runs");
        let reloads = || self.log().matches("Reloading config").count();
        let before = reloads();
        kill_process(Pid::from_child(process), Signal::HUP).expect("a child");
        eventually("the broker reloads", SOON, || {
            (reloads() > before).then_some(())
        });
    }

    /// Ends it without a goodbye.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("a child");
            process.wait().expect("a child");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the broker's log:\n{}", self.log());
        }
    }
}

/// Somebody who sends commands and sees the results.
pub(crate) struct Sender {
    client: Client,
    received: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// Connects, and listens on a topic.
    pub(crate) fn listen(broker: &Broker, topic: &str) -> Self {
        Self::listen_at(broker, topic, QoS::AtLeastOnce)
    }

    /// The same with this quality of service.
    pub(crate) fn listen_at(broker: &Broker, topic: &str, qos: QoS) -> Self {
        let mut options =
            MqttOptions::new(format!("sender-{}", unique()), "127.0.0.1", broker.port());
        options.set_max_packet_size(64 << 20, 64 << 20);
        let (client, mut connection) = Client::new(options, 100);
        client.subscribe(topic, qos).expect("room");
        let received = Arc::new(Mutex::new(Vec::new()));
        let subscribed = Arc::new(Mutex::new(false));
        let (sink, flag) = (Arc::clone(&received), Arc::clone(&subscribed));
        let thread = std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::SubAck(_))) => *flag.lock().expect("ours") = true,
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let text = String::from_utf8(publish.payload.to_vec()).expect("UTF-8");
                        sink.lock().expect("ours").push(text);
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        eventually("the sender listens", SOON, || {
            subscribed.lock().expect("ours").then_some(())
        });
        Self {
            client,
            received,
            thread: Some(thread),
        }
    }

    /// Publishes anything.
    pub(crate) fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client
            .publish(topic, QoS::ExactlyOnce, false, payload)
            .expect("room");
    }

    /// Publishes anything once, and forgets it.
    pub(crate) fn publish_and_forget(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client
            .publish(topic, QoS::AtMostOnce, false, payload)
            .expect("room");
    }

    /// Publishes anything, retained.
    pub(crate) fn publish_retained(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client
            .publish(topic, QoS::ExactlyOnce, true, payload)
            .expect("room");
    }

    /// Publishes a command. Returns the message.
    pub(crate) fn command(&self, task: &str, service: &str, command: &str) -> String {
        let now = iso8601(SystemTime::now());
        let text = format!(
            r#"{{"task_id":{task},"timestamp":"{now}","service":"{service}","command":"{command}"}}"#
        );
        self.publish("commands", text.as_str());
        text
    }

    /// Every result of a task so far.
    pub(crate) fn results(&self, task: &str) -> Vec<serde_json::Value> {
        let start = format!("{{\"task_id\":{task},");
        let received = self.received();
        let results = received.iter().filter(|text| text.starts_with(&start));
        results
            .map(|text| serde_json::from_str(text).expect("JSON"))
            .collect()
    }

    /// What came so far.
    pub(crate) fn received(&self) -> Vec<String> {
        self.received.lock().expect("ours").clone()
    }

    /// What came since it was last taken.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.received.lock().expect("ours"))
    }

    /// Waits for the result of a task.
    #[track_caller]
    pub(crate) fn result(&self, task: &str) -> serde_json::Value {
        let start = format!("{{\"task_id\":{task},");
        let text = eventually(&format!("the result of the task {task}"), SOON, || {
            self.received()
                .into_iter()
                .find(|text| text.starts_with(&start))
        });
        serde_json::from_str(&text).expect("JSON")
    }

    /// Waits for the result of a task, and returns its code and message.
    #[track_caller]
    pub(crate) fn code_and_message(&self, task: &str) -> (u64, String) {
        let result = self.result(task);
        let code = result["code"].as_u64().expect("a number");
        (
            code,
            result["message"].as_str().expect("a string").to_owned(),
        )
    }
}

/// What came to somebody who talks MQTT 5: topic, correlation data and payload.
pub(crate) type Answer = (String, Option<Vec<u8>>, serde_json::Value);

/// Somebody who talks MQTT 5.
pub(crate) struct Requester {
    client: rumqttc::v5::Client,
    answers: std::sync::mpsc::Receiver<Answer>,
    thread: Option<JoinHandle<()>>,
}

impl Requester {
    /// Connects with this client id, and listens on topics.
    pub(crate) fn listen(broker: &Broker, id: &str, topics: &[&str]) -> Self {
        use rumqttc::v5::{mqttbytes::v5::Packet, mqttbytes::QoS, Client, Event, MqttOptions};

        let options = MqttOptions::new(id, "127.0.0.1", broker.port());
        let (client, mut connection) = Client::new(options, 100);
        for topic in topics {
            client.subscribe(*topic, QoS::ExactlyOnce).expect("room");
        }
        let (to, answers) = std::sync::mpsc::channel();
        let (ready, subscribed) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::SubAck(_))) => ready.send(()).expect("it waits"),
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let data = publish.properties.and_then(|p| p.correlation_data);
                        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                        let json = serde_json::from_slice(&publish.payload).expect("JSON");
                        if to.send((topic, data.map(|d| d.to_vec()), json)).is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        for _ in topics {
            subscribed.recv_timeout(SOON).expect("the broker answers");
        }
        Self {
            client,
            answers,
            thread: Some(thread),
        }
    }

    /// Publishes with properties.
    pub(crate) fn publish(
        &self,
        topic: &str,
        payload: &str,
        properties: rumqttc::v5::mqttbytes::v5::PublishProperties,
    ) {
        use rumqttc::v5::mqttbytes::QoS::ExactlyOnce;
        self.client
            .publish_with_properties(topic, ExactlyOnce, false, payload.to_owned(), properties)
            .expect("room");
    }

    /// What comes next.
    #[track_caller]
    pub(crate) fn answer(&self) -> Answer {
        self.answers.recv_timeout(SOON).expect("an answer")
    }
}

impl Drop for Requester {
    fn drop(&mut self) {
        if self.client.disconnect().is_ok() {
            if let Some(thread) = self.thread.take() {
                let joined = thread.join();
                assert!(joined.is_ok() || std::thread::panicking());
            }
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // The broker may be gone already, and the thread with it.
        if self.client.disconnect().is_ok() {
            if let Some(thread) = self.thread.take() {
                let joined = thread.join();
                assert!(joined.is_ok() || std::thread::panicking());
            }
        }
    }
}

/// Messages that are not answered: they have no task id, are not UTF-8, or are longer than any message.
pub(crate) fn rubbish() -> Vec<Vec<u8>> {
    let mut big = br#"{"no task_id":99,"service":"hello","command":"exec","x":""#.to_vec();
    big.resize(3 << 20, b'x');
    big.extend_from_slice(b"\"}");
    let small: [&[u8]; 15] = [
        b"",
        b"not JSON",
        b"42",
        b"null",
        b"[]",
        b"\"text\"",
        b"{",
        b"{}",
        b"{\"task_id\":null,\"service\":\"hello\",\"command\":\"exec\"}",
        b"{\"task_id\":{},\"service\":\"hello\",\"command\":\"exec\"}",
        b"{\"service\":\"hello\",\"command\":\"exec\"}",
        b"{\"task_id\":1,\"task_id\":2,\"service\":\"hello\",\"command\":\"exec\"}",
        b"{\"task_id\":98,\"service\":\"hello\",\"command\":\"\xff\"}",
        b"\xff\xfe\x00",
        &[0; 1000],
    ];
    let mut all: Vec<_> = small.iter().map(|payload| payload.to_vec()).collect();
    all.push(big);
    all
}

/// What may stand behind a task id in a message that is answered, but not understood.
pub(crate) const WRONG_TYPES: [&str; 6] = [
    r#""service":1,"command":"exec""#,
    r#""service":"hello","command":["exec"]"#,
    r#""service":"hello","command":null"#,
    r#""service":"hello","command":"exec","timestamp":0"#,
    r#""config":null"#,
    r#""x":0"#,
];

/// A process that may be killed: to the kernel, 1 and its group would mean much more.
#[track_caller]
pub(crate) fn process(text: &str) -> Pid {
    let number: i32 = text.trim().parse().expect("a process id");
    assert!(number > 1, "{number} is not a process of this test");
    Pid::from_raw(number).expect("a process id")
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whether a process is gone, or only waits for its parent to take note.
pub(crate) fn is_gone(pid: &str) -> bool {
    match fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Ok(stat) => stat
            .rsplit_once(')')
            .is_some_and(|(_, rest)| rest.starts_with(" Z")),
        Err(_) => true,
    }
}
