//! The services of a host and the commands that may be run for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{error, info};

use super::block::{Block, Value};
use super::json::{Located, Node};
use super::parameters::{self, Parameters};
use super::{JsonFile, Problems};
use crate::files::{self, FileError, Privacy};
use crate::secret::Secret;

/// How long a command may take that does not say so itself.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a command may take that is just a line for the shell, as sites have had them for years.
const SHELL_LINE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How much of a command's output is sent, in bytes.
const DEFAULT_MAX_OUTPUT: usize = 64 * 1024;
/// The most that may be asked for. A result must fit into a packet even if every byte needs escaping.
pub(crate) const MAX_MAX_OUTPUT: usize = 1024 * 1024;
/// The longest timeout that may be asked for: a week.
const MAX_TIMEOUT_SECONDS: f64 = 604_800.0;
/// The longest cooldown that may be asked for: a day.
const MAX_COOLDOWN_SECONDS: f64 = 86_400.0;
/// More of one command at once than the engine ever runs.
const MAX_CONCURRENCY: usize = 1000;

/// What to execute. A command line may hold secrets, so `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub enum Program {
    /// A line for `/bin/sh -c`.
    Shell(String),
    /// A program and its arguments.
    Argv(Vec<String>),
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Program::Shell(_) => "Shell([redacted])",
            Program::Argv(_) => "Argv([redacted])",
        })
    }
}

/// A command that may be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandSpec {
    /// What to execute.
    pub program: Program,
    /// When to end it.
    pub timeout: Duration,
    /// How many bytes of its output are sent, and how many of its standard error.
    pub max_output: usize,
    /// Who runs it, where that is not the daemon's user.
    pub user: Option<String>,
    /// Its group, where that is not the user's.
    pub group: Option<String>,
    /// What its environment holds besides what every command is given.
    pub env: BTreeMap<String, Secret>,
    /// Where it runs, where that is not `/`.
    pub cwd: Option<PathBuf>,
    /// How long after a start it is not started again.
    pub cooldown: Option<Duration>,
    /// How many of it may run at once, beside other commands of the service that say the same. Without it, it
    /// has the service for itself.
    pub concurrency: Option<usize>,
    /// What a sender may choose.
    pub parameters: Parameters,
}

impl CommandSpec {
    /// A command that says nothing but what to execute.
    pub fn new(program: Program, timeout: Duration) -> Self {
        Self {
            program,
            timeout,
            max_output: DEFAULT_MAX_OUTPUT,
            user: None,
            group: None,
            env: BTreeMap::new(),
            cwd: None,
            cooldown: None,
            concurrency: None,
            parameters: Parameters::default(),
        }
    }
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its commands by name.
    pub commands: BTreeMap<String, CommandSpec>,
    /// The paths of the service `collectd`.
    pub paths: BTreeMap<String, String>,
}

/// The services of a host by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(pub BTreeMap<String, Service>);

/// Keys that only the service `collectd` has.
const COLLECTD_PATHS: [&str; 5] = [
    "CommandPath",
    "ConfigPath",
    "PIDPath",
    "ReplacerReportPath",
    "LuaPath",
];

impl Services {
    /// Reads the value of `Services` in a JSON file.
    pub(super) fn from_json(value: Located, problems: &mut Problems) -> Self {
        let mut services = Self::default();
        let Node::Object(entries) = value.node else {
            problems.json(
                value.at,
                "Services",
                format!("must be an object, not {}", value.node.kind()),
            );
            return services;
        };
        for (name, value) in entries {
            let path = format!("Services.{name}");
            let at = value.at;
            let Node::Object(members) = value.node else {
                problems.json(
                    at,
                    &path,
                    format!("must be an object, not {}", value.node.kind()),
                );
                continue;
            };
            let service = service_from_json(&name, &path, members, problems);
            if services.0.insert(name, service).is_some() {
                problems.json(at, &path, "is there twice");
            }
        }
        services
    }

    /// Adds a `<Service NAME>` block of collectd.conf.
    pub(super) fn add_block(&mut self, block: &Block, problems: &mut Problems) {
        let [Value::Text(name)] = block.values.as_slice() else {
            problems.block("Service", "needs a name: <Service \"name\">");
            return;
        };
        let path = format!("Service \"{name}\"");
        let mut service = Service::default();
        for option in &block.children {
            if option.is("Command") && option.children.is_empty() {
                let [Value::Text(command), Value::Text(line)] = option.values.as_slice() else {
                    problems.block(
                        &format!("{path}: Command"),
                        "needs a name and a line for the shell",
                    );
                    continue;
                };
                if service
                    .commands
                    .insert(command.clone(), shell_line(line.clone()))
                    .is_some()
                {
                    problems.block(&format!("{path}: Command \"{command}\""), "is there twice");
                }
            } else if let Some(key) = collectd_path(name, &option.key) {
                match option.values.as_slice() {
                    [Value::Text(value)] => {
                        drop(service.paths.insert(key.to_owned(), value.clone()))
                    }
                    _ => problems.block(&format!("{path}: {key}"), "must be a string"),
                }
            } else {
                problems.block(
                    &format!("{path}: {}", option.key),
                    "is not an option of a service",
                );
            }
        }
        if self.0.insert(name.clone(), service).is_some() {
            problems.block(&path, "is there twice");
        }
    }
}

