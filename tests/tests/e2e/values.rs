//! Values of plugins that come and go: nothing of what was queued is lost, nobody
//! is alarmed for what is not to be sent any more, and what a writer misses
//! while it is reloaded is counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use collectd_live_tests::{eventually, patience, Builder, Daemon, SequenceLog, Variant};

const SOON: Duration = Duration::from_secs(20);

/// What threshold says of a value that is missing.
const MISSING: &str = "has not been updated for";

/// Whether a line of `log` has all of `parts`.
pub(crate) fn has_line(log: &str, parts: &[&str]) -> bool {
    log.lines()
        .any(|line| parts.iter().all(|part| line.contains(part)))
}

#[track_caller]
fn wait_for_line(daemon: &Daemon, parts: &[&str]) {
    eventually(&format!("a line with {parts:?} in the log"), SOON, || {
        has_line(&daemon.log(), parts).then_some(())
    });
}

#[track_caller]
fn wait_for_file(path: &Path) {
    eventually(&format!("{}", path.display()), SOON, || {
        path.exists().then_some(())
    });
}

/// A reader dispatches a thousand numbers, which pile up in front of a slow
/// writer, and is unloaded. Returns the daemon and the writer's record.
#[track_caller]
fn unload_with_a_full_queue(reader_config: &str) -> (Daemon, SequenceLog) {
    let builder = Daemon::builder(Variant::Asan);
    let record = builder.path("sequence");
    let gate = builder.path("gate");
    let daemon = builder
        .option("WriteThreads 2")
        .load_plugin("othersink")
        .plugin_block(
            "othersink",
            &format!(
                "File \"{}\"\nFrom \"feeder\"\nGate \"{}\"",
                record.display(),
                gate.display()
            ),
        )
        .available("feeder")
        .start();
    let record = SequenceLog::new(&record);

    let config = format!("Burst {BURST}\n{reader_config}");
    // The next read is an hour off.
    daemon
        .load("feeder", &[("interval", "3600"), ("config", &config)])
        .expect_ok();
    daemon.wait_for_log(&format!("feeder plugin: Dispatched {BURST} numbers."));
    daemon.unload("feeder").expect_ok();
    daemon.assert_gone("feeder");
    assert!(record.read().is_empty(), "the writer did not wait");

    fs::write(&gate, "").expect("letting the writer work");
    (daemon, record)
}

const BURST: usize = 1000;

/// Waits for all numbers of a series and checks them.
#[track_caller]
fn assert_all_written(record: &SequenceLog, series: &str) {
    let sequence = eventually("all numbers at the writer", SOON, || {
        Some(record.series(series)).filter(|s| s.records.len() >= BURST)
    });
    sequence.assert_complete();
    assert_eq!(sequence.records.len(), BURST);
}

/// Proves that what a reader has dispatched is written after it has been
/// unloaded, and with its name and interval: they are in the queue.
#[test]
fn what_an_unloaded_reader_has_queued_is_written() {
    let (daemon, record) = unload_with_a_full_queue("");
    assert_all_written(&record, "testhost/feeder/count");
    daemon.stop();
}

/// Proves the same for values of a type that the reader has brought along, which
/// is not known any more when they are written.
#[test]
fn what_an_unloaded_reader_has_queued_is_written_with_the_type_that_it_had() {
    let (daemon, record) = unload_with_a_full_queue("OwnType true");
    assert_all_written(&record, "testhost/feeder/feeder");
    daemon
        .ctl("PUTVAL testhost/feeder/feeder interval=1 N:1")
        .expect_refused(&["feeder"]);
    daemon.stop();
}

/// A daemon with thresholds for `feeder` and for what comes by the control
/// socket, which logs all that expires.
fn with_thresholds() -> Builder {
    Daemon::builder(Variant::Asan)
        .load_plugin("threshold")
        .plugin_block(
            "threshold",
            "<Plugin \"feeder\">\n<Type \"count\">\nWarningMax 1000000000\n</Type>\n</Plugin>\n\
             <Plugin \"socket\">\n<Type \"gauge\">\nWarningMax 1000000000\n</Type>\n</Plugin>",
        )
        .load_plugin("expiry")
        .available("feeder")
}

/// Waits until a value that is put now, with the given interval, is missing:
/// what came before it is expired, too.
#[track_caller]
fn wait_until_expired(daemon: &Daemon, name: &str, interval: f64) {
    let value = format!("socket/gauge-{name}");
    daemon.putval(&value, interval, 1.0).expect_ok();
    wait_for_line(daemon, &["Notification", &value, MISSING]);
}

