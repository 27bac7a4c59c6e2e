//! What a rule returns, read as a task.
//!
//! A rule's table is first taken over as [`Raw`], which has a bounded size whatever the rule has made. Then
//! every field is read, and everything that is wrong is said at once, with the field's name.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::task::{Action, Task, Times, Verb, Verify};
use crate::settings::Argument;

/// How deep tables within tables are looked at. A task needs four.
pub const MAX_DEPTH: usize = 6;
/// How many values a task may consist of.
pub const MAX_VALUES: usize = 1000;
/// The longest string of a task, in bytes.
pub const MAX_TEXT: usize = 4096;
/// The longest name of a service, a command, a host or a plugin.
const MAX_NAME: usize = 256;
/// The longest time that may be asked for: thirty days.
const MAX_SECONDS: f64 = 2_592_000.0;
/// The most steps that a task may have.
const MAX_STEPS: usize = 16;
/// More than one a second.
const MAX_PER_HOUR: i64 = 3600;
/// The most values that `times` may look back at.
const MAX_TIMES: u32 = 64;

/// What a rule may have done with a plugin, by the keys that name the plugin.
const VERBS: [(&str, Verb); 3] = [
    ("load_plugin", Verb::Load),
    ("reload_plugin", Verb::Reload),
    ("unload_plugin", Verb::Unload),
];

/// A value of a rule, as far as it may be part of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw<F> {
    /// `nil`
    Nil,
    /// A boolean.
    Flag(bool),
    /// An integer.
    Integer(i64),
    /// A float.
    Float(f64),
    /// A string of at most [`MAX_TEXT`] bytes.
    Text(String),
    /// A function.
    Function(F),
    /// A table's pairs, in any order.
    Table(Vec<(Raw<F>, Raw<F>)>),
    /// Something that cannot be part of a task, in words: `a thread`, `a string of 5000000 bytes`.
    Other(String),
}

impl<F> Raw<F> {
    /// What it is, in words.
    fn kind(&self) -> String {
        match self {
            Raw::Nil => "nil".to_owned(),
            Raw::Flag(flag) => flag.to_string(),
            Raw::Integer(number) => number.to_string(),
            Raw::Float(number) => number.to_string(),
            Raw::Text(text) => format!("{:?}", shortened(text)),
            Raw::Function(_) => "a function".to_owned(),
            Raw::Table(_) => "a table".to_owned(),
            Raw::Other(what) => what.clone(),
        }
    }
}

/// Keeps messages short.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Everything that is wrong with a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<String>);

impl Mistakes {
    fn add(&mut self, field: &str, what: impl fmt::Display) {
        // Thousands of mistakes are no better than some.
        if self.0.len() < 8 {
            self.0.push(format!("{field}: {what}"));
        }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Mistakes {}

/// A task, and the fields that it has and nobody knows. Rules from elsewhere may have such, so they are no mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed<F> {
    /// The task.
    pub task: Task<F>,
    /// The fields.
    pub unknown: Vec<String>,
}

/// The fields of a table by name.
struct Fields<F> {
    /// What stands before their names: `escalate[1].` or nothing.
    path: String,
    named: BTreeMap<String, Raw<F>>,
}

impl<F> Fields<F> {
    fn new(path: &str, pairs: Vec<(Raw<F>, Raw<F>)>, mistakes: &mut Mistakes) -> Self {
        let mut named = BTreeMap::new();
        for (key, value) in pairs {
            match key {
                Raw::Text(name) => {
                    named.insert(name, value);
                }
                key => mistakes.add(
                    path.strip_suffix('.').unwrap_or("the task"),
                    format_args!("has the key {}, but keys must be names", key.kind()),
                ),
            }
        }
        Self {
            path: path.to_owned(),
            named,
        }
    }

