//! What a handler returned, as a task.

use std::collections::BTreeMap;
use std::time::Duration;

use mlua::{Function, Table, Value};

use super::{convert, words};
use crate::rules::task::{Action, Task, Times, Verb, Verify};
use crate::settings::Argument;

/// The longest time that a task may name: a year.
const MAX_DURATION: f64 = 366.0 * 86_400.0;
/// How many steps a task may have that follow the first.
const MAX_STEPS: usize = 16;

const VERBS: [(&str, Verb); 3] = [
    ("load_plugin", Verb::Load),
    ("reload_plugin", Verb::Reload),
    ("unload_plugin", Verb::Unload),
];

/// Reads a task. Says which of its keys mean nothing, too.
pub(super) fn read(value: Value) -> Result<(Task<Function>, Vec<String>), String> {
    let Value::Table(table) = value else {
        return Err(format!(
            "returned a {}, not a table with service and command",
            value.type_name()
        ));
    };
    let mut task = Task::new(action(&table)?);
    let mut unknown = Vec::new();
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair.map_err(|error| words(&error))?;
        let key = convert::shown(&key);
        let wrong = |what: &str| format!("the task's {key} {what}");
        match key.as_str() {
            "host" | "service" | "command" | "params" | "load_plugin" | "reload_plugin"
            | "unload_plugin" => {}
            "for" => task.hold = duration(&value).map_err(|what| wrong(&what))?,
            "times" => task.times = Some(times(&value).map_err(|what| wrong(&what))?),
            "clear" => task.clear = Some(condition(&value).map_err(|what| wrong(&what))?),
            "cooldown" => task.cooldown = duration(&value).map_err(|what| wrong(&what))?,
            "max_per_hour" => {
                let most = convert::as_f64(&value)
                    .filter(|most| most.fract() == 0.0 && (1.0..=3600.0).contains(most))
                    .ok_or_else(|| wrong("is not a whole number from 1 to 3600"))?;
                task.max_per_hour = Some(most as u32);
            }
            "verify" => task.verify = Some(verify(&value)?),
            "escalate" => task.escalate = steps(&value)?,
            "dry_run" => {
                let Value::Boolean(dry) = value else {
                    return Err(wrong("is neither true nor false"));
                };
                task.dry_run = dry;
            }
            _ => unknown.push(key),
        }
    }
    Ok((task, unknown))
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.to_string_lossy()),
        _ => None,
    }
}

fn get(table: &Table, key: &str) -> Result<Value, String> {
    table.raw_get(key).map_err(|error| words(&error))
}

fn action(table: &Table) -> Result<Action, String> {
    for (key, verb) in VERBS {
        match get(table, key)? {
            Value::Nil => {}
            Value::String(plugin) => {
                return Ok(Action::Plugin {
                    verb,
                    plugin: plugin.to_string_lossy(),
                })
            }
            other => {
                return Err(format!(
                    "the task's {key} is a {}, not the name of a plugin",
                    other.type_name()
                ))
            }
        }
    }
    let word = |key: &str| {
        let value = get(table, key)?;
        text(&value)
            .ok_or_else(|| format!("the task's {key} is a {}, not a text", value.type_name()))
    };
    let host = match get(table, "host")? {
        Value::Nil => None,
        value => Some(text(&value).ok_or("the task's host is no text")?),
    };
    Ok(Action::Command {
        host,
        service: word("service")?,
        command: word("command")?,
        params: parameters(&get(table, "params")?)?,
    })
}

fn parameters(value: &Value) -> Result<BTreeMap<String, Argument>, String> {
    let table = match value {
        Value::Nil => return Ok(BTreeMap::new()),
        Value::Table(table) => table,
        other => {
            return Err(format!(
                "the task's params are a {}, not a table",
                other.type_name()
            ))
        }
    };
    let mut read = BTreeMap::new();
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair.map_err(|error| words(&error))?;
        let key = convert::shown(&key);
        let argument = match &value {
            Value::String(text) => Argument::Text(text.to_string_lossy()),
            Value::Boolean(flag) => Argument::Flag(*flag),
            Value::Integer(number) => Argument::Integer(*number),
            Value::Number(number) => match convert::float(*number) {
                Value::Integer(number) => Argument::Integer(number),
                _ => return Err(format!("the task's params.{key} is not a whole number")),
            },
            other => {
                return Err(format!(
                    "the task's params.{key} is a {}",
                    other.type_name()
                ))
            }
        };
        read.insert(key, argument);
    }
    Ok(read)
}

