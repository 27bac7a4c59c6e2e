//! The messages: commands and configurations in, results out.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::clock::iso8601;
use crate::json;
use crate::settings::Argument;

/// The longest message that is looked at. A configuration may be long, a command never is.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// The longest task id that is echoed, as it is written. Longer ones are taken for rubbish.
const MAX_TASK_ID: usize = 1024;

/// The service and the command that the monitor answers itself, and does nothing. lua-collectd-monitor looks for
/// the service, finds none of that name, and says so.
pub const PING: (&str, &str) = ("", "ping");

/// The name that a sender gave its task: a number of any size, or a string.
///
/// It is sent back byte for byte as it came. Two ids are equal if they are the same number as written or the
/// same string, however that was escaped.
#[derive(Clone)]
pub struct TaskId {
    raw: Box<RawValue>,
    key: IdKey,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum IdKey {
    Number(String),
    Text(String),
}

impl TaskId {
    /// An id as it is displayed.
    pub fn from_json(text: &str) -> Option<Self> {
        Self::from_raw(serde_json::from_str(text).ok()?)
    }

    /// As it was written.
    pub(crate) fn raw(&self) -> &RawValue {
        &self.raw
    }

    fn from_raw(raw: &RawValue) -> Option<Self> {
        let text = raw.get();
        let key = match text.as_bytes().first()? {
            _ if text.len() > MAX_TASK_ID => return None,
            b'"' => IdKey::Text(serde_json::from_str(text).ok()?),
            b'-' | b'0'..=b'9' => IdKey::Number(text.to_owned()),
            _ => return None,
        };
        Some(Self {
            raw: raw.to_owned(),
            key,
        })
    }
}

impl From<u64> for TaskId {
    fn from(number: u64) -> Self {
        let text = number.to_string();
        let key = IdKey::Number(text.clone());
        // Digits are JSON, so the fallback is never taken.
        let raw = RawValue::from_string(text).unwrap_or_else(|_| RawValue::NULL.to_owned());
        Self { raw, key }
    }
}

impl PartialEq for TaskId {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for TaskId {}

impl std::hash::Hash for TaskId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.raw.get())
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

/// A digest of what makes a message a task of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 16]);

/// A digest of other things, of the same length.
pub type Digest = Key;

impl Key {
    /// The digest of some parts, and of where one ends and the next begins.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = openssl::sha::Sha256::new();
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let [half, _] = halves(hash.finish());
        Self(half)
    }
}

fn halves(digest: [u8; 32]) -> [[u8; 16]; 2] {
    let mut halves = [[0; 16]; 2];
    for (at, byte) in digest.into_iter().enumerate() {
        halves[at / 16][at % 16] = byte;
    }
    halves
}

impl Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", u128::from_be_bytes(self.0)))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match u128::from_str_radix(&text, 16) {
            Ok(number) if text.len() == 32 => Ok(Self(number.to_be_bytes())),
            _ => Err(serde::de::Error::custom("not a key")),
        }
    }
}

/// What a message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// To run a command of a service.
    Command {
        /// The service's name.
        service: String,
        /// The command's name.
        command: String,
        /// What the sender chose of it.
        arguments: BTreeMap<String, Argument>,
    },
    /// To take a new collectd.conf. Its text may hold secrets and is not kept.
    Configuration,
    /// To hold recovery actions.
    Hold {
        /// For how many seconds.
        seconds: u64,
        /// Why, for whoever asks.
        reason: String,
    },
    /// To end the hold.
    Release,
}

/// A message that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What the sender calls it.
    pub task: TaskId,
    /// When the sender sent it, as it was written.
    pub timestamp: Option<String>,
    /// What it asks for.
    pub content: Content,
}

/// A message that was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its task id, if that much could be read: then the sender is told.
    pub task: Option<TaskId>,
    /// What is wrong with it. Holds nothing of the message.
    pub reason: &'static str,
    /// The same as a number.
    pub code: Code,
}

