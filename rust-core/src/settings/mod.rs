//! What the monitor is told by its block in collectd.conf and by the JSON file named there.
//!
//! Settings are checked as a whole: [`Settings::read`] finds every mistake before it refuses.

mod block;
pub(crate) mod json;
mod parameters;
mod services;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

pub use block::{Block, Value};
pub use parameters::{Argument, Parameters};
pub(crate) use services::{read_regular_file, MAX_MAX_OUTPUT};
pub use services::{CommandSpec, Program, Service, Services, ServicesSource};

use crate::files::{self, Privacy};
use crate::logging::{Device, Threshold};
use crate::rules;
use crate::rules::lua::Limits;
use crate::secret::Secret;
use json::{Located, Node, Place};

/// MQTT's quality of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Qos {
    /// 0
    AtMostOnce,
    /// 1
    AtLeastOnce,
    /// 2
    #[default]
    ExactlyOnce,
}

impl Qos {
    /// As a number.
    pub fn level(self) -> u8 {
        match self {
            Qos::AtMostOnce => 0,
            Qos::AtLeastOnce => 1,
            Qos::ExactlyOnce => 2,
        }
    }
}

impl TryFrom<u8> for Qos {
    type Error = ();

    fn try_from(level: u8) -> Result<Self, ()> {
        match level {
            0 => Ok(Qos::AtMostOnce),
            1 => Ok(Qos::AtLeastOnce),
            2 => Ok(Qos::ExactlyOnce),
            _ => Err(()),
        }
    }
}

/// What the monitor is told.
#[derive(Debug)]
pub struct Settings {
    /// Where its log lines go.
    pub device: Device,
    /// Which of them.
    pub threshold: Threshold,
    /// The broker to take commands from, if any.
    pub remote: Option<Remote>,
    /// Where rules are, if any.
    pub rules: Option<rules::Settings>,
    /// The commands that may be run.
    pub services: ServicesSource,
    /// The program that runs them, where it is not the installed one.
    pub helper: Option<PathBuf>,
    /// Where the journal is, if not where the daemon keeps such things.
    pub state_dir: Option<PathBuf>,
    /// How old messages may be.
    pub freshness: Freshness,
    /// Whom to obey.
    pub trust: Trust,
}

/// Whom to obey, and what to write down about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The file with the keys, and what each may do.
    pub file: Option<PathBuf>,
    /// Whether messages must be signed.
    pub require_signature: bool,
    /// The key that results are signed with, if any.
    pub host_key: Option<PathBuf>,
    /// The groups that this host belongs to.
    pub groups: Vec<String>,
    /// By how much the clocks of sender and host may differ.
    pub clock_skew: Duration,
    /// Where decisions are written down, if anywhere.
    pub audit_log: Option<PathBuf>,
    /// Whether decisions go to the system's log.
    pub audit_syslog: bool,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            file: None,
            require_signature: false,
            host_key: None,
            groups: Vec::new(),
            clock_skew: Duration::from_secs(30),
            audit_log: None,
            audit_syslog: false,
        }
    }
}

/// How old messages may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// The oldest that is acted upon; none where any may be.
    pub max_age: Option<Duration>,
    /// Whether a message must say when it was sent.
    pub require_timestamp: bool,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            max_age: Some(Duration::from_secs(300)),
            require_timestamp: false,
        }
    }
}

/// The version of MQTT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// 3.1.1
    #[default]
    V3,
    /// 5
    V5,
}

/// The broker and the topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The version of MQTT to talk to it.
    pub protocol: Protocol,
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How to talk TLS to it, if at all.
    pub tls: Option<Tls>,
    /// Who we are to it.
    pub user: Option<String>,
    /// How we prove that.
    pub password: Option<Secret>,
    /// Where the proof is, if it is not given.
    pub password_file: Option<PathBuf>,
    /// Or which credential of systemd it is.
    pub password_credential: Option<String>,
    /// Or which variable of the environment holds it.
    pub password_environment: Option<String>,
    /// Whether the broker is to forget about us when we go.
    pub clean_session: bool,
    /// The name of our session, where it is not made from the host's. `%h` stands for the host's.
    pub client_id: Option<String>,
    /// For subscribing and for results.
    pub qos: Qos,
    /// Where commands come from. `%h` stands for the name of the host.
    pub command_topic: String,
    /// Where results go, if anywhere. `%h` stands for the name of the host.
    pub result_topic: Option<String>,
    /// Where to say that we are there, if anywhere. `%h` stands for the name of the host.
    pub status_topic: Option<String>,
    /// Where senders may want their results instead, with MQTT 5: below this topic, if anywhere. `%h` stands for
    /// the name of the host.
    pub response_prefix: Option<String>,
    /// How long the broker is to keep our session while we are away, with MQTT 5.
    pub session_expiry: Duration,
    /// How long to wait between attempts to connect. Without it, longer and longer.
    pub reconnect: Option<Duration>,
    /// How often to see whether the broker is still there.
    pub keep_alive: Duration,
}