    fn place(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// Takes a field out. One that is nil is not there.
    fn take(&mut self, name: &str) -> Option<Raw<F>> {
        self.named
            .remove(name)
            .filter(|value| !matches!(value, Raw::Nil))
    }

    /// Takes a field out and reads it. Without it, or where it is wrong, there is none.
    fn read<T>(
        &mut self,
        name: &str,
        mistakes: &mut Mistakes,
        read: impl FnOnce(Raw<F>) -> Result<T, String>,
    ) -> Option<T> {
        match read(self.take(name)?) {
            Ok(value) => Some(value),
            Err(what) => {
                mistakes.add(&self.place(name), what);
                None
            }
        }
    }

    /// What is left means nothing.
    fn unknown(self) -> impl Iterator<Item = String> {
        self.named.into_keys().map(|name| shortened(&name))
    }

    /// What is left is a mistake: only the task itself may be from elsewhere.
    fn refuse_unknown(self, mistakes: &mut Mistakes) {
        for name in self.named.keys() {
            mistakes.add(&self.place(&shortened(name)), "means nothing here");
        }
    }
}

/// Reads what a handler has returned. Nothing is read as nothing.
pub fn read_task<F>(raw: Raw<F>) -> Result<Option<Parsed<F>>, Mistakes> {
    let mut mistakes = Mistakes::default();
    let pairs = match raw {
        Raw::Nil => return Ok(None),
        Raw::Table(pairs) => pairs,
        other => {
            mistakes.add(
                "the task",
                format_args!("must be a table or nil, not {}", other.kind()),
            );
            return Err(mistakes);
        }
    };
    let mut fields = Fields::new("", pairs, &mut mistakes);
    let action = read_action(&mut fields, &mut mistakes);
    let hold = fields.read("for", &mut mistakes, duration);
    let times = fields.read("times", &mut mistakes, times);
    let clear = fields.read("clear", &mut mistakes, function);
    let cooldown = fields.read("cooldown", &mut mistakes, duration);
    let max_per_hour = fields.read("max_per_hour", &mut mistakes, |raw| match whole(&raw) {
        Some(number @ 1..=MAX_PER_HOUR) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        _ => Err(format!(
            "must be a whole number from 1 to {MAX_PER_HOUR}, not {}",
            raw.kind()
        )),
    });
    let verify = fields
        .take("verify")
        .and_then(|raw| read_verify(raw, &mut mistakes));
    let service = action.as_ref().and_then(|action| match action {
        Action::Command { service, host, .. } => Some((service.clone(), host.clone())),
        Action::Plugin { .. } => None,
    });
    let escalate = fields
        .take("escalate")
        .map(|raw| read_steps(raw, service.as_ref(), &mut mistakes));
    let dry_run = fields.read("dry_run", &mut mistakes, |raw| match raw {
        Raw::Flag(flag) => Ok(flag),
        other => Err(format!("must be true or false, not {}", other.kind())),
    });
    let unknown = fields.unknown().collect();
    match action {
        Some(action) if mistakes.0.is_empty() => Ok(Some(Parsed {
            task: Task {
                action,
                hold: hold.unwrap_or_default(),
                times,
                clear,
                cooldown: cooldown.unwrap_or_default(),
                max_per_hour,
                verify,
                escalate: escalate.unwrap_or_default(),
                dry_run: dry_run.unwrap_or_default(),
            },
            unknown,
        })),
        _ => Err(mistakes),
    }
}

/// An action: a service with a command, or what is to be done with a plugin.
fn read_action<F>(fields: &mut Fields<F>, mistakes: &mut Mistakes) -> Option<Action> {
    let service = fields.read("service", mistakes, name);
    let command = fields.read("command", mistakes, name);
    let host = fields.read("host", mistakes, name);
    let params = fields.take("params").map(|raw| {
        let place = fields.place("params");
        read_params(raw, &place, mistakes)
    });
    let mut verbs = Vec::new();
    for (key, verb) in VERBS {
        if let Some(plugin) = fields.read(key, mistakes, name) {
            verbs.push(Action::Plugin { verb, plugin });
        }
    }
    let place = fields.path.strip_suffix('.').unwrap_or("the task");
    if !mistakes.0.is_empty() {
        // What is missing may be what is wrong.
        return None;
    }
    let others = host.is_some() || params.is_some();
    match (service, command, verbs.pop()) {
        (Some(service), Some(command), None) => Some(Action::Command {
            host,
            service,
            command,
            params: params.unwrap_or_default(),
        }),
        (None, None, Some(action)) if verbs.is_empty() && !others => Some(action),
        (None, None, None) => {
            mistakes.add(
                place,
                "has neither service and command nor one of load_plugin, reload_plugin and unload_plugin",
            );
            None
        }
        (Some(_), None, None) => {
            mistakes.add(place, "has a service, but no command");
            None
        }
        (None, Some(_), None) => {
            mistakes.add(place, "has a command, but no service");
            None
        }
        (None, None, Some(_)) if verbs.is_empty() => {
            mistakes.add(place, "has host or params, which only a command takes");
            None
        }
        _ => {
            mistakes.add(
                place,
                "may have only one of service with command, load_plugin, reload_plugin and unload_plugin",
            );
            None
        }
    }
}

fn read_params<F>(raw: Raw<F>, place: &str, mistakes: &mut Mistakes) -> BTreeMap<String, Argument> {
    let mut params = BTreeMap::new();
    let Raw::Table(pairs) = raw else {
        mistakes.add(place, format_args!("must be a table, not {}", raw.kind()));
        return params;
    };
    for (key, value) in pairs {
        let Raw::Text(name) = key else {
            mistakes.add(
                place,
                format_args!("has the key {}, but keys must be names", key.kind()),
            );
            continue;
        };
        let argument = match (whole(&value), value) {
            (Some(number), _) => Argument::Integer(number),
            (None, Raw::Text(text)) => Argument::Text(text),
            (None, Raw::Flag(flag)) => Argument::Flag(flag),
            (None, Raw::Nil) => continue,
            (None, other) => {
                mistakes.add(
                    &format!("{place}.{}", shortened(&name)),
                    format_args!(
                        "must be a string, a whole number, true or false, not {}",
                        other.kind()
                    ),
                );
                continue;
            }
        };
        params.insert(name, argument);
    }
    params
}

/// `"1m"`, or a table with `within` and `check`.
fn read_verify<F>(raw: Raw<F>, mistakes: &mut Mistakes) -> Option<Verify<F>> {
    let pairs = match raw {
        Raw::Table(pairs) => pairs,
        raw => match duration(raw) {
            Ok(within) => {
                return Some(Verify {
                    within,
                    check: None,
                })
            }
            Err(what) => {
                mistakes.add("verify", format_args!("{what}; or a table with within"));
                return None;
            }
        },
    };
    let mut fields = Fields::new("verify.", pairs, mistakes);
    let within = match fields.take("within") {
        Some(raw) => duration(raw),
        None => Err("is missing".to_owned()),
    };
    let within = within.map_err(|what| mistakes.add("verify.within", what));
    let check = fields.read("check", mistakes, function);
    fields.refuse_unknown(mistakes);
    Some(Verify {
        within: within.ok()?,
        check,
    })
}

/// An action, or a list of them. A mere name is a command of the same service, on the same host.
fn read_steps<F>(
    raw: Raw<F>,
    service: Option<&(String, Option<String>)>,
    mistakes: &mut Mistakes,
) -> Vec<Action> {
    let raw = match raw {
        Raw::Table(pairs) => pairs,
        text @ Raw::Text(_) => vec![(Raw::Integer(1), text)],
        other => {
            mistakes.add(
                "escalate",
                format_args!(
                    "must be a table or the name of a command, not {}",
                    other.kind()
                ),
            );
            return Vec::new();
        }
    };
    let mut steps = BTreeMap::new();
    if raw.iter().any(|(key, _)| matches!(key, Raw::Text(_))) {
        steps.insert(1, Raw::Table(raw));
    } else {
        for (key, value) in raw {
            match whole(&key) {
                Some(number @ 1..) => {
                    steps.insert(number, value);
                }
                _ => mistakes.add(
                    "escalate",
                    format_args!("has the key {}, but steps count from 1", key.kind()),
                ),
            }
        }
    }
    if steps.len() > MAX_STEPS {
        mistakes.add(
            "escalate",
            format_args!("has {} steps, but may have {MAX_STEPS} only", steps.len()),
        );
        return Vec::new();
    }
    let mut actions = Vec::new();
    for (number, raw) in steps {
        let place = format!("escalate[{number}]");
        match (raw, service) {
            (Raw::Table(pairs), _) => {
                let mut fields = Fields::new(&format!("{place}."), pairs, mistakes);
                actions.extend(read_action(&mut fields, mistakes));
                fields.refuse_unknown(mistakes);
            }
            (text @ Raw::Text(_), Some((service, host))) => match name(text) {
                Ok(command) => actions.push(Action::Command {
                    host: host.clone(),
                    service: service.clone(),
                    command,
                    params: BTreeMap::new(),
                }),
                Err(what) => mistakes.add(&place, what),
            },
            (other, _) => mistakes.add(
                &place,
                format_args!(
                    "must be an action or a command of the same service, not {}",
                    other.kind()
                ),
            ),
        }
    }
    actions
}

fn name<F>(raw: Raw<F>) -> Result<String, String> {
    match raw {
        Raw::Text(text) if text.len() > MAX_NAME => Err(format!(
            "must have at most {MAX_NAME} bytes, not {}",
            text.len()
        )),
        Raw::Text(text) if text.contains('\0') => Err("must not hold a NUL character".to_owned()),
        Raw::Text(text) => Ok(text),
        other => Err(format!("must be a string, not {}", other.kind())),
    }
}

fn function<F>(raw: Raw<F>) -> Result<F, String> {
    match raw {
        Raw::Function(function) => Ok(function),
        other => Err(format!("must be a function, not {}", other.kind())),
    }
}

/// A number that is whole, however it is kept.
fn whole<F>(raw: &Raw<F>) -> Option<i64> {
    /// Beyond this, not every whole number is a float.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match raw {
        Raw::Integer(number) => Some(*number),
        #[allow(clippy::cast_possible_truncation, reason = "it is whole and in range")]
        Raw::Float(number) if number.fract() == 0.0 && number.abs() <= EXACT => {
            Some(*number as i64)
        }
        _ => None,
    }
}

/// A number of seconds, or numbers with units: `30`, `"30s"`, `"1h30m"`.
fn duration<F>(raw: Raw<F>) -> Result<Duration, String> {
    let seconds = match &raw {
        #[allow(clippy::cast_precision_loss, reason = "the limit is far below")]
        Raw::Integer(number) => Some(*number as f64),
        Raw::Float(number) => Some(*number),
        Raw::Text(text) => seconds(text),
        _ => None,
    };
    match seconds {
        Some(seconds) if (0.0..=MAX_SECONDS).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        Some(_) => Err(format!(
            "must be a time from nothing to thirty days, not {}",
            raw.kind()
        )),
        None => Err(format!(
            "must be a time such as \"30s\", \"10m\", \"1h30m\" or a number of seconds, not {}",
            raw.kind()
        )),
    }
}

fn seconds(text: &str) -> Option<f64> {
    let mut all = 0.0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    if rest.bytes().all(|byte| byte.is_ascii_digit()) {
        return rest.parse().ok();
    }
    while !rest.is_empty() {
        let digits = rest.find(|char: char| !char.is_ascii_digit() && char != '.')?;
        let (number, behind) = rest.split_at(digits);
        let number: f64 = number.parse().ok()?;
        let unit = behind
            .find(|char: char| !char.is_ascii_alphabetic())
            .unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        all += number
            * match unit {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return None,
            };
        rest = behind;
    }
    Some(all)
}

/// `"3/5"`: three of the last five; `3`: three in a row.
fn times<F>(raw: Raw<F>) -> Result<Times, String> {
    let parsed = match &raw {
        Raw::Text(text) => match text.split_once('/') {
            Some((hits, of)) => hits.trim().parse().ok().zip(of.trim().parse().ok()),
            None => text.trim().parse().ok().map(|number| (number, number)),
        },
        raw => whole(raw).and_then(|number| {
            let number = u32::try_from(number).ok()?;
            Some((number, number))
        }),
    };
    match parsed {
        Some((hits, of)) if 1 <= hits && hits <= of && of <= MAX_TIMES => Ok(Times { hits, of }),
        _ => Err(format!(
            "must be such as \"3/5\", three of the last five of at most {MAX_TIMES}, not {}",
            raw.kind()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type R = Raw<u8>;

    fn text(text: &str) -> R {
        Raw::Text(text.to_owned())
    }

    fn table(fields: &[(&str, R)]) -> R {
        let pair = |(name, value): &(&str, R)| (text(name), value.clone());
        Raw::Table(fields.iter().map(pair).collect())
    }

    fn list(values: &[R]) -> R {
        let pairs = (1..).map(Raw::Integer).zip(values.iter().cloned());
        Raw::Table(pairs.collect())
    }

    fn with(fields: &[(&str, R)]) -> R {
        let mut all = vec![("service", text("web")), ("command", text("restart"))];
        all.extend(fields.iter().cloned());
        table(&all)
    }

    fn task(raw: R) -> Task<u8> {
        let parsed = read_task(raw).unwrap().unwrap();
        assert_eq!(parsed.unknown, [""; 0]);
        parsed.task
    }

    fn command(name: &str) -> Action {
        Action::Command {
            host: None,
            service: "web".into(),
            command: name.into(),
            params: BTreeMap::new(),
        }
    }

    #[test]
    fn the_original_task_is_read() {
        assert_eq!(task(with(&[])), Task::new(command("restart")));
        assert_eq!(read_task::<u8>(Raw::Nil), Ok(None));
    }

    #[test]
    fn every_field_is_read() {
        let raw = with(&[
            ("host", text("web1")),
            (
                "params",
                table(&[
                    ("n", Raw::Float(3.0)),
                    ("s", text("x")),
                    ("f", Raw::Flag(true)),
                ]),
            ),
            ("for", text("30s")),
            ("times", text("3/5")),
            ("clear", Raw::Function(1)),
            ("cooldown", text("1h30m")),
            ("max_per_hour", Raw::Integer(4)),
            (
                "verify",
                table(&[("within", Raw::Float(1.5)), ("check", Raw::Function(2))]),
            ),
            (
                "escalate",
                list(&[text("reset"), table(&[("reload_plugin", text("apache"))])]),
            ),
            ("dry_run", Raw::Flag(true)),
        ]);
        let on_web1 = |name: &str, params| Action::Command {
            host: Some("web1".into()),
            service: "web".into(),
            command: name.into(),
            params,
        };
        let params = [
            ("n".to_owned(), Argument::Integer(3)),
            ("s".to_owned(), Argument::Text("x".into())),
            ("f".to_owned(), Argument::Flag(true)),
        ];
        let reload = Action::Plugin {
            verb: Verb::Reload,
            plugin: "apache".into(),
        };
        assert_eq!(
            task(raw),
            Task {
                action: on_web1("restart", params.into()),
                hold: Duration::from_secs(30),
                times: Some(Times { hits: 3, of: 5 }),
                clear: Some(1),
                cooldown: Duration::from_secs(5400),
                max_per_hour: Some(4),
                verify: Some(Verify {
                    within: Duration::from_millis(1500),
                    check: Some(2)
                }),
                escalate: vec![on_web1("reset", BTreeMap::new()), reload],
                dry_run: true,
            }
        );
    }

    #[test]
    fn short_forms_are_read() {
        let plugin = table(&[("unload_plugin", text("df"))]);
        let unload = Action::Plugin {
            verb: Verb::Unload,
            plugin: "df".into(),
        };
        assert_eq!(task(plugin).action, unload);
        let one = task(with(&[
            ("escalate", table(&[("load_plugin", text("df"))])),
            ("verify", text("1m")),
        ]));
        assert_eq!(one.escalate.len(), 1);
        assert_eq!(one.verify.unwrap().within, Duration::from_secs(60));
        let name = task(with(&[
            ("escalate", text("reset")),
            ("times", Raw::Integer(3)),
        ]));
        assert_eq!(name.escalate, [command("reset")]);
        assert_eq!(name.times, Some(Times { hits: 3, of: 3 }));
        // What is nil is not there.
        assert_eq!(task(with(&[("clear", Raw::Nil)])).clear, None);
    }

    #[test]
    fn fields_of_others_are_told_and_no_mistake() {
        let parsed = read_task(with(&[("cooldwon", text("1m"))])).unwrap();
        assert_eq!(parsed.unwrap().unknown, ["cooldwon"]);
        // Here, there are no others.
        let verify = table(&[("within", text("1m")), ("checks", Raw::Nil)]);
        let step = list(&[table(&[("load_plugin", text("df")), ("for", text("1m"))])]);
        let mistakes = read_task(with(&[("verify", verify), ("escalate", step)]));
        assert_eq!(
            mistakes.unwrap_err().to_string(),
            "verify.checks: means nothing here; escalate[1].for: means nothing here"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (raw, expected) in [
            (Raw::Integer(5), "the task: must be a table or nil, not 5"),
            (table(&[]), "the task: has neither service and command nor one of load_plugin, reload_plugin and unload_plugin"),
            (table(&[("service", text("web"))]), "the task: has a service, but no command"),
            (table(&[("command", text("x"))]), "the task: has a command, but no service"),
            (with(&[("load_plugin", text("df"))]), "the task: may have only one of service with command, load_plugin, reload_plugin and unload_plugin"),
            (table(&[("load_plugin", text("df")), ("host", text("h"))]), "the task: has host or params, which only a command takes"),
            (list(&[text("web")]), "the task: has the key 1, but keys must be names"),
            (with(&[("for", text("half an hour"))]), "for: must be a time such as \"30s\", \"10m\", \"1h30m\" or a number of seconds, not \"half an hour\""),
            (with(&[("for", Raw::Integer(-1))]), "for: must be a time from nothing to thirty days, not -1"),
            (with(&[("cooldown", Raw::Float(f64::NAN))]), "cooldown: must be a time from nothing to thirty days, not NaN"),
            (with(&[("cooldown", Raw::Float(f64::INFINITY))]), "cooldown: must be a time from nothing to thirty days, not inf"),
            (with(&[("times", text("5/3"))]), "times: must be such as \"3/5\", three of the last five of at most 64, not \"5/3\""),
            (with(&[("times", Raw::Integer(65))]), "times: must be such as \"3/5\", three of the last five of at most 64, not 65"),
            (with(&[("clear", Raw::Flag(true))]), "clear: must be a function, not true"),
            (with(&[("max_per_hour", Raw::Float(1.5))]), "max_per_hour: must be a whole number from 1 to 3600, not 1.5"),
            (with(&[("verify", table(&[]))]), "verify.within: is missing"),
            (with(&[("verify", Raw::Function(1))]), "verify: must be a time such as \"30s\", \"10m\", \"1h30m\" or a number of seconds, not a function; or a table with within"),
            (with(&[("escalate", list(&[table(&[("service", text("a"))])]))]), "escalate[1]: has a service, but no command"),
            (with(&[("escalate", list(&[Raw::Flag(false)]))]), "escalate[1]: must be an action or a command of the same service, not false"),
            (with(&[("escalate", Raw::Table(vec![(Raw::Integer(0), text("x"))]))]), "escalate: has the key 0, but steps count from 1"),
            (with(&[("escalate", list(&vec![text("x"); 17]))]), "escalate: has 17 steps, but may have 16 only"),
            (with(&[("dry_run", text("yes"))]), "dry_run: must be true or false, not \"yes\""),
            (with(&[("params", table(&[("x", Raw::Float(0.5))]))]), "params.x: must be a string, a whole number, true or false, not 0.5"),
            (with(&[("params", list(&[text("x")]))]), "params: has the key 1, but keys must be names"),
                        (table(&[("service", text(&"x".repeat(300))), ("command", text("c"))]), "service: must have at most 256 bytes, not 300"),
            (table(&[("service", text("a\0b")), ("command", text("c"))]), "service: must not hold a NUL character"),
            (with(&[("for", Raw::Other("a table that is too deep".into()))]), "for: must be a time such as \"30s\", \"10m\", \"1h30m\" or a number of seconds, not a table that is too deep"),
        ] {
            assert_eq!(read_task(raw).unwrap_err().to_string(), expected);
        }
        let both = with(&[("for", text("x")), ("dry_run", Raw::Integer(1))]);
        assert_eq!(read_task(both).unwrap_err().iter().count(), 2);
    }

    #[test]
    fn times_have_units() {
        for (text, expected) in [
            ("30s", 30.0),
            ("10m", 600.0),
            ("1h30m", 5400.0),
            ("250ms", 0.25),
            ("1.5h", 5400.0),
            ("2d", 172_800.0),
            ("30", 30.0),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for text in [
            "", " ", "s", "1.2.3s", "-5s", "5 s", "5y", "1e3s", "5s5", "٣s", ".s",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    /// What a rule could come up with: anything, anywhere, and the names that mean something more often than not.
    fn anything() -> impl Strategy<Value = R> {
        let words = prop::sample::select(vec![
            "service",
            "command",
            "host",
            "params",
            "load_plugin",
            "reload_plugin",
            "unload_plugin",
            "for",
            "times",
            "clear",
            "cooldown",
            "max_per_hour",
            "verify",
            "within",
            "check",
            "escalate",
            "dry_run",
            "30s",
            "3/5",
            "web",
        ]);
        let leaf = prop_oneof![
            4 => words.prop_map(text),
            1 => ".{0,8}".prop_map(Raw::Text),
            1 => any::<i64>().prop_map(Raw::Integer),
            1 => any::<f64>().prop_map(Raw::Float),
            1 => (0..100_i64).prop_map(Raw::Integer),
            1 => any::<bool>().prop_map(Raw::Flag),
            1 => any::<u8>().prop_map(Raw::Function),
            1 => Just(Raw::Nil),
            1 => Just(Raw::Other("a thread".into())),
            1 => (0..MAX_TEXT).prop_map(|length| Raw::Text("é".repeat(length / 2))),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop::collection::vec((inner.clone(), inner), 0..8).prop_map(Raw::Table)
        })
    }

    /// A task with one thing changed.
    fn nearly_a_task() -> impl Strategy<Value = R> {
        let names = vec![
            "service",
            "command",
            "host",
            "params",
            "load_plugin",
            "for",
            "times",
            "clear",
            "cooldown",
            "max_per_hour",
            "verify",
            "escalate",
            "dry_run",
            "x",
        ];
        prop::collection::vec((prop::sample::select(names), anything()), 0..3)
            .prop_map(|fields| with(&fields))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn whatever_a_rule_returns_is_a_task_or_a_short_message(
            raw in prop_oneof![anything(), nearly_a_task()]
        ) {
            match read_task(raw) {
                Ok(None) => {}
                Ok(Some(Parsed { task, .. })) => {
                    let longest = Duration::from_secs_f64(MAX_SECONDS);
                    prop_assert!(task.hold <= longest && task.cooldown <= longest);
                    prop_assert!(task.verify.is_none_or(|verify| verify.within <= longest));
                    prop_assert!(task.escalate.len() <= MAX_STEPS);
                    prop_assert!(task.times.is_none_or(|t| 0 < t.hits && t.hits <= t.of && t.of <= MAX_TIMES));
                }
                Err(mistakes) => {
                    prop_assert!(mistakes.iter().count() > 0);
                    prop_assert!(mistakes.to_string().len() < 8 * 1024);
                }
            }
        }
    }
}
