//! Rules from their files to their actions, with a daemon and an engine that are not there.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use collectd_live_tests::eventually;
use crossbeam_channel::{bounded, Receiver};

use super::intake::Intake;
use super::lua::Limits;
use super::*;
use crate::daemon::{Daemon, Severity, SourceType};
use crate::engine::{Input, Local, LocalEnd};
use crate::fake::FakeDaemon;
use crate::logging::{Device, Logger, Threshold};
use crate::protocol::{Code, Outcome};
use crate::threads::Failure;

const SOON: Duration = Duration::from_secs(30);

struct Fixture {
    daemon: Arc<FakeDaemon>,
    intake: Arc<Intake>,
    inputs: Receiver<Input>,
    failure: Arc<Failure>,
    rules: Option<Rules>,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new(files: &[(&str, &str)]) -> Self {
        Self::with(files, 1000)
    }

    fn with(files: &[(&str, &str)], queue: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            write(dir.path(), name, text);
        }
        let daemon = Arc::new(FakeDaemon::new("node1"));
        let handle = || Arc::clone(&daemon) as Arc<dyn Daemon>;
        let logger = Logger::new(handle(), Device::Collectd, Threshold::Info);
        let failure = Arc::new(Failure::new(handle()));
        let (inputs_in, inputs) = bounded(100);
        let intake = Arc::new(Intake::default());
        let settings = Settings {
            directory: dir.path().to_owned(),
            limits: Limits {
                instructions: 100_000,
                ..Limits::default()
            },
            queue,
            shadow: false,
            key: None,
            host_keys: None,
        };
        let remote = crate::settings::Remote {
            command_topic: "commands/%h".to_owned(),
            ..Default::default()
        };
        let rules = Rules::start(
            settings,
            Elsewhere {
                remote: Some(&remote),
                not_held: Arc::new(|| Err("recovery is on hold".to_owned())),
            },
            handle(),
            Arc::clone(&intake),
            inputs_in,
            &logger,
            &failure,
        );
        let fixture = Self {
            rules: Some(rules.unwrap()),
            daemon,
            intake,
            inputs,
            failure,
            dir,
        };
        if !files.is_empty() {
            fixture.logged("rules are in force", 1);
        }
        fixture
    }

    #[track_caller]
    fn logged(&self, text: &str, times: usize) {
        eventually(text, SOON, || {
            (self.daemon.count(text) >= times).then_some(())
        });
    }

    fn value_of(&self, plugin: &str, instance: &str, value: f64) {
        let subject = matching::Subject {
            fields: ["node1", plugin, instance, "gauge", "", plugin, ""],
            foreign: false,
        };
        let series = || Series {
            host: "node1".into(),
            plugin: plugin.into(),
            plugin_instance: instance.into(),
            type_: "gauge".into(),
            type_instance: String::new(),
            sources: vec![DataSource {
                name: "value".into(),
                type_: SourceType::Gauge,
            }],
            origin: Origin {
                plugin: Some(plugin.into()),
                foreign: false,
            },
        };
        let sample = |series| Sample {
            series,
            time: SystemTime::now(),
            interval: Duration::from_secs(10),
            values: vec![DataValue::Gauge(value)],
        };
        self.intake.value(&subject, series, sample);
    }

    fn value(&self, value: f64) {
        self.value_of("p", "", value);
    }

    fn notification(&self, message: &str) {
        let notice = Notice {
            notification: Notification {
                severity: Severity::Failure,
                time: SystemTime::now(),
                message: message.to_owned(),
                host: "node1".into(),
                plugin: "threshold".into(),
                plugin_instance: String::new(),
                type_: String::new(),
                type_instance: String::new(),
            },
            origin: Origin::default(),
        };
        self.intake
            .notification(&notice.fields(), || notice.clone());
    }

    /// The next task that a rule asks for.
    #[track_caller]
    fn task(&self) -> Local {
        match self
            .inputs
            .recv_timeout(collectd_live_tests::patience(SOON))
        {
            Ok(Input::Local(local)) => local,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn nothing_more(&self) {
        assert!(self.inputs.try_recv().is_err());
    }

    fn end(&self, local: &Local, code: Code, message: &str) {
        let outcome = Outcome {
            task: local.run.into(),
            message: message.to_owned(),
            errors: String::new(),
            code,
            at: UNIX_EPOCH,
            request: None,
            reply: None,
        };
        let end = LocalEnd {
            run: local.run,
            outcome,
        };
        local.reply.send(end).unwrap();
    }

    #[track_caller]
    fn told(&self, text: &str) -> Notification {
        eventually(text, SOON, || {
            let all = self.daemon.notifications();
            all.into_iter().find(|told| told.message.contains(text))
        })
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(rules) = self.rules.take() {
            rules.join();
        }
        if !std::thread::panicking() {
            assert!(!self.failure.happened(), "{:?}", self.daemon.lines());
        }
    }
}

fn write(dir: &Path, name: &str, text: &str) {
    let new = dir.join("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, dir.join(name)).unwrap();
}

const LOW: &str = "return function(t)
  if t.values[1] < 5 then return { service = 'web', command = 'restart', params = { n = t.values[1] } } end
end";

#[test]
fn a_value_becomes_a_command_and_its_result_a_notification() {
    let f = Fixture::new(&[("disk.lua", LOW)]);
    f.value(9.0);
    f.value(3.0);
    let local = f.task();
    assert_eq!(
        (&*local.rule, &*local.service, &*local.command),
        ("disk::metric", "web", "restart")
    );
    assert_eq!(local.arguments["n"], crate::settings::Argument::Integer(3));
    f.end(&local, Code::Exit(0), "fine");
    let told = f.told("\"fine\"");
    assert_eq!(
        (told.severity, &*told.plugin, &*told.type_),
        (Severity::Okay, "lua-collectd-monitor-local", "disk::metric")
    );
    f.nothing_more();
}

#[test]
fn a_condition_that_stays_true_has_one_command_at_a_time() {
    let mark = "function(t) if t.plugin == 'marker' then collectd.log_info('marked') return end";
    let f = Fixture::new(&[("disk.lua", &LOW.replacen("function(t)", mark, 1))]);
    for _ in 0..50 {
        f.value_of("p", "a", 3.0);
        f.value_of("p", "b", 3.0);
    }
    let first = f.task();
    // All of them have been looked at by now.
    f.value_of("marker", "", 1.0);
    f.logged("marked", 1);
    // The same command with the same parameters is the same action, whatever the series.
    f.end(&first, Code::Exit(1), "no");
    f.told("\"no\"");
    f.value(3.0);
    let second = f.task();
    f.nothing_more();
    f.end(&second, Code::Exit(0), "yes");
    f.told("\"yes\"");
}

#[test]
fn a_refusal_is_told_once() {
    let f = Fixture::new(&[("disk.lua", LOW)]);
    for round in 0..5 {
        f.value(3.0);
        let local = f.task();
        let code = [Code::NoSuchService, Code::Cooldown][round % 2];
        f.end(&local, code, &format!("refused {round}"));
        let counted = (round + 1) as u64;
        eventually("the end is seen", SOON, || {
            f.value(9.0);
            (f.intake.counters.actions.load(Ordering::Relaxed) == counted).then_some(())
        });
    }
    f.value(3.0);
    let local = f.task();
    f.end(&local, Code::Exit(0), "done");
    f.told("done");
    let results = f.daemon.notifications();
    let refused = results
        .iter()
        .filter(|told| told.message.contains("refused"));
    assert_eq!(refused.count(), 2, "{results:?}");
}

#[test]
fn values_of_a_series_keep_their_order() {
    let f = Fixture::with(
        &[(
            "order.lua",
            "local last = {}
             return function(t)
               local key, value = t.plugin_instance, t.values[1]
               if last[key] and value ~= last[key] + 1 then error('out of order') end
               last[key] = value
               if value == 999 then collectd.log_info('the last of ' .. key) end
             end",
        )],
        10_000,
    );
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let f = &f;
            scope.spawn(move || {
                for number in 0..1000 {
                    f.value_of("p", &thread.to_string(), f64::from(number));
                }
            });
        }
    });
    for thread in 0..4 {
        f.logged(&format!("the last of {thread}"), 1);
    }
    assert_eq!(f.daemon.count("out of order"), 0);
    assert_eq!(f.intake.counters.taken.load(Ordering::Relaxed), 4000);
}