impl Default for Remote {
    /// A broker on this host, and no topics.
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            host: "localhost".to_owned(),
            port: 1883,
            tls: None,
            user: None,
            password: None,
            password_file: None,
            password_credential: None,
            password_environment: None,
            clean_session: false,
            client_id: None,
            qos: Qos::default(),
            command_topic: String::new(),
            result_topic: None,
            status_topic: None,
            response_prefix: None,
            session_expiry: Duration::from_secs(86_400),
            reconnect: None,
            keep_alive: Duration::from_secs(30),
        }
    }
}

/// Whom to trust, and how to be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authorities that may vouch for the broker, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A mistake in the settings, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file with line and column, or the block of collectd.conf; then the key.
    pub place: String,
    /// What is wrong. Holds no value of a string, which might be a secret.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// All mistakes in the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    list: Vec<Problem>,
    /// The file that is being read.
    file: PathBuf,
}

impl Problems {
    /// Each mistake, in the order of the block and then of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    fn json(&mut self, at: Place, key: &str, what: impl Into<String>) {
        let place = format!("{}:{at}: {key}", self.file.display());
        self.list.push(Problem {
            place,
            what: what.into(),
        });
    }

    fn block(&mut self, key: &str, what: impl Into<String>) {
        self.list.push(Problem {
            place: format!("<Plugin monitor>: {key}"),
            what: what.into(),
        });
    }

    fn file(&mut self, place: String, what: impl Into<String>) {
        self.list.push(Problem {
            place,
            what: what.into(),
        });
    }

    fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.list.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// The settings that both the block and the file may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Setting {
    Host,
    User,
    Password,
    Secure,
    CaFile,
    CertFile,
    KeyFile,
    CleanSession,
    ClientId,
    QoS,
    CommandTopic,
    CommandResultTopic,
    ReconnectInterval,
    KeepAlive,
    LogDevice,
    LogLevel,
    LocalMonitorConfigDir,
    HelperPath,
    StateDir,
    MaxAge,
    RequireTimestamp,
    PasswordFile,
    StatusTopic,
    TrustFile,
    RequireSignature,
    HostKey,
    Groups,
    ClockSkew,
    AuditLog,
    AuditSyslog,
    Protocol,
    SessionExpiry,
    ResponseTopicPrefix,
    Sandbox,
    RuleMemory,
    RuleInstructions,
    RuleQueue,
    RuleShadow,
    RuleKey,
    RuleHostKeys,
    PasswordCredential,
    PasswordEnvironment,
}

