//! Plugins that talk to others: clients, servers and programs.

use std::cell::Cell;
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use collectd_live_tests::{eventually, may_change_user, own_address, Daemon, Variant};

use super::readers::wait_for_values;
use super::writers::Nobody;
use super::{assert_no_trace, configure_in_part, DEADLINE, FEW};
use crate::http::HttpServer;
use crate::mqtt::{Broker, MqttPeer};
use crate::rrd::last_update;

/// An address of a network for documentation: nobody has it.
const NOT_OURS: &str = "203.0.113.1";

/// Proves that `statsd` can come and go for ever, with packets to count.
#[test]
fn statsd_leaves_no_trace() {
    let address = own_address(8125);
    let config = |host: &str| {
        format!(
            "Host \"{host}\"\nPort \"{}\"\nCounterSum true\nTimerCount true\n\
             TimerPercentile 50\nTimerPercentile 90",
            address.port()
        )
    };
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket to send from");
    assert_no_trace(FEW, &["statsd"], |daemon| {
        let start = SystemTime::now();
        daemon
            .load(
                "statsd",
                &[
                    ("interval", "0.01"),
                    ("config", &config(&address.ip().to_string())),
                ],
            )
            .expect_ok();
        client
            .send_to(
                b"churn.c:1|c\nchurn.g:5|g\nchurn.t:3|ms\nchurn.s:a|s\n",
                address,
            )
            .expect("sending a packet");
        wait_for_values(
            daemon,
            start,
            &[
                "statsd/derive-churn.c",
                "statsd/count-churn.c",
                "statsd/gauge-churn.g",
                "statsd/latency-churn.t-percentile-90",
                "statsd/objects-churn.s",
            ],
        );
        daemon.unload("statsd").expect_ok();
        configure_in_part(daemon, "statsd", &config(NOT_OURS));
    });
}

/// Proves that `network` can come and go for ever, with values that go both ways
/// between two daemons, signed and encrypted, and with a socket that cannot be
/// opened.
#[test]
fn network_leaves_no_trace() {
    let (here, there) = (own_address(25_826), own_address(25_827));
    let dir = tempfile::tempdir().expect("a directory for the passwords");
    let passwords = dir.path().join("passwords");
    fs::write(&passwords, "churn: secret\n").expect("a file of passwords");
    let config = |listen: SocketAddrV4, server: SocketAddrV4, level: &str| {
        format!(
            "MaxPacketSize 1024\nTimeToLive 1\nReportStats true\n\
             <Listen \"{}\" \"{}\">\nSecurityLevel \"Sign\"\nAuthFile \"{}\"\n</Listen>\n\
             <Server \"{}\" \"{}\">\nSecurityLevel \"{level}\"\nUsername \"churn\"\n\
             Password \"secret\"\nResolveInterval 3600\n</Server>",
            listen.ip(),
            listen.port(),
            passwords.display(),
            server.ip(),
            server.port(),
        )
    };
    let peer = Daemon::builder(Variant::Patched)
        .load_plugin("network")
        .plugin_block("network", &config(there, here, "Sign"))
        .start();
    let config = format!(
        "{}\nListen \"{NOT_OURS}\" \"25826\"\nNosuch true",
        config(here, there, "Encrypt")
    );
    let number = Cell::new(0.0);
    assert_no_trace(FEW, &["network"], |daemon| {
        number.set(number.get() + 1.0);
        daemon.load("network", &[("config", &config)]).expect_ok();
        for (from, to, value) in [
            (daemon, &peer, "churn/gauge-out"),
            (&peer, daemon, "churn/gauge-in"),
        ] {
            from.putval(value, 1.0, number.get()).expect_ok();
            eventually(&format!("{value} at the other daemon"), DEADLINE, || {
                from.ctl("FLUSH plugin=network").expect_ok();
                (to.getval(value) == Some(number.get())).then_some(())
            });
        }
        daemon.unload("network").expect_ok();
    });
    peer.stop();
}

/// Proves that `unixsock` can be reloaded through itself for ever, with clients
/// that wait in it, and with a socket that cannot be opened.
#[test]
fn unixsock_reloads_itself_without_trace() {
    assert_no_trace(FEW, &[], |daemon| {
        let mut idle = daemon.connect();
        idle.command("LISTVAL").expect("an answer");
        let config = format!(
            "SocketFile \"{}\"\nSocketPerms \"0700\"\nDeleteSocket true",
            daemon.socket().display()
        );
        daemon.reload_control_socket(&[("config", &config)]);
        idle.command("LISTVAL")
            .expect_err("the connection should have ended");
        daemon.reload_control_socket(&[("config", "SocketFile \"/nosuch/socket\"")]);
    });
}