/// Checks that a value has expired, that all who are to clean up were told, and
/// that there was no alarm from byte `start` of the log on.
#[track_caller]
fn assert_expired_quietly(daemon: &Daemon, value: &str, start: usize) {
    for what in ["missing", "expired"] {
        wait_for_line(
            daemon,
            &[&format!("expiry plugin: {what} testhost/{value}")],
        );
    }
    let log = &daemon.log()[start..];
    assert!(!has_line(log, &[value, MISSING]), "an alarm for {value}");
}

/// Proves that values of a plugin that has been unloaded expire without an alarm
/// while missing and cache event callbacks are called as ever.
#[test]
fn what_an_unloaded_plugin_has_sent_expires_without_an_alarm() {
    let daemon = with_thresholds().start();
    daemon
        .load("feeder", &[("interval", "1"), ("config", "Instance \"a\"")])
        .expect_ok();
    daemon.wait_for_value_of("feeder");
    daemon.unload("feeder").expect_ok();
    let start = daemon.log().len();
    wait_until_expired(&daemon, "unloaded", 1.0);
    assert_expired_quietly(&daemon, "feeder/count-a", start);
    daemon.stop();
}

/// Proves the same for a value that the plugin does not send any more since it
/// has been given another configuration; and that those that it does send now
/// are watched as those of any plugin.
#[test]
fn what_a_reloaded_plugin_does_not_send_any_more_expires_without_an_alarm() {
    let builder = with_thresholds();
    let mute = builder.path("mute");
    let daemon = builder.start();
    daemon
        .load("feeder", &[("interval", "1"), ("config", "Instance \"a\"")])
        .expect_ok();
    daemon.wait_for_value_of("feeder");
    let config = format!("Instance \"b\"\nMute \"{}\"", mute.display());
    daemon
        .reload("feeder", &[("interval", "1"), ("config", &config)])
        .expect_ok();
    let start = daemon.log().len();
    wait_until_expired(&daemon, "reloaded", 1.0);
    assert_expired_quietly(&daemon, "feeder/count-a", start);

    daemon.wait_for_value_of("feeder");
    fs::write(&mute, "").expect("muting the reader");
    wait_for_line(&daemon, &["Notification", "feeder/count-b", MISSING]);
    daemon.stop();
}

/// How long an interval is so that values expire while a plugin is unloaded, and
/// not before that begins.
const LONG_INTERVAL: &str = "2";

/// Starts a daemon with a `feeder` that has sent a value and holds on to its
/// read callback, and returns the file that lets it go.
#[track_caller]
fn with_feeder_that_holds_on() -> (Daemon, PathBuf) {
    let builder = with_thresholds();
    let entered = builder.path("entered");
    let release = builder.path("release");
    let daemon = builder.start();
    let config = format!(
        "Entered \"{}\"\nRelease \"{}\"",
        entered.display(),
        release.display()
    );
    daemon
        .load(
            "feeder",
            &[("interval", LONG_INTERVAL), ("config", &config)],
        )
        .expect_ok();
    wait_for_file(&entered);
    (daemon, release)
}

/// Proves that nothing is decided about a value that expires while its plugin is
/// being unloaded, and that there is no alarm when the unload succeeds.
#[test]
fn a_slow_unload_raises_no_alarm() {
    let (daemon, release) = with_feeder_that_holds_on();
    let start = thread::scope(|scope| {
        let unload = scope.spawn(|| daemon.unload_within("feeder", 10 * SOON).expect_ok());
        eventually("the unload to begin", SOON, || {
            daemon
                .plugin("feeder")
                .filter(|plugin| plugin.state == "DRAINING")
        });
        let start = daemon.log().len();
        let interval = LONG_INTERVAL.parse().expect("an interval");
        wait_until_expired(&daemon, "slow", interval);
        assert!(
            !has_line(&daemon.log()[start..], &["expiry plugin", "feeder/count"]),
            "expired while it was being unloaded"
        );
        fs::write(&release, "").expect("letting the reader go");
        unload.join().expect("the answer");
        start
    });
    assert_expired_quietly(&daemon, "feeder/count", start);
    daemon.stop();
}

/// Proves that the alarm comes when the unload fails, because the callback that
/// sends nothing does not return: the plugin remains.
#[test]
fn an_unload_that_fails_does_not_suppress_the_alarm() {
    let (daemon, release) = with_feeder_that_holds_on();
    daemon
        .unload_within("feeder", Duration::from_secs(1))
        .expect_refused(&["busy"]);
    wait_for_line(&daemon, &["Notification", "feeder/count", MISSING]);
    fs::write(&release, "").expect("letting the reader go");
    daemon.stop();
}

const SERIES: &str = "testhost/seqread/count";

/// The number of values that a reply says were missed.
fn missed(text: &str) -> usize {
    let Some((_, rest)) = text.split_once("it has missed ") else {
        return 0;
    };
    let digits = rest.split(' ').next().unwrap_or_default();
    digits
        .parse()
        .unwrap_or_else(|e| panic!("the number in {text:?}: {e}"))
}