const KEYS: [(&str, Setting); 42] = [
    ("Host", Setting::Host),
    ("User", Setting::User),
    ("Password", Setting::Password),
    ("Secure", Setting::Secure),
    ("CAFile", Setting::CaFile),
    ("CertFile", Setting::CertFile),
    ("KeyFile", Setting::KeyFile),
    ("CleanSession", Setting::CleanSession),
    ("ClientId", Setting::ClientId),
    ("QoS", Setting::QoS),
    ("CommandTopic", Setting::CommandTopic),
    ("CommandResultTopic", Setting::CommandResultTopic),
    ("ReconnectInterval", Setting::ReconnectInterval),
    ("KeepAlive", Setting::KeepAlive),
    ("LogDevice", Setting::LogDevice),
    ("LogLevel", Setting::LogLevel),
    ("LocalMonitorConfigDir", Setting::LocalMonitorConfigDir),
    ("HelperPath", Setting::HelperPath),
    ("StateDir", Setting::StateDir),
    ("MaxAge", Setting::MaxAge),
    ("RequireTimestamp", Setting::RequireTimestamp),
    ("PasswordFile", Setting::PasswordFile),
    ("StatusTopic", Setting::StatusTopic),
    ("TrustFile", Setting::TrustFile),
    ("RequireSignature", Setting::RequireSignature),
    ("HostKey", Setting::HostKey),
    ("Groups", Setting::Groups),
    ("ClockSkew", Setting::ClockSkew),
    ("AuditLog", Setting::AuditLog),
    ("AuditSyslog", Setting::AuditSyslog),
    ("Protocol", Setting::Protocol),
    ("SessionExpiry", Setting::SessionExpiry),
    ("ResponseTopicPrefix", Setting::ResponseTopicPrefix),
    ("Sandbox", Setting::Sandbox),
    ("RuleMemory", Setting::RuleMemory),
    ("RuleInstructions", Setting::RuleInstructions),
    ("RuleQueue", Setting::RuleQueue),
    ("RuleShadow", Setting::RuleShadow),
    ("RuleKey", Setting::RuleKey),
    ("RuleHostKeys", Setting::RuleHostKeys),
    ("PasswordCredential", Setting::PasswordCredential),
    ("PasswordEnvironment", Setting::PasswordEnvironment),
];

impl Setting {
    fn name(self) -> &'static str {
        KEYS.iter()
            .find(|(_, key)| *key == self)
            .map_or("", |(name, _)| name)
    }
}

/// A checked value.
#[derive(Clone, Debug)]
enum Checked {
    Text(String),
    Flag(bool),
    Qos(Qos),
    Protocol(Protocol),
    Address(String, Option<u16>),
    Interval(Duration),
    Count(u64),
    Device(Device),
    Threshold(Threshold),
    Names(Vec<String>),
}

type Given = BTreeMap<Setting, Checked>;

/// A JSON file that holds no mistake.
#[derive(Debug)]
struct JsonFile {
    path: PathBuf,
    text: String,
    given: Given,
    services: Option<Services>,
}

impl JsonFile {
    fn parse(path: &Path, text: &[u8]) -> Result<Self, Problems> {
        let mut problems = Problems {
            list: Vec::new(),
            file: path.to_owned(),
        };
        let text = match std::str::from_utf8(text) {
            Ok(text) => text,
            Err(error) => {
                let before = &text[..error.valid_up_to()];
                let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
                problems.file(format!("{}:{line}", path.display()), "is not UTF-8");
                return Err(problems);
            }
        };
        let root = match json::parse(text) {
            Ok(root) => root,
            Err(error) => {
                problems.file(format!("{}:{}", path.display(), error.at), error.what);
                return Err(problems);
            }
        };
        let mut given = Given::new();
        let mut services = None;
        match root.node {
            Node::Object(entries) => {
                for (name, value) in entries {
                    if name == "Services" {
                        let at = value.at;
                        let read = Services::from_json(value, &mut problems);
                        if services.replace(read).is_some() {
                            problems.json(at, "Services", "is there twice");
                        }
                        continue;
                    }
                    take_json(&name, value, &mut given, &mut problems);
                }
            }
            other => {
                problems.json(
                    root.at,
                    "the file",
                    format!("must be an object, not {}", other.kind()),
                );
            }
        }
        problems.into_result(Self {
            path: path.to_owned(),
            text: text.to_owned(),
            given,
            services,
        })
    }
}

fn take_json(name: &str, value: Located, given: &mut Given, problems: &mut Problems) {
    let Some((_, key)) = KEYS.iter().find(|(known, _)| *known == name) else {
        let hint = KEYS
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        let what = match hint {
            Some((known, _)) => format!("is not a setting (but {known} is)"),
            None if name == "MonitorConfigPath" => {
                "belongs into the block of collectd.conf".to_owned()
            }
            None => "is not a setting".to_owned(),
        };
        problems.json(value.at, name, what);
        return;
    };
    let kind = value.node.kind();
    if *key == Setting::Groups {
        let names = match value.node {
            Node::List(items) => items.into_iter().map(|item| item.node).collect(),
            node => vec![node],
        };
        let names = names.into_iter().map(|node| match node {
            Node::Text(text) => Some(text),
            _ => None,
        });
        match names
            .collect::<Option<Vec<_>>>()
            .map_or(Err(GROUPS.to_owned()), groups)
        {
            Ok(checked) => {
                if given.insert(*key, checked).is_some() {
                    problems.json(value.at, name, "is there twice");
                }
            }
            Err(what) => problems.json(value.at, name, what),
        }
        return;
    }
    let datum = match value.node {
        Node::Text(text) => Value::Text(text),
        Node::Number(number) => Value::Number(number),
        Node::Flag(flag) => Value::Flag(flag),
        Node::Null | Node::List(_) | Node::Object(_) => {
            problems.json(
                value.at,
                name,
                format!("must be {}, not {kind}", expected(*key)),
            );
            return;
        }
    };
    match check(*key, datum) {
        Ok(checked) => {
            if given.insert(*key, checked).is_some() {
                problems.json(value.at, name, "is there twice");
            }
        }
        Err(what) => problems.json(value.at, name, what),
    }
}

