//! The whole monitor with a daemon that is not there and a broker that is.

#[path = "../support/mod.rs"]
mod support;

mod cli;
mod commands;
mod connection;
mod documents;
mod fleet;
mod trust;
mod version5;

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use collectd_live::daemon::Daemon;
use collectd_live::fake::FakeDaemon;
use collectd_live::monitor::Monitor;
use collectd_live::settings::{Block, Value};
use collectd_live_tests::eventually;
use support::{Broker, SOON};

/// The helper that cargo has built.
const HELPER: &str = env!("CARGO_BIN_EXE_collectd-live-runner");

/// A monitor that runs.
struct Running {
    daemon: Arc<FakeDaemon>,
    monitor: Monitor,
    dir: Rc<tempfile::TempDir>,
}

/// The block of a monitor that talks to this broker.
fn block(broker: &Broker) -> Block {
    block_at(&broker.address())
}

fn block_at(address: &str) -> Block {
    Block::option("Plugin", [Value::from("monitor")])
        .with("Host", address)
        .with("CommandTopic", "commands")
        .with("CommandResultTopic", "results")
        .with("ReconnectInterval", 0.1)
        .with("LogLevel", "debug")
}

/// The services that most tests use.
const SERVICES: &str = r#"{
    "hello": { "commands": { "exec": "echo Hello World!" } },
    "count": { "commands": { "up": "echo up >> DIR/count; echo counted" } },
    "exit": { "Commands": {
        "three": "exit 3", "missing": "/nonexistent/program", "killed": "kill -9 $$",
        "argv": { "argv": ["/nonexistent/program"] } } },
    "slow": { "commands": { "two": "sleep 2; echo two", "hour": "echo $$ > DIR/pid; sleep 3600" } },
    "hung": { "commands": { "forever": {
        "shell": "sleep 3600 & echo $! > DIR/child; echo $$ > DIR/pid; echo begun; wait", "timeout": 0.5 } } },
    "much": { "commands": {
        "zeros": "head -c 10000000 /dev/zero | tr '\\0' x",
        "small": { "argv": ["/usr/bin/printf", "aéé"], "max_output": 4 } } },
    "host": { "commands": {
        "check": "echo x > DIR/ran; test ! -e DIR/broken",
        "stay": "echo x > DIR/stays; until test -e DIR/go; do sleep 0.05; done" } },
    "web": { "commands": { "status": "echo up", "restart": "echo restarted" } },
    "talk": { "commands": { "both": "echo out; echo error >&2; exit 2" } },
    "turns": { "commands": {
        "take": "echo begin >> DIR/turns; sleep 0.2; echo end >> DIR/turns",
        "share": { "shell": "echo x >> DIR/shared; until [ $(wc -l < DIR/shared) = 2 ]; do sleep 0.05; done",
            "timeout": 30, "concurrency": 2 },
        "once": { "argv": ["/bin/true"], "cooldown": 3600 } } },
    "choose": { "commands": { "words": {
        "argv": ["/usr/bin/printf", "<%s>", "{what}", "-{what}-", "{count}"],
        "parameters": { "what": { "type": "string", "pattern": "[^-].*" },
            "count": { "type": "integer", "default": 3 } } } } },
    "environment": { "commands": {
        "show": "env | sort | cut -d= -f1 | tr '\\n' ' '; ls /proc/self/fd | tr '\\n' ' '" } }
}"#;

impl Running {
    fn start(broker: &Broker) -> Self {
        Self::with(block(broker))
    }

    fn with(block: Block) -> Self {
        Self::in_dir(block, &Rc::new(tempfile::tempdir().expect("a directory")))
    }

    /// A monitor whose files are there, where another one may have left some.
    fn in_dir(block: Block, dir: &Rc<tempfile::TempDir>) -> Self {
        Self::named("node1", block, dir)
    }

    /// A monitor of a host with this name.
    fn named(host: &str, block: Block, dir: &Rc<tempfile::TempDir>) -> Self {
        let state = dir.path().join("state");
        let block = block.with("StateDir", state.to_str().expect("UTF-8"));
        write_config(dir.path(), SERVICES);
        let path = dir.path().join("config.json");
        let block = block.with("MonitorConfigPath", path.to_str().expect("UTF-8"));
        let daemon = Arc::new(FakeDaemon::new(host));
        let monitor = Monitor::new(Arc::clone(&daemon) as Arc<dyn Daemon>, HELPER.into());
        monitor
            .configure(&block)
            .unwrap_or_else(|e| panic!("{e}: {:?}", daemon.lines()));
        monitor
            .init()
            .unwrap_or_else(|e| panic!("{e}: {:?}", daemon.lines()));
        Self {
            daemon,
            monitor,
            dir: Rc::clone(dir),
        }
    }

    /// Waits until a line was logged so many times.
    #[track_caller]
    fn logged(&self, text: &str, count: usize) {
        eventually(&format!("the line {text:?} {count} times"), SOON, || {
            (self.daemon.count(text) >= count).then_some(())
        });
    }

    #[track_caller]
    fn listening(self) -> Self {
        self.logged("listening for commands", 1);
        self
    }

    /// A file that a command writes, when it is there and whole.
    #[track_caller]
    fn file(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        eventually(&format!("the file {name}"), SOON, || {
            fs::read_to_string(&path)
                .ok()
                .filter(|text| text.ends_with('\n'))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.monitor.shutdown();
        if std::thread::panicking() {
            for (level, line) in self.daemon.lines() {
                eprintln!("{level:?}: {line}");
            }
        }
    }
}

fn write_config(dir: &Path, services: &str) {
    let services = services.replace("DIR", dir.to_str().expect("UTF-8"));
    // An editor replaces a file at once, too.
    let new = dir.join("config.json.new");
    fs::write(&new, format!("{{ \"Services\": {services} }}")).expect("a file");
    fs::rename(new, dir.join("config.json")).expect("a file");
}
