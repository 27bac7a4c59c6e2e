//! The plugin of the control socket goes through its own socket.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use collectd_live_tests::{eventually, patience, Daemon, Variant};

const DEADLINE: Duration = Duration::from_secs(20);

/// A connection for more, or less, than a command at a time.
fn connect(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.socket()).expect("a connection");
    stream
        .set_read_timeout(Some(patience(DEADLINE)))
        .expect("a deadline");
    stream
}

/// Waits until the control socket is gone, its file and its plugin.
#[track_caller]
fn wait_until_gone(daemon: &Daemon) {
    daemon.wait_for_log("Plugin \"unixsock\" is unloaded");
    assert!(!daemon.socket().exists(), "the socket should be removed");
    assert!(!daemon.is_mapped("unixsock"), "unixsock.so is still mapped");
}

/// Proves that the answer comes before the end, that a client in the middle of a
/// line learns that it was not carried out, and that the outcome is told.
#[test]
fn the_control_socket_can_be_unloaded_through_itself() {
    let daemon = Daemon::builder(Variant::Asan).start();
    let mut halfway = connect(&daemon);
    halfway
        .write_all(b"PUTVAL testhost/half/gauge-x interval=10 N:1")
        .expect("half a command");

    let reply = daemon.unload("unixsock").expect_ok();
    assert!(reply.text.starts_with("accepted"), "{}", reply.text);
    wait_until_gone(&daemon);
    daemon.wait_for_log("Notification: severity = OKAY");

    let mut answer = String::new();
    halfway.read_to_string(&mut answer).expect("an answer");
    assert_eq!(
        answer,
        "-1 The socket is being closed, the line was not complete.\n"
    );
    daemon.stop();
}

/// Proves that clients who wait for other operations do not keep the plugin from
/// going, and that their operations are carried out.
#[test]
fn the_control_socket_goes_although_clients_wait_for_their_turn() {
    let builder = Daemon::builder(Variant::Patched);
    let (entered, release) = (builder.path("entered"), builder.path("release"));
    let daemon = builder.available("slowinit").available("cpu").start();
    let config = format!(
        "Entered \"{}\"\nRelease \"{}\"",
        entered.display(),
        release.display()
    );
    let mut third = BufReader::new(connect(&daemon));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| daemon.load("slowinit", &[("config", &config)]));
        eventually("an operation that takes its time", DEADLINE, || {
            entered.exists().then_some(())
        });
        let reply = daemon.unload("unixsock").expect_ok();
        assert!(reply.text.starts_with("accepted"), "{}", reply.text);

        // When the first line is answered the second has arrived, too.
        third
            .get_mut()
            .write_all(b"LISTVAL\nLOADPLUGIN cpu\n")
            .expect("two commands");
        let mut answer = String::new();
        third.read_line(&mut answer).expect("an answer");
        assert_eq!(answer, "0 Values found\n");

        fs::write(&release, "").expect("a file");
        first.join().expect("the first client").expect_ok();
        answer.clear();
        third.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("0 accepted"), "{answer}");
    });
    wait_until_gone(&daemon);
    daemon.wait_for_log("Plugin \"cpu\" is loaded and READY");
    daemon.stop();
}