const GROUPS: &str = "must be the names of groups, without control characters";

fn groups(names: Vec<String>) -> Result<Checked, String> {
    let good = |name: &String| !name.is_empty() && !name.chars().any(char::is_control);
    match names.iter().all(good) {
        true => Ok(Checked::Names(names)),
        false => Err(GROUPS.to_owned()),
    }
}

/// What a setting takes, for a message.
fn expected(key: Setting) -> &'static str {
    match key {
        Setting::Secure
        | Setting::CleanSession
        | Setting::RequireTimestamp
        | Setting::RequireSignature
        | Setting::AuditSyslog
        | Setting::Sandbox
        | Setting::RuleShadow => "a boolean",
        Setting::ClockSkew => "a number of seconds from 0 to 3600",
        Setting::RuleMemory => "a whole number of MiB from 1 to 4096",
        Setting::RuleInstructions => "a whole number from 10000 to 1000000000",
        Setting::RuleQueue => "a whole number from 1 to 1000000",
        Setting::MaxAge => "a number of seconds from 1 to 604800, or 0 for any age",
        Setting::QoS => "0, 1 or 2",
        Setting::ReconnectInterval => "a number of seconds from 0.1 to 86400",
        Setting::KeepAlive => "a whole number of seconds from 5 to 3600",
        Setting::SessionExpiry => "a whole number of seconds from 1 to 4294967295",
        Setting::Protocol => "3.1.1 or 5",
        _ => "a string",
    }
}