/// A user who is not root, for programs that `exec` starts.
fn ordinary_user() -> String {
    if may_change_user() {
        return String::from("nobody");
    }
    let output = Command::new("id").arg("-un").output().expect("id(1)");
    String::from_utf8(output.stdout)
        .expect("the name of a user")
        .trim_end()
        .to_owned()
}

/// The processes whose parent is the daemon.
fn children(daemon: &Daemon) -> Vec<String> {
    let parent = daemon.pid().to_string();
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .filter(|stat| {
            // The name, in parentheses, may hold anything.
            stat.rsplit(')')
                .next()
                .and_then(|rest| rest.split_whitespace().nth(1))
                == Some(parent.as_str())
        })
        .collect()
}

/// Whether the daemon ignores SIGCHLD, as it does unless a plugin changes that.
fn ignores_sigchld(daemon: &Daemon) -> bool {
    const SIGCHLD: u32 = 17;
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))
        .expect("the status of the daemon");
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .expect("a line SigIgn");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("a mask");
    mask & (1 << (SIGCHLD - 1)) != 0
}

/// The size of a file, zero if there is none.
fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Proves that `exec` can come and go for ever: with a program that ends, one
/// that does not, one that is refused and one that handles notifications.
#[test]
fn exec_leaves_no_trace() {
    let user = ordinary_user();
    assert_no_trace(FEW, &["exec"], |daemon| {
        let notified = daemon.path("notified");
        if !notified.exists() {
            // Another user has to find the file, and to write to it.
            fs::set_permissions(daemon.path("."), Permissions::from_mode(0o755))
                .expect("opening the daemon's directory");
            fs::write(&notified, "").expect("a file");
            fs::set_permissions(&notified, Permissions::from_mode(0o666)).expect("opening a file");
        }
        let size_before = size(&notified);
        let config = format!(
            "Exec \"{user}\" \"/bin/sh\" \"-c\" \"echo PUTVAL testhost/exec-short/gauge-x interval=0.1 N:1; echo oops >&2\"\n\
             Exec \"{user}\" \"/bin/sh\" \"-c\" \"while echo PUTVAL testhost/exec-long/gauge-x interval=0.1 N:2; do sleep 0.05; done\"\n\
             Exec \"root\" \"/bin/true\"\n\
             NotificationExec \"{user}\" \"/bin/sh\" \"-c\" \"cat >> {}\"\n\
             Nosuch true",
            notified.display()
        );
        let start = SystemTime::now();
        daemon
            .load("exec", &[("interval", "0.01"), ("config", &config)])
            .expect_ok();
        assert!(!ignores_sigchld(daemon), "children are not waited for");
        wait_for_values(daemon, start, &["exec-short/gauge-x", "exec-long/gauge-x"]);
        eventually("a notification in the file", DEADLINE, || {
            (size(&notified) > size_before).then_some(())
        });
        daemon.unload("exec").expect_ok();
        assert!(ignores_sigchld(daemon), "SIGCHLD has changed");
        eventually("the end of all programs", DEADLINE, || {
            children(daemon).is_empty().then_some(())
        });
    });
}

/// How many ends of pipes the daemon has open.
fn pipes(daemon: &Daemon) -> usize {
    let dir = format!("/proc/{}/fd", daemon.pid());
    fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{dir}: {e}"))
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .count()
}

/// A daemon whose directory programs of another user can write to, that user, and
/// how many ends of pipes are open.
fn daemon_for_programs() -> (Daemon, String, usize) {
    let daemon = Daemon::builder(Variant::Asan).available("exec").start();
    fs::set_permissions(daemon.path("."), Permissions::from_mode(0o777))
        .expect("opening the daemon's directory");
    let pipes = pipes(&daemon);
    (daemon, ordinary_user(), pipes)
}

/// Unloads `exec` although a program holds on to a thread, and checks that
/// nothing of it remains, and that it can be loaded again.
#[track_caller]
fn unload_exec(daemon: &Daemon, pipes_before: usize, config: &str) {
    daemon.unload("exec").expect_ok();
    daemon.assert_gone("exec");
    assert!(ignores_sigchld(daemon), "SIGCHLD has changed");
    assert_eq!(pipes(daemon), pipes_before, "pipes");
    daemon.load("exec", &[("config", config)]).expect_ok();
    daemon.unload("exec").expect_ok();
}

