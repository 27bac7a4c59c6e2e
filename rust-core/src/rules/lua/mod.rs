//! Rule files in a Lua state.
//!
//! All files share one state, in the order of their names, unless a file asks for one of its own. A state has a limit
//! of memory, and each call one of instructions; what goes beyond is stopped and told, and the others go on.

mod convert;
mod library;
mod task;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use mlua::{Function, HookTriggers, Lua, LuaOptions, MultiValue, StdLib, Table, Value, VmState};
use tracing::warn;

pub(crate) use convert::Plain;

use super::task::Task;
use super::{Answer, Evaluate, Fault, Handler, Kind, Notice, Sample, Series, Subject, Wanted};
use crate::daemon::{Daemon, Notification, SourceType};
use crate::ffi::lua as unchecked;

/// How many instructions are counted at a time. Each time costs as much as some hundred of them. Under LuaJIT the
/// memory is looked at then, too, and must not have grown far by that time.
const STEP: u32 = if cfg!(feature = "luajit") { 1000 } else { 5000 };
/// How many times more instructions a file may take while it is loaded.
const LOADING: u64 = 20;
/// How many series a state remembers.
const MAX_SERIES: usize = 65_536;
/// How many sets of handlers.
const MAX_IDS: usize = 256;

/// What a state may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Whether files, processes and the network are out of reach.
    pub sandbox: bool,
    /// How many bytes it may take.
    pub memory: usize,
    /// How many instructions a call may take.
    pub instructions: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sandbox: true,
            memory: 64 << 20,
            instructions: 1_000_000,
        }
    }
}

/// A rule file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, with neither directory nor `.lua`.
    pub name: Arc<str>,
    /// What it says.
    pub text: Arc<[u8]>,
}

impl Source {
    /// Whether it asks for a state of its own: by the line `-- monitor: isolated` before any other than comments.
    pub fn is_isolated(&self) -> bool {
        let text = String::from_utf8_lossy(&self.text);
        text.lines()
            .map(str::trim)
            .take_while(|line| line.is_empty() || line.starts_with("--") || line.starts_with("#!"))
            .any(|line| {
                let comment = line.trim_start_matches('-').trim();
                comment
                    .strip_prefix("monitor:")
                    .is_some_and(|word| word.trim() == "isolated")
            })
    }
}

/// What the state of a daemon's rules is made of.
pub struct Environment {
    /// The daemon that the rules may talk to.
    pub daemon: Arc<dyn Daemon>,
    /// Where modules are.
    pub directory: PathBuf,
    /// What the rules may do.
    pub limits: Limits,
    /// Whether no module counts that others than root and our own user could have written.
    pub strict: bool,
}

/// How a file, or a handler in it, is to be reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The name of the file.
    pub file: Arc<str>,
    /// What is wrong, with the line.
    pub why: String,
}

/// Counts the instructions of the call that is under way.
struct Meter {
    limit: Cell<u64>,
    spent: Cell<u64>,
    call: Cell<i64>,
}

/// A state with what was loaded into it.
struct Inner {
    lua: Lua,
    call_metric: Function,
    call_notification: Function,
    call_other: Function,
    metric: Function,
    /// What the prelude calls: a table of functions by their numbers.
    functions: Table,
    meter: Rc<Meter>,
    /// What of a series is the same for each of its values.
    series: RefCell<HashMap<*const Series, (Arc<Series>, Table)>>,
    /// Which handlers were called together, as a table.
    ids: RefCell<HashMap<Vec<usize>, Table>>,
    /// Which keys of which handler were complained about.
    unknown: RefCell<HashSet<(usize, String)>>,
}

/// Rule files in one Lua state.
pub struct LuaState {
    inner: Rc<Inner>,
    handlers: Vec<Handler>,
}

impl fmt::Debug for LuaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LuaState")
            .field("handlers", &self.handlers)
            .finish_non_exhaustive()
    }
}

impl LuaState {
    /// Loads these files, in this order, with what the state before this one remembers. A file that is broken is
    /// left out.
    pub fn load(
        sources: &[Source],
        environment: &Environment,
        remembered: &Plain,
    ) -> Result<(Self, Vec<Broken>), String> {
        let inner = Inner::new(environment, remembered).map_err(|error| words(&error))?;
        let mut state = Self {
            inner: Rc::new(inner),
            handlers: Vec::new(),
        };
        let mut broken = Vec::new();
        for source in sources {
            let before = state.handlers.len();
            if let Err(why) = state.load_file(source, environment) {
                state.handlers.truncate(before);
                broken.push(Broken {
                    file: Arc::clone(&source.name),
                    why,
                });
            }
        }
        Ok((state, broken))
    }