/// Checks the type and the range of a value.
fn check(key: Setting, value: Value) -> Result<Checked, String> {
    let kind = match &value {
        Value::Text(_) => "a string",
        Value::Number(_) => "a number",
        Value::Flag(_) => "a boolean",
    };
    let wrong_type = || Err(format!("must be {}, not {kind}", expected(key)));
    match (key, value) {
        (
            Setting::Secure
            | Setting::CleanSession
            | Setting::RequireTimestamp
            | Setting::RequireSignature
            | Setting::AuditSyslog
            | Setting::Sandbox
            | Setting::RuleShadow,
            Value::Flag(flag),
        ) => Ok(Checked::Flag(flag)),
        (Setting::ClockSkew, Value::Number(seconds)) => {
            if (0.0..=3600.0).contains(&seconds) {
                Ok(Checked::Interval(Duration::from_secs_f64(seconds)))
            } else {
                Err(format!("must be {}, not {seconds}", expected(key)))
            }
        }
        (
            Setting::RuleMemory | Setting::RuleInstructions | Setting::RuleQueue,
            Value::Number(number),
        ) => {
            let range = match key {
                Setting::RuleMemory => 1.0..=4096.0,
                Setting::RuleInstructions => 1e4..=1e9,
                _ => 1.0..=1e6,
            };
            match number.fract() == 0.0 && range.contains(&number) {
                true => Ok(Checked::Count(number as u64)),
                false => Err(format!("must be {}, not {number}", expected(key))),
            }
        }
        (Setting::MaxAge, Value::Number(seconds)) => {
            if seconds == 0.0 || (1.0..=604_800.0).contains(&seconds) {
                Ok(Checked::Interval(Duration::from_secs_f64(seconds)))
            } else {
                Err(format!("must be {}, not {seconds}", expected(key)))
            }
        }
        (Setting::QoS, Value::Number(level)) => {
            [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce]
                .into_iter()
                .zip([0.0, 1.0, 2.0])
                .find(|(_, number)| *number == level)
                .map(|(qos, _)| Checked::Qos(qos))
                .ok_or_else(|| format!("must be 0, 1 or 2, not {level}"))
        }
        (Setting::ReconnectInterval, Value::Number(seconds)) => {
            if (0.1..=86_400.0).contains(&seconds) {
                Ok(Checked::Interval(Duration::from_secs_f64(seconds)))
            } else {
                Err(format!("must be {}, not {seconds}", expected(key)))
            }
        }
        (Setting::KeepAlive, Value::Number(seconds)) => {
            if seconds.fract() == 0.0 && (5.0..=3600.0).contains(&seconds) {
                Ok(Checked::Interval(Duration::from_secs_f64(seconds)))
            } else {
                Err(format!("must be {}, not {seconds}", expected(key)))
            }
        }
        (Setting::SessionExpiry, Value::Number(seconds)) => {
            if seconds.fract() == 0.0 && (1.0..=4_294_967_295.0).contains(&seconds) {
                Ok(Checked::Interval(Duration::from_secs_f64(seconds)))
            } else {
                Err(format!("must be {}, not {seconds}", expected(key)))
            }
        }
        (Setting::Protocol, Value::Number(5.0)) => Ok(Checked::Protocol(Protocol::V5)),
        (Setting::Protocol, Value::Number(_)) => Err("must be 3.1.1 or 5".to_owned()),
        (
            Setting::Secure
            | Setting::CleanSession
            | Setting::QoS
            | Setting::ReconnectInterval
            | Setting::KeepAlive
            | Setting::MaxAge
            | Setting::RequireTimestamp
            | Setting::RequireSignature
            | Setting::AuditSyslog
            | Setting::ClockSkew
            | Setting::SessionExpiry
            | Setting::Sandbox
            | Setting::RuleMemory
            | Setting::RuleInstructions
            | Setting::RuleQueue
            | Setting::RuleShadow,
            _,
        ) => wrong_type(),
        (_, Value::Text(text)) => check_text(key, text),
        _ => wrong_type(),
    }
}

fn check_text(key: Setting, text: String) -> Result<Checked, String> {
    if text.contains('\0') {
        return Err("must not hold a NUL character".to_owned());
    }
    // An empty password is one; an empty path or name is a mistake.
    if text.is_empty() && key != Setting::Password {
        return Err("must not be empty".to_owned());
    }
    match key {
        Setting::Host => {
            let (host, port) = split_address(&text)?;
            Ok(Checked::Address(host, port))
        }
        Setting::LogDevice => match text.to_ascii_lowercase().as_str() {
            "collectd" => Ok(Checked::Device(Device::Collectd)),
            "syslog" => Ok(Checked::Device(Device::Syslog)),
            "stdout" | "console" => Ok(Checked::Device(Device::Stdout)),
            _ => Err("must be collectd, syslog or stdout".to_owned()),
        },
        Setting::LogLevel => match text.to_ascii_lowercase().as_str() {
            "fatal" => Ok(Checked::Threshold(Threshold::Fatal)),
            "error" | "err" => Ok(Checked::Threshold(Threshold::Error)),
            "warn" | "warning" => Ok(Checked::Threshold(Threshold::Warn)),
            "info" => Ok(Checked::Threshold(Threshold::Info)),
            "debug" => Ok(Checked::Threshold(Threshold::Debug)),
            _ => Err("must be fatal, error, warn, info or debug".to_owned()),
        },
        Setting::CommandTopic if !rumqttc::valid_filter(&text) || text.len() > MAX_TOPIC => {
            Err("is not a topic to subscribe to".to_owned())
        }
        Setting::PasswordCredential if text.contains('/') || text.starts_with('.') => {
            Err("is not the name of a credential".to_owned())
        }
        Setting::PasswordEnvironment if crate::runner::ENVIRONMENT.contains(&text.as_str()) => {
            Err("must not be a variable that commands are given".to_owned())
        }
        Setting::Protocol => match text.as_str() {
            "3.1.1" => Ok(Checked::Protocol(Protocol::V3)),
            "5" | "5.0" => Ok(Checked::Protocol(Protocol::V5)),
            _ => Err("must be 3.1.1 or 5".to_owned()),
        },
        Setting::CommandResultTopic | Setting::StatusTopic | Setting::ResponseTopicPrefix
            if !rumqttc::valid_topic(&text) || text.len() > MAX_TOPIC =>
        {
            Err("is not a topic to publish to: it must not hold + or #".to_owned())
        }
        Setting::StateDir
        | Setting::PasswordFile
        | Setting::TrustFile
        | Setting::HostKey
        | Setting::AuditLog
        | Setting::RuleKey
        | Setting::RuleHostKeys
            if !text.starts_with('/') =>
        {
            Err("must be an absolute path".to_owned())
        }
        _ => Ok(Checked::Text(text)),
    }
}

