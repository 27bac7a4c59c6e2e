//! JSON of which every value knows its place in the text, so that a mistake can be named with its line.

use std::fmt;

use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A place in a text, counted from 1. Columns count bytes, as serde_json's do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value and where it starts.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) at: Place,
    pub(crate) node: Node,
}

/// A value.
#[derive(Debug)]
pub(crate) enum Node {
    Null,
    Flag(bool),
    Number(f64),
    Text(String),
    List(Vec<Located>),
    /// In the order of the text, repeated keys included.
    Object(Vec<(String, Located)>),
}

impl Node {
    /// The kind of the value, with an article.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Node::Null => "null",
            Node::Flag(_) => "a boolean",
            Node::Number(_) => "a number",
            Node::Text(_) => "a string",
            Node::List(_) => "a list",
            Node::Object(_) => "an object",
        }
    }
}

/// What is wrong with a text, and where.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) at: Place,
    pub(crate) what: String,
}

/// Settings nest four levels deep. The limit keeps a hostile file from exhausting the stack.
const MAX_DEPTH: usize = 16;

/// Reads a whole text.
pub(crate) fn parse(text: &str) -> Result<Located, SyntaxError> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| SyntaxError {
        at: Place {
            line: error.line(),
            column: error.column(),
        },
        what: strip_place(&error),
    })?;
    locate(text, raw.get(), MAX_DEPTH)
}

/// serde_json ends its messages with the place, which is told apart here.
fn strip_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message,
    }
}

fn locate(text: &str, raw: &str, depth: usize) -> Result<Located, SyntaxError> {
    let at = place(text, raw);
    let fail = |error: &serde_json::Error| SyntaxError {
        at,
        what: strip_place(error),
    };
    if depth == 0 {
        return Err(SyntaxError {
            at,
            what: format!("nested more than {MAX_DEPTH} levels deep"),
        });
    }
    let node = match raw.as_bytes().first() {
        Some(b'{') => {
            let entries = crate::json::entries(raw).map_err(|e| fail(&e))?;
            let mut object = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                object.push((key, locate(text, value.get(), depth - 1)?));
            }
            Node::Object(object)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::Deserializer::from_str(raw)
                .deserialize_seq(Items)
                .map_err(|e| fail(&e))?;
            let mut list = Vec::with_capacity(items.len());
            for item in items {
                list.push(locate(text, item.get(), depth - 1)?);
            }
            Node::List(list)
        }
        Some(b'"') => Node::Text(serde_json::from_str(raw).map_err(|e| fail(&e))?),
        Some(b't') => Node::Flag(true),
        Some(b'f') => Node::Flag(false),
        Some(b'n') => Node::Null,
        _ => Node::Number(serde_json::from_str(raw).map_err(|e| fail(&e))?),
    };
    Ok(Located { at, node })
}

/// Where in the text a part of it starts.
fn place(text: &str, part: &str) -> Place {
    let offset = part.as_ptr() as usize - text.as_ptr() as usize;
    let before = &text.as_bytes()[..offset];
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    Place {
        line: lines + 1,
        column: offset - line_start + 1,
    }
}

struct Items;

impl<'de> Visitor<'de> for Items {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> (usize, usize) {
        let error = parse(text).expect_err("the text is wrong");
        (error.at.line, error.at.column)
    }

    #[test]
    fn every_value_knows_its_place() {
        let root = parse("{\n  \"a\": 1,\n  \"b\": [ true,\n null ]\n}\n").unwrap();
        let Node::Object(entries) = &root.node else {
            panic!("{root:?}")
        };
        assert_eq!(entries[0].1.at, Place { line: 2, column: 8 });
        let Node::List(items) = &entries[1].1.node else {
            panic!("{root:?}")
        };
        assert_eq!(
            items[0].at,
            Place {
                line: 3,
                column: 10
            }
        );
        assert_eq!(items[1].at, Place { line: 4, column: 2 });
        assert!(matches!(items[1].node, Node::Null));
    }

    #[test]
    fn a_syntax_error_has_line_and_column() {
        assert_eq!(error("{\n  \"a\": 1\n  \"b\": 2\n}"), (3, 3));
        assert_eq!(error(""), (1, 0));
        assert_eq!(error("{} x"), (1, 4));
    }

    #[test]
    fn what_cannot_be_represented_is_an_error_with_its_place() {
        assert_eq!(error("{\"a\":\n\"\\ud800\"}"), (2, 1));
        assert_eq!(error("{\"a\":\n 1e999}"), (2, 2));
    }

    #[test]
    fn nesting_is_limited() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(&deep)
            .expect_err("too deep")
            .what
            .contains("levels deep"));
    }
}