/// Block keys have no case, so the one of the table is returned.
fn collectd_path(service: &str, key: &str) -> Option<&'static str> {
    if service != "collectd" {
        return None;
    }
    COLLECTD_PATHS
        .into_iter()
        .find(|path| path.eq_ignore_ascii_case(key))
}

fn service_from_json(
    name: &str,
    path: &str,
    members: Vec<(String, Located)>,
    problems: &mut Problems,
) -> Service {
    let mut service = Service::default();
    for (key, value) in members {
        let path = format!("{path}.{key}");
        match key.as_str() {
            "commands" | "Commands" => commands_from_json(&path, value, &mut service, problems),
            key if name == "collectd" && COLLECTD_PATHS.contains(&key) => match value.node {
                Node::Text(text) => {
                    if service.paths.insert(key.to_owned(), text).is_some() {
                        problems.json(value.at, &path, "is there twice");
                    }
                }
                other => problems.json(
                    value.at,
                    &path,
                    format!("must be a string, not {}", other.kind()),
                ),
            },
            _ => problems.json(value.at, &path, "is not an option of a service"),
        }
    }
    service
}

fn commands_from_json(path: &str, value: Located, service: &mut Service, problems: &mut Problems) {
    let Node::Object(entries) = value.node else {
        problems.json(
            value.at,
            path,
            format!("must be an object, not {}", value.node.kind()),
        );
        return;
    };
    for (name, value) in entries {
        let path = format!("{path}.{name}");
        let at = value.at;
        let Some(command) = command_from_json(&path, value, problems) else {
            continue;
        };
        if service.commands.insert(name, command).is_some() {
            problems.json(at, &path, "is there twice");
        }
    }
}

fn shell_line(line: String) -> CommandSpec {
    CommandSpec::new(Program::Shell(line), SHELL_LINE_TIMEOUT)
}

fn command_from_json(path: &str, value: Located, problems: &mut Problems) -> Option<CommandSpec> {
    let at = value.at;
    let members = match value.node {
        Node::Text(line) if line.contains('\0') => {
            problems.json(at, path, "must not hold a NUL character");
            return None;
        }
        Node::Text(line) => return Some(shell_line(line)),
        Node::Object(members) => members,
        other => {
            problems.json(
                at,
                path,
                format!("must be a string or an object, not {}", other.kind()),
            );
            return None;
        }
    };
    let mut program = None;
    let mut spec = CommandSpec::new(Program::Argv(Vec::new()), DEFAULT_TIMEOUT);
    let mut seen = BTreeSet::new();
    for (key, value) in members {
        let path = format!("{path}.{key}");
        let at = value.at;
        if !seen.insert(key.clone()) {
            problems.json(at, &path, "is there twice");
            continue;
        }
        match key.as_str() {
            "shell" | "argv" if program.is_some() => {
                problems.json(at, &path, "a command has one of shell and argv, once");
            }
            "shell" | "argv" => match executable(&key, value.node) {
                Ok(executable) => program = Some(executable),
                Err(what) => problems.json(at, &path, what),
            },
            "parameters" => spec.parameters = Parameters::from_json(&path, value, problems),
            _ => {
                if let Err(what) = option(&mut spec, &key, value.node) {
                    problems.json(at, &path, what);
                }
            }
        }
    }
    let Some(program) = program else {
        if !seen.contains("shell") && !seen.contains("argv") {
            problems.json(at, path, "needs shell or argv");
        }
        return None;
    };
    if let Err(what) = parameters::check(&program, &spec.parameters) {
        problems.json(at, path, what);
    }
    spec.program = program;
    Some(spec)
}

fn executable(key: &str, node: Node) -> Result<Program, String> {
    match (key, node) {
        ("shell", Node::Text(line)) if !line.contains('\0') => Ok(Program::Shell(line)),
        ("shell", _) => Err("must be a string without NUL characters".to_owned()),
        (_, Node::List(items)) => argv(items)
            .map(Program::Argv)
            .ok_or_else(|| ARGV.to_owned()),
        _ => Err(ARGV.to_owned()),
    }
}