/// A number of seconds, or a number with `ms`, `s`, `m`, `h` or `d`.
pub(super) fn duration(value: &Value) -> Result<Duration, String> {
    const WRONG: &str = "is not a time such as 30, \"30s\", \"5m\" or \"1h\"";
    let seconds = match value {
        Value::String(text) => {
            let text = text.to_string_lossy();
            let text = text.trim();
            let end = text
                .find(|c: char| c.is_ascii_alphabetic())
                .unwrap_or(text.len());
            let factor = match text[end..].trim() {
                "" | "s" => 1.0,
                "ms" => 1e-3,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return Err(WRONG.to_owned()),
            };
            let number: f64 = text[..end].trim().parse().map_err(|_| WRONG)?;
            number * factor
        }
        other => convert::as_f64(other).ok_or(WRONG)?,
    };
    match (0.0..=MAX_DURATION).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(WRONG.to_owned()),
    }
}

/// `"3/5"`, or a number for so many in a row.
fn times(value: &Value) -> Result<Times, String> {
    const WRONG: &str = "is not such as 3 or \"3/5\"";
    let text = match value {
        Value::String(text) => text.to_string_lossy(),
        other => convert::as_f64(other).ok_or(WRONG)?.to_string(),
    };
    let (hits, of) = text.split_once('/').unwrap_or((&text, &text));
    let number = |text: &str| text.trim().parse::<u32>().map_err(|_| WRONG.to_owned());
    let times = Times {
        hits: number(hits)?,
        of: number(of)?,
    };
    match (1..=times.of).contains(&times.hits) && times.of <= 1000 {
        true => Ok(times),
        false => Err(WRONG.to_owned()),
    }
}

fn condition(value: &Value) -> Result<Function, String> {
    match value {
        Value::Function(function) => Ok(function.clone()),
        _ => Err("is no function".to_owned()),
    }
}

/// `{ within = "1m", check = function … }`, or only the time.
fn verify(value: &Value) -> Result<Verify<Function>, String> {
    let wrong = |what: String| format!("the task's verify {what}");
    let Value::Table(table) = value else {
        return Ok(Verify {
            within: duration(value).map_err(wrong)?,
            check: None,
        });
    };
    for pair in table.pairs::<Value, Value>() {
        let (key, _) = pair.map_err(|error| words(&error))?;
        let key = convert::shown(&key);
        if !["within", "check"].contains(&key.as_str()) {
            return Err(wrong(format!("has the key {key}, which means nothing")));
        }
    }
    let within = get(table, "within")?;
    let check = match get(table, "check")? {
        Value::Nil => None,
        other => Some(condition(&other).map_err(|what| wrong(format!("has a check that {what}")))?),
    };
    Ok(Verify {
        within: duration(&within).map_err(|what| wrong(format!("has a within that {what}")))?,
        check,
    })
}

fn steps(value: &Value) -> Result<Vec<Action>, String> {
    let Value::Table(table) = value else {
        return Err("the task's escalate is no table".to_owned());
    };
    // One step may stand for itself.
    if table.raw_len() == 0 {
        return Ok(vec![action(table)?]);
    }
    if table.raw_len() > MAX_STEPS {
        return Err(format!(
            "the task's escalate has more than {MAX_STEPS} steps"
        ));
    }
    let steps = table.sequence_values::<Value>().map(|step| {
        let step = step.map_err(|error| words(&error))?;
        let Value::Table(step) = step else {
            return Err("a step of the task's escalate is no table".to_owned());
        };
        action(&step)
    });
    steps.collect()
}
