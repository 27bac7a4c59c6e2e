//! Rule files in a real daemon: what they see, what they may do, and that nobody waits for them.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use collectd_live_tests::{eventually, may_change_user, patience, skip, Builder, Daemon, Variant};

use crate::support::SOON;
use crate::{can_run, monitor_threads, prefix};

/// A daemon with rule files, and services whose commands leave lines in files.
struct Ruled {
    daemon: Daemon,
    rules: PathBuf,
}

/// A daemon that dispatches a number of values of its own ten times a second.
fn builder() -> Builder {
    Daemon::builder(Variant::Patched)
        .load_plugin("seqread")
        .load_plugin("csv")
        .plugin_block("csv", "DataDir \"csv\"")
        .available("monitor")
}

impl Ruled {
    #[track_caller]
    fn start(files: &[(&str, &str)]) -> Self {
        Self::with(builder(), files, "")
    }

    /// `DIR` in a file stands for the daemon's directory.
    #[track_caller]
    fn with(builder: Builder, files: &[(&str, &str)], settings: &str) -> Self {
        let rules = builder.path("rules");
        fs::create_dir(&rules).expect("a directory");
        let daemon = builder.start();
        let ruled = Self { daemon, rules };
        for (name, text) in files {
            ruled.write(name, text);
        }
        ruled
            .daemon
            .load("monitor", &[("config", &ruled.block(settings))])
            .expect_ok();
        ruled.daemon.wait_for_log("rules are in force");
        ruled
    }

    fn block(&self, settings: &str) -> String {
        let dir = self.daemon.path(".");
        let dir = dir.display();
        format!(
            "LocalMonitorConfigDir \"{}\"\nLogLevel \"info\"\n{settings}\n\
             <Service \"note\">\nCommand \"once\" \"echo ran >> {dir}/ran; echo noted\"\n\
             Command \"fail\" \"echo ran >> {dir}/failed; exit 3\"\n\
             Command \"much\" \"head -c 1000 /dev/zero | tr '\\\\0' x\"\n\
             Command \"slow\" \"echo begun >> {dir}/begun; while [ ! -e {dir}/release ]; do sleep 0.05; done\"\n\
             </Service>\n",
            self.rules.display()
        )
    }

    fn write(&self, name: &str, text: &str) {
        let dir = self.daemon.path(".");
        let text = text.replace("DIR", dir.to_str().expect("UTF-8"));
        let new = self.daemon.path("new");
        fs::write(&new, text).expect("a file");
        fs::rename(new, self.rules.join(name)).expect("a file");
    }

    fn lines(&self, name: &str) -> usize {
        fs::read_to_string(self.daemon.path(name)).map_or(0, |text| text.lines().count())
    }

    #[track_caller]
    fn logged(&self, text: &str, times: usize) {
        eventually(text, SOON, || {
            (self.daemon.log().matches(text).count() >= times).then_some(())
        });
    }
}

