//! What is printed, and the status at the end. Scripts rely on both.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use collectd_live::protocol::Answer;
use collectd_live::sender::Error;

/// How a subcommand ended. clap itself ends the program with [`Status::Usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It did what was asked for.
    Success = 0,
    /// The command on the host failed.
    Failed = 1,
    /// The arguments are wrong, or a file that they name.
    Usage = 2,
    /// The monitor refused, or could not run the command to its end.
    Refused = 3,
    /// There was no answer in time.
    Timeout = 4,
    /// The broker cannot be reached, does not let us in, or was lost.
    Connection = 5,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status as u8)
    }
}

impl From<&Answer> for Status {
    fn from(answer: &Answer) -> Self {
        match answer.code {
            0 => Status::Success,
            1..=255 => Status::Failed,
            _ => Status::Refused,
        }
    }
}

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        match error {
            Error::Timeout => Status::Timeout,
            Error::Connection(_) => Status::Connection,
        }
    }
}

/// Text that came over the network, in one line and unable to control a terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// The same JSON without anything that could control a terminal or end the line.
pub(crate) fn one_line(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // White space between the parts. In a string it is escaped already.
            '\n' | '\r' | '\t' => line.push(' '),
            c if c.is_control() => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line
}

/// Prints a line.
pub(crate) fn print(line: &str) {
    // Whoever closed our standard output can still read the exit status.
    drop(writeln!(io::stdout(), "{line}"));
}

/// Says what went wrong.
pub(crate) fn complain(error: &dyn Display) {
    // There is nobody to tell that standard error is closed.
    drop(writeln!(io::stderr(), "collectd-live: {error}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_controls_a_terminal() {
        let json = "{\"a\":\n\"\u{9b}2J\u{7f}\"}";
        assert_eq!(printable(json), "{\"a\":\\n\"\\u{9b}2J\\u{7f}\"}");
        assert_eq!(one_line(json), "{\"a\": \"\\u009b2J\\u007f\"}");
    }
}
