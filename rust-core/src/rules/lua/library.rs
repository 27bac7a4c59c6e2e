//! What a rule may call: `collectd.*`, and what the prelude is made with.

use std::cell::RefCell;
use std::fs;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mlua::{Function, Lua, Table, Value};
use tracing::{debug, error, info, warn};

use super::{convert, modules, words, Environment, Plain};
use crate::daemon::{Daemon, DataValue, Notification, Severity, SourceType, ValueList};
use crate::rules::budget::Budget;
use crate::rules::files;

/// The largest module that is read.
const MAX_MODULE: u64 = 4 << 20;
/// How many notifications the rules of a state may dispatch without a pause, and how long it takes for one more.
const BURST: u32 = 100;
const REFILL: Duration = Duration::from_millis(100);
/// Who speaks in the notifications of rules that do not say so.
const PLUGIN: &str = "monitor";
/// The key of what rules remember, in the table `collectd`.
const STATE: &str = "state";

/// Puts the table `collectd` into a state. Returns what the prelude needs.
pub(super) fn install(
    lua: &Lua,
    environment: &Environment,
    remembered: &Plain,
) -> mlua::Result<Table> {
    let collectd = lua.create_table()?;
    logging(lua, &collectd)?;
    dispatching(lua, &collectd, &environment.daemon)?;
    asking(lua, &collectd, &environment.daemon)?;
    let state = match remembered {
        Plain::Table(_) => remembered.to_lua(lua)?,
        _ => Value::Table(lua.create_table()?),
    };
    collectd.raw_set(STATE, state)?;
    let globals = lua.globals();
    globals.raw_set("collectd", collectd)?;
    for (name, severity) in [
        ("NOTIF_FAILURE", Severity::Failure),
        ("NOTIF_WARNING", Severity::Warning),
        ("NOTIF_OKAY", Severity::Okay),
    ] {
        globals.raw_set(name, severity as i32)?;
    }
    native(lua, environment)
}

/// What rules keep in `collectd.state`.
pub(super) fn remembered(lua: &Lua) -> Plain {
    let state = lua
        .globals()
        .raw_get::<Table>("collectd")
        .and_then(|collectd| collectd.raw_get::<Value>(STATE));
    state.map_or(Plain::Nil, |state| Plain::copy(&state))
}

fn log(level: &str, text: &str) {
    // A rule is not to write lines of its own making into the log.
    let text = text.replace(['\n', '\r'], " ");
    match level {
        "error" => error!("{text}"),
        "warning" => warn!("{text}"),
        "notice" | "info" => info!("{text}"),
        _ => debug!("{text}"),
    }
}

fn logging(lua: &Lua, collectd: &Table) -> mlua::Result<()> {
    for level in ["error", "warning", "notice", "info", "debug"] {
        let function = lua.create_function(move |_, value: Value| {
            log(level, &convert::shown(&value));
            Ok(())
        })?;
        collectd.raw_set(format!("log_{level}"), function)?;
    }
    Ok(())
}

/// A field of a table that a rule gave, or nothing.
fn field(table: &Table, name: &str) -> mlua::Result<Option<String>> {
    match table.get::<Value>(name)? {
        Value::Nil => Ok(None),
        value @ (Value::String(_) | Value::Integer(_) | Value::Number(_)) => {
            Ok(Some(convert::shown(&value)))
        }
        other => Err(mlua::Error::runtime(format!(
            "{name} is a {}, not a text",
            other.type_name()
        ))),
    }
}

fn moment(table: &Table, name: &str, daemon: &dyn Daemon) -> mlua::Result<std::time::SystemTime> {
    let value: Value = table.get(name)?;
    if value.is_nil() {
        return Ok(daemon.now());
    }
    convert::as_f64(&value)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .and_then(|since| std::time::UNIX_EPOCH.checked_add(since))
        .ok_or_else(|| mlua::Error::runtime(format!("{name} is no time in seconds since 1970")))
}

fn dispatching(lua: &Lua, collectd: &Table, daemon: &Arc<dyn Daemon>) -> mlua::Result<()> {
    let to = Arc::clone(daemon);
    let budget = RefCell::new(Budget::new(BURST, REFILL));
    let started = Instant::now();
    let dispatch = lua.create_function(move |_, table: Table| {
        // Whoever answers each notification with another one may be answered in turn.
        let spent = budget
            .borrow_mut()
            .spend(REFILL * BURST + started.elapsed());
        if spent.is_err() {
            return Err(mlua::Error::runtime(
                "rules dispatch too many notifications, which may be a loop",
            ));
        }
        let severity = table.get::<Value>("severity")?;
        let severity = match convert::as_f64(&severity).map(|number| number as i32) {
            Some(1) => Severity::Failure,
            Some(2) => Severity::Warning,
            Some(4) => Severity::Okay,
            _ => {
                return Err(mlua::Error::runtime(
                    "severity is none of NOTIF_FAILURE, NOTIF_WARNING and NOTIF_OKAY",
                ))
            }
        };
        let text = |name: &str| Ok::<_, mlua::Error>(field(&table, name)?.unwrap_or_default());
        let notification = Notification {
            severity,
            time: moment(&table, "time", &*to)?,
            message: text("message")?,
            host: field(&table, "host")?.unwrap_or_else(|| to.hostname()),
            plugin: field(&table, "plugin")?.unwrap_or_else(|| PLUGIN.to_owned()),
            plugin_instance: text("plugin_instance")?,
            type_: text("type")?,
            type_instance: text("type_instance")?,
        };
        match to.dispatch_notification(&notification) {
            true => Ok(0),
            false => Err(mlua::Error::runtime(
                "the daemon did not take the notification",
            )),
        }
    })?;
    collectd.raw_set("dispatch_notification", dispatch)?;

    let to = Arc::clone(daemon);
    let dispatch = lua.create_function(move |_, table: Table| {
        let values = values(&table, &*to)?;
        match to.dispatch_values(&values) {
            true => Ok(0),
            false => Err(mlua::Error::runtime("the daemon did not take the values")),
        }
    })?;
    collectd.raw_set("dispatch_values", dispatch)
}