#[test]
fn rules_of_every_shape_see_values_and_notifications() {
    if !can_run("rules_of_every_shape_see_values_and_notifications") {
        return;
    }
    if !may_change_user() {
        return skip(
            "rules_of_every_shape_see_values_and_notifications",
            "root, to become another user",
        );
    }
    let files = [
        (
            "a.lua",
            "seen = 0
             return function(t)
               if t.plugin == 'seqread' then
                 assert(t.host == 'testhost' and t.plugin_instance == '' and #t.values == 1)
                 assert(t.dsnames[0] == 'value' and t.dstypes[0] == 'gauge' and math.abs(t.interval - 0.1) < 0.001)
                 assert(math.abs(t.time - collectd.time()) < 60)
                 seen = seen + 1
               end
             end",
        ),
        (
            "b.lua",
            "local told = false
             return { count = function(t)
               if t.plugin == 'seqread' then
                 collectd.dispatch_values({ plugin = 'ruled', type = 'gauge', values = t.values })
               end
               if seen and seen >= 3 and not told then
                 told = true
                 collectd.log_info('shared: ' .. seen)
                 collectd.log_info('last: ' .. collectd.last_values(t)[1] .. ' ' .. collectd.rates(t)[1])
                 collectd.dispatch_notification({ severity = NOTIF_WARNING, plugin = 'test', message = 'own' })
               end
               if t.plugin == 'ruled' then collectd.log_error('an own value came back') end
             end }, { any = function(t)
               if t.message == 'own' then collectd.log_error('an own notification came back') end
               collectd.log_info('heard ' .. t.severity .. ' of ' .. t.plugin .. ' ' .. t.type)
             end }",
        ),
        (
            "c.lua",
            "return { match = { plugin = 'seq*', origin = 'seqread' }, handler = function(t)
               collectd.log_info(string.format('matched %d', t.values[1])) end },
             { foreign = { match = { foreign = true, plugin = 'outside' }, handler = function(t)
               collectd.log_info('from outside: ' .. t.message) end },
               mine = { match = { plugin = 'outside' }, handler = function(t)
               collectd.log_error('not for me') end } }",
        ),
    ];
    let site = Ruled::with(builder().open_to_all_users(), &files, "");
    site.logged("shared: ", 1);
    site.logged("last: ", 1);
    site.logged("matched ", 3);
    site.daemon.wait_for_value_of("ruled");
    site.daemon
        .send_as_nobody("PUTNOTIF severity=warning time=1500000000 plugin=outside message=hello");
    site.logged("from outside: hello", 1);
    // Loading a plugin is told by the daemon itself.
    site.daemon.provide("uptime");
    site.daemon.load("uptime", &[]).expect_ok();
    site.logged("heard 4 of ", 1);
    let log = site.daemon.stop();
    for wrong in ["came back", "not for me", "assertion failed", "rules.lua"] {
        assert!(!log.contains(wrong), "{wrong}: {log}");
    }
}

#[test]
fn a_rule_runs_a_command_and_its_result_is_a_notification() {
    if !can_run("a_rule_runs_a_command_and_its_result_is_a_notification") {
        return;
    }
    let site = Ruled::start(&[(
        "disk.lua",
        "local asked = {}
         local function once(key, command)
           return function(t)
             if t.plugin == 'seqread' and not asked[key] then
               asked[key] = true
               return { service = 'note', command = command }
             end
           end
         end
         return { full = once('full', 'once'), bad = once('bad', 'fail'), much = once('much', 'much'),
                  no = once('no', 'nosuch') },
         function(t) if t.plugin == 'lua-collectd-monitor-local' then collectd.log_error('came back') end end",
    )]);
    eventually("the commands have run", SOON, || {
        (site.lines("ran") == 1 && site.lines("failed") == 1).then_some(())
    });
    site.logged("refused: The service has no such command.", 1);
    // The plugin logfile writes notifications down, too.
    for (severity, rule, rest) in [
        ("OKAY", "full", "\"message\":\"noted\",\"code\":0}"),
        ("FAILURE", "bad", "\"message\":\"\",\"code\":3}"),
        (
            "OKAY",
            "much",
            "\"message\":\"The message is too long.\",\"code\":0}",
        ),
        ("FAILURE", "no", "\"code\":4099}"),
    ] {
        eventually(rule, SOON, || {
            let log = site.daemon.log();
            let told = log.lines().any(|line| {
                line.contains(&format!("severity = {severity}"))
                    && line.contains("plugin = lua-collectd-monitor-local")
                    && line.contains(&format!("type = disk::metric::{rule}"))
                    && line.contains(rest)
            });
            told.then_some(())
        });
    }
    let log = site.daemon.stop();
    assert!(!log.contains("came back"), "{log}");
    assert!(log.contains("asked for by a rule"), "{log}");
}