/// Takes an option of a command that says how, not what.
fn option(spec: &mut CommandSpec, key: &str, node: Node) -> Result<(), String> {
    let text = |node| match node {
        Node::Text(text) if !text.is_empty() && !text.contains('\0') => Ok(text),
        _ => Err("must be a string that is not empty and holds no NUL character".to_owned()),
    };
    let seconds = |node, max| match node {
        Node::Number(seconds) if (0.001..=max).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("must be a number of seconds from 0.001 to {max}")),
    };
    match key {
        "timeout" => spec.timeout = seconds(node, MAX_TIMEOUT_SECONDS)?,
        "cooldown" => spec.cooldown = Some(seconds(node, MAX_COOLDOWN_SECONDS)?),
        "max_output" => match node {
            Node::Number(bytes) if is_whole(bytes, MAX_MAX_OUTPUT) => {
                spec.max_output = to_whole(bytes);
            }
            _ => {
                return Err(format!(
                    "must be a whole number of bytes from 0 to {MAX_MAX_OUTPUT}"
                ))
            }
        },
        "concurrency" => match node {
            Node::Number(number) if number >= 1.0 && is_whole(number, MAX_CONCURRENCY) => {
                spec.concurrency = Some(to_whole(number));
            }
            _ => {
                return Err(format!(
                    "must be a whole number from 1 to {MAX_CONCURRENCY}"
                ))
            }
        },
        "user" => spec.user = Some(text(node)?),
        "group" => spec.group = Some(text(node)?),
        "cwd" => {
            let path = PathBuf::from(text(node)?);
            if !path.is_absolute() {
                return Err("must be an absolute path".to_owned());
            }
            spec.cwd = Some(path);
        }
        "env" => spec.env = environment(node)?,
        _ => return Err("is not an option of a command".to_owned()),
    }
    Ok(())
}

fn environment(node: Node) -> Result<BTreeMap<String, Secret>, String> {
    const WRONG: &str = "must be an object of strings without NUL characters";
    let Node::Object(members) = node else {
        return Err(WRONG.to_owned());
    };
    let mut variables = BTreeMap::new();
    for (name, value) in members {
        let named = !name.is_empty() && !name.contains(['=', '\0']);
        match value.node {
            Node::Text(text) if named && !text.contains('\0') => {
                if variables.insert(name, Secret::new(text)).is_some() {
                    return Err("names a variable twice".to_owned());
                }
            }
            Node::Text(_) if !named => {
                return Err("names a variable that no environment can have".to_owned())
            }
            _ => return Err(WRONG.to_owned()),
        }
    }
    Ok(variables)
}

const ARGV: &str =
    "must be a list of strings without NUL characters, of which the first is the program";

fn argv(items: Vec<Located>) -> Option<Vec<String>> {
    let mut argv = Vec::with_capacity(items.len());
    for item in items {
        match item.node {
            Node::Text(text) if !text.contains('\0') => argv.push(text),
            _ => return None,
        }
    }
    argv.first()
        .is_some_and(|program| !program.is_empty())
        .then_some(argv)
}

fn is_whole(number: f64, max: usize) -> bool {
    number.fract() == 0.0 && number >= 0.0 && number <= max as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "is_whole was asked before"
)]
fn to_whole(number: f64) -> usize {
    number as usize
}

/// Where services are looked up: afresh for each command, so that an edit needs no restart.
#[derive(Debug)]
pub struct ServicesSource {
    file: Option<PathBuf>,
    from_block: Option<Services>,
    /// The text that was read last, whether it was good or not; none if it could not be read.
    last_text: Option<Vec<u8>>,
    last_error: Option<String>,
    from_file: Option<Services>,
}

impl ServicesSource {
    pub(super) fn new(file: Option<&JsonFile>, from_block: Option<Services>) -> Self {
        Self {
            file: file.map(|file| file.path.clone()),
            from_block,
            last_text: file.map(|file| file.text.clone().into_bytes()),
            last_error: None,
            from_file: file.and_then(|file| file.services.clone()),
        }
    }

    /// The services as they are now, or as they were when they were last good.
    pub fn current(&mut self) -> Option<&Services> {
        if let Some(path) = &self.file {
            match read_regular_file(path) {
                Ok(text) if self.last_text.as_ref() == Some(&text) => {}
                Ok(text) => self.take(text),
                Err(error) => {
                    let what = format!("{}: cannot be read: {error}", path.display());
                    self.last_text = None;
                    self.fail(what);
                }
            }
        }
        self.from_file.as_ref().or(self.from_block.as_ref())
    }

    /// Why the last edit is not in force.
    pub fn error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    fn take(&mut self, text: Vec<u8>) {
        let Some(path) = &self.file else { return };
        match JsonFile::parse(path, &text) {
            Ok(file) => {
                if self.last_error.take().is_some() || self.from_file != file.services {
                    info!(
                        "{} is read again; its services are in force",
                        path.display()
                    );
                }
                self.from_file = file.services;
            }
            Err(problems) => self.fail(problems.to_string()),
        }
        self.last_text = Some(text);
    }

    /// Says once what is wrong.
    fn fail(&mut self, what: String) {
        if self.last_error.as_ref() != Some(&what) {
            error!("the services are those of the last good version, because: {what}");
            self.last_error = Some(what);
        }
    }
}

/// Reads a file that decides what is run, and that nobody but root and our own user can have written. Many sites
/// have it so that others can read it; that is no reason to break them.
pub(crate) fn read_regular_file(path: &Path) -> io::Result<Vec<u8>> {
    files::read(path, Privacy::Public).map_err(|error| match error {
        FileError::Io(_, error) => error,
        FileError::Unsafe {
            path: at,
            what,
            remedy,
        } => {
            let place = match at == path {
                true => String::new(),
                false => format!("{} ", at.display()),
            };
            io::Error::other(format!("{place}{what} (run: {remedy})"))
        }
    })
}