    /// What the rules remember, for the state after this one.
    pub fn remembered(&self) -> Plain {
        library::remembered(&self.inner.lua)
    }

    /// How much memory it takes.
    pub fn used_memory(&self) -> usize {
        self.inner.lua.used_memory()
    }

    fn load_file(&mut self, source: &Source, environment: &Environment) -> Result<(), String> {
        let inner = Rc::clone(&self.inner);
        let text = skip_first_line_of_script(&source.text);
        let chunk = inner
            .lua
            .load(text)
            .set_name(format!("@{}.lua", source.name))
            .set_mode(mlua::ChunkMode::Text)
            .into_function()
            .map_err(|error| words(&error))?;
        inner
            .meter
            .limit
            .set(environment.limits.instructions.saturating_mul(LOADING));
        let returned = inner.call_other(&chunk, ());
        inner.meter.limit.set(environment.limits.instructions);
        let returned = returned.map_err(|fault| fault.to_string())?;
        let mut returned = returned.into_iter();
        for kind in [Kind::Metric, Kind::Notification] {
            self.declare(&source.name, kind, returned.next().unwrap_or(Value::Nil))?;
        }
        Ok(())
    }

    /// Takes what a file returned: a function, a table of functions, or nothing.
    fn declare(&mut self, file: &Arc<str>, kind: Kind, value: Value) -> Result<(), String> {
        let place = format!("{file}::{}", kind.name());
        match value {
            Value::Nil => Ok(()),
            Value::Function(function) => self.add(file, kind, None, None, function),
            Value::Table(table) if is_declaration(&table) => {
                let (matches, function) = declaration(&place, &table)?;
                self.add(file, kind, None, matches, function)
            }
            Value::Table(table) => {
                let mut named = Vec::new();
                for pair in table.pairs::<Value, Value>() {
                    let (key, value) = pair.map_err(|error| words(&error))?;
                    let name = match &key {
                        Value::String(text) => text.to_string_lossy(),
                        Value::Integer(number) => number.to_string(),
                        Value::Number(number) => number.to_string(),
                        other => {
                            return Err(format!("{place}: a {} is no name", other.type_name()))
                        }
                    };
                    named.push((name, value));
                }
                // A table has no order, so that of the names is as good as any, and the same each time.
                named.sort_by(|(a, _), (b, _)| a.cmp(b));
                for (name, value) in named {
                    let place = format!("{place}::{name}");
                    let (matches, function) = match value {
                        Value::Function(function) => (None, function),
                        Value::Table(table) if is_declaration(&table) => {
                            declaration(&place, &table)?
                        }
                        other => {
                            return Err(format!(
                                "{place}: is a {}, not a function or a table with a handler",
                                other.type_name()
                            ))
                        }
                    };
                    self.add(file, kind, Some(name), matches, function)?;
                }
                Ok(())
            }
            other => Err(format!(
                "{place}: is a {}, not a function or a table of functions",
                other.type_name()
            )),
        }
    }

    fn add(
        &mut self,
        file: &Arc<str>,
        kind: Kind,
        name: Option<String>,
        matches: Option<Wanted>,
        function: Function,
    ) -> Result<(), String> {
        self.handlers.push(Handler {
            file: Arc::clone(file),
            kind,
            name,
            matches,
        });
        let stored = self.inner.functions.raw_set(self.handlers.len(), function);
        stored.map_err(|error| words(&error))
    }
}

impl Evaluate for LuaState {
    type Function = Function;

    fn handlers(&self) -> &[Handler] {
        &self.handlers
    }

    fn call(&mut self, handlers: &[usize], subject: &Subject) -> Vec<Answer<Function>> {
        let answers = match self.inner.call(handlers, subject) {
            Ok(answers) => answers,
            // Not even the arguments could be made.
            Err(error) => {
                let fault = fault(&error);
                return handlers.iter().map(|h| (*h, Err(fault.clone()))).collect();
            }
        };
        let told = |(id, answer): (usize, Result<Value, Fault>)| {
            let task = answer.and_then(|value| self.task(id, value));
            (id, task)
        };
        answers.into_iter().map(told).collect()
    }

