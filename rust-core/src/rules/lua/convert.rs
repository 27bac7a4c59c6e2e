//! Values between Rust and Lua.

use std::time::{SystemTime, UNIX_EPOCH};

use mlua::{Lua, Table, Value};

use crate::daemon::DataValue;

/// How deep a table may be nested that is remembered or written as JSON.
const MAX_DEPTH: usize = 32;
/// How many values it may hold in all.
const MAX_VALUES: usize = 100_000;

/// A number. In the dialect of rules, a whole number is one, wherever it comes from.
pub(super) fn float(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match number.fract() == 0.0 && number.abs() < EXACT {
        true => Value::Integer(number as i64),
        false => Value::Number(number),
    }
}

/// A number of a value.
pub(super) fn number(number: DataValue) -> Value {
    match number {
        DataValue::Gauge(number) => float(number),
        DataValue::Derive(number) => Value::Integer(number),
        DataValue::Counter(number) | DataValue::Absolute(number) => match i64::try_from(number) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Number(number as f64),
        },
    }
}

/// A moment in seconds since 1970.
pub(super) fn time(time: SystemTime) -> Value {
    float(match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    })
}

/// A value in words.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string_lossy(),
        Value::Integer(number) => number.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        other => format!("a {}", other.type_name()),
    }
}

/// A number that a rule gave.
pub(super) fn as_f64(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Number(number) => Some(*number),
        Value::String(text) => text.to_str().ok()?.trim().parse().ok(),
        _ => None,
    }
}

/// What outlives a state: everything that is not a function or a thread.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Plain {
    /// Nothing.
    #[default]
    Nil,
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// A text of any bytes.
    Text(Vec<u8>),
    /// A table.
    Table(Vec<(Plain, Plain)>),
}

impl Plain {
    /// Copies a value out of its state. What cannot be copied is left out.
    pub(super) fn copy(value: &Value) -> Self {
        Self::nested(value, MAX_DEPTH, &mut 0)
    }

    fn nested(value: &Value, depth: usize, count: &mut usize) -> Self {
        *count += 1;
        if *count > MAX_VALUES {
            return Plain::Nil;
        }
        match value {
            Value::Boolean(flag) => Plain::Flag(*flag),
            Value::Integer(number) => Plain::Integer(*number),
            Value::Number(number) => Plain::Float(*number),
            Value::String(text) => Plain::Text(text.as_bytes().to_vec()),
            Value::Table(table) if depth > 0 => {
                let mut pairs = Vec::new();
                // Reading the pairs of a table calls no rule.
                for (key, value) in table.pairs::<Value, Value>().flatten() {
                    let key = Self::nested(&key, depth - 1, count);
                    let value = Self::nested(&value, depth - 1, count);
                    if key != Plain::Nil && value != Plain::Nil {
                        pairs.push((key, value));
                    }
                }
                Plain::Table(pairs)
            }
            _ => Plain::Nil,
        }
    }

    /// Copies it into a state.
    pub(super) fn to_lua(&self, lua: &Lua) -> mlua::Result<Value> {
        Ok(match self {
            Plain::Nil => Value::Nil,
            Plain::Flag(flag) => Value::Boolean(*flag),
            Plain::Integer(number) => Value::Integer(*number),
            Plain::Float(number) => Value::Number(*number),
            Plain::Text(text) => Value::String(lua.create_string(text)?),
            Plain::Table(pairs) => {
                let table = lua.create_table()?;
                for (key, value) in pairs {
                    // NaN is no key.
                    if !matches!(key, Plain::Float(number) if number.is_nan()) {
                        table.raw_set(key.to_lua(lua)?, value.to_lua(lua)?)?;
                    }
                }
                Value::Table(table)
            }
        })
    }
}

/// What a value is in JSON.
pub(super) fn to_json(value: &Value) -> Result<serde_json::Value, String> {
    json(value, MAX_DEPTH, &mut 0)
}

fn json(value: &Value, depth: usize, count: &mut usize) -> Result<serde_json::Value, String> {
    *count += 1;
    if *count > MAX_VALUES {
        return Err("the table is too large for JSON".to_owned());
    }
    Ok(match value {
        Value::Nil => serde_json::Value::Null,
        Value::Boolean(flag) => (*flag).into(),
        Value::Integer(number) => (*number).into(),
        Value::Number(number) => match float(*number) {
            Value::Integer(number) => number.into(),
            // JSON knows no infinity, and no number that is none.
            _ => serde_json::Number::from_f64(*number)
                .map_or(serde_json::Value::Null, serde_json::Value::Number),
        },
        Value::String(text) => text.to_string_lossy().into(),
        Value::Table(_) if depth == 0 => return Err("the table is nested too deeply".to_owned()),
        Value::Table(table) => json_of_table(table, depth - 1, count)?,
        other => return Err(format!("a {} has no place in JSON", other.type_name())),
    })
}

fn json_of_table(
    table: &Table,
    depth: usize,
    count: &mut usize,
) -> Result<serde_json::Value, String> {
    let mut pairs = Vec::new();
    for pair in table.pairs::<Value, Value>() {
        pairs.push(pair.map_err(|error| super::words(&error))?);
    }
    let length = table.raw_len();
    if length > 0 && length == pairs.len() {
        let list = table.sequence_values::<Value>().map(|value| {
            let value = value.map_err(|error| super::words(&error))?;
            json(&value, depth, count)
        });
        return Ok(serde_json::Value::Array(list.collect::<Result<_, _>>()?));
    }
    let mut object = serde_json::Map::new();
    for (key, value) in pairs {
        if !matches!(key, Value::String(_) | Value::Integer(_) | Value::Number(_)) {
            return Err(format!("a {} is no key in JSON", key.type_name()));
        }
        object.insert(shown(&key), json(&value, depth, count)?);
    }
    Ok(object.into())
}

/// What JSON is in Lua.
pub(super) fn from_json(lua: &Lua, value: &serde_json::Value) -> mlua::Result<Value> {
    Ok(match value {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(flag) => Value::Boolean(*flag),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            None => float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::String(lua.create_string(text)?),
        serde_json::Value::Array(list) => {
            let table = lua.create_table()?;
            for (index, value) in list.iter().enumerate() {
                table.raw_set(index + 1, from_json(lua, value)?)?;
            }
            Value::Table(table)
        }
        serde_json::Value::Object(entries) => {
            let table = lua.create_table()?;
            for (key, value) in entries {
                table.raw_set(key.as_str(), from_json(lua, value)?)?;
            }
            Value::Table(table)
        }
    })
}