impl Message {
    /// What tells it from other messages: two with the same are the same task.
    pub fn key(&self) -> Key {
        let mut hash = openssl::sha::Sha256::new();
        let mut part = |text: Option<&str>| {
            // The lengths keep the parts apart.
            let length = text.map_or(u64::MAX, |text| text.len() as u64);
            hash.update(&length.to_le_bytes());
            hash.update(text.unwrap_or_default().as_bytes());
        };
        match &self.task.key {
            IdKey::Number(text) => {
                part(Some("number"));
                part(Some(text));
            }
            IdKey::Text(text) => {
                part(Some("text"));
                part(Some(text));
            }
        }
        part(self.timestamp.as_deref());
        if let Content::Command {
            service,
            command,
            arguments,
        } = &self.content
        {
            part(Some(service));
            part(Some(command));
            // Text, numbers and booleans can always be written, and are in the order of their names.
            part(serde_json::to_string(arguments).ok().as_deref());
        }
        match &self.content {
            Content::Command { .. } | Content::Configuration => {}
            Content::Hold { seconds, reason } => {
                part(Some("hold"));
                part(Some(&seconds.to_string()));
                part(Some(reason));
            }
            Content::Release => part(Some("release")),
        }
        let [half, _] = halves(hash.finish());
        Key(half)
    }

    /// Reads a message.
    pub fn parse(payload: &[u8]) -> Result<Self, Unreadable> {
        let fail = |reason| Unreadable {
            task: None,
            reason,
            code: Code::Unreadable,
        };
        let text = std::str::from_utf8(payload).map_err(|_| fail("it is not UTF-8"))?;
        let entries = json::entries(text).map_err(|_| fail("it is not a JSON object"))?;
        if payload.len() > MAX_MESSAGE {
            let mut ids = entries.iter().filter(|(key, _)| key == "task_id");
            let id = ids.next().and_then(|(_, raw)| TaskId::from_raw(raw));
            return Err(Unreadable {
                task: id.filter(|_| ids.next().is_none()),
                reason: "it is too long",
                code: Code::TooLong,
            });
        }

        let mut fields = Fields::default();
        for (key, value) in entries {
            fields.take(&key, value);
        }
        let Some(task) = fields.task.as_ref().and_then(|raw| TaskId::from_raw(raw)) else {
            return Err(fail("it has no task_id that is a number or a string"));
        };
        let fail = |reason| Unreadable {
            task: Some(task.clone()),
            reason,
            code: Code::Unreadable,
        };
        if let Some(reason) = fields.problem {
            // Two different ids leave open which one to answer.
            let task = (!fields.two_tasks).then_some(task);
            return Err(Unreadable {
                task,
                reason,
                code: Code::Unreadable,
            });
        }
        let content = match (fields.service, fields.command, fields.has_config) {
            (Some(service), Some(command), _) => Content::Command {
                service,
                command,
                arguments: fields.arguments.unwrap_or_default(),
            },
            (None, None, true) => Content::Configuration,
            (None, None, false) if fields.hold.is_some() => fields.hold.unwrap_or(Content::Release),
            (Some(_), None, _) => return Err(fail("it has a service, but no command")),
            (None, Some(_), _) => return Err(fail("it has a command, but no service")),
            (None, None, false) => {
                return Err(fail("it has neither a command nor a config"));
            }
        };
        Ok(Self {
            task,
            timestamp: fields.timestamp,
            content,
        })
    }
}

#[derive(Default)]
struct Fields<'a> {
    task: Option<&'a RawValue>,
    two_tasks: bool,
    timestamp: Option<String>,
    service: Option<String>,
    command: Option<String>,
    arguments: Option<BTreeMap<String, Argument>>,
    has_config: bool,
    hold: Option<Content>,
    problem: Option<&'static str>,
}