    fn ask(&mut self, function: &Function, subject: &Subject) -> Result<bool, Fault> {
        let argument = self.inner.subject(subject).map_err(|error| fault(&error))?;
        let answer = self.inner.call_other(function, argument)?;
        Ok(!matches!(
            answer.into_iter().next(),
            None | Some(Value::Nil | Value::Boolean(false))
        ))
    }
}

impl LuaState {
    fn task(&self, id: usize, value: Value) -> Result<Task<Function>, Fault> {
        let (task, unknown) = task::read(&value).map_err(Fault::Failed)?;
        for key in unknown {
            let mut known = self.inner.unknown.borrow_mut();
            if known.len() < 1024 && known.insert((id, key.clone())) {
                let handler = self.handlers.get(id).map(ToString::to_string);
                warn!(
                    handler = handler.unwrap_or_default(),
                    key, "is not a key of a task and is ignored"
                );
            }
        }
        Ok(task)
    }
}

impl Inner {
    fn new(environment: &Environment, remembered: &Plain) -> mlua::Result<Self> {
        let limits = environment.limits;
        let options = LuaOptions::default();
        let lua = match limits.sandbox {
            true => Lua::new_with(StdLib::ALL_SAFE, options)?,
            false => unchecked::full_library(options),
        };
        let native = library::install(&lua, environment, remembered)?;
        let mark = lua.create_table_from([(1, 0), (2, -1)])?;
        let meter = Rc::new(Meter {
            limit: Cell::new(limits.instructions),
            spent: Cell::new(0),
            call: Cell::new(0),
        });
        let dialect = match cfg!(feature = "luajit") {
            true => None,
            false => {
                let dialect = lua.load(include_str!("dialect.lua")).set_name("=dialect");
                Some(dialect.into_function()?)
            }
        };
        let prelude = lua.load(include_str!("prelude.lua")).set_name("=prelude");
        let (functions, call_metric, call_notification, call_other, metric) =
            prelude.call((native, mark.clone(), limits.sandbox, dialect))?;
        // Under LuaJIT the limit of memory is looked at with that of instructions.
        let memory = match lua.set_memory_limit(limits.memory) {
            Ok(_) => usize::MAX,
            Err(_) => limits.memory,
        };
        let counting = Rc::clone(&meter);
        let triggers = HookTriggers::new().every_nth_instruction(STEP);
        lua.set_global_hook(triggers, move |lua, _| {
            let call: i64 = mark.raw_get(1)?;
            if counting.call.replace(call) != call {
                counting.spent.set(0);
            }
            counting.spent.set(counting.spent.get() + u64::from(STEP));
            if counting.spent.get() > counting.limit.get() {
                mark.raw_set(2, call)?;
                return Err(mlua::Error::runtime(Fault::Instructions));
            }
            if lua.used_memory() > memory {
                lua.gc_collect()?;
                if lua.used_memory() > memory {
                    return Err(mlua::Error::runtime("not enough memory"));
                }
            }
            Ok(VmState::Continue)
        })?;
        Ok(Self {
            lua,
            call_metric,
            call_notification,
            call_other,
            metric,
            functions,
            meter,
            series: RefCell::default(),
            ids: RefCell::default(),
            unknown: RefCell::default(),
        })
    }

    fn call(
        &self,
        handlers: &[usize],
        subject: &Subject,
    ) -> mlua::Result<Vec<(usize, Result<Value, Fault>)>> {
        let ids = self.ids(handlers)?;
        let answers: Option<Table> = match subject {
            Subject::Metric(sample) => {
                let mut arguments = self.metric_arguments(sample)?;
                arguments.push_front(Value::Table(ids));
                self.call_metric.call(arguments)?
            }
            Subject::Notification(notice) => self
                .call_notification
                .call((ids, self.notification_fields(notice)?))?,
        };
        let Some(answers) = answers else {
            return Ok(Vec::new());
        };
        let mut told = Vec::with_capacity(answers.raw_len());
        for answer in answers.sequence_values::<Table>() {
            let answer = answer?;
            let id: usize = answer.raw_get(1)?;
            let fine: bool = answer.raw_get(2)?;
            let value: Value = answer.raw_get(3)?;
            let value = match fine {
                true => Ok(value),
                false => Err(fault_of_value(&value)),
            };
            told.push((id.saturating_sub(1), value));
        }
        if told
            .iter()
            .any(|(_, value)| matches!(value, Err(Fault::Memory)))
        {
            // LuaJIT counts what nobody holds any more, and the next call would pay for it.
            self.lua.gc_collect()?;
        }
        Ok(told)
    }

