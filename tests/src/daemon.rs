//! A collectd daemon in a private directory.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fmt::Write;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, thread};

use rustix::process::{getrlimit, kill_process, prlimit, Pid, Resource, Rlimit, Signal};
use tempfile::TempDir;

use crate::control::quote;
use crate::{eventually, plugins, process, report, Connection, PluginInfo, Reply, Status, Variant};

/// The host name in every identifier of a test daemon.
const HOST: &str = "testhost";

/// The user and group id of "nobody".
const NOBODY: u32 = 65534;

/// How long the daemon may take to start or stop, sanitizers included.
const START_STOP_DEADLINE: Duration = Duration::from_secs(60);

/// How long a value may take to come.
const VALUE_DEADLINE: Duration = Duration::from_secs(20);

/// It is silent but for its findings. What a plugin did is told with names
/// although the plugin is gone.
const VALGRIND_OPTIONS: [&str; 6] = [
    "--quiet",
    "--keep-debuginfo=yes",
    "--fair-sched=yes",
    "--leak-check=full",
    "--show-leak-kinds=definite",
    "--errors-for-leak-kinds=definite",
];

/// LISTVAL rounds times to milliseconds: by how much they may be ahead.
const LISTVAL_ROUNDING: f64 = 0.0005;

/// How many commands are remembered for the report.
const REMEMBERED_COMMANDS: usize = 20;

/// Describes a daemon that is to be started.
#[derive(Debug)]
pub struct Builder {
    variant: Variant,
    prefix: PathBuf,
    dir: TempDir,
    interval: String,
    options: String,
    plugins: String,
    socket_options: String,
    log_options: String,
    environment: Vec<(String, String)>,
    launcher: Vec<OsString>,
    valgrind: bool,
}

impl Builder {
    fn new(variant: Variant) -> Self {
        let prefix = variant.prefix();
        let dir = tempfile::Builder::new()
            .prefix("collectd-live-")
            .tempdir()
            .expect("a private directory for the daemon");
        fs::create_dir(dir.path().join("plugins")).expect("a plugin directory for the daemon");
        Builder {
            variant,
            prefix,
            dir,
            interval: String::from("0.1"),
            options: String::new(),
            plugins: String::new(),
            socket_options: String::new(),
            log_options: String::new(),
            environment: Vec::new(),
            launcher: Vec::new(),
            valgrind: false,
        }
    }

    /// The path of a file in the daemon's private directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sets the global interval, which is 0.1 seconds otherwise.
    pub fn interval(mut self, seconds: &str) -> Self {
        self.interval = seconds.to_owned();
        self
    }

    /// Adds a global option, for example `WriteThreads 1`.
    pub fn option(mut self, line: &str) -> Self {
        push_line(&mut self.options, line);
        self
    }

    /// Adds an option to the block of the logfile plugin.
    pub fn log_option(mut self, line: &str) -> Self {
        push_line(&mut self.log_options, line);
        self
    }

    /// Puts a plugin into the daemon's plugin directory without loading it. It
    /// comes from `tests/plugins` or, if it is not there, from the build.
    pub fn available(self, name: &str) -> Self {
        self.available_as(name, name)
    }

    /// Like [`Self::available`], under another name.
    pub fn available_as(self, source: &str, name: &str) -> Self {
        provide(
            source,
            name,
            self.variant,
            &self.prefix,
            &self.dir.path().join("plugins"),
        );
        self
    }

    /// Makes a plugin of `tests/plugins` available that was compiled for another
    /// variant.
    pub fn available_as_for(self, name: &str, variant: Variant) -> Self {
        let target = self.dir.path().join(format!("plugins/{name}.so"));
        copy(&plugins::compile(name, variant), &target);
        self
    }

    /// Makes a plugin available and loads it at start-up.
    pub fn load_plugin(mut self, name: &str) -> Self {
        push_line(&mut self.plugins, &format!("LoadPlugin {name}"));
        self.available(name)
    }

