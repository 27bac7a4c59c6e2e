//! What a sender may choose of a command: words that its configuration declares, with type and pattern.
//!
//! A value stays within the word that names it and never meets a shell.

use std::collections::{BTreeMap, BTreeSet};

use regex_lite::Regex;

use super::json::{Located, Node};
use super::services::Program;
use super::Problems;

/// The longest value of a parameter, in bytes.
const MAX_VALUE: usize = 4096;

/// A value that came with a message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Argument {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// `true` or `false`.
    Flag(bool),
}

impl Argument {
    fn text(&self) -> String {
        match self {
            Argument::Text(text) => text.clone(),
            Argument::Integer(number) => number.to_string(),
            Argument::Flag(flag) => flag.to_string(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Text,
    Integer,
    Flag,
}

/// A pattern that a whole value must match.
#[derive(Clone, Debug)]
struct Pattern(Regex);

impl Pattern {
    fn new(text: &str) -> Option<Self> {
        // The pattern must be one by itself, or a parenthesis in it could end the group around it.
        Regex::new(text).ok()?;
        Regex::new(&format!(r"\A(?:{text})\z")).ok().map(Self)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Parameter {
    type_: Type,
    pattern: Option<Pattern>,
    default: Option<Argument>,
}

impl Parameter {
    fn check(&self, argument: &Argument) -> Result<(), &'static str> {
        match (self.type_, argument) {
            (Type::Text, Argument::Text(text)) if text.contains('\0') => {
                return Err("must not hold a NUL character")
            }
            (Type::Text, Argument::Text(text)) if text.len() > MAX_VALUE => {
                return Err("is too long")
            }
            (Type::Text, Argument::Text(_))
            | (Type::Integer, Argument::Integer(_))
            | (Type::Flag, Argument::Flag(_)) => {}
            (Type::Text, _) => return Err("must be a string"),
            (Type::Integer, _) => return Err("must be a whole number"),
            (Type::Flag, _) => return Err("must be true or false"),
        }
        match &self.pattern {
            Some(pattern) if !pattern.0.is_match(&argument.text()) => {
                Err("does not match its pattern")
            }
            _ => Ok(()),
        }
    }
}

/// The parameters of a command, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters(BTreeMap<String, Parameter>);

impl Parameters {
    pub(super) fn from_json(path: &str, value: Located, problems: &mut Problems) -> Self {
        let mut parameters = BTreeMap::new();
        let Node::Object(members) = value.node else {
            let what = format!("must be an object, not {}", value.node.kind());
            problems.json(value.at, path, what);
            return Self::default();
        };
        for (name, value) in members {
            let path = format!("{path}.{name}");
            let at = value.at;
            let nameable = name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if name.is_empty() || !nameable {
                problems.json(at, &path, "is not a name of letters, digits, - and _");
            }
            let parameter = match parameter(&path, value, problems) {
                Ok(parameter) => parameter,
                Err(what) => {
                    problems.json(at, &path, what);
                    continue;
                }
            };
            if parameters.insert(name, parameter).is_some() {
                problems.json(at, &path, "is there twice");
            }
        }
        Self(parameters)
    }

    /// What to execute for these arguments, or which of them is wrong and why.
    pub fn fill(
        &self,
        program: &Program,
        arguments: &BTreeMap<String, Argument>,
    ) -> Result<Program, String> {
        if let Some(name) = arguments.keys().find(|name| !self.0.contains_key(*name)) {
            return Err(format!("the command has no parameter {name:?}"));
        }
        let mut values = BTreeMap::new();
        for (name, parameter) in &self.0 {
            let argument = arguments
                .get(name)
                .or(parameter.default.as_ref())
                .ok_or_else(|| format!("the parameter {name:?} is missing"))?;
            parameter
                .check(argument)
                .map_err(|what| format!("the parameter {name:?} {what}"))?;
            values.insert(name.as_str(), argument.text());
        }
        let argv = match program {
            Program::Argv(argv) if !self.0.is_empty() => argv,
            other => return Ok(other.clone()),
        };
        let mut filled = Vec::with_capacity(argv.len());
        for word in argv {
            let mut text = String::new();
            for piece in pieces(word)? {
                match piece {
                    Piece::Literal(literal) => text.push_str(literal),
                    Piece::Parameter(name) => {
                        let value = values.get(name).map_or("", String::as_str);
                        // What was meant as a value must not be taken for an option.
                        let is_text = self.0.get(name).is_some_and(|p| p.type_ == Type::Text);
                        if text.is_empty() && is_text && value.starts_with('-') {
                            return Err(format!(
                                "the parameter {name:?} must not begin with a minus sign"
                            ));
                        }
                        text.push_str(value);
                    }
                }
            }
            filled.push(text);
        }
        Ok(Program::Argv(filled))
    }
}

fn parameter(path: &str, value: Located, problems: &mut Problems) -> Result<Parameter, String> {
    let Node::Object(members) = value.node else {
        return Err(format!("must be an object, not {}", value.node.kind()));
    };
    let (mut type_, mut pattern, mut default) = (None, None, None);
    for (key, value) in members {
        let twice = match (key.as_str(), value.node) {
            ("type", Node::Text(text)) => {
                let read = match text.as_str() {
                    "string" => Type::Text,
                    "integer" => Type::Integer,
                    "boolean" => Type::Flag,
                    _ => return Err("has a type that is not string, integer or boolean".to_owned()),
                };
                type_.replace(read).is_some()
            }
            ("pattern", Node::Text(text)) => {
                let read = Pattern::new(&text)
                    .ok_or("has a pattern that is not a regular expression (or too large a one)")?;
                pattern.replace(read).is_some()
            }
            ("default", Node::Text(text)) => default.replace(Argument::Text(text)).is_some(),
            ("default", Node::Flag(flag)) => default.replace(Argument::Flag(flag)).is_some(),
            ("default", Node::Number(number)) => {
                let whole = whole(number).ok_or("has a default that is not a whole number")?;
                default.replace(Argument::Integer(whole)).is_some()
            }
            ("type" | "pattern", other) => {
                let what = format!("must be a string, not {}", other.kind());
                problems.json(value.at, &format!("{path}.{key}"), what);
                false
            }
            _ => {
                let what = "is not an option of a parameter";
                problems.json(value.at, &format!("{path}.{key}"), what);
                false
            }
        };
        if twice {
            problems.json(value.at, &format!("{path}.{key}"), "is there twice");
        }
    }
    let type_ = type_.ok_or("needs a type")?;
    if type_ == Type::Text && pattern.is_none() {
        return Err("needs a pattern, because it is a string".to_owned());
    }
    let parameter = Parameter {
        type_,
        pattern,
        default: None,
    };
    if let Some(default) = &default {
        parameter
            .check(default)
            .map_err(|what| format!("has a default that {what}"))?;
    }
    Ok(Parameter {
        default,
        ..parameter
    })
}

/// JSON has one kind of number; up to 2^53 the whole ones are exact.
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it is a whole number that an i64 can hold"
    )]
    let read = (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64);
    read
}

enum Piece<'a> {
    Literal(&'a str),
    Parameter(&'a str),
}

/// Splits a word at its `{names}`. Two braces stand for one.
fn pieces(word: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = word;
    while let Some(at) = rest.find(['{', '}']) {
        pieces.push(Piece::Literal(&rest[..at]));
        let brace = &rest[at..=at];
        let after = &rest[at + 1..];
        if after.starts_with(brace) {
            pieces.push(Piece::Literal(brace));
            rest = &after[1..];
            continue;
        }
        let Some((name, behind)) = after.split_once('}').filter(|_| brace == "{") else {
            return Err(format!("has a single {brace} in a word of argv"));
        };
        pieces.push(Piece::Parameter(name));
        rest = behind;
    }
    pieces.push(Piece::Literal(rest));
    Ok(pieces)
}

/// Whether a program and its parameters fit together.
pub(super) fn check(program: &Program, parameters: &Parameters) -> Result<(), String> {
    if parameters.0.is_empty() {
        return Ok(());
    }
    let Program::Argv(argv) = program else {
        return Err("has parameters, which need argv: a shell must not see them".to_owned());
    };
    let mut used = BTreeSet::new();
    for (index, word) in argv.iter().enumerate() {
        for piece in pieces(word)? {
            if let Piece::Parameter(name) = piece {
                if !parameters.0.contains_key(name) {
                    return Err(format!("uses a parameter {name:?} that is not declared"));
                }
                if index == 0 {
                    return Err("must not take its program from a parameter".to_owned());
                }
                used.insert(name);
            }
        }
    }
    match parameters
        .0
        .keys()
        .find(|name| !used.contains(name.as_str()))
    {
        Some(name) => Err(format!("does not use its parameter {name:?}")),
        None => Ok(()),
    }
}
