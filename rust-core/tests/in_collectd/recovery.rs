//! A fault of a service, what a rule does about it, and how that shows: as whole stories, in which every action counts.
//!
//! The service is a directory; it is well as long as it is empty, which the plugin filecount measures.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use collectd_live_tests::{build_dir, eventually, skip, Daemon, Variant};

use crate::support::SOON;

const INTERVAL: &str = "0.1";
/// How many values must show that nothing more is done.
const VALUES: usize = 20;

struct Service {
    daemon: Daemon,
    fault: PathBuf,
    actions: PathBuf,
}

impl Service {
    /// A daemon with this rule, which is the body of a handler's task, and with more settings of the monitor.
    #[track_caller]
    fn start(task: &str, settings: &str) -> Self {
        let daemon = Daemon::builder(Variant::Patched)
            .interval(INTERVAL)
            .available("filecount")
            .available("monitor")
            .start();
        let service = Self {
            fault: daemon.path("service/fault"),
            actions: daemon.path("actions"),
            daemon,
        };
        let path = |name: &str| service.daemon.path(name).display().to_string();
        let (directory, actions) = (path("service"), path("actions"));
        for name in ["service", "rules"] {
            fs::create_dir(service.daemon.path(name)).expect("a directory");
        }
        fs::write(
            service.daemon.path("rules/fake.lua"),
            format!(
                "return {{ broken = {{\n\
                 match = {{ plugin = 'filecount', type = 'files' }},\n\
                 handler = function(m) if m.values[1] > 0 then return {{ service = 'fake', {task} }} end end,\n\
                 }} }}\n"
            ),
        )
        .expect("a file");
        let note =
            |name: &str, rest: &str| format!("\"{name}\": \"echo {name} >> {actions}; {rest}\"");
        let config = format!(
            "{{ \"Services\": {{ \"fake\": {{ \"commands\": {{ {}, {}, {} }} }} }} }}",
            note("repair", &format!("rm -f {directory}/*")),
            note("useless", "true"),
            note("fails", "exit 3")
        );
        fs::write(service.daemon.path("config.json"), config).expect("a file");
        let block = format!(
            "LogLevel \"info\"\nMonitorConfigPath \"{}\"\nLocalMonitorConfigDir \"{}\"\n{settings}\n",
            path("config.json"),
            path("rules"),
        );
        service
            .daemon
            .load("monitor", &[("config", &block)])
            .expect_ok();
        service.daemon.wait_for_log("rules are in force");
        let block = format!("<Directory \"{directory}\">\nInstance \"fake\"\n</Directory>\n");
        let options = [("config", block.as_str()), ("interval", INTERVAL)];
        service.daemon.load("filecount", &options).expect_ok();
        service.daemon.wait_for_value_of("filecount");
        service
    }

    fn break_down(&self) {
        fs::write(&self.fault, "").expect("a file");
    }

    fn mend(&self) {
        fs::remove_file(&self.fault).expect("the fault was there");
    }

    /// Every action that was run, in order.
    fn actions(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.actions).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until the log has this text so many times.
    #[track_caller]
    fn told(&self, text: &str, times: usize) {
        eventually(text, SOON, || {
            (self.daemon.log().matches(text).count() >= times).then_some(())
        });
    }

    /// Waits until the rule has sent so many notifications of this severity with this text.
    #[track_caller]
    fn notified(&self, severity: &str, text: &str, times: usize) {
        eventually(&format!("{severity} {text}"), SOON, || {
            (notifications(&self.daemon.log(), severity, text) >= times).then_some(())
        });
    }

    /// Lets many more values pass.
    #[track_caller]
    fn goes_on(&self) {
        for _ in 0..VALUES {
            self.daemon
                .wait_for_value_since("filecount", SystemTime::now());
        }
    }
}

/// How many notifications of rules in the log have this severity and this text.
fn notifications(log: &str, severity: &str, text: &str) -> usize {
    let start = format!("Notification: severity = {severity}, ");
    log.lines()
        .filter(|line| {
            line.contains(&start) && line.contains("plugin = lua-collectd-monitor-local")
        })
        .filter(|line| line.contains(text))
        .count()
}

fn can_run(test: &str) -> bool {
    let there = build_dir().join("prefix/lib/collectd/monitor.so").is_file();
    if !there {
        skip(test, "a collectd that was configured --with-collectd-live");
    }
    there
}

#[test]
fn a_fault_is_repaired_and_that_is_verified() {
    if !can_run("a_fault_is_repaired_and_that_is_verified") {
        return;
    }
    let service = Service::start(
        "command = 'repair', ['for'] = '0.3s', verify = '20s', escalate = { { service = 'fake', command = 'useless' } }",
        "",
    );
    service.goes_on();
    assert_eq!(service.actions(), [""; 0], "nothing was wrong");
    for fault in 1..=3 {
        service.break_down();
        service.notified("OKAY", "recovered", fault);
        service.goes_on();
        // Neither doubled nor wrong.
        assert_eq!(service.actions(), vec!["repair"; fault]);
        assert!(!service.fault.exists());
    }
    service.daemon.stop_and(|log| {
        for text in ["has not helped", "not run"] {
            assert!(!log.contains(text), "{log}");
        }
        let told = notifications(log, "OKAY", "s after fake repair");
        assert_eq!(told, 3, "{log}");
    });
}

#[test]
fn what_does_not_help_is_escalated_then_given_up_until_it_is_cleared() {
    if !can_run("what_does_not_help_is_escalated_then_given_up_until_it_is_cleared") {
        return;
    }
    let service = Service::start(
        "command = 'useless', verify = '0.3s', escalate = { { service = 'fake', command = 'fails' }, { service = 'fake', command = 'unknown' } }",
        "",
    );
    service.break_down();
    service.notified(
        "FAILURE",
        "nothing is done until the condition is cleared",
        1,
    );
    assert_eq!(service.actions(), ["useless", "fails"]);
    // The fault is still there, and everybody knows.
    service.goes_on();
    assert_eq!(service.actions(), ["useless", "fails"]);
    service.mend();
    service.notified("OKAY", "cleared", 1);
    service.goes_on();
    assert_eq!(service.actions(), ["useless", "fails"]);
    // The next fault is another one.
    service.break_down();
    service.notified(
        "FAILURE",
        "nothing is done until the condition is cleared",
        2,
    );
    assert_eq!(service.actions(), ["useless", "fails", "useless", "fails"]);
    service.daemon.stop_and(|log| {
        let alarms = notifications(log, "FAILURE", "nothing is done until");
        assert_eq!(alarms, 2, "{log}");
    });
}

#[test]
fn a_dry_run_and_a_shadow_touch_nothing() {
    if !can_run("a_dry_run_and_a_shadow_touch_nothing") {
        return;
    }
    for (task, settings) in [
        ("command = 'repair', verify = '0.3s', dry_run = true", ""),
        ("command = 'repair', verify = '0.3s'", "RuleShadow true"),
    ] {
        let service = Service::start(task, settings);
        service.break_down();
        service.told("would report", 1);
        service.goes_on();
        assert_eq!(service.actions(), [""; 0], "{task} {settings}");
        assert!(service.fault.exists());
        service.daemon.stop_and(|log| {
            assert_eq!(log.matches("would run: fake repair").count(), 1, "{log}");
            for severity in ["OKAY", "WARNING", "FAILURE"] {
                assert_eq!(notifications(log, severity, ""), 0, "{log}");
            }
        });
    }
}