    /// Like [`Self::load_plugin`], with options for the `<LoadPlugin>` block.
    pub fn load_plugin_with(mut self, name: &str, options: &str) -> Self {
        push_line(
            &mut self.plugins,
            &format!("<LoadPlugin {name}>\n{}\n</LoadPlugin>", options.trim_end()),
        );
        self.available(name)
    }

    /// Adds a `<Plugin>` block.
    pub fn plugin_block(mut self, name: &str, content: &str) -> Self {
        push_line(
            &mut self.plugins,
            &format!("<Plugin {name}>\n{}\n</Plugin>", content.trim_end()),
        );
        self
    }

    /// Adds a filter chain, which is called "Chain", after (`PostCache`) or
    /// before (`PreCache`) the value cache.
    pub fn chain(mut self, place: &str, content: &str) -> Self {
        push_line(
            &mut self.plugins,
            &format!(
                "{place}Chain \"Chain\"\n<Chain \"Chain\">\n{}\n</Chain>",
                content.trim_end()
            ),
        );
        self
    }

    /// Adds a variable to the daemon's environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the daemon in valgrind, whose findings count like a sanitizer's.
    pub fn in_valgrind(mut self) -> Self {
        self.valgrind = true;
        self
    }

    /// Lets every user of the machine connect to the control socket.
    pub fn open_to_all_users(mut self) -> Self {
        push_line(&mut self.socket_options, "SocketPerms \"0777\"");
        fs::set_permissions(self.dir.path(), Permissions::from_mode(0o755))
            .expect("opening the daemon's directory to all users");
        self
    }

    /// Starts the daemon by a command, which gets the daemon's program and its
    /// arguments and must turn into it: the process is the daemon's.
    pub fn launched_by<S: Into<OsString>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.launcher = command.into_iter().map(Into::into).collect();
        self
    }

    fn configuration(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "Hostname \"{HOST}\"\n\
             FQDNLookup false\n\
             BaseDir \"{dir}\"\n\
             PluginDir \"{dir}/plugins\"\n\
             TypesDB \"{}/share/collectd/types.db\"\n\
             Interval {}\n\
             {}\
             LoadPlugin logfile\n\
             <Plugin logfile>\n\
             File \"{dir}/log\"\n\
             LogLevel info\n\
             PrintSeverity true\n\
             {}\
             </Plugin>\n\
             LoadPlugin unixsock\n\
             <Plugin unixsock>\n\
             SocketFile \"{dir}/socket\"\n\
             {}\
             </Plugin>\n\
             {}",
            self.prefix.display(),
            self.interval,
            self.options,
            self.log_options,
            self.socket_options,
            self.plugins
        )
    }

    /// Starts the daemon and waits until it is up.
    ///
    /// # Panics
    /// If it does not come up, with everything it said.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let daemon = self.spawn();
        daemon.wait_until_up();
        daemon
    }

    /// Starts a daemon that is to end at once, and returns its exit status, log
    /// and standard error.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn start_in_vain(self) -> (ExitStatus, String, String) {
        let daemon = self.spawn();
        let status = eventually("the daemon's end", START_STOP_DEADLINE, || {
            daemon.exit_status()
        });
        let stderr = fs::read(daemon.path("stderr")).expect("the daemon's standard error");
        (
            status,
            daemon.log(),
            String::from_utf8_lossy(&stderr).into_owned(),
        )
    }

    fn spawn(self) -> Daemon {
        let this = self.available("logfile").available("unixsock");
        let configuration = this.configuration();
        let dir = this.dir.path();
        let configuration_path = dir.join("collectd.conf");
        fs::write(&configuration_path, &configuration).expect("writing collectd.conf");

        let program = this.prefix.join("sbin/collectd");
        let mut words: Vec<OsString> = this.launcher.clone();
        if this.valgrind {
            let log = dir.join(report::SANITIZER_PREFIX);
            words.push("valgrind".into());
            words.extend(VALGRIND_OPTIONS.iter().map(Into::into));
            words.push(format!("--log-file={}", log.display()).into());
        }
        words.push(program.into());
        let program = words.remove(0);
        let mut command = Command::new(&program);
        command
            .args(words)
            .args(["-f", "-B", "-C"])
            .arg(&configuration_path)
            .arg("-P")
            .arg(dir.join("pid"))
            // The caller's locale, notification socket and the like stay outside.
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .envs(sanitizer_options(this.variant, dir))
            .envs(this.environment)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(File::create(dir.join("stdout")).expect("a file for standard output"))
            .stderr(File::create(dir.join("stderr")).expect("a file for standard error"));
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("starting {}: {e}", Path::new(&program).display()));
        allow_core(child.id());

        Daemon {
            pid: child.id(),
            child: Mutex::new(child),
            variant: this.variant,
            prefix: this.prefix,
            dir: this.dir,
            history: Mutex::new(VecDeque::new()),
            connections: Mutex::new(Vec::new()),
        }
    }
}