/// Proves that `exec` goes although a program does not read a notification that
/// is too long for the pipe.
#[test]
fn exec_goes_although_a_notification_is_not_read() {
    let (daemon, user, before) = daemon_for_programs();
    let (started, release) = (daemon.path("started"), daemon.path("release"));
    let config = format!(
        "NotificationExec \"{user}\" \"/bin/sh\" \"-c\" \"head -c 100 | grep -q long || exit; : > {}; \
         while [ ! -e {} ]; do sleep 0.1; done\"",
        started.display(),
        release.display()
    );
    daemon.load("exec", &[("config", &config)]).expect_ok();
    let long = "x".repeat(200_000);
    daemon
        .ctl(&format!(
            "PUTNOTIF severity=okay time=1 s:long={long} message=hello"
        ))
        .expect_ok();
    eventually("the program to have been started", DEADLINE, || {
        started.exists().then_some(())
    });
    unload_exec(&daemon, before, &config);
    fs::write(&release, "").expect("letting the program end");
    daemon.wait_for_log("does not read its notification to the end");
    eventually("the end of all programs", DEADLINE, || {
        children(&daemon).is_empty().then_some(())
    });
    daemon.stop();
}

/// Proves that `exec` goes although a program neither ends nor stops talking.
#[test]
fn exec_goes_although_a_program_goes_on_and_on() {
    let (daemon, user, before) = daemon_for_programs();
    // So many that there is always something to read. They end when nobody
    // listens any more.
    let config = format!(
        "Exec \"{user}\" \"/bin/sh\" \"-c\" \"trap '' TERM; \
         for i in 1 2 3 4 5 6 7 8; do yes PUTVAL testhost/exec/gauge-x interval=1 N:1 & done; wait\""
    );
    daemon.load("exec", &[("config", &config)]).expect_ok();
    eventually("a value", DEADLINE, || daemon.getval("exec/gauge-x"));
    unload_exec(&daemon, before, &config);
    daemon.wait_for_log("A program does not end, it is left to itself.");
    eventually("the end of all programs", DEADLINE, || {
        children(&daemon).is_empty().then_some(())
    });
    daemon.stop();
}

/// Proves that `write_http` can come and go for ever, with values in each format
/// and notifications to post, with two nodes of one name, with a server that is
/// down and with a node that is refused.
#[test]
fn write_http_leaves_no_trace() {
    let server = HttpServer::start();
    let nobody = Nobody::new();
    let config = format!(
        "<Node \"command\">\nURL \"{}\"\nNotifications true\nBufferSize 2048\nTimeout 5000\n\
         LowSpeedLimit 1\nHeader \"X-Churn: yes\"\n\
         <Statistics>\nTotalTime true\nSizeUpload true\nSpeedUpload true\n</Statistics>\n</Node>\n\
         <Node \"json\">\nURL \"{}\"\nFormat \"JSON\"\nStoreRates true\nLogHttpError true\n</Node>\n\
         <Node \"kairos\">\nURL \"{}\"\nFormat \"KAIROSDB\"\nAttribute \"key\" \"value\"\n\
         Prefix \"before\"\nTTL 10\n</Node>\n\
         <Node \"twice\">\nURL \"{}\"\nNotifications true\n</Node>\n\
         <Node \"twice\">\nURL \"{}\"\n</Node>\n\
         <Node \"down\">\nURL \"http://127.0.0.1:{}/\"\nUser \"churn\"\nPassword \"secret\"\n</Node>\n\
         <Node \"refused\">\nURL \"{}\"\nFormat \"nosuch\"\n</Node>",
        server.url("command"),
        server.url("json"),
        server.url("kairos"),
        server.url("first"),
        server.url("second"),
        nobody.port,
        server.url("refused"),
    );
    let number = Cell::new(0.0);
    assert_no_trace(FEW, &["write_http"], |daemon| {
        number.set(number.get() + 1.0);
        server.clear();
        daemon
            .load("write_http", &[("config", &config)])
            .expect_ok();
        daemon
            .putval("churn/gauge-x", 1.0, number.get())
            .expect_ok();
        let values = format!("\"values\":[{}]", number.get());
        for (page, part) in [
            ("command", "PUTVAL testhost/churn/gauge-x"),
            ("json", &values),
            ("kairos", "before.churn"),
            ("kairos", "\"key\": \"value\""),
            ("second", "PUTVAL testhost/churn/gauge-x"),
        ] {
            eventually(&format!("{part:?} at the page {page}"), DEADLINE, || {
                daemon.ctl("FLUSH").expect_ok();
                server.posted(page).contains(part).then_some(())
            });
        }
        daemon
            .ctl("PUTNOTIF severity=okay time=1 message=\"Churn.\"")
            .expect_ok();
        for page in ["command", "first"] {
            let posted = server.posted(page);
            assert!(posted.contains("Churn."), "{page} has got:\n{posted}");
        }
        daemon.unload("write_http").expect_ok();
    });
}

