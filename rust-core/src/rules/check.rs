//! What can be said about rule files without running them: which services and commands they name, and what in them
//! does not work in a sandbox or in both kinds of Lua.

use std::fmt;

use super::matching::Field;
use super::{Handler, Kind};
use crate::settings::Services;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// It does not work.
    Error,
    /// It may not do what it seems to.
    Warning,
}

impl Weight {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Weight::Error => "error",
            Weight::Warning => "warning",
        }
    }
}

/// Something in a rule file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The name of the file, without `.lua`, and of the handler.
    pub place: String,
    /// In which line, if that is known.
    pub line: Option<usize>,
    /// How much it matters.
    pub weight: Weight,
    /// What it is.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}: {}", self.weight.name(), self.what)
    }
}

/// A piece of Lua.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a str),
    /// A string, if nothing in it is escaped.
    Text(Option<String>),
    Number,
    Symbol(&'a str),
}

/// Cuts a text into tokens with their lines. What is no Lua is somebody else's to tell.
fn tokens(text: &str) -> Vec<(usize, Token<'_>)> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = text;
    // The first line of a script.
    if rest.starts_with('#') {
        rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
    }
    while let Some(char) = rest.chars().next() {
        let started = line;
        let (length, token) = match char {
            '\n' | ' ' | '\t' | '\r' => (1, None),
            '-' if rest.starts_with("--") => {
                let length = match long_bracket(&rest[2..]) {
                    Some((_, length)) => 2 + length,
                    None => rest.find('\n').unwrap_or(rest.len()),
                };
                (length, None)
            }
            '[' => match long_bracket(rest) {
                Some((content, length)) => (length, Some(Token::Text(Some(content.to_owned())))),
                None => (1, Some(Token::Symbol("["))),
            },
            '"' | '\'' => {
                let (content, length) = quoted(rest, char);
                (length, Some(Token::Text(content)))
            }
            '0'..='9' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.');
                (end.unwrap_or(rest.len()), Some(Token::Number))
            }
            char if char.is_ascii_alphabetic() || char == '_' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let end = end.unwrap_or(rest.len());
                (end, Some(Token::Name(&rest[..end])))
            }
            char => {
                let double = ["//", "<<", ">>", "~=", "==", "<=", ">=", "..", "::"];
                let length = match double.iter().any(|symbol| rest.starts_with(symbol)) {
                    true => 2,
                    false => char.len_utf8(),
                };
                (length, Some(Token::Symbol(&rest[..length])))
            }
        };
        let (piece, behind) = rest.split_at(length);
        line += piece.matches('\n').count();
        rest = behind;
        tokens.extend(token.map(|token| (started, token)));
    }
    tokens
}

/// `[[…]]` or `[=[…]=]`, with its length.
fn long_bracket(text: &str) -> Option<(&str, usize)> {
    let level = text.strip_prefix('[')?;
    let equals = level.len() - level.trim_start_matches('=').len();
    let content = level[equals..].strip_prefix('[')?;
    let close = format!("]{}]", "=".repeat(equals));
    let begin = text.len() - content.len();
    match content.find(&close) {
        Some(end) => Some((&content[..end], begin + end + close.len())),
        None => Some((content, text.len())),
    }
}

fn quoted(text: &str, quote: char) -> (Option<String>, usize) {
    let mut escaped = false;
    let mut plain = true;
    for (at, char) in text.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => (escaped, plain) = (true, false),
            '\n' => return (None, at),
            char if char == quote => {
                return (plain.then(|| text[1..at].to_owned()), at + 1);
            }
            _ => {}
        }
    }
    (None, text.len())
}

/// What a table constructor names.
#[derive(Default)]
struct Named {
    service: Option<String>,
    host: bool,
    command: Option<(usize, String)>,
    /// The names that stand in `escalate` by themselves.
    steps: Vec<(usize, String)>,
    is_escalate: bool,
}