/// MQTT has two bytes for the length of a topic.
const MAX_TOPIC: usize = 65_535;

/// Splits `host`, `host:port`, `[address]` or `[address]:port`. An IPv6 address without brackets is a host.
pub fn split_address(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or("lacks the closing bracket")?;
        match rest.strip_prefix(':') {
            Some(port) => (address, Some(port)),
            None if rest.is_empty() => (address, None),
            None => return Err("has something other than a port behind the bracket".to_owned()),
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (text, None),
        }
    };
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port != 0 => Some(port),
        Some(_) => return Err("has a port that is not a number from 1 to 65535".to_owned()),
    };
    if host.is_empty() {
        return Err("lacks the name of the host".to_owned());
    }
    Ok((host.to_owned(), port))
}

/// Reads a file of settings as the monitor does, for the fuzzer.
pub(crate) fn try_file(data: &[u8]) {
    match JsonFile::parse(Path::new("file"), data) {
        Ok(file) => {
            assert_eq!(file.text.as_bytes(), data);
            let problems = &mut Problems::default();
            assemble(file.given.clone(), Some(&file), None, problems);
        }
        Err(problems) => {
            assert!(!problems.list.is_empty());
            for problem in problems.iter() {
                assert!(problem.place.starts_with("file:"), "{problem}");
            }
        }
    }
}

impl Settings {
    /// Reads a `<Plugin monitor>` block and the JSON file that it names.
    pub fn read(block: &Block) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let mut given = Given::new();
        let mut from_block: Option<Services> = None;
        let mut path: Option<PathBuf> = None;

        for option in &block.children {
            if option.is("Service") {
                from_block
                    .get_or_insert_default()
                    .add_block(option, &mut problems);
            } else if !option.children.is_empty() {
                problems.block(&option.key, "is not a block of this plugin");
            } else if option.is("MonitorConfigPath") {
                match option.values.as_slice() {
                    [Value::Text(text)] if !text.is_empty() => {
                        if path.replace(PathBuf::from(text)).is_some() {
                            problems.block("MonitorConfigPath", "is there twice");
                        }
                    }
                    _ => problems.block("MonitorConfigPath", "must be one string"),
                }
            } else {
                take_option(option, &mut given, &mut problems);
            }
        }

        let file = path.and_then(|path| match services::read_regular_file(&path) {
            Ok(text) => match JsonFile::parse(&path, &text) {
                Ok(file) => Some(file),
                Err(found) => {
                    problems.list.extend(found.list);
                    None
                }
            },
            Err(error) => {
                problems.file(
                    path.display().to_string(),
                    format!("cannot be read: {error}"),
                );
                None
            }
        });
        if let Some(file) = &file {
            let open = files::open_checked(&file.path, Privacy::Secret).err();
            if let (Some(error), true) = (open, file.given.contains_key(&Setting::Password)) {
                warn!("there is a password in it, but {error}");
            }
            given.extend(file.given.iter().map(|(key, value)| (*key, value.clone())));
        }

        // What belongs together is only judged when each part is right, lest one mistake look like two.
        let problems = match problems.into_result(()) {
            Ok(()) => &mut Problems::default(),
            Err(problems) => return Err(problems),
        };
        let settings = assemble(given, file.as_ref(), from_block, problems);
        std::mem::take(problems).into_result(settings)
    }
}

