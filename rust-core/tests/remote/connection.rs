//! The connection: there, not there, there again, and not allowed.

use crate::support::{broker_is_installed, Broker, Sender, SOON};
use crate::{block, block_at, Running};
use collectd_live_tests::eventually;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

/// Each version with each quality of service.
fn every_way() -> impl Iterator<Item = (&'static str, f64)> {
    let versions = ["3.1.1", "5"].into_iter();
    versions.flat_map(|version| [0.0, 1.0, 2.0].map(|qos| (version, qos)))
}

#[test]
fn a_broker_that_is_absent_at_start_is_found_later() {
    if !broker_is_installed("a_broker_that_is_absent_at_start_is_found_later") {
        return;
    }
    let mut broker = Broker::prepared("allow_anonymous true\n", |_| {});
    let monitor = Running::start(&broker);
    monitor.logged("still cannot connect", 3);
    // It is an error once, not each time.
    assert_eq!(monitor.daemon.count("trying again:"), 1);
    broker.start_again();
    let monitor = monitor.listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "hello", "exec");
    assert_eq!(sender.code_and_message("1").0, 0);
    drop(monitor);
}

#[test]
fn a_broker_that_comes_back_is_found_and_results_have_waited() {
    if !broker_is_installed("a_broker_that_comes_back_is_found_and_results_have_waited") {
        return;
    }
    for (protocol, qos) in every_way() {
        let mut broker = Broker::start();
        let block = block(&broker).with("QoS", qos).with("Protocol", protocol);
        let monitor = Running::with(block).listening();
        let sender = Sender::listen(&broker, "results");
        sender.command("1", "slow", "two");
        monitor.logged("started task=1", 1);
        broker.kill();
        monitor.logged("is lost", 1);
        monitor.logged("finished task=1", 1);
        broker.start_again();
        // The monitor may be back before the sender is, so the result is waited for in the log.
        let late = Sender::listen(&broker, "results");
        monitor.logged("listening for commands", 2);
        late.command("2", "hello", "exec");
        assert_eq!(late.code_and_message("2").0, 0);
        eventually("the result that was kept reaches the broker", SOON, || {
            let log = broker.log();
            let sent = log
                .lines()
                .filter(|l| l.contains("Received PUBLISH from collectd-monitor-node1"));
            (sent.count() >= 2).then_some(())
        });
    }
}

#[test]
fn a_result_waits_for_the_broker_even_across_a_restart_of_the_monitor() {
    if !broker_is_installed("a_result_waits_for_the_broker_even_across_a_restart_of_the_monitor") {
        return;
    }
    for (protocol, qos) in every_way() {
        let mut broker = Broker::start();
        let address = broker.address();
        let with = || {
            block_at(&address)
                .with("QoS", qos)
                .with("Protocol", protocol)
        };
        let monitor = Running::with(with()).listening();
        let dir = Rc::clone(&monitor.dir);
        let sender = Sender::listen(&broker, "results");
        sender.command("1", "slow", "two");
        monitor.logged("started task=1", 1);
        broker.kill();
        monitor.logged("finished", 1);
        monitor.monitor.shutdown();
        assert_eq!(monitor.daemon.count("are kept for the next start"), 1);
        drop((monitor, sender));
        broker.start_again();
        let sender = Sender::listen(&broker, "results");
        let monitor = Running::in_dir(with(), &dir);
        let expected = (0, "two".to_owned());
        assert_eq!(sender.code_and_message("1"), expected);
        drop(monitor);
        // Now the broker has it.
        let _monitor = Running::in_dir(with(), &dir).listening();
        sender.command("2", "hello", "exec");
        assert_eq!(sender.code_and_message("2").0, 0);
        assert_eq!(sender.results("1").len(), 1);
    }
}

#[test]
fn a_kept_session_delivers_what_was_sent_meanwhile() {
    if !broker_is_installed("a_kept_session_delivers_what_was_sent_meanwhile") {
        return;
    }
    let broker = Broker::start();
    drop(Running::start(&broker).listening());
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "hello", "exec");
    eventually("the broker has the command", SOON, || {
        broker
            .log()
            .contains("Received PUBREL from sender")
            .then_some(())
    });
    let _monitor = Running::start(&broker).listening();
    assert_eq!(sender.code_and_message("1").0, 0);
}

#[test]
fn a_clean_session_has_nothing_of_what_was_sent_meanwhile() {
    if !broker_is_installed("a_clean_session_has_nothing_of_what_was_sent_meanwhile") {
        return;
    }
    for protocol in ["3.1.1", "5"] {
        let broker = Broker::start();
        let with = || {
            block(&broker)
                .with("CleanSession", true)
                .with("Protocol", protocol)
        };
        drop(Running::with(with()).listening());
        let sender = Sender::listen(&broker, "results");
        sender.command("1", "hello", "exec");
        eventually("the broker has the command", SOON, || {
            broker
                .log()
                .contains("Received PUBREL from sender")
                .then_some(())
        });
        let _monitor = Running::with(with()).listening();
        sender.command("2", "hello", "exec");
        assert_eq!(sender.code_and_message("2").0, 0);
        assert_eq!(sender.results("1").len(), 0, "with MQTT {protocol}");
    }
}

