//! Where values and notifications come from, as a plugin can tell.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use collectd_live_tests::{
    eventually, may_change_user, own_address, skip, Builder, Daemon, Variant,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// A daemon with a plugin that writes down where everything comes from, to the
/// file that is returned.
fn with_witness() -> (Builder, PathBuf) {
    let builder = Daemon::builder(Variant::Patched).open_to_all_users();
    let file = builder.path("witness");
    let config = format!("File \"{}\"", file.display());
    (
        builder
            .load_plugin("witness")
            .plugin_block("witness", &config),
        file,
    )
}

/// Waits for a line.
#[track_caller]
fn wait_for(file: &Path, line: &str) {
    eventually(&format!("the line {line:?}"), DEADLINE, || {
        let lines = fs::read_to_string(file).ok()?;
        lines.lines().any(|other| other == line).then_some(())
    });
}

/// What is written about a thing: from which plugins, and whether foreign.
fn sources(file: &Path, thing: &str) -> Vec<String> {
    let lines = fs::read_to_string(file).unwrap_or_default();
    let mut sources: Vec<String> = lines
        .lines()
        .filter_map(|line| line.strip_prefix(thing)?.strip_prefix(' '))
        .map(str::to_owned)
        .collect();
    sources.sort();
    sources.dedup();
    sources
}

/// Proves that what the clients of the control socket send is told apart by who
/// they are, also where another plugin makes something of it, at once or later.
#[test]
fn what_other_users_send_is_foreign() {
    if !may_change_user() {
        skip(
            "what_other_users_send_is_foreign",
            "root, to become another user",
        );
        return;
    }
    let (builder, file) = with_witness();
    let daemon = builder
        .load_plugin("memory")
        .load_plugin("threshold")
        .plugin_block(
            "threshold",
            "<Type \"gauge\">\nFailureMax 10\nHits 1\nPersist true\nInvert false\n</Type>",
        )
        .load_plugin("aggregation")
        .plugin_block(
            "aggregation",
            "<Aggregation>\nPlugin \"mixed\"\nType \"gauge\"\nGroupBy \"Host\"\nCalculateSum true\n</Aggregation>\n\
             <Aggregation>\nPlugin \"own\"\nType \"gauge\"\nGroupBy \"Host\"\nCalculateSum true\n</Aggregation>",
        )
        .load_plugin("exec")
        .plugin_block(
            "exec",
            "Exec \"nobody\" \"/bin/sh\" \"-c\" \"while echo PUTVAL testhost/program/gauge-x interval=10 N:1; do sleep 0.1; done\"",
        )
        .start();
    let put = |rest: &str, value: &str| {
        let name = daemon.identifier(rest);
        [
            "putval".to_owned(),
            name,
            "interval=1".to_owned(),
            format!("N:{value}"),
        ]
    };
    let as_nobody = |args: &[String]| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let result = daemon.collectdctl_as_nobody(&args);
        assert_eq!(result.code, Some(0), "{result:?}");
    };

    // What plugins read, and what programs report that the administrator has chosen.
    wait_for(&file, "value testhost/memory/memory-free memory local");
    wait_for(&file, "value testhost/program/gauge-x exec local");

    // One of the values of an interval is enough.
    daemon.putval("own/gauge-a", 0.2, 1.0).expect_ok();
    daemon.putval("mixed/gauge-a", 0.2, 1.0).expect_ok();
    as_nobody(&put("mixed/gauge-b", "1"));
    wait_for(&file, "value testhost/own/gauge-a unixsock local");
    wait_for(&file, "value testhost/mixed/gauge-a unixsock local");
    wait_for(&file, "value testhost/mixed/gauge-b unixsock foreign");
    wait_for(
        &file,
        "value testhost/aggregation-own-sum/gauge aggregation local",
    );
    wait_for(
        &file,
        "value testhost/aggregation-mixed-sum/gauge aggregation foreign",
    );

    // What threshold has to say of a value is as foreign as the value, and so is
    // what becomes of a value that does not come any more.
    daemon.putval("high/gauge-a", 0.2, 20.0).expect_ok();
    as_nobody(&put("high/gauge-b", "20"));
    wait_for(&file, "notification high/gauge/a threshold local");
    wait_for(&file, "notification high/gauge/b threshold foreign");
    wait_for(&file, "missing testhost/high/gauge-a unixsock local");
    wait_for(&file, "missing testhost/high/gauge-b unixsock foreign");

    let notify = "PUTNOTIF severity=failure time=1 message=hello host=testhost plugin=note type=gauge type_instance=";
    daemon.ctl(&format!("{notify}a")).expect_ok();
    daemon.send_as_nobody(&format!("{notify}b"));
    wait_for(&file, "notification note/gauge/a unixsock local");
    wait_for(&file, "notification note/gauge/b unixsock foreign");

    // What the daemon tells of itself.
    daemon.unload("memory").expect_ok();
    wait_for(
        &file,
        "notification collectd/lifecycle/memory collectd local",
    );

    // Nothing of one sticks to another: read threads and connections are shared.
    for (thing, expected) in [
        ("value testhost/memory/memory-free", "memory local"),
        ("value testhost/program/gauge-x", "exec local"),
        ("value testhost/own/gauge-a", "unixsock local"),
        (
            "value testhost/aggregation-own-sum/gauge",
            "aggregation local",
        ),
        ("notification high/gauge/a", "threshold local"),
    ] {
        assert_eq!(sources(&file, thing), [expected], "{thing}");
    }
    daemon.stop();
}