impl<'a> Fields<'a> {
    /// Takes what is known. Other keys are left to versions to come.
    fn take(&mut self, key: &str, value: &'a RawValue) {
        let twice = match key {
            "task_id" => {
                self.two_tasks = self.task.replace(value).is_some();
                self.two_tasks
            }
            "timestamp" => self.text(value, "its timestamp is not a string", |f| &mut f.timestamp),
            "service" => self.text(value, "its service is not a string", |f| &mut f.service),
            "command" => self.text(value, "its command is not a string", |f| &mut f.command),
            "parameters" => match arguments(value) {
                Some(arguments) => self.arguments.replace(arguments).is_some(),
                None => {
                    self.problem =
                        Some("its parameters are not strings, whole numbers and booleans by name");
                    false
                }
            },
            "config" => {
                let twice = self.has_config;
                self.has_config = true;
                if serde_json::from_str::<String>(value.get()).is_err() {
                    self.problem = Some("its config is not a string");
                }
                twice
            }
            "hold" => match hold(value) {
                Some(hold) => self.hold.replace(hold).is_some(),
                None => {
                    self.problem = Some("its hold has not seconds from 1 to 2592000, and a reason");
                    false
                }
            },
            "release" => {
                if value.get() != "true" {
                    self.problem = Some("its release is not true");
                }
                self.hold.replace(Content::Release).is_some()
            }
            _ => false,
        };
        if twice {
            // Readers disagree on which of two values counts, so neither does.
            self.problem = Some("it has a key twice");
        }
    }

    fn text(
        &mut self,
        value: &RawValue,
        wrong: &'static str,
        field: impl Fn(&mut Self) -> &mut Option<String>,
    ) -> bool {
        match serde_json::from_str(value.get()) {
            Ok(text) => field(self).replace(text).is_some(),
            Err(_) => {
                self.problem = Some(wrong);
                false
            }
        }
    }
}

/// The longest hold: thirty days.
pub const MAX_HOLD: u64 = 30 * 86_400;
/// The longest reason of a hold, in bytes.
const MAX_HOLD_REASON: usize = 256;

fn hold(value: &RawValue) -> Option<Content> {
    let (mut seconds, mut reason) = (None, None);
    for (name, value) in json::entries(value.get()).ok()? {
        let twice = match name.as_str() {
            "seconds" => seconds
                .replace(serde_json::from_str::<u64>(value.get()).ok()?)
                .is_some(),
            "reason" => reason
                .replace(serde_json::from_str::<String>(value.get()).ok()?)
                .is_some(),
            _ => true,
        };
        if twice {
            return None;
        }
    }
    let (seconds, reason) = (seconds?, reason?);
    let good = (1..=MAX_HOLD).contains(&seconds) && reason.len() <= MAX_HOLD_REASON;
    good.then_some(Content::Hold { seconds, reason })
}

#[derive(Serialize)]
struct HoldWire<'a> {
    task_id: &'a RawValue,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<HoldOf<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<bool>,
}

#[derive(Serialize)]
struct HoldOf<'a> {
    seconds: u64,
    reason: &'a str,
}

/// A hold for so many seconds and with a reason, or the end of one, as a sender writes it.
pub fn hold_to_json(task: &TaskId, hold: Option<(u64, &str)>, now: SystemTime) -> String {
    let wire = HoldWire {
        task_id: &task.raw,
        timestamp: iso8601(now),
        hold: hold.map(|(seconds, reason)| HoldOf { seconds, reason }),
        release: hold.is_none().then_some(true),
    };
    // Strings and numbers can always be written.
    serde_json::to_string(&wire).unwrap_or_default()
}

/// Reads the parameters of a message; none if there is anything else among them.
fn arguments(value: &RawValue) -> Option<BTreeMap<String, Argument>> {
    let mut arguments = BTreeMap::new();
    for (name, value) in json::entries(value.get()).ok()? {
        let text = value.get();
        let argument = match text.as_bytes().first()? {
            b'"' => Argument::Text(serde_json::from_str(text).ok()?),
            b't' | b'f' => Argument::Flag(serde_json::from_str(text).ok()?),
            _ => Argument::Integer(serde_json::from_str(text).ok()?),
        };
        if arguments.insert(name, argument).is_some() {
            return None;
        }
    }
    Some(arguments)
}