    /// The numbers of handlers in Lua. The same handlers are called again and again.
    fn ids(&self, handlers: &[usize]) -> mlua::Result<Table> {
        let mut known = self.ids.borrow_mut();
        if let Some(table) = known.get(handlers) {
            return Ok(table.clone());
        }
        let ids = handlers.iter().map(|id| id + 1);
        let table = self.lua.create_sequence_from(ids)?;
        if known.len() >= MAX_IDS {
            known.clear();
        }
        known.insert(handlers.to_vec(), table.clone());
        Ok(table)
    }

    /// Calls a function that is no handler.
    fn call_other(
        &self,
        function: &Function,
        arguments: impl mlua::IntoLuaMulti,
    ) -> Result<MultiValue, Fault> {
        let mut all = arguments
            .into_lua_multi(&self.lua)
            .map_err(|error| fault(&error))?;
        all.push_front(Value::Function(function.clone()));
        let mut returned: MultiValue = self.call_other.call(all).map_err(|error| fault(&error))?;
        match returned.pop_front() {
            Some(Value::Boolean(true)) => Ok(returned),
            _ => Err(fault_of_value(&returned.pop_front().unwrap_or(Value::Nil))),
        }
    }

    fn metric_arguments(&self, sample: &Sample) -> mlua::Result<MultiValue> {
        let mut arguments = MultiValue::with_capacity(4 + sample.values.len());
        arguments.push_back(Value::Table(self.series_table(&sample.series)?));
        arguments.push_back(convert::time(sample.time));
        arguments.push_back(convert::float(sample.interval.as_secs_f64()));
        for number in &sample.values {
            arguments.push_back(convert::number(*number));
        }
        Ok(arguments)
    }

    fn series_table(&self, series: &Arc<Series>) -> mlua::Result<Table> {
        let key = Arc::as_ptr(series);
        if let Some((_, table)) = self.series.borrow().get(&key) {
            return Ok(table.clone());
        }
        let table = self.lua.create_table()?;
        let fields = [
            ("host", &series.host),
            ("plugin", &series.plugin),
            ("plugin_instance", &series.plugin_instance),
            ("type", &series.type_),
            ("type_instance", &series.type_instance),
        ];
        for (name, text) in fields {
            table.raw_set(name, text.as_str())?;
        }
        // As in the original, these count from 0.
        let (names, types) = (self.lua.create_table()?, self.lua.create_table()?);
        for (index, source) in series.sources.iter().enumerate() {
            names.raw_set(index, source.name.as_str())?;
            types.raw_set(index, source_type(source.type_))?;
        }
        table.raw_set("dsnames", names)?;
        table.raw_set("dstypes", types)?;
        let mut known = self.series.borrow_mut();
        if known.len() >= MAX_SERIES {
            known.clear();
        }
        // The series is kept, so that its address stays its own.
        known.insert(key, (Arc::clone(series), table.clone()));
        Ok(table)
    }

    fn notification_fields(&self, notice: &Notice) -> mlua::Result<Table> {
        let Notification {
            severity,
            time,
            message,
            host,
            plugin,
            plugin_instance,
            type_,
            type_instance,
        } = &notice.notification;
        let table = self.lua.create_table()?;
        let fields = [
            ("message", message),
            ("host", host),
            ("plugin", plugin),
            ("plugin_instance", plugin_instance),
            ("type", type_),
            ("type_instance", type_instance),
        ];
        for (name, text) in fields {
            table.raw_set(name, text.as_str())?;
        }
        table.raw_set("time", convert::time(*time))?;
        table.raw_set("severity", *severity as i32)?;
        Ok(table)
    }

    /// What a function is given for a subject.
    fn subject(&self, subject: &Subject) -> mlua::Result<Value> {
        match subject {
            Subject::Metric(sample) => self.metric.call(self.metric_arguments(sample)?),
            Subject::Notification(notice) => Ok(Value::Table(self.notification_fields(notice)?)),
        }
    }
}

/// The name of a type of data source in types.db, in lower case.
fn source_type(type_: SourceType) -> &'static str {
    match type_ {
        SourceType::Counter => "counter",
        SourceType::Gauge => "gauge",
        SourceType::Derive => "derive",
        SourceType::Absolute => "absolute",
    }
}

