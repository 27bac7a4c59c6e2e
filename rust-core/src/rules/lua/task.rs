//! What a handler returned, taken over from Lua: no more of it than a task may have, whatever the rule has made.

use mlua::{Function, Value};

use super::words;
use crate::rules::table::{read_task, Raw, MAX_DEPTH, MAX_TEXT, MAX_VALUES};
use crate::rules::task::Task;

/// Reads a task. Says which of its keys mean nothing, too.
pub(super) fn read(value: &Value) -> Result<(Task<Function>, Vec<String>), String> {
    let mut left = MAX_VALUES;
    let raw = take_over(value, MAX_DEPTH, &mut left)?;
    match read_task(raw).map_err(|mistakes| mistakes.to_string())? {
        Some(parsed) => Ok((parsed.task, parsed.unknown)),
        None => Err("returned nothing".to_owned()),
    }
}

/// A table within itself ends where it is too deep.
fn take_over(value: &Value, depth: usize, left: &mut usize) -> Result<Raw<Function>, String> {
    *left = left
        .checked_sub(1)
        .ok_or_else(|| format!("returned a table of more than {MAX_VALUES} values"))?;
    Ok(match value {
        Value::Nil => Raw::Nil,
        Value::Boolean(flag) => Raw::Flag(*flag),
        Value::Integer(number) => Raw::Integer(*number),
        Value::Number(number) => Raw::Float(*number),
        Value::String(text) => {
            let bytes = text.as_bytes();
            match (std::str::from_utf8(&bytes), bytes.len()) {
                (_, length) if length > MAX_TEXT => {
                    Raw::Other(format!("a string of {length} bytes"))
                }
                (Ok(text), _) => Raw::Text(text.to_owned()),
                (Err(_), _) => Raw::Other("a string that is not UTF-8".to_owned()),
            }
        }
        Value::Function(function) => Raw::Function(function.clone()),
        Value::Table(_) if depth == 0 => Raw::Other("a table that is too deep".to_owned()),
        Value::Table(table) => {
            let mut pairs = Vec::new();
            for pair in table.pairs::<Value, Value>() {
                let (key, value) = pair.map_err(|error| words(&error))?;
                let key = take_over(&key, 0, left)?;
                pairs.push((key, take_over(&value, depth - 1, left)?));
            }
            Raw::Table(pairs)
        }
        other => Raw::Other(format!("a {}", other.type_name())),
    })
}
