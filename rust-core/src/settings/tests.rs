use super::*;
use std::fs;

fn block() -> Block {
    Block {
        key: "Plugin".into(),
        values: vec!["monitor".into()],
        children: Vec::new(),
    }
}

fn minimal() -> Block {
    block()
        .with("Host", "broker")
        .with("CommandTopic", "commands")
}

fn remote_of(block: &Block) -> Remote {
    Settings::read(block).unwrap().remote.unwrap()
}

fn problems(block: &Block) -> Vec<String> {
    Settings::read(block)
        .expect_err("must be refused")
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// A block that names a JSON file with this text, and that file.
struct WithFile {
    dir: tempfile::TempDir,
    block: Block,
}

impl WithFile {
    fn new(base: Block, text: impl AsRef<[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, text).unwrap();
        let block = base.with("MonitorConfigPath", path.to_str().unwrap());
        Self { dir, block }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("config.json")
    }

    fn rewrite(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    fn problems(&self) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        problems(&self.block)
            .iter()
            .map(|problem| problem.replace(&dir, ""))
            .collect()
    }
}

#[test]
fn the_defaults_are_those_of_the_original() {
    let remote = remote_of(&minimal());
    assert_eq!(
        remote,
        Remote {
            protocol: Protocol::V3,
            host: "broker".into(),
            port: 1883,
            tls: None,
            user: None,
            password: None,
            password_file: None,
            password_credential: None,
            password_environment: None,
            clean_session: false,
            client_id: None,
            qos: Qos::ExactlyOnce,
            command_topic: "commands".into(),
            result_topic: None,
            status_topic: None,
            response_prefix: None,
            session_expiry: Duration::from_secs(86_400),
            reconnect: None,
            keep_alive: Duration::from_secs(30),
        }
    );
    let settings = Settings::read(&minimal()).unwrap();
    assert_eq!(
        (settings.device, settings.threshold),
        (Device::Collectd, Threshold::Warn)
    );
}

#[test]
fn every_setting_of_the_block_is_read() {
    let remote = remote_of(
        &block()
            .with("host", "broker.example:8884")
            .with("USER", "u")
            .with("Password", "p")
            .with("Secure", true)
            .with("CAFile", "/ca.pem")
            .with("CertFile", "/cert.pem")
            .with("KeyFile", "/key.pem")
            .with("CleanSession", true)
            .with("ClientId", "id")
            .with("QoS", 1.0)
            .with("CommandTopic", "c/%h")
            .with("CommandResultTopic", "r")
            .with("ReconnectInterval", 2.5)
            .with("KeepAlive", 5.0)
            .with("Protocol", 5.0)
            .with("SessionExpiry", 60.0)
            .with("ResponseTopicPrefix", "replies"),
    );
    assert_eq!(
        remote,
        Remote {
            protocol: Protocol::V5,
            host: "broker.example".into(),
            port: 8884,
            tls: Some(Tls {
                ca_file: Some("/ca.pem".into()),
                identity: Some(("/cert.pem".into(), "/key.pem".into())),
            }),
            user: Some("u".into()),
            password: Some(Secret::new("p")),
            password_file: None,
            password_credential: None,
            password_environment: None,
            clean_session: true,
            client_id: Some("id".into()),
            qos: Qos::AtLeastOnce,
            command_topic: "c/%h".into(),
            result_topic: Some("r".into()),
            status_topic: None,
            response_prefix: Some("replies".into()),
            session_expiry: Duration::from_secs(60),
            reconnect: Some(Duration::from_millis(2500)),
            keep_alive: Duration::from_secs(5),
        }
    );
}

#[test]
fn the_json_file_wins() {
    let with = WithFile::new(
        minimal().with("QoS", 0.0).with("LogLevel", "debug"),
        r#"{ "Host": "other:99", "QoS": 1, "LogDevice": "console", "Services": {} }"#,
    );
    let settings = Settings::read(&with.block).unwrap();
    let remote = settings.remote.unwrap();
    assert_eq!(
        (remote.host.as_str(), remote.port, remote.qos),
        ("other", 99, Qos::AtLeastOnce)
    );
    assert_eq!(
        (settings.device, settings.threshold),
        (Device::Stdout, Threshold::Debug)
    );
}

#[test]
fn names_of_devices_and_levels_have_synonyms_and_no_case() {
    for (name, device) in [
        ("syslog", Device::Syslog),
        ("STDOUT", Device::Stdout),
        ("Console", Device::Stdout),
        ("collectd", Device::Collectd),
    ] {
        let settings = Settings::read(&minimal().with("LogDevice", name)).unwrap();
        assert_eq!(settings.device, device);
    }
    for (name, threshold) in [
        ("fatal", Threshold::Fatal),
        ("error", Threshold::Error),
        ("Err", Threshold::Error),
        ("WARN", Threshold::Warn),
        ("warning", Threshold::Warn),
        ("info", Threshold::Info),
        ("debug", Threshold::Debug),
    ] {
        let settings = Settings::read(&minimal().with("LogLevel", name)).unwrap();
        assert_eq!(settings.threshold, threshold);
    }
}

#[test]
fn every_mistake_is_named_at_once_with_its_place() {
    let with = WithFile::new(
        block()
            .with("Hots", "broker")
            .with("QoS", 3.0)
            .with("Secure", "maybe")
            .with("User", "a")
            .with("User", "b")
            .with_block(Block::option("Password", []))
            .with_block(Block::option("Rules", []).with("x", 1.0)),
        "{\n  \"qos\": 1,\n  \"QoS\": \"1\",\n  \"ReconnectInterval\": -1,\n  \"KeepAlive\": 2,\n  \
         \"Host\": null,\n  \"CommandResultTopic\": \"a/#\",\n  \"LogLevel\": \"loud\",\n  \
         \"CleanSession\": 1,\n  \"Host\": \"b:0\",\n  \"MonitorConfigPath\": \"x\",\n  \
         \"Password\": 5,\n  \"Services\": { \"web\": { \"Command\": {}, \"commands\": {\n    \
         \"a\": 1, \"b\": { \"shell\": \"x\", \"argv\": [\"y\"] }, \"c\": { \"timeout\": 0 },\n    \
         \"d\": { \"argv\": [] }, \"e\": { \"shell\": \"x\", \"max_output\": 0.5 } } }, \"db\": [] }\n}",
    );
    assert_eq!(
        with.problems(),
        [
            "<Plugin monitor>: Hots: is not a setting",
            "<Plugin monitor>: QoS: must be 0, 1 or 2, not 3",
            "<Plugin monitor>: Secure: must be a boolean, not a string",
            "<Plugin monitor>: User: is there twice",
            "<Plugin monitor>: Password: takes one value, not 0",
            "<Plugin monitor>: Rules: is not a block of this plugin",
            "config.json:2:10: qos: is not a setting (but QoS is)",
            "config.json:3:10: QoS: must be 0, 1 or 2, not a string",
            "config.json:4:24: ReconnectInterval: must be a number of seconds from 0.1 to 86400, not -1",
            "config.json:5:16: KeepAlive: must be a whole number of seconds from 5 to 3600, not 2",
            "config.json:6:11: Host: must be a string, not null",
            "config.json:7:25: CommandResultTopic: is not a topic to publish to: it must not hold + or #",
            "config.json:8:15: LogLevel: must be fatal, error, warn, info or debug",
            "config.json:9:19: CleanSession: must be a boolean, not a number",
            "config.json:10:11: Host: has a port that is not a number from 1 to 65535",
            "config.json:11:24: MonitorConfigPath: belongs into the block of collectd.conf",
            "config.json:12:15: Password: must be a string, not a number",
            "config.json:13:37: Services.web.Command: is not an option of a service",
            "config.json:14:10: Services.web.commands.a: must be a string or an object, not a number",
            "config.json:14:42: Services.web.commands.b.argv: a command has one of shell and argv, once",
            "config.json:14:69: Services.web.commands.c.timeout: must be a number of seconds from 0.001 to 604800",
            "config.json:14:56: Services.web.commands.c: needs shell or argv",
            "config.json:15:20: Services.web.commands.d.argv: must be a list of strings without NUL characters, of which the first is the program",
            "config.json:15:61: Services.web.commands.e.max_output: must be a whole number of bytes from 0 to 1048576",
            "config.json:15:78: Services.db: must be an object, not a list",
        ]
    );
}

#[test]
fn what_does_not_go_together_is_named() {
    assert_eq!(
        problems(&block()),
        ["<Plugin monitor>: Host: is needed to take commands (or LocalMonitorConfigDir for rules)"]
    );
    assert_eq!(
        problems(
            &block()
                .with("Host", "h")
                .with("Password", "p")
                .with("PasswordFile", "/p")
                .with("CAFile", "/ca")
                .with("Secure", false)
        ),
        [
            "<Plugin monitor>: CommandTopic: is needed, because there is a Host",
            "<Plugin monitor>: Password: is of no use without a User",
            "<Plugin monitor>: PasswordFile: is of no use without a User",
            "<Plugin monitor>: PasswordFile: is of no use beside a Password",
            "<Plugin monitor>: CAFile: is of no use without Secure",
        ]
    );
    assert_eq!(
        problems(&minimal().with("Secure", true).with("CertFile", "/cert")),
        ["<Plugin monitor>: KeyFile: is needed, because there is a CertFile"]
    );
}

#[test]
fn a_syntax_error_in_the_file_has_line_and_column() {
    let with = WithFile::new(minimal(), "{\n  \"Host\": \"b\"\n  \"QoS\": 1\n}");
    assert_eq!(with.problems(), ["config.json:3:3: expected `,` or `}`"]);
    let with = WithFile::new(minimal(), b"{\n\n\"Host\": \"\xff\"}");
    assert_eq!(with.problems(), ["config.json:3: is not UTF-8"]);
    let with = WithFile::new(minimal(), "42");
    assert_eq!(
        with.problems(),
        ["config.json:1:1: the file: must be an object, not a number"]
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let found = problems(&minimal().with("MonitorConfigPath", "/nonexistent/config.json"));
    assert_eq!(
        found,
        ["/nonexistent/config.json: cannot be read: No such file or directory (os error 2)"]
    );
    let found = problems(&minimal().with("MonitorConfigPath", "/dev/null"));
    assert_eq!(found, ["/dev/null: cannot be read: is not a regular file"]);
}

#[test]
fn no_value_of_a_string_is_shown() {
    let with = WithFile::new(
        minimal()
            .with("LogLevel", "hunter2")
            .with("Host", "hunter2:hunter2"),
        r#"{ "Password": ["hunter2"], "QoS": "hunter2", "User": { "hunter2": 1 } }"#,
    );
    let shown = format!("{:?}", with.problems());
    assert!(!shown.contains("hunter2"), "{shown}");
    let settings =
        Settings::read(&minimal().with("User", "u").with("Password", "hunter2")).unwrap();
    assert!(!format!("{settings:?}").contains("hunter2"));
}

#[test]
fn addresses_may_have_ports_and_brackets() {
    assert_eq!(split_address("h"), Ok(("h".into(), None)));
    assert_eq!(split_address("h:1"), Ok(("h".into(), Some(1))));
    assert_eq!(split_address("[::1]"), Ok(("::1".into(), None)));
    assert_eq!(split_address("[::1]:1883"), Ok(("::1".into(), Some(1883))));
    assert_eq!(split_address("fe80::1"), Ok(("fe80::1".into(), None)));
    for wrong in [
        "h:", "h:0", "h:65536", "h:x", ":1", "[::1", "[::1]x", "[]:1",
    ] {
        assert!(split_address(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_port_follows_secure() {
    assert_eq!(remote_of(&minimal().with("Secure", true)).port, 8883);
}

const HELLO: &str =
    r#"{ "Services": { "hello": { "commands": { "exec": "echo Hello World!" } } } }"#;

fn shell(services: Option<&Services>, service: &str, command: &str) -> Option<CommandSpec> {
    services?.0.get(service)?.commands.get(command).cloned()
}

#[test]
fn both_spellings_of_commands_are_read() {
    for spelling in ["commands", "Commands"] {
        let with = WithFile::new(minimal(), HELLO.replace("commands", spelling));
        let mut services = Settings::read(&with.block).unwrap().services;
        let command = shell(services.current(), "hello", "exec").unwrap();
        assert_eq!(command.program, Program::Shell("echo Hello World!".into()));
        assert_eq!(command.timeout, Duration::from_secs(3600));
        assert_eq!(command.max_output, 65_536);
    }
}

#[test]
fn a_command_may_be_an_object() {
    let with = WithFile::new(
        minimal(),
        r#"{ "Services": { "s": { "commands": {
            "a": { "argv": ["/bin/echo", "x y"], "timeout": 0.5, "max_output": 10,
                "user": "nobody", "group": "adm", "env": { "A": "b" }, "cwd": "/tmp",
                "cooldown": 30, "concurrency": 2 },
            "b": { "shell": "true" } } } } }"#,
    );
    let mut services = Settings::read(&with.block).unwrap().services;
    assert_eq!(
        shell(services.current(), "s", "a").unwrap(),
        CommandSpec {
            program: Program::Argv(vec!["/bin/echo".into(), "x y".into()]),
            timeout: Duration::from_millis(500),
            max_output: 10,
            user: Some("nobody".into()),
            group: Some("adm".into()),
            env: [("A".to_owned(), Secret::new("b"))].into(),
            cwd: Some("/tmp".into()),
            cooldown: Some(Duration::from_secs(30)),
            concurrency: Some(2),
            parameters: Parameters::default(),
        }
    );
    assert_eq!(
        shell(services.current(), "s", "b").unwrap().timeout,
        Duration::from_secs(60)
    );
}

/// What is wrong with a command, without its place.
fn wrong_command(command: &str) -> String {
    let text = format!(r#"{{ "Services": {{ "s": {{ "commands": {{ "c": {command} }} }} }} }}"#);
    let found = WithFile::new(minimal(), text).problems();
    assert_eq!(found.len(), 1, "{command}: {found:?}");
    let (_, what) = found[0].split_once("commands.c").unwrap();
    what.to_owned()
}

#[test]
fn what_is_wrong_with_an_option_of_a_command_is_named() {
    for (option, what) in [
        (r#""cooldown": 0"#, ".cooldown: must be a number of seconds"),
        (
            r#""cooldown": "1""#,
            ".cooldown: must be a number of seconds",
        ),
        (
            r#""concurrency": 0"#,
            ".concurrency: must be a whole number",
        ),
        (
            r#""concurrency": 1.5"#,
            ".concurrency: must be a whole number",
        ),
        (r#""user": """#, ".user: must be a string that is not empty"),
        (
            r#""group": 7"#,
            ".group: must be a string that is not empty",
        ),
        (r#""cwd": "here""#, ".cwd: must be an absolute path"),
        (r#""env": ["A=b"]"#, ".env: must be an object of strings"),
        (r#""env": {"A": 1}"#, ".env: must be an object of strings"),
        (r#""env": {"A=B": "x"}"#, ".env: names a variable that no"),
        (
            r#""env": {"A": "", "A": ""}"#,
            ".env: names a variable twice",
        ),
        (r#""timeout": 1, "timeout": 1"#, ".timeout: is there twice"),
        (r#""stdin": """#, ".stdin: is not an option of a command"),
    ] {
        let found = wrong_command(&format!(r#"{{ "shell": "true", {option} }}"#));
        assert!(found.starts_with(what), "{option}: {found}");
    }
}

#[test]
fn what_is_wrong_with_a_parameter_is_named() {
    for (parameter, what) in [
        ("1", ".parameters.p: must be an object"),
        ("{}", ".parameters.p: needs a type"),
        (r#"{"type": "string"}"#, ".parameters.p: needs a pattern"),
        (r#"{"type": "list"}"#, ".parameters.p: has a type that"),
        (r#"{"type": 1}"#, ".parameters.p.type: must be a string"),
        (
            r#"{"type": "string", "pattern": "("}"#,
            ".parameters.p: has a pattern that is not a regular",
        ),
        (
            r#"{"type": "string", "pattern": "a)|(b"}"#,
            ".parameters.p: has a pattern that is not a regular",
        ),
        (
            r#"{"type": "string", "pattern": "a", "default": "b"}"#,
            ".parameters.p: has a default that does not match",
        ),
        (
            r#"{"type": "integer", "default": 1.5}"#,
            ".parameters.p: has a default that is not a whole",
        ),
        (
            r#"{"type": "integer", "min": 1}"#,
            ".parameters.p.min: is not an option of a parameter",
        ),
    ] {
        let command =
            format!(r#"{{ "argv": ["/x", "{{p}}"], "parameters": {{ "p": {parameter} }} }}"#);
        let text =
            format!(r#"{{ "Services": {{ "s": {{ "commands": {{ "c": {command} }} }} }} }}"#);
        let found = WithFile::new(minimal(), text).problems();
        assert!(found[0].contains(what), "{parameter}: {found:?}");
    }
    for (command, what) in [
        (
            r#"{ "shell": "x {p}", "parameters": { "p": { "type": "integer" } } }"#,
            ": has parameters, which need argv",
        ),
        (
            r#"{ "argv": ["/x", "{q}{p}"], "parameters": { "p": { "type": "integer" } } }"#,
            ": uses a parameter \"q\" that is not declared",
        ),
        (
            r#"{ "argv": ["/x{p}"], "parameters": { "p": { "type": "integer" } } }"#,
            ": must not take its program from a parameter",
        ),
        (
            r#"{ "argv": ["/x"], "parameters": { "p": { "type": "integer" } } }"#,
            ": does not use its parameter \"p\"",
        ),
        (
            r#"{ "argv": ["/x", "{p", "{p}"], "parameters": { "p": { "type": "integer" } } }"#,
            ": has a single { in a word of argv",
        ),
        (
            r#"{ "argv": ["/x", "p}", "{p}"], "parameters": { "p": { "type": "integer" } } }"#,
            ": has a single } in a word of argv",
        ),
    ] {
        let found = wrong_command(command);
        assert!(found.starts_with(what), "{command}: {found}");
    }
}

#[test]
fn arguments_fill_the_words_that_name_them_and_nothing_else() {
    let with = WithFile::new(
        minimal(),
        r#"{ "Services": { "s": { "commands": { "c": {
            "argv": ["/x", "--site={site}", "{site}", "{n}{{{flag}}}", "plain"],
            "parameters": {
                "site": { "type": "string", "pattern": "[-a-z; ]+|\\$\\(x\\)" },
                "n": { "type": "integer", "pattern": "-?[0-9]{1,3}", "default": 7 },
                "flag": { "type": "boolean", "default": false } } } } } } }"#,
    );
    let spec = shell(
        Settings::read(&with.block).unwrap().services.current(),
        "s",
        "c",
    )
    .unwrap();
    let fill = |arguments: &[(&str, Argument)]| {
        let arguments = arguments.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
        spec.parameters.fill(&spec.program, &arguments.collect())
    };
    let text = |text: &str| Argument::Text(text.to_owned());
    let argv = |words: &[&str]| {
        Ok(Program::Argv(
            words.iter().map(|word| (*word).to_owned()).collect(),
        ))
    };
    assert_eq!(
        fill(&[("site", text("a; b"))]),
        argv(&["/x", "--site=a; b", "a; b", "7{false}", "plain"])
    );
    assert_eq!(
        fill(&[
            ("site", text("$(x)")),
            ("n", Argument::Integer(-12)),
            ("flag", Argument::Flag(true))
        ]),
        argv(&["/x", "--site=$(x)", "$(x)", "-12{true}", "plain"])
    );
    for (arguments, why) in [
        (vec![], "the parameter \"site\" is missing"),
        (vec![("site", text("A"))], "does not match its pattern"),
        // The whole value must match.
        (vec![("site", text("a\n"))], "does not match its pattern"),
        (vec![("site", text("aA"))], "does not match its pattern"),
        (vec![("site", text("a\0"))], "must not hold a NUL"),
        (vec![("site", text(&"a".repeat(5000)))], "is too long"),
        (vec![("site", Argument::Integer(1))], "must be a string"),
        // It would be an option where it is a word of its own.
        (vec![("site", text("-r"))], "must not begin with a minus"),
        (
            vec![("site", text("a")), ("n", text("1"))],
            "must be a whole number",
        ),
        (
            vec![("site", text("a")), ("n", Argument::Integer(1000))],
            "does not match its pattern",
        ),
        (
            vec![("site", text("a")), ("flag", Argument::Integer(1))],
            "must be true or false",
        ),
        (
            vec![("site", text("a")), ("more", text("a"))],
            "the command has no parameter \"more\"",
        ),
    ] {
        let error = fill(&arguments).unwrap_err();
        assert!(error.contains(why), "{arguments:?}: {error}");
    }
}

#[test]
fn the_service_collectd_has_paths() {
    let with = WithFile::new(
        minimal(),
        r#"{ "Services": { "collectd": { "CommandPath": "/opt/collectd/sbin/collectd",
            "ConfigPath": "/c", "PIDPath": "/p", "ReplacerReportPath": "/r", "LuaPath": "/l",
            "commands": { "start": "true", "stop": "true" } } } }"#,
    );
    let mut services = Settings::read(&with.block).unwrap().services;
    let collectd = &services.current().unwrap().0["collectd"];
    assert_eq!(collectd.paths["CommandPath"], "/opt/collectd/sbin/collectd");
    assert_eq!(collectd.paths.len(), 5);
    assert_eq!(collectd.commands.len(), 2);
}

#[test]
fn the_block_may_hold_services_and_the_file_wins() {
    let mut service = Block::option("Service", [Value::from("hello")]);
    service.children.push(Block::option(
        "Command",
        [Value::from("exec"), Value::from("echo block")],
    ));
    let base = minimal().with_block(service);
    let mut services = Settings::read(&base).unwrap().services;
    let command = shell(services.current(), "hello", "exec").unwrap();
    assert_eq!(command.program, Program::Shell("echo block".into()));

    let with = WithFile::new(base, HELLO);
    let mut services = Settings::read(&with.block).unwrap().services;
    let command = shell(services.current(), "hello", "exec").unwrap();
    assert_eq!(command.program, Program::Shell("echo Hello World!".into()));
}

#[test]
fn an_edit_is_in_force_at_the_next_look() {
    let with = WithFile::new(minimal(), HELLO);
    let mut services = Settings::read(&with.block).unwrap().services;
    assert!(shell(services.current(), "hello", "again").is_none());
    with.rewrite(&HELLO.replace("exec", "again"));
    assert!(shell(services.current(), "hello", "again").is_some());
    assert!(shell(services.current(), "hello", "exec").is_none());
}

#[test]
fn a_broken_edit_leaves_the_last_good_version_in_force_and_is_logged_once() {
    use crate::daemon::Daemon;
    use crate::fake::FakeDaemon;
    use crate::logging::Logger;
    use std::sync::Arc;

    let daemon = Arc::new(FakeDaemon::new("h"));
    let logger = Logger::new(
        Arc::clone(&daemon) as Arc<dyn Daemon>,
        Device::Collectd,
        Threshold::Warn,
    );
    let _entered = logger.enter();
    let with = WithFile::new(minimal(), HELLO);
    let mut services = Settings::read(&with.block).unwrap().services;
    for broken in [
        "{",
        r#"{ "Services": [] }"#,
        r#"{ "Services": {}, "QoS": 9 }"#,
        r#"{ "Services": { "hello": { "commands": { "exec": 1 } } } }"#,
    ] {
        with.rewrite(broken);
        let before = daemon.lines().len();
        for _ in 0..3 {
            assert!(
                shell(services.current(), "hello", "exec").is_some(),
                "{broken}"
            );
        }
        assert!(services.error().is_some(), "{broken}");
        assert_eq!(daemon.lines().len(), before + 1, "{broken}");
    }
    fs::remove_file(with.path()).unwrap();
    assert!(shell(services.current(), "hello", "exec").is_some());
    assert!(services.error().unwrap().contains("cannot be read"));
    with.rewrite(HELLO);
    assert!(shell(services.current(), "hello", "exec").is_some());
    assert_eq!(services.error(), None);
}

#[test]
fn without_services_there_are_none() {
    let with = WithFile::new(minimal(), "{}");
    let mut services = Settings::read(&with.block).unwrap().services;
    assert!(services.current().is_none());
}

#[test]
fn the_version_of_mqtt_is_one_of_two() {
    for (value, expected) in [
        (Value::from("3.1.1"), Protocol::V3),
        (Value::from("5"), Protocol::V5),
        (Value::from("5.0"), Protocol::V5),
        (Value::from(5.0), Protocol::V5),
    ] {
        let remote = remote_of(&minimal().with("Protocol", value.clone()));
        assert_eq!(remote.protocol, expected, "{value:?}");
    }
    for wrong in [Value::from("4"), Value::from(3.1), Value::from(true)] {
        let problems = Settings::read(&minimal().with("Protocol", wrong)).unwrap_err();
        assert!(
            problems.to_string().contains("must be 3.1.1 or 5"),
            "{problems}"
        );
    }
    for (key, value) in [
        ("SessionExpiry", Value::from(60.0)),
        ("ResponseTopicPrefix", Value::from("r")),
    ] {
        let problems = Settings::read(&minimal().with(key, value)).unwrap_err();
        let expected = format!("<Plugin monitor>: {key}: is of no use without Protocol 5");
        assert_eq!(problems.to_string(), expected);
    }
}

#[test]
fn a_password_has_one_place() {
    let with = |key: &str| {
        minimal()
            .with("User", "u")
            .with("Password", "p")
            .with(key, "x")
    };
    for key in ["PasswordCredential", "PasswordEnvironment"] {
        let problems = Settings::read(&with(key)).unwrap_err();
        let expected = format!("<Plugin monitor>: {key}: is of no use beside a Password");
        assert_eq!(problems.to_string(), expected);
        let problems = Settings::read(&minimal().with(key, "x")).unwrap_err();
        let expected = format!("<Plugin monitor>: {key}: is of no use without a User");
        assert_eq!(problems.to_string(), expected);
    }
    for (key, value) in [
        ("PasswordCredential", "../x"),
        ("PasswordEnvironment", "PATH"),
    ] {
        let problems = Settings::read(&minimal().with("User", "u").with(key, value)).unwrap_err();
        assert!(
            problems.to_string().contains("must not be")
                || problems.to_string().contains("is not the name"),
            "{problems}"
        );
    }
}

#[test]
fn a_file_that_others_can_write_to_is_refused_with_the_command_that_mends_it() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, r#"{"Services":{}}"#).unwrap();
    let block = Block::option("Plugin", [Value::from("monitor")])
        .with("Host", "h")
        .with("CommandTopic", "c")
        .with("MonitorConfigPath", path.to_str().unwrap());
    assert!(Settings::read(&block).is_ok());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
    let problems = Settings::read(&block).unwrap_err().to_string();
    let expected = format!(
        "{path}: cannot be read: can be written by others (mode 0664) (run: chmod g-w {path})",
        path = path.display()
    );
    assert_eq!(problems, expected);
    // An edit that leaves it so is not in force, either.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut services = Settings::read(&block).unwrap().services;
    let more = r#"{"Services":{"web":{"commands":{"restart":"true"}}}}"#;
    std::fs::write(&path, more).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o646)).unwrap();
    assert!(services.current().unwrap().0.is_empty());
    assert!(services.error().unwrap().contains("chmod o-w"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(services.current().unwrap().0.len(), 1);
}

#[test]
fn signatures_are_required_where_there_is_a_trust_file_unless_it_is_said_otherwise() {
    let block = || {
        Block::option("Plugin", [Value::from("monitor")])
            .with("Host", "h")
            .with("CommandTopic", "c")
    };
    let trust = |block: Block| Settings::read(&block).unwrap().trust;
    assert_eq!(trust(block()), Trust::default());
    let with = trust(block().with("TrustFile", "/t"));
    assert!(with.require_signature && with.audit_syslog);
    let without = block()
        .with("TrustFile", "/t")
        .with("RequireSignature", false);
    assert!(!trust(without).require_signature);
    let problems = Settings::read(&block().with("RequireSignature", true)).unwrap_err();
    assert!(
        problems.to_string().contains("TrustFile: is needed"),
        "{problems}"
    );
    let mut groups = block();
    let names = [Value::from("web"), Value::from("frankfurt")];
    groups.children.push(Block::option("Groups", names));
    assert_eq!(trust(groups).groups, ["web", "frankfurt"]);
    for (key, value) in [
        ("Groups", Value::from(1.0)),
        ("Groups", Value::from("")),
        ("ClockSkew", Value::from(-1.0)),
        ("TrustFile", Value::from("relative")),
        ("HostKey", Value::from("relative")),
        ("AuditLog", Value::from("relative")),
        ("AuditSyslog", Value::from("yes")),
    ] {
        assert!(Settings::read(&block().with(key, value)).is_err(), "{key}");
    }
}