const RELOADS: u32 = 50;

/// How late the reader may be on a busy machine.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// In each thread there may be a value that one writer has got and the other has
/// not yet.
const WRITE_THREADS: usize = 5;

/// Reloads a writer time and again beside another one and a reader at 2 ms, and
/// checks that the other gets every number once, and that this one gets all
/// but those that it is said to have missed. `options` tells how values get
/// to the writers.
#[track_caller]
fn assert_missed_values_are_counted(options: &[&str]) {
    let builder = Daemon::builder(Variant::Patched);
    let all = builder.path("all");
    let some = builder.path("some");
    let config = format!("File \"{}\"", some.display());
    let builder = builder
        .option(&format!("WriteThreads {WRITE_THREADS}"))
        .load_plugin("seqread")
        .plugin_block("seqread", "Interval 0.002")
        .load_plugin("othersink")
        .plugin_block("othersink", &config)
        .load_plugin("seqsink")
        .plugin_block("seqsink", &format!("File \"{}\"", all.display()));
    let daemon = options
        .iter()
        .fold(builder, |builder, option| builder.option(option))
        .start();
    let (all, some) = (SequenceLog::new(&all), SequenceLog::new(&some));

    let mut missed_in_all = 0;
    for _ in 0..RELOADS {
        some.wait_for_more(SERIES, 5);
        let reply = daemon
            .reload("othersink", &[("config", &config)])
            .expect_ok();
        let number = missed(&reply.text);
        if number > 0 {
            daemon.wait_for_log(&format!("it has missed {number} value"));
        }
        missed_in_all += number;
    }
    some.wait_for_more(SERIES, 50);

    // Both writers go on.
    let before = all.series(SERIES).records.len();
    let written = some.series(SERIES).records.len();
    let all = all.series(SERIES);
    daemon.stop();

    all.assert_complete();
    let pause = all.longest_pause();
    assert!(
        pause < patience(LONGEST_PAUSE),
        "the reader was held up for {pause:?}"
    );
    assert!(missed_in_all > 0, "{RELOADS} reloads and nothing missed");
    let after = all.records.len();
    let accounted_for = written + missed_in_all;
    assert!(
        before <= accounted_for + WRITE_THREADS && accounted_for <= after + WRITE_THREADS,
        "of {before} to {after} values, {written} were written and {missed_in_all} missed"
    );
}

/// Proves it for values that go to all writers.
#[test]
fn a_reloaded_writer_tells_how_many_values_it_has_missed() {
    assert_missed_values_are_counted(&[]);
}

/// Proves it for values that a filter chain gives to each writer by its name.
#[test]
fn a_reloaded_writer_tells_how_many_values_meant_for_it_it_has_missed() {
    assert_missed_values_are_counted(&[
        "PostCacheChain \"Post\"",
        "<Chain \"Post\">\n<Target \"write\">\nPlugin \"seqsink\"\nPlugin \"othersink\"\n</Target>\n</Chain>",
    ]);
}

/// Proves that a writer that is not unloaded after all, because one of its calls
/// does not return, tells how many values it has missed meanwhile.
#[test]
fn a_writer_that_stays_tells_how_many_values_it_has_missed() {
    let builder = Daemon::builder(Variant::Patched);
    let (record, gate) = (builder.path("sequence"), builder.path("gate"));
    let config = format!(
        "File \"{}\"\nFrom \"socket\"\nGate \"{}\"",
        record.display(),
        gate.display()
    );
    let daemon = builder
        .option("WriteThreads 2")
        .load_plugin("seqread")
        .plugin_block("seqread", "Interval 0.002")
        .load_plugin("othersink")
        .plugin_block("othersink", &config)
        .start();
    // One of the two threads waits at the gate, the other one goes on.
    daemon.putval("socket/count", 10.0, 1.0).expect_ok();
    eventually("a call that does not return", SOON, || {
        // Those of the other thread do.
        let running = || daemon.assert_state("othersink", "READY").field("calls") == "1";
        (0..10).all(|_| running()).then_some(())
    });
    let reason = daemon
        .unload_within("othersink", Duration::from_secs(1))
        .expect_refused(&["busy", "write callback"]);
    assert!(missed(&reason) > 0, "{reason}");
    fs::write(&gate, "").expect("opening the gate");
    let reply = daemon.unload("othersink").expect_ok();
    assert_eq!(missed(&reply.text), 0, "{reply:?}");
    daemon.stop();
}