/// A running daemon. It is killed when the value is dropped; [`Daemon::stop`]
/// ends it in good order and checks that it does.
#[derive(Debug)]
pub struct Daemon {
    pid: u32,
    child: Mutex<Child>,
    variant: Variant,
    prefix: PathBuf,
    dir: TempDir,
    history: Mutex<VecDeque<String>>,
    /// Idle connections to the control socket.
    connections: Mutex<Vec<Connection>>,
}

/// What `collectdctl` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collectdctl {
    /// The exit status.
    pub code: Option<i32>,
    /// What it printed to standard output.
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
}

impl Daemon {
    /// Describes a daemon of the given variant, with a control socket and a log.
    pub fn builder(variant: Variant) -> Builder {
        Builder::new(variant)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The path of a file in the daemon's private directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// What the daemon has logged so far.
    pub fn log(&self) -> String {
        fs::read(self.path("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Puts a further plugin into the running daemon's plugin directory.
    pub fn provide(&self, name: &str) {
        self.provide_as(name, name);
    }

    /// Like [`Self::provide`], under another name.
    pub fn provide_as(&self, source: &str, name: &str) {
        provide(
            source,
            name,
            self.variant,
            &self.prefix,
            &self.path("plugins"),
        );
    }

    /// Sends one control line, on a connection that no other thread uses
    /// meanwhile.
    ///
    /// # Panics
    /// If there is no answer.
    #[track_caller]
    pub fn ctl(&self, line: &str) -> Reply {
        let idle = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut connection = idle.unwrap_or_else(|| self.connect());
        let answer = connection.command(line);
        self.remember(line, &format!("{answer:?}"));
        let reply = answer.unwrap_or_else(|e| panic!("no answer to {}: {e}", shorten(line)));
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection);
        reply
    }

    /// Opens a connection of one's own.
    ///
    /// # Panics
    /// If the daemon does not accept it.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::open(&self.socket()).unwrap_or_else(|e| panic!("the control socket: {e}"))
    }

    /// Closes the connections that [`Self::ctl`] keeps, for a control socket that
    /// comes to its end.
    pub fn disconnect(&self) {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// `LOADPLUGIN`, with options such as `("config", "Interval 1")`.
    #[track_caller]
    pub fn load(&self, name: &str, options: &[(&str, &str)]) -> Reply {
        self.ctl(&verb("LOADPLUGIN", name, options))
    }

    /// `UNLOADPLUGIN`.
    #[track_caller]
    pub fn unload(&self, name: &str) -> Reply {
        self.ctl(&verb("UNLOADPLUGIN", name, &[]))
    }

    /// `UNLOADPLUGIN` with a deadline for callbacks that are running.
    #[track_caller]
    pub fn unload_within(&self, name: &str, timeout: Duration) -> Reply {
        let timeout = timeout.as_secs_f64().to_string();
        self.ctl(&verb("UNLOADPLUGIN", name, &[("timeout", &timeout)]))
    }

    /// `RELOADPLUGIN`, with the options of `LOADPLUGIN`.
    #[track_caller]
    pub fn reload(&self, name: &str, options: &[(&str, &str)]) -> Reply {
        self.ctl(&verb("RELOADPLUGIN", name, options))
    }

    /// Reloads the control socket's plugin through itself, and waits until it is
    /// back. No other thread must use the socket meanwhile.
    ///
    /// # Panics
    /// If it is not READY in the end.
    #[track_caller]
    pub fn reload_control_socket(&self, options: &[(&str, &str)]) {
        // On a connection of its own: a socket that is closing may not answer.
        let generation = || -> Option<u32> {
            let reply = Connection::open(&self.socket())
                .ok()?
                .command("LISTPLUGINS")
                .ok()?;
            let plugin = reply
                .lines
                .iter()
                .map(|line| PluginInfo::parse(line))
                .find(|plugin| plugin.name == "unixsock" && plugin.state == "READY")?;
            plugin.field("generation").parse().ok()
        };
        let before = generation().expect("unixsock in the list");
        let reply = self.reload("unixsock", options).expect_ok();
        assert!(reply.text.starts_with("accepted"), "{}", reply.text);
        self.disconnect();
        eventually(
            "the control socket to come back",
            START_STOP_DEADLINE,
            || generation().filter(|generation| *generation > before),
        );
    }

    /// `LISTPLUGINS`.
    #[track_caller]
    pub fn plugins(&self) -> Vec<PluginInfo> {
        let reply = self.ctl("LISTPLUGINS").expect_ok();
        reply
            .lines
            .iter()
            .map(|line| PluginInfo::parse(line))
            .collect()
    }

    /// What `LISTPLUGINS` says about one plugin, if it is listed.
    #[track_caller]
    pub fn plugin(&self, name: &str) -> Option<PluginInfo> {
        self.plugins()
            .into_iter()
            .find(|plugin| plugin.name == name)
    }

    /// Checks that a plugin is listed in the given state.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn assert_state(&self, name: &str, state: &str) -> PluginInfo {
        match self.plugin(name) {
            Some(plugin) if plugin.state == state => plugin,
            other => panic!("{name} should be listed as {state}, but LISTPLUGINS gives {other:?}"),
        }
    }

    /// Checks that a plugin is neither listed nor in the process's memory map.
    ///
    /// # Panics
    /// If it is.
    #[track_caller]
    pub fn assert_gone(&self, name: &str) {
        let listed = self.plugin(name);
        assert!(
            listed.is_none(),
            "{name} should be gone, but is listed: {listed:?}"
        );
        let mappings = self.mappings(name);
        assert!(
            mappings.is_empty(),
            "{name}.so should be unmapped, but is still mapped: {mappings:#?}"
        );
    }

    /// Whether the plugin's object is in the process's memory map.
    pub fn is_mapped(&self, name: &str) -> bool {
        !self.mappings(name).is_empty()
    }

    fn mappings(&self, name: &str) -> Vec<String> {
        let object = self.path("plugins").join(format!("{name}.so"));
        process::mappings(self.pid, &object)
    }

    /// The identifier of a value of this daemon, from the part after the host.
    pub fn identifier(&self, rest: &str) -> String {
        format!("{HOST}/{rest}")
    }

    /// `PUTVAL` of one number, now.
    #[track_caller]
    pub fn putval(&self, rest: &str, interval: f64, value: f64) -> Reply {
        self.ctl(&format!(
            "PUTVAL {} interval={interval} N:{value}",
            quote(&self.identifier(rest))
        ))
    }

    /// The first number of a value, if the daemon has it.
    #[track_caller]
    pub fn getval(&self, rest: &str) -> Option<f64> {
        let reply = self.ctl(&format!("GETVAL {}", quote(&self.identifier(rest))));
        let (_, number) = reply.lines.first()?.split_once('=')?;
        Some(
            number
                .parse()
                .unwrap_or_else(|e| panic!("GETVAL gave {number:?}: {e}")),
        )
    }

    /// `LISTVAL`: all identifiers (without the host) and when each was updated.
    #[track_caller]
    pub fn listval(&self) -> BTreeMap<String, f64> {
        let reply = self.ctl("LISTVAL").expect_ok();
        reply
            .lines
            .iter()
            .map(|line| {
                let parsed = line.split_once(' ').and_then(|(time, identifier)| {
                    let rest = identifier.split_once('/')?.1;
                    Some((rest.to_owned(), time.parse().ok()?))
                });
                parsed.unwrap_or_else(|| panic!("a line of LISTVAL is not understood: {line:?}"))
            })
            .collect()
    }

    /// When a value of the plugin last came, in seconds since the epoch.
    #[track_caller]
    pub fn last_value_of(&self, plugin: &str) -> Option<f64> {
        self.listval()
            .into_iter()
            .filter(|(identifier, _)| identifier.split(['/', '-']).next() == Some(plugin))
            .map(|(_, time)| time)
            .reduce(f64::max)
    }

    /// Waits until a value of the plugin comes that was read after this call.
    #[track_caller]
    pub fn wait_for_value_of(&self, plugin: &str) {
        self.wait_for_value_since(plugin, SystemTime::now());
    }

    /// Waits until a value of the plugin comes that was read after `since`.
    #[track_caller]
    pub fn wait_for_value_since(&self, plugin: &str, since: SystemTime) {
        let since = since
            .duration_since(UNIX_EPOCH)
            .expect("a clock after 1970")
            .as_secs_f64();
        eventually(&format!("a new value of {plugin}"), VALUE_DEADLINE, || {
            self.last_value_of(plugin)
                .filter(|time| *time > since + LISTVAL_ROUNDING)
        });
    }

    /// Waits until a line of the log contains `text`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), VALUE_DEADLINE, || {
            self.log().contains(text).then_some(())
        });
    }

    /// Runs the build's `collectdctl` against this daemon.
    pub fn collectdctl(&self, args: &[&str]) -> Collectdctl {
        self.run_collectdctl(&mut Command::new(self.prefix.join("bin/collectdctl")), args)
    }

    /// Runs `collectdctl` as the user "nobody"; the daemon must be open to all
    /// users.
    ///
    /// # Panics
    /// If the test may not change its user.
    pub fn collectdctl_as_nobody(&self, args: &[&str]) -> Collectdctl {
        self.collectdctl_as(NOBODY, &[], args)
    }

    /// Runs `collectdctl` as the user "nobody" with this group and these
    /// supplementary groups; the daemon must be open to all users.
    ///
    /// # Panics
    /// If the test may not change its user.
    pub fn collectdctl_as(&self, gid: u32, groups: &[u32], args: &[&str]) -> Collectdctl {
        // The build may lie in a directory that only its owner can enter.
        let copies = self.path("client");
        fs::create_dir_all(&copies).expect("a directory for copies of the client");
        copy(
            &self.prefix.join("bin/collectdctl"),
            &copies.join("collectdctl"),
        );
        for entry in fs::read_dir(self.prefix.join("lib")).expect("the build's libraries") {
            let path = entry.expect("the build's libraries").path();
            let name = path.file_name().unwrap_or_default();
            if name.to_string_lossy().starts_with("libcollectdclient.so") {
                copy(&path, &copies.join(name));
            }
        }
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", &NOBODY.to_string(), "--regid", &gid.to_string()])
            .args(match groups {
                [] => vec![String::from("--clear-groups")],
                _ => {
                    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
                    vec![String::from("--groups"), groups.join(",")]
                }
            })
            .arg("--")
            .arg(copies.join("collectdctl"))
            .env("LD_LIBRARY_PATH", &copies)
            .current_dir("/");
        self.run_collectdctl(&mut command, args)
    }

    /// Sends a line that `collectdctl` does not send to the control socket, as the user "nobody"; the daemon
    /// must be open to all users.
    ///
    /// # Panics
    /// If the answer is not one of success.
    #[track_caller]
    pub fn send_as_nobody(&self, line: &str) {
        let answer = self.ask_as_nobody(line, 1);
        assert!(answer.starts_with("0 "), "{answer:?}");
    }

    /// Sends a line to the control socket so many times, on one connection, as the user "nobody"; the daemon must be
    /// open to all users. Returns the first line of each answer.
    ///
    /// # Panics
    /// If there is no connection.
    #[track_caller]
    pub fn ask_as_nobody(&self, line: &str, times: usize) -> String {
        let nobody = NOBODY.to_string();
        let script = "my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!; \
                      for (1 .. $ARGV[2]) { print $s \"$ARGV[1]\\n\"; $s->flush; print scalar <$s> }";
        let output = Command::new("setpriv")
            .args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"])
            .args(["--", "perl", "-MIO::Socket::UNIX", "-e", script])
            .arg(self.socket())
            .arg(line)
            .arg(times.to_string())
            .current_dir("/")
            .output()
            .expect("perl");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn run_collectdctl(&self, command: &mut Command, args: &[&str]) -> Collectdctl {
        let output = command
            .arg("-s")
            .arg(self.socket())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let result = Collectdctl {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        self.remember(&format!("{command:?}"), &format!("{result:?}"));
        result
    }

    /// How long those threads have been on a processor whose names begin with one
    /// of `prefixes`.
    pub fn time_on_cpu(&self, prefixes: &[&str]) -> Duration {
        process::time_on_cpu(self.pid, prefixes)
    }

    /// What the kernel says about the process.
    pub fn status(&self) -> Status {
        Status::of(self.pid)
    }

    /// Whether the process has not ended yet.
    pub fn runs(&self) -> bool {
        self.exit_status().is_none()
    }

    /// How many descriptors the process has open, idle connections of
    /// [`Self::ctl`] included.
    pub fn descriptors(&self) -> usize {
        process::descriptors(self.pid)
    }

    /// Checks that the daemon runs and answers.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn assert_alive(&self) {
        if let Some(status) = self.exit_status() {
            panic!("the daemon has ended: {status}");
        }
        self.ctl("LISTVAL").expect_ok();
    }

    /// Ends the daemon, and returns its log.
    ///
    /// # Panics
    /// If it does not end in time and with exit status zero, or if a sanitizer
    /// has something to report.
    #[track_caller]
    pub fn stop(self) -> String {
        self.stop_with(0, str::to_owned)
    }

    /// The same for a daemon that has to complain when it ends.
    ///
    /// # Panics
    /// If it does not end in time and with this exit status, or if a sanitizer
    /// has something to report.
    #[track_caller]
    pub fn stop_with_status(self, code: i32) -> String {
        self.stop_with(code, str::to_owned)
    }

    /// Like [`Self::stop`], and looks at the log and at what else the daemon has
    /// left in its directory.
    #[track_caller]
    pub fn stop_and<T>(self, look: impl FnOnce(&str) -> T) -> T {
        self.stop_with(0, look)
    }

    #[track_caller]
    fn stop_with<T>(self, code: i32, look: impl FnOnce(&str) -> T) -> T {
        self.ask_to_stop();
        self.wait_for_end_and(code, look)
    }

    /// Asks the daemon to end, without waiting for it.
    pub fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits until the daemon ends by itself, or because it was asked to, and
    /// returns its log.
    ///
    /// # Panics
    /// As [`Self::stop`].
    #[track_caller]
    pub fn wait_for_end(self) -> String {
        self.wait_for_end_and(0, str::to_owned)
    }

    #[track_caller]
    fn wait_for_end_and<T>(self, code: i32, look: impl FnOnce(&str) -> T) -> T {
        let status = eventually("the daemon's end", START_STOP_DEADLINE, || {
            self.exit_status()
        });
        let reports = report::sanitizer_reports(self.dir.path());
        assert!(reports.is_empty(), "a sanitizer reports:\n{reports}");
        assert_eq!(status.code(), Some(code), "the daemon ended with {status}");
        look(&self.log())
    }

    /// Asks for all data to be flushed, by a signal.
    pub fn ask_to_flush(&self) {
        self.signal(Signal::USR1);
    }

    fn wait_until_up(&self) {
        eventually("the daemon's start", START_STOP_DEADLINE, || {
            if let Some(status) = self.exit_status() {
                panic!("the daemon ended at start-up: {status}");
            }
            // The log says when every plugin is initialized; the thread that
            // opens the control socket may be later than that.
            self.log()
                .contains("Initialization complete")
                .then_some(())?;
            Connection::open(&self.socket()).ok()
        });
    }

    fn exit_status(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().expect("the state of the daemon's process")
    }

    /// Sends the daemon a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        // A child that was not waited for keeps its id, even if it has ended.
        if self.exit_status().is_none() {
            kill_process(raw_pid(self.pid), signal).expect("sending the daemon a signal");
        }
    }

    fn remember(&self, command: &str, answer: &str) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.len() == REMEMBERED_COMMANDS {
            history.pop_front();
        }
        history.push_back(format!("-> {}\n<- {}", shorten(command), shorten(answer)));
    }

    fn report(&self) -> String {
        let mut text = format!(
            "==== {} daemon, process {}\n",
            self.variant.name(),
            self.pid
        );
        match self.exit_status() {
            None => report::live_backtrace(&mut text, self.pid),
            Some(status) => {
                writeln!(text, "ended: {status}").expect("writing to a string cannot fail");
                if status.signal().is_some() {
                    let program = self.prefix.join("sbin/collectd");
                    report::core_backtrace(&mut text, &program, self.dir.path());
                }
            }
        }
        report::file(&mut text, "collectd.conf", &self.path("collectd.conf"));
        report::file(&mut text, "log", &self.path("log"));
        report::file(&mut text, "standard error", &self.path("stderr"));
        let reports = report::sanitizer_reports(self.dir.path());
        if !reports.is_empty() {
            report::section(&mut text, "sanitizer", &reports);
        }
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let commands: Vec<&str> = history.iter().map(String::as_str).collect();
        report::section(&mut text, "last commands", &commands.join("\n"));
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.report());
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Both fail only if the process is gone already, which is what we want.
        drop(child.kill());
        drop(child.wait());
    }
}