/// How a task ended, as the number in a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The exit status of the command, as a shell gives it.
    Exit(u8),
    /// What was asked for cannot be done by this version.
    NotImplemented,
    /// There is no usable configuration of services.
    NoServices,
    /// There is no such service.
    NoSuchService,
    /// The service has no such command.
    NoSuchCommand,
    /// A task with this id is running, or was already run and its result is not kept.
    TaskRunning,
    /// The message was not understood.
    Unreadable,
    /// The command was ended, because it took too long.
    TimedOut,
    /// Nobody knows how the command ended: its supervisor died, or the monitor was stopped.
    Interrupted,
    /// The command could not be started.
    NotStarted,
    /// Too many tasks are waiting.
    Busy,
    /// The broker had kept the message, and it may be of any age.
    Retained,
    /// A parameter of the command is missing, wrong, or not one.
    WrongParameters,
    /// The command ran a short while ago, and may not yet run again.
    Cooldown,
    /// The message is too old.
    Stale,
    /// The message is from the future: clocks differ.
    ClockSkew,
    /// It cannot be told how old the message is.
    NoTimestamp,
    /// The message is longer than any is allowed to be.
    TooLong,
    /// The message is not signed, and has to be.
    Unsigned,
    /// The envelope of the message was not understood.
    BadEnvelope,
    /// The key is not one that is trusted, or its time is over.
    UnknownKey,
    /// The signature is wrong.
    BadSignature,
    /// The message is not for this host. Nobody is told so.
    WrongTarget,
    /// The time of the message is over.
    Expired,
    /// The message was signed in the future: clocks differ.
    NotYetValid,
    /// The message, or another one with the same nonce, came before.
    Replayed,
    /// The key may not do this.
    NotPermitted,
    /// It cannot be told whom to trust.
    NoTrust,
    /// It could not be told whether the message comes again.
    NoReplayProtection,
    /// Recovery is on hold.
    Held,
}

/// Those that are not an exit status.
pub(crate) const CODES: [(Code, u32); 29] = [
    (Code::NotImplemented, 0x1000),
    (Code::NoServices, 0x1001),
    (Code::NoSuchService, 0x1002),
    (Code::NoSuchCommand, 0x1003),
    (Code::TaskRunning, 0x1100),
    (Code::Unreadable, 0x3000),
    (Code::TimedOut, 0x3001),
    (Code::Interrupted, 0x3002),
    (Code::NotStarted, 0x3003),
    (Code::Busy, 0x3004),
    (Code::Retained, 0x3005),
    (Code::WrongParameters, 0x3006),
    (Code::Cooldown, 0x3007),
    (Code::Stale, 0x3008),
    (Code::ClockSkew, 0x3009),
    (Code::NoTimestamp, 0x300a),
    (Code::TooLong, 0x300b),
    (Code::Unsigned, 0x3100),
    (Code::BadEnvelope, 0x3101),
    (Code::UnknownKey, 0x3102),
    (Code::BadSignature, 0x3103),
    (Code::WrongTarget, 0x3104),
    (Code::Expired, 0x3105),
    (Code::NotYetValid, 0x3106),
    (Code::Replayed, 0x3107),
    (Code::NotPermitted, 0x3108),
    (Code::NoTrust, 0x3109),
    (Code::NoReplayProtection, 0x310a),
    (Code::Held, 0x310b),
];

impl Code {
    /// The number.
    pub fn number(self) -> u32 {
        match self {
            Code::Exit(status) => u32::from(status),
            other => CODES
                .iter()
                .find(|(code, _)| *code == other)
                .map_or(0x3000, |(_, number)| *number),
        }
    }

    /// The code with this number, if there is one.
    pub fn from_number(number: u32) -> Option<Self> {
        if let Ok(status) = u8::try_from(number) {
            return Some(Code::Exit(status));
        }
        let mut codes = CODES.iter();
        codes
            .find(|(_, other)| *other == number)
            .map(|(code, _)| *code)
    }