/// Proves that a data set can be replaced, by one with another number of data
/// sources at that, while values of it are queued and written and others use
/// it; and that it is as before when the plugin that did so is gone.
#[test]
fn data_sets_are_replaced_while_they_are_in_use() {
    let builder = Daemon::builder(Variant::Asan);
    let record = builder.path("sequence");
    let daemon = builder
        .load_plugin("othersink")
        .plugin_block(
            "othersink",
            &format!("File \"{}\"\nFrom \"dataset\"", record.display()),
        )
        .available("dataset")
        .start();
    let record = SequenceLog::new(&record);
    let putval = |values: &str| {
        daemon.ctl(&format!(
            "PUTVAL testhost/socket/users interval=10 N:{values}"
        ))
    };

    putval("1:1").expect_refused(&[]);
    for _ in 0..5 {
        daemon.load("dataset", &[("interval", "0.001")]).expect_ok();
        // Few get that far: one that is of a type that has been replaced
        // meanwhile is refused.
        record.wait_for_more("testhost/dataset/flip", 50);
        putval("1:1").expect_ok();
        daemon.unload("dataset").expect_ok();
        daemon.assert_gone("dataset");
        putval("1:1").expect_refused(&[]);
        daemon
            .ctl("PUTVAL testhost/socket/flip interval=10 N:1")
            .expect_refused(&["flip"]);
    }
    daemon.stop();
}

/// Proves that the host's name can be changed while it is in use, as the plugin
/// uuid does when it is loaded.
#[test]
fn the_host_name_changes_while_it_is_read() {
    for variant in [Variant::Asan, Variant::Tsan] {
        let daemon = Daemon::builder(variant)
            .available("rehost")
            // Its values are given the daemon's host name.
            .load_plugin("seqread")
            .plugin_block("seqread", "Interval 0.01")
            .start();
        daemon.wait_for_value_of("seqread");
        daemon.load("rehost", &[]).expect_ok();
        daemon.wait_for_log("rehost plugin: 0 wrong names.");
        daemon.stop();
    }
}

/// Proves that nobody needs the threshold plugin to ask for thresholds, neither
/// before it is loaded nor afterwards, and that it watches what its latest
/// configuration says.
#[test]
fn thresholds_come_and_go() {
    let daemon = Daemon::builder(Variant::Asan)
        .available("threshold")
        .start();
    let ask = || {
        daemon.ctl(&format!(
            "GETTHRESHOLD {}",
            daemon.identifier("socket/gauge-t")
        ))
    };
    let config = |max: u32| {
        format!(
            "<Plugin \"threshold\">\n<Plugin \"socket\">\n<Type \"gauge\">\nWarningMax {max}\n\
             </Type>\n</Plugin>\n</Plugin>"
        )
    };
    let put = |value: f64| daemon.putval("socket/gauge-t", 10.0, value).expect_ok();

    ask().expect_refused(&["No threshold found"]);
    daemon
        .load("threshold", &[("config", &config(5))])
        .expect_ok();
    assert!(ask().lines.iter().any(|line| line == "Warning Max: 5"));
    put(7.0);
    wait_for_line(
        &daemon,
        &["Notification", "WARNING", "threshold of 5.000000"],
    );
    daemon
        .reload("threshold", &[("config", &config(6))])
        .expect_ok();
    assert!(ask().lines.iter().any(|line| line == "Warning Max: 6"));
    put(5.5);
    wait_for_line(&daemon, &["Notification", "OKAY", "within range again"]);
    put(8.0);
    wait_for_line(
        &daemon,
        &["Notification", "WARNING", "threshold of 6.000000"],
    );
    daemon.unload("threshold").expect_ok();
    ask().expect_refused(&["No threshold found"]);
    daemon.stop();
}

/// Proves that a subscription to cache events ends with the plugin that made it,
/// even if that goes before the subscription is stored: the next plugin to get
/// its place gets no events that it has not asked for.
#[test]
fn a_subscription_does_not_change_hands() {
    let builder = Daemon::builder(Variant::Asan);
    let entered = builder.path("entered");
    let release = builder.path("release");
    let daemon = builder
        .option("WriteThreads 1")
        .load_plugin("subscriber")
        .load_plugin("slowevent")
        .plugin_block(
            "slowevent",
            &format!(
                "Entered \"{}\"\nRelease \"{}\"",
                entered.display(),
                release.display()
            ),
        )
        .start();
    let put = |value: f64| {
        daemon.putval("socket/gauge-event", 10.0, value).expect_ok();
    };
    let events_of = |plugin: &str| {
        let line = format!("{plugin} plugin: An event of testhost/socket/gauge-event.");
        daemon.log().matches(&line).count()
    };

    put(1.0);
    wait_for_file(&entered);
    // This one has subscribed; the other has still to return.
    daemon
        .reload("subscriber", &[("config", "Subscribe false")])
        .expect_ok();
    fs::write(&release, "").expect("letting the callback return");

    // One thread writes: with the second event all callbacks have had the first.
    put(2.0);
    put(3.0);
    eventually("two events", SOON, || {
        (events_of("slowevent") == 2).then_some(())
    });
    assert_eq!(events_of("subscriber"), 0, "events without a subscription");
    daemon.stop();
}