/// The files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.expect("a directory of files").path())
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// Proves that `rrdtool` can come and go for ever, with files that it creates and
/// updates, at once or in a thread of their own.
#[test]
fn rrdtool_leaves_no_trace() {
    let number = Cell::new(0_u32);
    assert_no_trace(FEW, &["rrdtool"], |daemon| {
        number.set(number.get() + 1);
        let data_dir = daemon.path("rrd");
        let config = format!(
            "DataDir \"{}/\"\nStepSize 1\nHeartBeat 10\nRRARows 10\nRRATimespan \"60, 120\"\n\
             XFF 0.5\nCacheTimeout 3600\nRandomTimeout 10\nWritesPerSecond 100",
            data_dir.display()
        );
        let time = 1_700_000_000 + number.get();
        let putval = |value: &str| {
            let identifier = daemon.identifier(value);
            daemon
                .ctl(&format!(
                    "PUTVAL {identifier} interval=1 {time}:{}",
                    number.get()
                ))
                .expect_ok();
        };

        daemon.load("rrdtool", &[("config", &config)]).expect_ok();
        putval("churn/gauge-x");
        let file = data_dir.join("testhost/churn/gauge-x.rrd");
        let expected = format!("{time}: {}", number.get());
        eventually(&format!("{expected:?} in the file"), DEADLINE, || {
            daemon.ctl("FLUSH plugin=rrdtool").expect_ok();
            last_update(&file).contains(&expected).then_some(())
        });
        daemon.unload("rrdtool").expect_ok();

        let asynchronously = format!("{config}\nCreateFilesAsync true");
        daemon
            .load("rrdtool", &[("config", &asynchronously)])
            .expect_ok();
        let file = data_dir.join("testhost/churn/gauge-y.rrd");
        if file.exists() {
            fs::remove_file(&file).expect("removing a file");
        }
        putval("churn/gauge-y");
        eventually("a new file", DEADLINE, || {
            files(&data_dir)
                .iter()
                .any(|path| path.to_string_lossy().contains("gauge-y.rrd"))
                .then_some(())
        });
        daemon.unload("rrdtool").expect_ok();
        assert!(file.exists(), "half a file: {:?}", files(&data_dir));

        configure_in_part(daemon, "rrdtool", &format!("{config}\nRRARows 0"));
    });
}

/// Proves that `mqtt` can come and go for ever, with values to publish and to
/// receive, with a broker that is down and with blocks that are refused.
#[test]
fn mqtt_leaves_no_trace() {
    let broker = Broker::start(1883);
    let peer = MqttPeer::connect(&broker, "out/testhost/churn/gauge-out");
    let nobody = Nobody::new();
    let address = broker.address();
    let (host, port) = (address.ip(), address.port());
    let config = format!(
        "<Publish \"out\">\nHost \"{host}\"\nPort {port}\nClientId \"churn-out\"\nQoS 2\n\
         Prefix \"out\"\nStoreRates false\nUser \"churn\"\nPassword \"secret\"\n</Publish>\n\
         <Subscribe \"in\">\nHost \"{host}\"\nPort {port}\nClientId \"churn-in\"\nQoS 1\n\
         Topic \"in/#\"\n</Subscribe>\n\
         <Publish \"down\">\nHost \"127.0.0.1\"\nPort {}\nClientId \"churn-down\"\n</Publish>\n\
         <Subscribe \"down\">\nHost \"127.0.0.1\"\nPort {}\nTopic \"down/#\"\nCACert \"/nosuch\"\n\
         CertificateFile \"/nosuch\"\nCertificateKeyFile \"/nosuch\"\nTLSProtocol \"tlsv1.2\"\n\
         CipherSuite \"nosuch\"\n</Subscribe>\n\
         <Publish>\n</Publish>\n<Subscribe>\n</Subscribe>\nNosuch true",
        nobody.port, nobody.port
    );
    let number = Cell::new(0.0);
    assert_no_trace(FEW, &["mqtt"], |daemon| {
        number.set(number.get() + 1.0);
        daemon.load("mqtt", &[("config", &config)]).expect_ok();
        let end = format!(":{}\0", number.get());
        eventually("the value at the broker", DEADLINE, || {
            // The plugin completes a delivery when it has something else to do.
            daemon
                .putval("churn/gauge-out", 1.0, number.get())
                .expect_ok();
            peer.received().ends_with(&end).then_some(())
        });
        eventually("a value from the broker", DEADLINE, || {
            peer.publish("in/testhost/churn/gauge-in", &format!("N:{}", number.get()));
            (daemon.getval("churn/gauge-in") == Some(number.get())).then_some(())
        });
        daemon.unload("mqtt").expect_ok();
    });
}