#[test]
fn what_does_not_fit_is_dropped_counted_and_told() {
    let f = Fixture::with(
        &[("slow.lua", "return function() for i = 1, 20000 do end end")],
        4,
    );
    for number in 0..2000 {
        f.value(f64::from(number));
    }
    let counters = &f.intake.counters;
    let (taken, dropped) = (
        counters.taken.load(Ordering::Relaxed),
        counters.dropped.load(Ordering::Relaxed),
    );
    assert_eq!(taken + dropped, 2000);
    assert!(dropped > 0);
    f.logged("did not reach the rules, which are too slow", 1);
}

#[test]
fn what_nobody_wants_is_not_handed_over() {
    let f = Fixture::new(&[
        (
            "a.lua",
            "return { match = { plugin = 'memory' }, handler = function() collectd.log_info('seen') end }",
        ),
        ("b.lua", "return nil, function() collectd.log_info('notified') end"),
    ]);
    for _ in 0..10 {
        f.value_of("cpu", "", 1.0);
    }
    assert_eq!(f.intake.counters.taken.load(Ordering::Relaxed), 0);
    f.value_of("memory", "", 1.0);
    f.notification("x");
    f.logged("seen", 1);
    f.logged("notified", 1);
    assert_eq!(f.intake.counters.taken.load(Ordering::Relaxed), 2);
}