/// Looks for the services and commands that a file names and the host does not have. What a rule puts together while
/// it runs is seen when it runs.
pub fn check_commands(file: &str, text: &str, services: &Services) -> Vec<Finding> {
    let tokens = tokens(text);
    let mut findings = Vec::new();
    let mut tables: Vec<Named> = Vec::new();
    let mut key: Option<&str> = None;
    for (at, (line, token)) in tokens.iter().enumerate() {
        match token {
            Token::Symbol("{") => tables.push(Named {
                is_escalate: key.take() == Some("escalate"),
                ..Named::default()
            }),
            Token::Symbol("}") => {
                if let Some(named) = tables.pop() {
                    let inner = close(file, named, services, &mut findings);
                    if let Some(outer) = tables.last_mut() {
                        outer.steps.extend(inner);
                    }
                }
                key = None;
            }
            Token::Symbol("=") => {
                key = match at.checked_sub(1).map(|before| &tokens[before].1) {
                    Some(Token::Name(name)) => Some(name),
                    _ => None,
                };
            }
            Token::Text(Some(text)) => {
                let ends = matches!(
                    tokens.get(at + 1),
                    None | Some((_, Token::Symbol("," | ";" | "}")))
                );
                let key = key.take();
                let Some(table) = tables.last_mut().filter(|_| ends) else {
                    continue;
                };
                match key {
                    Some("service") => table.service = Some(text.clone()),
                    Some("command") => table.command = Some((*line, text.clone())),
                    Some("escalate") => table.steps.push((*line, text.clone())),
                    Some("host") => table.host = true,
                    None if table.is_escalate => table.steps.push((*line, text.clone())),
                    _ => {}
                }
            }
            Token::Name(_) => {
                if let (Some("host"), Some(table)) = (key, tables.last_mut()) {
                    table.host = true;
                }
                key = None;
            }
            _ => key = None,
        }
    }
    findings
}

/// A table has ended. Gives back what belongs to the one around it.
fn close(
    file: &str,
    named: Named,
    services: &Services,
    findings: &mut Vec<Finding>,
) -> Vec<(usize, String)> {
    if named.is_escalate {
        return named.steps;
    }
    let (Some(service), false) = (&named.service, named.host) else {
        // Another host has its own services, and a name that is no literal can be any.
        return Vec::new();
    };
    for (line, command) in named.command.iter().chain(&named.steps) {
        let what = match services.0.get(service) {
            None => format!("there is no service {service:?}"),
            Some(known) if !known.commands.contains_key(command) => {
                format!("the service {service:?} has no command {command:?}")
            }
            Some(_) => continue,
        };
        findings.push(Finding {
            place: file.to_owned(),
            line: Some(*line),
            weight: Weight::Error,
            what,
        });
    }
    Vec::new()
}

/// Functions and libraries that a sandbox refuses. A name alone is a library with everything in it.
const REFUSED: [(&str, &[&str]); 7] = [
    ("io", &[]),
    ("package", &[]),
    ("ffi", &[]),
    ("jit", &[]),
    (
        "os",
        &[
            "execute",
            "exit",
            "getenv",
            "remove",
            "rename",
            "setlocale",
            "tmpname",
        ],
    ),
    (
        "debug",
        &[
            "getinfo",
            "getlocal",
            "getregistry",
            "gethook",
            "sethook",
            "setlocal",
            "getupvalue",
            "setupvalue",
        ],
    ),
    ("string", &["dump"]),
];

/// What only one kind of Lua has.
const ONLY_NEW: [(&str, &[&str]); 3] = [
    ("table", &["unpack", "pack", "move"]),
    ("math", &["type", "tointeger", "ult"]),
    ("string", &["pack", "unpack", "packsize"]),
];

