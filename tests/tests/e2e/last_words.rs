//! What has reached a plugin before it is unloaded is not lost.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use collectd_live_tests::{eventually, own_address, Daemon, Variant};

use crate::http::HttpServer;
use crate::mqtt::{Broker, MqttPeer};
use crate::rrd::last_update;

const DEADLINE: Duration = Duration::from_secs(20);

/// How many packets are sent: fewer than a socket's buffer holds.
const PACKETS: u32 = 100;

fn client() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket to send from")
}

fn address_options(address: SocketAddrV4) -> String {
    format!("\"{}\" \"{}\"", address.ip(), address.port())
}

/// Proves that `statsd` reports what it has counted since it was read last, with
/// what is still in its socket.
#[test]
fn statsd_reports_what_came_last() {
    let address = own_address(8126);
    let daemon = Daemon::builder(Variant::Patched)
        .available("statsd")
        .start();
    let config = format!("Host \"{}\"\nPort \"{}\"", address.ip(), address.port());
    daemon
        .load("statsd", &[("interval", "3600"), ("config", &config)])
        .expect_ok();
    let client = client();
    for number in 1..=PACKETS {
        client
            .send_to(format!("last:{number}|g").as_bytes(), address)
            .expect("sending a packet");
    }
    daemon.unload("statsd").expect_ok();
    eventually("the last value", DEADLINE, || {
        (daemon.getval("statsd/gauge-last") == Some(f64::from(PACKETS))).then_some(())
    });
    daemon.stop();
}

/// A packet of collectd's protocol with one value, `last/gauge-<number>`.
fn network_packet(number: u32) -> Vec<u8> {
    fn part(packet: &mut Vec<u8>, kind: u16, content: &[u8]) {
        let length = u16::try_from(content.len() + 4).expect("a short part");
        packet.extend(kind.to_be_bytes());
        packet.extend(length.to_be_bytes());
        packet.extend(content);
    }
    const GAUGE: u8 = 1;
    let now = std::time::UNIX_EPOCH
        .elapsed()
        .expect("a clock after 1970")
        .as_secs();
    let mut packet = Vec::new();
    part(&mut packet, 0, b"testhost\0");
    part(&mut packet, 1, &now.to_be_bytes());
    part(&mut packet, 7, &3600_u64.to_be_bytes());
    part(&mut packet, 2, b"last\0");
    part(&mut packet, 4, b"gauge\0");
    part(&mut packet, 5, format!("{number}\0").as_bytes());
    let mut values = vec![0, 1, GAUGE];
    values.extend(f64::from(number).to_le_bytes());
    part(&mut packet, 6, &values);
    packet
}

/// Proves that `network` dispatches every packet that has arrived.
#[test]
fn network_dispatches_what_came_last() {
    let address = own_address(25_828);
    let daemon = Daemon::builder(Variant::Patched)
        .available("network")
        .start();
    let config = format!("Listen {}", address_options(address));
    daemon.load("network", &[("config", &config)]).expect_ok();
    let client = client();
    for number in 1..=PACKETS {
        client
            .send_to(&network_packet(number), address)
            .expect("sending a packet");
    }
    daemon.unload("network").expect_ok();
    eventually("all values", DEADLINE, || {
        let listed = daemon.listval();
        (1..=PACKETS)
            .all(|number| listed.contains_key(&format!("last/gauge-{number}")))
            .then_some(())
    });
    daemon.stop();
}

/// Gives a writer one value, which it is to keep in a buffer, and unloads it.
#[track_caller]
fn write_and_unload(daemon: &Daemon, plugin: &str, config: &str) {
    daemon.load(plugin, &[("config", config)]).expect_ok();
    // The last writer, so that the value is in the log when the other has it, too.
    daemon.load("write_log", &[]).expect_ok();
    let identifier = daemon.identifier("last/gauge-x");
    daemon
        .ctl(&format!("PUTVAL {identifier} interval=10 1700000000:42"))
        .expect_ok();
    daemon.wait_for_log("write_log values:");
    daemon.unload(plugin).expect_ok();
}

fn daemon_with(plugin: &str) -> Daemon {
    Daemon::builder(Variant::Patched)
        .available(plugin)
        .available("write_log")
        .start()
}

/// Proves that `rrdtool` writes what it has in its cache.
#[test]
fn rrdtool_writes_what_came_last() {
    let daemon = daemon_with("rrdtool");
    let config = format!(
        "DataDir \"{}\"\nCacheTimeout 3600\nCacheFlush 7200\nWritesPerSecond 0.001",
        daemon.path("rrd").display()
    );
    write_and_unload(&daemon, "rrdtool", &config);
    let text = last_update(&daemon.path("rrd/testhost/last/gauge-x.rrd"));
    assert!(text.contains("1700000000: 42"), "{text}");
    daemon.stop();
}

/// Proves that `write_http` posts what it has in its buffer.
#[test]
fn write_http_posts_what_came_last() {
    let server = HttpServer::start();
    let daemon = daemon_with("write_http");
    let config = format!("<Node \"last\">\nURL \"{}\"\n</Node>", server.url("last"));
    write_and_unload(&daemon, "write_http", &config);
    let posted = server.posted("last");
    assert!(posted.contains("testhost/last/gauge-x"), "{posted}");
    daemon.stop();
}

/// Proves that `mqtt` completes the delivery of what it has published.
#[test]
fn mqtt_delivers_what_came_last() {
    let broker = Broker::start(1884);
    let peer = MqttPeer::connect(&broker, "last/testhost/last/gauge-x");
    let daemon = daemon_with("mqtt");
    let config = format!(
        "<Publish \"last\">\nHost \"{}\"\nPort {}\nClientId \"last\"\nQoS 2\nPrefix \"last\"\n\
         </Publish>",
        broker.address().ip(),
        broker.address().port()
    );
    write_and_unload(&daemon, "mqtt", &config);
    eventually("the value at the broker", DEADLINE, || {
        peer.received().contains(":42").then_some(())
    });
    daemon.stop();
}

/// Proves that `email` lets the daemon end while clients, more than it serves at a
/// time, are connected.
#[test]
fn email_ends_with_clients_connected() {
    let builder = Daemon::builder(Variant::Patched);
    let socket = builder.path("email");
    let config = format!("SocketFile \"{}\"\nMaxConns 2", socket.display());
    let daemon = builder
        .load_plugin("email")
        .plugin_block("email", &config)
        .start();
    let clients: Vec<UnixStream> = (0..4)
        .map(|_| {
            let mut client =
                eventually("the socket", DEADLINE, || UnixStream::connect(&socket).ok());
            client.write_all(b"e:ham:100\n").expect("a line");
            client
        })
        .collect();
    eventually("a value", DEADLINE, || {
        daemon.getval("email/email_count-ham")
    });
    daemon.stop();
    drop(clients);
}