#[test]
fn files_are_read_again_when_they_change() {
    let f = Fixture::new(&[]);
    let say = |word: &str| format!("return function() collectd.log_info('{word}') end");
    let expect = |word: &str| {
        eventually(word, SOON, || {
            f.value(1.0);
            (f.daemon.count(word) > 0).then_some(())
        });
    };
    let path = f.dir.path();
    write(path, "a.lua", &say("version one"));
    expect("version one");
    write(path, "a.lua", &say("version two"));
    expect("version two");
    // A mistake leaves the last good version in force, also when another file changes.
    write(path, "a.lua", "return function(\n\n= end");
    f.logged("is broken, the version before it stays in force", 1);
    assert_eq!(f.daemon.count("a.lua:3:"), 1);
    write(path, "b.lua", &say("of b"));
    expect("of b");
    let before = f.daemon.count("version two");
    eventually("the version before", SOON, || {
        f.value(1.0);
        (f.daemon.count("version two") > before).then_some(())
    });
    write(path, "a.lua", &say("version three"));
    expect("version three");
    let loads = f.daemon.count("files=1");
    fs::remove_file(path.join("a.lua")).unwrap();
    f.logged("files=1", loads + 1);
    let (a, b) = (f.daemon.count("version three"), f.daemon.count("of b"));
    eventually("only b", SOON, || {
        f.value(1.0);
        (f.daemon.count("of b") > b + 5).then_some(())
    });
    assert_eq!(f.daemon.count("version three"), a);
    // One that was broken from the beginning is left out.
    write(path, "c.lua", "x = = 1");
    f.logged("is broken and is left out", 1);
}

#[test]
fn a_module_that_changes_is_read_again() {
    let f = Fixture::new(&[]);
    let path = f.dir.path();
    fs::create_dir(path.join("lib")).unwrap();
    write(path, "lib/words.lua", "return 'word one'");
    write(
        path,
        "a.lua",
        "local word = require('words') return function() collectd.log_info(word) end",
    );
    for word in ["word one", "word two"] {
        write(path, "lib/words.lua", &format!("return '{word}'"));
        eventually(word, SOON, || {
            f.value(1.0);
            (f.daemon.count(word) > 0).then_some(())
        });
    }
}

#[test]
fn what_rules_remember_survives_a_reload() {
    let f = Fixture::new(&[]);
    for round in 1..=3 {
        let text = format!(
            "collectd.state.loads = (collectd.state.loads or 0) + 1
             collectd.log_info('round {round}: ' .. collectd.state.loads) return function() end"
        );
        write(f.dir.path(), "a.lua", &text);
        f.logged(&format!("round {round}: {round}"), 1);
    }
}

#[test]
fn a_rule_that_fails_again_and_again_is_disabled_until_its_file_changes() {
    let f = Fixture::new(&[(
        "a.lua",
        "return { bad = function() while true do end end, good = function() collectd.log_info('good') end }",
    )]);
    eventually("it is disabled", SOON, || {
        f.value(1.0);
        (f.daemon.count("disabled until its file changes") > 0).then_some(())
    });
    let told = f.told("disabled until its file changes");
    assert_eq!(
        (told.severity, &*told.type_),
        (Severity::Failure, "a::metric::bad")
    );
    let faults = f.daemon.count("it has gone on for too long");
    let good = f.daemon.count("good");
    eventually("the others go on", SOON, || {
        f.value(1.0);
        (f.daemon.count("good") > good + 10).then_some(())
    });
    assert_eq!(f.daemon.count("it has gone on for too long"), faults);
    // Another file that changes is no reason to try again; its own is.
    write(
        f.dir.path(),
        "b.lua",
        "return function() collectd.log_info('of b') end",
    );
    eventually("b", SOON, || {
        f.value(1.0);
        (f.daemon.count("of b") > 0).then_some(())
    });
    assert_eq!(f.daemon.count("it has gone on for too long"), faults);
    write(
        f.dir.path(),
        "a.lua",
        "return { bad = function() collectd.log_info('mended') end }",
    );
    eventually("mended", SOON, || {
        f.value(1.0);
        (f.daemon.count("mended") > 0).then_some(())
    });
}