/// Looks for what the sandbox refuses, and for what is not in the dialect that rules are written in, Lua 5.1.
pub fn check_dialect(file: &str, text: &str, sandbox: bool) -> Vec<Finding> {
    let tokens = tokens(text);
    let mut findings = Vec::new();
    let mut find = |line: usize, weight, what: String| {
        findings.push(Finding {
            place: file.to_owned(),
            line: Some(line),
            weight,
            what,
        });
    };
    const SETTING: &str = "is refused by the sandbox; a rule that needs it needs `Sandbox false'";
    const NEW: &str = "is not in the dialect of Lua 5.1 and does not work with LuaJIT";
    for (at, (line, token)) in tokens.iter().enumerate() {
        let symbol = |offset: usize, text: &str| {
            tokens.get(at + offset).map(|(_, token)| token) == Some(&Token::Symbol(text))
        };
        let before = at.checked_sub(1).map(|before| &tokens[before].1);
        let is_field = matches!(before, Some(Token::Symbol("." | ":")));
        let is_key = symbol(1, "=") && !matches!(before, None | Some(Token::Name(_)));
        match token {
            Token::Name(library) if !is_field => {
                let member = match tokens.get(at + 2) {
                    Some((_, Token::Name(member))) if symbol(1, ".") => Some(*member),
                    _ => None,
                };
                let has = |list: &[(&str, &[&str])]| {
                    let members = list.iter().find(|(name, _)| name == library)?.1;
                    let member = member?;
                    (members.is_empty() || members.contains(&member)).then_some(member)
                };
                if let Some(member) = has(&REFUSED).filter(|_| sandbox) {
                    find(
                        *line,
                        Weight::Error,
                        format!("{library}.{member} {SETTING}"),
                    );
                } else if let Some(member) = has(&ONLY_NEW) {
                    find(*line, Weight::Warning, format!("{library}.{member} {NEW}"));
                } else if sandbox && !is_key && ["dofile", "loadfile"].contains(library) {
                    find(*line, Weight::Error, format!("{library} {SETTING}"));
                } else if *library == "goto" {
                    find(*line, Weight::Warning, format!("goto {NEW}"));
                }
            }
            Token::Symbol(operator @ ("//" | "<<" | ">>" | "&" | "|" | "~")) => {
                find(
                    *line,
                    Weight::Warning,
                    format!("the operator {operator} {NEW}"),
                );
            }
            Token::Symbol("<") if symbol(2, ">") => {
                let word = tokens.get(at + 1).map(|(_, token)| token);
                if let Some(Token::Name(word @ ("const" | "close"))) = word {
                    find(*line, Weight::Warning, format!("<{word}> {NEW}"));
                }
            }
            _ => {}
        }
    }
    findings
}

/// Looks for declared matches that can never match.
pub fn check_matches(handlers: &[Handler]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for handler in handlers {
        let Some(wanted) = &handler.matches else {
            continue;
        };
        for (name, patterns) in &wanted.fields {
            let what = match Field::from_name(name) {
                Some(Field::Severity) if handler.kind == Kind::Metric => {
                    "match names severity, which values do not have".to_owned()
                }
                Some(Field::Severity) if !patterns.iter().any(|pattern| severity_fits(pattern)) => {
                    "match names no severity: they are FAILURE, WARNING and OKAY".to_owned()
                }
                Some(_) if excludes_itself(patterns) => {
                    format!("match excludes every {name} that it names")
                }
                // A file that names others is broken.
                Some(_) | None => continue,
            };
            findings.push(Finding {
                place: handler.to_string(),
                line: None,
                weight: Weight::Error,
                what,
            });
        }
    }
    findings
}

fn severity_fits(pattern: &str) -> bool {
    let pattern = super::glob::Pattern::new(pattern.strip_prefix('!').unwrap_or(pattern));
    ["FAILURE", "WARNING", "OKAY"]
        .iter()
        .any(|name| pattern.matches(name))
}

/// Whether every pattern that a list names stands in it with a `!`, too.
fn excludes_itself(patterns: &[String]) -> bool {
    let (not, mut named): (Vec<_>, Vec<_>) = patterns.iter().partition(|p| p.starts_with('!'));
    let count = named.len();
    named.retain(|name| !not.iter().any(|not| not[1..] == **name || &not[1..] == "*"));
    named.is_empty() && (count > 0 || not.iter().any(|not| &not[1..] == "*"))
}

