//! Faults that the lifecycle code once had, each brought about by a plugin that
//! misbehaves in just that way.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use collectd_live_tests::{eventually, Builder, Connection, Daemon, PluginInfo, Variant};

/// How long a step may take that needs nothing but the daemon.
const SOON: Duration = Duration::from_secs(20);

/// How long something that must not happen is given to happen.
const A_WHILE: Duration = Duration::from_millis(300);

/// What a callback is told that would have to wait for itself.
const IN_PROGRESS: &str = "Operation now in progress";

/// The files by which the slow test plugins say that they are waiting, and are
/// told to go on.
fn entered_and_release(entered: &Path, release: &Path) -> String {
    format!(
        "Entered \"{}\"\nRelease \"{}\"",
        entered.display(),
        release.display()
    )
}

fn wait_for_file(path: &Path) {
    eventually(&format!("{}", path.display()), SOON, || {
        path.exists().then_some(())
    });
}

/// Tells every notification callback `message`.
#[track_caller]
fn notify(daemon: &Daemon, message: &str) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_secs();
    daemon
        .ctl(&format!(
            "PUTNOTIF severity=okay time={now} message={message}"
        ))
        .expect_ok();
}

#[track_caller]
fn wait_until_gone(daemon: &Daemon, plugin: &str) {
    eventually(&format!("{plugin} to go"), SOON, || {
        (daemon.plugin(plugin).is_none() && !daemon.is_mapped(plugin)).then_some(())
    });
}

/// Proves that a request that comes while the init callback of another plugin
/// runs is carried out when the daemon has started, and that neither init nor a
/// read callback of the new plugin runs before its configuration is complete:
/// the plugin `early` ends the daemon otherwise.
#[test]
fn a_request_during_start_up_waits_until_the_daemon_has_started() {
    let builder = Daemon::builder(Variant::Asan);
    let entered = builder.path("entered");
    let release = builder.path("release");
    let socket = builder.path("socket");
    let builder = builder
        .load_plugin("slowinit")
        .plugin_block("slowinit", &entered_and_release(&entered, &release))
        .available("early");
    let daemon = thread::scope(|scope| {
        let start = scope.spawn(|| builder.start());
        wait_for_file(&entered);
        let mut connection = eventually("the control socket", SOON, || {
            Connection::open(&socket).ok()
        });
        let load = scope.spawn(|| {
            Connection::open(&socket)
                .expect("the control socket")
                .command("LOADPLUGIN early config=\"Delay 1\"")
                .expect("an answer to LOADPLUGIN")
        });
        let begin = Instant::now();
        while begin.elapsed() < A_WHILE {
            let list = connection.command("LISTPLUGINS").expect("the plugins");
            let listed = list.lines.iter().map(|line| PluginInfo::parse(line));
            for plugin in listed {
                assert_ne!(plugin.name, "early", "during start-up: {plugin:?}");
            }
        }
        assert!(!load.is_finished(), "there was an answer during start-up");

        fs::write(&release, "").expect("letting the init callback return");
        let daemon = start.join().expect("the daemon");
        load.join().expect("the answer").expect_ok();
        daemon
    });
    daemon.assert_state("early", "READY");
    daemon.wait_for_value_of("early");
    let log = daemon.stop();
    let started = log.find("slowinit plugin: The init callback returns.");
    let loaded = log.find("plugin \"early\" successfully loaded");
    assert!(
        started.is_some() && started < loaded,
        "the plugin was loaded during start-up"
    );
}

/// Starts a daemon for a plugin that asks for operations in its callbacks.
fn with_selfcall() -> Daemon {
    Daemon::builder(Variant::Asan)
        .available("selfcall")
        .available("uptime")
        .available("memory")
        .start()
}

#[track_caller]
fn assert_takes_commands(daemon: &Daemon) {
    daemon.load("memory", &[]).expect_ok();
    daemon.wait_for_value_of("memory");
    daemon.unload("memory").expect_ok();
    daemon.assert_gone("memory");
}

/// Proves that a notification callback that asks for its own plugin's unload
/// does not wait for itself: it is told that this is in progress, the plugin
/// goes, and the daemon takes further commands.
#[test]
fn a_notification_callback_can_ask_for_its_own_unload() {
    let daemon = with_selfcall();
    daemon
        .load("selfcall", &[("config", "Trigger \"go away\"")])
        .expect_ok();
    notify(&daemon, "\"please go away\"");
    daemon.wait_for_log(&format!("selfcall plugin: unload: {IN_PROGRESS}"));
    wait_until_gone(&daemon, "selfcall");
    assert_takes_commands(&daemon);
    daemon.stop();
}

/// Proves the same of the notification that tells of the plugin's own loading,
/// which comes from within the operation.
#[test]
fn a_notification_about_an_operation_can_lead_to_the_next_one() {
    let daemon = with_selfcall();
    daemon
        .load("selfcall", &[("config", "Trigger \"selfcall\"")])
        .expect_ok();
    daemon.wait_for_log(&format!("selfcall plugin: unload: {IN_PROGRESS}"));
    wait_until_gone(&daemon, "selfcall");
    assert_takes_commands(&daemon);
    daemon.stop();
}