    /// What became of the task, in a word.
    pub fn state(self) -> &'static str {
        match self {
            Code::Exit(_) => "finished",
            Code::TimedOut => "timed-out",
            Code::Interrupted => "interrupted",
            Code::NotStarted => "not-started",
            // The task itself goes on; only this message is not acted upon.
            Code::TaskRunning => "running",
            _ => "refused",
        }
    }
}

/// What the sender of a message has asked for, as MQTT 5 lets it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Where it wants the result, if not where all others go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// What it is to be told with it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex")]
    pub correlation: Option<Vec<u8>>,
}

/// Bytes as text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::fmt::Write;

    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        for byte in bytes.iter().flatten() {
            // A string takes everything.
            write!(text, "{byte:02x}").ok();
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok().filter(|p| p.len() == 2);
            pair.and_then(|pair| u8::from_str_radix(pair, 16).ok())
        });
        let bytes: Option<Vec<u8>> = digits.collect();
        bytes
            .map(Some)
            .ok_or_else(|| serde::de::Error::custom("not bytes"))
    }
}

/// What is sent back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the sender calls the task.
    pub task: TaskId,
    /// What the command printed, or why there was none.
    pub message: String,
    /// What the command wrote to its standard error.
    pub errors: String,
    /// How it ended.
    pub code: Code,
    /// When.
    pub at: SystemTime,
    /// The envelope that it answers, if there was one.
    pub request: Option<Digest>,
    /// What the sender has asked for.
    pub reply: Option<Reply>,
}

#[derive(Serialize)]
struct Wire<'a> {
    task_id: &'a RawValue,
    timestamp: String,
    message: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    stderr: &'a str,
    code: u32,
    state: &'a str,
    host: &'a str,
}

impl Outcome {
    /// The result as it is published.
    pub fn to_json(&self, host: &str) -> String {
        let wire = Wire {
            task_id: &self.task.raw,
            timestamp: iso8601(self.at),
            message: &self.message,
            stderr: &self.errors,
            code: self.code.number(),
            state: self.code.state(),
            host,
        };
        // Strings and numbers can always be written.
        serde_json::to_string(&wire).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct CommandWire<'a> {
    task_id: &'a RawValue,
    timestamp: String,
    service: &'a str,
    command: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: &'a BTreeMap<String, Argument>,
}

impl Serialize for Argument {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Argument::Text(text) => serializer.serialize_str(text),
            Argument::Integer(number) => serializer.serialize_i64(*number),
            Argument::Flag(flag) => serializer.serialize_bool(*flag),
        }
    }
}

/// A command as a sender writes it.
pub fn command_to_json(
    task: &TaskId,
    service: &str,
    command: &str,
    parameters: &BTreeMap<String, Argument>,
    now: SystemTime,
) -> String {
    let wire = CommandWire {
        task_id: &task.raw,
        timestamp: iso8601(now),
        service,
        command,
        parameters,
    };
    // Strings and numbers can always be written.
    serde_json::to_string(&wire).unwrap_or_default()
}

/// A result as a sender reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which task it answers.
    pub task: TaskId,
    /// How that ended.
    pub code: u32,
    /// What the command printed.
    pub message: String,
}