fn values(table: &Table, daemon: &dyn Daemon) -> mlua::Result<ValueList> {
    let needed = |name: &str| {
        field(table, name)?.ok_or_else(|| mlua::Error::runtime(format!("{name} is missing")))
    };
    let list: Table = table
        .get("values")
        .map_err(|_| mlua::Error::runtime("values is no table of numbers"))?;
    let type_ = needed("type")?;
    let sources = daemon
        .data_sources(&type_)
        .ok_or_else(|| mlua::Error::runtime(format!("there is no type {type_}")))?;
    let given: Vec<Value> = list.sequence_values().collect::<mlua::Result<_>>()?;
    if given.len() != sources.len() {
        return Err(mlua::Error::runtime(format!(
            "the type {type_} has {} values, not {}",
            sources.len(),
            given.len()
        )));
    }
    let mut values = Vec::with_capacity(given.len());
    for (value, source) in given.iter().zip(sources) {
        values.push(
            number(value, source.type_)
                .ok_or_else(|| mlua::Error::runtime("values is no table of numbers"))?,
        );
    }
    let interval = match table.get::<Value>("interval")? {
        Value::Nil => None,
        value => Some(
            convert::as_f64(&value)
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .ok_or_else(|| mlua::Error::runtime("interval is no number of seconds"))?,
        ),
    };
    Ok(ValueList {
        host: field(table, "host")?.unwrap_or_else(|| daemon.hostname()),
        plugin: needed("plugin")?,
        plugin_instance: field(table, "plugin_instance")?.unwrap_or_default(),
        type_,
        type_instance: field(table, "type_instance")?.unwrap_or_default(),
        time: Some(moment(table, "time", daemon)?),
        interval,
        values,
    })
}

/// A number as its data source has it. As in a cast of C, but within its limits, what is too large is the largest.
fn number(value: &Value, type_: SourceType) -> Option<DataValue> {
    let float = convert::as_f64(value)?;
    let signed = match value {
        Value::Integer(number) => *number,
        _ => float as i64,
    };
    let unsigned = match value {
        Value::Integer(number) => u64::try_from(*number).unwrap_or(0),
        _ => float as u64,
    };
    Some(match type_ {
        SourceType::Counter => DataValue::Counter(unsigned),
        SourceType::Gauge => DataValue::Gauge(float),
        SourceType::Derive => DataValue::Derive(signed),
        SourceType::Absolute => DataValue::Absolute(unsigned),
    })
}

/// The name of a series: as it stands, or of the fields of a table.
fn identifier(value: &Value, daemon: &dyn Daemon) -> mlua::Result<String> {
    let table = match value {
        Value::String(text) => return Ok(text.to_string_lossy()),
        Value::Table(table) => table,
        other => {
            return Err(mlua::Error::runtime(format!(
                "a {} names no series",
                other.type_name()
            )))
        }
    };
    let part = |name: &str, instance: &str| -> mlua::Result<String> {
        let name = field(table, name)?
            .ok_or_else(|| mlua::Error::runtime(format!("{name} is missing")))?;
        Ok(match field(table, instance)?.unwrap_or_default() {
            instance if instance.is_empty() => name,
            instance => format!("{name}-{instance}"),
        })
    };
    let host = field(table, "host")?.unwrap_or_else(|| daemon.hostname());
    Ok(format!(
        "{host}/{}/{}",
        part("plugin", "plugin_instance")?,
        part("type", "type_instance")?
    ))
}

