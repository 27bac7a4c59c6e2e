//! What the monitor writes to the system's log.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use collectd_live_tests::{patience, skip};

use crate::support::{Broker, SOON};
use crate::{block, can_run, daemon};

/// Gives its command a `/dev` of its own, in which `log` is the socket `$0`.
const OWN_DEV: &str = r#"
set -e
dev=$(mktemp -d)
mount -t tmpfs own-dev "$dev"
for node in null zero full random urandom; do
	: >"$dev/$node"
	mount --bind "/dev/$node" "$dev/$node"
done
ln -s "$0" "$dev/log"
mount --move "$dev" /dev
rmdir "$dev"
exec "$@"
"#;

/// Runs a command in a mount namespace of its own.
const OWN_MOUNTS: [&str; 4] = ["unshare", "--mount", "--propagation", "private"];

fn has_own_mounts() -> bool {
    Command::new(OWN_MOUNTS[0])
        .args(&OWN_MOUNTS[1..])
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
}

#[test]
fn lines_go_to_the_systems_log_where_the_block_says_so() {
    const NAME: &str = "lines_go_to_the_systems_log_where_the_block_says_so";
    if !can_run(NAME) {
        return;
    }
    if !has_own_mounts() {
        return skip(NAME, "the privilege to make a mount namespace");
    }
    let builder = daemon();
    let socket = builder.path("syslog");
    let syslog = UnixDatagram::bind(&socket).expect("a socket");
    syslog
        .set_read_timeout(Some(patience(SOON)))
        .expect("a timeout");
    let socket = socket.to_str().expect("UTF-8");
    let launcher = OWN_MOUNTS.into_iter().chain(["sh", "-c", OWN_DEV, socket]);
    let daemon = builder.launched_by(launcher).start();

    let broker = Broker::start();
    let block = format!(
        "{}LogDevice \"SYSLOG\"\nPassword \"hunter2\"\nUser \"somebody\"\n",
        block(&broker, &daemon.path("."))
    );
    daemon.load("monitor", &[("config", &block)]).expect_ok();

    let mut lines = Vec::new();
    let mut buffer = [0; 4096];
    while !lines
        .iter()
        .any(|line: &String| line.contains("listening for commands"))
    {
        let length = syslog
            .recv(&mut buffer)
            .unwrap_or_else(|e| panic!("{e}, after {lines:#?}"));
        lines.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    // Facility daemon; severity warning where anybody may send commands, else info.
    let severity = |line: &String| match line.contains("without a signature") {
        true => "<28>",
        false => "<30>",
    };
    assert!(
        lines
            .iter()
            .all(|line| line.starts_with(severity(line)) && line.contains("monitor plugin: ")),
        "{lines:#?}"
    );
    assert!(!lines.concat().contains("hunter2"), "{lines:#?}");
    let log = daemon.log();
    assert!(!log.contains("monitor plugin: "), "{log}");
    daemon.unload("monitor").expect_ok();
    daemon.stop();
}