/// Proves that an init callback that asks for another plugin does not wait for
/// the operation that it is a part of: it is told that this is in progress, and
/// the other plugin comes.
#[test]
fn an_init_callback_can_ask_for_another_plugin() {
    let daemon = with_selfcall();
    daemon
        .load("selfcall", &[("config", "Load \"uptime\"")])
        .expect_ok();
    daemon.wait_for_log(&format!("selfcall plugin: load: {IN_PROGRESS}"));
    daemon.wait_for_value_of("uptime");
    daemon.assert_state("uptime", "READY");
    assert_takes_commands(&daemon);
    daemon.unload("selfcall").expect_ok();
    daemon.assert_gone("selfcall");
    daemon.stop();
}

/// Proves that an init callback may ask for another plugin while the daemon
/// starts: it does not wait for an operation that can only begin afterwards.
#[test]
fn an_init_callback_at_start_up_can_ask_for_another_plugin() {
    let daemon = Daemon::builder(Variant::Asan)
        .available("uptime")
        .available("memory")
        .load_plugin("selfcall")
        .plugin_block("selfcall", "Load \"uptime\"")
        .start();
    daemon.wait_for_log(&format!("selfcall plugin: load: {IN_PROGRESS}"));
    daemon.wait_for_value_of("uptime");
    assert_takes_commands(&daemon);
    daemon.stop();
}

/// Proves that unloading waits for a free function that a thread of the plugin
/// brings about after the shutdown callback: its code is mapped for as long as
/// it runs.
#[test]
fn unloading_waits_for_what_a_late_thread_frees() {
    let daemon = Daemon::builder(Variant::Asan)
        .load_plugin("memory")
        .available("latefree")
        .start();
    let entered = daemon.path("entered");
    let release = daemon.path("release");
    let config = entered_and_release(&entered, &release);
    daemon.load("latefree", &[("config", &config)]).expect_ok();
    thread::scope(|scope| {
        let unload = scope.spawn(|| daemon.unload_within("latefree", SOON));
        wait_for_file(&entered);
        let begin = Instant::now();
        while begin.elapsed() < A_WHILE {
            assert!(daemon.is_mapped("latefree"), "unmapped while it runs");
            assert!(!unload.is_finished(), "unloaded while it runs");
        }
        fs::write(&release, "").expect("letting the free function return");
        unload.join().expect("the answer").expect_ok();
    });
    daemon.assert_gone("latefree");
    daemon.wait_for_value_of("memory");

    // It can come back.
    daemon.load("latefree", &[("config", &config)]).expect_ok();
    daemon.unload("latefree").expect_ok();
    daemon.assert_gone("latefree");
    daemon.stop();
}

/// Proves that who registers a callback while he holds a lock is not made to
/// free something whose free function needs that lock.
#[test]
fn registering_frees_nothing_that_needs_a_lock_of_the_caller() {
    let daemon = Daemon::builder(Variant::Asan)
        .available("lockfree")
        .available("memory")
        .start();
    daemon.load("lockfree", &[]).expect_ok();
    daemon.putval("x/count", 10.0, 1.0).expect_ok();
    daemon.wait_for_log("lockfree plugin: The callback has been registered.");
    assert_takes_commands(&daemon);
    daemon.unload("lockfree").expect_ok();
    daemon.assert_gone("lockfree");
    daemon.stop();
}

/// Starts a daemon with a plugin that is slow, and waits until its file
/// "Entered" has `bytes` bytes. Returns the daemon and what ends the slowness.
fn with_slow_plugin(
    prepare: impl FnOnce(Builder) -> Builder,
    name: &str,
    bytes: usize,
) -> (Daemon, impl FnOnce()) {
    let builder = prepare(Daemon::builder(Variant::Asan).option("ReadThreads 5"));
    let entered = builder.path("entered");
    let release = builder.path("release");
    let daemon = builder
        .load_plugin(name)
        .plugin_block(name, &entered_and_release(&entered, &release))
        .start();
    eventually(&format!("{name} to be slow"), SOON, || {
        let so_far = fs::read(&entered).ok()?;
        (so_far.len() >= bytes).then_some(())
    });
    (daemon, move || {
        fs::write(&release, "").expect("letting the callbacks return");
    })
}

/// Proves that a free function of another plugin, however slow, does not keep a
/// plugin from being unloaded.
#[test]
fn a_slow_free_function_of_another_plugin_does_not_hold_up_unloading() {
    let (daemon, release) =
        with_slow_plugin(|builder| builder.load_plugin("memory"), "slowfree", 0);
    daemon
        .unload_within("memory", Duration::from_secs(2))
        .expect_ok();
    daemon.assert_gone("memory");
    release();
    daemon.stop();
}