fn verb(verb: &str, name: &str, options: &[(&str, &str)]) -> String {
    let mut line = format!("{verb} {}", quote(name));
    for (key, value) in options {
        line.push_str(&format!(" {key}={}", quote(value)));
    }
    line
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn shorten(text: &str) -> String {
    const LENGTH: usize = 500;
    match text.char_indices().nth(LENGTH) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
    }
}

/// The daemon skips symbolic links in its plugin directory, so this copies.
fn provide(source: &str, name: &str, variant: Variant, prefix: &Path, plugin_dir: &Path) {
    let target = plugin_dir.join(format!("{name}.so"));
    if target.exists() {
        return;
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("plugins/{source}.c"));
    let object = if own.exists() {
        plugins::compile(source, variant)
    } else {
        prefix.join(format!("lib/collectd/{source}.so"))
    };
    copy(&object, &target);
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to)
        .unwrap_or_else(|e| panic!("copying {} to {}: {e}", from.display(), to.display()));
}

fn raw_pid(pid: u32) -> Pid {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a process id")
}

/// Lets a crash leave a core: the report shows its backtraces.
fn allow_core(pid: u32) {
    let maximum = getrlimit(Resource::Core).maximum;
    prlimit(
        Some(raw_pid(pid)),
        Resource::Core,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .expect("allowing the daemon to leave a core");
}

fn sanitizer_options(variant: Variant, dir: &Path) -> Vec<(&'static str, String)> {
    let log = dir.join(report::SANITIZER_PREFIX);
    let log = log.display();
    let suppressions = |file: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(file)
            .display()
            .to_string()
    };
    match variant {
        Variant::Patched | Variant::Stock => Vec::new(),
        Variant::Asan => vec![
            (
                "ASAN_OPTIONS",
                // Freed memory is kept back to find late uses of it; a small
                // amount, so that growth of the process means something.
                format!("log_path={log}:detect_leaks=1:handle_abort=1:quarantine_size_mb=1"),
            ),
            (
                "LSAN_OPTIONS",
                format!(
                    "print_suppressions=0:suppressions={}",
                    suppressions("lsan.supp")
                ),
            ),
        ],
        Variant::Tsan => vec![("TSAN_OPTIONS", format!("log_path={log}:exitcode=66"))],
    }
}
