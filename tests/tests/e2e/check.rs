//! `collectd -t` tests a configuration and touches nothing.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use collectd_live_tests::{
    build_dir, eventually, may_change_user, skip, Builder, Connection, Daemon, Variant,
};

/// What a check did.
#[derive(Debug)]
struct Check {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Check {
    fn run(command: &mut Command) -> Self {
        let output = command
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Check {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Whether the plugins were asked, which takes a privilege.
    fn asked_plugins(&self) -> bool {
        !self.stderr.contains("Only the syntax has been checked")
    }

    #[track_caller]
    fn assert_good(&self, plugins: &str) {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(
            self.stdout.ends_with(&format!("OK. Plugins: {plugins}\n")),
            "{self:?}"
        );
    }

    /// Asserts that the check failed, and said all of `messages`.
    #[track_caller]
    fn assert_bad(&self, messages: &[&str]) {
        assert_eq!(self.code, Some(1), "{self:?}");
        for message in messages {
            assert!(
                self.stderr.contains(message),
                "{message:?} is not in {self:?}"
            );
        }
    }
}

fn collectd() -> PathBuf {
    build_dir().join("prefix/sbin/collectd")
}

fn check_file(file: &Path) -> Check {
    let directory = file.parent().expect("a directory");
    Check::run(
        Command::new(collectd())
            .arg("-t")
            .arg("-C")
            .arg(file)
            .current_dir(directory),
    )
}

/// Writes `content` to `collectd.conf` after what every configuration needs; the
/// first line of `content` is line 4.
fn write_config(builder: &Builder, content: &str) -> PathBuf {
    let file = builder.path("collectd.conf");
    let directory = builder.path("");
    let head = format!(
        "BaseDir \"{}\"\nPluginDir \"{}\"\nTypesDB \"{}\"\n",
        directory.display(),
        builder.path("plugins").display(),
        build_dir().join("prefix/share/collectd/types.db").display()
    );
    fs::write(&file, head + content).expect("writing collectd.conf");
    file
}

/// Whether a check can ask the plugins here; says so if it cannot.
fn can_ask_plugins(test: &str) -> bool {
    let builder = Daemon::builder(Variant::Patched).available("cpu");
    let check = check_file(&write_config(&builder, "LoadPlugin cpu\n"));
    check.assert_good("cpu");
    if !check.asked_plugins() {
        skip(test, "root, or a kernel that grants user namespaces");
    }
    check.asked_plugins()
}

/// Proves that the check of a running daemon's own configuration finds nothing
/// wrong, and that the daemon notices nothing: its control socket and its log
/// are as they were.
#[test]
fn a_check_leaves_the_running_daemon_alone() {
    let builder = Daemon::builder(Variant::Patched);
    let data = builder.path("csv");
    let daemon = builder
        .load_plugin("csv")
        .plugin_block("csv", &format!("DataDir \"{}\"", data.display()))
        .load_plugin("memory")
        .start();
    let pid_file = fs::read(daemon.path("pid")).ok();
    let log = daemon.log();

    let check = check_file(&daemon.path("collectd.conf"));
    check.assert_good("logfile, unixsock, csv, memory");

    assert_eq!(daemon.log(), log, "the check has logged");
    assert_eq!(fs::read(daemon.path("pid")).ok(), pid_file);
    Connection::open(&daemon.socket()).expect("the control socket");
    daemon.assert_alive();
    daemon.wait_for_value_of("memory");
    daemon.stop();
}

/// Proves that a plugin which, when it is configured, removes and creates files,
/// connects to a server, sends a signal, logs and notifies gets nowhere in a
/// check, and that its init, read, write and shutdown callbacks are not called.
#[test]
fn a_check_keeps_what_plugins_do_to_itself() {
    const NAME: &str = "a_check_keeps_what_plugins_do_to_itself";
    if !can_ask_plugins(NAME) {
        return;
    }
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("its number").port();
    let builder = Daemon::builder(Variant::Patched);
    let target = builder.path("target");
    fs::create_dir(&target).expect("a directory");
    fs::write(target.join("removed"), "").expect("a file");
    let daemon = builder
        .load_plugin("memory")
        .load_plugin("nosy")
        .plugin_block(
            "nosy",
            &format!("Target \"{}\"\nPort {port}", target.display()),
        )
        .start();

    // That all of it works outside of a check is half of the proof.
    let deeds = [
        "unlink",
        "create",
        "signal",
        "connect",
        "log",
        "notification",
        "init",
        "read",
        "write",
    ];
    for deed in deeds {
        eventually(deed, Duration::from_secs(20), || {
            fs::read_to_string(daemon.path("stdout"))
                .expect("the daemon's standard output")
                .contains(&format!("nosy: {deed}\n"))
                .then_some(())
        });
    }
    assert!(!target.join("removed").exists());
    fs::write(target.join("removed"), "").expect("a file");
    fs::remove_file(target.join("written")).expect("what the daemon wrote");

    let check = check_file(&daemon.path("collectd.conf"));
    check.assert_good("logfile, unixsock, memory, nosy");
    assert!(
        check
            .stderr
            .contains("[error] nosy plugin: This is where it is."),
        "its configuration was not tried: {check:?}"
    );
    let mut harmless = vec!["nosy plugin: No address"];
    // In some containers nobody may say that any address will do.
    if OpenOptions::new()
        .write(true)
        .open("/proc/sys/net/ipv4/ip_nonlocal_bind")
        .is_ok()
    {
        harmless.push("nosy plugin: No bind");
    }
    for complaint in harmless {
        assert!(
            !check.stderr.contains(complaint),
            "what is no harm fails: {check:?}"
        );
    }
    assert!(
        !check.stdout.contains("nosy: "),
        "it got through: {check:?}"
    );
    assert!(target.join("removed").exists());
    assert!(!target.join("written").exists());
    daemon.stop();
}

/// Proves that problems are reported with file and line, all of them in one go,
/// in included files, too; and that the messages are those of the manual.
#[test]
fn a_check_names_the_file_and_the_line_of_each_problem() {
    const NAME: &str = "a_check_names_the_file_and_the_line_of_each_problem";
    if !can_ask_plugins(NAME) {
        return;
    }
    let builder = Daemon::builder(Variant::Patched)
        .available("cpu")
        .available("memory");
    fs::create_dir(builder.path("conf.d")).expect("a directory");
    fs::write(
        builder.path("conf.d/cpu.conf"),
        "LoadPlugin cpu\n<Plugin cpu>\n  ReportByColour true\n</Plugin>\n",
    )
    .expect("a file");
    let file = write_config(
        &builder,
        &format!(
            "Intervals 10\nLoadPlugin memry\nInclude \"{}\"\nLoadPlugin memory\n\
             <Plugin memory>\n ValuesAbsolut true\n</Plugin>\n\
             <LoadPlugin cpu>\n Intervals 1\n</LoadPlugin>\nTimeout 1\n",
            builder.path("conf.d").display()
        ),
    );
    let directory = builder.path("").display().to_string();
    let check = check_file(&file);
    check.assert_bad(&[
        &format!("{directory}collectd.conf:4: [warning] Unknown option `Intervals', it has no effect.\n"),
        &format!("{directory}collectd.conf:5: [error] There is no plugin \"memry\" in {directory}plugins.\n"),
        &format!("{directory}conf.d/cpu.conf:3: [warning] Plugin `cpu' did not register for value `ReportByColour'.\n"),
        &format!("{directory}conf.d/cpu.conf:3: [error] Plugin `cpu' failed to handle option `ReportByColour', return code: -1\n"),
        &format!("{directory}conf.d/cpu.conf:2: [error] The statement `Plugin \"cpu\"' fails.\n"),
        &format!("{directory}collectd.conf:8: [error] memory plugin: Invalid configuration option: \"ValuesAbsolut\".\n"),
        &format!("{directory}collectd.conf:11: [warning] Ignoring unknown LoadPlugin option \"Intervals\" for plugin \"cpu\"\n"),
        &format!("{directory}collectd.conf:14: [error] The Timeout must be two or more.\n"),
        "collectd.conf: Errors have been found.\n",
    ]);
    assert_eq!(check.stdout, "");

    // The transcript in the manual has the same problems in other places.
    let pod = build_dir().join("patched/tree/src/collectd.pod");
    let pod = fs::read_to_string(&pod).unwrap_or_else(|e| panic!("{}: {e}", pod.display()));
    let messages: Vec<String> = pod
        .lines()
        .filter(|line| line.starts_with("  col") || line.starts_with("  conf.d"))
        .filter_map(|line| Some(line[line.find(": [")?..].to_owned()))
        .map(|message| message.replace("/usr/lib/collectd", &format!("{directory}plugins")))
        .collect();
    assert_eq!(messages.len(), 5, "{messages:?}");
    for message in messages {
        assert!(
            check.stderr.contains(&message),
            "the manual shows {message:?}, which is not in {check:?}"
        );
    }

    // What the plugins only complain about does not keep the daemon from starting.
    let file = write_config(
        &builder,
        "LoadPlugin memory\n<Plugin memory>\n ValuesAbsolut true\n</Plugin>\n<Plugin cpu>\n A b\n</Plugin>\n",
    );
    let check = check_file(&file);
    check.assert_good("memory");
    for message in [
        "conf:5: [error] memory plugin",
        "conf:8: [warning] There is",
    ] {
        assert!(check.stderr.contains(message), "{check:?}");
    }
}

/// Proves that files which cannot be parsed are found, no matter how they are
/// included, and that the daemon agrees about the main one.
#[test]
fn a_check_finds_errors_of_syntax_in_included_files() {
    let builder = Daemon::builder(Variant::Patched).available("cpu");
    fs::create_dir(builder.path("conf.d")).expect("a directory");
    let part = builder.path("conf.d/part.conf");
    let directory = builder.path("conf.d").display().to_string();
    let included = format!("LoadPlugin cpu\nInclude \"{directory}\"\n");
    let pattern = format!("LoadPlugin cpu\nInclude \"{directory}/*.conf\"\n");

    fs::write(&part, "<Plugin cpu>\n ReportByCpu true\n").expect("a file");
    for content in [&included, &pattern] {
        check_file(&write_config(&builder, content)).assert_bad(&[
            &format!("Parse error in file `{}', line 3", part.display()),
            "collectd.conf:5: [error] configfile: Cannot read file",
        ]);
    }
    check_file(&write_config(&builder, "LoadPlugin\n"))
        .assert_bad(&["collectd.conf', line 4 near"]);
    check_file(&builder.path("nosuch.conf")).assert_bad(&["nosuch.conf"]);

    fs::write(&part, "<Plugin cpu>\n ReportByCpu true\n</Plugin>\n").expect("a file");
    for content in [&included, &pattern] {
        check_file(&write_config(&builder, content)).assert_good("cpu");
    }
}

/// Proves that a plugin which crashes, ends the process or hangs while it is
/// configured is reported with its statement, and does not take the check along.
#[test]
fn a_check_survives_a_plugin_that_crashes_or_hangs() {
    const NAME: &str = "a_check_survives_a_plugin_that_crashes_or_hangs";
    if !can_ask_plugins(NAME) {
        return;
    }
    let check = |how: &str| {
        let builder = Daemon::builder(Variant::Patched).available("badend");
        check_file(&write_config(
            &builder,
            &format!("LoadPlugin badend\n<Plugin badend>\n  How {how}\n</Plugin>\n"),
        ))
    };
    let hang = "does not come to an end within 30 seconds.";
    thread::scope(|scope| {
        for (how, end) in [
            ("abort", "crashes the daemon: signal "),
            ("exit", "ends the daemon with status 0."),
            ("hang", hang),
            ("close", hang),
        ] {
            scope.spawn(move || {
                check(how).assert_bad(&[&format!(
                    "collectd.conf:6: [error] The statement `Plugin \"badend\"' {end}"
                )]);
            });
        }
    });
    check("well").assert_good("badend");
}

/// Proves that an object which is no plugin, or needs a library that is not
/// there, is found.
#[test]
fn a_check_finds_objects_that_cannot_be_loaded() {
    const NAME: &str = "a_check_finds_objects_that_cannot_be_loaded";
    if !can_ask_plugins(NAME) {
        return;
    }
    let builder = Daemon::builder(Variant::Patched).available("cpu");
    fs::write(builder.path("plugins/text.so"), "not an object").expect("a file");
    let file = write_config(&builder, "LoadPlugin cpu\nLoadPlugin text\n");
    check_file(&file).assert_bad(&[
        &format!(
            "collectd.conf:5: [error] dlopen(\"{}\") failed",
            builder.path("plugins/text.so").display()
        ),
        "collectd.conf:5: [error] The statement `LoadPlugin \"text\"' fails.",
    ]);
}

/// Proves that without the privilege the check is over when the plugins have been
/// found, says so, and still finds what it can.
#[test]
fn a_check_without_privilege_stops_at_the_syntax() {
    const NAME: &str = "a_check_without_privilege_stops_at_the_syntax";
    let builder = Daemon::builder(Variant::Patched)
        .available("cpu")
        .available("badend");
    // In this user namespace there may be no further network namespace.
    let check_unprivileged = |content: &str| {
        let file = write_config(&builder, content);
        Check::run(
            Command::new("unshare")
                .args(["--user", "--map-root-user", "sh", "-c"])
                .arg("echo 0 >/proc/sys/user/max_net_namespaces && exec \"$0\" -t -C \"$1\"")
                .arg(collectd())
                .arg(&file),
        )
    };

    let check = check_unprivileged(
        "LoadPlugin cpu\nLoadPlugin badend\n<Plugin badend>\n  How abort\n</Plugin>\n\
         <Plugin memory>\n  A b\n</Plugin>\n",
    );
    if check.stderr.starts_with("unshare:") || check.stderr.starts_with("sh:") {
        skip(NAME, "user namespaces, to limit what root may do");
        return;
    }
    check.assert_good("cpu, badend");
    assert!(!check.asked_plugins(), "{check:?}");
    assert!(
        check
            .stderr
            .contains("conf:9: [warning] There is configuration for the `memory' plugin"),
        "{check:?}"
    );

    check_unprivileged("LoadPlugin cpu\nLoadPlugin memory\nReadThreads 1 2\n").assert_bad(&[
        "collectd.conf:5: [error] There is no plugin \"memory\"",
        "collectd.conf:6: [error] Global option `ReadThreads' needs exactly one argument.",
    ]);
}

/// Proves that an ordinary user can check a configuration, too, and that it is
/// the user's own view: a file that the user cannot read is an error.
#[test]
fn an_ordinary_user_may_check_a_configuration() {
    const NOBODY: u32 = 65534;
    const NAME: &str = "an_ordinary_user_may_check_a_configuration";
    if !may_change_user() {
        skip(NAME, "root, to become another user");
        return;
    }
    let builder = Daemon::builder(Variant::Patched)
        .available("cpu")
        .open_to_all_users();
    // The build may lie in a directory that only its owner can enter.
    let program = builder.path("collectd");
    fs::copy(collectd(), &program).expect("a copy of the daemon");
    let file = write_config(
        &builder,
        "LoadPlugin cpu\n<Plugin cpu>\n ReportByCpu true\n</Plugin>\n",
    );
    let check = || {
        Check::run(
            Command::new(&program)
                .arg("-t")
                .arg("-C")
                .arg(&file)
                .current_dir("/")
                .uid(NOBODY)
                .gid(NOBODY),
        )
    };
    check().assert_good("cpu");

    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("file permissions");
    check().assert_bad(&["Permission denied"]);
}

/// Proves that options which only matter when the daemon starts are looked at.
#[test]
fn a_check_looks_at_the_base_directory() {
    let builder = Daemon::builder(Variant::Patched).available("cpu");
    let missing = builder.path("missing");
    let base = format!("LoadPlugin cpu\nBaseDir \"{}\"\n", missing.display());
    let file = write_config(&builder, &base);

    check_file(&file).assert_good("cpu");
    assert!(!missing.exists(), "the check has made a directory");
    let without_creating =
        || Check::run(Command::new(collectd()).args(["-t", "-B", "-C"]).arg(&file));
    without_creating().assert_bad(&["The BaseDir", "No such file or directory"]);
    fs::write(&missing, "").expect("a file");
    without_creating().assert_bad(&["is not a directory"]);
}