#[test]
fn topics_and_the_client_id_hold_the_name_of_the_host() {
    if !broker_is_installed("topics_and_the_client_id_hold_the_name_of_the_host") {
        return;
    }
    let broker = Broker::start();
    let mut block = block(&broker);
    for option in &mut block.children {
        if option.is("CommandTopic") || option.is("CommandResultTopic") {
            let topic = format!("{}/%h", option.key);
            option.values = vec![topic.as_str().into()];
        }
    }
    let _monitor = Running::with(block).listening();
    let sender = Sender::listen(&broker, "CommandResultTopic/node1");
    let json = r#"{"task_id":1,"service":"hello","command":"exec"}"#;
    sender.publish("CommandTopic/node1", json);
    assert_eq!(sender.code_and_message("1").0, 0);
    assert!(broker.log().contains("as collectd-monitor-node1"));
}

#[test]
fn the_status_says_who_is_there_and_who_has_left() {
    if !broker_is_installed("the_status_says_who_is_there_and_who_has_left") {
        return;
    }
    let broker = Broker::start();
    let with = || block(&broker).with("StatusTopic", "status/%h");
    let status = |watcher: &Sender, count: usize| -> serde_json::Value {
        let all = eventually("the status", SOON, || {
            Some(watcher.received()).filter(|all| all.len() == count)
        });
        serde_json::from_str(&all[count - 1]).unwrap()
    };
    let watcher = Sender::listen(&broker, "status/node1");
    let monitor = Running::with(with()).listening();
    let dir = Rc::clone(&monitor.dir);
    let first = status(&watcher, 1);
    assert_eq!(
        (&first["state"], &first["host"], &first["starts"]),
        (&"online".into(), &"node1".into(), &1.into())
    );
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert!(first["capabilities"]
        .as_array()
        .unwrap()
        .contains(&"commands".into()));
    monitor.monitor.shutdown();
    let second = status(&watcher, 2);
    assert_eq!(
        (&second["state"], &second["reason"]),
        (&"offline".into(), &"stopped".into())
    );
    // Whoever comes later is told as well.
    let late = Sender::listen(&broker, "status/#");
    assert_eq!(status(&late, 1), second);
    drop(monitor);
    let _monitor = Running::in_dir(with(), &dir).listening();
    let third = status(&late, 2);
    assert_eq!(
        (&third["state"], &third["starts"]),
        (&"online".into(), &2.into())
    );
}

#[test]
fn the_password_may_stand_in_a_file() {
    if !broker_is_installed("the_password_may_stand_in_a_file") {
        return;
    }
    let broker = Broker::with_user("u", "hunter2", |dir| {
        fs::write(dir.join("password"), "hunter2\n").expect("a file");
    });
    let path = broker.dir().join("password");
    let block = block(&broker)
        .with("User", "u")
        .with("PasswordFile", path.to_str().unwrap());
    let monitor = Running::with(block).listening();
    assert_eq!(monitor.daemon.count("hunter2"), 0);
}

#[test]
fn a_wrong_password_is_named_once_and_shown_nowhere() {
    if !broker_is_installed("a_wrong_password_is_named_once_and_shown_nowhere") {
        return;
    }
    let broker = Broker::with("allow_anonymous false\n");
    let block = block(&broker).with("User", "u").with("Password", "hunter2");
    let monitor = Running::with(block);
    monitor.logged("still cannot connect", 3);
    assert_eq!(monitor.daemon.count("trying again: not authorized"), 1);
    monitor.monitor.shutdown();
    assert_eq!(monitor.daemon.count("hunter2"), 0);
}

#[test]
fn a_topic_that_is_denied_is_named() {
    if !broker_is_installed("a_topic_that_is_denied_is_named") {
        return;
    }
    // Its access list file only filters what is delivered; its security plugin refuses to subscribe.
    let configuration = "allow_anonymous true\nplugin PLUGINS/mosquitto_dynamic_security.so\n\
         plugin_opt_config_file DIR/access.json\n";
    let mut broker = Broker::prepared(configuration, |dir| {
        let access = r#"{ "defaultACLAccess": { "publishClientSend": true,
            "publishClientReceive": true, "subscribe": false, "unsubscribe": true } }"#;
        fs::write(dir.join("access.json"), access).expect("a file");
    });
    broker.start_again();
    let monitor = Running::start(&broker);
    monitor.logged(
        "the broker refuses the subscription to the topic \"commands\"",
        1,
    );
}

