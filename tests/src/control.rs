//! A client of the control socket that is independent of libcollectdclient.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::patience;

/// How long a single command may take before the client gives up.
const REPLY_DEADLINE: Duration = Duration::from_secs(30);

/// The answer to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The number that the first line starts with.
    pub status: i64,
    /// The rest of the first line.
    pub text: String,
    /// The lines that follow it: as many as a positive status announces.
    pub lines: Vec<String>,
}

impl Reply {
    /// Whether the command was carried out.
    pub fn is_ok(&self) -> bool {
        self.status >= 0
    }

    /// Returns the reply if the command was carried out.
    ///
    /// # Panics
    /// If it was refused.
    #[track_caller]
    pub fn expect_ok(self) -> Self {
        assert!(
            self.is_ok(),
            "the command was refused: {} {}",
            self.status,
            self.text
        );
        self
    }

    /// Returns the reason why the command was refused.
    ///
    /// # Panics
    /// If it was carried out, or if the reason does not contain all of `parts`
    /// (in any case).
    #[track_caller]
    pub fn expect_refused(self, parts: &[&str]) -> String {
        assert!(
            self.status < 0,
            "the command should have been refused (with {parts:?}), but the answer was: {} {}",
            self.status,
            self.text
        );
        let lower = self.text.to_lowercase();
        for part in parts {
            assert!(
                lower.contains(&part.to_lowercase()),
                "the reason does not say {part:?}: {}",
                self.text
            );
        }
        self.text
    }
}

/// One line of the answer to `LISTPLUGINS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginInfo {
    /// The plugin's name.
    pub name: String,
    /// Its state, for example `READY`.
    pub state: String,
    /// The `key=value` pairs that follow, without quotes.
    pub fields: BTreeMap<String, String>,
}

impl PluginInfo {
    /// Parses one line of the answer.
    ///
    /// # Panics
    /// If the line does not have the form `<name> <STATE> key=value …`.
    pub fn parse(line: &str) -> Self {
        let mut words = split_words(line).into_iter();
        let (Some(name), Some(state)) = (words.next(), words.next()) else {
            panic!("a line of LISTPLUGINS has no name and state: {line:?}");
        };
        let fields = words
            .map(|word| match word.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => panic!("{word:?} is not key=value in this line of LISTPLUGINS: {line:?}"),
            })
            .collect();
        PluginInfo {
            name,
            state,
            fields,
        }
    }

    /// The value of a field.
    ///
    /// # Panics
    /// If the line has no such field.
    #[track_caller]
    pub fn field(&self, key: &str) -> &str {
        self.fields
            .get(key)
            .unwrap_or_else(|| panic!("LISTPLUGINS gives no {key:?} for {self:?}"))
    }
}

/// Splits at blanks outside of quotes; in quotes a backslash protects the next
/// character.
fn split_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => word.extend(chars.next()),
            ' ' if !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            other => word.push(other),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// A connection to the control socket.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the socket at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(patience(REPLY_DEADLINE)))?;
        stream.set_write_timeout(Some(patience(REPLY_DEADLINE)))?;
        Ok(Connection {
            stream: BufReader::new(stream),
        })
    }

    /// Sends one line and reads the answer.
    pub fn command(&mut self, line: &str) -> io::Result<Reply> {
        let stream = self.stream.get_mut();
        stream.write_all(line.as_bytes())?;
        stream.write_all(b"\n")?;

        let first = self.read_line()?;
        let (status, text) = first.split_once(' ').unwrap_or((&first, ""));
        let status: i64 = status.parse().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the answer does not start with a number: {first:?}"),
            )
        })?;
        let lines = (0..status)
            .map(|_| self.read_line())
            .collect::<io::Result<Vec<String>>>()?;
        Ok(Reply {
            status,
            text: text.to_owned(),
            lines,
        })
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the daemon closed the connection in place of an answer",
            ));
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// Quotes `text` as a field of a control line.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '\n' => quoted.push_str("\\n"),
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_line_with_a_quoted_error_is_parsed() {
        let info = PluginInfo::parse(r#"cpu FAILED generation=2 error="a \"b\" c=d""#);
        assert_eq!(info.name, "cpu");
        assert_eq!(info.state, "FAILED");
        assert_eq!(info.field("generation"), "2");
        assert_eq!(info.field("error"), r#"a "b" c=d"#);
    }

    #[test]
    fn a_plugin_line_for_an_unprivileged_peer_has_no_fields() {
        let info = PluginInfo::parse("cpu READY");
        assert!(info.fields.is_empty());
    }

    #[test]
    fn quoting_keeps_lines_quotes_and_backslashes_apart() {
        assert_eq!(quote("a \"b\"\nc\\d"), r#""a \"b\"\nc\\d""#);
    }
}