#[test]
fn a_file_with_a_state_of_its_own_shares_nothing_and_waits_for_nobody() {
    let f = Fixture::new(&[
        (
            "a.lua",
            "shared = 'of a' return function() for i = 1, 10000 do end collectd.log_info('slow') end",
        ),
        (
            "b.lua",
            "-- monitor: isolated\nreturn function() collectd.log_info('alone: ' .. tostring(shared)) end",
        ),
    ]);
    f.logged("states=2", 1);
    for _ in 0..20 {
        f.value(1.0);
    }
    f.logged("alone: nil", 20);
    f.logged("slow", 20);
    // Taken once for each state.
    assert_eq!(f.intake.counters.taken.load(Ordering::Relaxed), 40);
}

#[test]
fn a_fault_an_action_and_a_recovery_are_one_story() {
    let f = Fixture::new(&[(
        "disk.lua",
        "return function(t)
           if t.values[1] < 5 then
             return { service = 'web', command = 'clean', verify = t.plugin == 'p' and '1h' or nil, escalate = { { service = 'web', command = 'restart' } } }
           end
         end",
    )]);
    for _ in 0..10 {
        f.value(3.0);
    }
    let clean = f.task();
    assert_eq!(clean.command, "clean");
    f.end(&clean, Code::Exit(0), "cleaned");
    f.told("cleaned");
    f.value(3.0);
    f.value(9.0);
    let told = f.told("recovered");
    assert_eq!(
        (told.severity, &*told.type_),
        (Severity::Okay, "disk::metric")
    );
    assert!(told.message.starts_with("node1/p/gauge: "), "{told:?}");
    f.nothing_more();
    // Without verify, the exit status tells whether it has helped.
    f.value_of("q", "", 3.0);
    let clean = f.task();
    f.end(&clean, Code::Exit(1), "not cleaned");
    let restart = f.task();
    assert_eq!(restart.command, "restart");
    f.end(&restart, Code::Exit(1), "not restarted");
    let told = f.told("nothing is done until the condition is cleared");
    assert_eq!(told.severity, Severity::Failure);
    for _ in 0..10 {
        f.value_of("q", "", 3.0);
    }
    f.value_of("q", "", 9.0);
    f.told(": cleared");
    f.nothing_more();
}

#[test]
fn a_thousand_rules_are_loaded_and_each_sees_its_own() {
    let rule = |number: usize| {
        format!("return {{ match = {{ plugin_instance = '{number}' }}, handler = function(t) collectd.log_info('rule {number}.') end }}")
    };
    let f = Fixture::new(&[]);
    let away = f.dir.path().join("away");
    fs::create_dir(&away).unwrap();
    for number in 0..1000 {
        fs::write(f.dir.path().join(format!("r{number}.lua")), rule(number)).unwrap();
    }
    f.logged("handlers=1000", 1);
    for number in (0..1000).step_by(100) {
        f.value_of("p", &number.to_string(), 1.0);
        f.logged(&format!("rule {number}."), 1);
    }
    assert_eq!(f.daemon.count("rule "), 10);
}

#[test]
fn a_handler_is_named_by_file_kind_and_name() {
    let mut handler = Handler {
        file: "disk".into(),
        kind: Kind::Metric,
        name: Some("full".to_owned()),
        matches: None,
    };
    assert_eq!(handler.to_string(), "disk::metric::full");
    handler.name = None;
    handler.kind = Kind::Notification;
    assert_eq!(handler.to_string(), "disk::notification");
}

#[test]
fn a_hold_stops_what_rules_want_of_other_hosts() {
    let text = "return function(t) return { host = 'web1', service = 's', command = 'c' } end";
    let f = Fixture::new(&[("a.lua", text)]);
    f.value(1.0);
    f.logged("not run: s c on web1: recovery is on hold", 1);
}