#[test]
fn a_command_that_sleeps_and_a_rule_that_loops_stop_no_value() {
    if !can_run("a_command_that_sleeps_and_a_rule_that_loops_stop_no_value") {
        return;
    }
    let site = Ruled::with(
        builder(),
        &[
            ("loop.lua", "return function() while true do end end"),
            ("fill.lua", "return function() local t = {} while true do t[#t + 1] = { #t } end end"),
            ("throw.lua", "return function(t) return t.nothing.at.all end"),
            ("touch.lua", "return function() io.open('DIR/touched', 'w') end"),
            (
                "slow.lua",
                "return function(t) if t.plugin == 'seqread' then return { service = 'note', command = 'slow' } end end",
            ),
        ],
        "RuleMemory 4",
    );
    eventually("the command runs", SOON, || {
        (site.lines("begun") == 1).then_some(())
    });
    let at_first = site.daemon.last_value_of("seqread").expect("a value");
    for name in ["loop", "fill", "throw", "touch"] {
        // The plugin logfile writes notifications down, too.
        let told = format!("type = {name}::metric, message = disabled until its file changes");
        site.logged(&told, 1);
    }
    eventually("values go on", SOON, || {
        (site.daemon.last_value_of("seqread")? > at_first + 20.0).then_some(())
    });
    let log = site.daemon.log();
    assert!(
        log.contains("it has gone on for too long and was stopped"),
        "{log}"
    );
    assert!(
        log.contains("it has taken too much memory and was stopped"),
        "{log}"
    );
    assert!(log.contains("throw.lua:1: attempt to index"), "{log}");
    assert!(log.contains("touch.lua:1: io.open is refused"), "{log}");
    assert!(!site.daemon.path("touched").exists());
    // The condition was true all the time, and the command did not end.
    assert_eq!(site.lines("begun"), 1);
    fs::write(site.daemon.path("release"), "").expect("a file");
    eventually("it runs again", SOON, || {
        (site.lines("begun") > 1).then_some(())
    });
    site.daemon.assert_state("monitor", "READY");
    site.daemon.stop();
}

#[test]
fn rules_change_while_values_and_notifications_storm() {
    if !can_run("rules_change_while_values_and_notifications_storm") {
        return;
    }
    let mut builder = builder().option("WriteThreads 5");
    builder = builder
        .load_plugin("feeder")
        .plugin_block("feeder", "Burst 20000");
    let counts = "return function(t) count = (count or 0) + 1 end,
                  { match = { foreign = true }, handler = function(t) heard = (heard or 0) + 1
                    if heard % 100 == 0 then collectd.log_info('heard so many: ' .. heard) end end }";
    let site = Ruled::with(builder, &[("a.lua", counts)], "");
    // It lasts until edits have come into force in the middle of it.
    let over = AtomicBool::new(false);
    let reloaded = || site.daemon.log().matches("rules are in force").count() >= 3;
    let deadline = Instant::now() + patience(SOON);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    site.daemon
                        .ctl("PUTNOTIF severity=okay time=1500000000 plugin=storm message=x")
                        .expect_ok();
                    site.daemon.putval("storm/gauge", 10.0, 1.0).expect_ok();
                }
            });
        }
        scope.spawn(|| {
            let mut round = 0;
            while !reloaded() && Instant::now() < deadline {
                round += 1;
                let rule = format!("return function() round = {round} end");
                site.write("b.lua", if round % 3 == 0 { "= broken" } else { &rule });
                if round % 5 == 0 {
                    // It may be gone by now.
                    fs::remove_file(site.rules.join("b.lua")).ok();
                }
                std::thread::sleep(Duration::from_millis(100)); // The pace of the edits.
            }
            over.store(true, Ordering::Relaxed);
        });
    });
    site.logged("heard so many: 100", 1);
    site.logged("rules are in force", 3);
    site.daemon.wait_for_value_of("seqread");
    site.daemon.assert_state("monitor", "READY");
    site.daemon.stop();
}

#[test]
fn a_monitor_with_rules_comes_and_goes() {
    if !can_run("a_monitor_with_rules_comes_and_goes") {
        return;
    }
    let site = Ruled::start(&[
        ("a.lua", "return function() end"),
        ("b.lua", "-- monitor: isolated\nreturn function() end"),
    ]);
    let mut warm = 0;
    for round in 0..100 {
        site.daemon.unload("monitor").expect_ok();
        assert_eq!(monitor_threads(&site.daemon), Vec::<String>::new());
        site.daemon
            .load("monitor", &[("config", &site.block(""))])
            .expect_ok();
        site.logged("rules are in force", round + 2);
        if round == 20 {
            warm = resident(site.daemon.pid());
        }
    }
    let grown = resident(site.daemon.pid()).saturating_sub(warm);
    assert!(
        grown < 4096,
        "{grown} KiB more after 100 rounds than after 20"
    );
    site.daemon.wait_for_value_of("seqread");
    site.daemon.stop();
}

/// Memory that is in use, in KiB.
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a file");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.expect("a number").parse().expect("a number")
}