/// Proves that readers of another plugin that occupy every read thread do not
/// keep a plugin from being unloaded that has unregistered a reader of its own.
#[test]
fn slow_readers_of_another_plugin_do_not_hold_up_unloading() {
    let (daemon, release) =
        with_slow_plugin(|builder| builder.load_plugin("dropread"), "slowread", 5);
    notify(&daemon, "drop");
    daemon.wait_for_log("dropread plugin: One reader is dropped.");
    daemon
        .unload_within("dropread", Duration::from_secs(2))
        .expect_ok();
    daemon.assert_gone("dropread");
    release();
    daemon.stop();
}

/// Proves that the path of `configfile=` is taken as it is, blanks included:
/// what the file says applies, and what it must not say is refused.
#[test]
fn a_configuration_file_may_have_a_blank_in_its_path() {
    let daemon = Daemon::builder(Variant::Asan).load_plugin("memory").start();
    daemon.wait_for_value_of("memory");
    let percents = || {
        let values = daemon.listval().into_keys();
        values
            .filter(|name| name.starts_with("memory/percent-"))
            .count()
    };
    assert_eq!(percents(), 0);

    let file = daemon.path("my memory.conf");
    let path = file.display().to_string();
    fs::write(&file, "ValuesPercentage true\n").unwrap();
    daemon
        .reload("memory", &[("configfile", &path)])
        .expect_ok();
    eventually("a percentage", SOON, || (percents() > 0).then_some(()));

    let generation = daemon
        .assert_state("memory", "READY")
        .field("generation")
        .to_owned();
    fs::write(&file, "<ValuesPercentage>\n").unwrap();
    daemon
        .reload("memory", &[("configfile", &path)])
        .expect_refused(&["memory", "nothing has been changed"]);
    let after = daemon.assert_state("memory", "READY");
    assert_eq!(after.field("generation"), generation);
    daemon.wait_for_value_of("memory");
    daemon.stop();
}

/// Proves that an init callback that registers itself again runs once, at
/// start-up and at run time.
#[test]
fn an_init_callback_that_registers_itself_again_runs_once() {
    let runs = |daemon: &Daemon| {
        let log = daemon.log();
        log.matches("reinit plugin: The init callback runs.")
            .count()
    };
    let daemon = Daemon::builder(Variant::Asan).load_plugin("reinit").start();
    assert_eq!(runs(&daemon), 1, "at start-up");
    daemon.assert_state("reinit", "READY");
    daemon.unload("reinit").expect_ok();
    daemon.assert_gone("reinit");

    daemon.load("reinit", &[]).expect_ok();
    assert_eq!(runs(&daemon), 2, "at run time");
    daemon.assert_state("reinit", "READY");
    daemon.stop();
}

/// Proves that configuration that is refused is given back: the leak checker at
/// the daemon's end finds nothing, whether the file could not be parsed, was not
/// about the plugin, was refused by the plugin or was not there.
#[test]
fn refused_configuration_files_do_not_leak() {
    const REFUSED: [&str; 4] = [
        "ReportByCpu true\n<Broken\n",
        "ReportByCpu true\n<Broken>\nOption \"text\" 1 true\n",
        "<Plugin cpu>\nReportByCpu true\n</Plugin>\n<Plugin memory>\n</Plugin>\n",
        "ReportByCpu true\nUnknownOption \"text\"\n",
    ];
    let daemon = Daemon::builder(Variant::Asan).load_plugin("cpu").start();
    let file = daemon.path("refused.conf");
    let path = file.display().to_string();
    for content in REFUSED.iter().cycle().take(20) {
        fs::write(&file, content).unwrap();
        let options = [("configfile", path.as_str())];
        daemon.reload("cpu", &options).expect_refused(&["cpu"]);
    }
    fs::remove_file(&file).unwrap();
    daemon
        .reload("cpu", &[("configfile", &path)])
        .expect_refused(&["cpu"]);
    daemon.assert_state("cpu", "READY");
    daemon.wait_for_value_of("cpu");
    daemon.stop();
}

/// Proves that values that reach no writer do not fill the log: the writers that
/// there are, none, are named only with the complaint about that, and that is
/// rationed.
#[test]
fn a_daemon_without_writers_does_not_log_every_value() {
    const AVAILABLE: &str = "Available write targets";
    const COMPLAINT: &str = "Dispatching value to all write plugins failed";
    let daemon = Daemon::builder(Variant::Patched).start();
    for i in 0..100 {
        daemon
            .putval(&format!("none-{i}/count"), 10.0, 1.0)
            .expect_ok();
    }
    eventually("the last value", SOON, || daemon.getval("none-99/count"));
    daemon.wait_for_log(AVAILABLE);
    let log = daemon.log();
    let complaints = log.matches(COMPLAINT).count();
    assert!((1..10).contains(&complaints), "{log}");
    assert!(log.matches(AVAILABLE).count() <= complaints, "{log}");
    daemon.stop();
}
