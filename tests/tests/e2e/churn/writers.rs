//! Plugins that write values, and plugins that log.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use collectd_live_tests::{eventually, Daemon, Variant};
use rustix::net::{bind, getsockname, socket, AddressFamily, SocketType};

use super::{assert_no_trace, configure_in_part, DEADLINE, FEW};

/// The size of a file, zero if there is none.
fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// What a file has from `position` on.
fn read_from(path: &Path, position: u64) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        file.seek(SeekFrom::Start(position))
            .and_then(|_| file.read_to_end(&mut bytes))
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits until a file has, from `position` on, all of `parts`; returns what it
/// has there.
#[track_caller]
fn wait_for_text(path: &Path, position: u64, parts: &[&str]) -> String {
    let what = format!("{parts:?} in {}", path.display());
    eventually(&what, DEADLINE, || {
        let text = read_from(path, position);
        parts.iter().all(|part| text.contains(part)).then_some(text)
    })
}

/// The files that `csv` has written for the amount of memory in use; one, or two
/// after midnight.
fn csv_files(data_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(data_dir.join("testhost/memory")) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.expect("csv's directory").path())
        .filter(|path| path.to_string_lossy().contains("memory-used-"))
        .collect()
}

/// Proves that `csv` can come and go for ever, with values of `memory` to write.
#[test]
fn csv_leaves_no_trace() {
    assert_no_trace(FEW, &["csv", "memory"], |daemon| {
        let data_dir = daemon.path("csv");
        let config = format!("DataDir \"{}/\"\nStoreRates true", data_dir.display());
        let written = || csv_files(&data_dir).iter().map(|path| size(path)).sum();
        let before: u64 = written();
        daemon.load("csv", &[("config", &config)]).expect_ok();
        daemon.load("memory", &[("interval", "0.01")]).expect_ok();
        eventually("a line of csv", DEADLINE, || {
            (written() > before).then_some(())
        });
        daemon.unload("csv").expect_ok();
        daemon.unload("memory").expect_ok();
        configure_in_part(daemon, "csv", &format!("{config}\nNosuch true"));
    });
}

/// Unloads the plugin that every daemon of the tests starts with: messages go to
/// standard error then.
#[track_caller]
fn unload_logfile(daemon: &Daemon) {
    if daemon.plugin("logfile").is_some() {
        daemon.unload("logfile").expect_ok();
    }
}

/// Proves that the only plugin that logs, `logfile`, can come and go for ever.
/// While it is gone messages go to standard error.
#[test]
fn logfile_leaves_no_trace() {
    assert_no_trace(FEW, &["logfile"], |daemon| {
        unload_logfile(daemon);
        let log = daemon.path("other-log");
        let stderr = daemon.path("stderr");
        let (log_size, stderr_size) = (size(&log), size(&stderr));
        let config = format!(
            "File \"nosuch\"\nFile \"{}\"\nLogLevel info\nTimestamp true\nPrintSeverity true",
            log.display()
        );

        daemon.load("logfile", &[("config", &config)]).expect_ok();
        wait_for_text(
            &log,
            log_size,
            &[
                "[notice] lifecycle: Plugin \"logfile\" is loaded",
                "Notification: severity = OKAY",
            ],
        );
        daemon.unload("logfile").expect_ok();
        let text = wait_for_text(
            &stderr,
            stderr_size,
            &["lifecycle: Plugin \"logfile\" is unloaded"],
        );
        assert!(!text.contains("is loaded"), "logged twice:\n{text}");
        configure_in_part(daemon, "logfile", &format!("{config}\nNosuch true"));
    });
}

/// Proves that `syslog` can come and go for ever. What it gets is not for the
/// test to see, but it does not go to standard error, as everything else does.
#[test]
fn syslog_leaves_no_trace() {
    assert_no_trace(FEW, &["logfile", "syslog"], |daemon| {
        unload_logfile(daemon);
        let stderr = daemon.path("stderr");
        let stderr_size = size(&stderr);

        daemon
            .load("syslog", &[("config", "LogLevel err\nNotifyLevel FAILURE")])
            .expect_ok();
        daemon.unload("nosuch").expect_refused(&["not loaded"]);
        daemon.unload("syslog").expect_ok();
        let text = wait_for_text(
            &stderr,
            stderr_size,
            &["lifecycle: Plugin \"syslog\" is unloaded"],
        );
        assert!(!text.contains("nosuch"), "not for syslog only:\n{text}");
        configure_in_part(daemon, "syslog", "NotifyLevel nosuch");
    });
}