/// The findings of files, in the order of files and lines.
pub fn sort(findings: &mut [Finding]) {
    findings.sort_by(|a, b| (&a.place, a.line, a.weight).cmp(&(&b.place, b.line, b.weight)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Wanted;
    use crate::settings::{CommandSpec, Program, Service};
    use std::time::Duration;

    fn services() -> Services {
        let spec = CommandSpec::new(Program::Shell("true".into()), Duration::from_secs(1));
        let commands = ["restart", "reset"].map(|name| (name.to_owned(), spec.clone()));
        let service = Service {
            commands: commands.into(),
            ..Service::default()
        };
        Services([("web".to_owned(), service)].into())
    }

    fn told(findings: Vec<Finding>) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn services_and_commands_that_there_are_not_are_found() {
        let check = |text| told(check_commands("f", text, &services()));
        assert_eq!(
            check(
                r#"
local text = 'service = "db", command = "x"' -- { service = "db", command = "x" }
return function(m)
  if m.plugin == "a" then return { service = "web", command = "restart" } end
  if m.plugin == "b" then return { service = "web", command = "reload", } end
  return { command = 'x'; service = [[db]] }
end"#
            ),
            [
                "f:5: error: the service \"web\" has no command \"reload\"",
                "f:6: error: there is no service \"db\""
            ]
        );
        assert_eq!(
            check(
                r#"return { service = "web", command = "restart", verify = { within = "1m" },
                     escalate = { "reset", "reboot", { service = "host", command = "reboot" } } }"#
            ),
            [
                "f:2: error: there is no service \"host\"",
                "f:2: error: the service \"web\" has no command \"reboot\""
            ]
        );
        // Nobody knows what these are.
        for text in [
            r#"return { service = "db" .. n, command = "x" }"#,
            r#"return { service = "web", command = "x" .. n }"#,
            r#"return { service = name, command = "x" }"#,
            r#"return { service = "db", command = "x", host = "other" }"#,
            r#"return { service = "db", command = "x", host = m.host }"#,
            r#"return { match = { plugin = "x" }, handler = h }"#,
            "--[==[ { service = \"db\", command = \"x\" } ]] ]==] return nil",
        ] {
            assert_eq!(check(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn what_the_sandbox_refuses_is_found() {
        let text = "#!/usr/bin/lua\nlocal io = x.io.y\nos.execute('x')\nprint(os.time(), io.open)\nlocal t = { dofile = 1 }\ndofile('x')";
        assert_eq!(
            told(check_dialect("f", text, true)),
            [
                "f:3: error: os.execute is refused by the sandbox; a rule that needs it needs `Sandbox false'",
                "f:4: error: io.open is refused by the sandbox; a rule that needs it needs `Sandbox false'",
                "f:6: error: dofile is refused by the sandbox; a rule that needs it needs `Sandbox false'",
            ]
        );
        assert_eq!(check_dialect("f", text, false), []);
    }

    #[test]
    fn what_is_not_in_the_dialect_is_found() {
        let lines = [
            ("local a = b // 2", "the operator //"),
            ("local a <const> = 1", "<const>"),
            ("return a & b", "the operator &"),
            ("return table.unpack(t)", "table.unpack"),
            ("goto done", "goto"),
        ];
        for (text, what) in lines {
            assert_eq!(
                told(check_dialect("f", text, true)),
                [format!("f:1: warning: {what} is not in the dialect of Lua 5.1 and does not work with LuaJIT")]
            );
        }
        for text in [
            "return a ~= b, a <= b, a .. b, '//' -- //",
            "if a < b and c > d then end",
            "x.goto = 1",
        ] {
            assert_eq!(check_dialect("f", text, true), [], "{text}");
        }
    }

    #[test]
    fn matches_that_never_match_are_found() {
        let check = |kind, field: &str, patterns: &[&str]| {
            let patterns = patterns.iter().map(ToString::to_string).collect();
            let handler = Handler {
                file: "f".into(),
                kind,
                name: None,
                matches: Some(Wanted {
                    fields: [(field.to_owned(), patterns)].into(),
                    foreign: None,
                }),
            };
            check_matches(&[handler]).pop().map(|finding| finding.what)
        };
        let metric = |field, patterns| check(Kind::Metric, field, patterns);
        assert_eq!(metric("plugin", &["cpu", "!x*"]), None);
        assert_eq!(metric("plugin", &["!x"]), None);
        assert_eq!(
            metric("plugin", &["cpu", "!cpu"]).as_deref(),
            Some("match excludes every plugin that it names")
        );
        assert_eq!(
            metric("plugin", &["!*"]).as_deref(),
            Some("match excludes every plugin that it names")
        );
        assert!(metric("severity", &["OKAY"]).is_some());
        let notification = |patterns| check(Kind::Notification, "severity", patterns);
        assert_eq!(notification(&["FAIL*"]), None);
        assert_eq!(notification(&["!OKAY"]), None);
        assert!(notification(&["failure"]).is_some());
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_looked_at(text in r#"[a-z{}=,;"'\[\]\\\-\n é.<>#/]{0,60}"#) {
            check_commands("f", &text, &services());
            check_dialect("f", &text, true);
        }
    }
}