/// Proves that plugins which take what others send say so, and that what the same
/// plugins report themselves is theirs.
#[test]
fn what_listeners_receive_is_foreign() {
    let (statsd, here, there) = (own_address(8125), own_address(25_826), own_address(25_827));
    let (builder, file) = with_witness();
    let mail = builder.path("email");
    let daemon = builder
        .load_plugin("memory")
        .load_plugin("statsd")
        .plugin_block(
            "statsd",
            &format!("Host \"{}\"\nPort \"{}\"", statsd.ip(), statsd.port()),
        )
        .load_plugin("network")
        .plugin_block(
            "network",
            &format!(
                "ReportStats true\nListen \"{}\" \"{}\"",
                here.ip(),
                here.port()
            ),
        )
        .load_plugin("email")
        .plugin_block("email", &format!("SocketFile \"{}\"", mail.display()))
        .start();
    let sender = Daemon::builder(Variant::Patched)
        .option("ReadThreads 1")
        .load_plugin("network")
        .plugin_block(
            "network",
            &format!(
                "Listen \"{}\" \"{}\"\nServer \"{}\" \"{}\"",
                there.ip(),
                there.port(),
                here.ip(),
                here.port()
            ),
        )
        .start();

    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket to send from");
    client
        .send_to(b"sent:5|g\n", statsd)
        .expect("sending a packet");
    wait_for(&file, "value testhost/statsd/gauge-sent statsd foreign");

    sender.putval("afar/gauge-x", 10.0, 1.0).expect_ok();
    sender
        .ctl("PUTNOTIF severity=failure time=1 message=hello host=testhost plugin=afar type=gauge type_instance=x")
        .expect_ok();
    eventually("the value at the other daemon", DEADLINE, || {
        sender.ctl("FLUSH plugin=network").expect_ok();
        (!sources(&file, "value testhost/afar/gauge-x").is_empty()).then_some(())
    });
    wait_for(&file, "value testhost/afar/gauge-x network foreign");
    wait_for(&file, "notification afar/gauge/x network foreign");
    wait_for(&file, "value testhost/network/if_packets network local");

    eventually("a client of email", DEADLINE, || {
        let mut client = UnixStream::connect(&mail).ok()?;
        client.write_all(b"e:ham:100\n").ok()
    });
    wait_for(&file, "value testhost/email/email_count-ham email foreign");

    // The read threads are shared.
    let from = fs::metadata(&file).expect("what was written").len();
    eventually("a value of memory after the others", DEADLINE, || {
        let lines = fs::read_to_string(&file).ok()?;
        let since = lines.get(usize::try_from(from).ok()?..)?;
        since
            .contains("value testhost/memory/memory-free")
            .then_some(())
    });
    assert_eq!(
        sources(&file, "value testhost/memory/memory-free"),
        ["memory local"]
    );
    sender.stop();
    daemon.stop();
}