/// Proves that the C library does not keep the name that `syslog` has given it:
/// others may use syslog(3) when the plugin is gone.
#[test]
fn syslog_takes_its_name_along() {
    let daemon = Daemon::builder(Variant::Asan)
        .available("syslog")
        .load_plugin("talkative")
        .start();
    daemon.load("syslog", &[]).expect_ok();
    daemon.unload("syslog").expect_ok();
    daemon.assert_gone("syslog");
    daemon
        .ctl("PUTNOTIF severity=okay time=1 message=\"Still here.\"")
        .expect_ok();
    daemon.assert_alive();
    daemon.stop();
}

/// Proves that `write_log` can come and go for ever, with values to write.
#[test]
fn write_log_leaves_no_trace() {
    let number = Cell::new(0);
    assert_no_trace(FEW, &["write_log"], |daemon| {
        let log = daemon.path("log");
        for (format, text) in [("Graphite", "testhost.churn."), ("JSON", "\"churn\"")] {
            number.set(number.get() + 1);
            let log_size = size(&log);
            let config = format!("Format \"{format}\"");
            daemon.load("write_log", &[("config", &config)]).expect_ok();
            daemon
                .putval("churn/gauge-x", 1.0, f64::from(number.get()))
                .expect_ok();
            wait_for_text(&log, log_size, &["write_log values:", text]);
            daemon.unload("write_log").expect_ok();
        }
        configure_in_part(daemon, "write_log", "Format \"nosuch\"");
    });
}

/// A server that takes what `write_graphite` sends.
struct Carbon {
    listener: TcpListener,
    connections: Vec<TcpStream>,
    text: String,
}

impl Carbon {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port for the server");
        listener
            .set_nonblocking(true)
            .expect("a server that does not wait");
        Carbon {
            listener,
            connections: Vec::new(),
            text: String::new(),
        }
    }

    fn port(&self) -> u16 {
        self.listener
            .local_addr()
            .expect("the server's port")
            .port()
    }

    /// What has arrived since the text was cleared.
    fn received(&mut self) -> &mut String {
        while let Ok((connection, _)) = self.listener.accept() {
            connection
                .set_nonblocking(true)
                .expect("a connection that does not wait");
            self.connections.push(connection);
        }
        let text = &mut self.text;
        self.connections.retain_mut(|connection| {
            let mut bytes = Vec::new();
            let end = connection.read_to_end(&mut bytes);
            text.push_str(&String::from_utf8_lossy(&bytes));
            matches!(end, Err(e) if e.kind() == ErrorKind::WouldBlock)
        });
        text
    }
}

/// A port that refuses connections for as long as the value lives.
pub(super) struct Nobody {
    _socket: OwnedFd,
    pub(super) port: u16,
}

impl Nobody {
    pub(super) fn new() -> Self {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)
            .expect("a socket that does not listen");
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a port for it");
        let address = getsockname(&socket).expect("its port");
        let port = SocketAddr::try_from(address).expect("its port").port();
        Nobody {
            _socket: socket,
            port,
        }
    }
}

/// Proves that `write_graphite` can come and go for ever, with a server, with a
/// server that is down, and with one whose state nobody knows.
#[test]
fn write_graphite_leaves_no_trace() {
    let carbon = RefCell::new(Carbon::start());
    let nobody = Nobody::new();
    let (up, down) = (carbon.borrow().port(), nobody.port);
    let config = format!(
        "<Node \"up\">\nHost \"127.0.0.1\"\nPort {up}\nProtocol \"tcp\"\nPrefix \"a.\"\n\
         Postfix \".z\"\nStoreRates true\nEscapeCharacter \"-\"\n</Node>\n\
         <Node \"down\">\nHost \"127.0.0.1\"\nPort {down}\nLogSendErrors true\n</Node>\n\
         <Node \"udp\">\nHost \"127.0.0.1\"\nPort {down}\nProtocol \"udp\"\n\
         LogSendErrors false\nReconnectInterval 1\n</Node>\n\
         <Node \"refused\">\nPrefix \"b.\"\nNosuch true\n</Node>"
    );
    let number = Cell::new(0);
    assert_no_trace(FEW, &["write_graphite"], |daemon| {
        number.set(number.get() + 1);
        carbon.borrow_mut().received().clear();
        let log = daemon.path("log");
        let log_size = size(&log);

        daemon
            .load("write_graphite", &[("config", &config)])
            .expect_ok();
        daemon
            .putval("churn/gauge-x", 1.0, f64::from(number.get()))
            .expect_ok();
        let line = format!("a.testhost.z.churn.gauge-x {} ", number.get());
        eventually(&format!("{line:?} at the server"), DEADLINE, || {
            daemon.ctl("FLUSH plugin=write_graphite/up").expect_ok();
            carbon.borrow_mut().received().contains(&line).then_some(())
        });
        wait_for_text(
            &log,
            log_size,
            &[&format!("Connecting to 127.0.0.1:{down} via tcp failed")],
        );
        daemon.unload("write_graphite").expect_ok();
    });
}