fn take_option(option: &Block, given: &mut Given, problems: &mut Problems) {
    let Some((name, key)) = KEYS.iter().find(|(known, _)| option.is(known)) else {
        problems.block(&option.key, "is not a setting");
        return;
    };
    if *key == Setting::Groups {
        let names = option.values.iter().map(|value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        });
        let names = names.collect::<Option<Vec<_>>>();
        match names.map_or(Err(GROUPS.to_owned()), groups) {
            Ok(checked) => {
                if given.insert(*key, checked).is_some() {
                    problems.block(name, "is there twice");
                }
            }
            Err(what) => problems.block(name, what),
        }
        return;
    }
    let [value] = option.values.as_slice() else {
        problems.block(
            name,
            format!("takes one value, not {}", option.values.len()),
        );
        return;
    };
    match check(*key, value.clone()) {
        Ok(checked) => {
            if given.insert(*key, checked).is_some() {
                problems.block(name, "is there twice");
            }
        }
        Err(what) => problems.block(name, what),
    }
}

fn assemble(
    mut given: Given,
    file: Option<&JsonFile>,
    from_block: Option<Services>,
    problems: &mut Problems,
) -> Settings {
    let remote = remote(&mut given, problems);
    let trust = trust(&mut given, problems);
    let settings = Settings {
        device: match given.remove(&Setting::LogDevice) {
            Some(Checked::Device(device)) => device,
            _ => Device::default(),
        },
        threshold: match given.remove(&Setting::LogLevel) {
            Some(Checked::Threshold(threshold)) => threshold,
            _ => Threshold::default(),
        },
        remote,
        rules: rules(&mut given),
        helper: text(&mut given, Setting::HelperPath).map(PathBuf::from),
        services: ServicesSource::new(file, from_block),
        state_dir: text(&mut given, Setting::StateDir).map(PathBuf::from),
        freshness: Freshness {
            max_age: match interval(&mut given, Setting::MaxAge) {
                None => Freshness::default().max_age,
                Some(Duration::ZERO) => None,
                age => age,
            },
            require_timestamp: flag(&mut given, Setting::RequireTimestamp).unwrap_or(false),
        },
        trust,
    };
    if settings.remote.is_none() && settings.rules.is_none() {
        problems.block(
            "Host",
            "is needed to take commands (or LocalMonitorConfigDir for rules)",
        );
    }
    settings
}

fn text(given: &mut Given, key: Setting) -> Option<String> {
    match given.remove(&key) {
        Some(Checked::Text(text)) => Some(text),
        _ => None,
    }
}

fn flag(given: &mut Given, key: Setting) -> Option<bool> {
    match given.remove(&key) {
        Some(Checked::Flag(flag)) => Some(flag),
        _ => None,
    }
}

fn interval(given: &mut Given, key: Setting) -> Option<Duration> {
    match given.remove(&key) {
        Some(Checked::Interval(interval)) => Some(interval),
        _ => None,
    }
}

fn count(given: &mut Given, key: Setting) -> Option<usize> {
    match given.remove(&key) {
        Some(Checked::Count(count)) => usize::try_from(count).ok(),
        _ => None,
    }
}

fn rules(given: &mut Given) -> Option<rules::Settings> {
    let directory = PathBuf::from(text(given, Setting::LocalMonitorConfigDir)?);
    let defaults = Limits::default();
    let instructions = count(given, Setting::RuleInstructions).map(|count| count as u64);
    Some(rules::Settings {
        directory,
        limits: Limits {
            sandbox: flag(given, Setting::Sandbox).unwrap_or(defaults.sandbox),
            memory: count(given, Setting::RuleMemory).map_or(defaults.memory, |mib| mib << 20),
            instructions: instructions.unwrap_or(defaults.instructions),
        },
        queue: count(given, Setting::RuleQueue).unwrap_or(rules::DEFAULT_QUEUE),
        shadow: flag(given, Setting::RuleShadow).unwrap_or(false),
        key: text(given, Setting::RuleKey).map(PathBuf::from),
        host_keys: text(given, Setting::RuleHostKeys).map(PathBuf::from),
    })
}