fn asking(lua: &Lua, collectd: &Table, daemon: &Arc<dyn Daemon>) -> mlua::Result<()> {
    let of = Arc::clone(daemon);
    let last = lua.create_function(move |lua, series: Value| {
        let values = of.last_values(&identifier(&series, &*of)?);
        sequence(
            lua,
            values.map(|list| list.into_iter().map(convert::number)),
        )
    })?;
    collectd.raw_set("last_values", last)?;
    let of = Arc::clone(daemon);
    let rate = lua.create_function(move |lua, series: Value| {
        let rates = of.rates(&identifier(&series, &*of)?);
        sequence(lua, rates.map(|list| list.into_iter().map(convert::float)))
    })?;
    collectd.raw_set("rates", rate)?;
    let of = Arc::clone(daemon);
    collectd.raw_set(
        "time",
        lua.create_function(move |_, ()| Ok(convert::time(of.now())))?,
    )?;
    let of = Arc::clone(daemon);
    collectd.raw_set(
        "hostname",
        lua.create_function(move |_, ()| Ok(of.hostname()))?,
    )?;
    let encode = lua.create_function(|_, value: Value| {
        let json = convert::to_json(&value).map_err(mlua::Error::runtime)?;
        Ok(json.to_string())
    })?;
    collectd.raw_set("json_encode", encode)?;
    let decode = lua.create_function(|lua, text: mlua::String| {
        let json: serde_json::Value = serde_json::from_slice(&text.as_bytes())
            .map_err(|error| mlua::Error::runtime(format!("this is no JSON: {error}")))?;
        convert::from_json(lua, &json)
    })?;
    collectd.raw_set("json_decode", decode)
}

/// A table that counts from 1, or nil where there is none.
fn sequence(lua: &Lua, list: Option<impl Iterator<Item = Value>>) -> mlua::Result<Value> {
    match list {
        Some(list) => Ok(Value::Table(lua.create_sequence_from(list)?)),
        None => Ok(Value::Nil),
    }
}

/// What the prelude is made with.
fn native(lua: &Lua, environment: &Environment) -> mlua::Result<Table> {
    let native = lua.create_table()?;
    native.raw_set("memory_limit", environment.limits.memory)?;
    native.raw_set(
        "log",
        lua.create_function(|_, (level, text): (String, mlua::String)| {
            log(&level, &text.to_string_lossy());
            Ok(())
        })?,
    )?;
    let directory = modules(&environment.directory);
    let strict = environment.strict;
    native.raw_set(
        "module",
        lua.create_function(
            move |lua, name: String| match module(&directory, &name, strict) {
                Ok((text, path)) => Ok((Some(lua.create_string(text)?), path)),
                Err(why) => Ok((None, why)),
            },
        )?,
    )?;
    native.raw_set(
        "load",
        lua.create_function(
            |lua, (text, name, environment): (mlua::String, mlua::String, Option<Table>)| {
                let text = text.as_bytes().to_vec();
                let mut chunk = lua
                    .load(text)
                    .set_name(name.to_string_lossy())
                    .set_mode(mlua::ChunkMode::Text);
                if let Some(environment) = environment {
                    chunk = chunk.set_environment(environment);
                }
                match chunk.into_function() {
                    Ok(function) => Ok((Some(function), None)),
                    Err(error) => Ok((None, Some(words(&error)))),
                }
            },
        )?,
    )?;
    native.raw_set(
        "traceback",
        lua.create_function(|lua, text: Option<String>| lua.traceback(text.as_deref(), 1))?,
    )?;
    native.raw_set(
        "setfenv",
        lua.create_function(|lua, (of, table): (Value, Table)| {
            let function = function(lua, &of)?;
            match function.set_environment(table)? {
                true => Ok(function),
                false => Err(mlua::Error::runtime(
                    "setfenv cannot change the environment of a function that uses none",
                )),
            }
        })?,
    )?;
    native.raw_set(
        "getfenv",
        lua.create_function(|lua, of: Value| {
            let environment = match &of {
                Value::Integer(0) => None,
                other => function(lua, other)?.environment(),
            };
            Ok(environment.unwrap_or_else(|| lua.globals()))
        })?,
    )?;
    Ok(native)
}

/// The function that setfenv and getfenv mean: itself, or the one so many calls up.
fn function(lua: &Lua, of: &Value) -> mlua::Result<Function> {
    let level = match of {
        Value::Function(function) => return Ok(function.clone()),
        Value::Nil => 1,
        other => convert::as_f64(other)
            .filter(|level| (1.0..=200.0).contains(level))
            .ok_or_else(|| mlua::Error::runtime("there is no such function"))?
            as usize,
    };
    lua.inspect_stack(level, |debug| debug.function())
        .ok_or_else(|| mlua::Error::runtime("there is no such function"))
}

/// Finds a module: `a.b` is `a/b.lua` or `a/b/init.lua`.
fn module(directory: &Path, name: &str, strict: bool) -> Result<(Vec<u8>, String), String> {
    let relative = name.replace('.', "/");
    let inside = !relative.is_empty()
        && Path::new(&relative)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err("this is not the name of one".to_owned());
    }
    for tail in [".lua", "/init.lua"] {
        let path = directory.join(format!("{relative}{tail}"));
        match fs::metadata(&path) {
            Ok(found) if found.is_file() && found.len() <= MAX_MODULE => {
                let text = files::read(&path, strict)?;
                return Ok((text, format!("lib/{relative}{tail}")));
            }
            Ok(_) => return Err(format!("{} is no file of at most 4 MiB", path.display())),
            Err(_) => {}
        }
    }
    Err(format!(
        "{} is not there",
        directory.join(format!("{relative}.lua")).display()
    ))
}
