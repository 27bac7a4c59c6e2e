//! What MQTT 5 adds.

use crate::support::{broker_is_installed, Broker, Requester, Sender, SOON};
use crate::{block, Running};
use collectd_live_tests::eventually;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use std::fs;
use std::rc::Rc;

fn asking(topic: &str, data: &[u8]) -> PublishProperties {
    PublishProperties {
        response_topic: Some(topic.to_owned()),
        correlation_data: Some(data.to_vec().into()),
        ..PublishProperties::default()
    }
}

fn command(task: u32, command: &str) -> String {
    format!(r#"{{"task_id":{task},"service":"hello","command":"{command}"}}"#)
}

#[test]
fn results_go_where_the_sender_wants_them_below_the_permitted_topic_only() {
    let name = "results_go_where_the_sender_wants_them_below_the_permitted_topic_only";
    if !broker_is_installed(name) {
        return;
    }
    let broker = Broker::start();
    let block = block(&broker)
        .with("Protocol", "5")
        .with("ResponseTopicPrefix", "replies/%h");
    let monitor = Running::with(block).listening();
    let requester = Requester::listen(&broker, "r", &["replies/#", "results", "elsewhere"]);
    let expect = |topic: &str, data: &[u8], task: u32, code: u32| {
        let (to, correlation, result) = requester.answer();
        assert_eq!((to.as_str(), correlation.as_deref()), (topic, Some(data)));
        assert_eq!(
            (&result["task_id"], &result["code"]),
            (&task.into(), &code.into())
        );
    };
    let topic = "replies/node1/me";
    requester.publish("commands", &command(1, "exec"), asking(topic, b"\0\xff"));
    expect(topic, b"\0\xff", 1, 0);
    // So do refusals.
    requester.publish("commands", &command(2, "none"), asking(topic, b"2"));
    expect(topic, b"2", 2, 0x1003);
    for elsewhere in [
        "elsewhere",
        "replies/node2",
        "replies/node1s",
        "commands",
        "replies/node1/#",
    ] {
        requester.publish("commands", &command(3, "none"), asking(elsewhere, b"3"));
        expect("results", b"3", 3, 0x1003);
    }
    assert_eq!(monitor.daemon.count("is not below ResponseTopicPrefix"), 5);
    // Whoever does not ask is answered where all are.
    requester.publish(
        "commands",
        &command(4, "exec"),
        PublishProperties::default(),
    );
    let (to, correlation, _) = requester.answer();
    assert_eq!((to.as_str(), correlation), ("results", None));
}

#[test]
fn a_command_that_has_expired_does_not_run() {
    if !broker_is_installed("a_command_that_has_expired_does_not_run") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::with(block(&broker).with("Protocol", "5")).listening();
    let sender = Sender::listen(&broker, "results");
    let requester = Requester::listen(&broker, "r", &[]);
    sender.command("1", "slow", "two");
    monitor.logged("started task=1", 1);
    let expiring = PublishProperties {
        message_expiry_interval: Some(1),
        ..PublishProperties::default()
    };
    // It waits for its turn longer than it is good for.
    let json = r#"{"task_id":2,"service":"slow","command":"two"}"#;
    requester.publish("commands", json, expiring);
    assert_eq!(sender.code_and_message("1").0, 0);
    assert_eq!(sender.code_and_message("2").0, 0x3008);
}

#[test]
fn a_broker_that_takes_only_short_messages_gets_the_end_cut_off() {
    if !broker_is_installed("a_broker_that_takes_only_short_messages_gets_the_end_cut_off") {
        return;
    }
    let broker = Broker::with("allow_anonymous true\nmax_packet_size 2000\n");
    let _monitor = Running::with(block(&broker).with("Protocol", "5")).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "much", "zeros");
    let (code, message) = sender.code_and_message("1");
    assert_eq!(code, 0);
    assert!(
        message.ends_with("[cut: the broker takes no more of it]"),
        "{message:?}"
    );
    assert!(message.len() > 1000, "{}", message.len());
    sender.command("2", "hello", "exec");
    assert_eq!(sender.code_and_message("2").0, 0);
}

#[test]
fn a_broker_that_lets_few_messages_be_in_flight_gets_all_results() {
    if !broker_is_installed("a_broker_that_lets_few_messages_be_in_flight_gets_all_results") {
        return;
    }
    for in_flight in [1, 3] {
        let broker = Broker::with(&format!(
            "allow_anonymous true\nmax_inflight_messages {in_flight}\n"
        ));
        let _monitor = Running::with(block(&broker).with("Protocol", "5")).listening();
        // mosquitto 2.0.11 does not send all of what has to wait for room in flight, so nothing does here.
        let sender = Sender::listen_at(&broker, "results", rumqttc::QoS::AtMostOnce);
        for task in 1..=50 {
            sender.publish_and_forget("commands", command(task, "none"));
        }
        for task in 1..=50 {
            assert_eq!(sender.code_and_message(&task.to_string()).0, 0x1003);
        }
    }
}

#[test]
fn what_the_broker_refuses_is_named_with_its_reason_and_sent_when_it_does_not_any_more() {
    let name =
        "what_the_broker_refuses_is_named_with_its_reason_and_sent_when_it_does_not_any_more";
    if !broker_is_installed(name) {
        return;
    }
    let mut broker = Broker::prepared("allow_anonymous true\nacl_file DIR/acl\n", |dir| {
        fs::write(dir.join("acl"), "topic read #\ntopic write commands\n").expect("a file");
    });
    broker.start_again();
    for qos in [1.0, 2.0] {
        let monitor =
            Running::with(block(&broker).with("Protocol", "5").with("QoS", qos)).listening();
        let requester = Requester::listen(&broker, "r", &["results"]);
        requester.publish(
            "commands",
            &command(1, "exec"),
            PublishProperties::default(),
        );
        monitor.logged(
            "the broker takes nothing on the topic \"results\", trying again: not authorized",
            1,
        );
        fs::write(broker.dir().join("acl"), "topic readwrite #\n").expect("a file");
        broker.reload();
        let (_, _, result) = requester.answer();
        assert_eq!(result["task_id"], 1);
        monitor.logged("the broker takes results again", 1);
        assert_eq!(monitor.daemon.count("takes nothing on the topic"), 1);
        fs::write(
            broker.dir().join("acl"),
            "topic read #\ntopic write commands\n",
        )
        .expect("a file");
        broker.reload();
    }
}

#[test]
fn the_session_is_kept_for_as_long_as_the_setting_says() {
    if !broker_is_installed("the_session_is_kept_for_as_long_as_the_setting_says") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::with(
        block(&broker)
            .with("Protocol", "5")
            .with("SessionExpiry", 1.0),
    )
    .listening();
    let dir = Rc::clone(&monitor.dir);
    drop(monitor);
    let sender = Sender::listen(&broker, "results");
    // The broker looks for sessions that have expired now and then.
    eventually("the broker has forgotten the session", SOON, || {
        broker
            .log()
            .contains("Expiring client collectd-monitor-node1")
            .then_some(())
    });
    sender.command("1", "hello", "exec");
    let _monitor = Running::in_dir(block(&broker).with("Protocol", "5"), &dir).listening();
    sender.command("2", "hello", "exec");
    assert_eq!(sender.code_and_message("2").0, 0);
    assert_eq!(sender.results("1").len(), 0);
}