impl Answer {
    /// Reads a result. Other messages on the topic are none.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (mut task, mut code, mut message) = (None, None, None);
        for (key, value) in json::entries(std::str::from_utf8(payload).ok()?).ok()? {
            match key.as_str() {
                "task_id" => task = TaskId::from_raw(value),
                "code" => code = serde_json::from_str(value.get()).ok(),
                "message" => message = serde_json::from_str(value.get()).ok(),
                _ => {}
            }
        }
        Some(Self {
            task: task?,
            code: code?,
            message: message.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn parse(text: &str) -> Result<Message, Unreadable> {
        Message::parse(text.as_bytes())
    }

    #[test]
    fn a_hold_is_read_as_it_is_written() {
        let now = UNIX_EPOCH;
        let text = hold_to_json(&7.into(), Some((60, "we \"move\"")), now);
        let Content::Hold { seconds, reason } = parse(&text).unwrap().content else {
            panic!("{text}")
        };
        assert_eq!((seconds, reason.as_str()), (60, "we \"move\""));
        let release = parse(&hold_to_json(&7.into(), None, now)).unwrap();
        assert_eq!(release.content, Content::Release);
        assert_ne!(release.key(), parse(&text).unwrap().key());
        for wrong in [
            r#""hold":{}"#,
            r#""hold":{"seconds":0,"reason":""}"#,
            r#""hold":{"seconds":2592001,"reason":""}"#,
            r#""hold":{"seconds":1.5,"reason":""}"#,
            r#""hold":{"seconds":1,"seconds":2,"reason":""}"#,
            r#""hold":{"seconds":1,"reason":"","for":"x"}"#,
            r#""release":false"#,
            r#""release":true,"release":true"#,
            r#""release":true,"hold":{"seconds":1,"reason":""}"#,
        ] {
            assert!(
                parse(&format!("{{\"task_id\":1,{wrong}}}")).is_err(),
                "{wrong}"
            );
        }
    }

    fn reason(text: &str) -> (Option<String>, &'static str) {
        let unreadable = parse(text).expect_err(text);
        (
            unreadable.task.map(|task| task.to_string()),
            unreadable.reason,
        )
    }

    #[test]
    fn the_example_of_the_original_is_understood() {
        let message = parse(
            r#"{ "task_id": 3126260400, "timestamp": "2020-11-26T00:41:19Z",
                 "service": "hello", "command": "exec" }"#,
        )
        .unwrap();
        assert_eq!(message.task, TaskId::from(3_126_260_400));
        assert_eq!(message.timestamp.as_deref(), Some("2020-11-26T00:41:19Z"));
        let expected = Content::Command {
            service: "hello".into(),
            command: "exec".into(),
            arguments: BTreeMap::new(),
        };
        assert_eq!(message.content, expected);
    }

    #[test]
    fn a_configuration_is_told_from_a_command() {
        let message = parse(r#"{"task_id":1,"config":"LoadPlugin cpu\n"}"#).unwrap();
        assert_eq!(message.content, Content::Configuration);
        let both = parse(r#"{"task_id":1,"config":"","service":"s","command":"c"}"#).unwrap();
        assert!(matches!(both.content, Content::Command { .. }));
    }

    #[test]
    fn a_task_id_is_echoed_as_it_came() {
        for id in [
            "0",
            "-1",
            "1.50",
            "1E400",
            "4294967296",
            "18446744073709551616",
            "123456789012345678901234567890123456789012345678901234567890",
            "\"a\"",
            "\"\"",
            r#""\u00e9\n""#,
            "\"é\"",
        ] {
            let text = format!(r#"{{"task_id" : {id} ,"service":"s","command":"c"}}"#);
            let message = parse(&text).unwrap();
            let outcome = Outcome {
                task: message.task,
                message: String::new(),
                errors: String::new(),
                code: Code::Exit(0),
                at: UNIX_EPOCH,
                request: None,
                reply: None,
            };
            let json = outcome.to_json("h");
            assert!(json.starts_with(&format!("{{\"task_id\":{id},")), "{json}");
        }
    }

    #[test]
    fn ids_are_equal_by_what_they_say() {
        let id = |text: &str| {
            parse(&format!(r#"{{"task_id":{text},"config":""}}"#))
                .unwrap()
                .task
        };
        assert_eq!(id(r#""\u0041""#), id("\"A\""));
        assert_ne!(id("\"1\""), id("1"));
        assert_ne!(id("9007199254740993"), id("9007199254740992"));
    }

    #[test]
    fn a_task_is_its_id_time_service_command_and_parameters() {
        let key = |text: &str| parse(text).unwrap().key();
        let task = r#"{"task_id":1,"timestamp":"t","service":"s","command":"c","parameters":{"a":1,"b":"x"}}"#;
        let same = [
            r#"{"service":"s","parameters":{"b":"x","a":1},"command":"c","timestamp":"t","task_id":1}"#,
            r#"{"task_id":1,"timestamp":"\u0074","service":"s","command":"c","parameters":{"a":1,"b":"x"},"x":1}"#,
        ];
        for text in same {
            assert_eq!(key(text), key(task), "{text}");
        }
        let others = [
            task.replace("\"task_id\":1", "\"task_id\":\"1\""),
            task.replace("\"task_id\":1", "\"task_id\":2"),
            task.replace("\"t\"", "\"u\""),
            task.replace("\"timestamp\":\"t\",", ""),
            task.replace("\"s\"", "\"sc\""),
            task.replace("\"c\"", "\"d\""),
            task.replace("\"a\":1", "\"a\":2"),
            task.replace("\"a\":1", "\"a\":\"1\""),
            task.replace(r#","parameters":{"a":1,"b":"x"}"#, ""),
        ];
        for text in others {
            assert_ne!(key(&text), key(task), "{text}");
        }
        let written = serde_json::to_string(&key(task)).unwrap();
        assert_eq!(serde_json::from_str::<Key>(&written).unwrap(), key(task));
        for wrong in ["\"\"", "\"x\"", "1", &format!("\"+{}\"", "0".repeat(32))] {
            assert!(serde_json::from_str::<Key>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rubbish_is_not_answered() {
        for text in [
            "",
            "42",
            "null",
            "[]",
            "\"x\"",
            "{",
            "{}",
            "{\"task_id\":1}x",
            "not JSON",
        ] {
            assert_eq!(reason(text).0, None, "{text}");
        }
        for id in ["null", "true", "[]", "{}", "[1]"] {
            let text = format!(r#"{{"task_id":{id},"service":"s","command":"c"}}"#);
            assert_eq!(
                reason(&text),
                (None, "it has no task_id that is a number or a string")
            );
        }
        assert_eq!(reason(r#"{"service":"s","command":"c"}"#).0, None);
        assert_eq!(
            Message::parse(b"{\"task_id\":1,\"a\":\"\xff\"}")
                .unwrap_err()
                .reason,
            "it is not UTF-8"
        );
        let long = format!(r#"{{"task_id":1,"config":"{}"}}"#, "x".repeat(MAX_MESSAGE));
        let rubbish = format!("{long}x");
        assert_eq!(reason(&rubbish), (None, "it is not a JSON object"));
        let unreadable = parse(&long).unwrap_err();
        assert_eq!(unreadable.code, Code::TooLong);
        assert_eq!(unreadable.task, Some(TaskId::from(1)));
        let two = long.replace("{\"task_id\":1", "{\"task_id\":1,\"task_id\":2");
        assert_eq!(reason(&two), (None, "it is too long"));
        let deep = format!(r#"{{"task_id":{}}}"#, "[".repeat(500_000));
        assert_eq!(reason(&deep).0, None);
    }

    #[test]
    fn what_is_wrong_is_told_where_the_task_id_can_be_read() {
        let told = |rest: &str| {
            let (task, reason) = reason(&format!(r#"{{"task_id":7{rest}}}"#));
            assert_eq!(task.as_deref(), Some("7"));
            reason
        };
        assert_eq!(told(""), "it has neither a command nor a config");
        assert_eq!(
            told(r#","service":"s""#),
            "it has a service, but no command"
        );
        assert_eq!(
            told(r#","command":"c""#),
            "it has a command, but no service"
        );
        assert_eq!(
            told(r#","service":1,"command":"c""#),
            "its service is not a string"
        );
        assert_eq!(
            told(r#","service":"s","command":null"#),
            "its command is not a string"
        );
        assert_eq!(told(r#","config":{}"#), "its config is not a string");
        assert_eq!(
            told(r#","timestamp":5,"service":"s","command":"c""#),
            "its timestamp is not a string"
        );
        for parameters in [
            "1",
            "[]",
            r#"{"a":1.5}"#,
            r#"{"a":null}"#,
            r#"{"a":[]}"#,
            r#"{"a":1,"a":1}"#,
        ] {
            assert_eq!(
                told(&format!(
                    r#","service":"s","command":"c","parameters":{parameters}"#
                )),
                "its parameters are not strings, whole numbers and booleans by name",
                "{parameters}"
            );
        }
        assert_eq!(
            told(r#","service":"s","command":"a","command":"b""#),
            "it has a key twice"
        );
    }

    #[test]
    fn two_task_ids_leave_nobody_to_answer() {
        let (task, why) = reason(r#"{"task_id":1,"task_id":2,"service":"s","command":"c"}"#);
        assert_eq!((task, why), (None, "it has a key twice"));
    }

    #[test]
    fn keys_of_other_versions_are_no_mistake() {
        assert!(parse(r#"{"task_id":1,"service":"s","command":"c","later":{"x":[1]}}"#).is_ok());
    }

    #[test]
    fn the_codes_are_those_of_the_original_and_then_ours() {
        for (code, number, state) in [
            (Code::Exit(0), 0, "finished"),
            (Code::Exit(255), 255, "finished"),
            (Code::NotImplemented, 0x1000, "refused"),
            (Code::NoServices, 0x1001, "refused"),
            (Code::NoSuchService, 0x1002, "refused"),
            (Code::NoSuchCommand, 0x1003, "refused"),
            (Code::TaskRunning, 0x1100, "running"),
            (Code::Unreadable, 0x3000, "refused"),
            (Code::TimedOut, 0x3001, "timed-out"),
            (Code::Interrupted, 0x3002, "interrupted"),
            (Code::NotStarted, 0x3003, "not-started"),
            (Code::Busy, 0x3004, "refused"),
            (Code::Retained, 0x3005, "refused"),
            (Code::WrongParameters, 0x3006, "refused"),
            (Code::Cooldown, 0x3007, "refused"),
            (Code::Stale, 0x3008, "refused"),
            (Code::ClockSkew, 0x3009, "refused"),
            (Code::NoTimestamp, 0x300a, "refused"),
            (Code::TooLong, 0x300b, "refused"),
        ] {
            assert_eq!((code.number(), code.state()), (number, state), "{code:?}");
            assert_eq!(Code::from_number(number), Some(code));
        }
    }

    #[test]
    fn a_result_has_the_fields_of_the_original() {
        let outcome = Outcome {
            task: TaskId::from(3_126_260_400),
            message: "Hello \"World\"!\n\0".into(),
            errors: String::new(),
            code: Code::Exit(3),
            at: UNIX_EPOCH + Duration::from_secs(1_606_351_279),
            request: None,
            reply: None,
        };
        let json = outcome.to_json("node1");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "task_id": 3_126_260_400_u64, "timestamp": "2020-11-26T00:41:19Z",
                "message": "Hello \"World\"!\n\0", "code": 3, "state": "finished", "host": "node1",
            })
        );
        let answer = Answer::parse(json.as_bytes()).unwrap();
        assert_eq!((&answer.task, answer.code), (&outcome.task, 3));

        let outcome = Outcome {
            errors: "oh\n".into(),
            ..outcome
        };
        let value: serde_json::Value = serde_json::from_str(&outcome.to_json("h")).unwrap();
        assert_eq!(value["stderr"], "oh\n");
    }

    #[test]
    fn what_is_no_result_is_no_answer() {
        for text in [
            "",
            "42",
            "{}",
            r#"{"task_id":1}"#,
            r#"{"task_id":1,"code":-1}"#,
            r#"{"code":1}"#,
        ] {
            assert_eq!(Answer::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_command_that_is_written_can_be_read() {
        let arguments = BTreeMap::from([
            ("text".to_owned(), Argument::Text("x\"y".into())),
            ("number".to_owned(), Argument::Integer(-3)),
            ("flag".to_owned(), Argument::Flag(true)),
        ]);
        let json = command_to_json(&TaskId::from(5), "a\"b", "c", &arguments, UNIX_EPOCH);
        let message = parse(&json).unwrap();
        assert_eq!(
            message.content,
            Content::Command {
                service: "a\"b".into(),
                command: "c".into(),
                arguments,
            }
        );
        assert_eq!(message.timestamp.as_deref(), Some("1970-01-01T00:00:00Z"));
    }
}