/// The example of the README, as it stands there.
#[test]
fn the_example_of_the_readme_works() {
    if !can_run("the_example_of_the_readme_works") {
        return;
    }
    assert!(prefix().is_dir());
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));
    let readme = readme.expect("a README");
    let (_, rest) = readme.split_once("```lua\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    let example = example
        .replace("'apache2'", "'note'")
        .replace("'restart'", "'once'");
    let site = Ruled::start(&[
        ("apache.lua", &example),
        (
            "feed.lua",
            "return { match = { plugin = 'seqread' }, handler = function(t)
               if t.values[1] % 5 == 0 then collectd.log_info('fed') end end }",
        ),
    ]);
    site.logged("fed", 1);
    let log = site.daemon.log();
    assert!(!log.contains("is broken"), "{log}");
    site.daemon.stop();
}

#[test]
fn rules_load_reload_and_unload_plugins() {
    if !can_run("rules_load_reload_and_unload_plugins") {
        return;
    }
    // What to do comes as a value. It is done once, because the rule is asked about other series in between.
    let rule = "local verbs = { 'load_plugin', 'reload_plugin', 'unload_plugin' }
         local asked = {}
         return { change = { match = { plugin = 'ask' }, handler = function(t)
           if asked[t.plugin_instance] ~= t.values[1] then
             asked[t.plugin_instance] = t.values[1]
             return { [verbs[t.values[1]]] = t.plugin_instance }
           end
         end } }";
    let builder = builder().available("uptime");
    let ruled = Ruled::with(builder, &[("change.lua", rule)], "");
    let result = |code: u32, times: usize| {
        let text = format!("\"code\":{code}}}");
        eventually(&format!("{times} results with {code}"), SOON, || {
            let log = ruled.daemon.log();
            let told = log.lines().filter(|line| {
                line.contains("type = change::metric::change") && line.contains(&text)
            });
            (told.count() >= times).then_some(())
        });
    };
    let ask = |plugin: &str, verb: f64| {
        let name = format!("ask-{plugin}/gauge-verb");
        ruled.daemon.putval(&name, 10.0, verb).expect_ok();
    };
    ask("uptime", 1.0);
    result(0, 1);
    let generation = || {
        let info = ruled.daemon.assert_state("uptime", "READY");
        info.fields["generation"].clone()
    };
    let first = generation();
    ask("uptime", 2.0);
    result(0, 2);
    assert_ne!(first, generation());
    ask("uptime", 3.0);
    result(0, 3);
    ruled.daemon.assert_gone("uptime");

    // What the daemon refuses is the result, in its words.
    ask("nosuch", 1.0);
    result(1, 1);
    // A rule cannot end the monitor that would wait for it.
    ask("monitor", 3.0);
    ruled.logged("a rule cannot change the plugin that it runs in", 1);
    ruled.daemon.assert_state("monitor", "READY");
    ruled.daemon.stop();
}

#[test]
fn a_thousand_rules_see_what_is_theirs() {
    if !can_run("a_thousand_rules_see_what_is_theirs") {
        return;
    }
    const RULES: usize = 1000;
    let files: Vec<(String, String)> = (0..RULES)
        .map(|number| {
            let task = "{ service = 'note', command = 'once' }";
            // Every tenth looks at all values by itself.
            let rule = match number % 10 {
                0 => format!("return function(t) if t.plugin == 'p{number}' then return {task} end end"),
                _ => format!("return {{ r = {{ match = {{ plugin = 'p{number}' }}, handler = function() return {task} end }} }}"),
            };
            (format!("r{number:04}.lua"), rule)
        })
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let ruled = Ruled::start(&files);
    ruled.logged(&format!("handlers={RULES}"), 1);
    for (count, number) in [0, 1, 500, 509, 999, 990].into_iter().enumerate() {
        let name = format!("p{number}/gauge-x");
        ruled.daemon.putval(&name, 10.0, 1.0).expect_ok();
        eventually(&name, SOON, || {
            (ruled.lines("ran") == count + 1).then_some(())
        });
    }
    // The daemon's own values came by all the time.
    ruled.daemon.wait_for_value_of("seqread");
    ruled.daemon.stop_and(|log| {
        assert!(!log.contains("did not reach the rules"), "{log}");
    });
}