/// Makes an authority, a certificate of the broker for this name, and one of a client.
fn certificates(dir: &Path, name: &str) {
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(dir)
            .output()
            .expect("openssl is there, as the library is built with it");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    let ca = [
        "req",
        "-x509",
        "-subj",
        "/CN=Test CA",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        "2",
    ];
    run(&[&ca[..], &key].concat());
    fs::write(dir.join("ext"), format!("subjectAltName={name}\n")).expect("a file");
    for (prefix, subject) in [("", "/CN=broker"), ("client-", "/CN=client")] {
        let file = |name: &str| format!("{prefix}{name}.pem");
        let request = [
            "req",
            "-subj",
            subject,
            "-keyout",
            &file("key"),
            "-out",
            "csr.pem",
        ];
        run(&[&request[..], &key].concat());
        run(&[
            "x509",
            "-req",
            "-in",
            "csr.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            &file("cert"),
            "-days",
            "2",
            "-extfile",
            "ext",
        ]);
    }
}

fn tls_broker(name: &str, more: &str) -> Broker {
    let configuration =
        format!("allow_anonymous true\ncertfile DIR/cert.pem\nkeyfile DIR/key.pem\n{more}");
    let mut broker = Broker::prepared(&configuration, |dir| certificates(dir, name));
    broker.start_again();
    broker
}

#[test]
fn a_broker_that_wants_a_certificate_gets_one() {
    if !broker_is_installed("a_broker_that_wants_a_certificate_gets_one") {
        return;
    }
    let wants = "cafile DIR/ca.pem\nrequire_certificate true\n";
    let broker = tls_broker("IP:127.0.0.1", wants);
    let [ca, cert, key] = ["ca.pem", "client-cert.pem", "client-key.pem"].map(|name| {
        let path = broker.dir().join(name);
        path.to_str().expect("UTF-8").to_owned()
    });
    let without = || {
        block(&broker)
            .with("Secure", true)
            .with("CAFile", ca.as_str())
    };
    let monitor = Running::with(without());
    monitor.logged("still cannot connect", 2);
    assert_eq!(monitor.daemon.count("connected to the broker"), 0);
    drop(monitor);
    let with = without()
        .with("CertFile", cert.as_str())
        .with("KeyFile", key.as_str());
    let _monitor = Running::with(with).listening();
    // So does who sends a command.
    let send = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_collectd-live"))
            .args(["send-command", "hello", "exec", "-q", "1", "-s"])
            .args(["-h", &broker.address(), "-t", "commands", "-r", "results"])
            .args(["--ca-file", &ca])
            .args(more)
            .output()
            .expect("the program can be run")
    };
    let output = send(&["--cert", &cert, "--cert-key", &key]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = send(&["--timeout", "5"]);
    assert_ne!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn tls_verifies_the_broker() {
    if !broker_is_installed("tls_verifies_the_broker") {
        return;
    }
    let broker = tls_broker("IP:127.0.0.1", "");
    let ca = broker.dir().join("ca.pem");
    let trusting = block(&broker)
        .with("Secure", true)
        .with("CAFile", ca.to_str().unwrap());
    drop(Running::with(trusting).listening());
    // Without the authority's certificate there is no reason to believe the broker.
    let monitor = Running::with(block(&broker).with("Secure", true));
    monitor.logged("still cannot connect", 2);
    assert_eq!(monitor.daemon.count("connected to the broker"), 0);
}

#[test]
fn tls_refuses_a_broker_with_another_name() {
    if !broker_is_installed("tls_refuses_a_broker_with_another_name") {
        return;
    }
    let broker = tls_broker("DNS:elsewhere.example", "");
    let ca = broker.dir().join("ca.pem");
    let block = block(&broker)
        .with("Secure", true)
        .with("CAFile", ca.to_str().unwrap());
    let monitor = Running::with(block);
    monitor.logged("still cannot connect", 2);
    assert_eq!(monitor.daemon.count("connected to the broker"), 0);
}

#[test]
fn two_hosts_with_the_same_client_id_are_named() {
    if !broker_is_installed("two_hosts_with_the_same_client_id_are_named") {
        return;
    }
    for protocol in ["3.1.1", "5"] {
        let broker = Broker::start();
        let with = |id: &str| {
            block(&broker)
                .with("Protocol", protocol)
                .with("ClientId", "same")
                .with("StatusTopic", format!("status/{id}").as_str())
        };
        let watcher = Sender::listen(&broker, "status/#");
        let (first, second) = (Running::with(with("1")), Running::with(with("2")));
        let named = "another client seems to use the client id \"same\"";
        for monitor in [&first, &second] {
            monitor.logged(named, 1);
            let said = monitor.daemon.notifications();
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].message.starts_with(named), "{said:?}");
        }
        eventually("the status says so", SOON, || {
            let said = watcher.received();
            let said = said
                .iter()
                .filter(|text| text.contains(r#""problem":"client id shared""#));
            (said.count() > 0).then_some(())
        });
        for monitor in [&first, &second] {
            assert_eq!(monitor.daemon.count(named), 1);
        }
    }
}