fn remote(given: &mut Given, problems: &mut Problems) -> Option<Remote> {
    let address = given.remove(&Setting::Host);
    let command_topic = text(given, Setting::CommandTopic);
    let Some(Checked::Address(host, port)) = address else {
        if command_topic.is_some() {
            problems.block("Host", "is needed, because there is a CommandTopic");
        }
        return None;
    };
    if command_topic.is_none() {
        problems.block("CommandTopic", "is needed, because there is a Host");
    }
    let user = text(given, Setting::User);
    let password = text(given, Setting::Password).map(Secret::new);
    let password_file = text(given, Setting::PasswordFile).map(PathBuf::from);
    let password_credential = text(given, Setting::PasswordCredential);
    let password_environment = text(given, Setting::PasswordEnvironment);
    let mut earlier = None;
    for (key, there) in [
        (Setting::Password, password.is_some()),
        (Setting::PasswordFile, password_file.is_some()),
        (Setting::PasswordCredential, password_credential.is_some()),
        (Setting::PasswordEnvironment, password_environment.is_some()),
    ] {
        if there && user.is_none() {
            problems.block(key.name(), "is of no use without a User");
        }
        if let (true, Some(other)) = (there, earlier) {
            problems.block(key.name(), format!("is of no use beside a {other}"));
        }
        earlier = earlier.or(there.then(|| key.name()));
    }
    let secure = flag(given, Setting::Secure).unwrap_or(false);
    let tls = tls(given, secure, problems);
    let protocol = match given.remove(&Setting::Protocol) {
        Some(Checked::Protocol(protocol)) => protocol,
        _ => Protocol::default(),
    };
    let response_prefix = text(given, Setting::ResponseTopicPrefix);
    let session_expiry = interval(given, Setting::SessionExpiry);
    if protocol == Protocol::V3 {
        for (key, there) in [
            (Setting::ResponseTopicPrefix, response_prefix.is_some()),
            (Setting::SessionExpiry, session_expiry.is_some()),
        ] {
            if there {
                problems.block(key.name(), "is of no use without Protocol 5");
            }
        }
    }
    let defaults = Remote::default();
    Some(Remote {
        protocol,
        host,
        port: port.unwrap_or(if secure { 8883 } else { 1883 }),
        tls,
        user,
        password,
        password_file,
        password_credential,
        password_environment,
        clean_session: flag(given, Setting::CleanSession).unwrap_or(false),
        client_id: text(given, Setting::ClientId),
        qos: match given.remove(&Setting::QoS) {
            Some(Checked::Qos(qos)) => qos,
            _ => Qos::default(),
        },
        command_topic: command_topic.unwrap_or_default(),
        result_topic: text(given, Setting::CommandResultTopic),
        status_topic: text(given, Setting::StatusTopic),
        response_prefix,
        session_expiry: session_expiry.unwrap_or(defaults.session_expiry),
        reconnect: interval(given, Setting::ReconnectInterval),
        keep_alive: interval(given, Setting::KeepAlive).unwrap_or(defaults.keep_alive),
    })
}

/// Without a trust file, messages are those of a site that has no keys yet; the monitor says so at each start.
fn trust(given: &mut Given, problems: &mut Problems) -> Trust {
    let file = text(given, Setting::TrustFile).map(PathBuf::from);
    let require = flag(given, Setting::RequireSignature);
    if file.is_none() && require == Some(true) {
        problems.block(
            "TrustFile",
            "is needed, because there is RequireSignature: it says whose signatures count",
        );
    }
    let audit_log = text(given, Setting::AuditLog).map(PathBuf::from);
    let wants_audit = audit_log.is_some() || file.is_some();
    Trust {
        require_signature: require.unwrap_or(file.is_some()),
        file,
        host_key: text(given, Setting::HostKey).map(PathBuf::from),
        groups: match given.remove(&Setting::Groups) {
            Some(Checked::Names(names)) => names,
            _ => Vec::new(),
        },
        clock_skew: interval(given, Setting::ClockSkew)
            .unwrap_or_else(|| Trust::default().clock_skew),
        audit_log,
        audit_syslog: flag(given, Setting::AuditSyslog).unwrap_or(wants_audit),
    }
}

fn tls(given: &mut Given, secure: bool, problems: &mut Problems) -> Option<Tls> {
    let mut path = |key: Setting| {
        let path = text(given, key).map(PathBuf::from);
        if path.is_some() && !secure {
            problems.block(key.name(), "is of no use without Secure");
        }
        path
    };
    let ca_file = path(Setting::CaFile);
    let identity = match (path(Setting::CertFile), path(Setting::KeyFile)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            problems.block("KeyFile", "is needed, because there is a CertFile");
            None
        }
        (None, Some(_)) => {
            problems.block("CertFile", "is needed, because there is a KeyFile");
            None
        }
    };
    secure.then_some(Tls { ca_file, identity })
}

#[cfg(test)]
mod tests;