/// Whether a table declares one handler, rather than several by their names.
fn is_declaration(table: &Table) -> bool {
    matches!(table.raw_get("handler"), Ok(Value::Function(_)))
        && matches!(table.raw_get("match"), Ok(Value::Table(_) | Value::Nil))
}

fn declaration(place: &str, table: &Table) -> Result<(Option<Wanted>, Function), String> {
    for pair in table.pairs::<Value, Value>() {
        let (key, _) = pair.map_err(|error| words(&error))?;
        let known = key
            .as_string()
            .is_some_and(|key| *key == "match" || *key == "handler");
        if !known {
            return Err(format!(
                "{place}: beside match and handler there is {}",
                convert::shown(&key)
            ));
        }
    }
    let function = table.raw_get("handler").map_err(|error| words(&error))?;
    let matches: Option<Table> = table.raw_get("match").map_err(|error| words(&error))?;
    let matches = matches
        .map(|matches| read_match(&format!("{place}: match"), &matches))
        .transpose()?;
    Ok((matches, function))
}

/// Reads which subjects something is about.
fn read_match(place: &str, table: &Table) -> Result<Wanted, String> {
    let mut read = Wanted::default();
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair.map_err(|error| words(&error))?;
        let name = convert::shown(&key);
        if name == "foreign" {
            let Value::Boolean(foreign) = value else {
                return Err(format!("{place}.foreign: is neither true nor false"));
            };
            read.foreign = Some(foreign);
            continue;
        }
        let pattern = |value: &Value| match value {
            Value::String(text) => Ok(text.to_string_lossy()),
            _ => Err(format!("{place}.{name}: is no text")),
        };
        let patterns = match &value {
            Value::Table(list) => list
                .sequence_values::<Value>()
                .map(|value| pattern(&value.map_err(|error| words(&error))?))
                .collect::<Result<_, _>>()?,
            one => vec![pattern(one)?],
        };
        if !FIELDS.contains(&name.as_str()) {
            return Err(format!("{place}: {name} is not a field"));
        }
        read.fields.insert(name, patterns);
    }
    Ok(read)
}

/// A script may begin with a line for the shell.
fn skip_first_line_of_script(text: &[u8]) -> &[u8] {
    match text.strip_prefix(b"#") {
        Some(rest) => {
            let end = rest.iter().position(|byte| *byte == b'\n');
            // The end of the line stays, so that lines are counted right.
            &rest[end.unwrap_or(rest.len())..]
        }
        None => text,
    }
}

/// What a handler may ask for.
const FIELDS: [&str; 7] = [
    "host",
    "plugin",
    "plugin_instance",
    "type",
    "type_instance",
    "origin",
    "severity",
];

const OUT_OF_MEMORY: &str = "not enough memory";

fn fault_of_value(value: &Value) -> Fault {
    match value {
        Value::Boolean(true) => Fault::Instructions,
        Value::Error(error) => fault(error),
        Value::String(text) if text.to_string_lossy().contains(OUT_OF_MEMORY) => Fault::Memory,
        other => Fault::Failed(convert::shown(other)),
    }
}

fn fault(error: &mlua::Error) -> Fault {
    match error {
        mlua::Error::CallbackError { cause, .. } | mlua::Error::WithContext { cause, .. } => {
            fault(cause)
        }
        mlua::Error::MemoryError(_) => Fault::Memory,
        other => {
            let words = words(other);
            match words.contains(OUT_OF_MEMORY) {
                true => Fault::Memory,
                false => Fault::Failed(words),
            }
        }
    }
}

/// An error in one line.
fn words(error: &mlua::Error) -> String {
    match error {
        mlua::Error::CallbackError { cause, .. } | mlua::Error::WithContext { cause, .. } => {
            words(cause)
        }
        mlua::Error::SyntaxError { message, .. }
        | mlua::Error::RuntimeError(message)
        | mlua::Error::MemoryError(message) => one_line(message),
        other => one_line(&other.to_string()),
    }
}

fn one_line(text: &str) -> String {
    let end = text.find("\nstack traceback:").unwrap_or(text.len());
    text[..end].replace('\n', " ")
}

/// The directory of modules below that of the rules.
fn modules(directory: &Path) -> PathBuf {
    directory.join("lib")
}

#[cfg(test)]
mod tests;
